//! Reports conditions that stop the publisher: once when one begins, again every minute, and once
//! when it is over. A condition that comes and goes is reported no more often than that.

use std::time::{Duration, Instant};

use crate::metrics;

/// A condition that lasts is reported again after this time.
const REMIND: Duration = Duration::from_mins(1);

/// What stops the publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outage {
    /// Kafka is unreachable, or rejects what is not a record's fault.
    Kafka,
    /// A rejected record cannot be stored.
    Quarantine,
    /// The log cannot be read.
    Log,
}

impl Outage {
    fn set_metric(self, ok: bool) {
        match self {
            Self::Kafka => metrics::kafka_up(ok),
            Self::Quarantine => metrics::quarantine_ok(ok),
            Self::Log => metrics::wal_read_ok(ok),
        }
    }

    fn begins(self) -> &'static str {
        match self {
            Self::Kafka => {
                "cannot publish to Kafka; callbacks are still accepted and stored, trying again"
            }
            Self::Quarantine => {
                "cannot store a record that Kafka rejects, so nothing behind it is published; \
                 callbacks are still accepted and stored, trying again; is the disk full?"
            }
            Self::Log => {
                "cannot read the log, so nothing is published; callbacks are still accepted and \
                 stored, trying again"
            }
        }
    }

    fn ends(self) -> &'static str {
        match self {
            Self::Kafka => "publishing to Kafka again",
            Self::Quarantine => "the quarantine can be written again",
            Self::Log => "the log can be read again",
        }
    }
}

#[derive(Debug)]
pub(super) struct OutageLog {
    what: Outage,
    since: Option<Instant>,
    /// When it was last logged.
    logged: Option<Instant>,
    /// Whether its end is still to be logged.
    open: bool,
}

impl OutageLog {
    pub(super) fn new(what: Outage) -> Self {
        Self { what, since: None, logged: None, open: false }
    }

    pub(super) fn report(&mut self, cause: &dyn std::fmt::Display) {
        self.what.set_metric(false);
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.logged.is_none_or(|logged| logged.elapsed() >= REMIND) {
            self.logged = Some(Instant::now());
            self.open = true;
            let for_seconds = since.elapsed().as_secs();
            tracing::error!(%cause, for_seconds, "{}", self.what.begins());
        }
    }

    pub(super) fn resolved(&mut self) {
        self.what.set_metric(true);
        let since = self.since.take();
        if let Some(since) = since.filter(|_| std::mem::take(&mut self.open)) {
            tracing::info!(after_seconds = since.elapsed().as_secs(), "{}", self.what.ends());
        }
    }
}
