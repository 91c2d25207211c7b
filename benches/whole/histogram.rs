//! Latencies in an HDR histogram, recorded in nanoseconds with three significant digits.

use std::time::Duration;

/// Longer latencies count as this: an hour.
const LONGEST_NANOS: u64 = 3_600_000_000_000;

/// Counts of latencies by size.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    pub(crate) fn new() -> Self {
        // Without a maximum, `saturating_record` would record every latency as the lowest one.
        let counts = hdrhistogram::Histogram::new_with_max(LONGEST_NANOS, 3);
        Self(counts.expect("three digits and an hour are valid"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Adds everything that `other` has recorded.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same maximum");
    }

    /// The latency that `per_mille` of a thousand recorded ones did not exceed; zero if nothing was
    /// recorded.
    #[expect(clippy::cast_precision_loss, reason = "a per mille is small")]
    pub(crate) fn quantile(&self, per_mille: u64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(per_mille as f64 / 1000.0))
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}
