//! The Kafka message of a record, and every header that livebridge writes and reads.

use std::borrow::Cow;

use crate::event::{EventId, Timestamp, type_name};
use crate::kafka::{BACKDATED_MAX, Message};
use crate::record::Record;

/// CloudEvents' `source`: the scope within which `ce_id` is unique, whichever instance received
/// the event.
const SOURCE: &str = "urn:tencent-cloud:live";
/// What `ce_type` begins with; the event type's name follows.
const TYPE_PREFIX: &str = "com.tencent.cloud.live.";

/// The version of CloudEvents.
const SPEC_VERSION: &str = "ce_specversion";
/// The event's id.
const ID: &str = "ce_id";
/// CloudEvents' source.
const CE_SOURCE: &str = "ce_source";
/// The event's type.
const TYPE: &str = "ce_type";
/// The event's own time.
const TIME: &str = "ce_time";
/// The event's stream.
const SUBJECT: &str = "ce_subject";
/// The media type of the value.
const CONTENT_TYPE: &str = "content-type";
/// When the callback was received.
const RECEIVED_AT: &str = "livebridge-received-at";
/// The `kafka.instance` that received it.
const INSTANCE: &str = "livebridge-instance";
/// When a replay sent the event again.
pub(super) const REPLAYED_AT: &str = "livebridge-replayed-at";
/// When the event was recovered from Tencent's records, because no callback of it arrived.
pub(super) const RECOVERED_AT: &str = "livebridge-recovered-at";
/// Of a dead letter: the topic that rejected it.
pub(super) const DEAD_TOPIC: &str = "livebridge-topic";
/// Of a dead letter: the reason for the rejection.
pub(super) const DEAD_REASON: &str = "livebridge-reason";

/// A record's timestamp in Kafka: its own `time`, but at most [`BACKDATED_MAX`] before `now`, when
/// it is published, and never after it.
///
/// Topics are cleaned by this timestamp: an event of last week would be deleted by the next
/// cleaning, seconds after it was published. Brokers reject timestamps from the future. `ce_time`
/// keeps the event's own time.
pub(super) fn kafka_timestamp(time: Timestamp, now: Timestamp) -> Timestamp {
    time.max(now.before(BACKDATED_MAX)).min(now)
}

/// The time of `record` in its topic: its own, unless that is after its receipt.
pub(super) fn time(record: &Record) -> Timestamp {
    record.occurred_at.map_or(record.received_at, |time| time.min(record.received_at))
}

/// The message of `record`: CloudEvents' Kafka binding in binary mode, with the body unchanged.
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
        (SPEC_VERSION, Cow::Borrowed("1.0")),
        (ID, Cow::Owned(record.id.to_string())),
        (CE_SOURCE, Cow::Borrowed(SOURCE)),
        (TYPE, Cow::Owned(format!("{TYPE_PREFIX}{}", type_name(record.event_type)))),
        (TIME, Cow::Owned(occurred_at.to_string())),
        (CONTENT_TYPE, Cow::Borrowed("application/json")),
        (RECEIVED_AT, Cow::Owned(record.received_at.to_string())),
        (INSTANCE, Cow::Borrowed(instance)),
    ]);
    if let Some(stream) = stream.and_then(|stream| std::str::from_utf8(stream).ok()) {
        headers.push((SUBJECT, Cow::Borrowed(stream)));
    }
    Message {
        topic,
        key: record.key.as_deref(),
        value: Cow::Borrowed(&record.body),
        timestamp: kafka_timestamp(time(record), Timestamp::now()),
        headers,
        index,
    }
}

fn header<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
}

/// The event's id among the headers of a record of a topic.
#[must_use]
pub fn id_of(headers: &[(String, String)]) -> Option<EventId> {
    header(headers, ID).and_then(EventId::parse)
}

/// The name of the event's type among them.
pub(super) fn type_of(headers: &[(String, String)]) -> Option<&str> {
    header(headers, TYPE)?.rsplit('.').next()
}

/// The event's own time among them.
#[must_use]
pub fn occurred_at(headers: &[(String, String)]) -> Option<Timestamp> {
    header(headers, TIME).and_then(Timestamp::parse)
}

/// The event's stream among them.
#[must_use]
pub fn subject(headers: &[(String, String)]) -> Option<&str> {
    header(headers, SUBJECT)
}

/// When the event was received, among them.
#[must_use]
pub fn received_at(headers: &[(String, String)]) -> Option<Timestamp> {
    header(headers, RECEIVED_AT).and_then(Timestamp::parse)
}

/// Whether a replay sent the event again.
#[must_use]
pub fn is_replayed(headers: &[(String, String)]) -> bool {
    header(headers, REPLAYED_AT).is_some()
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
