//! The log: callbacks become durable here, and stay until they are published.
//!
//! ```text
//! Appender ─▶ writer thread ─ sled segment + fdatasync ─▶ index (segments, tail) ─▶ Reader
//!                  ▲ spare segments                                                   │ release
//!                  └──────────────── maintenance thread ◀─────────────────────────────┘
//! ```
//! Segments are directories `segments/0000000001`, each written by one opening of the log
//! ([`OpeningId`]) and removed whole. The reader is fed from the tail in memory while it keeps up
//! and from the segments' files when it does not. Nothing is ever changed in place, and nothing
//! needs space to free space.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::event::Timestamp;
use crate::metrics;
use crate::permission::FileError;
use crate::reloadable::Reloadable;

mod appender;
mod capacity;
mod checkpoint;
mod commit_delay;
mod commit_timer;
mod dir;
mod error;
mod frame;
mod inbox;
mod index;
mod inspect;
mod maintenance;
mod opening;
mod preallocation;
mod progress;
mod reader;
mod recovery;
mod segment;
mod self_audit;
mod tail;
mod writer;

pub use appender::{AppendHandle, Appender};
pub use dir::{owner, read_identity, remove_damaged};
pub use error::{AppendError, OpenError, ReadError, StoreError};
pub use index::Stored;
pub use inspect::{LogView, SegmentContents, SegmentView, visit};
pub use opening::OpeningId;
pub use progress::Progress;
// Public so that tests/promise/protocol_model.rs checks these decisions and not a copy of them.
#[doc(hidden)]
pub use progress::{Extent, Position, released_through, resolve};
pub use reader::{Entries, Next, Reader};
pub use self_audit::{AuditBalance, Outcomes};

pub(crate) use dir::{create_dir_durably, sync_dir, write_durably};

use capacity::Capacity;
use checkpoint::CheckpointFile;
use commit_timer::CommitTimer;
use frame::Builder;
use index::Index;
use maintenance::Maintenance;
use opening::Lineage;
use recovery::Recovered;
use segment::OVERGROWN_BYTES;
use self_audit::AuditTotals;
use writer::Writer;

/// Where the log is and how large it may become.
#[derive(Clone, Debug)]
pub struct Config {
    /// The log's directory; made when missing.
    pub dir: PathBuf,
    /// At the start; [`Log::limits`] replaces them later.
    pub limits: Limits,
}

/// How large a log may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Appends are rejected while the log takes more than this many bytes of disk.
    pub max_bytes: u64,
    /// Appends are rejected while the file system has less than this many bytes free.
    pub min_free_bytes: u64,
}

impl Limits {
    /// Limits that are never reached.
    pub const NONE: Self = Self { max_bytes: u64::MAX, min_free_bytes: 0 };
}

/// The log's identity, made with its directory. Copies of the directory share it; [`OpeningId`]
/// tells apart what they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(Uuid);

impl LogId {
    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    #[cfg(test)]
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// One that no other log has.
    #[must_use]
    pub fn unique() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id that its [`fmt::Display`] form spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the log's threads and the views of it share.
#[derive(Debug)]
struct Shared {
    index: Index,
    capacity: Capacity,
    commit_timer: CommitTimer,
}

impl Shared {
    fn new(index: Index, limits: Limits) -> Self {
        Self { index, capacity: Capacity::new(limits), commit_timer: CommitTimer::new() }
    }

    fn ready(&self) -> Result<(), AppendError> {
        if self.index.has_ended() {
            return Err(AppendError::Failed);
        }
        self.capacity.ready(self.index.active().is_some_and(|(_, bytes)| bytes < OVERGROWN_BYTES))
    }

    fn update_metrics(&self) {
        let Stored { records, disk_bytes, segments, oldest } = self.index.stored();
        metrics::stored(records, disk_bytes, segments, oldest);
        let audit = self.index.audit();
        let missing = audit.missing();
        let AuditBalance { accepted, pending, outcomes, by_ledger, damaged, since } = audit;
        let Outcomes { published, absorbed, dead_lettered, quarantined } = outcomes;
        let settled = [published, absorbed, dead_lettered, quarantined, by_ledger, damaged];
        metrics::audit(&metrics::SelfAuditTotals { accepted, settled, pending, missing, since });
    }
}

/// An open log: its threads.
#[derive(Debug)]
pub struct Log {
    id: LogId,
    shared: Arc<Shared>,
    writer: Option<oneshot::Receiver<Result<(), StoreError>>>,
    maintenance: thread::JoinHandle<()>,
}

impl Log {
    /// The log's identity.
    #[must_use]
    pub fn id(&self) -> LogId {
        self.id
    }

    /// What the log holds that is not released.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.shared.index.stored()
    }

    /// The limits, which can be replaced while the log is open.
    #[must_use]
    pub fn limits(&self) -> Reloadable<Limits> {
        self.shared.capacity.limits.clone()
    }

    /// A view of the log that does not keep it open.
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe(Arc::clone(&self.shared))
    }

    /// Waits for the writer: it ends when the last [`Appender`] is dropped, or with its error.
    ///
    /// # Errors
    /// [`StoreError`] when it failed; what was acknowledged is on disk nevertheless.
    pub async fn ended(&mut self) -> Result<(), StoreError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let end = writer.await.unwrap_or(Err(StoreError::Panicked("writer")));
        self.writer = None;
        end
    }

    /// Waits until released segments are gone, after writer and [`Reader`] have ended.
    pub fn close(self) {
        if self.maintenance.join().is_err() {
            tracing::error!("the log's maintenance thread panicked; the next start tidies up");
        }
    }
}

/// A view of an open log. It changes nothing in it.
#[derive(Clone, Debug)]
pub struct Probe(Arc<Shared>);

impl Probe {
    /// Whether an append would be accepted now.
    ///
    /// # Errors
    /// The error that it would get.
    pub fn ready(&self) -> Result<(), AppendError> {
        self.0.ready()
    }

    /// How long the commit in progress has taken; zero while there is none.
    #[must_use]
    pub fn commit_elapsed(&self) -> Duration {
        self.0.commit_timer.elapsed()
    }

    /// What the log holds that is not released.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.0.index.stored()
    }

    /// Sets the metrics of what is stored, and of the self-audit.
    pub fn update_metrics(&self) {
        self.0.update_metrics();
    }

    /// The self-audit.
    #[must_use]
    pub fn audit(&self) -> AuditBalance {
        self.0.index.audit()
    }
}

/// Opens the log in `config.dir`, making it when there is none.
///
/// # Errors
/// [`OpenError`]
pub fn open(config: &Config) -> Result<(Appender, Reader, Log), OpenError> {
    let dir = &config.dir;
    let Recovered { lock, id, segments, next_number, oldest } = recovery::recover(dir)?;
    let (progress_file, position) = CheckpointFile::open(dir, id);
    let (mut totals_file, totals) = CheckpointFile::<AuditTotals>::open(dir, id);
    let totals = totals.unwrap_or_else(|| AuditTotals::new(Timestamp::now()));
    // The totals are synced and the progress is not, so a power cut can leave the totals ahead.
    let resolve = |position| progress::resolve(segments.iter().map(|found| found.extent), position);
    let released = resolve(position.unwrap_or_default()).max(resolve(totals.released_through));

    let opening = OpeningId::unique();
    let holds_records = segments.last().is_some_and(|last| last.last().lsn > released);
    let lineage = begin_opening(dir, id, opening, holds_records);
    let index = Index::new(&segments, released, oldest, totals);
    // What the file says of segments that are gone must not be applied to those to come.
    totals_file.save_durably(&index.audit_totals());
    let shared = Arc::new(Shared::new(index, config.limits));

    let (tasks, task_queue) = mpsc::channel();
    let (maintenance, spares) =
        Maintenance::new(config, next_number, task_queue, Arc::clone(&shared), totals_file);
    let maintenance = start_thread("wal-maint", dir, move || {
        // Held as long as anything may still be written or removed.
        let _lock = lock;
        maintenance.run();
    })?;
    let (appender, inbox, routes) = Appender::new();
    let builder = Builder::new(id, opening);
    let writer = Writer::new(builder, inbox, routes, Arc::clone(&shared), spares, tasks.clone());
    let (ended, writer_end) = oneshot::channel();
    start_thread("wal-writer", dir, {
        let shared = Arc::clone(&shared);
        move || {
            let end = writer.run();
            shared.index.end();
            // The receiver is gone when the process is already exiting.
            let _ = ended.send(end);
        }
    })?;
    let reader = Reader::new(Arc::clone(&shared), dir, id, lineage, tasks, progress_file, released);
    Ok((appender, reader, Log { id, shared, writer: Some(writer_end), maintenance }))
}

fn start_thread(
    name: &str,
    dir: &Path,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, FileError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(FileError::at("start a thread for", dir))
}

/// Adds `opening` to the directory's lineage and returns it.
fn begin_opening(dir: &Path, log: LogId, opening: OpeningId, holds_records: bool) -> Lineage {
    // Without a record of an earlier opening, what those openings committed is of no use.
    let earlier = if holds_records { checkpoint::read(dir, log) } else { None };
    let mut lineage: Lineage = earlier.unwrap_or_default();
    lineage.push(opening);
    if let Err(error) = checkpoint::replace(dir, log, &lineage) {
        // The next opening then ignores this one's progress and knows its events by their ids.
        tracing::warn!(%error, dir = %dir.display(), "cannot write the log's list of openings");
    }
    lineage
}

/// Free space for this user on the file system of `dir`; `None` when it cannot be told.
#[must_use]
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
