//! What health checks ask of a running instance, on both listeners.

use crate::heartbeat::{self, Heartbeat};
use crate::wal::{Probe, Unready};

/// The state of the intake's threads and of the log.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    heartbeat: Heartbeat,
    log: Probe,
}

impl Health {
    /// From the heartbeat of the intake's threads and a probe of the log.
    #[must_use]
    pub(crate) fn new(heartbeat: Heartbeat, log: Probe) -> Self {
        Self { heartbeat, log }
    }

    /// Whether callbacks are accepted now. Says nothing about Kafka: callbacks are accepted
    /// without it.
    ///
    /// # Errors
    /// Why they are not, or will soon not be.
    pub(crate) fn ready(&self) -> Result<(), Unready> {
        self.log.ready()
    }

    /// Whether a callback that came now would be accepted.
    #[must_use]
    pub(crate) fn accepts(&self) -> bool {
        self.stuck().is_none() && self.log.accepts()
    }

    /// The part that makes no progress, if one does not: a restart may help.
    #[must_use]
    pub(crate) fn stuck(&self) -> Option<&'static str> {
        if self.heartbeat.is_stuck() {
            Some("the intake")
        } else if self.log.busy() >= heartbeat::STUCK {
            Some("the log")
        } else {
            None
        }
    }
}
