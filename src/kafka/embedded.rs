//! librdkafka's own Kafka, for `livebridge dev`: in this process, on a TCP port, in memory.
//!
//! It has no isolation and no fencing and keeps a few megabytes per partition: good to try things,
//! no ground for promises.

use std::thread;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A Kafka that any client reaches as long as this lives.
pub struct Embedded(MockCluster<'static, DefaultProducerContext>);

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Embedded").field(&self.brokers()).finish()
    }
}

impl Embedded {
    /// Starts one broker that has `topics`, each with `partitions`, and the `ledger`.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn start(topics: &[&str], partitions: i32, ledger: &str) -> Result<Self, KafkaError> {
        /// librdkafka's thread can miss an order given right after it answered the last, and then
        /// sleeps for a second.
        const PAUSE: Duration = Duration::from_millis(2);
        let cluster = MockCluster::new(1)?;
        let all = topics.iter().map(|topic| (*topic, partitions)).chain([(ledger, 1)]);
        for (topic, partitions) in all {
            thread::sleep(PAUSE);
            cluster.create_topic(topic, partitions, 1)?;
        }
        Ok(Self(cluster))
    }

    /// Its `host:port`.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.0.bootstrap_servers()
    }
}
