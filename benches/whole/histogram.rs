//! Latencies in an HDR histogram, recorded in nanoseconds with three significant digits.

use std::time::Duration;

/// Counts of latencies by size.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    pub(crate) fn new() -> Self {
        Self(hdrhistogram::Histogram::new(3).expect("three digits are a valid precision"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Adds everything that `other` has recorded.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both histograms resize themselves");
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
