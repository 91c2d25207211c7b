//! Why Kafka cannot be used, for operators.
//!
//! The text of librdkafka and of brokers may contain any configured value, so it is shown only
//! through [`text`].

use std::borrow::Cow;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::connection_cause::Cause;
use super::producer_settings::TRANSACTION_TIMEOUT_MAX;
use super::settings::SettingError;
use crate::secret::redact;

/// Why the publisher cannot start. Every cause may be temporary: a missing file may exist at the
/// next attempt.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// librdkafka rejects the configuration.
    #[error("kafka.client: {}", SettingError::of(.0))]
    Client(#[source] KafkaError),
    /// There is no connection to Kafka.
    #[error("{0}")]
    Connection(Cause),
    /// Topics are missing and `kafka.create_topics` is off.
    #[error("topics are missing: {0}; create them or set kafka.create_topics = true")]
    Missing(String),
    /// Kafka rejects a request about topics.
    #[error("{what}: {}{advice}", text(.cause))]
    Rejected {
        /// What cannot be done.
        what: String,
        /// Kafka's answer.
        #[source]
        cause: KafkaError,
        /// What to do about it.
        advice: &'static str,
    },
    /// Kafka needs more brokers for the replicas.
    #[error(
        "kafka.replication = {replication}, and Kafka has {brokers} brokers: it cannot create {topics}; \
         start more brokers, or set kafka.replication to {brokers} at most (-1 for the brokers' default)"
    )]
    Replication {
        /// As configured.
        replication: i32,
        /// Brokers that Kafka names.
        brokers: usize,
        /// The topics that are to be created.
        topics: String,
    },
    /// The ledger topic has several partitions: only one has an order.
    #[error(
        "the ledger topic {topic} has {partitions} partitions and must have 1: its order is the order \
         of commits, and Kafka cannot merge partitions. With nothing left to publish (livebridge wal \
         status), stop every instance, delete the topic and start again; or set another \
         kafka.topic_prefix"
    )]
    LedgerPartitions {
        /// The ledger topic.
        topic: String,
        /// The number of its partitions.
        partitions: usize,
    },
    /// The producer cannot start its transactions.
    #[error(
        "Kafka rejects transactions for instance {instance:?}: {}{}",
        text(.cause), transaction_advice(.instance, .cause)
    )]
    Transactions {
        /// The transactional id.
        instance: String,
        /// Kafka's answer.
        #[source]
        cause: KafkaError,
    },
    /// Kafka does not answer whether it has transactions.
    #[error(
        "Kafka does not answer about transactions for {}s; it may be unable to create the topic \
         __transaction_state: set transaction.state.log.replication.factor of the brokers to as \
         many as there are, or start those that are missing; if this Kafka has no transactions, set \
         kafka.delivery = \"at-least-once\"",
        .0.as_secs()
    )]
    Unanswered(Duration),
    /// A transaction is open for longer than Kafka allows: no coordinator knows it.
    #[error(
        "a transaction at offset {stable} of the ledger topic {topic} has been open for {}s and hides \
         what is behind it; `kafka-transactions.sh --bootstrap-server BROKER find-hanging --topic {topic} \
         --max-transaction-timeout 1` prints its StartOffset, and `kafka-transactions.sh \
         --bootstrap-server BROKER abort --topic {topic} --partition 0 --start-offset STARTOFFSET` ends \
         it (with SASL or TLS, add --command-config FILE behind BROKER)", .open.as_secs()
    )]
    OpenTransaction {
        /// The ledger topic's name.
        topic: String,
        /// Where it begins.
        stable: i64,
        /// For how long at least.
        open: Duration,
    },
    /// A thread or runtime cannot be started.
    #[error("cannot start a runtime: {0}")]
    Runtime(#[source] std::io::Error),
}

impl SetupError {
    /// Kafka does not answer, and librdkafka does not report why.
    pub(super) fn unreachable(cause: &KafkaError) -> Self {
        Self::Connection(Cause::unknown(cause))
    }

    /// The settings of topics cannot be read.
    pub(super) fn topic_settings(cause: KafkaError) -> Self {
        let advice = if is_denied(&cause) {
            "; allow this user DESCRIBE_CONFIGS on them, or check yourself that the ledger topic has \
             cleanup.policy=delete"
        } else {
            ""
        };
        Self::Rejected { what: "cannot read the settings of the topics".into(), cause, advice }
    }

    /// The ledger cannot be read.
    pub(super) fn ledger(topic: &str, cause: KafkaError) -> Self {
        let advice = read_advice(&cause);
        Self::Rejected { what: format!("cannot read the ledger topic {topic}"), cause, advice }
    }

    /// The error of an attempt that was given up after `timeout`.
    #[must_use]
    pub fn after(self, timeout: Duration) -> Self {
        match self {
            Self::Transactions { cause, .. } if is_not_yet_available(&cause) => {
                Self::Unanswered(timeout)
            }
            cause => cause,
        }
    }

    /// Whether this user lacks the right to a topic.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Rejected { cause, .. } if is_denied(cause))
    }

    /// Whether the brokers allow no transaction as long as the producer asked for.
    #[must_use]
    pub fn is_transaction_timeout_rejected(&self) -> bool {
        matches!(self, Self::Transactions { cause, .. }
            if cause.rdkafka_error_code() == Some(Code::InvalidTransactionTimeout))
    }
}

/// Why the records of a topic cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read topic {topic}: {}{}", text(.cause), read_advice(.cause))]
pub struct ReadError {
    /// Its name.
    pub(super) topic: String,
    /// Kafka's answer.
    #[source]
    pub(super) cause: KafkaError,
}

/// What to do about a topic that cannot be read.
fn read_advice(error: &KafkaError) -> &'static str {
    match error.rdkafka_error_code() {
        Some(Code::TopicAuthorizationFailed) => "; allow this user READ and DESCRIBE on it",
        Some(Code::GroupAuthorizationFailed) => "; allow this user READ on the group livebridge-*",
        _ => "",
    }
}

/// The text of `error`, without secrets, and without the prefix for the library's variant.
#[must_use]
pub fn text(error: &KafkaError) -> String {
    if let KafkaError::ClientConfig(..) = error {
        return SettingError::of(error).to_string();
    }
    let whole = error.to_string();
    let detail = match error.rdkafka_error_code() {
        Some(Code::PurgeQueue | Code::PurgeInflight) => {
            "dropped after another message of its batch had failed"
        }
        _ => whole.strip_prefix("Client creation error: ").unwrap_or(&whole),
    };
    redact(detail).into_owned()
}

/// Whether this user lacks a right to a topic: an operator can grant it, and other topics are not
/// affected.
#[must_use]
pub fn is_denied(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(Code::TopicAuthorizationFailed)
}

/// Whether the coordinator of transactions is not available yet.
fn is_not_yet_available(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::OperationTimedOut
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::NotCoordinator
        )
    )
}

/// What to do about a rejection of transactions.
fn transaction_advice(instance: &str, error: &KafkaError) -> Cow<'static, str> {
    if error.rdkafka_error_code() == Some(Code::InvalidTransactionTimeout) {
        let millis = TRANSACTION_TIMEOUT_MAX.as_millis();
        return format!("; set transaction.max.timeout.ms of the brokers to {millis} or more")
            .into();
    }
    if error.rdkafka_error_code() == Some(Code::TransactionalIdAuthorizationFailed) {
        return format!(
            "; allow this user WRITE and DESCRIBE on the transactional id {instance:?} (check, replay \
             and recover have ids of their own, which begin with kafka.instance and a dot: allow that \
             prefix), or set kafka.delivery = \"at-least-once\""
        )
        .into();
    }
    let advice = match error.rdkafka_error_code() {
        Some(
            Code::UnsupportedFeature
            | Code::UnsupportedVersion
            | Code::UnsupportedForMessageFormat
            | Code::InvalidRequest
            | Code::NotImplemented,
        ) => "; this Kafka has no transactions: set kafka.delivery = \"at-least-once\"",
        Some(Code::ClusterAuthorizationFailed) => {
            "; allow this user IDEMPOTENT_WRITE on the cluster, or set kafka.delivery = \
             \"at-least-once\""
        }
        _ => "",
    };
    advice.into()
}

/// Whether Kafka has no transactions: librdkafka would retry forever.
pub(super) fn is_unsupported(code: Code) -> bool {
    matches!(
        code,
        Code::UnsupportedVersion | Code::UnsupportedForMessageFormat | Code::InvalidRequest
    )
}
