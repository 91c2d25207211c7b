//! Repeatable randomness: every test prints its seed and accepts `LIVEBRIDGE_SEED`.

use std::env;
use std::ops::Range;
use std::time::{Duration, SystemTime};

/// The random number generator of a test.
#[derive(Clone, Debug)]
pub struct Random(fastrand::Rng);

impl Random {
    /// Seeded by `LIVEBRIDGE_SEED` or by the clock.
    pub fn new(test: &str) -> Self {
        let clock = || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            u64::from(now.expect("a clock past 1970").subsec_nanos())
        };
        let given = env::var("LIVEBRIDGE_SEED").ok();
        let seed = given.map_or_else(clock, |seed| seed.parse().expect("LIVEBRIDGE_SEED"));
        eprintln!("{test}: LIVEBRIDGE_SEED={seed}");
        Self(fastrand::Rng::with_seed(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A new generator that is independent of later use of this one.
    pub fn fork(&mut self) -> Self {
        Self(self.0.fork())
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        self.0.u64(range)
    }

    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.within(range.start * 1000..range.end * 1000))
    }

    /// An index into a collection of `count` elements.
    pub fn index(&mut self, length: usize) -> usize {
        self.0.usize(..length)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.0.u64(..100) < chance
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}
