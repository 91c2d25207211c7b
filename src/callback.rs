//! Parses and verifies callbacks, and makes records of them.
//!
//! The types enforce verification: only [`UnverifiedCallback::verify`] makes a [`Callback`], and
//! only a [`Callback`] becomes a [`Record`]. The body is never re-serialised: the log and Kafka get
//! the bytes as received, without the members that the configuration omits.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

use crate::event::{EventType, Timestamp};
use crate::record::{KEY_MAX, Record};

mod identity;
mod json;
mod signature;

use json::Members;
pub use signature::{CallbackKey, UnsignedPolicy, Verifier};

/// Why a callback is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CallbackError {
    /// Not JSON, or not UTF-8.
    #[error("the body is not valid JSON: {0}")]
    Malformed(#[source] serde_json::Error),
    /// JSON, but not an object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// Parsers differ on which of two equal keys takes effect, so neither is accepted.
    #[error("the key {0:?} occurs twice in one object")]
    DuplicateKey(String),
    /// Nested deeper than `json::DEPTH_MAX`.
    #[error("the body is nested deeper than {} levels", json::DEPTH_MAX)]
    TooDeep,
    /// A field that livebridge reads has a value of the wrong kind.
    #[error("the field {field:?} is not {wanted}")]
    WrongType {
        /// The field's name.
        field: &'static str,
        /// The required type.
        wanted: &'static str,
    },
    /// `sign` or `t` is missing and the event type is not one that may be unsigned.
    #[error("the callback carries no signature (fields \"t\" and \"sign\")")]
    Unsigned,
    /// `sign` is not MD5(key + t) for any key.
    #[error("the signature matches no callback key")]
    BadSignature,
    /// `t` is further in the past than the leeway.
    #[error("the signature expired {}s ago, beyond the leeway", .0.as_secs())]
    Expired(Duration),
}

impl CallbackError {
    /// Every value of [`CallbackError::reason`], for metrics that exist before the first rejection.
    pub const REASONS: [&str; 8] = [
        "malformed", "not_an_object", "duplicate_key", "too_deep", "wrong_type", "unsigned",
        "bad_signature", "expired",
    ];

    /// The metrics label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NotAnObject => "not_an_object",
            Self::DuplicateKey(_) => "duplicate_key",
            Self::TooDeep => "too_deep",
            Self::WrongType { .. } => "wrong_type",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
            Self::Expired(_) => "expired",
        }
    }

    /// Whether authentication failed, rather than parsing.
    #[must_use]
    pub fn is_authentication(&self) -> bool {
        matches!(self, Self::Unsigned | Self::BadSignature | Self::Expired(_))
    }
}

/// A parsed body whose signature is not checked yet.
#[derive(Debug)]
pub struct UnverifiedCallback<'a> {
    body: &'a Bytes,
    members: Members<'a>,
    event_type: Option<EventType>,
}

impl<'a> UnverifiedCallback<'a> {
    /// Reads the body's top level.
    ///
    /// # Errors
    /// [`CallbackError`], of the kinds that are not about authentication.
    pub fn parse(body: &'a Bytes) -> Result<Self, CallbackError> {
        let members = Members::parse(body)?;
        let event_type = match members.get("event_type") {
            None => None,
            Some(value) => {
                Some(EventType(value.integer().ok_or(CallbackError::WrongType {
                    field: "event_type",
                    wanted: "an integer",
                })?))
            }
        };
        Ok(Self { body, members, event_type })
    }

    /// Whether it carries a part of a signature.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.members.get("t").is_some() || self.members.get("sign").is_some()
    }

    /// Checks signature and expiry at `now`.
    ///
    /// A callback whose type may be unsigned is accepted even if its signature is wrong: without a
    /// signature it would be accepted too. So no event is lost while a key is in the console and
    /// not yet in `callback.keys`. [`Callback::unverified`] returns the error.
    ///
    /// # Errors
    /// [`CallbackError`], of the kinds that are about authentication, or a wrong type of `t`.
    pub fn verify(
        self,
        verifier: &Verifier,
        now: Timestamp,
    ) -> Result<Callback<'a>, CallbackError> {
        let (t, sign) = (self.members.get("t"), self.members.get("sign"));
        match verifier.check_signature(t, sign, now) {
            Ok(key) => Ok(Callback { content: self, key: Some(key), unverified: None }),
            Err(error) if verifier.unsigned.allows(self.event_type) => {
                let unverified = self.is_signed().then_some(error);
                Ok(Callback { content: self, key: None, unverified })
            }
            Err(error) => Err(error),
        }
    }
}

/// A callback with a valid signature, or whose type may be unsigned.
#[derive(Debug)]
pub struct Callback<'a> {
    content: UnverifiedCallback<'a>,
    key: Option<usize>,
    unverified: Option<CallbackError>,
}

impl Callback<'_> {
    /// The index of the key that signed it; `None` if its signature is missing or invalid.
    #[must_use]
    pub fn key(&self) -> Option<usize> {
        self.key
    }

    /// The error of the signature of a callback that may be unsigned; `None` if it is valid or
    /// absent.
    #[must_use]
    pub fn unverified(&self) -> Option<&CallbackError> {
        self.unverified.as_ref()
    }

    /// The record to log: identity, key and time are computed here, once, from the whole body. Then
    /// the members named in `omit` are removed, so that neither the log nor Kafka ever has them.
    ///
    /// # Errors
    /// [`CallbackError`] when a nested value is malformed in a way the top level did not show.
    pub fn into_record(
        self,
        received_at: Timestamp,
        omit: &[String],
    ) -> Result<Record, CallbackError> {
        let UnverifiedCallback { body, members, event_type } = self.content;
        let facts = identity::Facts::of(&members, event_type)?;
        let has_stream = facts.stream.is_some();
        let key = facts.stream.or(facts.task).filter(|key| key.len() <= KEY_MAX);
        let key = key.map(|key| match key {
            Cow::Borrowed(text) => body.slice_ref(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        });
        Ok(Record {
            event_type,
            id: facts.id,
            received_at,
            occurred_at: facts.occurred_at,
            has_stream: has_stream && key.is_some(),
            key,
            body: members.without(body, omit).map_or_else(|| body.clone(), Bytes::from),
        })
    }
}
