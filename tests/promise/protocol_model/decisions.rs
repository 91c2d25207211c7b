//! The publisher's decisions, made by livebridge's own code: what is published (`Ledger`, `Batch`),
//! what is contended (`OpenCommits`), where a directory is resumed (`released_through`, `resolve`). This
//! module converts between the model's small numbers and the code's types.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use livebridge::event::{EventId, Timestamp};
use livebridge::ledger::{self, Commit, Ledger, first_offset};
use livebridge::publisher::{Batch, OpenCommits};
use livebridge::record::{self, Lsn, Record};
use livebridge::wal::{Entries, Extent, OpeningId, Position, released_through, resolve};

use super::state::{
    Directory, Entry, LedgerStep, Opening, Place, Process, Published, Segment, State, Written,
};
use super::steps::{Fault, Protocol};

/// One unit of the model's time, in which the window is expressed.
const UNIT: Duration = Duration::from_hours(1);

/// How the model identifies openings to livebridge.
///
/// With [`Fault::ProgressByLog`] all openings of a log have one identity, as when commits named the
/// log: progress is then by log and LSN alone.
fn identity(protocol: &Protocol, log: u8, opening: Opening) -> OpeningId {
    let by_log = protocol.fault == Some(Fault::ProgressByLog);
    OpeningId::from_bytes([if by_log { 200 + log } else { opening }; 16])
}

fn time(at: u8) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000).after(UNIT * u32::from(at))
}

/// The monotonic clock, which is independent of changes of the system clock.
fn instant(at: u8) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + UNIT * u32::from(at)
}

fn lsn((segment, index): Place) -> Lsn {
    Lsn::new(segment.into(), index.into())
}

fn place(lsn: Lsn) -> Place {
    (lsn.segment() as u8, lsn.index() as u8)
}

fn commit(protocol: &Protocol, written: &Written) -> Commit {
    Commit {
        publisher: identity(protocol, written.log, written.publisher),
        writer: identity(protocol, written.log, written.writer),
        first: lsn(written.first),
        last: lsn(written.last),
        newest: time(written.newest),
        ids: written.events.iter().map(|published| id(published.event)).collect(),
    }
}

fn id(event: u8) -> EventId {
    EventId { natural: u64::from(event) + 1, content: u64::from(event) + 1 }
}

/// The ledger in the memory of a process.
pub(crate) fn ledger(protocol: &Protocol, state: &State, process: usize) -> Ledger {
    let directory = &state.directories[process];
    let lineage = directory.lineage.iter();
    let lineage: Vec<_> =
        lineage.map(|opening| identity(protocol, directory.log, *opening)).collect();
    let window = protocol.window.map_or(Duration::from_hours(24 * 30), |units| UNIT * units.into());
    let mut ledger = Ledger::new(&lineage, ledger::Config { window, max_ids: 1000 });
    for step in &state.processes[process].ledger {
        match *step {
            LedgerStep::Apply { offset, at } => {
                let commit = commit(protocol, &state.topic[usize::from(offset)]);
                ledger.apply(&commit, instant(at));
            }
            LedgerStep::Expire { oldest, at } => ledger.expire(time(oldest), instant(at)),
        }
    }
    ledger
}

/// The offset at which a new reader of the ledger topic begins.
pub(crate) fn start(protocol: &Protocol, state: &State, process: usize) -> u8 {
    let (directory, released) = (&state.directories[process], state.processes[process].released);
    let unreleased = directory.unreleased(released);
    let oldest = unreleased.map(|(segment, place)| segment.entry(place).received).min();
    let oldest = oldest.unwrap_or(state.now + state.skew);
    let low = i64::from(state.low);
    let bounds = (low, state.stable().into());
    let retained = || (low..).zip(&state.topic[usize::from(state.low)..]);
    let offset_at = |since: Timestamp| {
        let found = retained().find(|(_, written)| time(written.newest) >= since);
        Ok::<_, Infallible>(found.map(|(offset, _)| offset))
    };
    let window = ledger(protocol, state, process).window();
    let Ok(offset) = first_offset(window, time(oldest), bounds, offset_at);
    u8::try_from(offset).expect("the topic is short")
}

/// The transaction of a batch, all by one writer; `None` when it contains only retries.
pub(crate) fn batch(
    protocol: &Protocol,
    state: &State,
    process: usize,
    taken: &[(&Segment, Place)],
) -> Option<Written> {
    let entries: Vec<_> = taken.iter().map(|(segment, place)| entry(segment, *place)).collect();
    let directory = &state.directories[process];
    let opening = state.processes[process].opening;
    let writer = taken.first()?.0.writer;
    let ledger = ledger(protocol, state, process);
    let writer_id = identity(protocol, directory.log, writer);
    let mut batch = Batch::new(Entries { writer: writer_id, entries });
    batch.deduplicate(&ledger);
    let commit = batch.to_commit(identity(protocol, directory.log, opening))?;
    let published = |id: &EventId| {
        let source = taken.iter().map(|(segment, place)| segment.entry(*place));
        let Entry { event, ordinal, at, .. } =
            *{ source }.find(|entry| self::id(entry.event) == *id).expect("it is of the batch");
        Published { event, ordinal, at }
    };
    let mut events: Vec<_> = commit.ids.iter().map(published).collect();
    if protocol.fault == Some(Fault::ReversedBatch) {
        events.reverse();
    }
    let newest = commit.newest.since(time(0)).as_secs() / UNIT.as_secs();
    Some(Written {
        outcome: super::state::Outcome::Open,
        log: directory.log,
        publisher: opening,
        writer,
        first: place(commit.first),
        last: place(commit.last),
        newest: newest as u8,
        directory: (process as u8, directory.replaced),
        events,
    })
}

fn entry(segment: &Segment, place: Place) -> record::Entry {
    let entry = segment.entry(place);
    let record = Record {
        event_type: None,
        id: id(entry.event),
        received_at: time(entry.received),
        occurred_at: None,
        key: None,
        has_stream: false,
        body: bytes::Bytes::new(),
    };
    record::Entry { lsn: lsn(place), record }
}

/// Whether the transaction at `mine`, the last in the topic, must be aborted because of another.
pub(crate) fn is_contended(protocol: &Protocol, state: &State, process: &Process) -> bool {
    let (Some(next), Some(mine)) = (process.next, process.mine) else { return false };
    let mut open_commits = OpenCommits::default();
    let own = commit(protocol, &state.topic[usize::from(mine)]);
    for offset in next..=mine {
        let bytes = commit(protocol, &state.topic[usize::from(offset)]).encode();
        open_commits.record(own.publisher, offset.into(), &bytes);
    }
    open_commits.is_contended(&own, mine.into())
}

/// The last record of a directory that is published according to the ledger.
pub(crate) fn resume(protocol: &Protocol, state: &State, process: usize) -> Place {
    let extents = extents(protocol, &state.directories[process]);
    place(released_through(extents.into_iter(), ledger(protocol, state, process).progress()))
}

/// The last record of a directory that is published according to the directory's own progress.
pub(crate) fn reopen(protocol: &Protocol, directory: &Directory) -> Place {
    let Some((writer, at)) = directory.position else { return (0, 0) };
    let position = Position { writer: identity(protocol, directory.log, writer), lsn: lsn(at) };
    place(resolve(extents(protocol, directory).into_iter(), position))
}

fn extents(protocol: &Protocol, directory: &Directory) -> Vec<Extent> {
    let extent = |segment: &Segment| Extent {
        number: segment.number.into(),
        writer: identity(protocol, directory.log, segment.writer),
        records: segment.entries.len() as u32,
    };
    directory.segments.iter().map(extent).collect()
}
