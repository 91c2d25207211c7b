//! The back of the log: durable records in order, from memory or from the segments' files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::dir::{self, SEGMENTS};
use super::frame::{Frame, Scanner};
use super::maintenance::MaintenanceTask;
use super::opening::{OpeningId, Progress};
use super::progress::ProgressFile;
use super::self_audit::{Outcomes, ReleasedBy};
use super::state::{Location, State};
use super::{LogId, ReadError};
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::record::{Entry, Lsn, Timestamp};

static DAMAGED: LogLimiter = LogLimiter::new();

/// Entries in order, at least one, all of them written by one opening: a ledger record tells the
/// progress of one writer, so no batch spans two.
#[derive(Debug)]
pub struct Entries {
    /// Who wrote them.
    pub writer: OpeningId,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// What there is to read.
#[derive(Debug)]
pub enum Next {
    /// Entries.
    Entries(Entries),
    /// Nothing yet.
    Idle,
    /// Nothing, and there will be nothing: the log has ended.
    End,
}

/// The one reader.
#[derive(Debug)]
pub struct Reader {
    state: Arc<State>,
    segments: PathBuf,
    log: LogId,
    lineage: Vec<OpeningId>,
    tasks: Sender<MaintenanceTask>,
    progress: ProgressFile,
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
    /// The file's offset behind the last frame that was wanted.
    done: u64,
}

impl Reader {
    pub(super) fn new(
        state: Arc<State>,
        dir: &Path,
        log: LogId,
        lineage: Vec<OpeningId>,
        tasks: Sender<MaintenanceTask>,
        progress: ProgressFile,
        done: Lsn,
    ) -> Self {
        let mut reader = Self {
            state,
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
        reader.skip(done);
        reader
    }

    /// The openings of this directory whose commits count as its progress, oldest first; the last
    /// one is this process's.
    #[must_use]
    pub fn lineage(&self) -> &[OpeningId] {
        &self.lineage
    }

    /// This process's opening.
    #[must_use]
    pub fn opening(&self) -> OpeningId {
        self.lineage.last().copied().unwrap_or_default()
    }

    /// The next entries: about `max_bytes` of them, or one frame if that is more. Waits up to
    /// `timeout` for the first.
    ///
    /// # Errors
    /// [`ReadError`]. Damaged records are no error: they are counted, logged and passed over.
    pub fn next(&mut self, max_bytes: usize, timeout: Duration) -> Result<Next, ReadError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut writer = OpeningId::default();
        let is_other = |entries: &Vec<Entry>, writer, of| !entries.is_empty() && writer != of;
        while bytes < max_bytes {
            let timeout = if entries.is_empty() { timeout } else { Duration::ZERO };
            let frame = match self.state.locate(&mut self.cursor, timeout) {
                // Another writer's records are the next batch's.
                Location::Tail(frame) if is_other(&entries, writer, frame.writer()) => break,
                Location::File { writer: of, .. } if is_other(&entries, writer, of) => break,
                Location::Tail(frame) => {
                    self.open = None;
                    frame
                }
                Location::File { writer, records } => match self.read(writer, records)? {
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
            writer = frame.writer();
            self.returned = frame.last();
            self.cursor = frame.last().next();
        }
        Ok(Next::Entries(Entries { writer, entries }))
    }

    /// Goes on behind what the ledger says is published, and returns the last such record.
    pub fn resume(&mut self, progress: &Progress) -> Lsn {
        let done = self.state.published(progress);
        self.skip(done);
        done
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
        let released = self.released;
        let gone = self.damage.extract_if(.., |(last, _)| *last <= released);
        let damaged = gone.map(|(_, records)| records).sum();
        let (removable, position) = self.state.release(released, newest, released_by, damaged);
        if let Some(position) = position {
            self.progress.save(position);
        }
        for number in removable {
            if self.open.as_ref().is_some_and(|open| open.number == number) {
                self.open = None;
            }
            // Without a maintenance the next start removes it.
            let _ = self.tasks.send(MaintenanceTask::Remove(number));
        }
    }

    /// The frame at the cursor out of its segment's file, which has `records` records; `None` when
    /// it is damaged, and the cursor then stands behind the damage.
    fn read(&mut self, writer: OpeningId, records: u32) -> Result<Option<Frame>, ReadError> {
        let number = self.cursor.segment();
        let mut open = match self.open.take() {
            Some(open) if open.number == number => open,
            _ => self.open(number, writer)?,
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

    fn open(&self, number: u32, writer: OpeningId) -> Result<OpenSegment, ReadError> {
        let path = dir::data_file(&dir::segment_dir(&self.segments, number));
        let file =
            File::open(&path).map_err(|cause| ReadError::Io { path: path.clone(), cause })?;
        Ok(OpenSegment { number, writer, path, scanner: Scanner::new(file, self.log), done: 0 })
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
            let Some(frame) = frame else { return Ok(None) };
            let is_ours = frame.first().segment() == self.number && frame.writer() == self.writer;
            if is_ours && frame.last() >= cursor {
                return Ok(Some(frame));
            }
        }
    }
}
