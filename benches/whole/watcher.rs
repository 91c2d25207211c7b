//! livebridge's own account of its flow, looked at several times a second.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Fallible;
use super::bridge::Bridge;

/// Between two looks.
pub(crate) const EVERY: Duration = Duration::from_millis(250);

/// One look; everything counts from the start of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Seconds since the first look.
    pub(crate) at: f64,
    pub(crate) accepted: f64,
    pub(crate) published: f64,
    /// Records in the log that are not published.
    pub(crate) backlog: f64,
}

/// Looks until `is_over`; `at_each` is told the seconds since the first look.
pub(crate) fn watch(
    bridge: &Bridge,
    mut at_each: impl FnMut(f64) -> Fallible<()>,
    is_over: impl Fn(&Sample) -> bool,
) -> Fallible<Vec<Sample>> {
    let start = Instant::now();
    let mut samples = Vec::new();
    for look in 0.. {
        std::thread::sleep((start + EVERY * look).saturating_duration_since(Instant::now()));
        at_each(start.elapsed().as_secs_f64())?;
        let [accepted, published, backlog] = bridge.metrics([
            "livebridge_callbacks_accepted_total",
            "livebridge_published_total",
            "livebridge_wal_records",
        ])?;
        let at = start.elapsed().as_secs_f64();
        let sample = Sample { at, accepted, published, backlog };
        samples.push(sample);
        if is_over(&sample) {
            break;
        }
    }
    Ok(samples)
}

impl Sample {
    pub(crate) fn json(&self) -> Value {
        json!({
            "at": self.at,
            "accepted": self.accepted,
            "published": self.published,
            "backlog": self.backlog,
        })
    }
}
