//! What health checks ask of a running instance, on both listeners.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::heartbeat::{self, Heartbeat};
use crate::wal::{AppendError, Probe};

/// The state of the intake's threads and of the log.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    heartbeat: Heartbeat,
    log: Probe,
    draining: Arc<AtomicBool>,
}

/// Why callbacks should go to another instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unready {
    /// The log would reject them.
    #[error(transparent)]
    Rejecting(AppendError),
    /// The process stops soon.
    #[error("stopping soon; callbacks are accepted until then")]
    Draining,
}

impl Health {
    /// From the heartbeat of the intake's threads and a probe of the log.
    #[must_use]
    pub(crate) fn new(heartbeat: Heartbeat, log: Probe) -> Self {
        Self { heartbeat, log, draining: Arc::default() }
    }

    /// Whether callbacks are accepted now and in the near future. Says nothing about Kafka:
    /// callbacks are accepted without it.
    ///
    /// # Errors
    /// [`Unready`]
    pub(crate) fn ready(&self) -> Result<(), Unready> {
        self.log.ready().map_err(Unready::Rejecting)?;
        if self.is_draining() { Err(Unready::Draining) } else { Ok(()) }
    }

    /// Whether a callback that came now would be accepted, also while the process stops.
    #[must_use]
    pub(crate) fn accepts(&self) -> bool {
        self.stuck().is_none() && self.log.ready().is_ok()
    }

    /// From now on readiness checks fail, so that balancers choose another instance; callbacks are
    /// still accepted.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::drain`] was called.
    #[must_use]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The part that makes no progress, if one does not: a restart may help.
    #[must_use]
    pub(crate) fn stuck(&self) -> Option<&'static str> {
        if self.heartbeat.is_stuck() {
            Some("the intake")
        } else if self.log.commit_elapsed() >= heartbeat::STUCK {
            Some("the log")
        } else {
            None
        }
    }
}
