//! A segment: one small sled database, append-only, and what it takes to make it durable.
//!
//! The only file that names sled. A segment is written by one process and never opened again: the
//! next process starts a new one, and reading goes by [`frame`](super::frame). So sled's recovery,
//! its cache and its space management are never relied on; what is relied on is that `flush`
//! writes every value in one run of bytes, which `fdatasync` then makes durable. sled's own flush
//! ends in `sync_file_range`, which is not durable (engine.md A, D).

use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Once};
use std::task::{Context, Wake, Waker};
use std::thread;

use bytes::Bytes;

use super::dir::{data_file, segment_dir, sync_dir, unless_missing};
use super::preallocation::Preallocation;
use crate::permission::FileError;
use crate::record::Lsn;

/// Values per tree: sled rewrites a whole leaf at its tenth change (engine.md A).
const TREE_VALUES_MAX: u32 = 9;
/// Trees per segment. sled rewrites its list of trees with each new one; so few trees keep what is
/// superseded far below the half at which sled would start to move data about.
const TREES_MAX: u32 = 256;
/// A segment is closed when it has grown to this many bytes. sled keeps all of it in memory until
/// then, and disk space comes back in pieces of this size.
pub(super) const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
/// A segment grows beyond its size while no other can be made, and takes no more at this one.
pub(super) const OVERGROWN_BYTES: u64 = 4 * SEGMENT_BYTES;
/// A segment's length when all of it is preallocated: with what its last groups reserve.
pub(super) const PREALLOCATED_BYTES: u64 = SEGMENT_BYTES + 2 * RESERVE_BYTES;
/// sled's unit of allocation; a quarter of it is what a value must stay below.
const SLED_SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// The most that sled adds to a value: the headers of its message, the key and the lengths.
const VALUE_OVERHEAD_BYTES: u64 = 128;
/// The most that a new tree takes: an empty page, and sled's list of trees written again.
const TREE_BYTES: u64 = 512;
const TREE_LISTED_BYTES: u64 = 16;
/// sled begins one of its own segments with a header, and leaves the last one's end empty when a
/// message does not fit there.
const SLED_HEADER_BYTES: u64 = 64;
/// Space that a group is given for what sled leaves empty, beside a quarter of its bytes.
const RESERVE_BYTES: u64 = 1024 * 1024;
/// By how much a segment grows when nothing was preallocated.
const GROWTH_BYTES: u64 = 256 * 1024;
/// sled's cache, in bytes: nothing is read through it.
const SLED_CACHE_BYTES: u64 = 4 * 1024 * 1024;

const DROPPED_LAST: &str = "the database is there until the segment is dropped";

/// The segment being written.
pub(super) struct Segment {
    number: u32,
    /// Its directory.
    dir: PathBuf,
    /// There until the segment is dropped.
    database: Option<Database>,
    data: File,
    preallocation: Preallocation,
    /// Where sled's next message is at most.
    end: u64,
    tree_values: u32,
    trees: u32,
}

struct Database {
    db: sled::Db,
    tree: sled::Tree,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Segment {
    /// Makes an empty segment, which has to be [prepared](Self::prepare).
    pub(super) fn create(segments: &Path, number: u32) -> Result<Self, FileError> {
        let dir = segment_dir(segments, number);
        let io = FileError::at("create segment", &dir);
        let sled = |cause: sled::Error| io(cause.into());
        // What a failed attempt left, sled may refuse to open for good.
        unless_missing(fs::remove_dir_all(&dir)).map_err(io)?;
        let db = sled::Config::new()
            .path(&dir)
            .segment_size(SLED_SEGMENT_BYTES)
            .cache_capacity(SLED_CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(sled)?;
        let tree = open_tree(&db, 0).map_err(sled)?;
        // While there is something to flush.
        park_io_threads(&tree);
        db.flush().map_err(sled)?;
        let path = data_file(&dir);
        let data = File::open(&path).map_err(io)?;
        let preallocation = Preallocation::open(&path).map_err(io)?;
        let end = preallocation.len() + TREE_BYTES;
        let database = Some(Database { db, tree });
        Ok(Self { number, dir, database, data, preallocation, end, tree_values: 0, trees: 1 })
    }

    /// Gives a new segment the space for its first group, and makes its files and their directories
    /// durable. After an error it can be called again.
    pub(super) fn prepare(&mut self) -> Result<(), FileError> {
        let io = FileError::at("prepare segment", &self.dir);
        let len = self.end + RESERVE_BYTES + GROWTH_BYTES;
        self.preallocation.grow(len, len).map_err(io)?;
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            File::open(path).and_then(|file| file.sync_all()).map_err(io)?;
        }
        let segments = self.dir.parent().unwrap_or(&self.dir);
        sync_dir(&self.dir).and_then(|()| sync_dir(segments)).map_err(io)
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Bytes of the file that are in use.
    pub(super) fn used_bytes(&self) -> u64 {
        self.end
    }

    /// The file once more, to preallocate space in the background.
    pub(super) fn open_preallocation(&self) -> io::Result<Preallocation> {
        Preallocation::open(&data_file(&self.dir))
    }

    /// Makes sure that a group with records of this many bytes fits in the file, so that it cannot
    /// fail for lack of space. `false` when there is not enough.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<bool, FileError> {
        let wanted = self.end + bytes + bytes / 4 + RESERVE_BYTES;
        if wanted <= self.preallocation.len() {
            return Ok(true);
        }
        match self.preallocation.grow(wanted, wanted + GROWTH_BYTES) {
            Ok(()) => Ok(true),
            Err(cause) if is_lack_of_space(&cause) => Ok(false),
            Err(cause) => Err(FileError::at("preallocate space in segment", &self.dir)(cause)),
        }
    }

    /// Counts a message that sled writes.
    fn advance(&mut self, bytes: u64) {
        let segment = SLED_SEGMENT_BYTES as u64;
        let left = segment - self.end % segment;
        if bytes + SLED_HEADER_BYTES > left {
            self.end += left + SLED_HEADER_BYTES;
        }
        self.end += bytes;
    }

    /// Hands a frame to sled and returns the copy that sled keeps. Durable after [`Self::sync`].
    pub(super) fn append(&mut self, first: Lsn, frame: &[u8]) -> Result<Bytes, FileError> {
        let io = FileError::at("append to segment", &self.dir);
        let sled = |cause: sled::Error| io(cause.into());
        let Database { db, tree } = self.database.as_mut().expect(DROPPED_LAST);
        let value = sled::IVec::from(frame);
        let new_tree = self.tree_values == TREE_VALUES_MAX;
        if new_tree {
            *tree = open_tree(db, self.trees).map_err(sled)?;
            self.trees += 1;
            self.tree_values = 0;
        }
        tree.insert(first.as_u64().to_be_bytes(), value.clone()).map_err(sled)?;
        self.tree_values += 1;
        if new_tree {
            self.advance(TREE_BYTES + TREE_LISTED_BYTES * u64::from(self.trees));
        }
        self.advance(frame.len() as u64 + VALUE_OVERHEAD_BYTES);
        Ok(Bytes::from_owner(value))
    }

    /// Has sled write everything appended to the file.
    pub(super) fn flush(&self) -> Result<(), FileError> {
        let Database { db, .. } = self.database.as_ref().expect(DROPPED_LAST);
        let io = FileError::at("flush segment", &self.dir);
        db.flush().map(|_| ()).map_err(|cause| io(cause.into()))
    }

    /// Makes everything written durable.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        self.data.sync_data().map_err(FileError::at("sync segment", &self.dir))
    }

    /// Whether the next frame should go to another segment.
    pub(super) fn is_full(&self) -> bool {
        let full = self.trees >= TREES_MAX && self.tree_values == TREE_VALUES_MAX;
        full || self.end >= SEGMENT_BYTES
    }

    /// Leaves the database as it is, after it failed: closing it would write once more.
    pub(super) fn abandon(mut self) {
        std::mem::forget(self.database.take());
    }
}

/// Closes the database, which takes a while.
impl Drop for Segment {
    fn drop(&mut self) {
        let database = self.database.take();
        // sled syncs once more, and panics when that fails. All that was appended is durable.
        let closed = panic::catch_unwind(AssertUnwindSafe(|| drop(database)));
        if closed.is_err() {
            tracing::warn!(segment = self.number, "sled could not close a segment");
        }
    }
}

/// Parks five of sled's seven I/O threads, once for the process.
///
/// sled wakes all of them for every flush, which costs 70 µs of processor time a commit. The thread
/// that completes a flush calls its waker; a waker that does not return parks that thread for good.
/// Two threads are left, so that a write never waits for the opening or closing of another segment.
fn park_io_threads(tree: &sled::Tree) {
    const KEPT_ASLEEP: usize = 5;
    /// A flush that completes before it is polled parks no thread.
    const ATTEMPTS_MAX: usize = 200;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let waker = Waker::from(Arc::new(ParkForever));
        let mut context = Context::from_waker(&waker);
        let mut flush = || pin!(tree.flush_async()).poll(&mut context).is_pending();
        (0..ATTEMPTS_MAX).filter(|_| flush()).take(KEPT_ASLEEP).for_each(drop);
    });
}

/// Puts the thread to sleep that it is woken from.
struct ParkForever;

impl Wake for ParkForever {
    fn wake(self: Arc<Self>) {
        loop {
            thread::park();
        }
    }
}

fn is_lack_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn open_tree(db: &sled::Db, number: u32) -> Result<sled::Tree, sled::Error> {
    // Short names keep sled's list of trees short.
    let [_, _, high, low] = number.to_be_bytes();
    db.open_tree([high, low])
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// How often each of the threads that sled's pool starts with has gone to sleep.
    fn sleeps() -> Vec<u64> {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let of = |task: PathBuf| {
            let name = fs::read_to_string(task.join("comm")).ok()?;
            let number: u32 = name.trim().strip_prefix("sled-io-")?.parse().ok()?;
            let status = fs::read_to_string(task.join("status")).ok()?;
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            (number < 7).then(|| count.trim().parse().unwrap())
        };
        tasks.filter_map(of).collect()
    }

    #[test]
    fn a_commit_wakes_two_threads_of_sleds_pool_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(dir.path(), 1).unwrap();
        segment.prepare().unwrap();
        for index in 1..=50 {
            segment.append(Lsn::new(1, index), b"a frame").unwrap();
            segment.flush().unwrap();
            segment.sync().unwrap();
        }
        let sleeps = sleeps();
        assert_eq!(sleeps.len(), 7);
        let woken = sleeps.iter().filter(|&&times| times > 20).count();
        assert!((1..=2).contains(&woken), "the threads slept so often: {sleeps:?}");
    }

    #[test]
    fn errors_name_the_segments_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(dir.path(), 1).unwrap();
        let path = segment_dir(dir.path(), 1);
        // A pipe cannot be synced.
        let (pipe, _writer) = io::pipe().unwrap();
        segment.data = File::from(OwnedFd::from(pipe));
        let error = segment.sync().unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot sync segment {}: ", path.display())), "{error}");
    }

    #[test]
    fn what_a_segment_uses_is_never_more_than_it_counts_and_hardly_less() {
        let mut random = fastrand::Rng::with_seed(3);
        for largest in [100, 3000, 60_000, 700_000] {
            let dir = tempfile::tempdir().unwrap();
            let mut segment = Segment::create(dir.path(), 1).unwrap();
            segment.prepare().unwrap();
            segment.prepare().unwrap();
            let mut index = 1;
            while !segment.is_full() {
                let len = random.usize(1..largest);
                assert!(segment.reserve(len as u64).unwrap());
                let file = fs::metadata(data_file(&segment_dir(dir.path(), 1))).unwrap().len();
                segment.append(Lsn::new(1, index), &vec![7; len]).unwrap();
                segment.flush().unwrap();
                index += 1;
                let after = fs::metadata(data_file(&segment_dir(dir.path(), 1))).unwrap().len();
                assert_eq!(after, file, "sled wrote beyond what was reserved");
            }
            let used = segment.used_bytes();
            drop(segment);
            let bytes = fs::read(data_file(&segment_dir(dir.path(), 1))).unwrap();
            let last = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
            println!("{largest}: {index} values, {last} of {used}");
            assert!(last <= used, "{largest}: {last} bytes are used, {used} counted");
            assert!(used < last + last / 4 + 1024 * 1024, "{largest}: {last}, {used}");
        }
    }
}
