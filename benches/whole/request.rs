//! The request and the response parser: bytes created once and patched in place.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use md5::{Digest as _, Md5};

/// The key that signs the callbacks; the measured server is configured with it.
pub(crate) const KEY: &str = "callbackKey0123456789";

/// The size of a callback's body: a push event with the stream parameters of a real encoder.
pub(crate) const BODY_BYTES: usize = 700;

/// The text before the digits of `sequence`, which is always padded to the digits of a `u64`.
const SEQUENCE: &str = "\"sequence\":\"";
const SEQUENCE_DIGITS: usize = 19;

/// Digits of `sequence` that count up; those before them identify the run and the connection.
const COUNTER_DIGITS: usize = 9;

/// One connection's request, of which every [`Request::next`] is another event.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    counter: Range<usize>,
}

impl Request {
    /// A signed push event of a separate stream per connection.
    ///
    /// `run` (below 9000) and `connection` (below 1 000 000) make its events distinct from those of
    /// every other run and connection.
    pub(crate) fn new(host: &str, run: u32, connection: u32) -> Self {
        Self::of(host, run, connection, seconds_now())
    }

    /// The same, of events that happened at `time`, in seconds.
    pub(crate) fn of(host: &str, run: u32, connection: u32, time: u64) -> Self {
        let body = body(run, connection, time);
        let mut text = format!(
            "POST /callback HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        text.push_str(&body);
        let digits_start = text.find(SEQUENCE).map_or(0, |at| at + SEQUENCE.len());
        let counter_start = digits_start + SEQUENCE_DIGITS - COUNTER_DIGITS;
        Self { bytes: text.into(), counter: counter_start..counter_start + COUNTER_DIGITS }
    }

    /// The latest event's sequence number, as in its body.
    pub(crate) fn sequence(&self) -> u64 {
        sequence(&self.bytes).unwrap_or(0)
    }

    /// The bytes of the next event: only its sequence number differs.
    pub(crate) fn next(&mut self) -> &[u8] {
        for digit in self.bytes[self.counter.clone()].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                break;
            }
            *digit = b'0';
        }
        &self.bytes
    }
}

/// The sequence number in an event's body.
pub(crate) fn sequence(body: &[u8]) -> Option<u64> {
    let mut windows = body.windows(SEQUENCE.len());
    let start = windows.position(|window| window == SEQUENCE.as_bytes())? + SEQUENCE.len();
    let digits = body.get(start..start + SEQUENCE_DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The seconds since 1970.
pub(crate) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn body(run: u32, connection: u32, now: u64) -> String {
    let expiry = now + 600;
    let sign = sign(expiry);
    let stream = format!("bench_{connection:06}");
    let sequence = format!("{:04}{connection:06}{:0width$}", 1000 + run, 0, width = COUNTER_DIGITS);
    let head = format!(
        "{{\"app\":\"59000.push.example.com\",\"appid\":1250000000,\"appname\":\"live\",\
         \"channel_id\":\"{stream}\",\"errcode\":0,\"errmsg\":\"ok\",\"event_time\":{now},\
         \"event_type\":1,\"height\":1080,\"idc_id\":34,\"node\":\"192.0.2.37\",\
         \"sequence\":\"{sequence}\",\"set_id\":2,\"stream_id\":\"{stream}\",\"stream_param\":\
         \"txSecret=00000000000000000000000000000000&txTime={expiry:08X}&encoder=obs-30.1.2\
         &trace="
    );
    let tail = format!(
        "\",\"user_ip\":\"198.51.100.202\",\"width\":1920,\"sign\":\"{sign}\",\"t\":{expiry}}}"
    );
    let filler = "7f3c9a51e08bd264".chars().cycle();
    let missing = BODY_BYTES.saturating_sub(head.len() + tail.len());
    head + &filler.take(missing).collect::<String>() + &tail
}

/// Tencent's signature: lower-case hex of MD5 over the key and the decimal expiry.
pub(crate) fn sign(expiry: u64) -> String {
    let digest = Md5::digest(format!("{KEY}{expiry}"));
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The state of a response after the bytes read so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Incomplete.
    Incomplete,
    /// The whole response is read.
    Complete { status: u16 },
    /// A response that this parser does not support (all measured servers send a content length).
    Malformed,
}

/// Parses one HTTP/1.1 response with a content length.
pub(crate) fn parse_answer(bytes: &[u8]) -> Answer {
    let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Answer::Incomplete;
    };
    let head = &bytes[..head_end];
    let (Some(status), Some(length)) = (status(head), content_length(head)) else {
        return Answer::Malformed;
    };
    match bytes.len().cmp(&(head_end + 4 + length)) {
        std::cmp::Ordering::Less => Answer::Incomplete,
        std::cmp::Ordering::Equal => Answer::Complete { status },
        std::cmp::Ordering::Greater => Answer::Malformed,
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn content_length(head: &[u8]) -> Option<usize> {
    let name = b"content-length:";
    let line = head
        .split(|byte| *byte == b'\n')
        .find(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))?;
    std::str::from_utf8(&line[name.len()..]).ok()?.trim().parse().ok()
}
