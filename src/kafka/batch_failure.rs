//! Why a batch was not published.

use std::time::Duration;

use rdkafka::error::KafkaError;

use super::text;
use crate::event::Timestamp;

/// A record's timestamp is at most this long before its publication: an earlier one would shorten
/// its retention. Retries, and recordings that are reported when they end, keep their own time.
pub const BACKDATED_MAX: Duration = Duration::from_hours(24);
/// The largest difference of clocks: Kafka's default for timestamps in the future.
const CLOCKS_MAX: Duration = Duration::from_hours(1);

/// Why a batch was not published, by what the publisher does about it.
#[derive(Debug)]
pub enum Failure {
    /// Only a part of it is published, with transactions nothing: the rest can be sent again later.
    Retry(KafkaError),
    /// As [`Failure::Retry`]; Kafka did not answer in time, so a smaller batch may help.
    TimedOut(KafkaError),
    /// As [`Failure::Retry`]: this user lacks a right, which an operator can grant.
    Denied {
        /// The topic that this user may not write to.
        topic: String,
    },
    /// Nothing of it is visible: a timestamp is too far from the broker's clock. The same records
    /// are accepted once clocks or the topic's settings are corrected.
    TimestampRejected {
        /// The topic.
        topic: String,
        /// Kafka's answer.
        cause: KafkaError,
    },
    /// It is not committed, and Kafka will never accept these messages.
    Rejected(Vec<RejectedMessage>),
    /// It is not committed, and Kafka will never accept this ledger record.
    LedgerRejected(KafkaError),
    /// The producer has ended, and it is unknown whether the batch was committed: the next producer
    /// reads the ledger.
    Lost(KafkaError),
    /// As [`Failure::Lost`], because the brokers do not offer idempotent producers.
    NotIdempotent(KafkaError),
    /// As [`Failure::Lost`], because another producer took the transactional id.
    Fenced(KafkaError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry(cause) => {
                write!(f, "the batch is not published completely: {}", text(cause))
            }
            Self::TimedOut(cause) => write!(f, "Kafka did not answer in time: {}", text(cause)),
            Self::Denied { topic } => {
                write!(f, "Kafka denies writing to topic {topic}; allow this user WRITE on it")
            }
            Self::TimestampRejected { topic, cause } => write!(
                f,
                "topic {topic} rejects a timestamp: {}; this host's clock says {}. Correct this clock or \
                 the brokers' (NTP). If they agree, the topic's settings are too strict: set \
                 message.timestamp.before.max.ms to {before} or more and \
                 message.timestamp.after.max.ms to {after} or more (before Kafka 3.6: \
                 message.timestamp.difference.max.ms to {before} or more)",
                text(cause),
                Timestamp::now(),
                before = (BACKDATED_MAX + CLOCKS_MAX).as_millis(),
                after = CLOCKS_MAX.as_millis(),
            ),
            Self::Rejected(rejected) => write!(f, "Kafka rejects {} messages", rejected.len()),
            Self::LedgerRejected(cause) => {
                write!(f, "Kafka rejects the ledger's record: {}", text(cause))
            }
            Self::Lost(cause) => write!(f, "the producer has failed: {}", text(cause)),
            Self::NotIdempotent(_) => f.write_str("the brokers have no idempotent producers"),
            Self::Fenced(cause) => write!(f, "another producer took over: {}", text(cause)),
        }
    }
}

/// A message that Kafka will never accept.
#[derive(Debug)]
pub struct RejectedMessage {
    /// The message's index.
    pub index: usize,
    /// Whether Kafka rejected this message. Otherwise it rejected all messages of a request,
    /// because of one of them or because of their number.
    pub is_specific: bool,
    /// Kafka's error.
    pub reason: KafkaError,
}
