//! Who may call: what a callback must show before it is believed.

use bytes::Bytes;

use crate::callback::{CallbackError, Unverified, Verifier};
use crate::metrics::KeyUse;
use crate::record::{Record, Timestamp};

/// The keys, and what becomes known of their use.
#[derive(Debug)]
pub struct Gate {
    verifier: Verifier,
    /// One for each key.
    uses: Vec<KeyUse>,
}

impl Gate {
    /// Admits what `verifier` does.
    #[must_use]
    pub fn new(verifier: Verifier) -> Self {
        let uses = verifier.keys.iter().map(|key| KeyUse::of(key.name())).collect();
        Self { verifier, uses }
    }

    /// The record of a callback that proves where it comes from, and the key that it did so with.
    pub(super) fn admit(
        &self,
        body: &Bytes,
        received_at: Timestamp,
        omit: &[String],
    ) -> Result<(Record, Option<KeyUse>), CallbackError> {
        let callback = Unverified::parse(body)?.verify(&self.verifier, received_at)?;
        let used = callback.key().and_then(|key| self.uses.get(key)).cloned();
        Ok((callback.into_record(received_at, omit)?, used))
    }
}
