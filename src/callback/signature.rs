//! The signature of a callback: `sign` = MD5(key + `t`), as 32 hex digits (protocol.md section 2).
//!
//! The key is a secret shared with Tencent. `t` is the time, in Unix seconds, at which the
//! signature expires; it is hashed as its text, whether it is a number or a string in the body. The
//! signature covers nothing else of the body. A callback is authentic if any of the configured keys
//! signed it and the system clock is at most [`Verifier::leeway`] past `t`.

use std::fmt;
use std::time::Duration;

use md5::{Digest, Md5};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::CallbackError;
use super::json::Value;
use crate::event::{EventType, Timestamp, hex_bytes};

/// A callback key: the secret shared with Tencent, which is never printed, and its name, which is.
#[derive(Clone)]
pub struct CallbackKey {
    name: String,
    secret: String,
}

impl CallbackKey {
    /// The key with this secret; `None` when it is blank.
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

    /// Whether `other` has the same secret; the names may differ.
    #[must_use]
    pub fn has_same_secret(&self, other: &Self) -> bool {
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
    /// None.
    #[default]
    Rejected,
    /// Those of these event types.
    Types(Vec<EventType>),
    /// Every callback. Any client that reaches the port can then write to Kafka.
    All,
}

impl UnsignedPolicy {
    pub(super) fn allows(&self, event_type: Option<EventType>) -> bool {
        match self {
            Self::Rejected => false,
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
    /// How long after `t` a signature is still accepted. Twelve retries last longer than `t`, and
    /// it is not documented whether each has a new signature (protocol.md section 2).
    pub leeway: Duration,
    /// The callbacks that need no valid signature.
    pub unsigned: UnsignedPolicy,
}

impl Verifier {
    /// The index of the key that signed `t`.
    pub(super) fn check_signature(
        &self,
        t: Option<Value<'_>>,
        sign: Option<Value<'_>>,
        now: Timestamp,
    ) -> Result<usize, CallbackError> {
        let (Some(t), Some(sign)) = (t, sign) else { return Err(CallbackError::Unsigned) };
        let wrong = CallbackError::WrongType { field: "t", wanted: "Unix seconds" };
        let Some(t) = t.text() else { return Err(wrong) };
        let Some(expiry) = t.parse().ok().and_then(Timestamp::from_secs) else {
            return Err(wrong);
        };
        let sign = sign.text().as_deref().and_then(hex_bytes).ok_or(CallbackError::BadSignature)?;
        // Every key is compared, so that the time taken does not reveal which one matched, or how
        // much of it.
        let mut index = u64::MAX;
        for (at, key) in (0..).zip(&self.keys) {
            index.conditional_assign(&at, key.sign(&t).ct_eq(&sign));
        }
        let key = usize::try_from(index).ok().filter(|key| self.keys.get(*key).is_some());
        let key = key.ok_or(CallbackError::BadSignature)?;
        let overdue = now.since(expiry);
        if overdue > self.leeway {
            return Err(CallbackError::Expired(overdue));
        }
        Ok(key)
    }
}
