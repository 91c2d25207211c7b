//! livebridge's own metrics, sampled several times a second.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Fallible;
use super::bridge::Bridge;

/// The sampling interval.
pub(crate) const EVERY: Duration = Duration::from_millis(250);

/// One sample; all counts are since the start of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Seconds since the first sample.
    pub(crate) at: f64,
    pub(crate) accepted: f64,
    pub(crate) published: f64,
    /// Unpublished records in the log.
    pub(crate) backlog: f64,
}

/// Samples until `is_over`; calls `at_each` with the seconds since the first sample.
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
            "livebridge_callbacks_accepted_total", "livebridge_published_total",
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
