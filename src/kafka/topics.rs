//! The topics in Kafka: which exist, and the creation of missing ones.

use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use tokio::runtime::Runtime;

use super::connection_cause::{self, Causes};
use super::{
    ADMIN_TIMEOUT, Config, Context, LEDGER_RETENTION, METADATA_STEP, METADATA_TIMEOUT, SetupError,
};

/// How long brokers may take to return the settings of topics. Some compatible systems do not have
/// this request, and librdkafka waits for the whole time.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(5);

/// The topics of livebridge in Kafka.
#[derive(Debug)]
pub struct TopicState {
    /// The topics that do not exist.
    pub missing: Vec<String>,
    /// The number of brokers.
    brokers: usize,
}

/// What to do about a topic that Kafka does not create.
fn advice(error: &KafkaError) -> &'static str {
    match error.rdkafka_error_code() {
        Some(
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::UnsupportedFeature
            | Code::UnsupportedVersion,
        ) => {
            "; create the topics by other means and set kafka.create_topics = false, or allow this user \
             CREATE on them"
        }
        Some(Code::InvalidReplicationFactor) => {
            "; set kafka.replication to as many brokers as there are at most (-1 for their default)"
        }
        Some(Code::InvalidPartitions) => "; set kafka.partitions to a number that Kafka allows",
        Some(Code::PolicyViolation) => {
            "; set kafka.partitions and kafka.replication to what its policy allows"
        }
        _ => "",
    }
}

impl Config {
    /// Creates those of `topics`, and the `ledger` topic, that are missing.
    ///
    /// # Errors
    /// [`SetupError`] when Kafka cannot be reached, rejects one, or has a ledger that cannot be
    /// used.
    pub fn make_topics(&self, topics: &[&str], ledger: &str) -> Result<(), SetupError> {
        let state = self.topic_state(topics, ledger)?;
        if state.missing.is_empty() {
            return Ok(());
        }
        if !self.create_topics {
            return Err(SetupError::Missing(state.missing.join(", ")));
        }
        self.create(&state, ledger, false)
    }

    /// Asks Kafka whether it would create the missing topics, without creating them.
    ///
    /// # Errors
    /// [`SetupError`] when it would not.
    pub fn try_topics(&self, state: &TopicState, ledger: &str) -> Result<(), SetupError> {
        self.create(state, ledger, true)
    }

    fn create(&self, state: &TopicState, ledger: &str, only_try: bool) -> Result<(), SetupError> {
        let missing = &state.missing;
        if usize::try_from(self.replication).is_ok_and(|replicas| replicas > state.brokers) {
            return Err(SetupError::Replication {
                replication: self.replication,
                brokers: state.brokers,
                topics: missing.join(", "),
            });
        }
        // With three replicas, one may be unavailable, and each record is still on two disks. With
        // the brokers' default number of replicas, their default minimum applies.
        let in_sync =
            (self.replication > 0).then(|| (self.replication - 1).clamp(1, 2).to_string());
        let retention = LEDGER_RETENTION.as_millis().to_string();
        let wanted: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|name| {
                let partitions = if name == ledger { 1 } else { self.partitions };
                let replication = TopicReplication::Fixed(self.replication);
                // Without it, the default of the brokers applies. Compaction would keep one event
                // of each stream, and one ledger record of each instance.
                let mut topic =
                    NewTopic::new(name, partitions, replication).set("cleanup.policy", "delete");
                if let Some(in_sync) = &in_sync {
                    topic = topic.set("min.insync.replicas", in_sync);
                }
                if name == ledger { topic.set("retention.ms", &retention) } else { topic }
            })
            .collect();
        let (admin, options, runtime) = self.admin()?;
        let options = options.validate_only(only_try);
        let rejected = |topic: &str, cause| SetupError::Rejected {
            what: format!("Kafka does not create topic {topic}"),
            advice: advice(&cause),
            cause,
        };
        let results =
            runtime.block_on(admin.create_topics(&wanted, &options)).map_err(|cause| {
                // A request that Kafka does not support is rejected once for all topics.
                match cause.rdkafka_error_code() {
                    Some(Code::UnsupportedFeature) => rejected(&missing.join(", "), cause),
                    _ => SetupError::unreachable(&cause),
                }
            })?;
        for result in results {
            match result {
                Ok(topic) if !only_try => tracing::info!(%topic, "topic created"),
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(rejected(&topic, KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }

    /// Which of `topics` and the `ledger` topic exist.
    ///
    /// # Errors
    /// [`SetupError`] when Kafka cannot be reached, or has a ledger that cannot be used.
    pub fn topic_state(&self, topics: &[&str], ledger: &str) -> Result<TopicState, SetupError> {
        let metadata = self.metadata()?;
        let found = metadata.topics().iter().find(|topic| topic.name() == ledger);
        let partitions = found.map_or(0, |topic| topic.partitions().len());
        if partitions > 1 {
            return Err(SetupError::LedgerPartitions { topic: ledger.to_owned(), partitions });
        }
        let wanted = topics.iter().copied().chain([ledger]);
        Ok(TopicState { missing: missing(&metadata, wanted), brokers: metadata.brokers().len() })
    }

    /// The policies of those of `topics` that are compacted, as `(topic, cleanup.policy)`.
    ///
    /// # Errors
    /// [`SetupError`] when Kafka does not answer the request.
    pub fn compacted_topics(&self, topics: &[&str]) -> Result<Vec<(String, String)>, SetupError> {
        let (admin, options, runtime) = self.admin()?;
        let options = options.request_timeout(Some(SETTINGS_TIMEOUT));
        let names: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let described = runtime
            .block_on(admin.describe_configs(&names, &options))
            .map_err(SetupError::topic_settings)?;
        let mut compacted = Vec::new();
        for topic in described {
            let topic =
                topic.map_err(|code| SetupError::topic_settings(KafkaError::AdminOp(code)))?;
            let policy = topic.get("cleanup.policy").and_then(|entry| entry.value.clone());
            if let (OwnedResourceSpecifier::Topic(name), Some(policy)) = (topic.specifier, policy)
                && policy.contains("compact")
            {
                compacted.push((name, policy));
            }
        }
        Ok(compacted)
    }

    /// A client for requests about topics, the options of a request, and a runtime to wait for it.
    fn admin(&self) -> Result<(AdminClient<Context>, AdminOptions, Runtime), SetupError> {
        let admin = self.base().create_with_context(Context).map_err(SetupError::Client)?;
        let options = AdminOptions::new()
            .operation_timeout(Some(ADMIN_TIMEOUT))
            .request_timeout(Some(ADMIN_TIMEOUT));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(SetupError::Runtime)?;
        Ok((admin, options, runtime))
    }

    /// Those of `topics` that Kafka does not have.
    ///
    /// # Errors
    /// [`SetupError`] when Kafka cannot be reached.
    pub fn missing_topics<'a>(
        &self,
        topics: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<String>, SetupError> {
        Ok(missing(&self.metadata()?, topics))
    }

    /// Kafka's metadata, or why it cannot be requested.
    fn metadata(&self) -> Result<Metadata, SetupError> {
        let consumer: BaseConsumer<Causes> = self
            .base()
            // A port with TLS closes the connection, which librdkafka only logs.
            .set("log.connection.close", "true")
            .set_log_level(RDKafkaLogLevel::Info)
            .create_with_context(Causes::default())
            .map_err(SetupError::Client)?;
        let started = Instant::now();
        loop {
            // The answer to an earlier attempt is lost, so that each may take as long as all before it.
            let timeout = METADATA_STEP.max(started.elapsed());
            match consumer.fetch_metadata(None, timeout) {
                Ok(metadata) => return Ok(metadata),
                Err(error) => {
                    let cause = connection_cause::recorded_cause(&consumer);
                    let lasting = cause.as_ref().is_some_and(|cause| cause.lasting);
                    // The second attempt is for a broker that is just starting.
                    if started.elapsed() >= if lasting { METADATA_STEP } else { METADATA_TIMEOUT } {
                        return Err(cause.map_or_else(
                            || SetupError::unreachable(&error),
                            SetupError::Connection,
                        ));
                    }
                }
            }
        }
    }
}

fn missing<'a>(metadata: &Metadata, wanted: impl Iterator<Item = &'a str>) -> Vec<String> {
    let present = |name: &str| {
        metadata.topics().iter().any(|topic| topic.name() == name && topic.error().is_none())
    };
    wanted.filter(|name| !present(name)).map(str::to_owned).collect()
}
