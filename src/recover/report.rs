//! Compares Tencent Cloud's records of delivered and failed callbacks with the events in Kafka.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::{RecoverError, TimeRange};
use crate::event::{EventId, EventType, Timestamp};
use crate::kafka;
use crate::kafka::topic_reader::{ConsumedRecord, read_to_end, wait_until_decided};
use crate::publisher::{Topics, id_of, occurred_at, subject};
use crate::record::Record;
use crate::tencent::CallbackRecord;

/// The types of which the API has records.
const RECORDED_TYPES: [EventType; 4] = [EventType(0), EventType(1), EventType(100), EventType(200)];
/// Events of each kind that a report lists; all are counted.
const LISTED_MAX: usize = 1000;
/// A record in Kafka can be older than its event by as much as clocks differ.
const SLACK: Duration = Duration::from_hours(1);

/// An event as the report names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Its `ce_id`.
    pub id: String,
    /// Its stream.
    pub stream: String,
    /// Its type.
    pub event_type: Option<i64>,
    /// When it happened.
    pub time: Option<String>,
}

/// Events of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// Their number.
    pub count: u64,
    /// The first thousand.
    pub events: Vec<Named>,
}

impl Events {
    fn add(&mut self, named: Named) {
        self.count += 1;
        if self.events.len() < LISTED_MAX {
            self.events.push(named);
        }
    }
}

/// The result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ComparisonReport {
    /// Delivered according to Tencent Cloud, and in Kafka.
    pub delivered: u64,
    /// Failed according to Tencent Cloud, and in Kafka: recovered, or retried with success.
    pub recovered: u64,
    /// Delivered according to Tencent Cloud, and not in Kafka.
    pub delivered_and_missing: Events,
    /// Failed according to Tencent Cloud, and not in Kafka.
    pub lost: Events,
    /// In Kafka, and not in Tencent Cloud's records.
    pub only_in_kafka: Events,
    /// Records that could not be decoded, so that their events cannot be compared.
    pub undecoded: u64,
}

impl ComparisonReport {
    /// Whether no event is missing in Kafka, as far as records could be decoded.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.delivered_and_missing.count + self.lost.count + self.undecoded == 0
    }
}

/// The events of Tencent Cloud's records, to be compared with Kafka.
#[derive(Debug, Default)]
pub struct Comparison {
    events: HashMap<EventId, Recorded>,
}

#[derive(Debug)]
struct Recorded {
    named: Named,
    delivered: bool,
    in_kafka: bool,
}

impl Comparison {
    /// Adds a record with its event. One delivered attempt counts more than those that failed.
    pub fn add(&mut self, record: &CallbackRecord, event: &Record) {
        let named = || Named {
            id: event.id.to_string(),
            stream: record.stream_id.clone(),
            event_type: record.event_type,
            time: record.event_time.as_ref().map(Timestamp::to_string),
        };
        let fresh = || Recorded { named: named(), delivered: false, in_kafka: false };
        let recorded = self.events.entry(event.id).or_insert_with(fresh);
        recorded.delivered |= record.is_delivered();
    }

    /// Reads Kafka and compares; `undecoded` records yield no event. Without `streams`, the events
    /// of any stream count.
    ///
    /// # Errors
    /// [`RecoverError::Kafka`]
    pub fn with_kafka(
        mut self,
        kafka: &kafka::Config,
        topics: &Topics,
        range: TimeRange,
        streams: Option<&[String]>,
        undecoded: u64,
    ) -> Result<ComparisonReport, RecoverError> {
        let mut report = ComparisonReport { undecoded, ..ComparisonReport::default() };
        let own = RECORDED_TYPES.map(|event_type| topics.of(Some(event_type)));
        let names: BTreeSet<&str> = own.into_iter().chain([topics.dead_letter()]).collect();
        wait_until_decided(kafka, &names.iter().copied().collect::<Vec<_>>())?;
        let mut others = HashMap::new();
        for topic in names {
            read_to_end(kafka, topic, range.since.before(SLACK), |consumed| {
                let Some(id) = id_of(&consumed.headers) else { return Ok(()) };
                match self.events.get_mut(&id) {
                    Some(recorded) => recorded.in_kafka = true,
                    None if topic != topics.dead_letter()
                        && is_within(&consumed, range, streams) =>
                    {
                        others.insert(id, named(id, topic, topics, &consumed));
                    }
                    None => {}
                }
                Ok::<_, RecoverError>(())
            })?;
        }
        for named in others.into_values() {
            report.only_in_kafka.add(named);
        }
        for Recorded { named, delivered, in_kafka } in self.events.into_values() {
            match (delivered, in_kafka) {
                (true, true) => report.delivered += 1,
                (false, true) => report.recovered += 1,
                (true, false) => report.delivered_and_missing.add(named),
                (false, false) => report.lost.add(named),
            }
        }
        for events in
            [&mut report.delivered_and_missing, &mut report.lost, &mut report.only_in_kafka]
        {
            events.events.sort_unstable_by(|a, b| (&a.time, &a.id).cmp(&(&b.time, &b.id)));
        }
        Ok(report)
    }
}

fn is_within(consumed: &ConsumedRecord, range: TimeRange, streams: Option<&[String]>) -> bool {
    let time = occurred_at(&consumed.headers);
    let stream = subject(&consumed.headers).unwrap_or_default();
    time.is_some_and(|time| (range.since..=range.until).contains(&time))
        && streams.is_none_or(|streams| streams.iter().any(|name| name == stream))
}

fn named(id: EventId, topic: &str, topics: &Topics, consumed: &ConsumedRecord) -> Named {
    let of_topic = |event_type: &EventType| topics.of(Some(*event_type)) == topic;
    Named {
        id: id.to_string(),
        stream: subject(&consumed.headers).unwrap_or_default().to_owned(),
        event_type: RECORDED_TYPES.into_iter().find(of_topic).map(|event_type| event_type.0),
        time: occurred_at(&consumed.headers).map(|time| time.to_string()),
    }
}
