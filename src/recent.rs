//! The last callbacks and the last undelivered records, for the status page: a few of each, and of
//! callbacks no more than a person can read. Bodies, signatures and keys are not kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::event::{Timestamp, type_name};
use crate::record::Record;

/// How many of each are kept.
const KEPT: usize = 40;
/// Interval between two noted callbacks, for accepted and rejected ones each: more cannot be read
/// on the page, and noting costs the intake time.
const PACE_MILLIS: i64 = 100;
/// Characters of a stream's name, or of a message, that are kept.
const TEXT_MAX: usize = 120;

static ACCEPTED_NEXT_AT: AtomicI64 = AtomicI64::new(0);
static REJECTED_NEXT_AT: AtomicI64 = AtomicI64::new(0);
static CALLBACKS: Mutex<VecDeque<Seen>> = Mutex::new(VecDeque::new());
static UNDELIVERED: Mutex<VecDeque<Undelivered>> = Mutex::new(VecDeque::new());

/// A callback and its answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Seen {
    /// When it was received, in milliseconds since 1970.
    pub at: i64,
    /// The HTTP status of its answer.
    pub status: u16,
    /// `accepted`, or why not: the label of `livebridge_callbacks_rejected_total`.
    pub outcome: &'static str,
    /// Its type's name; of a rejected one it is not known to be true.
    pub event_type: Option<&'static str>,
    /// Its stream, or its task.
    pub stream: Option<String>,
    /// From parsed to durable.
    pub seconds: Option<f64>,
    /// The message of a rejection.
    pub message: Option<String>,
}

/// A record that Kafka rejected.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Undelivered {
    /// When it was rejected, in milliseconds since 1970.
    pub at: i64,
    /// `dead-letter` or `quarantine`.
    pub place: &'static str,
    /// Its LSN.
    pub lsn: String,
    /// Its type's name.
    pub event_type: &'static str,
    /// Its stream, or its task.
    pub stream: Option<String>,
    /// Kafka's error.
    pub reason: String,
}

/// A callback that will be noted once it is durable.
#[derive(Debug)]
pub(crate) struct Pending {
    seen: Seen,
    started: Instant,
}

/// Starts to note `record`, if the interval has passed.
#[must_use]
pub(crate) fn start(record: &Record) -> Option<Pending> {
    let at = record.received_at.as_millis();
    is_due(&ACCEPTED_NEXT_AT, at).then(|| Pending {
        seen: Seen {
            at,
            status: 200,
            outcome: "accepted",
            event_type: Some(type_name(record.event_type)),
            stream: stream(record),
            seconds: None,
            message: None,
        },
        started: Instant::now(),
    })
}

impl Pending {
    /// Notes that it is durable and answered 200.
    pub(crate) fn finish(mut self) {
        self.seen.seconds = Some(self.started.elapsed().as_secs_f64());
        note(&CALLBACKS, self.seen);
    }
}

/// Notes a rejected request.
pub(crate) fn rejected(status: u16, outcome: &'static str, message: impl FnOnce() -> String) {
    let at = Timestamp::now().as_millis();
    if !is_due(&REJECTED_NEXT_AT, at) {
        return;
    }
    let message = Some(cut(&message()));
    let (event_type, stream, seconds) = (None, None, None);
    note(&CALLBACKS, Seen { at, status, outcome, event_type, stream, seconds, message });
}

/// Notes a record that Kafka rejected and that went to `place`.
pub(crate) fn undelivered(place: &'static str, lsn: String, record: &Record, reason: &str) {
    note(
        &UNDELIVERED,
        Undelivered {
            at: Timestamp::now().as_millis(),
            place,
            lsn,
            event_type: type_name(record.event_type),
            stream: stream(record),
            reason: cut(reason),
        },
    );
}

/// The last callbacks, the newest first.
#[must_use]
pub(crate) fn callbacks() -> Vec<Seen> {
    lock(&CALLBACKS).iter().rev().cloned().collect()
}

/// The last undelivered records, the newest first.
#[must_use]
pub(crate) fn all_undelivered() -> Vec<Undelivered> {
    lock(&UNDELIVERED).iter().rev().cloned().collect()
}

/// Whether the interval has passed. Two threads may both be told so: that is one entry more.
fn is_due(next_at: &AtomicI64, now: i64) -> bool {
    let next_at_most = now + PACE_MILLIS;
    // A later time stems from a clock that was set back since.
    let due = !(now + 1..=next_at_most).contains(&next_at.load(Ordering::Relaxed));
    if due {
        next_at.store(next_at_most, Ordering::Relaxed);
    }
    due
}

fn stream(record: &Record) -> Option<String> {
    record.key.as_deref().map(|key| cut(&String::from_utf8_lossy(key)))
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(TEXT_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

fn lock<T>(of: &Mutex<VecDeque<T>>) -> MutexGuard<'_, VecDeque<T>> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note<T>(to: &Mutex<VecDeque<T>>, entry: T) {
    let mut kept = lock(to);
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_ten_callbacks_a_second_are_noted() {
        let next_at = AtomicI64::new(0);
        let noted = (0..1000).filter(|millis| is_due(&next_at, 1_000_000 + millis)).count();
        assert_eq!(noted, 10);
        assert!(is_due(&next_at, 5), "the clock was set back");
    }

    #[test]
    fn the_oldest_entries_are_dropped_and_long_texts_are_cut() {
        let kept = Mutex::new(VecDeque::new());
        (0..100).for_each(|number| note(&kept, number));
        assert_eq!(lock(&kept).iter().copied().collect::<Vec<_>>(), (60..100).collect::<Vec<_>>());
        assert_eq!(cut(&"界".repeat(200)).chars().count(), TEXT_MAX + 1);
        assert_eq!(cut("short"), "short");
    }
}
