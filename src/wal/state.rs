//! What writer, reader and maintenance share: which records there are, the newest of them in memory.
//!
//! Everything is under one lock, which commits, batches, readiness checks and maintenance take for
//! short: no I/O happens under it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::capacity::Capacity;
use super::dir::FoundSegment;
use super::frame::Frame;
use super::opening::{self, Extent, OpeningId, Position, Progress};
use super::segment::OVERGROWN_BYTES;
use super::self_audit::{Audit, AuditTotals, MissingRecords, Outcomes, ReleasedBy};
use super::{AppendError, Limits};
use crate::event::Timestamp;
use crate::metrics;
use crate::record::Lsn;

/// Bytes of the newest frames kept in memory, so that a reader that keeps up reads no files.
const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Behind every record.
const LAST: Lsn = Lsn::new(u32::MAX, u32::MAX);

/// What the log holds that is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Records.
    pub records: u64,
    /// Bytes on disk, with the released records of the oldest segment and the damaged segments that
    /// are kept.
    pub disk_bytes: u64,
    /// Segments with records.
    pub segments: usize,
    /// When the oldest record was received, as far as it is known.
    pub oldest: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
    created: Instant,
    /// When the writer began with its group, in milliseconds after `created`; 0 when it waits for one.
    busy_since: AtomicU64,
    pub(super) capacity: Capacity,
}

#[derive(Debug)]
struct Inner {
    segments: BTreeMap<u32, SegmentState>,
    tail: VecDeque<Frame>,
    tail_bytes: usize,
    released: Lsn,
    pending: u64,
    oldest: Option<Timestamp>,
    totals: AuditTotals,
    /// Records up to here were counted as released before this process.
    counted: Lsn,
    /// Records that this start expected and did not find.
    missing: Option<MissingRecords>,
    /// Bytes of damaged segments that are kept, and of segments that could not be removed.
    further_bytes: u64,
    /// No record will be added.
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
struct SegmentState {
    writer: OpeningId,
    /// The last durable record's index.
    records: u32,
    disk_bytes: u64,
    /// No record will be added to it.
    ended: bool,
}

/// Where the record that a reader wants is.
pub(super) enum Location {
    /// Here.
    Tail(Frame),
    /// In the file of the cursor's segment, which has records up to this index.
    File {
        writer: OpeningId,
        records: u32,
        /// Where they end in the file at the latest, as long as it is being written.
        end: Option<u64>,
    },
    /// Not written yet.
    Nowhere,
    /// There are no more records and will be none.
    End,
}

impl State {
    /// `done` is the last record of `found` that is released.
    pub(super) fn new(
        found: &[FoundSegment],
        done: Lsn,
        oldest: Option<Timestamp>,
        totals: AuditTotals,
        limits: Limits,
    ) -> Self {
        let segment = |found: &FoundSegment| SegmentState {
            writer: found.writer,
            records: found.records,
            disk_bytes: found.disk_bytes,
            ended: true,
        };
        let mut inner = Inner {
            segments: found.iter().map(|found| (found.number, segment(found))).collect(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            released: Lsn::ZERO,
            pending: found.iter().map(|found| u64::from(found.records)).sum(),
            oldest,
            totals,
            counted: done.min(totals.done.lsn),
            missing: None,
            further_bytes: 0,
            ended: false,
        };
        let expected = inner.count_between(totals.done.lsn, totals.through.lsn);
        let further = inner.count_between(inner.counted, LAST) - expected;
        inner.missing = inner.totals.reconcile(expected, further);
        let last = found.last().map(FoundSegment::last).unwrap_or_default();
        inner.totals.through = last;
        inner.totals.done = inner.position(inner.counted).unwrap_or_default();
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            created: Instant::now(),
            busy_since: AtomicU64::new(0),
            capacity: Capacity::new(limits),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every update below leaves the state whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on records are added to this segment.
    pub(super) fn begin_segment(&self, number: u32, writer: OpeningId) {
        let mut inner = self.lock();
        inner.close_last();
        let segment = SegmentState { writer, records: 0, disk_bytes: 0, ended: false };
        inner.segments.insert(number, segment);
    }

    /// Adds `frames`, which are durable; the first record was received at `oldest`.
    pub(super) fn append_frames(&self, frames: Vec<Frame>, oldest: Timestamp, disk_bytes: u64) {
        let mut inner = self.lock();
        if inner.pending == 0 {
            inner.oldest = Some(oldest);
        }
        for frame in frames {
            inner.pending += u64::from(frame.count());
            let through = Position { writer: frame.writer(), lsn: frame.last() };
            inner.totals.accept(u64::from(frame.count()), through);
            if let Some(segment) = inner.segments.get_mut(&frame.first().segment()) {
                segment.records = frame.last().index();
                segment.disk_bytes = disk_bytes;
            }
            inner.tail_bytes += frame.len();
            inner.tail.push_back(frame);
        }
        while inner.tail_bytes > TAIL_BYTES_MAX {
            inner.drop_front();
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// No record will be added.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.close_last();
        inner.ended = true;
        drop(inner);
        self.changed.notify_one();
    }

    /// The writer begins with a group, or is done with it.
    pub(super) fn set_busy(&self, busy: bool) {
        let since = if busy { self.now() } else { 0 };
        self.busy_since.store(since, Ordering::Relaxed);
    }

    /// For how long the writer has been at its group.
    pub(super) fn busy(&self) -> Duration {
        match self.busy_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    /// Never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// The segment being written, and its bytes in use.
    pub(super) fn active(&self) -> Option<(u32, u64)> {
        self.lock().active()
    }

    /// Whether an append would be accepted now.
    pub(super) fn ready(&self) -> Result<(), AppendError> {
        let inner = self.lock();
        if inner.ended {
            return Err(AppendError::Failed);
        }
        let active = inner.active();
        drop(inner);
        self.capacity.ready(active.is_some_and(|(_, bytes)| bytes < OVERGROWN_BYTES))
    }

    pub(super) fn set_further_bytes(&self, bytes: u64) {
        self.lock().further_bytes = bytes;
    }

    /// Finds the record at `cursor`, moving `cursor` to the next segment at a segment's end; waits
    /// up to `timeout` for one to be written.
    pub(super) fn locate(&self, cursor: &mut Lsn, timeout: Duration) -> Location {
        let mut inner = self.lock();
        match inner.locate(cursor) {
            Location::Nowhere if !timeout.is_zero() => {}
            location => return location,
        }
        inner = self.changed.wait_timeout(inner, timeout).unwrap_or_else(PoisonError::into_inner).0;
        inner.locate(cursor)
    }

    /// Applies what the ledger says to the self-audit. Returns the last record of this log that is
    /// published.
    pub(super) fn apply_progress(&self, progress: &Progress) -> Lsn {
        let mut inner = self.lock();
        let missing = inner.missing.take();
        inner.missing = missing.and_then(|missing| inner.totals.find_missing(missing, progress));
        let extent = |(&number, segment): (&u32, &SegmentState)| {
            let &SegmentState { writer, records, .. } = segment;
            Extent { number, writer, records }
        };
        opening::published(inner.segments.iter().map(extent), progress)
    }

    /// Everything up to `through` is published. Returns the segments that can be removed, and the
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
        let before = inner.released.max(inner.counted);
        let records = inner.count_between(before, through);
        let position = inner.position(through);
        inner.totals.release(records, position, released_by, damaged);
        inner.pending -= inner.count_between(inner.released, through).min(inner.pending);
        inner.released = through.max(inner.released);
        inner.oldest = if inner.pending == 0 { None } else { newest.or(inner.oldest) };
        let done = |(number, segment): (&u32, &SegmentState)| {
            let last = Lsn::new(*number, segment.records);
            (segment.ended && last <= inner.released).then_some(*number)
        };
        let removable: Vec<u32> = inner.segments.iter().map_while(done).collect();
        for number in &removable {
            inner.segments.remove(number);
        }
        (removable, position)
    }

    /// Sets the metrics of what is stored, and of the self-audit.
    pub(super) fn update_metrics(&self) {
        let Stored { records, disk_bytes, segments, oldest } = self.stored();
        metrics::stored(records, disk_bytes, segments, oldest);
        let (_, audit) = self.totals();
        let missing = audit.missing();
        let Audit { accepted, pending, outcomes, by_ledger, damaged, since } = audit;
        let Outcomes { published, absorbed, dead_lettered, quarantined } = outcomes;
        let settled = [published, absorbed, dead_lettered, quarantined, by_ledger, damaged];
        metrics::audit(&metrics::SelfAuditTotals { accepted, settled, pending, missing, since });
    }

    pub(super) fn stored(&self) -> Stored {
        let inner = self.lock();
        Stored {
            records: inner.pending,
            disk_bytes: inner.segments.values().map(|segment| segment.disk_bytes).sum::<u64>()
                + inner.further_bytes,
            segments: inner.segments.len(),
            oldest: inner.oldest,
        }
    }
}

impl State {
    /// The totals to be saved, and the audit that they give.
    pub(super) fn totals(&self) -> (AuditTotals, Audit) {
        let inner = self.lock();
        let before = inner.released.max(inner.counted);
        let pending = inner.count_between(before, LAST);
        (inner.totals, inner.totals.audit(pending))
    }
}

impl Inner {
    fn active(&self) -> Option<(u32, u64)> {
        let (number, last) = self.segments.last_key_value()?;
        (!last.ended).then_some((*number, last.disk_bytes))
    }

    fn close_last(&mut self) {
        if let Some(mut last) = self.segments.last_entry() {
            last.get_mut().ended = true;
        }
    }

    fn drop_front(&mut self) {
        if let Some(frame) = self.tail.pop_front() {
            self.tail_bytes -= frame.len();
        }
    }

    fn locate(&mut self, cursor: &mut Lsn) -> Location {
        loop {
            match self.segments.get(&cursor.segment()) {
                Some(segment) if cursor.index() <= segment.records => {
                    let &SegmentState { writer, records, disk_bytes, ended } = segment;
                    let file =
                        Location::File { writer, records, end: (!ended).then_some(disk_bytes) };
                    return self.take(*cursor).map_or(file, Location::Tail);
                }
                Some(segment) if !segment.ended => return Location::Nowhere,
                Some(_) | None => {}
            }
            let behind = cursor.segment().saturating_add(1)..;
            match self.segments.range(behind).next() {
                Some((&number, _)) => *cursor = Lsn::new(number, 1),
                None if self.ended => return Location::End,
                None => return Location::Nowhere,
            }
        }
    }

    /// The frame with `cursor` out of the tail, and what is before it.
    fn take(&mut self, cursor: Lsn) -> Option<Frame> {
        while self.tail.front().is_some_and(|frame| frame.last() < cursor) {
            self.drop_front();
        }
        if self.tail.front()?.first() > cursor {
            return None;
        }
        let frame = self.tail.front().cloned();
        self.drop_front();
        frame
    }

    /// The last record up to `through`, with its writer; `None` when its segment is removed.
    fn position(&self, through: Lsn) -> Option<Position> {
        let (&number, segment) = self.segments.range(..=through.segment()).next_back()?;
        let last = Lsn::new(number, segment.records).min(through);
        if last.index() > 0 {
            return Some(Position { writer: segment.writer, lsn: last });
        }
        let (&number, segment) = self.segments.range(..number).next_back()?;
        Some(Position { writer: segment.writer, lsn: Lsn::new(number, segment.records) })
    }

    /// Records behind `from`, up to and with `through`.
    fn count_between(&self, from: Lsn, through: Lsn) -> u64 {
        let count = |(&number, segment): (&u32, &SegmentState)| {
            let start = if number == from.segment() { from.index() } else { 0 };
            let end = if number == through.segment() { through.index() } else { u32::MAX };
            u64::from(end.min(segment.records).saturating_sub(start))
        };
        if from >= through {
            return 0;
        }
        self.segments.range(from.segment()..=through.segment()).map(count).sum()
    }
}
