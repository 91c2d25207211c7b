//! Reads durable records in order, from memory or from the segments' files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::checkpoint::CheckpointFile;
use super::dir::{self, SEGMENTS};
use super::frame::{Frame, Scanner, is_unreadable};
use super::index::Location;
use super::maintenance::MaintenanceTask;
use super::opening::{Lineage, OpeningId};
use super::progress::{Position, Progress};
use super::self_audit::{Outcomes, ReleasedBy};
use super::{LogId, ReadError, Shared};
use crate::event::Timestamp;
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::permission::FileError;
use crate::record::{Entry, Lsn};

static DAMAGED: LogLimiter = LogLimiter::new();

/// How often a part of a segment is read before it counts as unreadable, and the pause in between:
/// a path to a disk that fails over is back by then, and publishing is not held up for long.
const READ_ATTEMPTS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Entries in order, at least one, all of them written by one opening: a ledger record has the
/// progress of one writer, so no batch spans two.
#[derive(Debug)]
pub struct Entries {
    /// The opening that wrote them.
    pub writer: OpeningId,
    /// In the order of their LSNs.
    pub entries: Vec<Entry>,
}

/// What there is to read.
#[derive(Debug)]
pub enum Next {
    /// At least one entry.
    Entries(Entries),
    /// Nothing was written within the time-out.
    Idle,
    /// Nothing will be written: the log has ended.
    End,
}

/// The one reader.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    segments: PathBuf,
    log: LogId,
    lineage: Lineage,
    tasks: Sender<MaintenanceTask>,
    progress: CheckpointFile<Position>,
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
    writer: OpeningId,
    path: PathBuf,
    scanner: Scanner,
    /// The file's offset behind the last frame that was returned.
    position: u64,
    /// Whether the disk did not return a part of it, after all attempts.
    unreadable: bool,
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        dir: &Path,
        log: LogId,
        lineage: Lineage,
        tasks: Sender<MaintenanceTask>,
        progress: CheckpointFile<Position>,
        released: Lsn,
    ) -> Self {
        let mut reader = Self {
            shared,
            segments: dir.join(SEGMENTS),
            log,
            lineage,
            tasks,
            progress,
            cursor: Lsn::ZERO,
            returned: Lsn::ZERO,
            released: Lsn::ZERO,
            damage: Vec::new(),
            open: None,
        };
        reader.skip(released);
        reader
    }

    /// The openings of this directory whose commits count as its progress, oldest first; the last
    /// one is this process's.
    #[must_use]
    pub fn lineage(&self) -> &[OpeningId] {
        &self.lineage.0
    }

    /// This process's opening.
    #[must_use]
    pub fn opening(&self) -> OpeningId {
        self.lineage.0.last().copied().unwrap_or_default()
    }

    /// The next entries: about `max_bytes` of them, or one frame if that is more. Waits up to
    /// `timeout` for the first.
    ///
    /// # Errors
    /// [`ReadError`]; calling again tries again. Records that are damaged or that the disk cannot
    /// read are no error: they are counted, logged and skipped.
    pub fn next(&mut self, max_bytes: usize, timeout: Duration) -> Result<Next, ReadError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut writer = None;
        while bytes < max_bytes {
            let timeout = if entries.is_empty() { timeout } else { Duration::ZERO };
            let is_other = |of| writer.is_some_and(|writer| writer != of);
            let frame = match self.shared.index.locate(&mut self.cursor, timeout) {
                // Another writer's records are the next batch's.
                Location::Tail(frame) if is_other(frame.writer()) => break,
                Location::File { writer: of, .. } if is_other(of) => break,
                Location::Tail(frame) => {
                    self.open = None;
                    frame
                }
                Location::File { writer, records, end } => match self.read(writer, records, end) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => continue,
                    // What was read before comes first; the next call meets the error again.
                    Err(_) if !entries.is_empty() => break,
                    Err(error) => return Err(error.into()),
                },
                end @ (Location::NotWritten | Location::End) if entries.is_empty() => {
                    // The last segment may only now be one that can go, and so may damaged records.
                    self.settle(self.released, None, Outcomes::default());
                    return Ok(if matches!(end, Location::End) { Next::End } else { Next::Idle });
                }
                Location::NotWritten | Location::End => break,
            };
            let before = entries.len();
            if let Err(cause) = frame.entries(self.cursor, &mut entries) {
                entries.truncate(before);
                // Read the frame again the next time.
                self.open = None;
                if entries.is_empty() {
                    return Err(ReadError::Record { lsn: frame.first(), cause });
                }
                break;
            }
            bytes += frame.len();
            writer = Some(frame.writer());
            self.returned = frame.last();
            self.cursor = frame.last().next();
        }
        Ok(Next::Entries(Entries { writer: writer.unwrap_or_default(), entries }))
    }

    /// Releases what the ledger lists as published, goes on behind it, and returns the last such record.
    pub fn resume(&mut self, progress: &Progress) -> Lsn {
        let released = self.shared.index.apply_progress(progress);
        self.skip(released);
        released
    }

    fn skip(&mut self, released: Lsn) {
        if released >= self.cursor {
            self.cursor = released.next();
            self.open = None;
        }
        self.release(released, None);
    }

    /// Releases everything up to `through`, which the ledger covers: it may be removed.
    /// `newest` is when the record at `through` was received.
    pub fn release(&mut self, through: Lsn, newest: Option<Timestamp>) {
        self.release_up_to(through, newest, ReleasedBy::Ledger);
    }

    /// Releases everything up to `through`, with the outcomes of all records since the last release.
    pub fn settle(&mut self, through: Lsn, newest: Option<Timestamp>, outcomes: Outcomes) {
        self.release_up_to(through, newest, ReleasedBy::Publisher(outcomes));
    }

    fn release_up_to(&mut self, through: Lsn, newest: Option<Timestamp>, released_by: ReleasedBy) {
        self.released = through.max(self.released);
        if self.released >= self.returned {
            // With all that was returned goes the damage behind it.
            self.released = self.cursor.previous().max(self.released);
        }
        let released = self.released;
        let skipped = self.damage.extract_if(.., |(last, _)| *last <= released);
        let damaged = skipped.map(|(_, records)| records).sum();
        let (removable, position) =
            self.shared.index.release(released, newest, released_by, damaged);
        if let Some(position) = position {
            self.progress.save(&position);
        }
        for number in removable {
            if self.open.as_ref().is_some_and(|open| open.number == number) {
                self.open = None;
            }
            // If the maintenance thread has ended, the next start removes it.
            let _ = self.tasks.send(MaintenanceTask::Remove(number));
        }
    }

    /// The frame at the cursor out of its segment's file, which has `records` records; `None` when
    /// it is damaged, and the cursor is then behind the damage.
    ///
    /// What the disk cannot read is damage, after some attempts: the rest must be published.
    ///
    /// The records end at `bytes` in the file, if that is given: behind them it has zeros, which
    /// are not worth reading.
    fn read(
        &mut self,
        writer: OpeningId,
        records: u32,
        bytes: Option<u64>,
    ) -> Result<Option<Frame>, FileError> {
        let number = self.cursor.segment();
        let end = Lsn::new(number, records).next();
        let mut open = match self.open.take() {
            Some(open) if open.number == number => open,
            _ => {
                let Some(open) = self.open(number, writer)? else {
                    self.skip_damage(end);
                    return Ok(None);
                };
                open
            }
        };
        open.scanner.limit(bytes.unwrap_or(u64::MAX));
        let mut found = open.find(self.cursor)?;
        open.scanner.limit(u64::MAX);
        let mut attempts = 1;
        while found.as_ref().is_none_or(|frame| frame.first() > self.cursor) {
            let unreadable = open.scanner.unreadable_bytes() > 0 && !open.unreadable;
            // Read ahead while it was still being written? Then it is there at the second attempt.
            if attempts == if unreadable { READ_ATTEMPTS } else { 2 } {
                break;
            }
            if unreadable {
                thread::sleep(READ_PAUSE);
            }
            open.scanner.seek(open.position);
            found = open.find(self.cursor)?;
            attempts += 1;
        }
        // Further unreadable parts of this file get no more than the usual second attempt.
        open.unreadable |= open.scanner.unreadable_bytes() > 0;
        let next = found.as_ref().map_or(end, Frame::first);
        if next > self.cursor {
            self.skip_damage(next);
        }
        if found.is_some() {
            open.position = open.scanner.position();
        }
        self.open = Some(open);
        Ok(found)
    }

    /// Counts and reports the records from the cursor to before `next` as damaged, and goes on
    /// there. Their segment is kept when it would be removed.
    fn skip_damage(&mut self, next: Lsn) {
        let lost = next.index() - self.cursor.index();
        metrics::damaged(lost);
        self.damage.push((next.previous(), u64::from(lost)));
        let _ = self.tasks.send(MaintenanceTask::KeepDamaged(self.cursor.segment()));
        if let Some(suppressed) = DAMAGED.permit() {
            let path = self.path(self.cursor.segment());
            tracing::error!(
                from = %self.cursor, records = lost, suppressed, path = %path.display(),
                "records are damaged or unreadable on disk and cannot be published; skipping \
                 them. Their segment is kept: see `livebridge wal damaged`"
            );
        }
        self.cursor = next;
    }

    fn path(&self, number: u32) -> PathBuf {
        dir::data_file(&dir::segment_dir(&self.segments, number))
    }

    /// Opens a segment's file; `None` when it is gone or cannot be opened for good.
    fn open(&self, number: u32, writer: OpeningId) -> Result<Option<OpenSegment>, FileError> {
        let path = self.path(number);
        for attempt in 1.. {
            match File::open(&path) {
                Ok(file) => {
                    let scanner = Scanner::new(file, self.log);
                    let open = OpenSegment {
                        number,
                        writer,
                        path,
                        scanner,
                        position: 0,
                        unreadable: false,
                    };
                    return Ok(Some(open));
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => break,
                Err(cause) if !is_unreadable(&cause) => {
                    return Err(FileError::at("read", &path)(cause));
                }
                Err(_) if attempt == READ_ATTEMPTS => break,
                Err(_) => thread::sleep(READ_PAUSE),
            }
        }
        Ok(None)
    }
}

impl OpenSegment {
    /// The first frame that ends at `cursor` or behind it.
    fn find(&mut self, cursor: Lsn) -> Result<Option<Frame>, FileError> {
        loop {
            let frame = self.scanner.next().map_err(FileError::at("read", &self.path))?;
            let Some(frame) = frame else { return Ok(None) };
            let is_ours = frame.first().segment() == self.number && frame.writer() == self.writer;
            if is_ours && frame.last() >= cursor {
                return Ok(Some(frame));
            }
        }
    }
}
