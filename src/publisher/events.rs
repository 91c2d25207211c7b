//! The events of a command as the publisher's source.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::batch::Batch;
use super::replay::{Event, RejectedEvent, Target};
use super::source::Input;
use crate::event::EventId;
use crate::kafka::{self, Deadline, KafkaError, RejectedMessage, text};
use crate::ledger::Commit;
use crate::record::Lsn;
use crate::wal::OpeningId;

/// A command fails when nothing was published for this time: a reader, which waits for the abort of
/// an abandoned transaction, fails before and names the cause.
pub(super) const PROGRESS_TIMEOUT: Duration =
    kafka::READ_STALLED.saturating_add(Duration::from_secs(30));

/// The events of a command, numbered in their order.
#[derive(Debug)]
pub(super) struct EventSource {
    pub(super) target: Target,
    pub(super) opening: OpeningId,
    /// Of commits of others, only these ids matter: all of them would not fit into memory.
    pub(super) ids: HashSet<EventId>,
    pub(super) events: Receiver<Vec<Event>>,
    pub(super) rejected: Sender<RejectedEvent>,
    pub(super) deadline: Deadline,
    /// The number of the last event.
    pub(super) last: Lsn,
    /// Where the ledger is followed from, once it was opened.
    pub(super) ledger_start: Option<i64>,
    /// Topics that may not be written, and why.
    pub(super) denied: HashMap<String, String>,
}

impl EventSource {
    /// Whether its transactions have ledger records.
    pub(super) fn has_ledger(&self) -> bool {
        !matches!(self.target, Target::Other(_))
    }

    /// The events that are there: about `max_bytes` of them. Waits up to `timeout` for the first.
    pub(super) fn next(&mut self, max_bytes: usize, timeout: Duration) -> Input {
        let received = self.events.recv_timeout(timeout);
        if !timeout.is_zero() {
            // The publisher waits for events.
            self.on_published();
        }
        let mut events = match received {
            Ok(events) => events,
            Err(RecvTimeoutError::Timeout) => return Input::Idle,
            Err(RecvTimeoutError::Disconnected) => return Input::End,
        };
        let mut bytes: usize = events.iter().map(Event::len).sum();
        while bytes < max_bytes
            && let Ok(more) = self.events.try_recv()
        {
            bytes += more.iter().map(Event::len).sum::<usize>();
            events.extend(more);
        }
        let last = &mut self.last;
        let numbered = events.into_iter().map(|event| {
            *last = last.next();
            (*last, event)
        });
        Input::Batch(Batch::of_events(self.opening, numbered))
    }

    /// Where the ledger is followed from: from its end within `bounds` when it was first opened.
    pub(super) fn ledger_start(&mut self, (low, high): (i64, i64)) -> i64 {
        (*self.ledger_start.get_or_insert(high)).clamp(low, high)
    }

    /// Drops the ids from `commit` that are not of its events, or, with [`Target::TopicsAgain`],
    /// that others published.
    pub(super) fn retain_relevant(&self, commit: &mut Commit) {
        if commit.publisher != self.opening {
            let again = self.target == Target::TopicsAgain;
            commit.ids.retain(|id| !again && self.ids.contains(id));
        }
    }

    /// Removes these messages from `batch` and reports them; returns how many.
    pub(super) fn reject(&mut self, batch: &mut Batch, rejected: &[RejectedMessage]) -> usize {
        let reasons: HashMap<usize, &KafkaError> =
            rejected.iter().map(|message| (message.index, &message.reason)).collect();
        self.report(batch.reject_events(|index, _| reasons.get(&index).map(|reason| text(reason))))
    }

    /// Removes the events of denied topics from `batch`, and reports them.
    pub(super) fn remove_denied(&mut self, batch: &mut Batch) {
        self.report(batch.reject_events(|_, event| self.denied.get(&event.topic).cloned()));
    }

    fn report(&self, events: Vec<RejectedEvent>) -> usize {
        let count = events.len();
        for event in events {
            // Without a receiver, the command has ended.
            let _ = self.rejected.send(event);
        }
        count
    }

    /// Extends the deadline: all events before are published.
    pub(super) fn on_published(&self) {
        self.deadline.extend(PROGRESS_TIMEOUT);
    }
}
