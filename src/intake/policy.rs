//! Which callbacks are accepted: by client address, secret and signature. A reload replaces the
//! whole policy.

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

/// The conditions under which a callback is accepted.
#[derive(Debug)]
pub struct IntakePolicy {
    verifier: Verifier,
    access: Access,
    /// Members of the body that are dropped.
    omit: Vec<String>,
    /// The metrics of each key, in the order of `verifier.keys`.
    uses: Vec<KeyUse>,
    /// Counts callbacks that were accepted with an invalid signature because `callback.unsigned`
    /// names their type.
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

    /// The address of the client that sent a request over a connection from `peer`.
    pub(super) fn client_address(
        &self,
        peer: Option<IpAddr>,
        headers: &HeaderMap,
    ) -> Option<IpAddr> {
        peer.map(|peer| self.access.client_address(peer, headers))
    }

    /// Rejects a request by its client address or by `X-Livebridge-Secret`, before its body is
    /// read. An unknown address (PROXY header `UNKNOWN`) is rejected.
    pub(super) fn check_request(
        &self,
        address: Option<IpAddr>,
        headers: &HeaderMap,
    ) -> Result<(), Rejection> {
        if !address.is_some_and(|address| self.access.is_allowed(address)) {
            return Err(Rejection::Address);
        }
        if self.access.has_secret(headers) { Ok(()) } else { Err(Rejection::Secret) }
    }

    /// Parses `body`, verifies its signature (I2) and returns the record to log. Counts the use of
    /// the key.
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
