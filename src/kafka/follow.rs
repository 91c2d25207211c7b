//! Follows topics from their beginning: what `livebridge dev` prints.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Config, Context, METADATA_TIMEOUT};

/// A record as found in Kafka.
#[derive(Clone, Debug)]
pub struct Landed {
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
    /// Its headers.
    pub headers: Vec<(String, String)>,
}

/// A consumer of all partitions of some topics.
pub struct Follower(BaseConsumer<Context>);

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Follower").finish()
    }
}

impl Follower {
    /// Stands before the first record of each partition of `topics`.
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
    pub fn next(&self, timeout: Duration) -> Result<Option<Landed>, KafkaError> {
        let Some(message) = self.0.poll(timeout).transpose()? else { return Ok(None) };
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Ok(Some(Landed {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers
                .map(|header| {
                    let value = String::from_utf8_lossy(header.value.unwrap_or_default());
                    (header.key.to_owned(), value.into_owned())
                })
                .collect(),
        }))
    }
}
