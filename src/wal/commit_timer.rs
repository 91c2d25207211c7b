//! How long the commit in progress has taken: health checks detect a disk that hangs by it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct CommitTimer {
    created: Instant,
    /// When the commit began, in milliseconds after `created`; 0 while there is none.
    since: AtomicU64,
}

impl CommitTimer {
    pub(super) fn new() -> Self {
        Self { created: Instant::now(), since: AtomicU64::new(0) }
    }

    pub(super) fn start(&self) {
        self.since.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Zero while there is no commit.
    pub(super) fn elapsed(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    /// Never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }
}
