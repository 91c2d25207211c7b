//! Reports that Kafka does not answer while a call waits for it.

use std::time::{Duration, Instant};

use super::{Observation, observe};

/// A longer silence of Kafka is logged: a broker that is frozen keeps its connections, and nothing
/// else would tell.
const SILENCE: Duration = Duration::from_secs(10);

/// Logs a long silence of Kafka, and its end.
pub(super) struct Silence {
    since: Instant,
    logged: bool,
}

impl Silence {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), logged: false }
    }

    pub(super) fn lasts(&mut self, error: &dyn std::fmt::Display) {
        if self.since.elapsed() > SILENCE && !std::mem::replace(&mut self.logged, true) {
            observe(Observation::Failed);
            tracing::error!(
                %error,
                "Kafka does not answer; callbacks are still accepted and stored"
            );
        }
    }

    pub(super) fn ends(self) -> Self {
        if self.logged {
            tracing::info!(after_seconds = self.since.elapsed().as_secs(), "Kafka answers again");
        }
        Self::new()
    }
}
