//! Kafka as the publisher needs it: a producer of whole batches, a ledger to read, topics.
//!
//! The only room that names rdkafka. It sorts errors by what the publisher does about them; which
//! record goes where is decided by the publisher.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio_util::sync::CancellationToken;

use crate::metrics;

mod auth_error;
mod delivery;
pub mod embedded;
mod ledger_reader;
mod producer;
mod stats;
pub mod topic_reader;

use auth_error::AuthErrors;
pub use ledger_reader::LedgerReader;
pub use producer::{Failure, Message, Producer, REQUEST_BYTES, RejectedMessage};
pub use rdkafka::error::KafkaError;

/// How Kafka is reached and what is promised there.
#[derive(Clone)]
pub struct Config {
    /// `host:port`, several joined by commas.
    pub brokers: String,
    /// This instance's name: its transactional id, so two at once fence each other.
    pub instance: String,
    /// What consumers see after a crash.
    pub delivery: Delivery,
    /// Make topics that are missing.
    pub create_topics: bool,
    /// Partitions of a topic made here.
    pub partitions: i32,
    /// Replicas of a topic made here.
    pub replication: i32,
    /// Passed to librdkafka as they are: TLS, SASL, tuning.
    pub client: BTreeMap<String, String>,
}

/// Of `client` the names only: there are passwords among the values.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { brokers, instance, delivery, create_topics, partitions, replication, client } =
            self;
        f.debug_struct("Config")
            .field("brokers", brokers)
            .field("instance", instance)
            .field("delivery", delivery)
            .field("create_topics", create_topics)
            .field("partitions", partitions)
            .field("replication", replication)
            .field("client", &client.keys())
            .finish()
    }
}

/// What consumers see after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// With `isolation.level=read_committed`, each event once. Needs a broker with transactions.
    ExactlyOnce,
    /// Each event at least once; repeats carry the same `ce_id`.
    AtLeastOnce,
}

/// librdkafka's settings that the promises stand on, and its other names for them;
/// `[kafka.client]` may not name them.
pub const RESERVED: [&str; 11] = [
    "acks",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "enable.idempotence",
    "enable.partition.eof",
    "isolation.level",
    "message.timeout.ms",
    "metadata.broker.list",
    "request.required.acks",
    "transaction.timeout.ms",
    "transactional.id",
];

/// The one partition of the ledger topic: the order of its records is the order of commits.
const LEDGER_PARTITION: i32 = 0;
/// Statistics are about as old as a scrape of them.
const STATISTICS_INTERVAL_MS: &str = "5000";
/// How long a look at Kafka's metadata may take.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker may take for an answer before it is asked over another connection.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command waits for the first answer about transactions.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long making topics may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the ledger topic keeps its records at least: an instance that was away for days still
/// finds how far it got.
const LEDGER_RETENTION: Duration = Duration::from_hours(7 * 24);

/// What every client of ours reports to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka repeats itself while a broker is away; what matters of it arrives as errors.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(facility, message, "librdkafka");
            }
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            metrics::kafka_up(false);
        }
        tracing::debug!(%error, reason, "librdkafka");
    }

    // Asked for by the reader of the ledger only.
    fn stats_raw(&self, statistics: &[u8]) {
        if let Some(lag) = stats::lag(statistics) {
            metrics::ledger_lag(lag);
        }
    }
}

impl ConsumerContext for Context {}

impl Config {
    /// What producer, consumer and admin client have in common.
    fn base(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", format!("livebridge-{}", self.instance));
        // Brokers close idle connections; that is no news.
        client.set("log.connection.close", "false");
        // A broker that is frozen keeps its connections. Kafka has another leader after some ten
        // seconds; librdkafka would wait for a minute.
        client.set("socket.timeout.ms", SOCKET_TIMEOUT.as_millis().to_string());
        // It would let up to ten seconds pass before it sees that a broker is back.
        client.set("reconnect.backoff.max.ms", "1000");
        for (name, value) in &self.client {
            client.set(name, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        client.set("statistics.interval.ms", "0");
        client
    }

    /// How often a client that we look at says how it is.
    fn statistics_interval(&self) -> &str {
        self.client.get("statistics.interval.ms").map_or(STATISTICS_INTERVAL_MS, String::as_str)
    }

    /// Makes the `topics` that are missing and the `ledger` topic.
    ///
    /// # Errors
    /// [`SetupError`] when Kafka cannot be reached, or refuses one.
    pub fn make_topics(&self, topics: &[&str], ledger: &str) -> Result<(), SetupError> {
        let missing = self.missing_topics(topics.iter().copied().chain([ledger]))?;
        if missing.is_empty() {
            return Ok(());
        }
        if !self.create_topics {
            return Err(SetupError::Missing(missing.join(", ")));
        }
        // With three replicas, one may be away without a record being on one disk only.
        let in_sync = (self.replication - 1).clamp(1, 2).to_string();
        let retention = LEDGER_RETENTION.as_millis().to_string();
        let wanted: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|name| {
                let partitions = if name == ledger { 1 } else { self.partitions };
                let topic =
                    NewTopic::new(name, partitions, TopicReplication::Fixed(self.replication))
                        .set("min.insync.replicas", &in_sync);
                if name == ledger { topic.set("retention.ms", &retention) } else { topic }
            })
            .collect();
        let admin: AdminClient<DefaultClientContext> =
            self.base().create().map_err(SetupError::Client)?;
        let options = AdminOptions::new()
            .operation_timeout(Some(ADMIN_TIMEOUT))
            .request_timeout(Some(ADMIN_TIMEOUT));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(SetupError::Runtime)?;
        let results = runtime
            .block_on(admin.create_topics(&wanted, &options))
            .map_err(SetupError::Unreachable)?;
        for result in results {
            match result {
                Ok(topic) => tracing::info!(%topic, "topic created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(SetupError::Refused { topic, cause: KafkaError::AdminOp(code) });
                }
            }
        }
        Ok(())
    }

    /// A producer for a command: unlike a bridge, it does not wait for Kafka for ever.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn producer_soon(&self) -> Result<Producer, SetupError> {
        let give_up = CancellationToken::new();
        let late = give_up.clone();
        let (connected, waiting) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.cancel();
            }
        });
        let outcome = Producer::connect(self, REQUEST_BYTES, give_up.clone());
        drop(connected);
        if give_up.is_cancelled() {
            return Err(SetupError::Unanswered(PATIENCE));
        }
        outcome
    }

    /// Those of `topics` that Kafka does not have.
    ///
    /// # Errors
    /// [`SetupError`] when Kafka cannot be reached.
    pub fn missing_topics<'a>(
        &self,
        topics: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<String>, SetupError> {
        let consumer: BaseConsumer<AuthErrors> =
            self.base().create_with_context(AuthErrors::default()).map_err(SetupError::Client)?;
        let metadata = consumer.fetch_metadata(None, METADATA_TIMEOUT).map_err(|cause| {
            let refusal = auth_error::heard(&consumer);
            refusal.map_or(SetupError::Unreachable(cause), SetupError::TurnedAway)
        })?;
        let present = |name: &str| {
            metadata.topics().iter().any(|topic| topic.name() == name && topic.error().is_none())
        };
        Ok(topics.filter(|name| !present(name)).map(str::to_owned).collect())
    }
}

/// Why Kafka is not ready to be published to. All but [`SetupError::Client`] may pass.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// librdkafka does not take the configuration.
    #[error("librdkafka refuses the configuration: {0}; check [kafka.client]")]
    Client(#[source] KafkaError),
    /// No answer.
    #[error("Kafka does not answer: {0}; check kafka.brokers and the network")]
    Unreachable(#[source] KafkaError),
    /// An answer that is none: we, or they, are not believed to be who we are.
    #[error(
        "Kafka turns us away, or is not whom we trust: {0}; check sasl.* and ssl.* in [kafka.client]"
    )]
    TurnedAway(String),
    /// Topics are missing and `kafka.create_topics` is off.
    #[error("topics are missing: {0}; create them or set kafka.create_topics = true")]
    Missing(String),
    /// A topic cannot be made.
    #[error("Kafka refuses to create topic {topic}: {cause}")]
    Refused {
        /// Which.
        topic: String,
        /// Why.
        #[source]
        cause: KafkaError,
    },
    /// The producer cannot start its transactions.
    #[error("Kafka refuses transactions for instance {instance:?}: {cause}")]
    Transactions {
        /// The transactional id.
        instance: String,
        /// Why.
        #[source]
        cause: KafkaError,
    },
    /// Nobody says whether there are transactions.
    #[error(
        "Kafka does not answer about transactions for {}s; it may be unable to make the topic \
         __transaction_state: set transaction.state.log.replication.factor of the brokers to as \
         many as there are, or start those that are missing",
        .0.as_secs()
    )]
    Unanswered(Duration),
    /// The ledger cannot be read.
    #[error("cannot read the ledger topic {topic}: {cause}")]
    Ledger {
        /// Its name.
        topic: String,
        /// Why.
        #[source]
        cause: KafkaError,
    },
    /// Kafka has lost track of a transaction: it ends none of them as late.
    #[error(
        "a transaction at offset {stable} of the ledger topic {topic} has been open for {}s and hides \
         what is behind it; kafka-transactions.sh --bootstrap-server BROKER find-hanging --broker-id \
         ID names it, and its abort ends it", .open.as_secs()
    )]
    Hidden {
        /// The ledger topic's name.
        topic: String,
        /// Where it begins.
        stable: i64,
        /// For how long at least.
        open: Duration,
    },
    /// No resources for a helper.
    #[error("cannot start a runtime: {0}")]
    Runtime(#[source] std::io::Error),
}
