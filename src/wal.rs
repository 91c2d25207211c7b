//! The log: callbacks become durable here, and stay until they are published.
//!
//! ```text
//! Appender ─▶ writer thread ─ sled segment + fdatasync ─▶ state (tail, segments) ─▶ Reader
//!                  ▲ spare segments                                                   │ release
//!                  └──────────────── maintenance thread ◀──────────────────────────────────┘
//! ```
//! Segments are directories `segments/0000000001`, each written by one opening of the log
//! ([`OpeningId`]) and removed whole. The reader is fed from the tail in memory while it keeps up
//! and from the segments' files when it does not. Nothing is ever changed in place, and nothing
//! needs space to free space.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::event::Timestamp;
use crate::record::Lsn;
use crate::reloadable::Reloadable;

mod appender;
mod capacity;
mod checkpoint;
mod commit_delay;
mod dir;
mod error;
mod frame;
mod inbox;
mod inspect;
mod maintenance;
mod opening;
mod preallocation;
mod reader;
mod segment;
mod self_audit;
mod state;
mod writer;

pub use crate::permission::FileError;
pub use appender::{AppendHandle, Appender};
pub use dir::remove_damaged;
pub use error::{AppendError, OpenError, ReadError, StoreError};
pub use inspect::{LogView, SegmentContents, SegmentView, visit};
pub use opening::{OpeningId, Progress};
// Public so that tests/promise/protocol_model.rs checks these decisions and not a copy of them.
#[doc(hidden)]
pub use opening::{Extent, Position, published, resolve};
pub use reader::{Entries, Next, Reader};
pub use self_audit::{Audit, Outcomes};
pub use state::Stored;

pub(crate) use dir::{create_dir_durably, sync_dir, write_durably};

use checkpoint::CheckpointFile;
use dir::{
    FoundSegment, Recovered, SEGMENTS, list, lock, make_identity, oldest, read_identity, recover,
};
use maintenance::Maintenance;
use opening::Lineage;
use self_audit::AuditTotals;
use state::State;
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

/// The log's threads.
#[derive(Debug)]
pub struct Log {
    id: LogId,
    state: Arc<State>,
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
        self.state.stored()
    }

    /// The limits, which can be replaced while the log is open.
    #[must_use]
    pub fn limits(&self) -> Reloadable<Limits> {
        self.state.capacity.limits.clone()
    }

    /// A view of the log that does not keep it open.
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe(Arc::clone(&self.state))
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
pub struct Probe(Arc<State>);

impl Probe {
    /// Whether an append would be accepted now.
    ///
    /// # Errors
    /// The error that it would get.
    pub fn ready(&self) -> Result<(), AppendError> {
        self.0.ready()
    }

    /// For how long the writer has been at the group that it is writing; zero when it is at none.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.0.busy()
    }

    /// What the log holds that is not released.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.0.stored()
    }

    /// Sets the metrics of what is stored, and of the self-audit.
    pub fn update_metrics(&self) {
        self.0.update_metrics();
    }

    /// The totals of the self-audit.
    #[must_use]
    pub fn audit(&self) -> Audit {
        self.0.totals().1
    }
}

/// Opens the log in `config.dir`, making it when there is none.
///
/// # Errors
/// [`OpenError`]
pub fn open(config: &Config) -> Result<(Appender, Reader, Log), OpenError> {
    let segments_dir = config.dir.join(SEGMENTS);
    create_dir_durably(&segments_dir).map_err(FileError::at("create", &segments_dir))?;
    let lock = lock(&config.dir)?;
    let id = match read_identity(&config.dir) {
        Err(OpenError::Missing(dir)) => {
            // A new identity would make every segment another log's.
            if !list(&segments_dir).map_err(FileError::at("list", &segments_dir))?.is_empty() {
                return Err(OpenError::Orphaned(dir));
            }
            make_identity(&dir)?
        }
        found => found?,
    };
    let Recovered { found, next_number } = recover(&segments_dir, id)?;
    let (progress, position) = CheckpointFile::open(&config.dir, id);
    let (mut totals_file, totals) = CheckpointFile::<AuditTotals>::open(&config.dir, id);
    let totals = totals.unwrap_or_else(|| AuditTotals::new(Timestamp::now()));
    // The totals are synced and the progress is not, so a power cut can leave the totals ahead.
    let done = released(&found, position).max(released(&found, Some(totals.done)));
    let opening = OpeningId::unique();
    let lineage = begin_opening(&config.dir, id, opening, &found, done);
    let oldest = oldest(&segments_dir, &found, id);
    let state = Arc::new(State::new(&found, done, oldest, totals, config.limits));
    // What the file says of segments that are gone must not be applied to those to come.
    totals_file.save_durably(&state.totals().0);
    let (tasks, task_queue) = mpsc::channel();
    let (maintenance, spares) =
        Maintenance::new(config, next_number, task_queue, Arc::clone(&state), totals_file);
    let maintenance = thread::Builder::new()
        .name("wal-maint".into())
        .spawn(move || {
            // Held as long as anything may still be written or removed.
            let _lock = lock;
            maintenance.run();
        })
        .map_err(FileError::at("start a thread for", &config.dir))?;
    let (appender, inbox, routes) = Appender::new();
    let writer =
        Writer::new((id, opening), (inbox, routes), Arc::clone(&state), spares, tasks.clone());
    let (ended, writer_end) = oneshot::channel();
    thread::Builder::new()
        .name("wal-writer".into())
        .spawn({
            let state = Arc::clone(&state);
            move || {
                let end = writer.run();
                state.close();
                // The receiver is gone when the process is already exiting.
                let _ = ended.send(end);
            }
        })
        .map_err(FileError::at("start a thread for", &config.dir))?;
    let reader = Reader::new(Arc::clone(&state), &config.dir, id, lineage, tasks, progress, done);
    Ok((appender, reader, Log { id, state, writer: Some(writer_end), maintenance }))
}

/// The last released record of `found`, by what a file of the directory says.
fn released(found: &[FoundSegment], position: Option<Position>) -> Lsn {
    let extents = found.iter().map(FoundSegment::extent);
    position.map_or(Lsn::ZERO, |position| opening::resolve(extents, position))
}

/// Adds `opening` to the directory's lineage and returns it.
fn begin_opening(
    dir: &Path,
    log: LogId,
    opening: OpeningId,
    found: &[FoundSegment],
    done: Lsn,
) -> Lineage {
    let is_empty = found.last().is_none_or(|last| Lsn::new(last.number, last.records) <= done);
    // Without a record of an earlier opening, what those openings committed is of no use.
    let earlier = if is_empty { None } else { checkpoint::read(dir, log) };
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
