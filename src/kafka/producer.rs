//! The producer: publishes one batch, in one transaction, and classifies failures.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio_util::sync::CancellationToken;

use super::batch_failure::{BACKDATED_MAX, Failure, RejectedMessage};
use super::delivery_report::{FailedDelivery, Reports};
use super::setup_error::{is_denied, is_unsupported};
use super::{Config, ProducerSettings, SetupError, report_failure, text};
use crate::event::Timestamp;

/// A message for Kafka.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Chooses the partition.
    pub key: Option<&'a [u8]>,
    /// The record's value.
    pub value: Cow<'a, [u8]>,
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// The record's headers.
    pub headers: Vec<(&'a str, Cow<'a, str>)>,
    /// Identifies it in a [`Failure`].
    pub index: usize,
}

impl Message<'_> {
    /// Its approximate number of bytes in Kafka.
    fn len(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        self.value.len() + self.key.map_or(0, <[u8]>::len) + headers.sum::<usize>()
    }
}

/// How long one call of the transaction API blocks before it is resumed.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two polls for delivery reports. `BaseProducer::poll` spins for the part of its
/// time-out below a millisecond, so its time-out is zero.
const POLL_PAUSE: Duration = Duration::from_micros(500);
/// How long the cause is waited for when librdkafka has dropped messages.
const CAUSE_WAIT: Duration = Duration::from_secs(1);
/// Without transactions: how long answers to requests under way are waited for after a failure.
const ANSWERS_WAIT: Duration = Duration::from_mins(2);
/// How often a wait checks for a fatal error.
const FATAL_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// A missing answer is reported after this time: a frozen broker keeps its connections, so nothing
/// else shows it.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(10);
/// The pause before a call of the transaction API is resumed.
const RESUME_PAUSE: Duration = Duration::from_millis(20);
/// Messages between two polls while a batch is being sent.
const POLL_EVERY: usize = 512;

/// A producer with initialised transactions: the open transaction of its predecessor has ended.
pub struct Producer {
    client: BaseProducer<Reports>,
    transactional: bool,
    /// The highest number of bytes in one request that holds more than one message.
    request_bytes: usize,
    transaction_timeout: Duration,
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
    /// Connects. Blocks while Kafka is unreachable, until `give_up`.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn connect(
        config: &Config,
        settings: &ProducerSettings,
        give_up: CancellationToken,
    ) -> Result<Self, SetupError> {
        let transactional = config.is_transactional();
        let request_bytes = settings.request_bytes(config);
        let transaction_timeout = settings.transaction_timeout();
        let client = settings.client(config);
        let producer: BaseProducer<Reports> =
            client.create_with_context(Reports::new(!transactional)).map_err(SetupError::Client)?;
        let producer =
            Self { client: producer, transactional, request_bytes, transaction_timeout, give_up };
        if transactional {
            producer.resume(|p| p.init_transactions(CALL_TIMEOUT)).map_err(|cause| {
                SetupError::Transactions { instance: config.instance.clone(), cause }
            })?;
        }
        Ok(producer)
    }

    /// How long a transaction may stay open.
    #[must_use]
    pub fn transaction_timeout(&self) -> Duration {
        self.transaction_timeout
    }

    /// Whether an error has ended the producer, so that another one is needed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.client.client().fatal_error().is_some()
    }

    /// The indices of the messages that Kafka has stored. With transactions there are none: only
    /// the commit decides.
    #[must_use]
    pub fn take_delivered(&self) -> Vec<usize> {
        self.client.context().take_delivered()
    }

    /// Hands a batch to Kafka. With transactions it is visible after [`Self::commit`], all of it or
    /// nothing. `during` runs while Kafka is busy with it. Returns the offset of its `ledger`
    /// record.
    ///
    /// Without transactions the messages are visible at once, and after a failure some of them are
    /// ([`Self::take_delivered`]). The ledger record is then sent when all of them are delivered.
    ///
    /// # Errors
    /// [`Failure`]. With transactions the producer must not be used any more, and its transaction
    /// is left open: the next [`Self::connect`] aborts it under a higher epoch, which fences
    /// requests that are still under way. An abort by this producer would not, and events would be
    /// lost (docs/engine.md).
    pub fn hand_over<'m, M: Iterator<Item = Message<'m>>>(
        &self,
        ledger: Option<&Message<'_>>,
        messages: impl Fn() -> M,
        during: impl FnOnce(),
    ) -> Result<i64, Failure> {
        let reports = self.client.context();
        reports.set_ledger_index(ledger.map(|ledger| ledger.index));
        self.begin()?;
        for (index, message) in messages().enumerate() {
            self.send(&message);
            if index % POLL_EVERY == POLL_EVERY - 1 {
                self.client.poll(Duration::ZERO);
            }
        }
        if let Some(ledger) = ledger.filter(|_| self.transactional) {
            self.send(ledger);
        }
        during();
        let mut outcome = self.drain(ledger, &messages);
        if let Some(ledger) = ledger.filter(|_| !self.transactional && outcome.is_ok()) {
            self.send(ledger);
            outcome = self.drain(Some(ledger), &messages);
        }
        match outcome {
            Ok(()) => Ok(reports.ledger_offset()),
            Err(failure) => {
                self.discard();
                Err(failure)
            }
        }
    }

    /// Lets librdkafka report its statistics while no batch is being sent.
    pub fn serve(&self) {
        self.client.poll(Duration::ZERO);
    }

    /// Tests whether each of `topics` can be written, in a transaction that is aborted.
    ///
    /// # Errors
    /// The topics that cannot be written, each with the cause.
    pub fn test_write(&self, topics: &[&str]) -> Result<(), String> {
        let failures: Vec<String> =
            topics.iter().filter_map(|topic| self.test_write_to(topic).err()).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Ends a transaction of this transactional id in `topic` that no coordinator knows, by the
    /// marker of a further transaction (docs/engine.md).
    pub fn end_forgotten_transaction(&self, topic: &str) {
        if self.transactional
            && let Err(cause) = self.test_write_to(topic)
        {
            tracing::warn!(cause, "cannot end a transaction that this instance may have left open");
        }
    }

    fn test_write_to(&self, topic: &str) -> Result<(), String> {
        let failed = |failure: Failure| format!("{topic}: {failure}");
        self.begin().map_err(failed)?;
        // The newest and the oldest timestamp that a record can have.
        let now = Timestamp::now();
        for timestamp in [now, now.before(BACKDATED_MAX)] {
            let (value, headers) = (Cow::Borrowed(b"{}".as_slice()), Vec::new());
            self.send(&Message { topic, key: None, value, timestamp, headers, index: 0 });
        }
        while self.poll() && !self.give_up.is_cancelled() {}
        let reports = self.client.context().take_failed();
        let report = reports.into_iter().min_by_key(FailedDelivery::is_purged);
        let transaction_error = self.transaction_error();
        let aborted = self.abort();
        let Some(report) = report else { return aborted.map_err(failed) };
        if report.is_timestamp_rejected() {
            let topic = topic.to_owned();
            return Err(Failure::TimestampRejected { topic, cause: report.error }.to_string());
        }
        let cause = transaction_error.filter(|_| report.is_purged()).unwrap_or(report.error);
        let advice = if is_denied(&cause) { "; allow this user WRITE on it" } else { "" };
        Err(format!("{topic}: {}{advice}", text(&cause)))
    }

    /// Why the open transaction has failed; the delivery reports only say that its messages were
    /// dropped. librdkafka returns it to a call that is not valid before the transaction is aborted.
    fn transaction_error(&self) -> Option<KafkaError> {
        if !self.transactional {
            return None;
        }
        let error = self.client.begin_transaction().err();
        error.filter(|error| {
            !matches!(error.rdkafka_error_code(), Some(Code::State | Code::NoError))
        })
    }

    fn begin(&self) -> Result<(), Failure> {
        if !self.transactional {
            return Ok(());
        }
        self.client.context().take_denied_topic();
        self.client.begin_transaction().map_err(lost)
    }

    /// Hands a message over. [`Self::drain`] reports errors.
    ///
    /// The partition is left to librdkafka, for the ledger as well, whose topic has a single one:
    /// with a partition named here, librdkafka 2.12 committed transactions without some of their
    /// messages after an abort (tests/promise/faults.rs,
    /// `only_what_is_too_large_for_its_topic_becomes_a_dead_letter`).
    fn send(&self, message: &Message<'_>) {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
        }
        let mut record = BaseRecord {
            topic: message.topic,
            partition: None,
            payload: Some(&*message.value),
            key: message.key,
            timestamp: Some(message.timestamp.as_millis()),
            headers: Some(headers),
            delivery_opaque: message.index,
        };
        loop {
            match self.client.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(Code::QueueFull), back))
                    if !self.give_up.is_cancelled() =>
                {
                    record = back;
                    self.poll();
                }
                Err((error, _)) => {
                    let failed = FailedDelivery { index: message.index, error, is_local: true };
                    return self.client.context().record_failure(failed);
                }
            }
        }
    }

    /// Waits until Kafka has answered for every message, or has failed one: within a transaction
    /// librdkafka then sends no more, and the rest would time out.
    fn drain<'m, M: Iterator<Item = Message<'m>>>(
        &self,
        ledger: Option<&Message<'_>>,
        messages: impl Fn() -> M,
    ) -> Result<(), Failure> {
        let mut purged: Option<Instant> = None;
        let mut fatal_check_at = Instant::now() + FATAL_CHECK_INTERVAL;
        let mut answered_at = Instant::now();
        let mut left = self.client.in_flight_count();
        while self.poll() {
            if self.give_up.is_cancelled() {
                return Err(Failure::Retry(KafkaError::Canceled));
            }
            match self.client.context().failures() {
                (_, true) => break,
                // The reason is reported last, if it is another message's failure.
                (true, false) if purged.get_or_insert_with(Instant::now).elapsed() > CAUSE_WAIT => {
                    break;
                }
                _ => {}
            }
            if Instant::now() > fatal_check_at {
                if self.has_ended() {
                    break;
                }
                fatal_check_at = Instant::now() + FATAL_CHECK_INTERVAL;
                let before = std::mem::replace(&mut left, self.client.in_flight_count());
                if left != before {
                    answered_at = Instant::now();
                } else if answered_at.elapsed() > UNRESPONSIVE_AFTER {
                    report_failure(&"no answer to what was sent");
                }
            }
        }
        if !self.transactional {
            self.await_answers();
        }
        let failed = self.client.context().take_failed();
        let fatal = self.client.client().fatal_error();
        if let Some((code, reason)) = &fatal {
            tracing::warn!(?code, reason, "the producer has ended; another one replaces it");
        }
        if failed.is_empty() && fatal.is_none() {
            return Ok(());
        }
        Err(self.classify(failed, fatal.map(|(code, _)| code), ledger, messages))
    }

    /// Classifies failed deliveries and a fatal error of the producer.
    fn classify<'m, M: Iterator<Item = Message<'m>>>(
        &self,
        failed: Vec<FailedDelivery>,
        fatal: Option<Code>,
        ledger: Option<&Message<'_>>,
        messages: impl Fn() -> M,
    ) -> Failure {
        if let Some(at) = failed.iter().position(|failed| {
            failed.is_rejected() && ledger.is_some_and(|l| l.index == failed.index)
        }) {
            let error = failed.into_iter().nth(at).map(|failed| failed.error);
            return Failure::LedgerRejected(error.unwrap_or(KafkaError::Canceled));
        }
        let (rejected, passing) =
            failed.into_iter().partition::<Vec<_>, _>(FailedDelivery::is_rejected);
        if !rejected.is_empty() {
            return Failure::Rejected(self.rejected(rejected, messages()));
        }
        let topic = |failed: &FailedDelivery| {
            let sent = messages().find(|message| message.index == failed.index);
            sent.as_ref().or(ledger).map_or("", |message| message.topic).to_owned()
        };
        if let Some(failed) = passing.iter().find(|failed| failed.is_timestamp_rejected()) {
            let cause = failed.error.clone();
            return Failure::TimestampRejected { topic: topic(failed), cause };
        }
        let denied = passing.iter().find(|failed| is_denied(&failed.error)).map(topic);
        if let Some(topic) = denied.or_else(|| self.client.context().take_denied_topic()) {
            return Failure::Denied { topic };
        }
        let cause = passing.into_iter().find(|failed| !failed.is_purged());
        let cause = cause.map(|failed| failed.error).or_else(|| self.transaction_error());
        match (fatal, cause) {
            (Some(Code::UnsupportedFeature), _) => {
                Failure::NotIdempotent(KafkaError::Global(Code::UnsupportedFeature))
            }
            (Some(code), _) if is_fenced(code) => Failure::Fenced(KafkaError::Global(code)),
            (Some(code), cause) => Failure::Lost(cause.unwrap_or(KafkaError::Global(code))),
            (None, Some(cause)) if cause.rdkafka_error_code() == Some(Code::MessageTimedOut) => {
                Failure::TimedOut(cause)
            }
            (None, cause) => Failure::Retry(cause.unwrap_or(KafkaError::Canceled)),
        }
    }

    /// Which of the messages in rejected requests are rejected themselves: those that did not leave
    /// this process, those too large to share a request, and the only ones of the batch for their
    /// topic. Nothing else shows how many a request had, because the reports of one request can
    /// arrive after the wait for them has ended.
    fn rejected<'m>(
        &self,
        rejected: Vec<FailedDelivery>,
        messages: impl Iterator<Item = Message<'m>>,
    ) -> Vec<RejectedMessage> {
        let mut sent = HashMap::new();
        let mut in_topic: HashMap<&str, usize> = HashMap::new();
        for message in messages {
            sent.insert(message.index, (message.topic, message.len()));
            *in_topic.entry(message.topic).or_default() += 1;
        }
        let message = |FailedDelivery { index, error, is_local }: FailedDelivery| {
            let alone = sent.get(&index).is_some_and(|(topic, length)| {
                *length >= self.request_bytes || in_topic[topic] == 1
            });
            RejectedMessage { index, is_specific: is_local || alone, reason: error }
        };
        rejected.into_iter().map(message).collect()
    }

    /// Without transactions, after a failure: drops what was not sent, and waits for the answers to
    /// what was. A message that is dropped unanswered may be in Kafka, and would be sent again.
    fn await_answers(&self) {
        let until = Instant::now() + ANSWERS_WAIT;
        let mut purge_at = Instant::now();
        while self.poll() && Instant::now() < until && !self.give_up.is_cancelled() {
            // What is rejected while it was under way comes back into the queue, to be tried again.
            if Instant::now() >= purge_at {
                self.client.purge(PurgeConfig::default().queue());
                purge_at = Instant::now() + FATAL_CHECK_INTERVAL;
            }
        }
    }

    /// Handles available delivery reports, and pauses if some are missing. Returns whether messages
    /// without a report are left.
    fn poll(&self) -> bool {
        let mut before = self.client.in_flight_count();
        while before > 0 {
            self.client.poll(Duration::ZERO);
            let left = self.client.in_flight_count();
            if left == before {
                std::thread::sleep(POLL_PAUSE);
                return true;
            }
            before = left;
        }
        false
    }

    /// Commits the transaction, which makes its messages visible.
    ///
    /// After a time-out, the same call is resumed: only Kafka knows whether the commit happened.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn commit(&self) -> Result<(), Failure> {
        if !self.transactional {
            return Ok(());
        }
        self.resume(|producer| producer.commit_transaction(CALL_TIMEOUT)).map_err(lost)
    }

    /// Aborts the transaction, whose messages are all delivered or rejected.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn abort(&self) -> Result<(), Failure> {
        if !self.transactional {
            return Ok(());
        }
        self.resume(|producer| producer.abort_transaction(CALL_TIMEOUT)).map_err(lost)
    }

    /// Drops the messages that are not delivered.
    fn discard(&self) {
        if self.transactional && self.give_up.is_cancelled() {
            // No producer follows, so without an abort consumers would wait for the time-out.
            drop(self.abort());
        }
        self.client.purge(PurgeConfig::default().queue().inflight());
        while self.poll() {}
        self.client.context().take_failed();
    }

    /// Repeats `call` while Kafka's answer asks for it.
    fn resume(&self, call: impl Fn(&BaseProducer<Reports>) -> KafkaResult<()>) -> KafkaResult<()> {
        let started = Instant::now();
        loop {
            match call(&self.client) {
                Err(KafkaError::Transaction(error))
                    if error.is_retriable()
                        && !is_unsupported(error.code())
                        && !self.give_up.is_cancelled() =>
                {
                    if started.elapsed() > UNRESPONSIVE_AFTER {
                        report_failure(&text(&KafkaError::Transaction(error)));
                    }
                    // Otherwise librdkafka's statistics would fill the memory while Kafka is
                    // unreachable.
                    self.client.poll(Duration::ZERO);
                    // An immediate answer must not cause a busy loop.
                    std::thread::sleep(RESUME_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

fn lost(error: KafkaError) -> Failure {
    match &error {
        KafkaError::Transaction(cause) if is_fenced(cause.code()) => Failure::Fenced(error),
        _ => Failure::Lost(error),
    }
}

/// Whether another producer took the transactional id.
fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}
