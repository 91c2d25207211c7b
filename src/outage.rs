//! Logs a condition that lasts: when it begins, when its cause changes, again every minute, and
//! when it is resolved. A condition that comes and goes is logged once a minute and cause.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// A cause that lasts is logged again after this time.
const REMIND: Duration = Duration::from_mins(1);
/// Different causes that are logged within that time. A cause whose text varies must not flood the
/// log.
const CAUSES_MAX: usize = 8;

/// One condition.
#[derive(Debug)]
pub(crate) struct OutageLog {
    /// What is logged when it begins and when it ends.
    begins: &'static str,
    ends: &'static str,
    /// Sets the metric that shows whether all is well.
    set_ok: fn(bool),
    since: Option<Instant>,
    /// The causes of the last minute, and when each was logged.
    logged: Vec<(String, Instant)>,
    /// Whether its end is still to be logged.
    open: bool,
    /// The last cause that was reported.
    last_cause: Option<String>,
}

impl OutageLog {
    pub(crate) const fn new(begins: &'static str, ends: &'static str, set_ok: fn(bool)) -> Self {
        Self {
            begins,
            ends,
            set_ok,
            since: None,
            logged: Vec::new(),
            open: false,
            last_cause: None,
        }
    }

    /// The condition is there, for this cause.
    pub(crate) fn report(&mut self, cause: &dyn Display) {
        (self.set_ok)(false);
        let cause = cause.to_string();
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        if self.is_due(&cause, now) {
            self.open = true;
            let for_seconds = since.elapsed().as_secs();
            tracing::error!(%cause, for_seconds, "{}", self.begins);
        }
        self.last_cause = Some(cause);
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
    pub(crate) fn last_cause(&self) -> Option<String> {
        self.last_cause.clone()
    }

    /// The condition is not there.
    pub(crate) fn resolved(&mut self) {
        (self.set_ok)(true);
        let since = self.since.take();
        if let Some(since) = since.filter(|_| std::mem::take(&mut self.open)) {
            tracing::info!(after_seconds = since.elapsed().as_secs(), "{}", self.ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_logged_at_once_and_then_once_a_minute() {
        let mut log = OutageLog::new("away", "back", |_| ());
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
        let mut log = OutageLog::new("away", "back", |_| ());
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
