//! Kafka as the publisher needs it: a producer of whole batches, a ledger to read, topics.
//!
//! The only module that uses rdkafka. It classifies errors by what the publisher does about them;
//! the publisher decides what happens to each record.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio_util::sync::CancellationToken;

use crate::secret::redact;

mod batch_failure;
mod connection_cause;
mod deadline;
mod delivery_report;
mod ledger_reader;
pub mod mock;
mod producer;
mod producer_settings;
mod reachability;
pub mod settings;
mod setup_error;
mod stats;
pub mod topic_reader;
mod topics;

pub use batch_failure::{BACKDATED_MAX, Failure, RejectedMessage};
pub use connection_cause::Cause;
pub(crate) use deadline::Deadline;
pub use ledger_reader::LedgerReader;
pub use producer::{Message, Producer};
pub use producer_settings::{ProducerSettings, READ_STALLED, REQUEST_BYTES, TIMEOUT_DOUBLINGS_MAX};
pub use rdkafka::error::KafkaError;
pub use reachability::{last_failure, report_failure, report_nothing_to_send, report_success};
pub use settings::SettingError;
pub use setup_error::{ReadError, SetupError, is_denied, text};
pub use topics::TopicState;

/// How Kafka is reached and what is promised there.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `host:port`, several joined by commas.
    pub brokers: String,
    /// This instance's name: its transactional id, so two at once fence each other.
    pub instance: String,
    /// What consumers see after a crash.
    pub delivery: Delivery,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// Partitions of a created topic.
    pub partitions: i32,
    /// Replicas of a created topic; -1 for the brokers' default.
    pub replication: i32,
    /// Settings that are passed to librdkafka unchanged: TLS, SASL, tuning.
    pub client: BTreeMap<String, String>,
}

/// Prints only the names of `client`: its values contain passwords.
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

/// The one partition of the ledger topic: the order of its records is the order of commits.
const LEDGER_PARTITION: i32 = 0;
/// Short enough for Prometheus, which usually scrapes every 15 s.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(5);
/// The time-out of a request for metadata.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval after which the cause of a missing answer is examined.
const METADATA_STEP: Duration = Duration::from_secs(2);
/// How long a broker may take for an answer before it is asked over another connection.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command waits for the first answer about transactions.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the creation of topics may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the ledger topic keeps its records: an instance that was stopped for days still finds
/// its progress.
const LEDGER_RETENTION: Duration = Duration::from_hours(7 * 24);

/// The context of every client: logs, metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let message = redact(message);
        // librdkafka repeats log lines while a broker is unreachable; errors carry the same
        // information.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(facility, %message, "librdkafka");
            }
            _ => tracing::debug!(facility, %message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            reachability::observe(reachability::Observation::Disconnected);
        }
        tracing::debug!(error = text(&error), reason = %redact(reason), "librdkafka");
    }
}

impl ConsumerContext for Context {}

impl Config {
    /// Whether batches are published in transactions.
    pub(crate) fn is_transactional(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    /// What producer, consumer and admin client have in common.
    fn base(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", format!("livebridge-{}", self.instance));
        // Brokers close idle connections, which is normal.
        client.set("log.connection.close", "false");
        // A broker that is frozen keeps its connections. Kafka has another leader after some ten
        // seconds; librdkafka would wait for a minute.
        client.set("socket.timeout.ms", SOCKET_TIMEOUT.as_millis().to_string());
        // The default of ten seconds would delay the return to a broker that is available again.
        client.set("reconnect.backoff.max.ms", "1000");
        for (name, value) in &self.client {
            client.set(name, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        // A broker would create a topic with its own number of partitions, the ledger included.
        client.set("allow.auto.create.topics", "false");
        client.set("statistics.interval.ms", "0");
        client
    }

    /// How often the producer reports statistics, and the lag of the ledger's reader is measured.
    fn statistics_interval(&self) -> Duration {
        let set =
            self.client.get("statistics.interval.ms").and_then(|text| text.trim().parse().ok());
        set.map_or(STATISTICS_INTERVAL, Duration::from_millis)
    }

    /// Whether librdkafka accepts the settings, as far as that can be known without Kafka: it loads
    /// the files that they name.
    ///
    /// # Errors
    /// [`SettingError`]
    pub fn validate(&self) -> Result<(), SettingError> {
        settings::check(&self.client)?;
        if self.client.is_empty() {
            // livebridge's own settings are the same in every test.
            return Ok(());
        }
        let rejected = |error: KafkaError| SettingError::of(&error);
        let mut producer = ProducerSettings::default().client(self);
        let reports = delivery_report::Reports::default();
        let producer: BaseProducer<_> =
            producer.remove("bootstrap.servers").create_with_context(reports).map_err(rejected)?;
        drop(producer);
        let mut consumer = ledger_reader::settings(self, "read_committed");
        let consumer: BaseConsumer<_> =
            consumer.remove("bootstrap.servers").create_with_context(Context).map_err(rejected)?;
        drop(consumer);
        Ok(())
    }

    /// The consequences of accepted settings, for operators.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        settings::warnings(&self.client)
    }

    /// A producer for a command: unlike a bridge, it waits for Kafka for [`CONNECT_TIMEOUT`] only.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn producer_soon(&self) -> Result<Producer, SetupError> {
        let give_up = CancellationToken::new();
        let started = Deadline::start(CONNECT_TIMEOUT, give_up.clone());
        let _deadline = started.map_err(SetupError::Runtime)?;
        let settings = ProducerSettings { waits_forever: false, ..ProducerSettings::default() };
        Producer::connect(self, &settings, give_up.clone()).map_err(|cause| {
            // Kafka may have answered every attempt with the same error.
            if give_up.is_cancelled() { cause.after(CONNECT_TIMEOUT) } else { cause }
        })
    }
}
