//! Sends events to Kafka again: from an export of a log, or from the dead letters.
//!
//! What a replay sends is the same event: the same `ce_id`, key, value and `ce_time`, so that a
//! consumer that goes by `ce_id` is not deceived. What is in its topic already is not sent, unless
//! that is asked for. Each transaction has a ledger record like any other, of a publisher that has
//! no log: so a retry of the event that reaches an instance is absorbed there.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Topics;
use super::message::{self, DEAD_REASON, DEAD_TOPIC, REPLAYED_AT};
use crate::event::{EventId, EventType, Timestamp};
use crate::kafka::topic_reader::{ConsumedRecord, read_to_end, wait_until_decided};
use crate::kafka::{self, Failure, KafkaError, Message, Producer, SetupError, is_denied, text};
use crate::ledger::Commit;
use crate::record::{Lsn, Record};
use crate::wal::OpeningId;

/// Bytes of events in one transaction, and how many of them.
const BATCH: (usize, usize) = (4 * 1024 * 1024, 5000);

/// Why events cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// No producer.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A topic cannot be read.
    #[error("cannot read from Kafka: {}", text(.0))]
    Read(#[from] KafkaError),
    /// Kafka does not take them.
    #[error("Kafka did not take the events: {0}; those before are there, so just run it again")]
    Send(String),
}

/// An event that Kafka does not take, while it takes others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its topic.
    pub topic: String,
    /// Its `ce_id`.
    pub id: EventId,
    /// Why.
    pub reason: String,
}

/// What became of the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events sent.
    pub sent: u32,
    /// Those that Kafka refused.
    pub refused: Vec<Refusal>,
}

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
    /// The line of `record`. Bodies are JSON and keys are out of it, so that nothing is lost.
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

/// An event to send again.
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
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    timestamp: Timestamp,
    headers: Vec<(String, String)>,
}

impl Event {
    /// The event that a line of an export holds; `None` when it holds none.
    #[must_use]
    pub fn of_line(line: &str, topics: &Topics, instance: &str) -> Option<Self> {
        let record = serde_json::from_str::<Exported>(line).ok()?.record()?;
        let topic = topics.of(record.event_type);
        let Message { key, value, timestamp, headers, .. } =
            message::message(&record, topic, instance, 0);
        let owned = |(name, value): (&str, Cow<'_, str>)| (name.to_owned(), value.into_owned());
        let headers = headers.into_iter().map(owned).collect();
        let key = key.map(<[u8]>::to_vec);
        Self::new(topic.to_owned(), key, value.into_owned(), timestamp, headers)
    }

    /// The event that a record of the dead-letter topic holds; `None` when livebridge did not put
    /// it there.
    #[must_use]
    pub fn of_dead_letter(landed: ConsumedRecord) -> Option<Self> {
        let ConsumedRecord { key, value, timestamp, mut headers, .. } = landed;
        let topic = headers.iter().find(|(name, _)| name == DEAD_TOPIC)?.1.clone();
        headers.retain(|(name, _)| name != DEAD_TOPIC && name != DEAD_REASON);
        Self::new(topic, key, value, timestamp?, headers)
    }

    fn new(
        topic: String,
        key: Option<Vec<u8>>,
        value: Vec<u8>,
        timestamp: Timestamp,
        headers: Vec<(String, String)>,
    ) -> Option<Self> {
        let id = id_of(&headers)?;
        let header = |name| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let received_at = Timestamp::parse(header(message::RECEIVED_AT)?)?;
        let type_name = header(message::TYPE)?.rsplit('.').next()?.to_owned();
        Some(Self { topic, id, received_at, type_name, key, value, timestamp, headers })
    }

    fn len(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        self.value.len() + headers.sum::<usize>()
    }
}

pub(super) fn id_of(headers: &[(String, String)]) -> Option<EventId> {
    headers.iter().find(|(name, _)| name == message::ID).and_then(|(_, id)| EventId::parse(id))
}

/// What is to be sent to which topic; made from one pass over the events, for a second one.
#[derive(Debug, Default)]
pub struct Plan {
    topics: BTreeMap<String, Wanted>,
}

/// What one topic is to get.
#[derive(Debug)]
struct Wanted {
    /// Whether an event is still to be sent.
    ids: HashMap<EventId, bool>,
    /// The timestamp of the oldest.
    oldest: Timestamp,
}

impl Plan {
    /// `event` is to be sent.
    pub fn add(&mut self, event: &Event) {
        let fresh = || Wanted { ids: HashMap::new(), oldest: event.timestamp };
        let wanted = self.topics.entry(event.topic.clone()).or_insert_with(fresh);
        wanted.ids.insert(event.id, true);
        wanted.oldest = wanted.oldest.min(event.timestamp);
    }

    /// Topic by topic: how many events are to be sent, and how many of the plan are not, because
    /// they are there.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.topics.iter().map(|(topic, wanted)| {
            let to_send = wanted.ids.values().filter(|to_send| **to_send).count();
            (topic.as_str(), to_send, wanted.ids.len() - to_send)
        })
    }

    /// Leaves out what is in its topic already, or is about to be: the open transaction of a host
    /// that died hides what others committed behind it.
    ///
    /// # Errors
    /// [`ReplayError::Read`]
    pub fn leave_out_what_is_there(&mut self, kafka: &kafka::Config) -> Result<(), ReplayError> {
        let topics: Vec<&str> = self.topics.keys().map(String::as_str).collect();
        wait_until_decided(kafka, &topics)?;
        for (topic, wanted) in &mut self.topics {
            read_to_end(kafka, topic, wanted.oldest, |landed| {
                if let Some(to_send) = id_of(&landed.headers).and_then(|id| wanted.ids.get_mut(&id))
                {
                    *to_send = false;
                }
                Ok::<_, ReplayError>(())
            })?;
        }
        Ok(())
    }

    /// Leaves out `topic`, and returns how many events were to be sent there.
    pub fn drop_topic(&mut self, topic: &str) -> usize {
        let dropped = self.topics.remove(topic);
        dropped.map_or(0, |wanted| wanted.ids.values().filter(|to_send| **to_send).count())
    }

    /// Whether `event` is to be sent; the next time it is not.
    pub fn take(&mut self, event: &Event) -> bool {
        let wanted = self.topics.get_mut(&event.topic).and_then(|w| w.ids.get_mut(&event.id));
        wanted.is_some_and(std::mem::take)
    }
}

/// A transaction that Kafka does not take.
struct Refused {
    reason: String,
    /// The events that it does not take even alone, by their place.
    alone: HashMap<usize, String>,
}

/// Sends events again, one transaction after another.
#[derive(Debug)]
pub struct Sender {
    kafka: kafka::Config,
    producer: Producer,
    publisher: OpeningId,
    /// The ledger's topic; `None` when the destination is no topic of events.
    ledger: Option<String>,
    replayed_at: String,
    batch: Vec<Event>,
    bytes: usize,
    outcome: Outcome,
}

impl Sender {
    /// Connects, under a name of its own: the instance's would fence a bridge that is running.
    ///
    /// # Errors
    /// [`ReplayError::Setup`]
    pub fn connect(kafka: &kafka::Config, ledger: Option<&str>) -> Result<Self, ReplayError> {
        let mut kafka = kafka.clone();
        kafka.instance.push_str(".replay");
        let producer = kafka.producer_soon()?;
        Ok(Self {
            kafka,
            producer,
            publisher: OpeningId::unique(),
            ledger: ledger.map(str::to_owned),
            replayed_at: Timestamp::now().to_string(),
            batch: Vec::new(),
            bytes: 0,
            outcome: Outcome::default(),
        })
    }

    /// Sends `event`, now or with the next ones.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn send(&mut self, event: Event) -> Result<(), ReplayError> {
        self.bytes += event.len();
        self.batch.push(event);
        if self.bytes >= BATCH.0 || self.batch.len() >= BATCH.1 { self.flush() } else { Ok(()) }
    }

    /// Sends what is left, and returns what became of all events.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn finish(mut self) -> Result<Outcome, ReplayError> {
        self.flush()?;
        Ok(self.outcome)
    }

    /// Sends the batch in order. Kafka refuses a transaction as a whole, so one that it refuses is
    /// sent in halves, until it is known which of its events Kafka does not take.
    fn flush(&mut self) -> Result<(), ReplayError> {
        self.bytes = 0;
        let mut parts = vec![std::mem::take(&mut self.batch)];
        while let Some(mut part) = parts.pop() {
            let Some(cause) = self.transaction(&part)? else { continue };
            // After a refusal, brokers miss sequence numbers in what the same producer sends.
            self.producer = self.kafka.producer_soon()?;
            let mut alone = cause.alone;
            if part.len() == 1 {
                alone.insert(0, cause.reason);
            } else if alone.is_empty() {
                let second = part.split_off(part.len() / 2);
                parts.extend([second, part]);
                continue;
            }
            let mut rest = Vec::with_capacity(part.len());
            for (index, event) in part.into_iter().enumerate() {
                match alone.remove(&index) {
                    Some(reason) => {
                        let (topic, id) = (event.topic, event.id);
                        self.outcome.refused.push(Refusal { topic, id, reason });
                    }
                    None => rest.push(event),
                }
            }
            parts.push(rest);
        }
        Ok(())
    }

    /// Sends `batch` in one transaction; says what Kafka refuses of it, if anything, and has then
    /// sent nothing.
    fn transaction(&mut self, batch: &[Event]) -> Result<Option<Refused>, ReplayError> {
        let (Some(newest), Ok(count)) =
            (batch.iter().map(|event| event.received_at).max(), u32::try_from(batch.len()))
        else {
            return Ok(None);
        };
        let sent = self.outcome.sent;
        let ledger = self.ledger.as_deref().map(|topic| {
            let index = |sent| Lsn::new(1, sent);
            let ids = batch.iter().map(|event| event.id).collect();
            let (first, last) = (index(sent + 1), index(sent + count));
            let publisher = self.publisher;
            (topic, Commit { publisher, writer: publisher, first, last, newest, ids })
        });
        let ledger = ledger.map(|(topic, commit)| Message {
            topic,
            key: Some(b"replay"),
            value: Cow::Owned(commit.encode()),
            timestamp: message::kafka_timestamp(newest, Timestamp::now()),
            headers: Vec::new(),
            index: batch.len(),
        });
        let messages = || batch.iter().enumerate().map(|(index, event)| self.message(event, index));
        let handed = self.producer.hand_over(ledger.as_ref(), messages, || {});
        match handed.and_then(|_| self.producer.commit()) {
            Ok(()) => {
                self.outcome.sent += count;
                Ok(None)
            }
            Err(Failure::Rejected(rejected)) => Ok(Some(Refused {
                reason: rejected.first().map_or_else(String::new, |first| text(&first.reason)),
                alone: rejected
                    .iter()
                    .filter(|rejected| rejected.alone && rejected.index < batch.len())
                    .map(|rejected| (rejected.index, text(&rejected.reason)))
                    .collect(),
            })),
            // An operator withdrew the right to one topic; the others may still be written.
            Err(Failure::Retry(cause)) if is_denied(&cause) => {
                Ok(Some(Refused { reason: text(&cause), alone: HashMap::new() }))
            }
            Err(failure) => Err(ReplayError::Send(failure.to_string())),
        }
    }

    fn message<'m>(&'m self, event: &'m Event, index: usize) -> Message<'m> {
        let headers = event.headers.iter();
        let mut headers: Vec<(&str, Cow<'_, str>)> = headers
            .filter(|(name, _)| name != REPLAYED_AT)
            .map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_str())))
            .collect();
        headers.push((REPLAYED_AT, Cow::Borrowed(&self.replayed_at)));
        Message {
            topic: &event.topic,
            key: event.key.as_deref(),
            value: Cow::Borrowed(&event.value),
            timestamp: message::kafka_timestamp(event.timestamp, Timestamp::now()),
            headers,
            index,
        }
    }
}
