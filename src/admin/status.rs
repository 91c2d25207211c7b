//! What the status page shows, as JSON: the state of now, what is wrong with it, and the quarter of
//! an hour before. `docs/status.md` explains each member.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::findings::{Facts, Level, Marks, findings};
use crate::event::Timestamp;
use crate::metrics::{Exporter, Snapshot};
use crate::recent;
use crate::wal::Probe;

/// Between two samples, in seconds.
pub(super) const EVERY: u64 = 2;
/// Samples kept: a quarter of an hour.
const KEPT: usize = 450;
/// Samples of the last quarter of an hour.
#[derive(Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

struct Sample {
    at: i64,
    marks: Marks,
    text: Box<RawValue>,
}

impl History {
    /// Takes a sample.
    pub(super) fn sample(&mut self, exporter: &Exporter) {
        let metrics = exporter.snapshot();
        let at = Timestamp::now().as_millis();
        let sample = json!({
            "at": at,
            "accepted": metrics.by_label("livebridge_callbacks_accepted_total"),
            "refused": metrics.sum("livebridge_callbacks_rejected_total"),
            "published": metrics.sum("livebridge_published_total"),
            "absorbed": metrics.get("livebridge_duplicates_total"),
            "acknowledge": metrics.histogram("livebridge_acknowledge_seconds").1,
            "publish": metrics.histogram("livebridge_publish_delay_seconds").1,
            "records": metrics.get("livebridge_wal_records"),
            "age_seconds": metrics.get("livebridge_oldest_unpublished_age_seconds"),
            "kafka_up": metrics.get("livebridge_kafka_up"),
        });
        let Ok(text) = serde_json::value::to_raw_value(&sample) else { return };
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, marks: Marks::of(&metrics), text });
    }

    fn after(&self, after: i64) -> Vec<&RawValue> {
        self.samples.iter().filter(|sample| sample.at > after).map(|sample| &*sample.text).collect()
    }

    /// What has moved in the time that is kept.
    fn moved(&self, now: Marks) -> Marks {
        let before = self.samples.front().map(|sample| sample.marks).unwrap_or_default();
        now.since(before)
    }
}

/// The state of now, with the samples taken `after` a moment.
pub(super) fn status(
    exporter: &Exporter,
    probe: &Probe,
    history: &History,
    (settings, started_at): (&Value, Timestamp),
    after: i64,
) -> String {
    #[derive(Serialize)]
    struct Status<'a> {
        #[serde(flatten)]
        state: Value,
        history: Vec<&'a RawValue>,
    }
    let metrics = exporter.snapshot();
    let not_ready = probe.ready().err().map(|reason| reason.to_string());
    let moved = history.moved(Marks::of(&metrics));
    let missing = probe.audit().missing();
    let found =
        findings(&Facts { metrics: &metrics, moved, not_ready: not_ready.as_deref(), missing });
    let state = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": settings["kafka.instance"]["value"],
        "now": Timestamp::now().as_millis(),
        "started_at": started_at.as_millis(),
        "health": {
            "state": found.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok),
            "taking_callbacks": not_ready.is_none(),
            "findings": found,
        },
        "callbacks": {
            "accepted": metrics.by_label("livebridge_callbacks_accepted_total"),
            "refused": metrics.by_label("livebridge_callbacks_rejected_total"),
            "connections": metrics.get("livebridge_http_connections"),
            "bounds": metrics.histogram("livebridge_acknowledge_seconds").0,
        },
        "log": log(&metrics, probe),
        "kafka": kafka(&metrics),
        "dedup": {
            "ids": metrics.get("livebridge_dedup_ids"),
            "duplicates": metrics.get("livebridge_duplicates_total"),
            "conflicts": metrics.get("livebridge_conflicts_total"),
            "truncated": metrics.get("livebridge_dedup_window_truncated_total"),
        },
        "audit": {
            "since": 1000.0 * metrics.get("livebridge_audit_since_timestamp_seconds"),
            "accepted": metrics.get("livebridge_audit_accepted_total"),
            "settled": metrics.by_label("livebridge_audit_settled_total"),
            "pending": metrics.get("livebridge_audit_pending_records"),
            "missing": missing,
        },
        "recent": recent::callbacks(),
        "undelivered": {
            "dead_letters": metrics.get("livebridge_dead_letters_total"),
            "quarantined": metrics.get("livebridge_quarantined_total"),
            "recent": recent::all_undelivered(),
        },
        "config": settings,
    });
    let status = Status { state, history: history.after(after) };
    serde_json::to_string(&status).unwrap_or_default()
}

fn log(metrics: &Snapshot, probe: &Probe) -> Value {
    let stored = probe.stored();
    json!({
        "records": stored.records,
        "age_seconds": metrics.get("livebridge_oldest_unpublished_age_seconds"),
        "disk_bytes": stored.disk_bytes,
        "room_bytes": metrics.get("livebridge_wal_room_bytes"),
        "free_bytes": metrics.get("livebridge_disk_free_bytes"),
        "segments": stored.segments,
        "damaged": metrics.get("livebridge_wal_damaged_records_total"),
    })
}

fn kafka(metrics: &Snapshot) -> Value {
    let get = |name: &str| metrics.get(&format!("livebridge_kafka_{name}"));
    json!({
        "up": get("up") > 0.0,
        "brokers": get("brokers_connected"),
        "round_trip_seconds": get("round_trip_seconds"),
        "queue_messages": get("queue_messages"),
        "sessions": get("sessions_total"),
        "request_failures": metrics.by_label("livebridge_kafka_request_failures_total"),
        "fenced": metrics.get("livebridge_fenced_total"),
        "transactions": metrics.by_label("livebridge_transactions_total"),
        "ledger_lag": metrics.get("livebridge_ledger_lag_records"),
        "published": metrics.by_label("livebridge_published_total"),
        "bounds": metrics.histogram("livebridge_publish_delay_seconds").0,
    })
}
