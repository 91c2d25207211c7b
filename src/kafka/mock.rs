//! librdkafka's mock cluster, for `livebridge dev` and tests: a Kafka in this process, in memory,
//! on a TCP port. It neither isolates nor fences, and keeps 5 MB per partition, so no promise holds
//! with it.

use std::thread;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A mock cluster, which runs until it is dropped.
pub struct MockKafka(MockCluster<'static, DefaultProducerContext>);

impl std::fmt::Debug for MockKafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MockKafka").field(&self.brokers()).finish()
    }
}

impl MockKafka {
    /// Starts one broker that has `topics`, each with `partitions`, and the `ledger`.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn start(topics: &[&str], partitions: i32, ledger: &str) -> Result<Self, KafkaError> {
        /// librdkafka's thread can miss a command that arrives just after it answered the last one,
        /// and then sleeps for a second.
        const PAUSE: Duration = Duration::from_millis(2);
        let cluster = MockCluster::new(1)?;
        let all = topics.iter().map(|topic| (*topic, partitions)).chain([(ledger, 1)]);
        for (topic, partitions) in all {
            thread::sleep(PAUSE);
            cluster.create_topic(topic, partitions, 1)?;
        }
        Ok(Self(cluster))
    }

    /// The `host:port` of its broker.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.0.bootstrap_servers()
    }
}
