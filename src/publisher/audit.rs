//! Compares what the log holds, what the ledger says and what is in the topics, over a time: what
//! was acknowledged or published and is nowhere, what is there twice, what is in no ledger record.
//!
//! Read in this order, so that a bridge at work cannot deceive it: the log, then the ledger, which
//! then knows of all that left the log, then the topics, which then have all that the ledger names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::message::{RECEIVED_AT, REPLAYED_AT};
use super::replay::id_of;
use super::{Topics, quarantine};
use crate::event::{EventId, Timestamp};
use crate::kafka::topic_reader::{ConsumedRecord, PartitionRange, read_to_end, wait_until_decided};
use crate::kafka::{self, Delivery, KafkaError};
use crate::ledger::Commit;
use crate::record::Lsn;
use crate::wal::{LogView, OpenError, OpeningId, Progress};

/// Records of topics carry the event's time, which is before that of its receipt.
const SLACK: Duration = Duration::from_hours(1);
/// Findings of one kind that are named; all are counted.
const NAMED: usize = 1000;

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// Kafka cannot.
    #[error("cannot read from Kafka: {}", kafka::text(.0))]
    Kafka(#[from] KafkaError),
    /// The quarantine cannot.
    #[error(transparent)]
    Quarantine(#[from] quarantine::QuarantineError),
}

/// What to compare.
#[derive(Debug)]
pub struct Audit<'a> {
    /// Where Kafka is.
    pub kafka: &'a kafka::Config,
    /// Its topics.
    pub topics: &'a Topics,
    /// The log's directory.
    pub dir: PathBuf,
    /// What was received at this time or later,
    pub since: Timestamp,
    /// and before this time.
    pub until: Timestamp,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// From when.
    pub since: String,
    /// Until when.
    pub until: String,
    /// The log's part.
    pub log: LogPart,
    /// The ledger's part.
    pub ledger: LedgerPart,
    /// Events that were received in the time, by topic.
    pub topics: BTreeMap<String, u64>,
    /// Dead letters among them.
    pub dead_letters: u64,
    /// Records in quarantine.
    pub quarantined: u64,
    /// Files in quarantine that cannot be read, and why not.
    pub quarantine_damaged: Vec<String>,
    /// Acknowledged or published, and nowhere.
    pub missing: Findings,
    /// In the topics more than once, and not sent again on purpose.
    pub doubled: Findings,
    /// In the topics, and not in the ledger.
    pub unaccounted: Findings,
    /// Partitions whose first records are gone: by retention, or because they were deleted.
    pub cut: Vec<PartitionRange>,
    /// Whether all is well.
    pub ok: bool,
}

/// The log's part of a report.
#[derive(Debug, Default, Serialize)]
pub struct LogPart {
    /// Its id.
    pub id: String,
    /// Records that were received in the time and are still on disk.
    pub records: u64,
    /// Those that are not published yet.
    pub pending: u64,
    /// Records of the log that cannot be read and are not published.
    pub damaged: u64,
}

/// The ledger's part of a report.
#[derive(Debug, Default, Serialize)]
pub struct LedgerPart {
    /// Transactions.
    pub commits: u64,
    /// Events in them.
    pub events: u64,
}

/// Findings of one kind.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    /// How many.
    pub count: u64,
    /// Which, the first thousand.
    pub events: Vec<Finding>,
}

/// An event with which something is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its `ce_id`.
    pub id: String,
    /// Where it was met.
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
struct Stored {
    lsn: Lsn,
    writer: OpeningId,
    id: EventId,
}

/// What the topics have of an event.
#[derive(Debug, Default)]
struct Seen {
    times: u32,
    /// Received in the time that is looked at.
    within: bool,
    at: String,
}

impl Audit<'_> {
    /// Compares. `step` is called at most as often as [`Self::steps`] says.
    ///
    /// # Errors
    /// [`AuditError`]
    pub fn run(&self, step: impl Fn()) -> Result<Report, AuditError> {
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
            stored.into_iter().partition(|&Stored { lsn, writer, .. }| {
                lsn <= view.published || progress.covers(writer, lsn)
            });
        report.log.pending = pending.len() as u64;
        let mut wanted: HashMap<EventId, String> =
            ledger.iter().map(|id| (*id, "ledger".to_owned())).collect();
        wanted.extend(done.into_iter().map(|Stored { lsn, id, .. }| (id, format!("log {lsn}"))));
        // What was released from the quarantine stands in the log once more.
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
        report.cut = partitions.into_iter().filter(|held| held.begin > 0).collect();
        let doubled = report.doubled.count > 0 && self.kafka.delivery == Delivery::ExactlyOnce;
        let wrong = report.missing.count + report.unaccounted.count + report.log.damaged > 0;
        report.ok = !wrong && !doubled && report.quarantine_damaged.is_empty();
        Ok(report)
    }

    /// How many steps a run has, at most: a topic without records is none.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.topics.all().len() as u64 + 2
    }

    fn has(&self, received_at: Timestamp) -> bool {
        (self.since..self.until).contains(&received_at)
    }

    fn read_log(&self, view: &LogView, part: &mut LogPart) -> Result<Vec<Stored>, AuditError> {
        let mut stored = Vec::new();
        for segment in &view.segments {
            let writer = segment.writer.unwrap_or_default();
            let found = view.read(segment, |entry| {
                if self.has(entry.record.received_at) {
                    stored.push(Stored { lsn: entry.lsn, writer, id: entry.record.id });
                }
                Ok::<_, OpenError>(())
            })?;
            part.damaged += u64::from(found.missing);
        }
        part.id = view.id.to_string();
        part.records = stored.len() as u64;
        Ok(stored)
    }

    /// The events that the ledger names as published, and how far this log is.
    fn read_ledger(
        &self,
        lineage: &[OpeningId],
        part: &mut LedgerPart,
    ) -> Result<(HashSet<EventId>, Progress), AuditError> {
        let mut ids = HashSet::new();
        let mut progress = Progress::default();
        *part = LedgerPart::default();
        wait_until_decided(self.kafka, &[self.topics.ledger()])?;
        read_to_end(self.kafka, self.topics.ledger(), self.since, |landed| {
            // What no release of ours wrote is none of its records.
            let Ok(commit) = Commit::decode(&landed.value) else { return Ok(()) };
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
        seen: &mut HashMap<EventId, Seen>,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let dead = topic == self.topics.dead_letter();
        let mut count = 0;
        read_to_end(self.kafka, topic, since, |landed| {
            let Some(id) = id_of(&landed.headers) else { return Ok(()) };
            let received_at = header(&landed, RECEIVED_AT).and_then(Timestamp::parse);
            let within = received_at.is_some_and(|received_at| self.has(received_at));
            let entry = seen.entry(id).or_default();
            if !dead && header(&landed, REPLAYED_AT).is_none() {
                entry.times += 1;
            }
            entry.within |= within;
            entry.at = format!("{topic}/{}@{}", landed.partition, landed.offset);
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

    /// Adds to the report what is in the topics twice, or not in the ledger.
    fn find_duplicates_and_unaccounted(
        &self,
        seen: &HashMap<EventId, Seen>,
        mut ledger: HashSet<EventId>,
        report: &mut Report,
    ) -> Result<(), AuditError> {
        let within = || seen.iter().filter(|(_, seen)| seen.within);
        if within().any(|(id, _)| !ledger.contains(id)) {
            // Published since the ledger was read, perhaps, or in the company of later ones.
            let later =
                Audit { until: Timestamp::from_millis(i64::MAX), dir: PathBuf::new(), ..*self };
            ledger.extend(later.read_ledger(&[], &mut LedgerPart::default())?.0);
        }
        for (id, seen) in within() {
            if seen.times > 1 {
                report.doubled.add(*id, seen.at.clone());
            }
            if !ledger.contains(id) {
                report.unaccounted.add(*id, seen.at.clone());
            }
        }
        Ok(())
    }
}

/// An event that was old when it came may stand before all that is as new as the time that is looked
/// at: before it is missing, all of every topic is read.
fn look_everywhere(
    kafka: &kafka::Config,
    topics: &[&str],
    wanted: &mut HashMap<EventId, String>,
) -> Result<(), AuditError> {
    for topic in topics {
        read_to_end(kafka, topic, Timestamp::from_millis(0), |landed| {
            if let Some(id) = id_of(&landed.headers) {
                wanted.remove(&id);
            }
            Ok::<_, AuditError>(())
        })?;
    }
    Ok(())
}

fn header<'a>(landed: &'a ConsumedRecord, name: &str) -> Option<&'a str> {
    let found = landed.headers.iter().find(|(header, _)| header == name);
    found.map(|(_, value)| value.as_str())
}
