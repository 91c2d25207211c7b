//! A batch: what of some entries is to be published, and the messages that say it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::{PublisherError, Topics, quarantine};
use crate::kafka::{self, Message, RejectedMessage};
use crate::ledger::{Commit, Known, Ledger};
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::recent;
use crate::record::{Entry, EventId, Record, Timestamp, type_name};
use crate::wal::{OpeningId, Outcomes};

/// CloudEvents' `source`: what `ce_id` is unique within, whichever instance received the event.
const SOURCE: &str = "urn:tencent-cloud:live";

/// Says of a dead letter where it should have gone.
pub(super) const DEAD_TOPIC: &str = "livebridge-topic";
/// Says of a dead letter why it did not.
pub(super) const DEAD_REASON: &str = "livebridge-reason";

/// Retention is shortened by this at most. Retries, and recordings that are reported when they end,
/// keep their own time.
const BACKDATED_MAX: Duration = Duration::from_hours(24);

/// Keys and headers of two records of one type differ in length by less than this.
const HEADERS_SPREAD: usize = 4 * 1024;

static LEDGER_REFUSED: LogLimiter = LogLimiter::new();
static DEAD: LogLimiter = LogLimiter::new();
static HELD: LogLimiter = LogLimiter::new();

/// Entries of the log with what becomes of each.
#[derive(Debug)]
pub struct Batch<'a> {
    entries: &'a [Entry],
    pending: Vec<Pending<'a>>,
    conflicts: u64,
}

/// An entry that is not a retry.
#[derive(Debug)]
struct Pending<'a> {
    entry: &'a Entry,
    disposition: Disposition,
}

#[derive(Debug)]
enum Disposition {
    /// To its topic.
    Publish,
    /// To the dead-letter topic, because its own refused it.
    DeadLetter { reason: String },
    /// Kept on disk, because the dead-letter topic refused it too.
    Quarantined,
}

impl<'a> Batch<'a> {
    /// Sorts out retries of what the ledger knows and of each other (I5).
    #[must_use]
    pub fn deduplicate(entries: &'a [Entry], ledger: &Ledger) -> Self {
        let mut seen_in_batch: HashSet<EventId> = HashSet::with_capacity(entries.len());
        let mut batch = Self { entries, pending: Vec::with_capacity(entries.len()), conflicts: 0 };
        for entry in entries {
            let known = ledger.known(entry.record.id);
            if known == Known::Retry || !seen_in_batch.insert(entry.record.id) {
                continue;
            }
            batch.conflicts += u64::from(known == Known::Conflict);
            batch.pending.push(Pending { entry, disposition: Disposition::Publish });
        }
        batch
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn last(&self) -> Option<&'a Entry> {
        self.entries.last()
    }

    /// The ledger's record of this batch; `None` when it holds nothing but retries.
    #[must_use]
    pub fn commit(&self, publisher: OpeningId, writer: OpeningId) -> Option<Commit> {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return None;
        };
        if self.pending.is_empty() {
            return None;
        }
        let received = self.entries.iter().map(|entry| entry.record.received_at);
        Some(Commit {
            publisher,
            writer,
            first: first.lsn,
            last: last.lsn,
            newest: received.max().unwrap_or(last.record.received_at),
            // A quarantined record is not in Kafka: released one day, it must not pass for a retry.
            ids: self
                .pending
                .iter()
                .filter(|pending| !matches!(pending.disposition, Disposition::Quarantined))
                .map(|pending| pending.entry.record.id)
                .collect(),
        })
    }

    /// What goes to Kafka: a message for each chosen entry that is not quarantined, in order.
    pub(super) fn messages<'m>(
        &'m self,
        topics: &'m Topics,
        kafka: &'m kafka::Config,
    ) -> impl Iterator<Item = Message<'m>> {
        self.pending.iter().enumerate().filter_map(|(index, pending)| {
            let record = &pending.entry.record;
            let topic = topics.of(record.event_type);
            let mut message = message(record, topic, &kafka.instance, index);
            match &pending.disposition {
                Disposition::Publish => {}
                Disposition::DeadLetter { reason } => {
                    message.topic = topics.dead_letter();
                    message.headers.push((DEAD_TOPIC, Cow::Borrowed(topic)));
                    message.headers.push((DEAD_REASON, Cow::Borrowed(reason)));
                }
                Disposition::Quarantined => return None,
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
            timestamp: kafka_timestamp(commit.newest, Timestamp::now()),
            headers: Vec::new(),
            index: self.pending.len(),
        }
    }

    /// Moves a refused record to the dead-letter topic, or, refused there as well, to disk.
    pub(super) fn reject(
        &mut self,
        rejected: &RejectedMessage,
        quarantine: &Path,
    ) -> Result<(), PublisherError> {
        let Some(pending) = self.pending.get_mut(rejected.index) else {
            // The ledger's own record: nothing to set aside, so it is tried again.
            if let Some(suppressed) = LEDGER_REFUSED.permit() {
                tracing::error!(reason = %rejected.reason, suppressed, "Kafka refuses the ledger's record");
            }
            return Ok(());
        };
        let lsn = pending.entry.lsn;
        let reason = rejected.reason.to_string();
        if matches!(pending.disposition, Disposition::Publish) {
            let record = &pending.entry.record;
            pending.disposition = Disposition::DeadLetter { reason: reason.clone() };
            let mut larger = 0;
            if rejected.by_size {
                larger = self.reject_larger(record, &reason);
            }
            recent::undelivered("dead-letter", lsn.to_string(), record, &reason);
            if let Some(suppressed) = DEAD.permit() {
                tracing::error!(
                    %lsn, %reason, larger, suppressed,
                    "Kafka refuses a record; it goes to the dead letters"
                );
            }
        } else {
            quarantine::store(quarantine, pending.entry, &reason)?;
            recent::undelivered("quarantine", lsn.to_string(), &pending.entry.record, &reason);
            if let Some(suppressed) = HELD.permit() {
                tracing::error!(
                    %lsn, %reason, suppressed,
                    "the dead-letter topic refuses a record; it stays on disk"
                );
            }
            pending.disposition = Disposition::Quarantined;
        }
        Ok(())
    }

    /// Does not try one by one what is larger than a `record` that was too large.
    fn reject_larger(&mut self, record: &Record, reason: &str) -> usize {
        let mut rejected = 0;
        for pending in &mut self.pending {
            let other = &pending.entry.record;
            let same = other.event_type == record.event_type
                && matches!(pending.disposition, Disposition::Publish);
            if same && other.body.len() >= record.body.len() + HEADERS_SPREAD {
                pending.disposition = Disposition::DeadLetter { reason: reason.to_owned() };
                rejected += 1;
            }
        }
        rejected
    }

    /// Counts what became of the entries.
    pub(super) fn count(&self) -> Outcomes {
        let now = Timestamp::now();
        let absorbed = (self.entries.len() - self.pending.len()) as u64;
        let mut outcomes = Outcomes { absorbed, ..Outcomes::default() };
        for pending in &self.pending {
            let record = &pending.entry.record;
            match pending.disposition {
                Disposition::Publish => {
                    outcomes.published += 1;
                    metrics::published(type_name(record.event_type), now.since(record.received_at));
                }
                Disposition::DeadLetter { .. } => {
                    outcomes.dead_lettered += 1;
                    metrics::dead_letter();
                }
                Disposition::Quarantined => {
                    outcomes.quarantined += 1;
                    metrics::quarantined();
                }
            }
        }
        metrics::duplicates(absorbed);
        metrics::conflicts(self.conflicts);
        outcomes
    }
}

/// A record's timestamp in Kafka: its own `time`, but at most [`BACKDATED_MAX`] before `now`, when
/// it is published, and never after it.
///
/// Topics are cleaned by this timestamp: an event of last week would be deleted by the next
/// cleaning, seconds after it was published. Brokers reject timestamps from the future. `ce_time`
/// keeps the event's own time.
pub(super) fn kafka_timestamp(time: Timestamp, now: Timestamp) -> Timestamp {
    time.max(now.before(BACKDATED_MAX)).min(now)
}

/// A record as Kafka sees it: CloudEvents' Kafka binding in binary mode, the body untouched.
pub(super) fn message<'m>(
    record: &'m Record,
    topic: &'m str,
    instance: &'m str,
    index: usize,
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
        timestamp: kafka_timestamp(occurred_at.min(record.received_at), Timestamp::now()),
        headers,
        index,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn nothing_is_published_with_a_timestamp_older_than_a_day_or_in_the_future() {
        let now = 1_800_000_000_000;
        for (time, expected) in [
            (now, now),
            (now - 1, now - 1),
            (now - DAY, now - DAY),
            (now - DAY - 1, now - DAY),
            (now - 8 * DAY, now - DAY),
            (0, now - DAY),
            (i64::MIN, now - DAY),
            (now + 1, now),
            (i64::MAX, now),
        ] {
            let [time, now] = [time, now].map(Timestamp::from_millis);
            assert_eq!(kafka_timestamp(time, now), Timestamp::from_millis(expected), "{time}");
        }
    }
}
