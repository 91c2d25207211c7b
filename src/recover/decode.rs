//! Finds the body of a callback in the text of Tencent's record.
//!
//! The format of a record's `Request` is not documented. The sample is percent-encoded, with `+`
//! for blanks. So nothing is assumed about the text around the body: the one JSON object that is a
//! callback of the record's type and stream is used, byte for byte. If there is none, or more than
//! one, the record stays undecoded.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::callback::UnverifiedCallback;
use crate::event::EventType;
use crate::record::BODY_MAX;

/// Longer texts are not searched: a body of [`BODY_MAX`] with every byte percent-encoded fits.
const TEXT_MAX: usize = 4 * BODY_MAX;

/// Bytes that are parsed in total. A text with many objects that end in an error could take hours,
/// because each is parsed up to the error.
const WORK_MAX: usize = 8 * TEXT_MAX;

/// Why a text contains no callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtractError {
    /// It is longer than any callback.
    #[error("it is longer than {TEXT_MAX} bytes")]
    TooLong,
    /// The body is longer than livebridge accepts.
    #[error("the body is longer than {BODY_MAX} bytes")]
    BodyTooLong,
    /// A percent sign without two hexadecimal digits: it was cut off, perhaps.
    #[error("the percent-encoding is broken")]
    Encoding,
    /// Too many objects in it are malformed.
    #[error("too many JSON objects in it are malformed")]
    TooComplex,
    /// What is encoded is no text.
    #[error("the encoded bytes are not UTF-8")]
    NotUtf8,
    /// No JSON object in it is a callback.
    #[error("it contains no JSON object that is a callback")]
    NoCallback,
    /// There are callbacks in it, but not of the record's type and stream.
    #[error("the callback in it is of another type or stream than the record")]
    Other,
    /// Several different callbacks fit.
    #[error("several callbacks in it fit the record")]
    Ambiguous,
}

/// The body of the callback of this type and stream in `text`, which may be percent-encoded, and
/// may contain more than the body. An empty `stream` and no type fit any.
///
/// # Errors
/// [`ExtractError`]
pub fn decode(
    text: &str,
    event_type: Option<EventType>,
    stream: &str,
) -> Result<Bytes, ExtractError> {
    if text.len() > TEXT_MAX {
        return Err(ExtractError::TooLong);
    }
    // An encoder encodes braces. A text with one is plain, whatever percent signs its strings have.
    let plain =
        if text.contains('{') { Cow::Borrowed(text) } else { percent_decoded(text)?.into() };
    let mut found: Option<&str> = None;
    let mut others = false;
    let (mut rest, mut work) = (0, 0);
    while let Some(at) = plain[rest..].find('{').map(|at| rest + at) {
        rest = at + 1;
        if work > WORK_MAX {
            return Err(ExtractError::TooComplex);
        }
        let object = match object_at(&plain[at..]) {
            Ok(object) => object,
            // It is cut off: what is within it is a part of a callback, not one.
            Err(None) => break,
            Err(Some(read)) => {
                work += read;
                continue;
            }
        };
        work += object.len();
        match fits(object, event_type, stream) {
            Fit::No => continue,
            Fit::Other => {
                others = true;
                continue;
            }
            Fit::Yes => {}
        }
        // Objects within it belong to it.
        rest = at + object.len();
        match found {
            Some(first) if first != object => return Err(ExtractError::Ambiguous),
            _ => found = Some(object),
        }
    }
    match found {
        Some(object) if object.len() > BODY_MAX => Err(ExtractError::BodyTooLong),
        Some(object) => Ok(Bytes::copy_from_slice(object.as_bytes())),
        None if others => Err(ExtractError::Other),
        None => Err(ExtractError::NoCallback),
    }
}

enum Fit {
    Yes,
    /// A callback of another type or stream.
    Other,
    /// No callback.
    No,
}

fn fits(object: &str, event_type: Option<EventType>, stream: &str) -> Fit {
    let body = Bytes::copy_from_slice(object.as_bytes());
    if UnverifiedCallback::parse(&body).is_err() {
        return Fit::No;
    }
    let Some((found_type, found_stream)) = claims(object) else { return Fit::No };
    let same_type = event_type.is_none_or(|wanted| wanted == found_type);
    let same_stream = stream.is_empty() || found_stream.is_some_and(|found| found == stream);
    if same_type && same_stream { Fit::Yes } else { Fit::Other }
}

/// The type and stream that a callback says it is of.
fn claims(object: &str) -> Option<(EventType, Option<String>)> {
    let members: Map<String, Value> = serde_json::from_str(object).ok()?;
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let event_type = text(members.get("event_type")?)?.parse().ok().map(EventType)?;
    let stream = members.get("stream_id").or_else(|| members.get("streamId")).and_then(text);
    Some((event_type, stream))
}

/// The JSON object that `text` begins with; otherwise how much of it was read, at most, or `None`
/// if the object is not finished.
fn object_at(text: &str) -> Result<&str, Option<usize>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(value)) => Ok(value.get()),
        Some(Err(error)) if error.is_eof() => Err(None),
        Some(Err(error)) if error.line() == 1 => Err(Some(error.column().max(1))),
        _ => Err(Some(text.len())),
    }
}

/// Decodes `%XX` and `+` for a blank.
fn percent_decoded(text: &str) -> Result<String, ExtractError> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'%' => {
                let (Some(high), Some(low)) = (digit(bytes.get(at)), digit(bytes.get(at + 1)))
                else {
                    return Err(ExtractError::Encoding);
                };
                at += 2;
                decoded.push(u8::try_from(high << 4 | low).map_err(|_| ExtractError::Encoding)?);
            }
            b'+' => decoded.push(b' '),
            byte => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| ExtractError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUSH: Option<EventType> = Some(EventType(1));
    const BODY: &str = r#"{"event_type":1,"stream_id":"s","a":"100% +{\"}","b":{"event_type":1}}"#;

    fn encoded(text: &str) -> String {
        let encode = |byte: u8| match byte {
            b' ' => "+".to_owned(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        text.bytes().map(encode).collect()
    }

    fn found(text: &str) -> Result<Bytes, ExtractError> {
        decode(text, PUSH, "s")
    }

    #[test]
    fn the_body_is_found_alone_and_within_a_larger_text_plain_and_encoded() {
        for text in [
            BODY.to_owned(),
            format!("POST /callback HTTP/1.1\r\nhost: x\r\n\r\n{BODY}"),
            format!("opensso  server=10.12.1.1: {{not json}} {BODY} tail"),
            format!(r#"{{"url":"http://x/","body":{BODY}}}"#),
            format!("{BODY}\n{BODY}"),
        ] {
            assert_eq!(found(&text).unwrap(), BODY, "{text}");
            assert_eq!(found(&encoded(&text)).unwrap(), BODY, "{text}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_decoded() {
        let other = BODY.replace("100", "200");
        for (text, error) in [
            ("", ExtractError::NoCallback),
            ("opensso++server%3D10.12.1.1%3A", ExtractError::NoCallback),
            ("{}", ExtractError::NoCallback),
            (&BODY[..BODY.len() - 1], ExtractError::NoCallback),
            (r#"{"event_type":1,"stream_id":"s""#, ExtractError::NoCallback),
            (r#"{"a":{"event_type":1,"stream_id":"s"}"#, ExtractError::NoCallback),
            (r#"{"stream_id":"s"}"#, ExtractError::NoCallback),
            (r#"{"event_type":0,"stream_id":"s"}"#, ExtractError::Other),
            (r#"{"event_type":1,"stream_id":"t"}"#, ExtractError::Other),
            (r#"{"event_type":1}"#, ExtractError::Other),
            (&format!("{BODY}{other}"), ExtractError::Ambiguous),
            ("%7B%22", ExtractError::NoCallback),
            ("%7B%2", ExtractError::Encoding),
            ("%zz", ExtractError::Encoding),
            ("%FF", ExtractError::NotUtf8),
            ("%é", ExtractError::Encoding),
            (&"x".repeat(TEXT_MAX + 1), ExtractError::TooLong),
        ] {
            let shown: String = text.chars().take(80).collect();
            assert_eq!(found(text), Err(error), "{shown}");
        }
    }

    #[test]
    fn deeply_nested_and_repeated_braces_are_searched_in_time() {
        let started = std::time::Instant::now();
        for text in ["{".repeat(TEXT_MAX), r#"{"a":"#.repeat(200_000), r#"{"a":1}"#.repeat(200_000)]
        {
            assert!(found(&text).is_err());
        }
        assert!(started.elapsed() < std::time::Duration::from_mins(1), "{:?}", started.elapsed());
    }

    proptest! {
        #[test]
        fn any_text_is_decoded_to_a_part_of_itself_or_not_at_all(text in ".{0,200}") {
            if let Ok(body) = decode(&text, None, "") {
                let body = std::str::from_utf8(&body).unwrap();
                let plain = text.contains(body);
                prop_assert!(plain || percent_decoded(&text).unwrap().contains(body));
                prop_assert!(UnverifiedCallback::parse(&Bytes::copy_from_slice(body.as_bytes())).is_ok());
            }
        }

        #[test]
        fn a_cut_or_changed_text_never_yields_another_callback(
            cut in 0..2000_usize, at in 0..2000_usize, byte in any::<u8>(), encode in any::<bool>()
        ) {
            let whole = if encode { encoded(BODY) } else { BODY.to_owned() };
            let cut: String = whole.chars().take(cut).collect();
            if let Ok(body) = found(&cut) {
                prop_assert_eq!(body, BODY);
            }
            let mut changed = whole.into_bytes();
            let length = changed.len();
            changed[at % length] = byte;
            let text = String::from_utf8_lossy(&changed);
            if let Ok(body) = found(&text) {
                // A changed value is still a callback; its type and stream are the record's.
                let (event_type, stream) =
                    claims(std::str::from_utf8(&body).unwrap()).unwrap();
                prop_assert_eq!((Some(event_type), stream.as_deref()), (PUSH, Some("s")));
            }
        }

        #[test]
        fn whatever_is_around_it_the_encoded_and_the_plain_body_are_the_same(
            before in "[^{}]{0,40}", after in "[^{}]{0,40}"
        ) {
            let text = format!("{before}{BODY}{after}");
            prop_assert_eq!(found(&text).unwrap(), BODY);
            prop_assert_eq!(found(&encoded(&text)).unwrap(), BODY);
        }
    }
}
