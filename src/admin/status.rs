//! The data of the status page, as JSON: the current state, findings, and the last quarter of an
//! hour. `docs/status.md` explains each member.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::AdminContext;
use super::findings::{Counts, Facts, Level, findings};
use crate::event::Timestamp;
use crate::metrics::{Exporter, Snapshot, table};
use crate::status_history;
use crate::wal::Probe;

/// The interval between two samples, in seconds.
pub(super) const SAMPLE_SECONDS: u64 = 2;
/// Samples of a quarter of an hour.
const SAMPLES_MAX: usize = 450;
/// The samples of the last quarter of an hour.
#[derive(Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

struct Sample {
    at: i64,
    counts: Counts,
    text: Box<RawValue>,
}

impl History {
    /// Takes a sample.
    pub(super) fn sample(&mut self, exporter: &Exporter) {
        let metrics = exporter.snapshot();
        let at = Timestamp::now().as_millis();
        let sample = json!({
            "at": at,
            "accepted": metrics.by_label(&table::CALLBACKS_ACCEPTED),
            "rejected": metrics.sum(&table::CALLBACKS_REJECTED),
            "published": metrics.sum(&table::PUBLISHED),
            "absorbed": metrics.get(&table::DUPLICATES),
            "acknowledge": metrics.histogram(&table::ACKNOWLEDGE_SECONDS),
            "publish": metrics.histogram(&table::PUBLISH_DELAY_SECONDS),
            "records": metrics.get(&table::WAL_RECORDS),
            "age_seconds": metrics.get(&table::OLDEST_UNPUBLISHED_AGE_SECONDS),
            "kafka_up": metrics.get(&table::KAFKA_UP),
        });
        let Ok(text) = serde_json::value::to_raw_value(&sample) else { return };
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, counts: Counts::of(&metrics), text });
    }

    fn after(&self, after: i64) -> Vec<&RawValue> {
        self.samples.iter().filter(|sample| sample.at > after).map(|sample| &*sample.text).collect()
    }

    /// The increase of the counts since the oldest sample.
    fn increase(&self, now: Counts) -> Counts {
        let before = self.samples.front().map(|sample| sample.counts).unwrap_or_default();
        now.since(before)
    }
}

/// The current state, with the samples taken later than `after`.
pub(super) fn status(shared: &AdminContext, after: i64) -> String {
    #[derive(Serialize)]
    struct Status<'a> {
        #[serde(flatten)]
        state: Value,
        history: Vec<&'a RawValue>,
    }
    let AdminContext { exporter, probe, health, started_at, .. } = shared;
    let (history, settings) = (shared.history(), shared.settings.get());
    let metrics = exporter.snapshot();
    let not_ready = health.ready().err();
    let increase = history.increase(Counts::of(&metrics));
    let missing = probe.audit().missing();
    let stuck = health.stuck();
    let facts = Facts { metrics: &metrics, increase, not_ready, stuck, missing };
    let found = findings(&facts);
    let state = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": settings["kafka.instance"]["value"],
        "now": Timestamp::now().as_millis(),
        "started_at": started_at.as_millis(),
        "health": {
            "state": found.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok),
            "accepting_callbacks": not_ready.is_none() && stuck.is_none(),
            "findings": found,
        },
        "callbacks": {
            "accepted": metrics.by_label(&table::CALLBACKS_ACCEPTED),
            "rejected": metrics.by_label(&table::CALLBACKS_REJECTED),
            "connections": metrics.get(&table::HTTP_CONNECTIONS),
            "bounds": table::ACKNOWLEDGE_SECONDS.bounds(),
        },
        "log": log(&metrics, probe),
        "kafka": kafka(&metrics),
        "dedup": {
            "ids": metrics.get(&table::DEDUP_IDS),
            "duplicates": metrics.get(&table::DUPLICATES),
            "conflicts": metrics.get(&table::CONFLICTS),
            "truncated": metrics.get(&table::DEDUP_WINDOW_TRUNCATED),
        },
        "audit": {
            "since": 1000.0 * metrics.get(&table::AUDIT_SINCE_TIMESTAMP_SECONDS),
            "accepted": metrics.get(&table::AUDIT_ACCEPTED),
            "settled": metrics.by_label(&table::AUDIT_SETTLED),
            "pending": metrics.get(&table::AUDIT_PENDING_RECORDS),
            "missing": missing,
        },
        "recent": status_history::callbacks(),
        "undelivered": {
            "dead_letters": metrics.get(&table::DEAD_LETTERS),
            "quarantined": metrics.get(&table::QUARANTINED),
            "recent": status_history::all_undelivered(),
        },
        "config": &**settings,
    });
    let status = Status { state, history: history.after(after) };
    serde_json::to_string(&status).unwrap_or_default()
}

fn log(metrics: &Snapshot, probe: &Probe) -> Value {
    let stored = probe.stored();
    json!({
        "records": stored.records,
        "age_seconds": metrics.get(&table::OLDEST_UNPUBLISHED_AGE_SECONDS),
        "disk_bytes": stored.disk_bytes,
        "room_bytes": metrics.get(&table::WAL_ROOM_BYTES),
        "free_bytes": metrics.get(&table::DISK_FREE_BYTES),
        "segments": stored.segments,
        "damaged": metrics.get(&table::WAL_DAMAGED_RECORDS),
    })
}

fn kafka(metrics: &Snapshot) -> Value {
    json!({
        "up": metrics.get(&table::KAFKA_UP) > 0.0,
        "brokers": metrics.get(&table::KAFKA_BROKERS_CONNECTED),
        "round_trip_seconds": metrics.get(&table::KAFKA_ROUND_TRIP_SECONDS),
        "queue_messages": metrics.get(&table::KAFKA_QUEUE_MESSAGES),
        "sessions": metrics.get(&table::KAFKA_SESSIONS),
        "request_failures": metrics.by_label(&table::KAFKA_REQUEST_FAILURES),
        "fenced": metrics.get(&table::FENCED),
        "transactions": metrics.by_label(&table::TRANSACTIONS),
        "ledger_lag": metrics.get(&table::LEDGER_LAG_RECORDS),
        "published": metrics.by_label(&table::PUBLISHED),
        "bounds": table::PUBLISH_DELAY_SECONDS.bounds(),
    })
}
