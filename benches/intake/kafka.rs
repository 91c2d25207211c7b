//! The Kafka of the benchmark: librdkafka's mock cluster, and how many callbacks landed in it.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::Fallible;

/// Where the benchmark's callbacks, all push events, end up.
pub(crate) const PUSH_TOPIC: &str = "live.push";

/// Partitions of every topic but the ledger.
pub(crate) const PARTITIONS: i32 = 6;

/// The names behind the prefix `live.`; the mock cannot create topics on a client's request.
const TOPICS: [&str; 20] = [
    "interrupt",
    "push",
    "record",
    "screenshot",
    "relay",
    "audio-moderation",
    "porn-detection",
    "push-exception",
    "monitor",
    "record-status",
    "subtitle",
    "record-exception",
    "quality",
    "assessment-threshold",
    "assessment-average",
    "smart-erase",
    "summary",
    "highlight",
    "other",
    "dead-letter",
];

/// How often the cluster is asked while waiting.
const POLL: Duration = Duration::from_millis(20);

const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Starts a cluster of one broker with all topics.
pub(crate) fn start() -> Fallible<MockCluster<'static, DefaultProducerContext>> {
    let cluster = MockCluster::new(1)?;
    for name in TOPICS {
        cluster.create_topic(&format!("live.{name}"), PARTITIONS, 1)?;
    }
    cluster.create_topic("live.ledger", 1, 1)?;
    Ok(cluster)
}

/// Counts the callbacks in the push topic by its offsets (the mock writes no transaction markers).
pub(crate) struct Landed {
    consumer: BaseConsumer,
}

impl Landed {
    pub(crate) fn new(brokers: &str) -> Fallible<Self> {
        let consumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        Ok(Self { consumer })
    }

    pub(crate) fn count(&self) -> Fallible<u64> {
        let mut sum = 0;
        for partition in 0..PARTITIONS {
            let (_, end) = self.consumer.fetch_watermarks(PUSH_TOPIC, partition, REQUEST_MAX)?;
            sum += u64::try_from(end).unwrap_or(0);
        }
        Ok(sum)
    }

    /// Waits until at least `expected` have landed or `longest` has passed; returns the count.
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
