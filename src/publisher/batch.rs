//! A batch: consecutive records, and what is decided for each.

use std::borrow::Cow;
use std::collections::HashSet;

use super::batch_size::BatchLimits;
use super::message::{DEAD_REASON, DEAD_TOPIC, kafka_timestamp, message};
use super::quarantine::Quarantine;
use super::replay::{Event, RejectedEvent};
use super::topics::Topics;
use crate::event::{EventId, Timestamp, type_name};
use crate::kafka::{self, Message};
use crate::ledger::{Commit, Known, Ledger};
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::permission::FileError;
use crate::record::{Entry, Lsn};
use crate::status_history;
use crate::wal::{Entries, OpeningId, Outcomes};

static DEAD_LETTERED: LogLimiter = LogLimiter::new();
static QUARANTINED: LogLimiter = LogLimiter::new();

/// Consecutive entries of the log, or events of a command. It outlives sessions: what is decided for an
/// entry is kept until the ledger lists it as published.
#[derive(Debug)]
pub struct Batch {
    /// The opening of the log that wrote the entries.
    writer: OpeningId,
    items: Vec<Item>,
}

/// An entry, and what is decided for it.
#[derive(Debug)]
struct Item {
    entry: Entry,
    /// The event of a command, which has a message of its own; `None` for a record of the log.
    event: Option<Box<Event>>,
    disposition: Disposition,
    /// Without transactions: Kafka has it, so it is not sent again.
    delivered: bool,
}

/// What becomes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Disposition {
    /// It goes to its topic.
    Publish {
        /// Another event with the same natural key is published.
        conflict: bool,
    },
    /// It is a retry of a published event, or of an earlier one of the batch.
    Absorb,
    /// It goes to the dead-letter topic, because its own topic rejected it.
    DeadLetter { reason: String },
    /// It stays on disk, because the dead-letter topic rejected it too.
    Quarantine { reason: String, stored: bool },
}

impl Batch {
    /// Entries of one writer, in the order of the log.
    #[must_use]
    pub fn new(Entries { writer, entries }: Entries) -> Self {
        let items = entries.into_iter().map(|entry| Item::new(entry, None));
        Self { writer, items: items.collect() }
    }

    /// Events of the command that publishes as `writer`, with the number of each.
    pub(super) fn of_events(writer: OpeningId, events: impl Iterator<Item = (Lsn, Event)>) -> Self {
        let item = |(lsn, event): (Lsn, Event)| {
            Item::new(Entry { lsn, record: event.record() }, Some(Box::new(event)))
        };
        Self { writer, items: events.map(item).collect() }
    }

    /// Absorbs retries of events that the ledger knows, and of each other (I5). This is repeated before
    /// every attempt, because the ledger learns of other instances' events between them.
    pub fn deduplicate(&mut self, ledger: &Ledger) {
        let mut seen_in_batch: HashSet<EventId> = HashSet::with_capacity(self.items.len());
        for item in &mut self.items {
            let id = item.entry.record.id;
            let is_first = seen_in_batch.insert(id);
            if item.delivered || item.is_quarantined() {
                continue;
            }
            let known = ledger.known(id);
            if known == Known::Retry || !is_first {
                item.disposition = Disposition::Absorb;
            } else if !matches!(item.disposition, Disposition::DeadLetter { .. }) {
                item.disposition = Disposition::Publish { conflict: known == Known::Conflict };
            }
        }
    }

    /// Cuts the batch down to `limits`; returns the rest, if there is one.
    #[must_use]
    pub fn split(&mut self, limits: &BatchLimits) -> Option<Self> {
        let sizes = self.items.iter().map(|item| item.entry.record.encoded_len());
        let count = limits.split(sizes);
        let rest = if count < self.items.len() { self.items.split_off(count) } else { Vec::new() };
        (!rest.is_empty()).then_some(Self { writer: self.writer, items: rest })
    }

    /// Keeps the entries for which `keep` holds.
    pub(super) fn retain(&mut self, keep: impl Fn(Lsn) -> bool) {
        self.items.retain(|item| keep(item.entry.lsn));
    }

    /// Entries, retries among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of records.
    pub(super) fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.entry.record.encoded_len()).sum()
    }

    /// Entries that are not retries.
    pub(super) fn pending(&self) -> usize {
        self.pending_items().count()
    }

    /// Its entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.items.iter().map(|item| &item.entry)
    }

    fn pending_items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.disposition != Disposition::Absorb)
    }

    /// The ledger's record of this batch, published by the opening `publisher`; `None` when it holds
    /// nothing but retries.
    #[must_use]
    pub fn to_commit(&self, publisher: OpeningId) -> Option<Commit> {
        let (first, last) = (self.items.first()?, self.items.last()?);
        self.pending_items().next()?;
        let received = self.entries().map(|entry| entry.record.received_at);
        // A quarantined record is not in Kafka: once released, it must not count as a retry.
        let in_kafka = |item: &&Item| !item.is_quarantined();
        Some(Commit {
            publisher,
            writer: self.writer,
            first: first.entry.lsn,
            last: last.entry.lsn,
            newest: received.max()?,
            ids: self.pending_items().filter(in_kafka).map(|item| item.entry.record.id).collect(),
        })
    }

    /// The messages that are still to be sent, in the order of the log.
    pub(super) fn messages<'m>(
        &'m self,
        topics: &'m Topics,
        kafka: &'m kafka::Config,
    ) -> impl Iterator<Item = Message<'m>> {
        self.items.iter().enumerate().filter(|(_, item)| !item.delivered).filter_map(
            |(index, item)| {
                let record = &item.entry.record;
                if item.disposition == Disposition::Absorb || item.is_quarantined() {
                    return None;
                }
                if let Some(event) = &item.event {
                    return Some(event.message(index));
                }
                let topic = topics.of(record.event_type);
                let mut message = message(record, topic, &kafka.instance, index);
                if let Disposition::DeadLetter { reason } = &item.disposition {
                    message.topic = topics.dead_letter();
                    message.headers.push((DEAD_TOPIC, Cow::Borrowed(topic)));
                    message.headers.push((DEAD_REASON, Cow::Borrowed(reason)));
                }
                Some(message)
            },
        )
    }

    /// The message for the ledger topic.
    pub(super) fn ledger<'m>(
        &self,
        topics: &'m Topics,
        kafka: &'m kafka::Config,
        commit: &Commit,
    ) -> Message<'m> {
        Message {
            topic: topics.ledger(),
            key: Some(kafka.instance.as_bytes()),
            value: Cow::Owned(commit.encode()),
            timestamp: kafka_timestamp(commit.newest, Timestamp::now()),
            headers: Vec::new(),
            index: self.items.len(),
        }
    }

    /// Without transactions: Kafka has the messages with these indices.
    pub(super) fn mark_delivered(&mut self, indices: &[usize]) {
        for index in indices {
            if let Some(item) = self.items.get_mut(*index) {
                item.delivered = true;
            }
        }
    }

    /// Directs the rejected message `index` to the dead-letter topic, or, if that topic rejected
    /// it, to the quarantine; returns whether there is such a message.
    pub(super) fn reject(&mut self, index: usize, reason: &dyn std::fmt::Display) -> bool {
        let Some(Item { entry: Entry { lsn, record }, disposition, .. }) =
            self.items.get_mut(index)
        else {
            return false;
        };
        let reason = reason.to_string();
        match disposition {
            Disposition::Publish { .. } => {
                status_history::undelivered("dead-letter", lsn.to_string(), record, &reason);
                if let Some(suppressed) = DEAD_LETTERED.permit() {
                    tracing::error!(
                        %lsn, %reason, suppressed,
                        "Kafka rejects a record; it goes to the dead-letter topic"
                    );
                }
                *disposition = Disposition::DeadLetter { reason };
            }
            Disposition::DeadLetter { .. } => {
                status_history::undelivered("quarantine", lsn.to_string(), record, &reason);
                if let Some(suppressed) = QUARANTINED.permit() {
                    tracing::error!(
                        %lsn, %reason, suppressed,
                        "the dead-letter topic rejects a record; it stays on disk, in quarantine"
                    );
                }
                *disposition = Disposition::Quarantine { reason, stored: false };
            }
            Disposition::Absorb | Disposition::Quarantine { .. } => return false,
        }
        true
    }

    /// Removes the events that are still to be sent and for which `reason` returns one, by message
    /// index and event.
    pub(super) fn reject_events(
        &mut self,
        reason: impl Fn(usize, &Event) -> Option<String>,
    ) -> Vec<RejectedEvent> {
        let mut rejected = Vec::new();
        let mut indices = 0_usize..;
        self.items.retain(|item| {
            let is_unsent =
                matches!(item.disposition, Disposition::Publish { .. }) && !item.delivered;
            let (Some(index), Some(event)) = (indices.next(), &item.event) else { return true };
            let reason = is_unsent.then(|| reason(index, event)).flatten();
            let is_kept = reason.is_none();
            let event = |reason| RejectedEvent { topic: event.topic.clone(), id: event.id, reason };
            rejected.extend(reason.map(event));
            is_kept
        });
        rejected
    }

    /// Stores the records that go to the quarantine and are not there yet.
    pub(super) fn store(&mut self, quarantine: &mut Quarantine) -> Result<(), FileError> {
        for item in &mut self.items {
            if let Disposition::Quarantine { reason, stored: stored @ false } =
                &mut item.disposition
            {
                quarantine.store(&item.entry, reason)?;
                *stored = true;
            }
        }
        Ok(())
    }

    /// Whether the record at `lsn` with event id `id` goes to the quarantine; `None` when it is not
    /// in this batch.
    pub(super) fn is_quarantined(&self, (lsn, id): (Lsn, EventId)) -> Option<bool> {
        let found = self.items.binary_search_by_key(&lsn, |item| item.entry.lsn).ok()?;
        let same = self.items[found].entry.record.id == id;
        same.then_some(self.items[found].is_quarantined())
    }

    /// Returns what became of the entries, and adds it to the metrics.
    pub(super) fn record_outcomes(&self) -> Outcomes {
        let now = Timestamp::now();
        let mut outcomes = Outcomes::default();
        for item in &self.items {
            let record = &item.entry.record;
            match item.disposition {
                Disposition::Absorb => outcomes.absorbed += 1,
                Disposition::Publish { .. } => {
                    outcomes.published += 1;
                    metrics::published(type_name(record.event_type), now.since(record.received_at));
                }
                Disposition::DeadLetter { .. } => {
                    outcomes.dead_lettered += 1;
                    metrics::dead_letter();
                }
                Disposition::Quarantine { .. } => {
                    outcomes.quarantined += 1;
                    metrics::quarantined();
                }
            }
        }
        metrics::duplicates(outcomes.absorbed);
        metrics::conflicts(self.conflicts());
        outcomes
    }

    /// Published events with the natural key of another event.
    fn conflicts(&self) -> u64 {
        let conflict = Disposition::Publish { conflict: true };
        self.items.iter().map(|item| u64::from(item.disposition == conflict)).sum()
    }
}

impl Item {
    fn new(entry: Entry, event: Option<Box<Event>>) -> Self {
        let disposition = Disposition::Publish { conflict: false };
        Self { entry, event, disposition, delivered: false }
    }

    fn is_quarantined(&self) -> bool {
        matches!(self.disposition, Disposition::Quarantine { .. })
    }
}

#[cfg(test)]
mod tests;
