//! How much one batch carries: bounded by bytes, so that a slow link finishes it in time, and by
//! ids, so that Kafka accepts its ledger record.
//!
//! Pure: the publisher reports what happened to each batch, and asks for the limits of the next.

use std::time::{Duration, Instant};

use crate::kafka::TIMEOUT_DOUBLINGS_MAX;

/// The highest number of record bytes in a batch: more does not raise the throughput.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// A link of 256 kbit/s transmits this in 4 s, well below every time-out of the producer.
const BYTES_START: usize = 128 * 1024;
/// The smallest limit of bytes. Every record above it makes a batch of its own.
const BYTES_MIN: usize = 1024;
/// If this many bytes are late, the size is not the cause: 25 s for them are 2.6 kB/s.
const LATE_MIN: usize = 64 * 1024;
/// The highest number of ids in a batch. Their ledger record takes half of the 1 MiB that brokers
/// and librdkafka accept by default (`message.max.bytes`).
const IDS_MAX: usize = 32_768;
/// Below this time, a full batch doubles the limit of bytes whatever the one before it took.
const QUICK: Duration = Duration::from_secs(2);
/// A batch that takes longer halves the limit of bytes, because one of twice the size could exceed the
/// time-out of a message, 25 s.
const SLOW: Duration = Duration::from_secs(10);
/// A full batch raises a lowered limit of ids by this part of itself, so that a topic that does not
/// accept more aborts one batch in about 45, the number of such steps between half and full.
const IDS_STEP: usize = 64;

/// How long longer time-outs are kept after they were last needed.
const DOUBLED_FOR: Duration = Duration::from_mins(10);

/// The limits of the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    bytes: usize,
    /// Bytes and time of the last full batch.
    last_full: Option<(usize, Duration)>,
    ids: usize,
    timeout_doublings: u32,
    /// When they were last found too short.
    timed_out: Option<Instant>,
    /// The highest number of doublings that the brokers are not known to reject.
    timeout_doublings_max: u32,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            bytes: BYTES_START,
            last_full: None,
            ids: IDS_MAX,
            timeout_doublings: 0,
            timed_out: None,
            timeout_doublings_max: TIMEOUT_DOUBLINGS_MAX,
        }
    }
}

impl BatchLimits {
    /// Bytes of records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records, each of which may put an id into the ledger record.
    #[must_use]
    pub fn ids(&self) -> usize {
        self.ids
    }

    /// How often the producer's time-outs are doubled.
    #[must_use]
    pub fn timeout_doublings(&self) -> u32 {
        self.timeout_doublings
    }

    /// How many of the entries with these `sizes` make the next batch: at least one.
    #[must_use]
    pub fn split(&self, sizes: impl Iterator<Item = usize>) -> usize {
        let mut bytes = 0;
        let fitting = sizes.take(self.ids).take_while(|size| {
            bytes += size;
            bytes <= self.bytes
        });
        fitting.count().max(1)
    }

    /// A batch of `bytes` and `ids` was published within `elapsed`.
    ///
    /// On a slow link that time grows with the size, and smaller batches are in time. A slow broker
    /// takes it for a batch of any size, and larger ones raise the throughput.
    pub fn on_published(&mut self, bytes: usize, ids: usize, elapsed: Duration) {
        let is_full = bytes >= self.bytes / 2;
        let smaller = self.last_full.filter(|_| is_full);
        if is_full {
            self.last_full = Some((bytes, elapsed));
        }
        let factor = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        // At least three quarters in proportion.
        let grows_with_size = smaller.is_some_and(|(smaller, took)| {
            bytes > smaller && elapsed * 4 * factor(smaller) > took * 3 * factor(bytes)
        });
        if elapsed > SLOW || (elapsed >= QUICK && grows_with_size) {
            self.bytes = (self.bytes / 2).max(LATE_MIN.min(self.bytes));
        } else if is_full {
            // Not more than twice what was in time, where time may grow with the size.
            let in_time = if elapsed < QUICK { self.bytes } else { bytes };
            self.bytes = self.bytes.max((in_time * 2).min(BYTES_MAX));
        }
        if ids >= self.ids {
            self.ids = (self.ids + (self.ids / IDS_STEP).max(1)).min(IDS_MAX);
        }
    }

    /// A batch of `bytes` and `records` was not published in time. Returns whether the producer needs
    /// longer time-outs ([`Self::timeout_doublings`]), because no smaller batch is possible.
    pub fn on_timed_out(&mut self, bytes: usize, records: usize) -> bool {
        if records > 1 || bytes <= LATE_MIN {
            // A limit that rejections have lowered further stays as it is.
            self.bytes = (self.bytes.min(bytes) / 2).max(LATE_MIN.min(self.bytes));
            return false;
        }
        self.timed_out = Some(Instant::now());
        let doublings = (self.timeout_doublings + 1).min(self.timeout_doublings_max);
        std::mem::replace(&mut self.timeout_doublings, doublings) != doublings
    }

    /// Returns to the usual time-outs when longer ones were not needed lately: the transaction of an
    /// instance that crashes delays all others for as long as its time-out. Returns whether the
    /// producer's have to change.
    #[must_use]
    pub fn restore_timeouts(&mut self, now: Instant) -> bool {
        let since = self.timed_out.map(|at| now.saturating_duration_since(at));
        let is_due = self.timeout_doublings > 0 && since.is_some_and(|since| since > DOUBLED_FOR);
        if is_due {
            self.timeout_doublings = 0;
        }
        is_due
    }

    /// The brokers reject a transaction as long as the time-outs need it. Returns whether shorter
    /// time-outs can be tried; longer ones are not tried again.
    #[must_use]
    pub fn on_transaction_timeout_rejected(&mut self) -> bool {
        let Some(doublings) = self.timeout_doublings.checked_sub(1) else { return false };
        self.timeout_doublings = doublings;
        self.timeout_doublings_max = doublings;
        true
    }

    /// Kafka rejected one of the records of a batch of `bytes`. The next attempt sends less for
    /// nothing, should there be more of them.
    pub fn on_rejected(&mut self, bytes: usize) {
        self.shrink(bytes);
    }

    /// Kafka rejected the ledger record of a batch with this many `ids`. Returns whether a smaller
    /// one can be tried.
    pub fn on_ledger_rejected(&mut self, ids: usize) -> bool {
        self.ids = (self.ids.min(ids) / 2).max(1);
        ids > 1
    }

    fn shrink(&mut self, bytes: usize) {
        self.bytes = (self.bytes.min(bytes) / 2).max(BYTES_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    const TIMEOUT: Duration = Duration::from_secs(25);

    /// Publishes `backlog` bytes over a link of `rate` bytes a second to a broker that takes `latency`
    /// for each batch, after one small batch; returns attempts, time-outs and time.
    fn drain(backlog: usize, rate: usize, latency: Duration) -> (u32, u32, Duration) {
        let mut limits = BatchLimits::default();
        limits.on_published(700, 1, latency);
        let (mut left, mut attempts, mut timeouts, mut lasted) = (backlog, 0, 0, Duration::ZERO);
        while left > 0 {
            attempts += 1;
            assert!(attempts < 10_000, "{left} bytes left with {limits:?}");
            let bytes = left.min(limits.bytes());
            let millis = u64::try_from(bytes * 1000 / rate).unwrap();
            let takes = Duration::from_millis(millis) + latency;
            lasted += takes.min(TIMEOUT);
            if takes < TIMEOUT {
                left -= bytes;
                limits.on_published(bytes, bytes / 700 + 1, takes);
            } else {
                timeouts += 1;
                limits.on_timed_out(bytes, 2);
            }
        }
        (attempts, timeouts, lasted)
    }

    #[test]
    fn a_slow_link_is_used_without_a_single_time_out() {
        let (attempts, timeouts, lasted) = drain(4 << 20, 32_000, 5 * MS);
        assert_eq!(timeouts, 0);
        assert!(lasted < Duration::from_secs(140), "{attempts} attempts in {lasted:?}");
        assert!(attempts < 64, "{attempts}");
    }

    #[test]
    fn a_fast_link_soon_gets_full_batches() {
        let (attempts, ..) = drain(800 << 20, 100_000_000, 5 * MS);
        assert!(attempts < 120, "{attempts}");
    }

    #[test]
    fn a_slow_broker_soon_gets_full_batches() {
        for seconds in [3, 6, 9] {
            let (attempts, ..) = drain(80 << 20, 100_000_000, Duration::from_secs(seconds));
            assert!(attempts < 20, "{attempts} batches of {seconds} s");
        }
        // Even one that is about to time out gets more than single records.
        let (attempts, ..) = drain(4 << 20, 100_000_000, Duration::from_secs(20));
        assert!(attempts < 70, "{attempts}");
    }

    #[test]
    fn a_slow_link_to_a_slow_broker_is_drained_without_a_time_out() {
        for rate in [13_000, 32_000, 64_000, 500_000] {
            let (_, timeouts, lasted) = drain(4 << 20, rate, 3000 * MS);
            let transmission = Duration::from_secs(u64::try_from((4 << 20) / rate).unwrap());
            assert_eq!(timeouts, 0, "{rate}");
            assert!(lasted < 2 * transmission + 10 * 3000 * MS, "{rate}: {lasted:?}");
        }
    }

    #[test]
    fn a_link_that_becomes_slow_is_drained_after_a_few_time_outs() {
        let mut limits = BatchLimits::default();
        for _ in 0..20 {
            limits.on_published(limits.bytes(), 1000, 100 * MS);
        }
        assert_eq!(limits.bytes(), BYTES_MAX);
        let mut timeouts = 0;
        while limits.bytes() > 32_000 * 25 {
            assert!(!limits.on_timed_out(limits.bytes(), 100));
            timeouts += 1;
        }
        assert!(timeouts <= 4, "{timeouts}");
        limits.on_published(limits.bytes(), 100, Duration::from_secs(16));
        assert!(limits.bytes() < 300_000, "what takes long gets smaller before it times out");
    }

    #[test]
    fn an_outage_raises_no_time_out_and_leaves_batches_of_several_records() {
        let mut limits = BatchLimits::default();
        assert!((0..1000).all(|_| !limits.on_timed_out(limits.bytes().min(700), 1)));
        assert_eq!((limits.bytes(), limits.timeout_doublings()), (LATE_MIN, 0));
        limits.on_rejected(LATE_MIN);
        let rejected = limits.bytes();
        assert!(rejected < LATE_MIN);
        assert!(!limits.on_timed_out(rejected, 2));
        assert_eq!(limits.bytes(), rejected, "a time-out does not raise what rejections lowered");
    }

    #[test]
    fn a_single_record_that_is_late_gets_more_time_up_to_a_limit() {
        let mut limits = BatchLimits::default();
        let raised = (0..10).filter(|_| limits.on_timed_out(1 << 20, 1)).count();
        assert_eq!(raised, TIMEOUT_DOUBLINGS_MAX as usize);
        assert_eq!(limits.timeout_doublings(), TIMEOUT_DOUBLINGS_MAX);
    }

    #[test]
    fn longer_time_outs_end_when_they_were_not_needed_for_a_while() {
        let mut limits = BatchLimits::default();
        assert!(limits.on_timed_out(1 << 20, 1));
        for _ in 0..1000 {
            limits.on_published(1000, 1, QUICK / 2);
        }
        assert!(!limits.restore_timeouts(Instant::now() + DOUBLED_FOR / 2));
        assert!(limits.restore_timeouts(Instant::now() + 2 * DOUBLED_FOR));
        assert_eq!(limits.timeout_doublings(), 0);
        assert!(!limits.restore_timeouts(Instant::now() + 2 * DOUBLED_FOR), "they are restored");
    }

    #[test]
    fn a_time_out_that_brokers_reject_is_lowered_and_not_raised_again() {
        let mut limits = BatchLimits::default();
        assert!(!limits.on_transaction_timeout_rejected(), "there is no shorter one");
        assert!(limits.on_timed_out(1 << 20, 1) && limits.on_timed_out(1 << 20, 1));
        assert!(limits.on_transaction_timeout_rejected());
        assert_eq!(limits.timeout_doublings(), 1);
        assert!(!limits.on_timed_out(1 << 20, 1), "the brokers have rejected a longer one");
        assert!(limits.on_transaction_timeout_rejected());
        assert!(!limits.on_timed_out(1 << 20, 1));
        assert_eq!(limits.timeout_doublings(), 0);
        assert!(!limits.on_transaction_timeout_rejected());
    }

    #[test]
    fn the_ledger_record_of_the_largest_batch_fits_into_what_kafka_accepts_by_default() {
        let header = 41 + 100; // bytes before the ids, and Kafka's own around the record
        assert!(header + IDS_MAX * 16 < 1_000_000 - 400_000);
    }

    #[test]
    fn a_rejected_ledger_record_halves_the_ids_down_to_one_and_they_grow_again_slowly() {
        let mut limits = BatchLimits::default();
        assert!(limits.on_ledger_rejected(10_000));
        assert_eq!(limits.ids(), 5_000);
        let mut attempts = 0;
        while limits.on_ledger_rejected(limits.ids()) {
            attempts += 1;
            assert!(attempts < 20);
        }
        assert_eq!(limits.ids(), 1);
        limits.on_published(100, 1, MS);
        assert_eq!(limits.ids(), 2);
        limits.ids = 600;
        let mut published = 0;
        while limits.ids() < 1200 {
            limits.on_published(100, limits.ids(), MS);
            published += 1;
        }
        assert!(published > 40, "{published}");
    }

    #[test]
    fn the_limits_are_the_documented_ones() {
        // docs/design.md, "Batches and pace".
        assert_eq!((BYTES_START, BYTES_MAX), (131_072, 8_388_608));
        assert_eq!((LATE_MIN, IDS_MAX), (65_536, 32_768));
    }

    fn limits(bytes: usize) -> BatchLimits {
        BatchLimits { bytes, timeout_doublings: 1, ..BatchLimits::default() }
    }

    /// The limit of bytes after a batch of `bytes` that took `elapsed`.
    fn after(limit: usize, bytes: usize, elapsed: Duration) -> usize {
        let mut limits = limits(limit);
        limits.on_published(bytes, 1, elapsed);
        limits.bytes()
    }

    #[test]
    fn only_full_batches_raise_the_bytes_and_only_late_ones_lower_them() {
        const LIMIT: usize = 1 << 20;
        for (bytes, elapsed, expected) in [
            (LIMIT, QUICK.checked_sub(MS).unwrap(), 2 * LIMIT),
            (LIMIT / 2, MS, 2 * LIMIT),
            (LIMIT / 2 - 1, MS, LIMIT),
            (0, MS, LIMIT),
            (LIMIT, SLOW, 2 * LIMIT),
            (LIMIT / 2, SLOW, LIMIT),
            (10, SLOW, LIMIT),
            (LIMIT, SLOW + MS, LIMIT / 2),
            (2 * LIMIT, SLOW + MS, LIMIT / 2),
            (10, SLOW + MS, LIMIT / 2),
        ] {
            assert_eq!(after(LIMIT, bytes, elapsed), expected, "{bytes} bytes in {elapsed:?}");
        }
        assert_eq!(after(BYTES_MAX, BYTES_MAX, MS), BYTES_MAX);
        assert_eq!(after(LATE_MIN, LATE_MIN, SLOW + MS), LATE_MIN);
        assert_eq!(after(BYTES_MIN, 700, SLOW + MS), BYTES_MIN, "which rejections have lowered");
    }

    #[test]
    fn a_batch_that_takes_longer_in_proportion_to_its_size_lowers_the_bytes() {
        const LIMIT: usize = 1 << 20;
        for (elapsed, expected) in
            [(2 * QUICK, 4 * LIMIT), (3 * QUICK, 4 * LIMIT), (3 * QUICK + MS, LIMIT)]
        {
            let mut limits = limits(LIMIT);
            limits.on_published(LIMIT, 1, 2 * QUICK);
            assert_eq!(limits.bytes(), 2 * LIMIT);
            limits.on_published(2 * LIMIT, 1, elapsed);
            assert_eq!(limits.bytes(), expected, "{elapsed:?}");
        }
    }

    #[test]
    fn a_time_out_and_a_rejected_record_halve_the_bytes() {
        let mut late = limits(1 << 20);
        assert!(!late.on_timed_out(1 << 19, 2));
        assert_eq!(late.bytes(), 1 << 18);
        let mut rejected = limits(1 << 20);
        rejected.on_rejected(1 << 19);
        assert_eq!(rejected.bytes(), 1 << 18);
    }

    #[test]
    fn a_full_batch_of_ids_raises_a_lowered_limit_by_a_64th() {
        let mut limits = BatchLimits { bytes: BYTES_MAX, ids: 6400, ..BatchLimits::default() };
        limits.on_published(1, 6399, MS);
        assert_eq!(limits.ids(), 6400);
        limits.on_published(1, 6400, MS);
        assert_eq!(limits.ids(), 6500);
    }

    #[test]
    fn a_split_obeys_both_limits_and_takes_at_least_one() {
        let limits = BatchLimits { bytes: 100, ids: 3, ..BatchLimits::default() };
        assert_eq!(limits.split([10; 10].into_iter()), 3);
        assert_eq!(limits.split([40; 10].into_iter()), 2);
        assert_eq!(limits.split([1000; 10].into_iter()), 1);
        assert_eq!(limits.split([10].into_iter()), 1);
    }
}
