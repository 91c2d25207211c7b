//! Kafka for the benchmark: librdkafka's mock cluster, counts of published events, and consumers.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::OwnedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Fallible;

/// The topic of the benchmark's callbacks, which are all push events.
pub(crate) const PUSH_TOPIC: &str = "live.push";

/// Partitions of every topic except the ledger.
pub(crate) const PARTITIONS: i32 = 6;

/// The poll interval while waiting.
const POLL: Duration = Duration::from_millis(20);

const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Counts the callbacks in the push topic by its offsets (the mock writes no transaction markers).
pub(crate) struct PushCounter {
    consumer: BaseConsumer,
}

impl PushCounter {
    pub(crate) fn new(brokers: &str) -> Fallible<Self> {
        let consumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        Ok(Self { consumer })
    }

    pub(crate) fn count(&self) -> Fallible<u64> {
        self.sum(|_, end| end)
    }

    /// Those that still exist: the mock deletes the oldest.
    fn held(&self) -> Fallible<u64> {
        self.sum(|begin, end| end - begin)
    }

    fn sum(&self, of: impl Fn(i64, i64) -> i64) -> Fallible<u64> {
        let mut sum = 0;
        for partition in 0..PARTITIONS {
            let (begin, end) =
                self.consumer.fetch_watermarks(PUSH_TOPIC, partition, REQUEST_MAX)?;
            sum += u64::try_from(of(begin, end)).unwrap_or(0);
        }
        Ok(sum)
    }

    /// Waits until at least `expected` events are published or `longest` has passed; returns the
    /// count.
    pub(crate) fn wait_for(&self, expected: u64, longest: Duration) -> Fallible<u64> {
        let deadline = Instant::now() + longest;
        loop {
            let count = self.count()?;
            if count >= expected || Instant::now() >= deadline {
                return Ok(count);
            }
            thread::sleep(POLL);
        }
    }
}

/// A `read_committed` consumer of all partitions of a topic, from their beginning.
pub(crate) fn reader(brokers: &str, topic: &str) -> Fallible<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}

/// All events that are in the push topic now.
pub(crate) fn read_all(brokers: &str, longest: Duration) -> Fallible<Vec<OwnedMessage>> {
    let expected = PushCounter::new(brokers)?.held()?;
    let consumer = reader(brokers, PUSH_TOPIC)?;
    let deadline = Instant::now() + longest;
    let mut messages = Vec::new();
    while (messages.len() as u64) < expected && Instant::now() < deadline {
        if let Some(message) = consumer.poll(POLL) {
            messages.push(message?.detach());
        }
    }
    Ok(messages)
}
