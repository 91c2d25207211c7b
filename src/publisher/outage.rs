//! Reports conditions that stop the publisher: when one begins, when its cause changes, again every
//! minute, and when it is over. A condition that comes and goes is reported once a minute and cause.

use std::time::{Duration, Instant};

use crate::kafka::{self, Observation};
use crate::metrics;

/// A cause that lasts is reported again after this time.
const REMIND: Duration = Duration::from_mins(1);
/// Different causes that are reported within that time. A cause whose text varies must not flood the
/// log.
const CAUSES_MAX: usize = 8;

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
            Self::Kafka if ok => kafka::observe(Observation::Succeeded),
            Self::Kafka => kafka::observe(Observation::Failed),
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
    /// The causes of the last minute, and when each was logged.
    logged: Vec<(String, Instant)>,
    /// Whether its end is still to be logged.
    open: bool,
    /// The last cause that was reported.
    last_cause: Option<String>,
}

impl OutageLog {
    pub(super) fn new(what: Outage) -> Self {
        Self { what, since: None, logged: Vec::new(), open: false, last_cause: None }
    }

    pub(super) fn report(&mut self, cause: &dyn std::fmt::Display) {
        self.what.set_metric(false);
        self.last_cause = Some(cause.to_string());
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        if self.is_due(&cause.to_string(), now) {
            self.open = true;
            let for_seconds = since.elapsed().as_secs();
            tracing::error!(%cause, for_seconds, "{}", self.what.begins());
        }
    }

    /// Whether `cause` is to be logged. Times and counts do not make it another cause.
    fn is_due(&mut self, cause: &str, now: Instant) -> bool {
        let cause: String = cause.chars().filter(|c| !c.is_ascii_digit()).collect();
        self.logged.retain(|(_, at)| now.duration_since(*at) < REMIND);
        let due =
            self.logged.len() < CAUSES_MAX && self.logged.iter().all(|(known, _)| *known != cause);
        if due {
            self.logged.push((cause, now));
        }
        due
    }

    /// The last cause that was reported, whether or not it is resolved.
    pub(super) fn last_cause(&self) -> Option<String> {
        self.last_cause.clone()
    }

    pub(super) fn resolved(&mut self) {
        self.what.set_metric(true);
        let since = self.since.take();
        if let Some(since) = since.filter(|_| std::mem::take(&mut self.open)) {
            tracing::info!(after_seconds = since.elapsed().as_secs(), "{}", self.what.ends());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_logged_at_once_and_then_once_a_minute() {
        let mut log = OutageLog::new(Outage::Kafka);
        let start = Instant::now();
        let mut due =
            |cause: &str, second: u64| log.is_due(cause, start + Duration::from_secs(second));
        assert!(due("broker 1 is down", 0));
        assert!(!due("broker 2 is down", 1), "only a number differs");
        assert!(due("not authorized", 2), "another outage within the minute");
        assert!(!due("not authorized", 59) && !due("broker 1 is down", 59));
        assert!(due("broker 1 is down", 60) && due("not authorized", 62));
    }

    #[test]
    fn causes_that_all_differ_are_limited() {
        let mut log = OutageLog::new(Outage::Log);
        let start = Instant::now();
        let due = |log: &mut OutageLog, at: Instant| {
            let causes = ('a'..='z').filter(|cause| log.is_due(&cause.to_string(), at));
            causes.count()
        };
        assert_eq!(due(&mut log, start), CAUSES_MAX);
        assert_eq!(due(&mut log, start + Duration::from_secs(59)), 0);
        assert_eq!(due(&mut log, start + REMIND), CAUSES_MAX);
    }
}
