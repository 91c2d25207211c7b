//! Recovers the callbacks that Tencent Cloud gave up on, from its records of them.
//!
//! The records are queried stream by stream, because the API requires the stream's exact name. A
//! record goes through the same parser and identity as a callback, and is then published like a
//! replay ([`crate::publisher::replay`]).

use std::io;
use std::path::PathBuf;

use crate::callback::{CallbackError, UnsignedPolicy, UnverifiedCallback, Verifier};
use crate::event::{EventType, Timestamp};
use crate::kafka;
use crate::permission;
use crate::record::Record;
use crate::tencent::{CallbackRecord, TencentError};

mod decode;
mod find;
mod gap;
mod report;
mod spool;

pub use decode::{ExtractError, decode};
pub use find::{Finder, TimeRange, oldest_available, streams_of_file};
pub use gap::{covers, find_gaps, gaps_ahead, range_of};
pub use report::{Comparison, ComparisonReport};
pub use spool::{Spool, Undecoded, UndecodedFile};

/// Why the records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The API.
    #[error(transparent)]
    Tencent(#[from] TencentError),
    /// Too many streams at once.
    #[error(
        "more than 10000 streams are listed for the second after {0}, and the API shows no more: name \
         the streams with --streams-file"
    )]
    TooManyStreams(Timestamp),
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] kafka::ReadError),
    /// The file of undecoded records.
    #[error("cannot write {}: {cause}{}", path.display(), permission::advice(path, cause))]
    Undecoded {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The temporary file.
    #[error(
        "cannot use a temporary file in {dir}: {cause}{advice}; --undecoded FILE chooses another directory",
        dir = dir.display(), advice = permission::advice(dir, cause)
    )]
    Spool {
        /// Its directory.
        dir: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
}

/// Why a record yields no event.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Its text.
    #[error(transparent)]
    Decode(#[from] ExtractError),
    /// The callback in it.
    #[error(transparent)]
    Callback(#[from] CallbackError),
}

/// The verifier for callbacks in `Request`. Those that are signed must have a valid signature; it
/// does not expire, because Tencent Cloud itself lists them as sent.
#[must_use]
pub fn verifier(configured: &Verifier) -> Verifier {
    Verifier { leeway: std::time::Duration::MAX, ..configured.clone() }
}

/// The event that `record` is about, as if its callback had come `now`; without members that `omit`
/// names.
///
/// # Errors
/// [`RecordError`]
pub fn event_of(
    record: &CallbackRecord,
    verifier: &Verifier,
    omit: &[String],
    now: Timestamp,
) -> Result<Record, RecordError> {
    let body = decode(&record.request, record.event_type.map(EventType), &record.stream_id)?;
    let content = UnverifiedCallback::parse(&body)?;
    let callback = if content.is_signed() {
        content.verify(verifier, now)?
    } else {
        // Those without a signature are accepted because the API lists them as sent.
        content.verify(&Verifier { unsigned: UnsignedPolicy::All, ..verifier.clone() }, now)?
    };
    let mut event = callback.into_record(now, omit)?;
    if event.occurred_at.is_none() {
        event.occurred_at = record.event_time;
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::callback::CallbackKey;
    use crate::sample::Samples;

    fn event_of_request(request: String, keys: &[&str]) -> Result<Record, RecordError> {
        let now = Timestamp::now();
        let record = CallbackRecord {
            event_time: Some(now.before(Duration::from_hours(50))),
            event_type: Some(1),
            request,
            response: String::new(),
            response_time: None,
            result_code: Some(1),
            stream_id: String::new(),
        };
        let configured = Verifier {
            keys: keys.iter().filter_map(|key| CallbackKey::new(key)).collect(),
            leeway: Duration::ZERO,
            unsigned: UnsignedPolicy::Rejected,
        };
        event_of(&record, &verifier(&configured), &[], now)
    }

    #[test]
    fn a_signature_is_verified_without_expiry_and_required_only_if_a_part_of_it_is_present() {
        let samples = Samples::new(CallbackKey::new("right"));
        let signed_at = Timestamp::now().before(Duration::from_hours(50));
        let signed = || samples.delivery(samples.event(EventType(1)), signed_at);
        assert!(event_of_request(signed(), &["other", "right"]).is_ok());
        let error = event_of_request(signed(), &["wrong"]).unwrap_err();
        assert!(matches!(error, RecordError::Callback(CallbackError::BadSignature)), "{error}");
        let mut event = samples.event(EventType(1));
        let plain = serde_json::to_string(&event).unwrap();
        assert!(event_of_request(plain, &["right"]).is_ok(), "the API says that it was sent");
        event.insert("t".into(), 1_800_000_000.into());
        let part = serde_json::to_string(&event).unwrap();
        let error = event_of_request(part, &["right"]).unwrap_err();
        assert!(matches!(error, RecordError::Callback(CallbackError::Unsigned)), "{error}");
    }
}
