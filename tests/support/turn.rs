//! Which tests of one process run at the same time.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// For a test that measures times or needs the whole machine: as long as the guard exists, no other
/// test with a turn runs.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that only must not disturb those that run [`alone`]. A test takes one turn at a time.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Brokers of one process at the same time, apart from the shared one. A broker takes about 0.4 GB
/// of memory, and a core while it starts.
const BROKERS_MAX: usize = 6;

static BROKERS: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

thread_local! {
    /// Brokers that this thread's test started.
    static MINE: Cell<usize> = const { Cell::new(0) };
}

/// Permission to run some brokers until it is dropped.
#[derive(Debug)]
pub(super) struct BrokerPermit(usize);

impl BrokerPermit {
    /// Waits while too many brokers run, unless this test already has some: then it could wait for
    /// itself.
    pub(super) fn wait(brokers: usize) -> Self {
        let mut running = BROKERS.lock().unwrap_or_else(PoisonError::into_inner);
        while *running > 0 && *running + brokers > BROKERS_MAX && MINE.get() == 0 {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += brokers;
        MINE.set(MINE.get() + brokers);
        Self(brokers)
    }
}

impl Drop for BrokerPermit {
    fn drop(&mut self) {
        *BROKERS.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        MINE.set(MINE.get().saturating_sub(self.0));
        ENDED.notify_all();
    }
}
