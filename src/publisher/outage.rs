//! Says once that Kafka is in trouble, reminds now and then, and says once that it is over; of a Kafka
//! that comes and goes, no more than that.

use std::time::{Duration, Instant};

use crate::metrics;

/// That there is trouble is said again after this time.
const REMIND: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct OutageLog {
    since: Option<Instant>,
    /// When it was last said that there is trouble.
    said: Option<Instant>,
    /// Whether that is the last word.
    open: bool,
}

impl OutageLog {
    pub(super) fn report(&mut self, cause: &dyn std::fmt::Display) {
        metrics::kafka_up(false);
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.said.is_none_or(|said| said.elapsed() >= REMIND) {
            self.said = Some(Instant::now());
            self.open = true;
            tracing::error!(
                %cause,
                for_seconds = since.elapsed().as_secs(),
                "cannot publish to Kafka; callbacks are still taken and stored, trying again"
            );
        }
    }

    pub(super) fn resolved(&mut self) {
        metrics::kafka_up(true);
        let since = self.since.take();
        if let Some(since) = since.filter(|_| std::mem::take(&mut self.open)) {
            tracing::info!(after_seconds = since.elapsed().as_secs(), "publishing to Kafka again");
        }
    }
}
