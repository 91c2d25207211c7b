//! The index: which records the log holds, where they are, and which of them are released.
//!
//! Everything is under one lock, which commits, batches, readiness checks and maintenance take for
//! short: no I/O happens under it. The self-audit is under it too: its counts must fit the index's.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::frame::Frame;
use super::opening::OpeningId;
use super::progress::{self, Extent, Position, Progress};
use super::recovery::FoundSegment;
use super::self_audit::{AuditBalance, AuditTotals, ReleasedBy, SelfAudit};
use super::tail::Tail;
use crate::event::Timestamp;
use crate::record::Lsn;

/// Behind every record.
const LAST: Lsn = Lsn::new(u32::MAX, u32::MAX);

/// What the log holds that is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The number of records.
    pub records: u64,
    /// Bytes on disk, with the released records of the oldest segment and the damaged segments that
    /// are kept.
    pub disk_bytes: u64,
    /// The number of segments with records.
    pub segments: usize,
    /// When the oldest record was received, as far as it is known.
    pub oldest: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) struct Index {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    segments: Segments,
    tail: Tail,
    /// The last released record.
    released: Lsn,
    /// How many records are not released.
    pending: u64,
    /// When the oldest of these was received.
    oldest: Option<Timestamp>,
    audit: SelfAudit,
    /// Bytes of damaged segments that are kept, and of segments that could not be removed.
    further_bytes: u64,
    /// No record will be added.
    ended: bool,
}

/// The segments with records and the one being written, by number.
#[derive(Debug)]
struct Segments(BTreeMap<u32, IndexedSegment>);

#[derive(Clone, Copy, Debug)]
struct IndexedSegment {
    writer: OpeningId,
    /// The last durable record's index.
    records: u32,
    disk_bytes: u64,
    /// No record will be added to it.
    ended: bool,
}

/// Where the record at a cursor is.
pub(super) enum Location {
    /// In memory.
    Tail(Frame),
    /// In the file of the cursor's segment, which has records up to this index.
    File {
        writer: OpeningId,
        records: u32,
        /// Where they end in the file at the latest, as long as it is being written.
        end: Option<u64>,
    },
    /// Not written yet.
    NotWritten,
    /// There are no more records and will be none.
    End,
}

impl Index {
    /// From what a start found. Of that, the records up to `released` are released already.
    pub(super) fn new(
        found: &[FoundSegment],
        released: Lsn,
        oldest: Option<Timestamp>,
        totals: AuditTotals,
    ) -> Self {
        let segment = |&FoundSegment { extent, disk_bytes }: &FoundSegment| {
            let Extent { number, writer, records } = extent;
            (number, IndexedSegment { writer, records, disk_bytes, ended: true })
        };
        let segments = Segments(found.iter().map(segment).collect());
        let AuditTotals { accepted_through, released_through, .. } = totals;
        // The reader releases those behind, which are then counted in the totals.
        let released = released.min(released_through.lsn);
        let pending = segments.count_between(released, LAST);
        let expected = segments.count_between(released_through.lsn, accepted_through.lsn);
        let mut audit = SelfAudit::new(totals, expected, pending - expected);
        let last = found.last().map(FoundSegment::last).unwrap_or_default();
        audit.set_positions(last, segments.position(released).unwrap_or_default());
        let inner = Inner {
            segments,
            tail: Tail::default(),
            released,
            pending,
            oldest,
            audit,
            further_bytes: 0,
            ended: false,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every update below leaves the index whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on records are added to this segment.
    pub(super) fn begin_segment(&self, number: u32, writer: OpeningId) {
        let mut inner = self.lock();
        inner.segments.end_last();
        let segment = IndexedSegment { writer, records: 0, disk_bytes: 0, ended: false };
        inner.segments.0.insert(number, segment);
    }

    /// Adds `frames`, which are durable; the first record was received at `oldest`.
    pub(super) fn append_frames(&self, frames: Vec<Frame>, oldest: Timestamp, disk_bytes: u64) {
        let mut inner = self.lock();
        if inner.pending == 0 {
            inner.oldest = Some(oldest);
        }
        for frame in frames {
            let records = u64::from(frame.count());
            inner.pending += records;
            inner.audit.accept(records, Position { writer: frame.writer(), lsn: frame.last() });
            if let Some(segment) = inner.segments.0.get_mut(&frame.first().segment()) {
                segment.records = frame.last().index();
                segment.disk_bytes = disk_bytes;
            }
            inner.tail.push(frame);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// No record will be added.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.segments.end_last();
        inner.ended = true;
        drop(inner);
        self.changed.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// The segment being written, and its bytes in use.
    pub(super) fn active(&self) -> Option<(u32, u64)> {
        let inner = self.lock();
        let (number, last) = inner.segments.0.last_key_value()?;
        (!last.ended).then_some((*number, last.disk_bytes))
    }

    /// Sets the bytes on disk that no segment of the index has.
    pub(super) fn set_further_bytes(&self, bytes: u64) {
        self.lock().further_bytes = bytes;
    }

    /// Finds the record at `cursor`, moving `cursor` to the next segment at a segment's end; waits
    /// up to `timeout` for one to be written.
    pub(super) fn locate(&self, cursor: &mut Lsn, timeout: Duration) -> Location {
        let mut inner = self.lock();
        match inner.locate(cursor) {
            Location::NotWritten if !timeout.is_zero() => {}
            location => return location,
        }
        inner = self.changed.wait_timeout(inner, timeout).unwrap_or_else(PoisonError::into_inner).0;
        inner.locate(cursor)
    }

    /// Applies the progress in the ledger, also to the self-audit, and returns the last published record.
    pub(super) fn apply_progress(&self, progress: &Progress) -> Lsn {
        let mut inner = self.lock();
        inner.audit.apply_progress(progress);
        let extent = |(&number, segment): (&u32, &IndexedSegment)| {
            let &IndexedSegment { writer, records, .. } = segment;
            Extent { number, writer, records }
        };
        progress::released_through(inner.segments.0.iter().map(extent), progress)
    }

    /// Releases everything up to `through`. Returns the segments that can be removed, and the
    /// position to keep.
    ///
    /// `newest` is when the record at `through` was received: later records are no older. `damaged`
    /// of them could not be read.
    pub(super) fn release(
        &self,
        through: Lsn,
        newest: Option<Timestamp>,
        released_by: ReleasedBy,
        damaged: u64,
    ) -> (Vec<u32>, Option<Position>) {
        let mut inner = self.lock();
        let records = inner.segments.count_between(inner.released, through);
        let position = inner.segments.position(through);
        inner.audit.release(records, position, released_by, damaged);
        inner.pending = inner.pending.saturating_sub(records);
        inner.released = through.max(inner.released);
        inner.oldest = if inner.pending == 0 { None } else { newest.or(inner.oldest) };
        let is_removable = |(number, segment): (&u32, &IndexedSegment)| {
            let last = Lsn::new(*number, segment.records);
            (segment.ended && last <= inner.released).then_some(*number)
        };
        let removable: Vec<u32> = inner.segments.0.iter().map_while(is_removable).collect();
        for number in &removable {
            inner.segments.0.remove(number);
        }
        (removable, position)
    }

    pub(super) fn stored(&self) -> Stored {
        let inner = self.lock();
        let segments = inner.segments.0.values();
        Stored {
            records: inner.pending,
            disk_bytes: segments.map(|segment| segment.disk_bytes).sum::<u64>()
                + inner.further_bytes,
            segments: inner.segments.0.len(),
            oldest: inner.oldest,
        }
    }

    /// The totals of the self-audit, to be saved.
    pub(super) fn audit_totals(&self) -> AuditTotals {
        self.lock().audit.totals()
    }

    pub(super) fn audit(&self) -> AuditBalance {
        let inner = self.lock();
        inner.audit.balance(inner.pending)
    }
}

impl Inner {
    fn locate(&mut self, cursor: &mut Lsn) -> Location {
        loop {
            match self.segments.0.get(&cursor.segment()) {
                Some(segment) if cursor.index() <= segment.records => {
                    let &IndexedSegment { writer, records, disk_bytes, ended } = segment;
                    let file =
                        Location::File { writer, records, end: (!ended).then_some(disk_bytes) };
                    return self.tail.take(*cursor).map_or(file, Location::Tail);
                }
                Some(segment) if !segment.ended => return Location::NotWritten,
                Some(_) | None => {}
            }
            let behind = cursor.segment().saturating_add(1)..;
            match self.segments.0.range(behind).next() {
                Some((&number, _)) => *cursor = Lsn::new(number, 1),
                None if self.ended => return Location::End,
                None => return Location::NotWritten,
            }
        }
    }
}

impl Segments {
    fn end_last(&mut self) {
        if let Some(mut last) = self.0.last_entry() {
            last.get_mut().ended = true;
        }
    }

    /// The last record up to `through`, with its writer; `None` when its segment is removed.
    fn position(&self, through: Lsn) -> Option<Position> {
        let (&number, segment) = self.0.range(..=through.segment()).next_back()?;
        let last = Lsn::new(number, segment.records).min(through);
        if last.index() > 0 {
            return Some(Position { writer: segment.writer, lsn: last });
        }
        let (&number, segment) = self.0.range(..number).next_back()?;
        Some(Position { writer: segment.writer, lsn: Lsn::new(number, segment.records) })
    }

    /// Records behind `from`, up to and with `through`.
    fn count_between(&self, from: Lsn, through: Lsn) -> u64 {
        let count = |(&number, segment): (&u32, &IndexedSegment)| {
            let start = if number == from.segment() { from.index() } else { 0 };
            let end = if number == through.segment() { through.index() } else { u32::MAX };
            u64::from(end.min(segment.records).saturating_sub(start))
        };
        if from >= through {
            return 0;
        }
        self.0.range(from.segment()..=through.segment()).map(count).sum()
    }
}
