//! The log: callbacks become durable here, and stay until they are published.
//!
//! ```text
//! Appender ─▶ writer thread ─ sled segment + fdatasync ─▶ state (tail, segments) ─▶ Reader
//!                  ▲ spare segments                                                   │ release
//!                  └──────────────── keeper thread ◀──────────────────────────────────┘
//! ```
//! Segments are directories `segments/0000000001`, appended to by one process each and removed
//! whole. The reader is fed from the tail in memory while it keeps up and from the segments' files
//! when it does not. Nothing is ever changed in place, and nothing needs space to free space.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::metrics;
use crate::record::{Entry, Timestamp};

mod appender;
mod frame;
mod keeper;
mod reader;
mod state;
mod store;
mod writer;

pub use appender::{AppendError, Appender};
pub use reader::{Next, ReadError, Reader};
pub use state::Stored;
pub use store::StoreError;

pub(crate) use store::sync_dir;

use frame::Scanner;
use keeper::Keeper;
use state::State;
use writer::Writer;

/// Where the log is and how large it may become.
#[derive(Clone, Debug)]
pub struct Config {
    /// The log's directory; made when missing.
    pub dir: PathBuf,
    /// Appends are refused while the log takes more than this many bytes of disk.
    pub max_bytes: u64,
    /// Appends are refused while the file system has less than this many bytes free.
    pub min_free_bytes: u64,
}

/// The log's identity, made with its directory: LSNs mean nothing in another log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(Uuid);

impl LogId {
    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
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

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the log in {} is in use by another process; give each instance its own wal.dir",
        .0.display()
    )]
    Locked(PathBuf),
    /// Written in a format of another release.
    #[error(
        "the log in {} has format {found:?}, this release reads format {FORMAT}; \
         let the release that wrote it publish what it holds",
        dir.display()
    )]
    Format {
        /// The log's directory.
        dir: PathBuf,
        /// What its `log` file says.
        found: String,
    },
    /// There are segments, but not the file that says which log they are of.
    #[error(
        "there are segments in {dir}, but {path} is missing, without which they cannot be read; \
         put it back, or move the directory away",
        dir = .0.display(), path = .0.join(IDENTITY).display()
    )]
    Orphaned(PathBuf),
    /// No log there.
    #[error("there is no log in {}", .0.display())]
    Missing(PathBuf),
    /// From the file system.
    #[error("cannot {what} {path}: {cause}", path = path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

/// The format of everything below a log's directory.
const FORMAT: u32 = 1;
/// Names the format and the log's id.
const IDENTITY: &str = "log";
const SEGMENTS: &str = "segments";
/// A segment's directory on its way out: what is left of it is not looked at.
const GONE: &str = "gone";
/// A segment's data that nobody can read, kept for whoever can put it right.
const DAMAGED: &str = "damaged";

/// The log's threads.
#[derive(Debug)]
pub struct Log {
    id: LogId,
    state: Arc<State>,
    writer: Option<oneshot::Receiver<Result<(), StoreError>>>,
    keeper: thread::JoinHandle<()>,
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

    /// A view of the log for whoever must not keep it open.
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
        if self.keeper.join().is_err() {
            tracing::error!("the log's keeper thread panicked; the next start tidies up");
        }
    }
}

/// Tells how the log is.
#[derive(Clone, Debug)]
pub struct Probe(Arc<State>);

impl Probe {
    /// Whether an append would be taken now.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), AppendError> {
        self.0.room()
    }
}

/// Opens the log in `config.dir`, making it when there is none.
///
/// # Errors
/// [`OpenError`]
pub fn open(config: &Config) -> Result<(Appender, Reader, Log), OpenError> {
    let segments_dir = config.dir.join(SEGMENTS);
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |cause| OpenError::Io { what, path, cause }
    };
    create_dir_durably(&segments_dir).map_err(io("create", &segments_dir))?;
    let lock = lock(&config.dir)?;
    let id = match read_identity(&config.dir) {
        Err(OpenError::Missing(dir)) => {
            // A new identity would make every segment another log's.
            if !list(&segments_dir).map_err(io("list", &segments_dir))?.is_empty() {
                return Err(OpenError::Orphaned(dir));
            }
            make_identity(&dir)?
        }
        found => found?,
    };
    let Recovered { found, next_number } = recover(&segments_dir, id)?;

    let oldest = oldest(&segments_dir, &found, id);
    let state = Arc::new(State::new(&found, oldest));
    let (jobs, keeper_jobs) = mpsc::channel();
    let (keeper, spares) = Keeper::new(config, next_number, keeper_jobs, Arc::clone(&state));
    let keeper = thread::Builder::new()
        .name("wal-keeper".into())
        .spawn(move || {
            // Held as long as anything may still be written or removed.
            let _lock = lock;
            keeper.run();
        })
        .map_err(io("start a thread for", &config.dir))?;
    let (appender, inbox) = Appender::new(Arc::clone(&state));
    let writer = Writer::new(id, inbox, Arc::clone(&state), spares, jobs.clone());
    let (ended, writer_end) = oneshot::channel();
    thread::Builder::new()
        .name("wal-writer".into())
        .spawn({
            let state = Arc::clone(&state);
            move || {
                let end = writer.run();
                state.end();
                // Nobody waits any more when the process is already on its way out.
                let _ = ended.send(end);
            }
        })
        .map_err(io("start a thread for", &config.dir))?;
    let reader = Reader::new(Arc::clone(&state), segments_dir, id, jobs);
    Ok((appender, reader, Log { id, state, writer: Some(writer_end), keeper }))
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    /// Right after a kill the old process may hold its lock a little longer.
    const ATTEMPTS: u32 = 20;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    let path = dir.join("lock");
    let io = |cause| OpenError::Io { what: "lock", path: path.clone(), cause };
    let file = File::create(&path).map_err(io)?;
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Err(TryLockError::Error(cause)) => return Err(io(cause)),
        }
    }
    Err(OpenError::Locked(dir.to_owned()))
}

fn read_identity(dir: &Path) -> Result<LogId, OpenError> {
    let path = dir.join(IDENTITY);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing(dir.to_owned()));
        }
        Err(cause) => return Err(OpenError::Io { what: "read", path, cause }),
    };
    let id = text
        .trim()
        .strip_prefix("livebridge log, format ")
        .and_then(|rest| rest.split_once(", id "))
        .filter(|(format, _)| *format == FORMAT.to_string())
        .and_then(|(_, id)| LogId::parse(id));
    id.ok_or_else(|| OpenError::Format {
        dir: dir.to_owned(),
        found: text.trim().chars().take(80).collect(),
    })
}

fn make_identity(dir: &Path) -> Result<LogId, OpenError> {
    let id = LogId(Uuid::new_v4());
    let path = dir.join(IDENTITY);
    let text = format!("livebridge log, format {FORMAT}, id {id}\n");
    write_durably(&path, text.as_bytes())
        .and_then(|()| store::sync_dir(dir))
        .map_err(|cause| OpenError::Io { what: "write", path, cause })?;
    Ok(id)
}

/// Makes a directory and those above it that are missing, each entry durable.
///
/// The entry is synced even if it is there: whoever made it may have been killed before it came to
/// that. What is above it was synced before it was made.
pub(crate) fn create_dir_durably(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let existed = dir.is_dir();
    if !existed {
        create_dir_durably(parent)?;
        fs::create_dir(dir)?;
    }
    match store::sync_dir(parent) {
        // Somebody else's directory, and so somebody else's entry.
        Err(cause) if existed && cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Writes a file whole or not at all; its directory is left for the caller to sync.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// A segment found on disk.
#[derive(Clone, Copy, Debug)]
struct Found {
    number: u32,
    /// Its last record's index.
    records: u32,
    disk_bytes: u64,
}

/// What earlier processes left.
struct Recovered {
    /// The segments that hold records, in order.
    found: Vec<Found>,
    /// Behind the number of every segment that there ever was.
    next_number: u32,
}

/// Finds the segments that hold records and removes those that hold none.
///
/// The last segment's directory stays even then, empty: it alone keeps numbers from restarting,
/// and with them LSNs that the ledger calls published.
fn recover(segments: &Path, id: LogId) -> Result<Recovered, OpenError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |cause| OpenError::Io { what, path, cause }
    };
    // The process that made the last segment may have been killed before it synced its directory.
    store::sync_dir(segments).map_err(io("sync", segments))?;
    finish_removals(segments).map_err(io("tidy", segments))?;
    let mut found = Vec::new();
    let listed = list(segments).map_err(io("list", segments))?;
    let next_number = listed.last().map_or(1, |(number, _)| number + 1);
    for (number, dir) in listed {
        let disk_bytes = fs::metadata(store::data_file(&dir)).map_or(0, |meta| meta.len());
        let records = examine(number, &dir, id).map_err(io("read", &dir))?;
        if records > 0 {
            found.push(Found { number, records, disk_bytes });
        } else if number + 1 == next_number {
            store::empty(&dir).map_err(io("empty", &dir))?;
        } else {
            fs::remove_dir_all(&dir).map_err(io("remove", &dir))?;
        }
    }
    // What was read may be in the page cache only, when the process that wrote it was killed
    // before it synced. It is about to be published, so it must be as durable as the rest.
    if let Some(last) = found.last() {
        let data = store::data_file(&store::segment_dir(segments, last.number));
        File::open(&data).and_then(|file| file.sync_data()).map_err(io("sync", &data))?;
    }
    Ok(Recovered { found, next_number })
}

/// When the first readable record of the first segment was received: no record left to publish is
/// older. Only a hint for operators, so that errors are the reader's to report.
fn oldest(segments: &Path, found: &[Found], id: LogId) -> Option<Timestamp> {
    let dir = store::segment_dir(segments, found.first()?.number);
    let file = File::open(store::data_file(&dir)).ok()?;
    let frame = Scanner::new(file, id).next().ok()??;
    let mut entries = Vec::new();
    frame.entries(frame.first(), &mut entries).ok()?;
    entries.first().map(|entry| entry.record.received_at)
}

/// Segment numbers and directories, in order.
fn list(segments: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(segments)? {
        let path = entry?.path();
        if let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes segments whose removal was cut short.
fn finish_removals(segments: &Path) -> io::Result<()> {
    for entry in fs::read_dir(segments)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == GONE) {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// How many records the segment in `dir` has, damaged ones included.
fn examine(number: u32, dir: &Path, id: LogId) -> io::Result<u32> {
    let data = store::data_file(dir);
    let closed = store::read_closed(dir, number);
    if !data.exists() {
        let lost = closed.unwrap_or(0);
        if lost > 0 {
            metrics::damaged(lost);
            tracing::error!(
                records = lost, path = %data.display(),
                "a segment's file is missing; its records cannot be published, if they were not"
            );
        }
        return Ok(0);
    }
    if let Some(records) = closed {
        return Ok(records);
    }
    let mut scanner = Scanner::new(File::open(&data)?, id);
    let mut records = 0;
    while let Some(frame) = scanner.next()? {
        if frame.first().segment() == number {
            records = records.max(frame.last().index());
        }
    }
    if records == 0 && scanner.passed_over_damage() {
        let kept = dir.with_extension(DAMAGED);
        fs::rename(&data, &kept)?;
        tracing::error!(
            path = %kept.display(),
            "no record of a segment can be read: its first commit was cut short, or it is damaged; \
             its file is set aside, remove it when it is of no use"
        );
    }
    Ok(records)
}

/// Calls `visit` for every entry of the log in `dir`, in order, without locking or changing it:
/// safe beside a running instance.
///
/// # Errors
/// [`OpenError`], or what `visit` returned.
pub fn visit<E: From<OpenError>>(
    dir: &Path,
    mut visit: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let id = read_identity(dir)?;
    let segments = dir.join(SEGMENTS);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |cause| OpenError::Io { what: "read", path, cause }
    };
    let mut entries = Vec::new();
    for (number, segment) in list(&segments).map_err(io(&segments))? {
        let data = store::data_file(&segment);
        let file = match File::open(&data) {
            // Published and removed since it was listed.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(io(&data))?,
        };
        let mut scanner = Scanner::new(file, id);
        let mut next = crate::record::Lsn::new(number, 1);
        while let Some(frame) = scanner.next().map_err(io(&data))? {
            if frame.first().segment() != number || frame.last() < next {
                continue;
            }
            frame
                .entries(next, &mut entries)
                .map_err(|cause| io(&data)(io::Error::new(io::ErrorKind::InvalidData, cause)))?;
            next = frame.last().next();
            entries.drain(..).try_for_each(&mut visit)?;
        }
    }
    Ok(())
}

/// Free space for this user on the file system of `dir`; `None` when it cannot be told.
#[must_use]
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
