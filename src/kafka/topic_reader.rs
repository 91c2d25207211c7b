//! Reads topics of events: continuously for `livebridge dev`, up to their end for the other
//! commands.

use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Headers, Message};
use rdkafka::metadata::MetadataPartition;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaErrorCode;

use super::{Config, Context, METADATA_TIMEOUT, READ_STALLED, ReadError, is_denied};
use crate::event::Timestamp;

/// How long one poll waits for a record.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// A record as found in Kafka.
#[derive(Clone, Debug)]
pub struct ConsumedRecord {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Vec<u8>,
    /// Its timestamp.
    pub timestamp: Option<Timestamp>,
    /// Its headers.
    pub headers: Vec<(String, String)>,
}

/// A consumer of all partitions of some topics.
pub struct TopicReader(BaseConsumer<Context>);

impl std::fmt::Debug for TopicReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TopicReader").finish()
    }
}

impl TopicReader {
    /// Starts at the first record of each partition of `topics`.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn new(config: &Config, topics: &[&str]) -> KafkaResult<Self> {
        let consumer: BaseConsumer<Context> = config
            .base()
            .set("group.id", "livebridge-follow")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create_with_context(Context)?;
        let mut assignment = TopicPartitionList::new();
        let metadata = consumer.fetch_metadata(None, METADATA_TIMEOUT)?;
        for topic in metadata.topics().iter().filter(|found| topics.contains(&found.name())) {
            for partition in topic.partitions() {
                assignment.add_partition_offset(topic.name(), partition.id(), Offset::Beginning)?;
            }
        }
        consumer.assign(&assignment)?;
        Ok(Self(consumer))
    }

    /// The next record, waiting up to `timeout`.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn next(&self, timeout: Duration) -> Result<Option<ConsumedRecord>, KafkaError> {
        Ok(self.0.poll(timeout).transpose()?.map(|message| consumed(&message)))
    }
}

fn consumed(message: &impl Message) -> ConsumedRecord {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let headers = headers.map(|header| {
        let value = String::from_utf8_lossy(header.value.unwrap_or_default());
        (header.key.to_owned(), value.into_owned())
    });
    ConsumedRecord {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().unwrap_or_default().to_vec(),
        timestamp: message.timestamp().to_millis().map(Timestamp::from_millis),
        headers: collect_headers(headers),
    }
}

/// The headers; none of a record with a name that is not UTF-8, for which rdkafka panics. Other
/// programs can write such records; livebridge's own have no such name.
fn collect_headers(headers: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    panic::catch_unwind(AssertUnwindSafe(|| headers.collect())).unwrap_or_default()
}

/// Calls `visit` for every record of `topic` with this timestamp or a later one, up to the end that
/// the topic has when it is reached. Records of open and aborted transactions are skipped.
///
/// # Errors
/// [`ReadError`], or what `visit` returned.
pub fn read_to_end<E: From<ReadError>>(
    config: &Config,
    topic: &str,
    since: Timestamp,
    mut visit: impl FnMut(ConsumedRecord) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |cause| ReadError { topic: topic.to_owned(), cause };
    let Some((consumer, open)) = assigned(config, topic, since).map_err(failed)? else {
        return Ok(());
    };
    let poll = || Some(consumer.poll(POLL_TIMEOUT)?.map(|message| consumed(&message)));
    visit_to_end(poll, open, READ_STALLED, failed, &mut visit)
}

/// A consumer of `topic` from `since` on, and its partitions; `None` when the topic does not exist.
fn assigned(
    config: &Config,
    topic: &str,
    since: Timestamp,
) -> KafkaResult<Option<(BaseConsumer<Context>, HashSet<i32>)>> {
    let consumer: BaseConsumer<Context> = config
        .base()
        .set("group.id", "livebridge-replay")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        // If retention has removed the records, begin with the first that is left, not at the end.
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // At the end of a topic, a longer wait gains nothing.
        .set("fetch.wait.max.ms", "50")
        .create_with_context(Context)?;
    // By number: while others write, the end of a partition is reported more than once.
    let open: HashSet<i32> = partitions(&consumer, topic)?.into_iter().collect();
    if open.is_empty() {
        return Ok(None);
    }
    consumer.assign(&offsets_since(&consumer, topic, &open, since)?)?;
    Ok(Some((consumer, open)))
}

/// The partitions of `topic`; none when it does not exist. A topic that this user may not describe
/// is an error: it would otherwise count as empty.
fn partitions(consumer: &BaseConsumer<Context>, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
    let mut found = Vec::new();
    for topic in metadata.topics() {
        match topic.error().map(|error| KafkaError::MetadataFetch(error.into())) {
            Some(error) if is_denied(&error) => return Err(error),
            _ => found.extend(topic.partitions().iter().map(MetadataPartition::id)),
        }
    }
    Ok(found)
}

/// Passes records from `poll` to `visit` until each of the partitions has reported its end. Fails
/// if this user may not read them, or if none of the others has progressed for `stalled`.
fn visit_to_end<E: From<ReadError>>(
    mut poll: impl FnMut() -> Option<KafkaResult<ConsumedRecord>>,
    mut partitions: HashSet<i32>,
    stalled: Duration,
    failed: impl FnOnce(KafkaError) -> ReadError,
    visit: &mut impl FnMut(ConsumedRecord) -> Result<(), E>,
) -> Result<(), E> {
    let mut last = Instant::now();
    while !partitions.is_empty() {
        let (moved, error) = match poll() {
            Some(Ok(record)) => {
                let moved = partitions.contains(&record.partition);
                visit(record)?;
                (moved, None)
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => (partitions.remove(&partition), None),
            // librdkafka reports it once and then repeats its requests.
            Some(Err(error)) if is_denied(&error) => return Err(failed(error).into()),
            // librdkafka reconnects by itself.
            Some(Err(error)) => (false, Some(error)),
            None => (false, None),
        };
        if moved {
            last = Instant::now();
        } else if last.elapsed() > stalled {
            let timed_out = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
            return Err(failed(error.unwrap_or(timed_out)).into());
        }
    }
    Ok(())
}

/// The first offsets of `partitions` with a timestamp at `since` or later.
fn offsets_since(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partitions: &HashSet<i32>,
    since: Timestamp,
) -> KafkaResult<TopicPartitionList> {
    let find = |time: Timestamp| {
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            let time = Offset::Offset(time.as_millis().max(0));
            wanted.add_partition_offset(topic, *partition, time)?;
        }
        consumer.offsets_for_times(wanted, METADATA_TIMEOUT)
    };
    let mut found = find(since)?;
    let has_none = |partition: &TopicPartitionListElem<'_>| partition.offset() == Offset::End;
    if !found.elements().iter().any(has_none) {
        return Ok(found);
    }
    // Kafka finds every record after time 0. A partition without a result either has no records, or
    // its broker does not support times, as the mock cluster.
    let any = find(Timestamp::from_millis(0))?;
    for partition in any.elements().iter().filter(|partition| has_none(partition)) {
        found.set_partition_offset(topic, partition.partition(), Offset::Beginning)?;
    }
    Ok(found)
}

/// The offsets of a partition.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PartitionRange {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Its first offset: above 0 if earlier records were removed.
    pub begin: i64,
    /// The offset after its last record.
    pub end: i64,
}

/// Waits until every transaction that is open in `topics` now is committed or aborted: it hides the
/// records after it. Returns the partitions that ever had a record.
///
/// # Errors
/// [`ReadError`]; a time-out when a transaction stays open.
pub fn wait_until_decided(
    config: &Config,
    topics: &[&str],
) -> Result<Vec<PartitionRange>, ReadError> {
    let failed = |topic: &str, cause| ReadError { topic: topic.to_owned(), cause };
    let clients = || {
        let client = |isolation: &str| -> KafkaResult<BaseConsumer<Context>> {
            let mut client = config.base();
            client.set("group.id", "livebridge-replay").set("isolation.level", isolation);
            client.create_with_context(Context)
        };
        Ok((client("read_uncommitted")?, client("read_committed")?))
    };
    let (open, decided) = clients().map_err(|cause| failed(&topics.join(", "), cause))?;
    let started = Instant::now();
    let mut held = Vec::new();
    for topic in topics {
        let found = wait_for_topic(&open, &decided, topic, started);
        held.extend(found.map_err(|cause| failed(topic, cause))?);
    }
    Ok(held)
}

/// The same for one topic, with a client that reads records of open transactions and one that does
/// not.
fn wait_for_topic(
    open: &BaseConsumer<Context>,
    decided: &BaseConsumer<Context>,
    topic: &str,
    started: Instant,
) -> KafkaResult<Vec<PartitionRange>> {
    /// Between two checks of an open transaction.
    const PAUSE: Duration = Duration::from_millis(50);
    let mut held = Vec::new();
    for partition in partitions(open, topic)? {
        let (begin, end) = open.fetch_watermarks(topic, partition, METADATA_TIMEOUT)?;
        if end == 0 {
            continue;
        }
        held.push(PartitionRange { topic: topic.to_owned(), partition, begin, end });
        while decided.fetch_watermarks(topic, partition, METADATA_TIMEOUT)?.1 < end {
            // Hidden records must not count as absent: they would be sent again, or reported
            // missing.
            if started.elapsed() > READ_STALLED {
                return Err(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut));
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: i32) -> ConsumedRecord {
        ConsumedRecord {
            topic: "topic".into(),
            partition,
            offset: 0,
            key: None,
            value: Vec::new(),
            timestamp: None,
            headers: Vec::new(),
        }
    }

    fn failed(cause: KafkaError) -> ReadError {
        ReadError { topic: "topic".into(), cause }
    }

    #[test]
    fn a_record_whose_header_names_cannot_be_read_has_none() {
        let header = |number: u32| {
            assert_ne!(number, 2, "rdkafka panics at a name that is not UTF-8");
            (number.to_string(), String::new())
        };
        assert_eq!(collect_headers((0..2).map(header)).len(), 2);
        assert_eq!(collect_headers((0..3).map(header)), []);
    }

    #[test]
    fn a_partition_without_a_leader_ends_the_wait_although_another_one_grows() {
        const STALLED: Duration = Duration::from_millis(100);
        let started = Instant::now();
        let mut ended = false;
        let poll = || {
            assert!(started.elapsed() < 50 * STALLED, "still reading");
            std::thread::sleep(Duration::from_millis(1));
            if std::mem::replace(&mut ended, true) {
                Some(Ok(record(1)))
            } else {
                Some(Err(KafkaError::PartitionEOF(1)))
            }
        };
        let visit = &mut |_| Ok(());
        let error = visit_to_end::<ReadError>(poll, HashSet::from([0, 1]), STALLED, failed, visit);
        assert!(matches!(
            error.unwrap_err().cause,
            KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)
        ));
        assert!(started.elapsed() > STALLED);
    }

    #[test]
    fn reading_ends_with_the_last_partition_and_visits_every_record() {
        let mut polled = vec![
            Err(KafkaError::PartitionEOF(0)),
            Ok(record(1)),
            Err(KafkaError::PartitionEOF(1)),
            Ok(record(0)),
            Err(KafkaError::PartitionEOF(1)),
            Ok(record(1)),
        ];
        let mut visited = 0;
        let visit = &mut |_| {
            visited += 1;
            Ok(())
        };
        let poll = || polled.pop();
        visit_to_end::<ReadError>(poll, HashSet::from([0, 1]), READ_STALLED, failed, visit)
            .unwrap();
        assert_eq!((visited, polled.len()), (3, 0));
    }
}
