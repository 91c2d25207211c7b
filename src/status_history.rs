//! The last callbacks and the last undelivered records, for the status page. Bodies, signatures and
//! keys are not kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::event::{Timestamp, type_name};
use crate::record::Record;

/// Callbacks that are kept, and undelivered records.
const ENTRIES_MAX: usize = 40;
/// The shortest interval between two recorded callbacks, for accepted and for rejected ones: the
/// page could not be read with more, and recording costs the intake time.
const INTERVAL_MILLIS: i64 = 100;
/// Characters of a stream's name, or of a message, that are kept.
const TEXT_MAX: usize = 120;

static ACCEPTED_NEXT_AT: AtomicI64 = AtomicI64::new(0);
static REJECTED_NEXT_AT: AtomicI64 = AtomicI64::new(0);
static CALLBACKS: Mutex<VecDeque<CallbackEntry>> = Mutex::new(VecDeque::new());
static UNDELIVERED: Mutex<VecDeque<Undelivered>> = Mutex::new(VecDeque::new());

/// A callback and its answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CallbackEntry {
    /// When it was received, in milliseconds since 1970.
    pub at: i64,
    /// The HTTP status of its answer.
    pub status: u16,
    /// `accepted`, or the reason of the rejection: the label of
    /// `livebridge_callbacks_rejected_total`.
    pub outcome: &'static str,
    /// The name of its type; `None` for a rejected one, whose type is not verified.
    pub event_type: Option<&'static str>,
    /// Its stream, or its task.
    pub stream: Option<String>,
    /// The time from verification to durability.
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

/// A callback that is recorded once it is durable.
#[derive(Debug)]
pub(crate) struct PendingEntry {
    entry: CallbackEntry,
    started: Instant,
}

/// Begins an entry for `record` if the interval has passed.
#[must_use]
pub(crate) fn start(record: &Record) -> Option<PendingEntry> {
    let at = record.received_at.as_millis();
    claim(&ACCEPTED_NEXT_AT, at).then(|| PendingEntry {
        entry: CallbackEntry {
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

impl PendingEntry {
    /// Records the callback as durable.
    pub(crate) fn finish(mut self) {
        self.entry.seconds = Some(self.started.elapsed().as_secs_f64());
        push(&CALLBACKS, self.entry);
    }
}

/// Records a rejected request.
pub(crate) fn rejected(status: u16, outcome: &'static str, message: impl FnOnce() -> String) {
    let at = Timestamp::now().as_millis();
    if !claim(&REJECTED_NEXT_AT, at) {
        return;
    }
    let message = Some(truncate(&message()));
    let (event_type, stream, seconds) = (None, None, None);
    push(&CALLBACKS, CallbackEntry { at, status, outcome, event_type, stream, seconds, message });
}

/// Records that Kafka rejected `record`, which is in `place` now, and no longer in another one.
pub(crate) fn undelivered(place: &'static str, lsn: String, record: &Record, reason: &str) {
    lock(&UNDELIVERED).retain(|known| known.lsn != lsn);
    push(
        &UNDELIVERED,
        Undelivered {
            at: Timestamp::now().as_millis(),
            place,
            lsn,
            event_type: type_name(record.event_type),
            stream: stream(record),
            reason: truncate(reason),
        },
    );
}

/// The last callbacks, the newest first.
#[must_use]
pub(crate) fn callbacks() -> Vec<CallbackEntry> {
    lock(&CALLBACKS).iter().rev().cloned().collect()
}

/// The last undelivered records, the newest first.
#[must_use]
pub(crate) fn all_undelivered() -> Vec<Undelivered> {
    lock(&UNDELIVERED).iter().rev().cloned().collect()
}

/// Claims the next entry if the interval has passed. If two threads claim it at once, there is one
/// entry more.
fn claim(next_at: &AtomicI64, now: i64) -> bool {
    let next_at_most = now + INTERVAL_MILLIS;
    // A later time means that the clock was set back.
    let due = !(now + 1..=next_at_most).contains(&next_at.load(Ordering::Relaxed));
    if due {
        next_at.store(next_at_most, Ordering::Relaxed);
    }
    due
}

fn stream(record: &Record) -> Option<String> {
    record.key.as_deref().map(|key| truncate(&String::from_utf8_lossy(key)))
}

fn truncate(text: &str) -> String {
    let mut truncate: String = text.chars().take(TEXT_MAX).collect();
    if truncate.len() < text.len() {
        truncate.push('…');
    }
    truncate
}

fn lock<T>(of: &Mutex<VecDeque<T>>) -> MutexGuard<'_, VecDeque<T>> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn push<T>(to: &Mutex<VecDeque<T>>, entry: T) {
    let mut kept = lock(to);
    if kept.len() == ENTRIES_MAX {
        kept.pop_front();
    }
    kept.push_back(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_ten_callbacks_a_second_are_recorded() {
        let next_at = AtomicI64::new(0);
        let recorded = (0..1000).filter(|millis| claim(&next_at, 1_000_000 + millis)).count();
        assert_eq!(recorded, 10);
        assert!(claim(&next_at, 5), "the clock was set back");
    }

    #[test]
    fn the_oldest_entries_are_dropped_and_long_texts_are_truncated() {
        let kept = Mutex::new(VecDeque::new());
        (0..100).for_each(|number| push(&kept, number));
        assert_eq!(lock(&kept).iter().copied().collect::<Vec<_>>(), (60..100).collect::<Vec<_>>());
        assert_eq!(truncate(&"界".repeat(200)).chars().count(), TEXT_MAX + 1);
        assert_eq!(truncate("short"), "short");
    }
}
