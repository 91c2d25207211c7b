//! The producer: one batch, one transaction, and what its failure means.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaError};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio_util::sync::CancellationToken;

use super::delivery::{Failed, Reports};
use super::{Config, Delivery, LEDGER_PARTITION, SetupError, text};
use crate::metrics;
use crate::record::Timestamp;

/// What goes to Kafka.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Chooses the partition.
    pub key: Option<&'a [u8]>,
    /// The record's value.
    pub value: Cow<'a, [u8]>,
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// The record's headers.
    pub headers: Vec<(&'a str, Cow<'a, str>)>,
    /// What the sender knows it by, should Kafka refuse it.
    pub index: usize,
}

impl Message<'_> {
    /// About as many bytes as it takes in Kafka.
    fn len(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        self.value.len() + self.key.map_or(0, <[u8]>::len) + headers.sum::<usize>()
    }
}

/// Why a batch is not in Kafka, sorted by what to do.
#[derive(Debug)]
pub enum Failure {
    /// Nothing of it is visible: send the same again, later.
    Retry(KafkaError),
    /// Nothing of it is visible: another instance came first with some of it.
    Contended,
    /// Nothing of it is visible, and Kafka will never take these messages.
    Rejected(Vec<RejectedMessage>),
    /// The producer is dead and it is not known whether the batch was committed: make a new one
    /// and read the ledger.
    Lost(KafkaError),
    /// As [`Failure::Lost`], because another producer took the transactional id.
    Fenced(KafkaError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry(cause) => write!(f, "nothing was published: {}", text(cause)),
            Self::Contended => f.write_str("another instance came first"),
            Self::Rejected(rejected) => write!(f, "Kafka rejects {} messages", rejected.len()),
            Self::Lost(cause) => write!(f, "the producer has failed: {}", text(cause)),
            Self::Fenced(cause) => write!(f, "another producer took over: {}", text(cause)),
        }
    }
}

/// A message that Kafka will never take.
#[derive(Debug)]
pub struct RejectedMessage {
    /// The message's `place`.
    pub index: usize,
    /// Whether it is this message that Kafka refused. Otherwise it was in company: Kafka refuses
    /// the messages that travel together because of one of them, or of all of them together.
    pub alone: bool,
    /// Whether Kafka would refuse larger messages to the same topic as well.
    pub by_size: bool,
    /// Why.
    pub reason: KafkaError,
}

/// The longest that a transaction may stay open, in Kafka's eyes. An abandoned one holds up every
/// `read_committed` consumer for so long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages are given up before their transaction is, so that the error names the cause.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(25);
/// How long one call of the transaction API blocks before it is resumed.
const CALL: Duration = Duration::from_secs(2);
/// A silence of Kafka that is longer is said: one that is frozen keeps its connections, and nothing
/// else would tell.
const SILENCE: Duration = Duration::from_secs(10);
/// How long to leave Kafka alone between two looks for delivery reports. `BaseProducer::poll` spins
/// through what is left of its time-out below a millisecond, so it is given none.
const PAUSE: Duration = Duration::from_micros(200);
/// Bytes of messages that travel together: what brokers take unless they are told otherwise.
pub const REQUEST_BYTES: usize = 1024 * 1024;
/// How long the cause is waited for when librdkafka has dropped messages.
const CAUSE: Duration = Duration::from_secs(1);
/// Messages between two polls while a batch is being sent.
const POLL_EVERY: usize = 512;

/// A producer with its transactions initialised: its predecessor's open transaction is settled.
pub struct Producer {
    client: BaseProducer<Reports>,
    transactional: bool,
    /// Messages that are not larger travel in sets that are not larger.
    request_bytes: usize,
    /// What Kafka takes then does not go by length.
    compresses: bool,
    give_up: CancellationToken,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("transactional", &self.transactional)
            .finish_non_exhaustive()
    }
}

impl Producer {
    /// Connects. Blocks while Kafka is away, until `give_up`. Messages are sent in sets of up to
    /// `request_bytes`, or one by one when they are larger.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn connect(
        config: &Config,
        request_bytes: usize,
        give_up: CancellationToken,
    ) -> Result<Self, SetupError> {
        let transactional = config.delivery == Delivery::ExactlyOnce;
        let configured = config.client.get("batch.size").and_then(|bytes| bytes.parse().ok());
        let request_bytes =
            configured.map_or(request_bytes, |bytes: usize| bytes.min(request_bytes));
        let producer: BaseProducer<Reports> = settings(config, request_bytes)
            .create_with_context(Reports::default())
            .map_err(SetupError::Client)?;
        let compresses = config.client.keys().any(|name| name.starts_with("compression"));
        let producer = Self { client: producer, transactional, request_bytes, compresses, give_up };
        if transactional {
            producer.resume(|p| p.init_transactions(CALL)).map_err(|cause| {
                SetupError::Transactions { instance: config.instance.clone(), cause }
            })?;
        }
        Ok(producer)
    }

    /// Hands a batch to Kafka, all of it or none: until [`Self::commit`], nobody sees it. `meanwhile`
    /// is done while Kafka is busy with it. Returns the offset of its `ledger` record.
    ///
    /// Without transactions everybody sees what is there, and some of it may be there after a failure;
    /// so the record, which says that the rest is there, then waits for the rest.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn hand_over<'m, M: Iterator<Item = Message<'m>>>(
        &self,
        ledger: Option<&Message<'_>>,
        messages: impl Fn() -> M,
        meanwhile: impl FnOnce(),
    ) -> Result<i64, Failure> {
        let reports = self.client.context();
        reports.expect(ledger.map(|ledger| ledger.index));
        self.begin()?;
        for (index, message) in messages().enumerate() {
            self.send(&message, None);
            if index % POLL_EVERY == POLL_EVERY - 1 {
                self.client.poll(Duration::ZERO);
            }
        }
        if let Some(ledger) = ledger.filter(|_| self.transactional) {
            self.send(ledger, Some(LEDGER_PARTITION));
        }
        meanwhile();
        let mut outcome = self.drain(ledger, &messages);
        if let Some(ledger) = ledger.filter(|_| !self.transactional && outcome.is_ok()) {
            self.send(ledger, Some(LEDGER_PARTITION));
            outcome = self.drain(Some(ledger), &messages);
        }
        match outcome {
            Ok(()) => Ok(reports.ledger_offset()),
            Err(failure) => {
                self.abort()?;
                Err(failure)
            }
        }
    }

    /// Lets librdkafka say how it is, while there is nothing to send.
    pub fn serve(&self) {
        self.client.poll(Duration::ZERO);
    }

    /// Sends to every one of `topics`, each in a transaction that is aborted: tells which of them may
    /// not be written, and why.
    ///
    /// # Errors
    /// Why not, topic by topic.
    pub fn rehearse(&self, topics: &[&str]) -> Result<(), String> {
        let failures: Vec<String> =
            topics.iter().filter_map(|topic| self.rehearse_one(topic).err()).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    fn rehearse_one(&self, topic: &str) -> Result<(), String> {
        let failed = |failure: Failure| format!("{topic}: {failure}");
        let reports = self.client.context();
        reports.take_transaction_error();
        self.begin().map_err(failed)?;
        let message = Message {
            topic,
            key: None,
            value: Cow::Borrowed(b"{}"),
            timestamp: Timestamp::now(),
            headers: Vec::new(),
            index: 0,
        };
        self.send(&message, None);
        while self.poll() {}
        let report = reports.take().pop();
        let aborted = self.abort();
        let Some(report) = report else { return aborted.map_err(failed) };
        let logged = reports.take_transaction_error().filter(|_| report.is_purged());
        let cause = logged.unwrap_or_else(|| text(&report.error));
        let denied = cause.to_lowercase().contains("topic authorization failed");
        let advice = if denied { "; allow this user WRITE on it" } else { "" };
        Err(format!("{topic}: {cause}{advice}"))
    }

    fn begin(&self) -> Result<(), Failure> {
        if !self.transactional {
            return Ok(());
        }
        self.client.begin_transaction().map_err(lost)
    }

    /// Hands a message over, to `partition` or to the one that its key chooses; what is wrong with
    /// it shows in [`Self::drain`].
    fn send(&self, message: &Message<'_>, partition: Option<i32>) {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
        }
        let mut record = BaseRecord {
            topic: message.topic,
            partition,
            payload: Some(&*message.value),
            key: message.key,
            timestamp: Some(message.timestamp.as_millis()),
            headers: Some(headers),
            delivery_opaque: message.index,
        };
        loop {
            match self.client.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                    record = back;
                    self.poll();
                }
                Err((error, _)) => {
                    let failed = Failed { index: message.index, error, here: true };
                    return self.client.context().failed(failed);
                }
            }
        }
    }

    /// Waits until Kafka has answered for every message, or has failed one: librdkafka then sends
    /// no more of the transaction, and the rest would time out.
    fn drain<'m, M: Iterator<Item = Message<'m>>>(
        &self,
        ledger: Option<&Message<'_>>,
        messages: impl Fn() -> M,
    ) -> Result<(), Failure> {
        let mut purged: Option<Instant> = None;
        while self.poll() {
            if self.give_up.is_cancelled() {
                return Err(Failure::Retry(KafkaError::Canceled));
            }
            match self.client.context().look() {
                (_, true) => break,
                // Why is reported last, if it is for a message that it happened.
                (true, false) if purged.get_or_insert_with(Instant::now).elapsed() > CAUSE => break,
                _ => {}
            }
        }
        let failed = self.client.context().take();
        let (refused, passing): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|failed| is_refusal(&failed.error));
        if !refused.is_empty() {
            let lengths = messages().map(|message| (message.index, message.len()));
            let ledger = ledger.map(|ledger| (ledger.index, ledger.len()));
            let lengths: HashMap<usize, usize> = lengths.chain(ledger).collect();
            let refused = refused.into_iter().map(|Failed { index, error, here }| {
                let length = lengths.get(&index).copied().unwrap_or_default();
                let alone = here || length >= self.request_bytes;
                let too_large = error.rdkafka_error_code() == Some(Code::MessageSizeTooLarge);
                RejectedMessage {
                    index,
                    alone,
                    by_size: too_large && !self.compresses,
                    reason: error,
                }
            });
            return Err(Failure::Rejected(refused.collect()));
        }
        match passing.into_iter().min_by_key(Failed::is_purged) {
            Some(failed) => Err(Failure::Retry(failed.error)),
            None => Ok(()),
        }
    }

    /// Takes in the delivery reports that are there, and waits a little if some are not. Returns
    /// whether there are messages without one.
    fn poll(&self) -> bool {
        let mut before = self.client.in_flight_count();
        while before > 0 {
            self.client.poll(Duration::ZERO);
            let left = self.client.in_flight_count();
            if left == before {
                std::thread::sleep(PAUSE);
                return true;
            }
            before = left;
        }
        false
    }

    /// Makes what was handed over visible.
    ///
    /// After a time-out the same call is resumed: only Kafka knows whether the commit happened.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn commit(&self) -> Result<(), Failure> {
        if !self.transactional {
            return Ok(());
        }
        match self.resume(|producer| producer.commit_transaction(CALL)) {
            Ok(()) => Ok(()),
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                self.abort()?;
                Err(Failure::Retry(KafkaError::Transaction(error)))
            }
            Err(error) => Err(lost(error)),
        }
    }

    /// Undoes what was handed over.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn abort(&self) -> Result<(), Failure> {
        self.client.purge(PurgeConfig::default().queue().inflight());
        while self.poll() {}
        self.client.context().take();
        if !self.transactional {
            return Ok(());
        }
        self.resume(|producer| producer.abort_transaction(CALL)).map_err(lost)
    }

    /// Calls until the answer is not that the call should be resumed.
    fn resume(&self, call: impl Fn(&BaseProducer<Reports>) -> KafkaResult<()>) -> KafkaResult<()> {
        let started = Instant::now();
        let mut said = false;
        loop {
            match call(&self.client) {
                Err(KafkaError::Transaction(error))
                    if error.is_retriable()
                        && !is_unsupported(error.code())
                        && !self.give_up.is_cancelled() =>
                {
                    if started.elapsed() > SILENCE && !std::mem::replace(&mut said, true) {
                        metrics::kafka_up(false);
                        tracing::error!(
                            error = text(&KafkaError::Transaction(error)),
                            "Kafka does not answer; callbacks are still taken and stored"
                        );
                    }
                    // What librdkafka has to say piles up until it is asked for: its statistics would
                    // fill the memory while Kafka is away.
                    self.client.poll(Duration::ZERO);
                    // An answer that comes at once must not become a busy loop.
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => {
                    if said {
                        let after_seconds = started.elapsed().as_secs();
                        tracing::info!(after_seconds, "Kafka answers again");
                    }
                    return outcome;
                }
            }
        }
    }
}

/// librdkafka's settings for a producer.
pub(super) fn settings(config: &Config, request_bytes: usize) -> ClientConfig {
    let mut client = config.base();
    client
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", MESSAGE_TIMEOUT.as_millis().to_string())
        .set("batch.size", request_bytes.to_string())
        .set("statistics.interval.ms", config.statistics_interval())
        .set_log_level(RDKafkaLogLevel::Warning);
    for (name, default) in [
        // Streams land where Java producers put them.
        ("partitioner", "murmur2_random"),
        // A batch is sent as a whole: waiting for more of it gains nothing.
        ("linger.ms", "1"),
        ("queue.buffering.max.messages", "200000"),
    ] {
        if !config.client.contains_key(name) {
            client.set(name, default);
        }
    }
    if config.delivery == Delivery::ExactlyOnce {
        client
            .set("transactional.id", &config.instance)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string());
    }
    client
}

/// Whether Kafka has no transactions: librdkafka would ask again for ever.
fn is_unsupported(code: Code) -> bool {
    matches!(
        code,
        Code::UnsupportedVersion | Code::UnsupportedForMessageFormat | Code::InvalidRequest
    )
}

fn lost(error: KafkaError) -> Failure {
    let fenced = |error: &RDKafkaError| {
        matches!(error.code(), Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
    };
    match &error {
        KafkaError::Transaction(cause) if fenced(cause) => Failure::Fenced(error),
        _ => Failure::Lost(error),
    }
}

/// Whether the message itself is at fault, so that sending it again would fail again.
///
/// Authorization is not: an operator mends it. An unknown topic is not: it comes back.
fn is_refusal(error: &KafkaError) -> bool {
    let (KafkaError::MessageProduction(code) | KafkaError::Global(code)) = error else {
        return false;
    };
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidTopic
    )
}
