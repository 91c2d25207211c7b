//! Counts what each thread allocates.

#![allow(
    unsafe_code,
    reason = "an allocator is an unsafe trait; this one only counts and passes on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::ops::{AddAssign, Sub};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// Threads that are counted, over the life of the process; those after them are not.
const THREADS_MAX: usize = 1024;

/// The system's allocator, with a count for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and their bytes. A reallocation counts as one, with the bytes that it adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocations {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

struct Slot {
    /// The id that the kernel gave the thread.
    thread: AtomicI32,
    count: AtomicU64,
    bytes: AtomicU64,
}

static SLOTS: [Slot; THREADS_MAX] = [const {
    Slot { thread: AtomicI32::new(0), count: AtomicU64::new(0), bytes: AtomicU64::new(0) }
}; THREADS_MAX];
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);

/// The slot of a thread that has allocated nothing yet.
const UNKNOWN: usize = usize::MAX;

thread_local! {
    // Constant and without a destructor: to use it allocates nothing.
    static SLOT: Cell<usize> = const { Cell::new(UNKNOWN) };
}

fn slot() -> Option<&'static Slot> {
    SLOT.with(|at| {
        if at.get() == UNKNOWN {
            at.set(SLOTS_USED.fetch_add(1, Ordering::Relaxed));
            if let Some(slot) = SLOTS.get(at.get()) {
                let thread = rustix::thread::gettid().as_raw_nonzero().get();
                slot.thread.store(thread, Ordering::Relaxed);
            }
        }
        SLOTS.get(at.get())
    })
}

fn count(bytes: usize) {
    if let Some(slot) = slot() {
        slot.count.fetch_add(1, Ordering::Relaxed);
        slot.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        unsafe { System.realloc(block, layout, size) }
    }
}

impl Slot {
    fn read(&self) -> Allocations {
        let count = self.count.load(Ordering::Relaxed);
        Allocations { count, bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Those of this thread so far.
pub(crate) fn of_this_thread() -> Allocations {
    slot().map(Slot::read).unwrap_or_default()
}

/// Those so far of the running threads whose names begin with `name`.
pub(crate) fn of_threads(name: &str) -> Allocations {
    let mut sum = Allocations::default();
    for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let thread: i32 = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        if comm.starts_with(name) && thread != 0 {
            let slots = SLOTS.iter().filter(|slot| slot.thread.load(Ordering::Relaxed) == thread);
            slots.for_each(|slot| sum += slot.read());
        }
    }
    sum
}

impl AddAssign for Allocations {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

impl Sub for Allocations {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { count: self.count - before.count, bytes: self.bytes - before.bytes }
    }
}
