//! Beats of threads that must not stand still, and for how long one has missed its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a thread beats.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A thread that does not get to its tasks for so long, or a commit that takes so long, is not slow
/// but stuck.
pub const STUCK: Duration = Duration::from_secs(30);

/// Some threads' last beats.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    made: Instant,
    /// Milliseconds after `made`.
    beats: Arc<Vec<AtomicU64>>,
}

impl Heartbeat {
    /// Of so many threads, which have all just beaten.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let beats = (0..threads).map(|_| AtomicU64::new(0)).collect();
        Self { made: Instant::now(), beats: Arc::new(beats) }
    }

    /// This thread works.
    pub fn beat(&self, thread: usize) {
        if let Some(beat) = self.beats.get(thread) {
            beat.store(self.now(), Ordering::Relaxed);
        }
    }

    /// How long ago the thread beat whose last beat is the oldest.
    #[must_use]
    pub fn oldest(&self) -> Duration {
        let oldest = self.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).min();
        let now = self.now();
        Duration::from_millis(now.saturating_sub(oldest.unwrap_or(now)))
    }

    /// Whether one of the threads stands still.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.oldest() >= STUCK
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn one_thread_that_stands_still_is_enough() {
        let heartbeat = Heartbeat::new(2);
        sleep(Duration::from_millis(40));
        assert!(heartbeat.oldest() >= Duration::from_millis(40));
        heartbeat.beat(0);
        assert!(heartbeat.oldest() >= Duration::from_millis(40), "the other has not");
        heartbeat.beat(1);
        assert!(heartbeat.oldest() < Duration::from_millis(40));
    }
}
