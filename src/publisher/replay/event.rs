//! An event that a command publishes: from an export of a log, from a dead letter, or from a record
//! of a callback that Tencent could not deliver.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::Topics;
use super::super::message::{self, DEAD_REASON, DEAD_TOPIC, RECOVERED_AT, REPLAYED_AT};
use crate::event::{EventId, EventType, Timestamp};
use crate::kafka::Message;
use crate::kafka::topic_reader::ConsumedRecord;
use crate::record::Record;

/// A record as `livebridge wal export` prints it, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    event_type: Option<i64>,
    id: String,
    received_at: String,
    occurred_at: Option<String>,
    key: Option<String>,
    has_stream: bool,
    body: String,
}

impl Exported {
    /// The line of `record`. Bodies are JSON and keys are part of it, so that nothing is lost.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self {
            event_type: record.event_type.map(|event_type| event_type.0),
            id: record.id.to_string(),
            received_at: record.received_at.to_string(),
            occurred_at: record.occurred_at.map(|time| time.to_string()),
            key: record.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()),
            has_stream: record.has_stream,
            body: String::from_utf8_lossy(&record.body).into_owned(),
        }
    }

    /// The record of this line; `None` when it is not one that was exported.
    fn record(self) -> Option<Record> {
        let received_at = Timestamp::parse(&self.received_at)?;
        let occurred_at = self.occurred_at.as_deref().map(Timestamp::parse);
        Some(Record {
            event_type: self.event_type.map(EventType),
            id: EventId::parse(&self.id)?,
            received_at,
            occurred_at: occurred_at.map_or(Some(None), |time| time.map(Some))?,
            key: self.key.map(Bytes::from),
            has_stream: self.has_stream,
            body: self.body.into(),
        })
    }
}

/// An event to publish.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its topic.
    pub topic: String,
    /// Its `ce_id`.
    pub id: EventId,
    /// When livebridge received it.
    pub received_at: Timestamp,
    /// The last word of its `ce_type`: the event type's name.
    pub type_name: String,
    pub(super) key: Option<Bytes>,
    pub(super) value: Bytes,
    /// The timestamp of its message, before [`message::kafka_timestamp`].
    timestamp: Timestamp,
    /// The earliest timestamp that its message can have in its topic.
    pub(super) earliest: Timestamp,
    headers: Vec<(String, String)>,
}

impl Event {
    /// The event that a line of an export contains, to be sent again `now`; `None` when it contains
    /// none.
    #[must_use]
    pub fn of_line(line: &str, topics: &Topics, instance: &str, now: Timestamp) -> Option<Self> {
        Some(Self::of_exported(line, topics, instance)?.with_time(REPLAYED_AT, now))
    }

    /// As [`Self::of_line`], of a callback that did not reach livebridge and is recovered `now`.
    #[must_use]
    pub fn of_recovered(
        line: &str,
        topics: &Topics,
        instance: &str,
        now: Timestamp,
    ) -> Option<Self> {
        Some(Self::of_exported(line, topics, instance)?.with_time(RECOVERED_AT, now))
    }

    fn of_exported(line: &str, topics: &Topics, instance: &str) -> Option<Self> {
        let record = serde_json::from_str::<Exported>(line).ok()?.record()?;
        let topic = topics.of(record.event_type);
        let headers = message::message(&record, topic, instance, 0).headers;
        let owned = |(name, value): (&str, Cow<'_, str>)| (name.to_owned(), value.into_owned());
        let headers = headers.into_iter().map(owned).collect();
        let (key, value) = (record.key.clone(), record.body.clone());
        Self::new(topic.to_owned(), key, value, message::time(&record), headers)
    }

    /// The event that a record of the dead-letter topic contains, to be sent again `now`; `None` when
    /// livebridge did not write it.
    #[must_use]
    pub fn of_dead_letter(consumed: ConsumedRecord, now: Timestamp) -> Option<Self> {
        let ConsumedRecord { key, value, timestamp, mut headers, .. } = consumed;
        let topic = headers.iter().find(|(name, _)| name == DEAD_TOPIC)?.1.clone();
        headers.retain(|(name, _)| ![DEAD_TOPIC, DEAD_REASON, REPLAYED_AT].contains(&&**name));
        let event = Self::new(topic, key.map(Bytes::from), value.into(), timestamp?, headers);
        Some(event?.with_time(REPLAYED_AT, now))
    }

    fn new(
        topic: String,
        key: Option<Bytes>,
        value: Bytes,
        timestamp: Timestamp,
        headers: Vec<(String, String)>,
    ) -> Option<Self> {
        let id = message::id_of(&headers)?;
        let received_at = message::received_at(&headers)?;
        let type_name = message::type_of(&headers)?.to_owned();
        let own = message::occurred_at(&headers);
        let earliest = own.map_or(timestamp, |own| own.min(timestamp));
        Some(Self { topic, id, received_at, type_name, key, value, timestamp, earliest, headers })
    }

    fn with_time(mut self, header: &str, now: Timestamp) -> Self {
        self.headers.push((header.to_owned(), now.to_string()));
        self
    }

    /// About as many bytes as it takes in memory.
    pub(in super::super) fn len(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        self.value.len() + headers.sum::<usize>()
    }

    /// The record that the batch keeps of it.
    pub(in super::super) fn record(&self) -> Record {
        let (id, received_at) = (self.id, self.received_at);
        Record {
            event_type: EventType::parse(&self.type_name),
            id,
            received_at,
            occurred_at: None,
            key: self.key.clone(),
            has_stream: false,
            body: self.value.clone(),
        }
    }

    /// Its message.
    pub(in super::super) fn message(&self, index: usize) -> Message<'_> {
        let headers = self.headers.iter();
        Message {
            topic: &self.topic,
            key: self.key.as_deref(),
            value: Cow::Borrowed(&self.value),
            timestamp: message::kafka_timestamp(self.timestamp, Timestamp::now()),
            headers: headers.map(|(name, value)| (&**name, Cow::Borrowed(&**value))).collect(),
            index,
        }
    }
}
