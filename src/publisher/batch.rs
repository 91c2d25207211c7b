//! A batch: what of some entries is to be published, and the messages that say it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use super::{PublisherError, Topics, quarantine};
use crate::kafka::{self, Message, Refused};
use crate::ledger::{Commit, Known, Ledger};
use crate::metrics;
use crate::recent;
use crate::record::{Entry, EventId, Record, Timestamp, type_name};
use crate::seldom::Seldom;
use crate::wal::{Fates, LogId};

/// CloudEvents' `source`: what `ce_id` is unique within, whichever instance received the event.
const SOURCE: &str = "urn:tencent-cloud:live";

/// Says of a dead letter where it should have gone.
pub(super) const DEAD_TOPIC: &str = "livebridge-topic";
/// Says of a dead letter why it did not.
pub(super) const DEAD_REASON: &str = "livebridge-reason";

/// Keys and headers of two records of one type differ in length by less than this.
const HEADERS_SPREAD: usize = 4 * 1024;

static LEDGER_REFUSED: Seldom = Seldom::new();
static DEAD: Seldom = Seldom::new();
static HELD: Seldom = Seldom::new();

/// Entries of the log with what becomes of each.
pub(super) struct Batch<'a> {
    entries: &'a [Entry],
    chosen: Vec<Chosen<'a>>,
    conflicts: u64,
}

/// An entry that is not a retry.
struct Chosen<'a> {
    entry: &'a Entry,
    fate: Fate,
}

enum Fate {
    /// To its topic.
    Publish,
    /// To the dead-letter topic, because its own refused it.
    DeadLetter { reason: String },
    /// Kept on disk, because the dead-letter topic refused it too.
    Quarantined,
}

impl<'a> Batch<'a> {
    /// Sorts out retries of what the ledger knows and of each other (I5).
    pub(super) fn judge(entries: &'a [Entry], ledger: &Ledger) -> Self {
        let mut twins: HashSet<EventId> = HashSet::with_capacity(entries.len());
        let mut batch = Self { entries, chosen: Vec::with_capacity(entries.len()), conflicts: 0 };
        for entry in entries {
            let known = ledger.known(entry.record.id);
            if known == Known::Retry || !twins.insert(entry.record.id) {
                continue;
            }
            batch.conflicts += u64::from(known == Known::Conflict);
            batch.chosen.push(Chosen { entry, fate: Fate::Publish });
        }
        batch
    }

    pub(super) fn len(&self) -> usize {
        self.chosen.len()
    }

    pub(super) fn last(&self) -> Option<&'a Entry> {
        self.entries.last()
    }

    /// The ledger's record of this batch; `None` when it holds nothing but retries.
    pub(super) fn commit(&self, log: LogId) -> Option<Commit> {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return None;
        };
        if self.chosen.is_empty() {
            return None;
        }
        let received = self.entries.iter().map(|entry| entry.record.received_at);
        Some(Commit {
            log,
            first: first.lsn,
            last: last.lsn,
            newest: received.max().unwrap_or(last.record.received_at),
            // A quarantined record is not in Kafka: released one day, it must not pass for a retry.
            ids: self
                .chosen
                .iter()
                .filter(|chosen| !matches!(chosen.fate, Fate::Quarantined))
                .map(|chosen| chosen.entry.record.id)
                .collect(),
        })
    }

    /// What goes to Kafka: a message for each chosen entry that is not quarantined, in order.
    pub(super) fn messages<'m>(
        &'m self,
        topics: &'m Topics,
        kafka: &'m kafka::Config,
    ) -> impl Iterator<Item = Message<'m>> {
        self.chosen.iter().enumerate().filter_map(|(place, chosen)| {
            let record = &chosen.entry.record;
            let topic = topics.of(record.event_type);
            let mut message = message(record, topic, &kafka.instance, place);
            match &chosen.fate {
                Fate::Publish => {}
                Fate::DeadLetter { reason } => {
                    message.topic = topics.dead_letter();
                    message.headers.push((DEAD_TOPIC, Cow::Borrowed(topic)));
                    message.headers.push((DEAD_REASON, Cow::Borrowed(reason)));
                }
                Fate::Quarantined => return None,
            }
            Some(message)
        })
    }

    /// What goes to the ledger topic with them.
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
            timestamp: commit.newest,
            headers: Vec::new(),
            place: self.chosen.len(),
        }
    }

    /// Moves a refused record to the dead-letter topic, or, refused there as well, to disk.
    pub(super) fn refuse(
        &mut self,
        refused: &Refused,
        quarantine: &Path,
    ) -> Result<(), PublisherError> {
        let Some(chosen) = self.chosen.get_mut(refused.place) else {
            // The ledger's own record: nothing to set aside, so it is tried again.
            if let Some(unsaid) = LEDGER_REFUSED.may_say() {
                tracing::error!(reason = %refused.reason, unsaid, "Kafka refuses the ledger's record");
            }
            return Ok(());
        };
        let lsn = chosen.entry.lsn;
        let reason = refused.reason.to_string();
        if matches!(chosen.fate, Fate::Publish) {
            let record = &chosen.entry.record;
            chosen.fate = Fate::DeadLetter { reason: reason.clone() };
            let mut larger = 0;
            if refused.by_size {
                larger = self.refuse_larger(record, &reason);
            }
            recent::set_aside("dead-letter", lsn.to_string(), record, &reason);
            if let Some(unsaid) = DEAD.may_say() {
                tracing::error!(
                    %lsn, %reason, larger, unsaid,
                    "Kafka refuses a record; it goes to the dead letters"
                );
            }
        } else {
            quarantine::store(quarantine, chosen.entry, &reason)?;
            recent::set_aside("quarantine", lsn.to_string(), &chosen.entry.record, &reason);
            if let Some(unsaid) = HELD.may_say() {
                tracing::error!(
                    %lsn, %reason, unsaid,
                    "the dead-letter topic refuses a record; it stays on disk"
                );
            }
            chosen.fate = Fate::Quarantined;
        }
        Ok(())
    }

    /// Does not try one by one what is larger than a `record` that was too large.
    fn refuse_larger(&mut self, record: &Record, reason: &str) -> usize {
        let mut refused = 0;
        for chosen in &mut self.chosen {
            let other = &chosen.entry.record;
            let same =
                other.event_type == record.event_type && matches!(chosen.fate, Fate::Publish);
            if same && other.body.len() >= record.body.len() + HEADERS_SPREAD {
                chosen.fate = Fate::DeadLetter { reason: reason.to_owned() };
                refused += 1;
            }
        }
        refused
    }

    /// Counts what became of the entries.
    pub(super) fn count(&self) -> Fates {
        let now = Timestamp::now();
        let absorbed = (self.entries.len() - self.chosen.len()) as u64;
        let mut fates = Fates { absorbed, ..Fates::default() };
        for chosen in &self.chosen {
            let record = &chosen.entry.record;
            match chosen.fate {
                Fate::Publish => {
                    fates.published += 1;
                    metrics::published(type_name(record.event_type), now.since(record.received_at));
                }
                Fate::DeadLetter { .. } => {
                    fates.dead_lettered += 1;
                    metrics::dead_letter();
                }
                Fate::Quarantined => {
                    fates.quarantined += 1;
                    metrics::quarantined();
                }
            }
        }
        metrics::duplicates(absorbed);
        metrics::conflicts(self.conflicts);
        fates
    }
}

/// A record as Kafka sees it: CloudEvents' Kafka binding in binary mode, the body untouched.
pub(super) fn message<'m>(
    record: &'m Record,
    topic: &'m str,
    instance: &'m str,
    place: usize,
) -> Message<'m> {
    let occurred_at = record.occurred_at.unwrap_or(record.received_at);
    let stream = record.key.as_deref().filter(|_| record.has_stream);
    let mut headers = Vec::with_capacity(11);
    headers.extend([
        ("ce_specversion", Cow::Borrowed("1.0")),
        ("ce_id", Cow::Owned(record.id.to_string())),
        ("ce_source", Cow::Borrowed(SOURCE)),
        ("ce_type", Cow::Owned(format!("com.tencent.cloud.live.{}", type_name(record.event_type)))),
        ("ce_time", Cow::Owned(occurred_at.to_string())),
        ("content-type", Cow::Borrowed("application/json")),
        ("livebridge-received-at", Cow::Owned(record.received_at.to_string())),
        ("livebridge-instance", Cow::Borrowed(instance)),
    ]);
    if let Some(stream) = stream.and_then(|stream| std::str::from_utf8(stream).ok()) {
        headers.push(("ce_subject", Cow::Borrowed(stream)));
    }
    Message {
        topic,
        key: record.key.as_deref(),
        value: Cow::Borrowed(&record.body),
        // Brokers refuse timestamps from the future; `ce_time` keeps what the callback said.
        timestamp: occurred_at.min(record.received_at),
        headers,
        place,
    }
}
