//! The signature of API 3.0, `TC3-HMAC-SHA256`.

use std::time::{Duration, SystemTime};

use ring::{digest, hmac};

use super::Credentials;

/// The only content type that is sent; it is part of what is signed.
pub(super) const CONTENT_TYPE: &str = "application/json; charset=utf-8";

const ALGORITHM: &str = "TC3-HMAC-SHA256";
const SIGNED_HEADERS: &str = "content-type;host";

/// The value of the header `Authorization` for a POST of `body` to `/` on `host`, at `timestamp` in
/// Unix seconds.
pub(super) fn authorization(
    credentials: &Credentials,
    service: &str,
    host: &str,
    timestamp: u64,
    body: &[u8],
) -> String {
    let date = utc_date(timestamp);
    let request = format!(
        "POST\n/\n\ncontent-type:{CONTENT_TYPE}\nhost:{host}\n\n{SIGNED_HEADERS}\n{}",
        sha256_hex(body)
    );
    let scope = format!("{date}/{service}/tc3_request");
    let to_sign = format!("{ALGORITHM}\n{timestamp}\n{scope}\n{}", sha256_hex(request.as_bytes()));
    let secret = format!("TC3{}", credentials.secret_key());
    let steps = [date.as_str(), service, "tc3_request"];
    let key = steps.iter().fold(secret.into_bytes(), |key, step| mac(&key, step.as_bytes()));
    format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={SIGNED_HEADERS}, Signature={}",
        credentials.secret_id(),
        hex(&mac(&key, to_sign.as_bytes()))
    )
}

/// `YYYY-MM-DD` of Unix seconds.
fn utc_date(timestamp: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp);
    let mut date = humantime::format_rfc3339_seconds(time).to_string();
    date.truncate("YYYY-MM-DD".len());
    date
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Tencent Cloud's documentation, whose secret ID is not published in full.
    const BODY: &str =
        r#"{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}"#;

    #[test]
    fn the_published_vector_is_reproduced() {
        assert_eq!(
            sha256_hex(BODY.as_bytes()),
            "35e9c5b0e3ae67532d3c9f17ead6c90222632e5b1ff7f6e89887f1398934f064"
        );
        let credentials =
            Credentials::new("AKIDEXAMPLE", "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE", None).unwrap();
        let host = "cvm.tencentcloudapi.com";
        assert_eq!(
            authorization(&credentials, "cvm", host, 1_551_113_065, BODY.as_bytes()),
            "TC3-HMAC-SHA256 Credential=AKIDEXAMPLE/2019-02-25/cvm/tc3_request, \
             SignedHeaders=content-type;host, \
             Signature=72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
        );
    }

    #[test]
    fn the_date_is_that_of_utc() {
        for (timestamp, date) in
            [(0, "1970-01-01"), (1_551_139_199, "2019-02-25"), (1_551_139_200, "2019-02-26")]
        {
            assert_eq!(utc_date(timestamp), date);
        }
    }
}
