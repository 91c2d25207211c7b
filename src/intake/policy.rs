//! Who may call: from where, with which words, with which keys. One value, replaced as a whole.

use std::net::IpAddr;

use bytes::Bytes;
use hyper::HeaderMap;

use super::Access;
use crate::callback::{CallbackError, Unverified, Verifier};
use crate::log_limit::LogLimiter;
use crate::metrics::{KeyUse, RequestError};
use crate::record::{Record, Timestamp};

static UNVERIFIED: LogLimiter = LogLimiter::new();

/// What must be shown, and what becomes known of it.
#[derive(Debug)]
pub struct IntakePolicy {
    verifier: Verifier,
    access: Access,
    /// Members of the body that are not kept.
    omit: Vec<String>,
    /// One for each key.
    uses: Vec<KeyUse>,
    /// Of callbacks with a signature that could not be verified and needed not be.
    unverified: KeyUse,
}

impl IntakePolicy {
    /// Admits what both do, less the members `omit`.
    #[must_use]
    pub fn new(verifier: Verifier, access: Access, omit: Vec<String>) -> Self {
        let uses = verifier.keys.iter().map(|key| KeyUse::of(key.name())).collect();
        Self { verifier, access, omit, uses, unverified: KeyUse::unverified() }
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Whether a request with these headers, over a connection from `peer`, is worth reading on.
    pub(super) fn check_request(
        &self,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Result<(), RequestError> {
        // Also of those who were let in when they connected: that may have been another gate.
        if !self.access.is_allowed(self.access.caller(peer, headers)) {
            return Err(RequestError::Address);
        }
        if self.access.knows_secret(headers) { Ok(()) } else { Err(RequestError::Secret) }
    }

    /// The record of a callback that proves where it comes from.
    pub(super) fn verify(
        &self,
        body: &Bytes,
        received_at: Timestamp,
    ) -> Result<Record, CallbackError> {
        let callback = Unverified::parse(body)?.verify(&self.verifier, received_at)?;
        if let Some(used) = callback.key().and_then(|key| self.uses.get(key)) {
            used.count(received_at);
        }
        if let Some(error) = callback.unverified() {
            self.unverified.count(received_at);
            if let Some(suppressed) = UNVERIFIED.permit() {
                tracing::warn!(
                    %error, suppressed,
                    "accepted a signed callback without verifying its signature, because \
                     callback.unsigned names its type; is its key missing from callback.keys?"
                );
            }
        }
        callback.into_record(received_at, &self.omit)
    }
}
