//! What a publisher publishes: the log, or the events of a `replay` or `recover` command. What
//! differs between the two is decided here, but for a publisher without a ledger
//! ([`BatchSource::has_ledger`]).

use std::time::Duration;

use super::batch::Batch;
use super::events::EventSource;
use super::quarantine::Quarantine;
use crate::event::Timestamp;
use crate::kafka::{Failure, RejectedMessage};
use crate::ledger::{self, Commit, Ledger};
use crate::permission::FileError;
use crate::record::Lsn;
use crate::wal::{Next, OpeningId, Progress, ReadError, Reader};

/// Where batches come from, and where rejected records go.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub(super) enum BatchSource {
    /// The log. A rejected record becomes a dead letter, or a file in the quarantine.
    Log { reader: Reader, quarantine: Quarantine },
    /// The events of a command. A rejected event is reported to the command.
    Events(EventSource),
}

/// What there is to publish next.
#[derive(Debug)]
pub(super) enum Input {
    /// A batch that is not empty.
    Batch(Batch),
    /// Nothing yet.
    Idle,
    /// Nothing, and there will be nothing.
    End,
}

impl BatchSource {
    /// The opening that its commits name as their publisher.
    pub(super) fn opening(&self) -> OpeningId {
        match self {
            Self::Log { reader, .. } => reader.opening(),
            Self::Events(events) => events.opening,
        }
    }

    /// Whether each batch has a ledger record.
    pub(super) fn has_ledger(&self) -> bool {
        match self {
            Self::Log { .. } => true,
            Self::Events(events) => events.has_ledger(),
        }
    }

    /// The next batch: about `max_bytes` of records. Waits up to `timeout` for the first.
    ///
    /// # Errors
    /// [`ReadError`]; calling again tries again.
    pub(super) fn next(&mut self, max_bytes: usize, timeout: Duration) -> Result<Input, ReadError> {
        match self {
            Self::Log { reader, .. } => Ok(match reader.next(max_bytes, timeout)? {
                Next::Entries(entries) => Input::Batch(Batch::new(entries)),
                Next::Idle => Input::Idle,
                Next::End => Input::End,
            }),
            Self::Events(events) => Ok(events.next(max_bytes, timeout)),
        }
    }

    /// Continues after what the ledger lists as published, and returns the last such record.
    pub(super) fn resume(&mut self, progress: &Progress) -> Lsn {
        match self {
            Self::Log { reader, .. } => reader.resume(progress),
            Self::Events(_) => progress.of(self.opening()),
        }
    }

    /// The offset from which on the ledger is read, for a dedup window of `window` and an oldest
    /// record of `oldest`; see [`ledger::first_offset`].
    pub(super) fn ledger_start<E>(
        &mut self,
        window: Duration,
        oldest: Timestamp,
        bounds: (i64, i64),
        offset_at: impl FnMut(Timestamp) -> Result<Option<i64>, E>,
    ) -> Result<i64, E> {
        match self {
            Self::Log { .. } => ledger::first_offset(window, oldest, bounds, offset_at),
            // What was published before is found in the topics.
            Self::Events(events) => Ok(events.ledger_start(bounds)),
        }
    }

    /// Drops the ids from `commit` that cannot be of an event to publish.
    pub(super) fn retain_relevant(&self, commit: &mut Commit) {
        match self {
            Self::Log { .. } => {}
            Self::Events(events) => events.retain_relevant(commit),
        }
    }

    /// Completes what must be done before `batch` is sent without its rejected records.
    pub(super) fn prepare(&mut self, batch: &mut Batch) -> Result<(), FileError> {
        match self {
            Self::Log { quarantine, .. } => batch.store(quarantine)?,
            Self::Events(events) => events.remove_denied(batch),
        }
        Ok(())
    }

    /// Kafka rejects these messages of `batch`, each for itself: directs their records elsewhere, and
    /// returns how many.
    pub(super) fn reject(&mut self, batch: &mut Batch, rejected: &[RejectedMessage]) -> usize {
        match self {
            Self::Log { .. } => rejected
                .iter()
                .filter(|message| batch.reject(message.index, &message.reason))
                .count(),
            Self::Events(events) => events.reject(batch, rejected),
        }
    }

    /// Kafka denies writing to `topic`. The log's records wait until it is granted; a command publishes
    /// to the other topics. Returns whether the next attempt differs from this one.
    pub(super) fn deny(&mut self, topic: &str, reason: &Failure) -> bool {
        match self {
            Self::Log { .. } => false,
            Self::Events(events) => {
                events.denied.insert(topic.to_owned(), reason.to_string()).is_none()
            }
        }
    }

    /// Gives quarantined records their final names once `batch`, or all of the log, is published.
    pub(super) fn finalize(
        &mut self,
        batch: Option<&Batch>,
        ledger: &Ledger,
    ) -> Result<(), FileError> {
        match (self, batch) {
            (Self::Log { quarantine, .. }, Some(batch)) => quarantine.finalize(batch, ledger),
            (Self::Log { quarantine, .. }, None) => quarantine.finalize_all(ledger),
            (Self::Events(_), _) => Ok(()),
        }
    }

    /// `batch` is published, and its space in the log may be released (I3).
    pub(super) fn settle(&mut self, batch: &Batch) {
        let outcomes = batch.record_outcomes();
        match self {
            Self::Log { reader, .. } => {
                if let Some(last) = batch.entries().last() {
                    reader.settle(last.lsn, Some(last.record.received_at), outcomes);
                }
            }
            Self::Events(events) => events.on_published(),
        }
    }
}
