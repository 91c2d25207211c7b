//! Publishes the log's durable records in order, one transaction after another, without those that
//! are published already.
//!
//! A batch is what became durable while the last transaction ran and during the pause after it
//! (pace.rs). Its transaction contains the events and one ledger record, so that after any crash the
//! ledger lists exactly what Kafka has. While Kafka is busy with a full batch, the next one is read.
//!
//! The publisher runs in sessions (session.rs): each has a producer of its own, and ends when that has
//! failed or needs other settings.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::event::Timestamp;
use crate::kafka::{self, Failure, LedgerReader, Producer, ProducerSettings, SetupError};
use crate::ledger::{self, Commit, Ledger};
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::outage::OutageLog;
use crate::wal::Reader;

mod batch;
mod batch_size;
mod contention;
mod events;
mod fencing;
mod message;
mod pace;
pub mod quarantine;
pub mod replay;
mod request_size;
mod session;
mod source;
mod topics;

// Public for tests/promise/protocol_model.rs, which checks these decisions and not a copy of them.
#[doc(hidden)]
pub use batch::Batch;
#[doc(hidden)]
pub use batch_size::BatchLimits;
#[doc(hidden)]
pub use contention::OpenCommits;
pub use message::{id_of, is_replayed, occurred_at, received_at, subject};
pub use replay::{Exported, is_command};
pub use topics::Topics;

use fencing::{Fence, Fences};
use pace::Pace;
use quarantine::Quarantine;
use request_size::RequestSize;
use session::SessionEnd;
use source::{BatchSource, Input};

/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pauses between attempts to publish.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(100), LONGEST_PAUSE);
/// The longest pause of an instance that aborted for another one. Two that meet again and again come
/// apart sooner the longer they pause.
const CONTENDED: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(640));

/// A rejected record cannot be stored.
const QUARANTINE_OUTAGE: OutageLog = OutageLog::new(
    "cannot store a record that Kafka rejects, so nothing behind it is published; \
     callbacks are still accepted and stored, trying again; is the disk full?",
    "the quarantine can be written again",
    metrics::quarantine_ok,
);
/// The log cannot be read.
const LOG_OUTAGE: OutageLog = OutageLog::new(
    "cannot read the log, so nothing is published; callbacks are still accepted and stored, \
     trying again",
    "the log can be read again",
    metrics::wal_read_ok,
);

/// Why the publisher cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// Another process has the same name.
    #[error(
        "another livebridge publishes as kafka.instance = {0:?}; give every instance its own name"
    )]
    Fenced(String),
    /// The producer failed, and without a ledger it is unknown whether the last batch is published.
    #[error("the producer has failed: {0}")]
    OutcomeUnknown(String),
}

/// The publisher, on its own thread.
#[derive(Debug)]
pub struct Publisher {
    source: BatchSource,
    kafka: kafka::Config,
    topics: Topics,
    ledger: Ledger,
    /// Kept from session to session; `None` before the ledger is read, and without a ledger.
    ledger_reader: Option<LedgerReader>,
    open_commits: OpenCommits,
    /// Pauses after consecutive transactions that were aborted for another instance's.
    contended: Backoff,
    give_up: CancellationToken,
    /// Read from the source and not known to be in Kafka, in order.
    queue: VecDeque<Batch>,
    limits: BatchLimits,
    pace: Pace,
    /// Whether the last transaction was full, so that more is waiting.
    backlog: bool,
    request_size: RequestSize,
    /// Whether the brokers offer idempotence; only without transactions they may not.
    idempotent: bool,
    quarantine_outage: OutageLog,
    log_outage: OutageLog,
    fences: Fences,
}

impl Publisher {
    /// Publishes what `reader` reads, until the log ends, or until `give_up`.
    #[must_use]
    pub fn new(
        reader: Reader,
        kafka: kafka::Config,
        topics: Topics,
        dedup: ledger::Config,
        quarantine: PathBuf,
        give_up: CancellationToken,
    ) -> Self {
        let ledger = Ledger::new(reader.lineage(), dedup);
        let source = BatchSource::Log { reader, quarantine: Quarantine::new(quarantine) };
        Self::with(source, ledger, kafka, topics, give_up)
    }

    fn with(
        source: BatchSource,
        ledger: Ledger,
        kafka: kafka::Config,
        topics: Topics,
        give_up: CancellationToken,
    ) -> Self {
        Self {
            source,
            kafka,
            topics,
            ledger,
            ledger_reader: None,
            open_commits: OpenCommits::default(),
            contended: CONTENDED,
            give_up,
            queue: VecDeque::new(),
            limits: BatchLimits::default(),
            pace: Pace::new(Instant::now()),
            backlog: false,
            request_size: RequestSize::new(),
            idempotent: true,
            quarantine_outage: QUARANTINE_OUTAGE,
            log_outage: LOG_OUTAGE,
            fences: Fences::default(),
        }
    }

    /// Runs session after session.
    ///
    /// # Errors
    /// [`PublisherError`], when no further session would help.
    pub fn run(mut self) -> Result<(), PublisherError> {
        self.run_with(None)
    }

    /// As [`Self::run`]; the first session uses `connected`, if there is one.
    fn run_with(&mut self, mut connected: Option<Producer>) -> Result<(), PublisherError> {
        let mut retries = RETRIES;
        while !self.give_up.is_cancelled() {
            let started = Instant::now();
            let producer = connected.take().map_or_else(|| self.connect(), Ok);
            let end = match producer {
                Ok(producer) => self.run_session(&producer),
                Err(cause) => SessionEnd::Setup(cause),
            };
            match end {
                SessionEnd::Done => return Ok(()),
                // No pause: the next session differs from this one. That ends, because sizes and numbers
                // are halved to one at most.
                SessionEnd::Replace => continue,
                SessionEnd::ShrinkRequests => {
                    self.request_size.shrink();
                    continue;
                }
                SessionEnd::Setup(cause) if self.shortens_timeouts(&cause) => continue,
                SessionEnd::Setup(cause) => {
                    self.ledger_reader = None;
                    kafka::report_failure(&cause);
                }
                SessionEnd::Lost { failure, late } => self.producer_lost(failure, late)?,
                SessionEnd::Abandoned => {}
            }
            if started.elapsed() > LONGEST_PAUSE {
                retries.reset();
            }
            self.wait(retries.pause());
        }
        Ok(())
    }

    /// Whether the brokers reject the time-out of transactions and a shorter one is tried next.
    fn shortens_timeouts(&mut self, cause: &SetupError) -> bool {
        let shortens = cause.is_transaction_timeout_rejected()
            && self.limits.on_transaction_timeout_rejected();
        if shortens {
            let doublings = self.limits.timeout_doublings();
            tracing::warn!(%cause, doublings, "going on with a shorter time-out");
        }
        shortens
    }

    /// The producer failed. `late`: its transaction had been open for as long as Kafka allows.
    ///
    /// # Errors
    /// [`PublisherError`], when no other producer would help.
    fn producer_lost(&mut self, failure: Failure, late: bool) -> Result<(), PublisherError> {
        match failure {
            // Only a ledger contains whether the last batch was committed.
            Failure::Fenced(_) if !self.source.has_ledger() => {
                return Err(PublisherError::Fenced(self.kafka.instance.clone()));
            }
            Failure::Lost(cause) if !self.source.has_ledger() && self.kafka.is_transactional() => {
                return Err(PublisherError::OutcomeUnknown(kafka::text(&cause)));
            }
            Failure::Fenced(cause) => return self.fenced(&kafka::text(&cause), late),
            Failure::NotIdempotent(cause) => {
                self.idempotent = false;
                tracing::warn!(
                    cause = kafka::text(&cause),
                    "the brokers have no idempotent producers; one request at a time is sent, \
                     and one whose answer is lost is sent again, so events may repeat"
                );
            }
            failure => kafka::report_failure(&failure),
        }
        Ok(())
    }

    /// Makes a producer first, which ends its predecessor's open transaction, and then reads the
    /// ledger.
    fn connect(&mut self) -> Result<Producer, SetupError> {
        self.make_topics()?;
        let settings = ProducerSettings {
            request_bytes: self.request_size.bytes,
            timeout_doublings: self.limits.timeout_doublings(),
            idempotent: self.idempotent,
            ..ProducerSettings::default()
        };
        let producer = Producer::connect(&self.kafka, &settings, self.give_up.clone())?;
        metrics::session();
        if !self.source.has_ledger() {
            return Ok(producer);
        }
        let started = Instant::now();
        let mut reader = match self.ledger_reader.take() {
            Some(reader) => reader,
            None => self.open_ledger()?,
        };
        let topic = self.topics.ledger();
        let commits = reader.read_to_end(
            &self.give_up,
            |bytes| apply(&mut self.ledger, &self.source, bytes),
            || producer.end_forgotten_transaction(topic),
        )?;
        self.ledger_reader = Some(reader);
        tracing::info!(
            commits,
            elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "connected to Kafka; the ledger is read"
        );
        Ok(producer)
    }

    /// A reader of the ledger from where it matters to the records that are still to be published.
    fn open_ledger(&mut self) -> Result<LedgerReader, SetupError> {
        let oldest = self.read_oldest();
        self.open_commits = OpenCommits::default();
        let window = self.ledger.window();
        LedgerReader::open(&self.kafka, self.topics.ledger(), |bounds, offset_at| {
            self.source.ledger_start(window, oldest, bounds, offset_at)
        })
    }

    /// Creates the topics that are missing.
    fn make_topics(&self) -> Result<(), SetupError> {
        if !self.source.has_ledger() {
            // All events go to one topic, which exists.
            return Ok(());
        }
        self.kafka.make_topics(&self.topics.all(), self.topics.ledger())
    }

    /// Applies what has arrived of the ledger topic: commits of other instances, and own ones.
    fn follow_ledger(&mut self) {
        let Some(reader) = &mut self.ledger_reader else { return };
        reader.read_arrived(|bytes| apply(&mut self.ledger, &self.source, bytes));
        self.open_commits.forget(reader.next());
        if let Some(hidden) = reader.hidden() {
            static LIMIT: LogLimiter = LogLimiter::new();
            if let Some(suppressed) = LIMIT.permit() {
                tracing::error!(
                    suppressed,
                    "events are still published, until this instance restarts or meets an event of \
                     another one: {hidden}"
                );
            }
        }
    }

    /// Waits until every transaction in the ledger topic is decided, and applies it.
    fn await_ledger(&mut self) -> Result<(), SetupError> {
        let Some(reader) = &mut self.ledger_reader else { return Ok(()) };
        let apply = |bytes: &[u8]| apply(&mut self.ledger, &self.source, bytes);
        reader.read_to_end(&self.give_up, apply, || ())?;
        self.open_commits.forget(reader.next());
        Ok(())
    }

    /// When the oldest record that is still to be published was received; reads it into the queue.
    fn read_oldest(&mut self) -> Timestamp {
        if self.queue.is_empty() {
            match self.source.next(1, Duration::ZERO) {
                Ok(Input::Batch(batch)) => self.queue.push_back(batch),
                Ok(Input::Idle | Input::End) => {}
                // What cannot be read now may be of any age.
                Err(_) => return Timestamp::from_millis(0),
            }
        }
        let entries = self.queue.iter().flat_map(Batch::entries);
        let oldest = entries.map(|entry| entry.record.received_at).min();
        // A record from the future was received before the clock was set back.
        let now = Timestamp::now();
        oldest.map_or(now, |oldest| oldest.min(now))
    }

    /// Another producer took this instance's name, or a transaction timed out.
    ///
    /// # Errors
    /// [`PublisherError::Fenced`], when another process certainly has the name.
    fn fenced(&mut self, cause: &str, late: bool) -> Result<(), PublisherError> {
        metrics::fenced();
        let instance = &self.kafka.instance;
        match self.fences.record(Instant::now(), late) {
            Fence::SameName => return Err(PublisherError::Fenced(instance.clone())),
            Fence::Repeated(times) => tracing::error!(
                times,
                instance,
                "another producer took this instance's name several times within hours: probably \
                 another livebridge has the same kafka.instance; give every instance its own name"
            ),
            Fence::Single => {}
        }
        kafka::report_failure(&format_args!(
            "another producer took the name, or a time-out: {cause}"
        ));
        Ok(())
    }

    /// Waits for `pause`, or until `give_up`.
    fn wait(&self, pause: Duration) {
        /// How soon `give_up` is noticed.
        const STEP: Duration = Duration::from_millis(50);
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.give_up.is_cancelled() {
            std::thread::sleep(STEP);
        }
    }
}

/// Applies a record of the ledger topic.
fn apply(ledger: &mut Ledger, source: &BatchSource, bytes: &[u8]) {
    match Commit::decode(bytes) {
        Ok(mut commit) => {
            source.retain_relevant(&mut commit);
            ledger.apply(&commit, Instant::now());
        }
        Err(error) => {
            static SKIPPED: LogLimiter = LogLimiter::new();
            if let Some(suppressed) = SKIPPED.permit() {
                tracing::error!(%error, suppressed, "skipping a record of the ledger topic");
            }
        }
    }
}
