//! librdkafka's own Kafka, for `livebridge dev`: in this process, on a TCP port, in memory.
//!
//! It has no isolation and no fencing and keeps a few megabytes per partition: good to try things,
//! no ground for promises.

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::METADATA_TIMEOUT;

/// A Kafka that any client reaches as long as this lives.
pub struct Embedded(MockCluster<'static, DefaultProducerContext>);

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Embedded").field(&self.brokers()).finish()
    }
}

impl Embedded {
    /// Starts one broker that has `topics` and the `ledger`.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn start(topics: &[&str], ledger: &str) -> Result<Self, KafkaError> {
        let cluster = MockCluster::new(1)?;
        // The ledger has one partition. For the others, asking is enough: making each by hand would
        // take up to a second, because the cluster's thread looks up that rarely.
        cluster.create_topic(ledger, 1, 1)?;
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("allow.auto.create.topics", "true")
            .create()?;
        for topic in topics {
            consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
        }
        Ok(Self(cluster))
    }

    /// Its `host:port`.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.0.bootstrap_servers()
    }
}
