//! Compares the log, the ledger and the topics over a time, for `livebridge audit`: finds events that
//! were acknowledged or published and are nowhere, that are published twice, or in no ledger record.
//!
//! A bridge may run meanwhile. The log is therefore read first, then the ledger, which then names all
//! that has left the log, and then the topics, which then contain all that the ledger names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::event::{EventId, Timestamp};
use crate::kafka::topic_reader::{PartitionRange, read_to_end, wait_until_decided};
use crate::kafka::{self, ReadError};
use crate::ledger::Commit;
use crate::permission::FileError;
use crate::publisher::{Topics, id_of, is_replayed, quarantine, received_at};
use crate::record::Lsn;
use crate::wal::{LogView, OpenError, OpeningId, Progress};

/// Topics are read from this long before the time: their records carry the time of the event, which
/// is before that of its receipt.
const SLACK: Duration = Duration::from_hours(1);
/// Findings of one kind that a report names; all are counted.
const NAMED: usize = 1000;

/// Why an audit fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The ledger or a topic cannot be read.
    #[error(transparent)]
    Kafka(#[from] ReadError),
    /// The quarantine cannot be read.
    #[error(transparent)]
    Quarantine(#[from] FileError),
}

/// What to compare.
#[derive(Debug)]
pub(crate) struct Audit<'a> {
    /// How Kafka is reached.
    pub kafka: &'a kafka::Config,
    /// The topics of events and of the ledger.
    pub topics: &'a Topics,
    /// The log's directory.
    pub dir: PathBuf,
    /// The earliest time of receipt.
    pub since: Timestamp,
    /// The time before which events were received.
    pub until: Timestamp,
}

/// The result of an audit. Events are those that were received in the time.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// [`Audit::since`].
    pub since: String,
    /// [`Audit::until`].
    pub until: String,
    /// What the log has.
    pub log: LogPart,
    /// What the ledger has.
    pub ledger: LedgerPart,
    /// The number of events in each topic that has some.
    pub topics: BTreeMap<String, u64>,
    /// The number of dead letters.
    pub dead_letters: u64,
    /// The number of records in the quarantine, whenever they were received.
    pub quarantined: u64,
    /// The files of the quarantine that cannot be read, each with the cause.
    pub quarantine_damaged: Vec<String>,
    /// Events that were acknowledged or published, and are nowhere.
    pub missing: Findings,
    /// Events that are in the topics more than once, without a replay.
    pub duplicated: Findings,
    /// Events in the topics that are not in the ledger.
    pub unaccounted: Findings,
    /// Partitions that do not begin at offset 0: records were removed by retention or deleted.
    pub truncated_partitions: Vec<PartitionRange>,
    /// Whether nothing is wrong.
    pub ok: bool,
}

/// What the log has.
#[derive(Debug, Default, Serialize)]
pub(crate) struct LogPart {
    /// The log's id.
    pub id: String,
    /// Records that are still on disk.
    pub records: u64,
    /// Those of them that are not published yet.
    pub pending: u64,
    /// Records that cannot be read and are not published, whenever they were received.
    pub damaged: u64,
}

/// What the ledger has.
#[derive(Debug, Default, Serialize)]
pub(crate) struct LedgerPart {
    /// Transactions.
    pub commits: u64,
    /// Events in them.
    pub events: u64,
}

/// Findings of one kind.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// The number of all of them.
    pub count: u64,
    /// The first [`NAMED`] of them.
    pub events: Vec<Finding>,
}

/// An event that an audit names.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// The event's `ce_id`.
    pub id: String,
    /// Where the log, the ledger or a topic has it.
    pub at: String,
}

impl Findings {
    fn add(&mut self, id: EventId, at: String) {
        self.count += 1;
        if self.events.len() < NAMED {
            self.events.push(Finding { id: id.to_string(), at });
        }
    }
}

/// A record of the log.
struct LoggedEvent {
    lsn: Lsn,
    writer: OpeningId,
    id: EventId,
}

/// What the topics have of an event.
#[derive(Debug, Default)]
struct TopicRecords {
    /// The number of its records, without dead letters and replays.
    times: u32,
    /// Whether it was received in the time of the audit.
    within: bool,
    /// The last record of it.
    at: String,
}

impl Audit<'_> {
    /// Compares. Calls `step` at most [`Self::steps`] times.
    pub(crate) fn run(&self, step: impl Fn()) -> Result<Report, AuditError> {
        let mut report = Report {
            since: self.since.to_string(),
            until: self.until.to_string(),
            ..Report::default()
        };
        let view = LogView::open(&self.dir)?;
        let stored = self.read_log(&view, &mut report.log)?;
        step();
        let (ledger, progress) = self.read_ledger(&view.lineage, &mut report.ledger)?;
        step();
        let partitions = wait_until_decided(self.kafka, &self.topics.all())?;
        let mut names: Vec<&str> = partitions.iter().map(|held| held.topic.as_str()).collect();
        names.dedup();
        let mut seen = HashMap::new();
        for topic in &names {
            self.read_topic(topic, self.since.before(SLACK), &mut seen, &mut report)?;
            step();
        }
        let quarantine::Contents { records, damaged } =
            quarantine::list(&quarantine::dir_of(&self.dir))?;
        let held: HashSet<EventId> = records.into_iter().map(|held| held.record.id).collect();
        report.quarantined = held.len() as u64;
        report.quarantine_damaged = damaged.iter().map(ToString::to_string).collect();

        let (done, pending): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|&LoggedEvent { lsn, writer, .. }| {
                lsn <= view.released || progress.covers(writer, lsn)
            });
        report.log.pending = pending.len() as u64;
        let mut wanted: HashMap<EventId, String> =
            ledger.iter().map(|id| (*id, "ledger".to_owned())).collect();
        wanted
            .extend(done.into_iter().map(|LoggedEvent { lsn, id, .. }| (id, format!("log {lsn}"))));
        // A record that was released from the quarantine is in the log again.
        let pending: HashSet<EventId> = pending.into_iter().map(|stored| stored.id).collect();
        wanted
            .retain(|id, _| !seen.contains_key(id) && !held.contains(id) && !pending.contains(id));
        if !wanted.is_empty() {
            look_everywhere(self.kafka, &names, &mut wanted)?;
        }
        for (id, at) in wanted {
            report.missing.add(id, at);
        }
        self.find_duplicates_and_unaccounted(&seen, ledger, &mut report)?;
        report.truncated_partitions =
            partitions.into_iter().filter(|held| held.begin > 0).collect();
        let duplicated = report.duplicated.count > 0 && self.kafka.is_transactional();
        let wrong = report.missing.count + report.unaccounted.count + report.log.damaged > 0;
        report.ok = !wrong && !duplicated && report.quarantine_damaged.is_empty();
        Ok(report)
    }

    /// The highest number of steps of a run; topics without records have none.
    pub(crate) fn steps(&self) -> u64 {
        self.topics.all().len() as u64 + 2
    }

    fn has(&self, received_at: Timestamp) -> bool {
        (self.since..self.until).contains(&received_at)
    }

    fn read_log(&self, view: &LogView, part: &mut LogPart) -> Result<Vec<LoggedEvent>, AuditError> {
        let mut stored = Vec::new();
        for segment in &view.segments {
            let writer = segment.writer.unwrap_or_default();
            let found = view.read(segment, |entry| {
                if self.has(entry.record.received_at) {
                    stored.push(LoggedEvent { lsn: entry.lsn, writer, id: entry.record.id });
                }
                Ok::<_, OpenError>(())
            })?;
            part.damaged += u64::from(found.missing);
        }
        part.id = view.id.to_string();
        part.records = stored.len() as u64;
        Ok(stored)
    }

    /// The events that the ledger names as published, and how far this log is published.
    fn read_ledger(
        &self,
        lineage: &[OpeningId],
        part: &mut LedgerPart,
    ) -> Result<(HashSet<EventId>, Progress), AuditError> {
        let mut ids = HashSet::new();
        let mut progress = Progress::default();
        *part = LedgerPart::default();
        wait_until_decided(self.kafka, &[self.topics.ledger()])?;
        read_to_end(self.kafka, self.topics.ledger(), self.since, |consumed| {
            // Another program wrote it.
            let Ok(commit) = Commit::decode(&consumed.value) else { return Ok(()) };
            if lineage.contains(&commit.publisher) {
                progress.advance(commit.writer, commit.last);
            }
            if self.has(commit.newest) {
                part.commits += 1;
                part.events += commit.ids.len() as u64;
                ids.extend(commit.ids);
            }
            Ok::<_, AuditError>(())
        })?;
        Ok((ids, progress))
    }

    fn read_topic(
        &self,
        topic: &str,
        since: Timestamp,
        seen: &mut HashMap<EventId, TopicRecords>,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let dead = topic == self.topics.dead_letter();
        let mut count = 0;
        read_to_end(self.kafka, topic, since, |consumed| {
            let Some(id) = id_of(&consumed.headers) else { return Ok(()) };
            let within = received_at(&consumed.headers).is_some_and(|time| self.has(time));
            let entry = seen.entry(id).or_default();
            if !dead && !is_replayed(&consumed.headers) {
                entry.times += 1;
            }
            entry.within |= within;
            entry.at = format!("{topic}/{}@{}", consumed.partition, consumed.offset);
            count += u64::from(within);
            Ok::<_, AuditError>(())
        })?;
        if dead {
            report.dead_letters = count;
        } else if count > 0 {
            report.topics.insert(topic.to_owned(), count);
        }
        Ok(())
    }

    /// Adds the events to the report that are in the topics twice, or not in the ledger.
    fn find_duplicates_and_unaccounted(
        &self,
        seen: &HashMap<EventId, TopicRecords>,
        mut ledger: HashSet<EventId>,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let within = || seen.iter().filter(|(_, seen)| seen.within);
        if within().any(|(id, _)| !ledger.contains(id)) {
            // It may be published since the ledger was read, or in a transaction with later events.
            let later =
                Audit { until: Timestamp::from_millis(i64::MAX), dir: PathBuf::new(), ..*self };
            ledger.extend(later.read_ledger(&[], &mut LedgerPart::default())?.0);
        }
        for (id, seen) in within() {
            if seen.times > 1 {
                report.duplicated.add(*id, seen.at.clone());
            }
            if !ledger.contains(id) {
                report.unaccounted.add(*id, seen.at.clone());
            }
        }
        Ok(())
    }
}

/// Removes from `wanted` what is anywhere in the topics. The record of an event that was old when it
/// was received may precede all that [`Audit::since`] selects.
fn look_everywhere(
    kafka: &kafka::Config,
    topics: &[&str],
    wanted: &mut HashMap<EventId, String>,
) -> Result<(), AuditError> {
    for topic in topics {
        read_to_end(kafka, topic, Timestamp::from_millis(0), |consumed| {
            if let Some(id) = id_of(&consumed.headers) {
                wanted.remove(&id);
            }
            Ok::<_, AuditError>(())
        })?;
    }
    Ok(())
}
