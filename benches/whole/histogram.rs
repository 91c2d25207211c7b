//! A log-linear histogram of latencies: fixed memory, error below one percent, nothing allocated
//! while it records.

use std::time::Duration;

/// Each power of two is divided into this many equal buckets (as a power of two itself), so a
/// bucket is never wider than 1/128 of the value it holds.
const SUB_BITS: u32 = 7;
pub(crate) const SUB: u64 = 1 << SUB_BITS;

/// Enough buckets for every `u64` of nanoseconds.
pub(crate) const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

/// Counts of latencies by size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds everything the other one has seen.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The latency that `per_mille` of a thousand recorded ones did not exceed: the upper edge of
    /// its bucket, so the answer errs on the slow side. Zero when nothing was recorded.
    pub(crate) fn quantile(&self, per_mille: u64) -> Duration {
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_edge(index).min(self.max));
            }
        }
        Duration::ZERO
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }
}

/// The bucket of a value: linear below `2 * SUB`, then `SUB` buckets per power of two.
pub(crate) fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - (value | SUB).leading_zeros()) - 1 - SUB_BITS;
    let index = u64::from(shift) * SUB + (value >> shift);
    usize::try_from(index).unwrap_or(BUCKETS - 1)
}

/// The largest value that falls into a bucket.
pub(crate) fn upper_edge(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * SUB {
        return index;
    }
    let shift = index / SUB - 1;
    let first = (index % SUB + SUB) << shift;
    first + ((1 << shift) - 1)
}
