//! When the next transaction begins: soon after the last one while little comes, later under load.

use std::time::{Duration, Instant};

/// Transactions begin at least this far apart for each record per second: 50 ms, and 250 records, at
/// 5,000/s. A transaction costs a broker about as much with one record as with a hundred
/// (docs/benchmarks.md), so gathering n records divides that cost by n.
const PER_RATE: Duration = Duration::from_micros(10);
/// The bounds of the distance. A record waits for half of it on average, and not at all when the last
/// transaction began earlier than that.
const SHORTEST: Duration = Duration::from_millis(15);
const LONGEST: Duration = Duration::from_millis(100);
/// How much of the estimated rate the last transaction decides.
const NEWEST: f64 = 0.5;

/// The distance between the beginnings of transactions, from the load that they carried.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the last transaction began.
    began: Instant,
    /// Records per second.
    rate: f64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, rate: 0.0 }
    }

    /// A transaction with `records` begins.
    pub(super) fn begin(&mut self, records: usize, now: Instant) {
        let since = now.saturating_duration_since(self.began).max(SHORTEST);
        #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer records")]
        let newest = records as f64 / since.as_secs_f64();
        self.rate += NEWEST * (newest - self.rate);
        self.began = now;
    }

    /// How long to let records gather before the next one.
    pub(super) fn delay(&self, now: Instant) -> Duration {
        let distance = PER_RATE.mul_f64(self.rate).clamp(SHORTEST, LONGEST);
        distance.saturating_sub(now.saturating_duration_since(self.began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance between transactions and the records of each after a second at `rate`.
    fn settled(rate: f64) -> (Duration, f64) {
        let (mut now, mut arrived) = (Instant::now(), 0.0);
        let mut pace = Pace::new(now);
        let end = now + Duration::from_secs(1);
        loop {
            let delay = pace.delay(now);
            now += delay;
            arrived += rate * delay.as_secs_f64();
            if now > end {
                return (delay, rate * delay.as_secs_f64());
            }
            let records = f64::floor(arrived);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            pace.begin(records as usize, now);
            arrived -= records;
        }
    }

    #[test]
    fn transactions_follow_each_other_soon_under_little_load_and_grow_with_it() {
        let near = |rate: f64, millis: u64| {
            let (distance, _) = settled(rate);
            let expected = Duration::from_millis(millis);
            let difference = distance.abs_diff(expected);
            assert!(difference * 5 < expected, "{rate}/s: {distance:?}");
        };
        near(1.0, 15);
        near(1000.0, 15);
        near(5000.0, 50);
        near(100_000.0, 100);
    }

    #[test]
    fn a_transaction_is_not_delayed_after_a_pause() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for number in 1..20 {
            pace.begin(4000, start + LONGEST * number);
        }
        let last = start + LONGEST * 19;
        assert_eq!(pace.delay(last), LONGEST);
        assert_eq!(pace.delay(last + LONGEST), Duration::ZERO);
        for second in 1..=4 {
            pace.begin(1, last + Duration::from_secs(second));
        }
        assert!(pace.delay(last + Duration::from_secs(4)) < LONGEST / 2, "{pace:?}");
    }
}
