//! Metrics of the intake's requests, connections and keys.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge};

use super::table;
use crate::event::Timestamp;

/// Why livebridge closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// There are too many from the same address.
    PerAddressLimit,
    /// It had gone longest without an accepted callback when another one needed its slot.
    Evicted,
    /// It was idle, had only rejections, or did not read its responses for too long.
    IdleTimeout,
    /// It had as many requests as a connection may have.
    TooManyRequests,
    /// It had as many rejections in a row as a connection may have.
    TooManyRejections,
    /// A trusted proxy sent no valid PROXY header.
    ProxyHeader,
    /// The TLS handshake failed.
    Tls,
    /// PROXY header and TLS handshake took too long.
    HandshakeTimeout,
    /// No whole header came in time.
    HeaderTimeout,
    /// The header is too large, or has too many fields.
    HeaderTooLarge,
    /// It is not HTTP.
    HeaderMalformed,
    /// The client was still sending when it had been read for long enough after its last response.
    LingerLimit,
}

const CLOSE_REASONS: [(CloseReason, &str); 12] = [
    (CloseReason::PerAddressLimit, "per_address_limit"),
    (CloseReason::Evicted, "evicted"),
    (CloseReason::IdleTimeout, "idle_timeout"),
    (CloseReason::TooManyRequests, "too_many_requests"),
    (CloseReason::TooManyRejections, "too_many_rejections"),
    (CloseReason::ProxyHeader, "proxy_header"),
    (CloseReason::Tls, "tls"),
    (CloseReason::HandshakeTimeout, "handshake_timeout"),
    (CloseReason::HeaderTimeout, "header_timeout"),
    (CloseReason::HeaderTooLarge, "header_too_large"),
    (CloseReason::HeaderMalformed, "header_malformed"),
    (CloseReason::LingerLimit, "linger_limit"),
];

/// Makes a counter for each reason for which a request can be rejected, so that every series exists
/// before the first rejection.
pub fn register_rejections(reasons: impl Iterator<Item = &'static str>) {
    table::CALLBACKS_REJECTED.register(reasons);
}

/// A request was answered with an error.
pub fn rejected(reason: &'static str) {
    table::CALLBACKS_REJECTED.get(reason).increment(1);
}

pub(super) fn close_reasons() -> Vec<&'static str> {
    CLOSE_REASONS.iter().map(|(_, label)| *label).collect()
}

impl CloseReason {
    fn label(self) -> &'static str {
        CLOSE_REASONS.iter().find(|(known, _)| *known == self).map_or("", |(_, label)| label)
    }
}

/// A connection to the intake was closed.
pub fn ended(reason: CloseReason) {
    table::HTTP_CONNECTIONS_CLOSED.get(reason.label()).increment(1);
}

/// A connection to the admin listener was closed.
pub fn admin_ended(reason: CloseReason) {
    table::ADMIN_CONNECTIONS_CLOSED.get(reason.label()).increment(1);
}

/// When the certificate in use ends; `None` when there is none.
pub fn certificate_expires(at: Option<SystemTime>) {
    let since_epoch = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    table::TLS_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS
        .set(since_epoch.unwrap_or_default().as_secs_f64());
}

/// The label `key` of callbacks that no key signed. No key can be called so: names are plain words.
pub const UNVERIFIED: &str = "(unverified)";

/// The use of one callback key.
#[derive(Debug)]
pub struct KeyUse {
    accepted: Counter,
    last: Gauge,
}

impl KeyUse {
    /// Of the key with this name, whose series exist from now on.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self {
            accepted: table::CALLBACK_KEY_ACCEPTED.of(name),
            last: table::CALLBACK_KEY_LAST_USED_TIMESTAMP_SECONDS.of(name),
        }
    }

    /// Of no key: callbacks whose signature could not be verified, and which were accepted because
    /// `callback.unsigned` names their type.
    #[must_use]
    pub fn unverified() -> Self {
        Self::of(UNVERIFIED)
    }

    /// A callback that was received at `now` was accepted with it.
    pub fn count(&self, now: Timestamp) {
        self.accepted.increment(1);
        let epoch = Timestamp::from_millis(0);
        self.last.set(Duration::as_secs_f64(&now.since(epoch)));
    }
}
