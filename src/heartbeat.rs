//! Heartbeats of threads that must make progress, and how long ago the oldest one was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Interval between two heartbeats of a thread.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// A thread without a heartbeat for this long, or a commit that takes this long, is stuck rather
/// than slow.
pub(crate) const STUCK: Duration = Duration::from_secs(30);

/// The last heartbeat of each of some threads.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    created: Instant,
    /// Milliseconds after `created`.
    beats: Arc<Vec<AtomicU64>>,
}

impl Heartbeat {
    /// For `threads` threads, each with a heartbeat now.
    #[must_use]
    pub(crate) fn new(threads: usize) -> Self {
        let beats = (0..threads).map(|_| AtomicU64::new(0)).collect();
        Self { created: Instant::now(), beats: Arc::new(beats) }
    }

    /// Records a heartbeat of `thread`.
    pub(crate) fn beat(&self, thread: usize) {
        if let Some(beat) = self.beats.get(thread) {
            beat.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The age of the oldest of the threads' last heartbeats.
    #[must_use]
    pub(crate) fn oldest(&self) -> Duration {
        let oldest = self.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).min();
        let now = self.now();
        Duration::from_millis(now.saturating_sub(oldest.unwrap_or(now)))
    }

    /// Whether one of the threads makes no progress.
    #[must_use]
    pub(crate) fn is_stuck(&self) -> bool {
        self.oldest() >= STUCK
    }

    fn now(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn the_oldest_heartbeat_of_all_threads_counts() {
        let heartbeat = Heartbeat::new(2);
        sleep(Duration::from_millis(40));
        assert!(heartbeat.oldest() >= Duration::from_millis(40));
        let beaten = Instant::now();
        heartbeat.beat(0);
        assert!(heartbeat.oldest() >= Duration::from_millis(40), "the other thread has none");
        heartbeat.beat(1);
        let oldest = heartbeat.oldest();
        // Both are rounded to milliseconds.
        assert!(oldest <= beaten.elapsed() + Duration::from_millis(1), "{oldest:?}");
    }
}
