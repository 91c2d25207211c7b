//! The only writer: takes what is queued, commits it as one group, answers all.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::appender::{Append, Inbox, ReplyRoutes};
use super::commit_delay::{CommitDelay, Wait};
use super::frame::{Builder, Frame};
use super::maintenance::MaintenanceTask;
use super::segment::{OVERGROWN_BYTES, Segment};
use super::state::State;
use super::{AppendError, LogId, OpeningId, StoreError};
use crate::metrics;
use crate::permission::FileError;
use crate::record::Lsn;

/// Records committed at once. More would only make the first of them wait longer.
const GROUP_MAX: usize = 2048;
/// Callbacks are rejected when there is no segment, or no space in it, within this time, and then at
/// once until there is.
const SPARE_WAIT: Duration = Duration::from_secs(1);

/// A commit that takes longer is logged at debug level, with its steps.
const SLOW_COMMIT: Duration = Duration::from_millis(20);
/// The pause between attempts to reserve space.
const FULL_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Writer {
    log: LogId,
    opening: OpeningId,
    inbox: Inbox,
    routes: ReplyRoutes,
    state: Arc<State>,
    spares: Receiver<Segment>,
    tasks: Sender<MaintenanceTask>,
    builder: Builder,
    active: Option<Active>,
    /// Whether the last wait for a segment brought none.
    starving: bool,
    /// When space could last not be reserved; `None` while it can.
    full: Option<Instant>,
}

/// The segment that records are added to.
struct Active {
    segment: Segment,
    next: Lsn,
}

/// What became of a group.
enum Stored {
    /// It is durable; its first record has this LSN.
    From(Lsn),
    /// Nothing was written and nothing has failed.
    Rejected(AppendError),
}

impl Writer {
    pub(super) fn new(
        (log, opening): (LogId, OpeningId),
        (inbox, routes): (Inbox, ReplyRoutes),
        state: Arc<State>,
        spares: Receiver<Segment>,
        tasks: Sender<MaintenanceTask>,
    ) -> Self {
        Self {
            log,
            opening,
            inbox,
            routes,
            state,
            spares,
            tasks,
            builder: Builder::new(),
            active: None,
            starving: false,
            full: None,
        }
    }

    /// Commits groups until every appender is gone, or until a commit fails: then its group and
    /// what is queued are answered with an error, and the log accepts nothing more (I6).
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        let end = self.commit_groups();
        self.routes.close();
        match (&end, self.active.take()) {
            (Ok(()), Some(active)) => self.retire(active),
            (Ok(()), None) => {}
            (Err(_), active) => {
                let spares = std::iter::from_fn(|| self.spares.try_recv().ok());
                let active = active.map(|active| active.segment);
                spares.chain(active).for_each(Segment::abandon);
            }
        }
        end
    }

    fn commit_groups(&mut self) -> Result<(), StoreError> {
        let mut group = Vec::with_capacity(GROUP_MAX);
        let mut delay = CommitDelay::new(Instant::now());
        while self.take_group(&mut delay, &mut group) {
            self.state.set_busy(true);
            let bytes = group.iter().map(|append| append.bytes).sum();
            let stored = self.store(&group, bytes);
            self.inbox.discount(bytes);
            delay.record_end(self.inbox.len());
            let mut answer = match stored {
                Ok(Stored::From(first)) => Ok(first),
                Ok(Stored::Rejected(reason)) => Err(reason),
                Err(_) => Err(AppendError::Failed),
            };
            self.routes.answer(&mut group, || {
                let lsn = answer?;
                answer = Ok(lsn.next());
                Ok(lsn)
            });
            stored?;
            self.state.set_busy(false);
        }
        Ok(())
    }

    /// Makes the group durable, if there is space for its `bytes`.
    fn store(&mut self, group: &[Append], bytes: usize) -> Result<Stored, StoreError> {
        self.rotate()?;
        let Some(active) = self.active.as_mut().filter(|active| !active.is_overgrown()) else {
            return Ok(Stored::Rejected(AppendError::DiskFull));
        };
        if let Err(reason) = self.state.room() {
            return Ok(Stored::Rejected(reason));
        }
        if !reserve(&mut active.segment, bytes as u64, &mut self.full, &self.state)? {
            return Ok(Stored::Rejected(AppendError::DiskFull));
        }
        Ok(active.commit(group, &mut self.builder, (self.log, self.opening), &self.state)?)
    }

    /// Takes the next group; `false` when every appender is gone and nothing is left.
    fn take_group(&self, delay: &mut CommitDelay, group: &mut Vec<Append>) -> bool {
        let queued = self.inbox.wait(1, None);
        if let Some(Wait { count, until }) = delay.next_wait(Instant::now(), queued) {
            let count = count.min(GROUP_MAX);
            delay.record_wait(self.inbox.wait(count, Some(until)) - queued);
        }
        self.inbox.take(group, GROUP_MAX);
        delay.record_start(Instant::now(), group.len());
        !group.is_empty()
    }

    /// Goes on to the spare segment when there is none yet or the active one is full.
    ///
    /// A spare that is not ready is waited for only when nothing can be written without it.
    fn rotate(&mut self) -> Result<(), StoreError> {
        if self.active.as_ref().is_some_and(|active| !active.segment.is_full()) {
            return Ok(());
        }
        let needed = self.active.as_ref().is_none_or(Active::is_overgrown);
        let wait = if needed && !self.starving { SPARE_WAIT } else { Duration::ZERO };
        let spare = match self.spares.recv_timeout(wait) {
            Ok(spare) => spare,
            Err(RecvTimeoutError::Timeout) => {
                self.starving = needed;
                return Ok(());
            }
            Err(RecvTimeoutError::Disconnected) => return Err(StoreError::Panicked("maintenance")),
        };
        self.starving = false;
        let number = spare.number();
        // A maintenance that is gone shows at the next rotation.
        let _ = self.tasks.send(MaintenanceTask::CreateSpare);
        let active = Active { segment: spare, next: Lsn::new(number, 1) };
        if let Some(full) = self.active.replace(active) {
            self.retire(full);
        }
        // Last: from here on the reader may have the full segment removed, which must be closed.
        self.state.begin_segment(number, self.opening);
        Ok(())
    }

    fn retire(&self, Active { segment, next }: Active) {
        let (writer, records) = (self.opening, next.index() - 1);
        let _ = self.tasks.send(MaintenanceTask::Close { segment, writer, records });
    }
}

impl Active {
    /// Whether it takes no further group, even if there is no other segment.
    fn is_overgrown(&self) -> bool {
        self.segment.used_bytes() >= OVERGROWN_BYTES
    }

    /// Makes the group durable.
    fn commit(
        &mut self,
        group: &[Append],
        builder: &mut Builder,
        (log, opening): (LogId, OpeningId),
        state: &State,
    ) -> Result<Stored, FileError> {
        let Self { segment, next } = self;
        let started = Instant::now();
        let first = *next;
        let mut frames = Vec::new();
        let mut close = |builder: &mut Builder, next: &mut Lsn| -> Result<(), FileError> {
            let frame: Frame =
                builder.finish(log, opening, *next, |bytes| segment.append(*next, bytes))?;
            *next = frame.last().next();
            frames.push(frame);
            Ok(())
        };
        for append in group {
            builder.push(&append.record);
            if builder.is_full() {
                close(builder, next)?;
            }
        }
        if !builder.is_empty() {
            close(builder, next)?;
        }
        let appended = Instant::now();
        segment.flush()?;
        let written = Instant::now();
        segment.sync()?;
        let synced = Instant::now();
        let bytes = frames.iter().map(Frame::len).sum();
        metrics::committed(group.len(), bytes, synced - started, synced - appended);
        if synced - started > SLOW_COMMIT {
            tracing::debug!(
                records = group.len(), bytes, append = ?appended - started,
                write = ?written - appended, sync = ?synced - written, "a slow commit"
            );
        }
        let oldest = group[0].record.received_at;
        state.append_frames(frames, oldest, segment.used_bytes());
        Ok(Stored::From(first))
    }
}

/// Reserves space for a group of `bytes`, so that it does not fail for lack of it. `false` when there
/// is none, at once if the last attempt, at `full`, found none either.
fn reserve(
    segment: &mut Segment,
    bytes: u64,
    full: &mut Option<Instant>,
    state: &State,
) -> Result<bool, FileError> {
    if full.is_some_and(|since| since.elapsed() < FULL_PAUSE) {
        return Ok(false);
    }
    let deadline = Instant::now() + SPARE_WAIT;
    let mut reserved = segment.reserve(bytes)?;
    while !reserved && full.is_none() && Instant::now() < deadline {
        thread::sleep(FULL_PAUSE);
        reserved = segment.reserve(bytes)?;
    }
    let was_full = full.is_some();
    *full = (!reserved).then(Instant::now);
    match (was_full, reserved) {
        (false, true) => return Ok(true),
        (true, true) => tracing::info!("the log accepts callbacks again: its segment can grow"),
        (false, false) => tracing::error!(
            "callbacks are rejected with 503 until the disk has space for them; what is stored is \
             still published"
        ),
        (true, false) => {}
    }
    state.set_full(*full);
    Ok(reserved)
}
