//! From bytes to an authentic callback: parse, verify, and only then a record.
//!
//! Trust is a type here: [`UnverifiedCallback`] offers nothing but [`UnverifiedCallback::verify`], only that makes
//! a [`Callback`], and only a callback becomes a [`Record`]. The body is never re-serialised; what
//! is logged and published are the bytes as received, less the members that the configuration omits.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use md5::{Digest, Md5};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::event::{EventType, Timestamp, hex_bytes};
use crate::record::{KEY_MAX, Record};

mod identity;
mod json;

use json::{Members, Value};

/// Why a callback is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CallbackError {
    /// Not JSON, or not UTF-8.
    #[error("the body is not valid JSON: {0}")]
    Malformed(#[source] serde_json::Error),
    /// JSON, but not an object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// Strict parsers differ on which of two equal keys wins, so none is trusted.
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
        /// What it should have been.
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
        "malformed",
        "not_an_object",
        "duplicate_key",
        "too_deep",
        "wrong_type",
        "unsigned",
        "bad_signature",
        "expired",
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

/// A callback key: the secret shared with Tencent, which is never printed, and its name, which is.
#[derive(Clone)]
pub struct CallbackKey {
    name: String,
    secret: String,
}

impl CallbackKey {
    /// Takes the secret's text; `None` when it is blank, which would sign nothing.
    #[must_use]
    pub fn new(secret: &str) -> Option<Self> {
        let secret = secret.trim();
        (!secret.is_empty()).then(|| Self { name: "key".into(), secret: secret.to_owned() })
    }

    /// The same key under the name that the configuration gives it.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its secret, to be compared or sent to Tencent Cloud.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.secret
    }

    /// Whether `other` has the same secret, whatever its name.
    #[must_use]
    pub fn same_secret(&self, other: &Self) -> bool {
        self.secret == other.secret
    }

    /// Whether it is the example of the documentation, which is public.
    #[must_use]
    pub fn is_example(&self) -> bool {
        self.secret == "change-me"
    }

    /// `MD5(key + t)`, the signature of protocol.md section 2.
    #[must_use]
    pub fn sign(&self, t: &str) -> [u8; 16] {
        Md5::new().chain_update(&self.secret).chain_update(t).finalize().into()
    }

    /// [`CallbackKey::sign`] as the 32 lower-case hex digits that go into a body.
    #[must_use]
    pub fn sign_hex(&self, t: &str) -> String {
        format!("{:032x}", u128::from_be_bytes(self.sign(t)))
    }
}

impl fmt::Debug for CallbackKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallbackKey({}, ..)", self.name)
    }
}

/// Which callbacks are accepted without a valid signature, because their type carries none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UnsignedPolicy {
    /// None: the default.
    #[default]
    Refused,
    /// Those of these event types.
    Types(Vec<EventType>),
    /// Every callback. Any client that reaches the port can then write to Kafka.
    All,
}

impl UnsignedPolicy {
    fn admits(&self, event_type: Option<EventType>) -> bool {
        match self {
            Self::Refused => false,
            Self::Types(types) => event_type.is_some_and(|t| types.contains(&t)),
            Self::All => true,
        }
    }
}

/// How callbacks are authenticated.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// Accepted keys: several while they rotate, or when domains use different templates.
    pub keys: Vec<CallbackKey>,
    /// How long after `t` a signature is still accepted. Twelve retries outlast `t`, and whether they
    /// are signed anew is not documented (protocol.md section 2).
    pub leeway: Duration,
    /// What needs no valid signature.
    pub unsigned: UnsignedPolicy,
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
    /// A callback that may be unsigned is accepted whatever is wrong with its signature: a sender
    /// could as well leave it out, and a key that is added in the console before it is added here
    /// costs no event. [`Callback::unverified`] tells what was wrong.
    ///
    /// # Errors
    /// [`CallbackError`], of the kinds that are about authentication, or a wrong type of `t`.
    pub fn verify(
        self,
        verifier: &Verifier,
        now: Timestamp,
    ) -> Result<Callback<'a>, CallbackError> {
        let signature = (self.members.get("t"), self.members.get("sign"));
        match check_signature(signature, verifier, now) {
            Ok(key) => Ok(Callback { content: self, key: Some(key), unverified: None }),
            Err(error) if verifier.unsigned.admits(self.event_type) => {
                let unverified = self.is_signed().then_some(error);
                Ok(Callback { content: self, key: None, unverified })
            }
            Err(error) => Err(error),
        }
    }
}

/// The index of the key that signed `t`, given `t` and `sign`.
fn check_signature(
    signature: (Option<Value<'_>>, Option<Value<'_>>),
    verifier: &Verifier,
    now: Timestamp,
) -> Result<usize, CallbackError> {
    let (Some(t), Some(sign)) = signature else { return Err(CallbackError::Unsigned) };
    // `t` is signed as its text, whether it is a number or a string (protocol.md section 2).
    let wrong = CallbackError::WrongType { field: "t", wanted: "Unix seconds" };
    let Some(t) = t.text() else { return Err(wrong) };
    let Some(expiry) = t.parse().ok().and_then(Timestamp::from_secs) else {
        return Err(wrong);
    };
    let sign = sign.text().as_deref().and_then(hex_bytes).ok_or(CallbackError::BadSignature)?;
    // Every key is tried: the time taken tells neither which one matched nor how nearly.
    let mut index = u64::MAX;
    for (at, key) in (0..).zip(&verifier.keys) {
        index.conditional_assign(&at, key.sign(&t).ct_eq(&sign));
    }
    let key = usize::try_from(index).ok().filter(|key| verifier.keys.get(*key).is_some());
    let key = key.ok_or(CallbackError::BadSignature)?;
    let overdue = now.since(expiry);
    if overdue > verifier.leeway {
        return Err(CallbackError::Expired(overdue));
    }
    Ok(key)
}

/// A callback whose sender proved to hold a key, or whose type may be unsigned.
#[derive(Debug)]
pub struct Callback<'a> {
    content: UnverifiedCallback<'a>,
    key: Option<usize>,
    unverified: Option<CallbackError>,
}

impl Callback<'_> {
    /// Which of the verifier's keys signed it; `None` when none did.
    #[must_use]
    pub fn key(&self) -> Option<usize> {
        self.key
    }

    /// Why its signature, which it needed not have, could not be verified.
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
