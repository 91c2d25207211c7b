//! The back of the log: durable records in order, from memory or from the segments' files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::LogId;
use super::dir::{self, SEGMENTS};
use super::frame::{Frame, Scanner};
use super::maintenance::MaintenanceTask;
use super::progress::Progress;
use super::self_audit::{Outcomes, ReleasedBy};
use super::state::{Location, State};
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::record::{DecodeError, Entry, Lsn, Timestamp};

static DAMAGED: LogLimiter = LogLimiter::new();

/// What there is to read.
#[derive(Debug)]
pub enum Next {
    /// Entries in order, at least one.
    Entries(Vec<Entry>),
    /// Nothing yet.
    Idle,
    /// Nothing, and there will be nothing: the log has ended.
    End,
}

/// Why the log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// From the file system.
    #[error("cannot read {path}: {cause}", path = path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A whole frame holds a record that this release cannot read.
    #[error("cannot decode the records at {lsn}: {cause}; a newer release may have written them")]
    Record {
        /// The frame's first record.
        lsn: Lsn,
        /// Why not.
        #[source]
        cause: DecodeError,
    },
    /// What is written from now on would be taken for published.
    #[error(
        "the ledger names {done} of log {log} as published, which was never written here: this is \
         an older copy of the log, or a copy of it is in use elsewhere; start with an empty \
         wal.dir (livebridge wal export prints what this one holds)"
    )]
    Behind {
        /// The last record that the ledger names.
        done: Lsn,
        /// The log's identity.
        log: LogId,
    },
}

/// The one reader.
#[derive(Debug)]
pub struct Reader {
    state: Arc<State>,
    segments: PathBuf,
    log: LogId,
    tasks: Sender<MaintenanceTask>,
    progress: Progress,
    /// The first segment that this process may write.
    first_new: u32,
    resumed: bool,
    /// The next record wanted.
    cursor: Lsn,
    /// The last one that was returned, and the last that is released.
    returned: Lsn,
    released: Lsn,
    /// Damage that was passed over and is not released: its last record, and how many there are.
    damage: Vec<(Lsn, u64)>,
    open: Option<OpenSegment>,
}

/// The segment whose file is being read.
#[derive(Debug)]
struct OpenSegment {
    number: u32,
    path: PathBuf,
    scanner: Scanner,
    /// The file's offset behind the last frame that was wanted.
    done: u64,
}

impl Reader {
    pub(super) fn new(
        state: Arc<State>,
        dir: &Path,
        log: LogId,
        tasks: Sender<MaintenanceTask>,
        first_new: u32,
        accounted: Lsn,
    ) -> Self {
        let (progress, done) = Progress::open(dir, log, first_new);
        // The account is synced and the progress is not, so a power cut leaves it ahead: what it has
        // counted must not be read and counted again.
        let done = done.max(accounted);
        let mut reader = Self {
            state,
            segments: dir.join(SEGMENTS),
            log,
            tasks,
            progress,
            first_new,
            resumed: false,
            cursor: Lsn::ZERO,
            returned: Lsn::ZERO,
            released: Lsn::ZERO,
            damage: Vec::new(),
            open: None,
        };
        reader.skip(done);
        reader
    }

    /// The log's identity.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The next entries: about `max_bytes` of them, or one frame if that is more. Waits up to
    /// `timeout` for the first.
    ///
    /// # Errors
    /// [`ReadError`]. Damaged records are no error: they are counted, logged and passed over.
    pub fn next(&mut self, max_bytes: usize, timeout: Duration) -> Result<Next, ReadError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes {
            let timeout = if entries.is_empty() { timeout } else { Duration::ZERO };
            let frame = match self.state.locate(&mut self.cursor, timeout) {
                Location::Tail(frame) => {
                    self.open = None;
                    frame
                }
                Location::File { records } => match self.read(records)? {
                    Some(frame) => frame,
                    None => continue,
                },
                end @ (Location::Nowhere | Location::End) if entries.is_empty() => {
                    // The last segment may only now be one that can go, and so may damaged records.
                    self.settle(self.released, None, Outcomes::default());
                    return Ok(if matches!(end, Location::End) { Next::End } else { Next::Idle });
                }
                Location::Nowhere | Location::End => break,
            };
            frame
                .entries(self.cursor, &mut entries)
                .map_err(|cause| ReadError::Record { lsn: frame.first(), cause })?;
            bytes += frame.len();
            self.returned = frame.last();
            self.cursor = frame.last().next();
        }
        Ok(Next::Entries(entries))
    }

    /// Goes on behind `done`, which an earlier process published by the ledger's account.
    ///
    /// # Errors
    /// [`ReadError::Behind`], when it cannot have been this log's.
    pub fn resume(&mut self, done: Lsn) -> Result<(), ReadError> {
        // Of what this process writes nothing is published before it resumes, and then no more
        // than it has read.
        let possible = if self.resumed { self.cursor } else { Lsn::new(self.first_new, 0) };
        if done >= possible && done.segment() >= self.first_new {
            return Err(ReadError::Behind { done, log: self.log });
        }
        self.resumed = true;
        self.skip(done);
        Ok(())
    }

    fn skip(&mut self, done: Lsn) {
        if done >= self.cursor {
            self.cursor = done.next();
            self.open = None;
        }
        self.release(done, None);
    }

    /// Everything up to `through` is done with, by the ledger's account: it may be removed.
    /// `newest` is when the record at `through` was received.
    pub fn release(&mut self, through: Lsn, newest: Option<Timestamp>) {
        self.release_up_to(through, newest, ReleasedBy::Ledger);
    }

    /// As [`Self::release`], by the publisher's account: this became of the records since the last
    /// time, none left out.
    pub fn settle(&mut self, through: Lsn, newest: Option<Timestamp>, outcomes: Outcomes) {
        self.release_up_to(through, newest, ReleasedBy::Publisher(outcomes));
    }

    fn release_up_to(&mut self, through: Lsn, newest: Option<Timestamp>, released_by: ReleasedBy) {
        self.released = through.max(self.released);
        if self.released >= self.returned {
            // With all that was returned goes the damage behind it.
            self.released = self.cursor.previous().max(self.released);
        }
        self.progress.save(self.released);
        let released = self.released;
        let gone = self.damage.extract_if(.., |(last, _)| *last <= released);
        let damaged = gone.map(|(_, records)| records).sum();
        for number in self.state.release(released, newest, released_by, damaged) {
            if self.open.as_ref().is_some_and(|open| open.number == number) {
                self.open = None;
            }
            // Without a maintenance the next start removes it.
            let _ = self.tasks.send(MaintenanceTask::Remove(number));
        }
    }

    /// The frame at the cursor out of its segment's file, which has `records` records; `None` when
    /// it is damaged, and the cursor then stands behind the damage.
    fn read(&mut self, records: u32) -> Result<Option<Frame>, ReadError> {
        let number = self.cursor.segment();
        let mut open = match self.open.take() {
            Some(open) if open.number == number => open,
            _ => self.open(number)?,
        };
        let mut found = open.find(self.cursor)?;
        if found.as_ref().is_none_or(|frame| frame.first() > self.cursor) {
            // Read ahead while it was still being written? Then it is there now.
            open.scanner.seek(open.done);
            found = open.find(self.cursor)?;
        }
        let next = match &found {
            Some(frame) => frame.first(),
            None => Lsn::new(number, records).next(),
        };
        if next > self.cursor {
            let lost = next.index() - self.cursor.index();
            metrics::damaged(lost);
            self.damage.push((next.previous(), u64::from(lost)));
            if let Some(suppressed) = DAMAGED.permit() {
                tracing::error!(
                    from = %self.cursor, records = lost, suppressed, path = %open.path.display(),
                    "records are damaged on disk and cannot be published; going on behind them"
                );
            }
            self.cursor = next;
        }
        if found.is_some() {
            open.done = open.scanner.position();
        }
        self.open = Some(open);
        Ok(found)
    }

    fn open(&self, number: u32) -> Result<OpenSegment, ReadError> {
        let path = dir::data_file(&dir::segment_dir(&self.segments, number));
        let file =
            File::open(&path).map_err(|cause| ReadError::Io { path: path.clone(), cause })?;
        Ok(OpenSegment { number, path, scanner: Scanner::new(file, self.log), done: 0 })
    }
}

impl OpenSegment {
    /// The first frame that ends at `cursor` or behind it.
    fn find(&mut self, cursor: Lsn) -> Result<Option<Frame>, ReadError> {
        loop {
            let frame = self
                .scanner
                .next()
                .map_err(|cause| ReadError::Io { path: self.path.clone(), cause })?;
            match frame {
                Some(frame) if frame.first().segment() != self.number || frame.last() < cursor => {}
                found => return Ok(found),
            }
        }
    }
}
