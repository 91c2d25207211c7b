//! Durable entries, in order, minus those already published, one transaction after another.
//!
//! A batch is whatever became durable while the last transaction ran. Its transaction carries the
//! events and one ledger record, so that after any crash the ledger tells exactly what Kafka has.
//! While Kafka is busy with a full one, the next is read.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::kafka::{self, Failure, LedgerReader, Producer, SetupError};
use crate::ledger::{self, Commit, Ledger};
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::record::Timestamp;
use crate::wal::{Entries, Next, OpeningId, ReadError, Reader};

pub mod audit;
mod batch;
mod contention;
mod outage;
pub mod quarantine;
pub mod replay;
mod topics;

pub use replay::Exported;
pub use topics::{Topics, TopicsError};
// Public so that tests/protocol_model.rs checks these decisions and not a copy of them.
#[doc(hidden)]
pub use batch::Batch;
#[doc(hidden)]
pub use contention::OpenCommits;

use outage::OutageLog;

/// Bytes of records per transaction.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Transactions begin at least so far apart, unless a batch is full: a transaction costs Kafka and
/// us about the same with one record as with a hundred.
const PACE: Duration = Duration::from_millis(5);
/// How long a wait for records lasts before a look at the order to stop.
const IDLE: Duration = Duration::from_millis(500);
/// Pauses between attempts: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Fenced again within this time after starting anew, this instance has a living namesake.
const FENCED_AGAIN: Duration = Duration::from_mins(1);

/// Why the publisher cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// The quarantine cannot be written, so the line cannot move on.
    #[error("cannot write to the quarantine {path}: {cause}", path = path.display())]
    Quarantine {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// Two processes with one name.
    #[error(
        "another livebridge publishes as kafka.instance = {0:?}; give every instance its own name"
    )]
    Fenced(String),
}

/// The publisher, on its own thread.
#[derive(Debug)]
pub struct Publisher {
    reader: Reader,
    kafka: kafka::Config,
    topics: Topics,
    ledger: Ledger,
    /// Where the ledger topic is read up to; kept from session to session.
    ledger_reader: Option<LedgerReader>,
    open_commits: OpenCommits,
    /// Batches in a row that gave way to another instance.
    contentions: u32,
    quarantine: PathBuf,
    give_up: CancellationToken,
    /// Read from the log at one time each, and not known to be in Kafka.
    unfinished: VecDeque<Entries>,
    /// When the last transaction began.
    began: Instant,
    /// Whether it was full, so that more is waiting.
    backlog: bool,
    request_size: RequestSize,
    outage: OutageLog,
    fenced: Option<Instant>,
}

/// Why a session ended.
enum SessionEnd {
    /// The log has ended and all of it is published, or there is an order to give up.
    Done,
    /// Start a new one.
    Lost(Failure),
    /// So did the ledger, or its topic.
    Setup(SetupError),
    /// Kafka refuses messages that travel together: send fewer at once.
    Shrink,
    /// That was long ago: try with more at once.
    Grow,
    /// Another instance came first with some of the batch: see what becomes of it.
    Contended,
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
        Self {
            reader,
            kafka,
            topics,
            ledger,
            ledger_reader: None,
            open_commits: OpenCommits::default(),
            contentions: 0,
            quarantine,
            give_up,
            unfinished: VecDeque::new(),
            began: Instant::now(),
            backlog: false,
            request_size: RequestSize::new(),
            outage: OutageLog::default(),
            fenced: None,
        }
    }

    /// Runs session after session.
    ///
    /// # Errors
    /// [`PublisherError`], when no further session would help.
    pub fn run(mut self) -> Result<(), PublisherError> {
        let mut pause = BACKOFF.0;
        while !self.give_up.is_cancelled() {
            let started = Instant::now();
            let ended = match self.connect() {
                Ok(producer) => {
                    self.outage.resolved();
                    self.publish(&producer)?
                }
                Err(cause) => SessionEnd::Setup(cause),
            };
            match ended {
                SessionEnd::Done => return Ok(()),
                SessionEnd::Lost(Failure::Fenced(cause)) => self.fenced(&kafka::text(&cause))?,
                SessionEnd::Lost(failure) => self.outage.report(&failure),
                SessionEnd::Shrink => {
                    self.request_size.shrink();
                    continue;
                }
                SessionEnd::Grow | SessionEnd::Contended => continue,
                SessionEnd::Setup(cause) => {
                    self.ledger_reader = None;
                    self.outage.report(&cause);
                }
            }
            if started.elapsed() > BACKOFF.1 {
                pause = BACKOFF.0;
            }
            self.wait(&mut pause);
        }
        Ok(())
    }

    /// A producer first, which settles what its predecessor left open; then what the ledger says.
    fn connect(&mut self) -> Result<Producer, SetupError> {
        self.kafka.make_topics(&self.topics.all(), self.topics.ledger())?;
        let producer =
            Producer::connect(&self.kafka, self.request_size.bytes, self.give_up.clone())?;
        metrics::session();
        let started = Instant::now();
        let mut reader = if let Some(reader) = self.ledger_reader.take() {
            reader
        } else {
            let oldest = self.oldest();
            let since = self.ledger.horizon(oldest);
            self.open_commits = OpenCommits::default();
            LedgerReader::open(&self.kafka, self.topics.ledger(), since)?
        };
        let ledger = &mut self.ledger;
        let commits = reader.read_to_end(&self.give_up, |bytes| apply(ledger, bytes))?;
        self.ledger_reader = Some(reader);
        tracing::info!(
            commits,
            elapsed_ms = started.elapsed().as_millis(),
            "connected to Kafka; the ledger is read"
        );
        Ok(producer)
    }

    /// Takes in what has arrived of the ledger topic: commits of other instances, and our own.
    fn follow_ledger(&mut self) {
        let Some(reader) = &mut self.ledger_reader else { return };
        reader.read_arrived(|bytes| apply(&mut self.ledger, bytes));
        self.open_commits.forget(reader.next());
    }

    /// Waits until everything in the ledger topic is decided, and takes it in.
    fn settle_ledger(&mut self) -> Result<(), SetupError> {
        let Some(reader) = &mut self.ledger_reader else { return Ok(()) };
        reader.read_to_end(&self.give_up, |bytes| apply(&mut self.ledger, bytes))?;
        self.open_commits.forget(reader.next());
        Ok(())
    }

    fn publish(&mut self, producer: &Producer) -> Result<SessionEnd, PublisherError> {
        let done = self.reader.resume(self.ledger.progress());
        for read in &mut self.unfinished {
            read.entries.retain(|entry| entry.lsn > done);
        }
        self.unfinished.retain(|read| !read.entries.is_empty());
        let mut read_pause = BACKOFF.0;
        while !self.give_up.is_cancelled() {
            if self.request_size.grow() {
                return Ok(SessionEnd::Grow);
            }
            std::thread::sleep(self.pace());
            let next = match self.unfinished.pop_front() {
                Some(read) => Next::Entries(read),
                None => match self.reader.next(BATCH_BYTES, IDLE) {
                    Ok(next) => next,
                    Err(error) => {
                        Self::unreadable(&error);
                        self.wait(&mut read_pause);
                        continue;
                    }
                },
            };
            read_pause = BACKOFF.0;
            self.follow_ledger();
            let read = match next {
                Next::Entries(read) => read,
                Next::Idle => {
                    producer.serve();
                    self.ledger.expire(Timestamp::now(), Instant::now());
                    continue;
                }
                Next::End => return Ok(SessionEnd::Done),
            };
            self.began = Instant::now();
            let Entries { writer, ref entries } = read;
            let bytes: usize = entries.iter().map(|entry| entry.record.encoded_len()).sum();
            self.backlog = bytes >= BATCH_BYTES / 2;
            let mut batch = Batch::deduplicate(entries, &self.ledger);
            match self.deliver(producer, &mut batch, writer)? {
                Ok(commit) => self.finish(&batch, commit.as_ref()),
                Err(SessionEnd::Contended) => {
                    self.unfinished.push_front(read);
                    if let Err(cause) = self.settle_ledger() {
                        return Ok(SessionEnd::Setup(cause));
                    }
                }
                Err(ended) => {
                    self.unfinished.push_front(read);
                    return Ok(ended);
                }
            }
        }
        Ok(SessionEnd::Done)
    }

    /// How long to let records gather before the next transaction.
    fn pace(&self) -> Duration {
        if self.backlog { Duration::ZERO } else { PACE.saturating_sub(self.began.elapsed()) }
    }

    /// One batch into Kafka, however often it takes. Returns its ledger record, if it needed one.
    fn deliver(
        &mut self,
        producer: &Producer,
        batch: &mut Batch<'_>,
        writer: OpeningId,
    ) -> Result<Result<Option<Commit>, SessionEnd>, PublisherError> {
        let mut pause = BACKOFF.0;
        let publisher = self.reader.opening();
        loop {
            let Some(commit) = batch.commit(publisher, writer) else { return Ok(Ok(None)) };
            let started = Instant::now();
            let ledger = batch.ledger(&self.topics, &self.kafka, &commit);
            let messages = || batch.messages(&self.topics, &self.kafka);
            let (reader, unfinished) = (&mut self.reader, &mut self.unfinished);
            let handed = producer.hand_over(Some(&ledger), messages, || {
                if self.backlog && unfinished.is_empty() {
                    // An error is met again, and reported, when this batch is done.
                    if let Ok(Next::Entries(read)) = reader.next(BATCH_BYTES, Duration::ZERO) {
                        unfinished.push_back(read);
                    }
                }
            });
            let outcome = handed
                .and_then(|mine| self.ensure_first(producer, &commit, mine))
                .and_then(|mine| producer.commit().map(|()| mine));
            let elapsed = started.elapsed();
            match outcome {
                Ok(mine) => {
                    metrics::transaction(metrics::Transaction::Committed, batch.len(), elapsed);
                    self.outage.resolved();
                    self.contentions = 0;
                    if let Some(reader) = &mut self.ledger_reader {
                        reader.committed(mine);
                    }
                    return Ok(Ok(Some(commit)));
                }
                Err(Failure::Rejected(rejected)) => {
                    metrics::transaction(metrics::Transaction::Aborted, batch.len(), elapsed);
                    if !rejected.iter().any(|rejected| rejected.alone) {
                        return Ok(Err(SessionEnd::Shrink));
                    }
                    for rejected in rejected.iter().filter(|rejected| rejected.alone) {
                        batch.reject(rejected, &self.quarantine)?;
                    }
                }
                Err(Failure::Contended) => {
                    metrics::transaction(metrics::Transaction::Contended, batch.len(), elapsed);
                    self.back_off();
                    return Ok(Err(SessionEnd::Contended));
                }
                Err(Failure::Retry(cause)) => {
                    metrics::transaction(metrics::Transaction::Aborted, batch.len(), elapsed);
                    if self.give_up.is_cancelled() {
                        return Ok(Err(SessionEnd::Done));
                    }
                    self.outage.report(&kafka::text(&cause));
                    // Topics may have been deleted under us; this makes them again.
                    if let Err(cause) =
                        self.kafka.make_topics(&self.topics.all(), self.topics.ledger())
                    {
                        self.outage.report(&cause);
                    }
                    self.wait(&mut pause);
                }
                Err(failure) => {
                    metrics::transaction(metrics::Transaction::Lost, batch.len(), elapsed);
                    return Ok(Err(SessionEnd::Lost(failure)));
                }
            }
        }
    }

    /// Gives way if another instance wrote to the ledger topic before `mine`, where this batch's
    /// record `own` is, that it publishes one of its events: whether or not it has committed yet.
    ///
    /// Of two instances with the same event one finds the other, so one commits at most.
    fn ensure_first(
        &mut self,
        producer: &Producer,
        own: &Commit,
        mine: i64,
    ) -> Result<i64, Failure> {
        let Some(reader) = &mut self.ledger_reader else { return Ok(mine) };
        let open_commits = &mut self.open_commits;
        let read = reader.read_open(mine, &self.give_up, |at, bytes| open_commits.take(at, bytes));
        let outcome = match read {
            Err(cause) => {
                self.ledger_reader = None;
                Failure::Lost(cause)
            }
            Ok(()) if self.give_up.is_cancelled() || open_commits.is_contended(own, mine) => {
                Failure::Contended
            }
            Ok(()) => return Ok(mine),
        };
        producer.abort()?;
        Err(outcome)
    }

    /// Pauses for a time that chance chooses: two that gave way to each other must not meet again.
    fn back_off(&mut self) {
        /// The longest pause at the first time, in milliseconds; doubled up to six times.
        const FIRST: u32 = 10;
        let span = Duration::from_millis(u64::from(FIRST << self.contentions.min(6)));
        self.contentions += 1;
        let chance = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        std::thread::sleep(span.mul_f64(f64::from(chance.subsec_nanos() % 1000) / 1000.0));
    }

    /// The batch is in Kafka, for good: count it and let the log have its space back (I3).
    fn finish(&mut self, batch: &Batch<'_>, commit: Option<&Commit>) {
        if let Some(commit) = commit {
            self.ledger.apply(commit, Instant::now());
        }
        let outcomes = batch.count();
        if let Some(last) = batch.last() {
            self.ledger.expire(last.record.received_at, Instant::now());
            self.reader.settle(last.lsn, Some(last.record.received_at), outcomes);
        }
    }

    /// Reports that the log cannot be read: the intake stores callbacks meanwhile.
    fn unreadable(error: &ReadError) {
        static UNREADABLE: LogLimiter = LogLimiter::new();
        if let Some(suppressed) = UNREADABLE.permit() {
            tracing::error!(
                %error, suppressed,
                "cannot read the log; callbacks are still accepted and stored, trying again"
            );
        }
    }

    /// When the oldest record that is still to be published was received, as far as can be told.
    fn oldest(&mut self) -> Timestamp {
        if self.unfinished.is_empty()
            && let Ok(Next::Entries(read)) = self.reader.next(1, Duration::ZERO)
        {
            self.unfinished.push_back(read);
        }
        let entries = self.unfinished.iter().flat_map(|read| &read.entries);
        let oldest = entries.map(|entry| entry.record.received_at).min();
        // A record from the future was received before the clock was set back.
        let now = Timestamp::now();
        oldest.map_or(now, |oldest| oldest.min(now))
    }

    fn fenced(&mut self, cause: &dyn std::fmt::Display) -> Result<(), PublisherError> {
        metrics::fenced();
        if self.fenced.is_some_and(|before| before.elapsed() < FENCED_AGAIN) {
            return Err(PublisherError::Fenced(self.kafka.instance.clone()));
        }
        self.fenced = Some(Instant::now());
        self.outage.report(&format_args!("fenced once, perhaps by a time-out: {cause}"));
        Ok(())
    }

    /// Waits for `pause`, which doubles, or until there is an order to give up.
    fn wait(&self, pause: &mut Duration) {
        /// How soon an order to give up is noticed.
        const STEP: Duration = Duration::from_millis(50);
        let until = Instant::now() + *pause;
        while Instant::now() < until && !self.give_up.is_cancelled() {
            std::thread::sleep(STEP);
        }
        *pause = (*pause * 2).min(BACKOFF.1);
    }
}

fn apply(ledger: &mut Ledger, bytes: &[u8]) {
    match Commit::decode(bytes) {
        Ok(commit) => ledger.apply(&commit, Instant::now()),
        Err(error) => {
            static PASSED: LogLimiter = LogLimiter::new();
            if let Some(suppressed) = PASSED.permit() {
                tracing::error!(%error, suppressed, "passing over a record of the ledger topic");
            }
        }
    }
}

/// How much travels together: what brokers take unless they are told otherwise, until Kafka refuses
/// a set. Then less and less, until it is known which of its messages Kafka refuses.
#[derive(Debug)]
struct RequestSize {
    bytes: usize,
    shrunk: Option<Instant>,
}

impl RequestSize {
    /// Small sets cost throughput, trying costs a few sessions.
    const KEPT: Duration = Duration::from_hours(1);

    fn new() -> Self {
        Self { bytes: kafka::REQUEST_BYTES, shrunk: None }
    }

    fn shrink(&mut self) {
        self.bytes = (self.bytes / 2).max(1);
        self.shrunk = Some(Instant::now());
        let bytes = self.bytes;
        tracing::warn!(
            bytes,
            "Kafka refuses messages that are sent together; sending fewer at once"
        );
    }

    /// Whether it is time to try again.
    fn grow(&mut self) -> bool {
        let due = self.shrunk.is_some_and(|shrunk| shrunk.elapsed() > Self::KEPT);
        if due {
            *self = Self::new();
        }
        due
    }
}
