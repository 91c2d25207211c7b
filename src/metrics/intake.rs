//! Metrics of who comes, and how each proves that it may.

use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, counter, gauge};

use super::Counters;
use crate::record::Timestamp;

/// Why livebridge ended a connection on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It comes from where callbacks are not taken from.
    Address,
    /// There are too many from the same address.
    PerAddressLimit,
    /// Nothing of it was taken while others waited for room.
    Evicted,
    /// Nothing of it was taken for too long.
    IdleTimeout,
    /// It has had as many requests as one may have.
    TooManyRequests,
    /// It has had as many refusals in a row as one may have.
    TooManyRejections,
    /// A trusted proxy did not say whom it speaks for.
    ProxyHeader,
    /// The TLS handshake failed.
    Tls,
    /// PROXY header and TLS handshake took too long.
    HandshakeTimeout,
    /// No whole header came in time.
    HeaderTimeout,
    /// The header is too large, or has too many fields.
    HeaderTooLarge,
    /// This is not HTTP.
    HeaderMalformed,
}

const CLOSE_REASONS: [(CloseReason, &str); 12] = [
    (CloseReason::Address, "address"),
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
];

/// Those for which the operators' listener ends one.
const ADMIN_CLOSE_REASONS: [&str; 2] = ["evicted", "idle_timeout"];

pub(super) struct IntakeMetrics {
    ended: Counters,
    admin_ended: Counters,
    certificate: Gauge,
}

pub(super) static INTAKE: LazyLock<IntakeMetrics> = LazyLock::new(|| IntakeMetrics {
    ended: Counters::new(
        CLOSE_REASONS.iter().map(|(_, label)| *label),
        |label| counter!("livebridge_http_connections_closed_total", "reason" => label),
    ),
    admin_ended: Counters::new(
        ADMIN_CLOSE_REASONS.into_iter(),
        |label| counter!("livebridge_admin_connections_closed_total", "reason" => label),
    ),
    certificate: gauge!("livebridge_tls_certificate_expiry_timestamp_seconds"),
});

impl CloseReason {
    fn label(self) -> &'static str {
        CLOSE_REASONS.iter().find(|(known, _)| *known == self).map_or("", |(_, label)| label)
    }
}

/// A connection to the intake was ended.
pub fn ended(reason: CloseReason) {
    INTAKE.ended.get(reason.label()).increment(1);
}

/// A connection to the operators' listener was ended.
pub fn admin_ended(reason: CloseReason) {
    INTAKE.admin_ended.get(reason.label()).increment(1);
}

/// When the certificate in use ends; `None` when there is none.
pub fn certificate_expires(at: Option<SystemTime>) {
    let since_epoch = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    INTAKE.certificate.set(since_epoch.unwrap_or_default().as_secs_f64());
}

/// The label `key` of callbacks that no key signed. No key can be called so: names are plain words.
pub const UNVERIFIED: &str = "(unverified)";

/// The use of one callback key.
pub struct KeyUse {
    accepted: Counter,
    last: Gauge,
}

impl KeyUse {
    /// Of the key of this name, which is shown from now on.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            accepted: counter!("livebridge_callback_key_accepted_total", "key" => name.clone()),
            last: gauge!("livebridge_callback_key_last_used_timestamp_seconds", "key" => name),
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

impl fmt::Debug for KeyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyUse")
    }
}
