//! The only writer: takes what is queued, commits it as one group, answers all.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::appender::{Append, Inbox, ReplyRoutes};
use super::commit_delay::{CommitDelay, Wait};
use super::error::NotStored;
use super::frame::{Builder, Frame};
use super::index::Index;
use super::maintenance::MaintenanceTask;
use super::segment::{OVERGROWN_BYTES, Segment};
use super::{AppendError, Shared, StoreError};
use crate::metrics;
use crate::permission::FileError;
use crate::record::Lsn;

/// Records committed at once. More would only make the first of them wait longer.
const GROUP_MAX: usize = 2048;
/// A commit that takes longer is logged at debug level, with its steps.
const SLOW_COMMIT: Duration = Duration::from_millis(20);

pub(super) struct Writer {
    builder: Builder,
    inbox: Inbox,
    routes: ReplyRoutes,
    shared: Arc<Shared>,
    spares: Receiver<Segment>,
    tasks: Sender<MaintenanceTask>,
    active: Option<Active>,
}

/// The segment that records are added to.
struct Active {
    segment: Segment,
    next: Lsn,
}

impl Writer {
    pub(super) fn new(
        builder: Builder,
        inbox: Inbox,
        routes: ReplyRoutes,
        shared: Arc<Shared>,
        spares: Receiver<Segment>,
        tasks: Sender<MaintenanceTask>,
    ) -> Self {
        Self { builder, inbox, routes, shared, spares, tasks, active: None }
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
            self.shared.commit_timer.start();
            let bytes = group.iter().map(|append| append.bytes).sum();
            let stored = self.store(&group, bytes);
            self.inbox.discount(bytes);
            delay.record_end(self.inbox.len());
            let (mut answer, failure) = match stored {
                Ok(first) => (Ok(first), None),
                Err(NotStored::Rejected(reason)) => (Err(reason), None),
                Err(NotStored::Failed(error)) => (Err(AppendError::Failed), Some(error)),
            };
            self.routes.answer(&mut group, || {
                let lsn = answer?;
                answer = Ok(lsn.next());
                Ok(lsn)
            });
            if let Some(error) = failure {
                return Err(error);
            }
            self.shared.commit_timer.stop();
        }
        Ok(())
    }

    /// Makes the group durable, if there is space for its `bytes`. Returns its first record's LSN.
    fn store(&mut self, group: &[Append], bytes: usize) -> Result<Lsn, NotStored> {
        self.rotate()?;
        let Some(active) = self.active.as_mut().filter(|active| !active.is_overgrown()) else {
            return Err(self.shared.capacity.reject_without_segment());
        };
        self.shared.capacity.reserve(&mut active.segment, bytes as u64)?;
        Ok(active.commit(group, &mut self.builder, &self.shared.index)?)
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

    /// Changes to the spare segment when there is no active one, or it is full. Waits for the spare only
    /// if nothing can be written without it.
    fn rotate(&mut self) -> Result<(), StoreError> {
        if self.active.as_ref().is_some_and(|active| !active.segment.is_full()) {
            return Ok(());
        }
        let needed = self.active.as_ref().is_none_or(Active::is_overgrown);
        let wait = if needed { self.shared.capacity.segment_wait() } else { Duration::ZERO };
        let spare = match self.spares.recv_timeout(wait) {
            Ok(spare) => spare,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(StoreError::Panicked("maintenance")),
        };
        if needed {
            self.shared.capacity.record_space(true);
        }
        let number = spare.number();
        // If the maintenance thread has ended, the next rotation reports it.
        let _ = self.tasks.send(MaintenanceTask::CreateSpare);
        let active = Active { segment: spare, next: Lsn::new(number, 1) };
        if let Some(full) = self.active.replace(active) {
            self.retire(full);
        }
        // Last: from here on the reader may have the full segment removed, which must be closed.
        self.shared.index.begin_segment(number, self.builder.writer());
        Ok(())
    }

    fn retire(&self, Active { segment, next }: Active) {
        let (writer, records) = (self.builder.writer(), next.index() - 1);
        let _ = self.tasks.send(MaintenanceTask::Close { segment, writer, records });
    }
}

impl Active {
    /// Whether it takes no further group, even if there is no other segment.
    fn is_overgrown(&self) -> bool {
        self.segment.used_bytes() >= OVERGROWN_BYTES
    }

    /// Makes the group durable. Returns its first record's LSN.
    fn commit(
        &mut self,
        group: &[Append],
        builder: &mut Builder,
        index: &Index,
    ) -> Result<Lsn, FileError> {
        let Self { segment, next } = self;
        let started = Instant::now();
        let first = *next;
        let mut frames = Vec::new();
        for (at, append) in group.iter().enumerate() {
            builder.push(&append.record);
            if builder.is_full() || at + 1 == group.len() {
                let frame = builder.finish(*next, |bytes| segment.append(*next, bytes))?;
                *next = frame.last().next();
                frames.push(frame);
            }
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
        index.append_frames(frames, oldest, segment.used_bytes());
        Ok(first)
    }
}
