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
use crate::metrics;
use crate::record::{Entry, Timestamp};
use crate::seldom::Seldom;
use crate::wal::{Next, ReadError, Reader};

pub mod audit;
mod batch;
mod claims;
pub mod quarantine;
pub mod replay;
mod topics;
mod trouble;

pub use replay::Exported;
pub use topics::{Topics, TopicsError};

use batch::Batch;
use claims::Claims;
use trouble::Trouble;

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
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The quarantine cannot be written, so the line cannot move on.
    #[error("cannot write to the quarantine {path}: {cause}", path = path.display())]
    Quarantine {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// librdkafka does not take the configuration.
    #[error(transparent)]
    Config(SetupError),
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
    claims: Claims,
    /// Batches in a row that gave way to another instance.
    contests: u32,
    quarantine: PathBuf,
    give_up: CancellationToken,
    /// Read from the log at one time each, and not known to be in Kafka.
    unfinished: VecDeque<Vec<Entry>>,
    /// When the last transaction began.
    began: Instant,
    /// Whether it was full, so that more is waiting.
    backlog: bool,
    sets: Sets,
    trouble: Trouble,
    fenced: Option<Instant>,
}

/// Why a session ended.
enum Ended {
    /// The log has ended and all of it is published, or there is an order to give up.
    Done,
    /// Start a new one.
    Lost(Failure),
    /// So did the ledger, or its topic.
    Setup(SetupError),
    /// Kafka refuses messages that travel together: send fewer at once.
    Crowded,
    /// That was long ago: try with more at once.
    Roomy,
    /// Another instance came first with some of the batch: see what becomes of it.
    Contested,
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
        let ledger = Ledger::new(reader.log(), dedup);
        Self {
            reader,
            kafka,
            topics,
            ledger,
            ledger_reader: None,
            claims: Claims::default(),
            contests: 0,
            quarantine,
            give_up,
            unfinished: VecDeque::new(),
            began: Instant::now(),
            backlog: false,
            sets: Sets::new(),
            trouble: Trouble::default(),
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
                    self.trouble.over();
                    self.publish(&producer)?
                }
                Err(SetupError::Client(cause)) => {
                    return Err(PublisherError::Config(SetupError::Client(cause)));
                }
                Err(cause) => Ended::Setup(cause),
            };
            match ended {
                Ended::Done => return Ok(()),
                Ended::Lost(Failure::Fenced(cause)) => self.fenced(&cause)?,
                Ended::Lost(failure) => self.trouble.is(&format_args!("{failure:?}")),
                Ended::Crowded => {
                    self.sets.shrink();
                    continue;
                }
                Ended::Roomy | Ended::Contested => continue,
                Ended::Setup(cause) => {
                    self.ledger_reader = None;
                    self.trouble.is(&cause);
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
        let producer = Producer::connect(&self.kafka, self.sets.bytes, self.give_up.clone())?;
        metrics::session();
        let started = Instant::now();
        let mut reader = if let Some(reader) = self.ledger_reader.take() {
            reader
        } else {
            let oldest = self.oldest();
            let since = self.ledger.horizon(oldest);
            self.claims = Claims::default();
            LedgerReader::open(&self.kafka, self.topics.ledger(), since)?
        };
        let ledger = &mut self.ledger;
        let commits = reader.read_to_end(&self.give_up, |bytes| apply(ledger, bytes))?;
        self.ledger_reader = Some(reader);
        tracing::info!(
            commits,
            progress = %self.ledger.progress(),
            elapsed_ms = started.elapsed().as_millis(),
            "connected to Kafka; the ledger is read"
        );
        Ok(producer)
    }

    /// Takes in what has arrived of the ledger topic: commits of other instances, and our own.
    fn follow_ledger(&mut self) {
        let Some(reader) = &mut self.ledger_reader else { return };
        reader.read_arrived(|bytes| apply(&mut self.ledger, bytes));
        self.claims.forget(reader.next());
    }

    /// Waits until everything in the ledger topic is decided, and takes it in.
    fn settle_ledger(&mut self) -> Result<(), SetupError> {
        let Some(reader) = &mut self.ledger_reader else { return Ok(()) };
        reader.read_to_end(&self.give_up, |bytes| apply(&mut self.ledger, bytes))?;
        self.claims.forget(reader.next());
        Ok(())
    }

    fn publish(&mut self, producer: &Producer) -> Result<Ended, PublisherError> {
        let progress = self.ledger.progress();
        self.reader.resume(progress)?;
        for entries in &mut self.unfinished {
            entries.retain(|entry| entry.lsn > progress);
        }
        self.unfinished.retain(|entries| !entries.is_empty());
        while !self.give_up.is_cancelled() {
            if self.sets.grow() {
                return Ok(Ended::Roomy);
            }
            std::thread::sleep(self.pace());
            let next = match self.unfinished.pop_front() {
                Some(entries) => Next::Entries(entries),
                None => self.reader.next(BATCH_BYTES, IDLE)?,
            };
            self.follow_ledger();
            let entries = match next {
                Next::Entries(entries) => entries,
                Next::Idle => {
                    producer.serve();
                    self.ledger.expire(Timestamp::now());
                    continue;
                }
                Next::End => return Ok(Ended::Done),
            };
            self.began = Instant::now();
            let bytes: usize = entries.iter().map(|entry| entry.record.encoded_len()).sum();
            self.backlog = bytes >= BATCH_BYTES / 2;
            let mut batch = Batch::judge(&entries, &self.ledger);
            match self.deliver(producer, &mut batch)? {
                Ok(commit) => self.settle(&batch, commit.as_ref()),
                Err(Ended::Contested) => {
                    self.unfinished.push_front(entries);
                    if let Err(cause) = self.settle_ledger() {
                        return Ok(Ended::Setup(cause));
                    }
                }
                Err(ended) => {
                    self.unfinished.push_front(entries);
                    return Ok(ended);
                }
            }
        }
        Ok(Ended::Done)
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
    ) -> Result<Result<Option<Commit>, Ended>, PublisherError> {
        let mut pause = BACKOFF.0;
        loop {
            let Some(commit) = batch.commit(self.reader.log()) else { return Ok(Ok(None)) };
            let started = Instant::now();
            let ledger = batch.ledger(&self.topics, &self.kafka, &commit);
            let messages = || batch.messages(&self.topics, &self.kafka);
            let (reader, unfinished) = (&mut self.reader, &mut self.unfinished);
            let mut read = Ok(());
            let handed = producer.hand_over(Some(&ledger), messages, || {
                if self.backlog && unfinished.is_empty() {
                    read = reader.next(BATCH_BYTES, Duration::ZERO).map(|next| {
                        if let Next::Entries(entries) = next {
                            unfinished.push_back(entries);
                        }
                    });
                }
            });
            read?;
            let outcome = handed
                .and_then(|mine| self.come_first(producer, &commit, mine))
                .and_then(|mine| producer.commit().map(|()| mine));
            let elapsed = started.elapsed();
            match outcome {
                Ok(mine) => {
                    metrics::transaction(metrics::Transaction::Committed, batch.len(), elapsed);
                    self.trouble.over();
                    self.contests = 0;
                    if let Some(reader) = &mut self.ledger_reader {
                        reader.committed(mine);
                    }
                    return Ok(Ok(Some(commit)));
                }
                Err(Failure::Refused(refused)) => {
                    metrics::transaction(metrics::Transaction::Aborted, batch.len(), elapsed);
                    if !refused.iter().any(|refused| refused.alone) {
                        return Ok(Err(Ended::Crowded));
                    }
                    for refused in refused.iter().filter(|refused| refused.alone) {
                        batch.refuse(refused, &self.quarantine)?;
                    }
                }
                Err(Failure::Contested) => {
                    metrics::transaction(metrics::Transaction::Contested, batch.len(), elapsed);
                    self.part();
                    return Ok(Err(Ended::Contested));
                }
                Err(Failure::Retry(cause)) => {
                    metrics::transaction(metrics::Transaction::Aborted, batch.len(), elapsed);
                    if self.give_up.is_cancelled() {
                        return Ok(Err(Ended::Done));
                    }
                    self.trouble.is(&cause);
                    // Topics may have been deleted under us; this makes them again.
                    if let Err(cause) =
                        self.kafka.make_topics(&self.topics.all(), self.topics.ledger())
                    {
                        self.trouble.is(&cause);
                    }
                    self.wait(&mut pause);
                }
                Err(failure) => {
                    metrics::transaction(metrics::Transaction::Lost, batch.len(), elapsed);
                    return Ok(Err(Ended::Lost(failure)));
                }
            }
        }
    }

    /// Gives way if another instance wrote to the ledger topic before `mine`, where this batch's
    /// record `own` is, that it publishes one of its events: whether or not it has committed yet.
    ///
    /// Of two instances with the same event one finds the other, so one commits at most.
    fn come_first(&mut self, producer: &Producer, own: &Commit, mine: i64) -> Result<i64, Failure> {
        let Some(reader) = &mut self.ledger_reader else { return Ok(mine) };
        let claims = &mut self.claims;
        let read = reader.read_open(mine, &self.give_up, |at, bytes| claims.take(at, bytes));
        let outcome = match read {
            Err(cause) => {
                self.ledger_reader = None;
                Failure::Lost(cause)
            }
            Ok(()) if self.give_up.is_cancelled() || claims.contest(own, mine) => {
                Failure::Contested
            }
            Ok(()) => return Ok(mine),
        };
        producer.abort()?;
        Err(outcome)
    }

    /// Pauses for a time that chance chooses: two that gave way to each other must not meet again.
    fn part(&mut self) {
        /// The longest pause at the first time, in milliseconds; doubled up to six times.
        const FIRST: u32 = 10;
        let span = Duration::from_millis(u64::from(FIRST << self.contests.min(6)));
        self.contests += 1;
        let chance = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        std::thread::sleep(span.mul_f64(f64::from(chance.subsec_nanos() % 1000) / 1000.0));
    }

    /// The batch is in Kafka, for good: count it and let the log have its space back (I3).
    fn settle(&mut self, batch: &Batch<'_>, commit: Option<&Commit>) {
        if let Some(commit) = commit {
            self.ledger.apply(commit);
        }
        let fates = batch.count();
        if let Some(last) = batch.last() {
            self.ledger.expire(last.record.received_at);
            self.reader.settle(last.lsn, Some(last.record.received_at), fates);
        }
    }

    /// When the oldest record that is still to be published was received, as far as can be told.
    fn oldest(&mut self) -> Timestamp {
        if self.unfinished.is_empty()
            && let Ok(Next::Entries(entries)) = self.reader.next(1, Duration::ZERO)
        {
            self.unfinished.push_back(entries);
        }
        let oldest = self.unfinished.iter().flatten().map(|entry| entry.record.received_at).min();
        oldest.unwrap_or_else(Timestamp::now)
    }

    fn fenced(&mut self, cause: &dyn std::fmt::Display) -> Result<(), PublisherError> {
        metrics::fenced();
        if self.fenced.is_some_and(|before| before.elapsed() < FENCED_AGAIN) {
            return Err(PublisherError::Fenced(self.kafka.instance.clone()));
        }
        self.fenced = Some(Instant::now());
        self.trouble.is(&format_args!("fenced once, perhaps by a time-out: {cause}"));
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
        Ok(commit) => ledger.apply(&commit),
        Err(error) => {
            static PASSED: Seldom = Seldom::new();
            if let Some(unsaid) = PASSED.may_say() {
                tracing::error!(%error, unsaid, "passing over a record of the ledger topic");
            }
        }
    }
}

/// How much travels together: what brokers take unless they are told otherwise, until Kafka refuses
/// a set. Then less and less, until it is known which of its messages Kafka refuses.
#[derive(Debug)]
struct Sets {
    bytes: usize,
    shrunk: Option<Instant>,
}

impl Sets {
    /// Small sets cost throughput, trying costs a few sessions.
    const KEPT: Duration = Duration::from_hours(1);

    fn new() -> Self {
        Self { bytes: kafka::SET_BYTES, shrunk: None }
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
