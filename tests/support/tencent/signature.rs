//! The verification of `TC3-HMAC-SHA256`, with HMAC written out from its definition.

use sha2::{Digest, Sha256};

use super::http::Request;
use super::{Failure, SECRET_ID, SECRET_KEY};

/// Seconds by which the clocks may differ.
const TOLERANCE: i64 = 300;

/// Rejects a request as the real service does: by its secret ID, its time, its token, its signature.
pub(super) fn verify(request: &Request, token: Option<&str>, now: i64) -> Result<(), Failure> {
    let wrong = |what: &str| ("AuthFailure.InvalidAuthorization", what.to_owned());
    if request.line != "POST / HTTP/1.1" {
        return Err(wrong("the request is not a POST to /"));
    }
    let header = |name: &str| request.header(name).ok_or_else(|| wrong(name));
    let authorization = header("authorization")?;
    let part = |name: &str| {
        let (_, rest) = authorization.split_once(name).ok_or_else(|| wrong(name))?;
        Ok::<&str, Failure>(rest.split(',').next().unwrap_or_default().trim())
    };
    if !authorization.starts_with("TC3-HMAC-SHA256 ") {
        return Err(wrong("the algorithm"));
    }
    let scope: Vec<&str> = part("Credential=")?.split('/').collect();
    let [secret_id, date, "live", "tc3_request"] = scope[..] else { return Err(wrong("scope")) };
    if secret_id != SECRET_ID {
        return Err(("AuthFailure.SecretIdNotFound", format!("no secret ID {secret_id}")));
    }
    let timestamp = header("x-tc-timestamp")?;
    let seconds: i64 = timestamp.parse().map_err(|_| wrong("the time"))?;
    if (now - seconds).abs() > TOLERANCE {
        return Err(("AuthFailure.SignatureExpire", "the signature has expired".to_owned()));
    }
    let days = super::actions::time_text(seconds * 1000, true);
    if !days.starts_with(date) {
        return Err(("AuthFailure.SignatureFailure", "the date is not that of the time".into()));
    }
    if request.header("x-tc-token") != token {
        return Err(("AuthFailure.TokenFailure", "the token is wrong".to_owned()));
    }
    if part("SignedHeaders=")? != "content-type;host" {
        return Err(wrong("the signed headers"));
    }
    let canonical = format!(
        "POST\n/\n\ncontent-type:{}\nhost:{}\n\ncontent-type;host\n{}",
        header("content-type")?,
        header("host")?,
        hex(&Sha256::digest(&request.body))
    );
    let text = format!(
        "TC3-HMAC-SHA256\n{timestamp}\n{date}/live/tc3_request\n{}",
        hex(&Sha256::digest(canonical))
    );
    let mut key = hmac(format!("TC3{SECRET_KEY}").as_bytes(), date.as_bytes());
    for step in ["live", "tc3_request"] {
        key = hmac(&key, step.as_bytes());
    }
    if part("Signature=")? == hex(&hmac(&key, text.as_bytes())) {
        Ok(())
    } else {
        let message = "the provided credentials could not be validated".to_owned();
        Err(("AuthFailure.SignatureFailure", message))
    }
}

/// RFC 2104, for keys of up to a block of SHA-256.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().to_vec()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, b| hex + &format!("{b:02x}"))
}
