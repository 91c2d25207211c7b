//! Which callbacks are accepted: from which addresses, with which secret, signed with which keys.
//! One value, replaced as a whole on a reload.

use std::net::IpAddr;

use bytes::Bytes;
use hyper::HeaderMap;

use super::Access;
use super::rejection::Rejection;
use crate::callback::{CallbackError, UnverifiedCallback, Verifier};
use crate::event::Timestamp;
use crate::log_limit::LogLimiter;
use crate::metrics::KeyUse;
use crate::record::Record;

/// What a request must show to be accepted.
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
    /// Accepts what both `verifier` and `access` accept, and drops the members `omit`.
    #[must_use]
    pub fn new(verifier: Verifier, access: Access, omit: Vec<String>) -> Self {
        let uses = verifier.keys.iter().map(|key| KeyUse::of(key.name())).collect();
        Self { verifier, access, omit, uses, unverified: KeyUse::unverified() }
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// The address that a request comes from, over a connection from `peer`.
    pub(super) fn address(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        peer.map(|peer| self.access.client_address(peer, headers))
    }

    /// Whether a request from `address` with these headers is worth reading on. From an unknown
    /// address none is: a proxy that was told to name its clients does not.
    pub(super) fn check_request(
        &self,
        address: Option<IpAddr>,
        headers: &HeaderMap,
    ) -> Result<(), Rejection> {
        if !address.is_some_and(|address| self.access.is_allowed(address)) {
            return Err(Rejection::Address);
        }
        if self.access.knows_secret(headers) { Ok(()) } else { Err(Rejection::Secret) }
    }

    /// The record of a callback that proves where it comes from (I2).
    pub(super) fn verify(
        &self,
        body: &Bytes,
        received_at: Timestamp,
    ) -> Result<Record, CallbackError> {
        static LIMIT: LogLimiter = LogLimiter::new();
        let callback = UnverifiedCallback::parse(body)?.verify(&self.verifier, received_at)?;
        if let Some(used) = callback.key().and_then(|key| self.uses.get(key)) {
            used.count(received_at);
        }
        if let Some(error) = callback.unverified() {
            self.unverified.count(received_at);
            if let Some(suppressed) = LIMIT.permit() {
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
