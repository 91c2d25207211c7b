//! Publishes given events as one more instance: an export of a log, dead letters, or what was
//! recovered from Tencent's records.
//!
//! What is sent is the same event: the same `ce_id`, key, value and `ce_time`, so that a consumer
//! that goes by `ce_id` sees a repeat as one. The publisher's own code sends it, with a ledger record
//! in each transaction, so that no other instance, replay or recovery publishes it as well. What was
//! published before is found in the topics ([`Plan::leave_out_what_is_there`]); what is published
//! later, in the ledger, which is followed from before the topics are read.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::source::{Input, Source};
use super::{Publisher, PublisherError, Topics};
use crate::event::{EventId, Timestamp};
use crate::kafka::topic_reader::wait_until_decided;
use crate::kafka::{self, KafkaError, SetupError, text};
use crate::ledger::{self, Commit};
use crate::record::Lsn;
use crate::wal::{OpeningId, Outcomes, Progress};

mod event;
mod plan;

pub use event::{Event, Exported, id_of, occurred_at, subject};
pub use plan::Plan;

/// Bytes and events that are handed to the publisher at once. Some of these fill its largest batch.
const CHUNK: (usize, usize) = (1024 * 1024, 2000);
/// Chunks that wait for the publisher.
const CHUNKS_WAITING: usize = 4;
/// A command fails when nothing was published for this time: a reader, which waits for the abort of
/// an abandoned transaction, fails before and names the cause.
const NO_PROGRESS_TIMEOUT: Duration = kafka::READ_STALLED.saturating_add(Duration::from_secs(30));
/// How often the deadline is compared with the clock.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Between the configured instance and the random part in the name of a command.
const COMMAND: &str = ".replay-";

/// Whether a ledger record with this key was written by a command.
#[must_use]
pub fn is_command(key: &[u8]) -> bool {
    String::from_utf8_lossy(key).contains(COMMAND)
}

/// Why events cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// No producer.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A topic cannot be read.
    #[error("cannot read from Kafka: {}", text(.0))]
    Read(#[from] KafkaError),
    /// Kafka does not accept them.
    #[error(
        "Kafka did not accept the events: {0}; those before are published, so run the command again"
    )]
    Send(String),
    /// Two commands write to one topic that the ledger does not cover.
    #[error(
        "another replay with --to writes to this topic; let it finish, then run this one again"
    )]
    SameTarget,
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread has panicked.
    #[error("the publisher's thread panicked")]
    Panicked,
}

/// An event that Kafka does not accept, while it accepts others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its topic.
    pub topic: String,
    /// Its `ce_id`.
    pub id: EventId,
    /// Why.
    pub reason: String,
}

/// What became of the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events sent.
    pub sent: u64,
    /// Events that another instance or command published in the same time.
    pub absorbed: u64,
    /// Those that Kafka rejected.
    pub refused: Vec<Refusal>,
}

/// Where the events go, and what counts as published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To their own topics, without those that others publish in the same time.
    Topics,
    /// The same, whatever others publish: consumers then see repeats.
    TopicsAgain,
    /// To one other topic, without a ledger record. One command at a time can do that.
    Other(String),
}

/// What differs when a publisher publishes given events and not a log.
#[derive(Debug)]
pub(super) struct Given {
    target: Target,
    opening: OpeningId,
    /// Of commits of others, only these ids matter: all of them would not fit into memory.
    ids: HashSet<EventId>,
    /// Topics that may not be written, and why.
    denied: Vec<(String, String)>,
    refused: Vec<Refusal>,
    /// Where the ledger is followed from.
    ledger_start: Option<i64>,
    deadline: Deadline,
}

impl Given {
    /// Whether its transactions have ledger records.
    pub(super) fn has_ledger(&self) -> bool {
        !matches!(self.target, Target::Other(_))
    }

    /// Where the ledger is followed from: from its end within `bounds` when it was first opened.
    pub(super) fn ledger_start(&mut self, (low, high): (i64, i64)) -> i64 {
        (*self.ledger_start.get_or_insert(high)).clamp(low, high)
    }

    /// Drops from `commit` what has no influence on the given events.
    pub(super) fn filter(&self, commit: &mut Commit) {
        let own = commit.publisher == self.opening;
        let again = self.target == Target::TopicsAgain;
        commit.ids.retain(|id| own || (!again && self.ids.contains(id)));
    }

    /// Something was published: the command does not give up yet.
    pub(super) fn progressed(&self) {
        self.deadline.extend(NO_PROGRESS_TIMEOUT);
    }

    /// Kafka rejects `event` for this reason.
    pub(super) fn refuse(&mut self, event: &Event, reason: String) {
        let (topic, id) = (event.topic.clone(), event.id);
        self.refused.push(Refusal { topic, id, reason });
    }

    /// The topic of `event` may not be written.
    pub(super) fn deny(&mut self, event: &Event, reason: String) {
        self.denied.push((event.topic.clone(), reason));
    }

    /// Takes the events of denied topics out of `batch`.
    pub(super) fn refuse_denied(&mut self, batch: &mut Batch) {
        for (topic, reason) in &self.denied {
            let refused = batch.report_topic(topic).into_iter();
            let refusal = |id| Refusal { topic: topic.clone(), id, reason: reason.clone() };
            self.refused.extend(refused.map(refusal));
        }
    }
}

/// When a command gives up.
#[derive(Clone, Debug)]
struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    /// Cancels `give_up` once `patience` has passed without [`Self::extend`]; as long as there is a
    /// copy of the deadline.
    fn start(patience: Duration, give_up: CancellationToken) -> Result<Self, ReplayError> {
        let at = Arc::new(Mutex::new(Instant::now() + patience));
        let watched = Arc::downgrade(&at);
        let watch = move || {
            while let Some(at) = watched.upgrade() {
                if *at.lock().unwrap_or_else(PoisonError::into_inner) < Instant::now() {
                    return give_up.cancel();
                }
                drop(at);
                thread::sleep(DEADLINE_CHECK_INTERVAL);
            }
        };
        thread::Builder::new().spawn(watch).map_err(ReplayError::Thread)?;
        Ok(Self(at))
    }

    fn extend(&self, patience: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + patience;
    }
}

/// The events that a command gives, as a source of batches. They are numbered in their order.
#[derive(Debug)]
struct GivenEvents {
    opening: OpeningId,
    chunks: Receiver<Vec<Event>>,
    last: Lsn,
    deadline: Deadline,
}

impl Source for GivenEvents {
    fn opening(&self) -> OpeningId {
        self.opening
    }

    fn next(
        &mut self,
        max_bytes: usize,
        timeout: Duration,
    ) -> Result<Input, Box<dyn std::error::Error>> {
        let received = self.chunks.recv_timeout(timeout);
        if !timeout.is_zero() {
            // All that was given before is published.
            self.deadline.extend(NO_PROGRESS_TIMEOUT);
        }
        let mut events = match received {
            Ok(events) => events,
            Err(RecvTimeoutError::Timeout) => return Ok(Input::Idle),
            Err(RecvTimeoutError::Disconnected) => return Ok(Input::End),
        };
        let mut bytes: usize = events.iter().map(Event::len).sum();
        while bytes < max_bytes
            && let Ok(more) = self.chunks.try_recv()
        {
            bytes += more.iter().map(Event::len).sum::<usize>();
            events.extend(more);
        }
        let last = &mut self.last;
        let numbered = events.into_iter().map(|event| {
            *last = last.next();
            (*last, event)
        });
        Ok(Input::Batch(Batch::given(self.opening, numbered)))
    }

    fn resume(&mut self, progress: &Progress) -> Lsn {
        progress.of(self.opening)
    }

    fn settle(&mut self, _: Lsn, _: Option<Timestamp>, _: Outcomes) {}
}

/// What the publisher's thread ends with. It does not hold the receiver of the events, so that
/// nothing waits for a publisher that has ended.
#[derive(Debug)]
struct Ended {
    result: Result<(), PublisherError>,
    given: Option<Given>,
    sent: u64,
    last_cause: Option<String>,
}

/// Publishes given events on a thread of its own.
#[derive(Debug)]
pub struct Replay {
    /// `None` once all events are given.
    chunks: Option<SyncSender<Vec<Event>>>,
    chunk: Vec<Event>,
    bytes: usize,
    given: u64,
    thread: Option<JoinHandle<Ended>>,
    give_up: CancellationToken,
}

impl Replay {
    /// Connects as an instance of its own and begins to follow the ledger. `plan` has all events that
    /// may be given, and is to be compared with the topics afterwards.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn connect(
        kafka: &kafka::Config,
        topics: &Topics,
        target: Target,
        plan: &Plan,
    ) -> Result<Self, ReplayError> {
        let opening = OpeningId::unique();
        let mut kafka = kafka.clone();
        kafka.instance = match &target {
            // No two of these may run at once, because no ledger record tells one of the other: Kafka
            // ends the first.
            Target::Other(topic) => format!("livebridge.replay-to.{topic}"),
            // Any number may run at once. If this process is killed, nothing takes the name again,
            // so Kafka ends its transaction when it times out.
            Target::Topics | Target::TopicsAgain => {
                format!("{}{COMMAND}{opening}", kafka.instance)
            }
        };
        let give_up = CancellationToken::new();
        let deadline = Deadline::start(NO_PROGRESS_TIMEOUT, give_up.clone())?;
        let ids = plan.ids();
        let (denied, refused, ledger_start) = (Vec::new(), Vec::new(), None);
        let source_deadline = deadline.clone();
        let given = Given { target, opening, ids, denied, refused, ledger_start, deadline };
        let (chunks, received) = sync_channel(CHUNKS_WAITING);
        let deadline = source_deadline.clone();
        let source = GivenEvents { opening, chunks: received, last: Lsn::new(1, 0), deadline };
        let has_ledger = given.has_ledger();
        let mut publisher =
            Publisher::of_given(Box::new(source), kafka, topics.clone(), given, give_up.clone());
        if has_ledger {
            publisher.make_topics()?;
            // An event that was seen as a dead letter is named in a ledger record. That record must
            // be behind where the ledger is followed from, or the event would seem to be published.
            wait_until_decided(&publisher.kafka, &[topics.ledger()])?;
        }
        source_deadline.extend(kafka::PATIENCE);
        let connected = publisher.connect();
        let producer = match connected {
            Ok(_) if give_up.is_cancelled() => {
                return Err(SetupError::Unanswered(kafka::PATIENCE).into());
            }
            Err(cause) if give_up.is_cancelled() => {
                return Err(cause.after(kafka::PATIENCE).into());
            }
            connected => connected?,
        };
        source_deadline.extend(NO_PROGRESS_TIMEOUT);
        let thread = thread::Builder::new().name("publisher".into()).spawn(move || {
            let result = publisher.run_with(Some(producer));
            let sent = publisher.ledger.own_events();
            let last_cause = publisher.kafka_outage.last_cause();
            Ended { result, given: publisher.given, sent, last_cause }
        });
        Ok(Self {
            chunks: Some(chunks),
            chunk: Vec::new(),
            bytes: 0,
            given: 0,
            thread: Some(thread.map_err(ReplayError::Thread)?),
            give_up,
        })
    }

    /// Publishes `event`, now or with the next ones.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn send(&mut self, event: Event) -> Result<(), ReplayError> {
        self.given += 1;
        self.bytes += event.len();
        self.chunk.push(event);
        if self.bytes >= CHUNK.0 || self.chunk.len() >= CHUNK.1 { self.flush() } else { Ok(()) }
    }

    /// Publishes what is left, and returns what became of all events.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn finish(mut self) -> Result<Outcome, ReplayError> {
        self.flush()?;
        self.chunks = None;
        self.join()
    }

    fn flush(&mut self) -> Result<(), ReplayError> {
        self.bytes = 0;
        let chunk = std::mem::take(&mut self.chunk);
        let (Some(chunks), false) = (&self.chunks, chunk.is_empty()) else { return Ok(()) };
        if chunks.send(chunk).is_ok() {
            return Ok(());
        }
        // The thread has ended, and says why.
        self.join().map(|_| ())
    }

    fn join(&mut self) -> Result<Outcome, ReplayError> {
        let Some(thread) = self.thread.take() else { return Err(ReplayError::Panicked) };
        let ended = thread.join().map_err(|_| ReplayError::Panicked)?;
        let Ended { result, given: Some(Given { target, refused, .. }), sent, last_cause } = ended
        else {
            return Err(ReplayError::Panicked);
        };
        match result {
            Err(PublisherError::Fenced(_)) if matches!(target, Target::Other(_)) => {
                return Err(ReplayError::SameTarget);
            }
            Err(error) => return Err(ReplayError::Send(error.to_string())),
            Ok(()) if self.give_up.is_cancelled() => {
                let cause = last_cause.unwrap_or_else(|| "no answer".into());
                let seconds = NO_PROGRESS_TIMEOUT.as_secs();
                return Err(ReplayError::Send(format!("nothing passed for {seconds} s: {cause}")));
            }
            Ok(()) => {}
        }
        let absorbed = self.given.saturating_sub(sent + refused.len() as u64);
        Ok(Outcome { sent, absorbed, refused })
    }
}

/// An interrupted command leaves no thread that still publishes.
impl Drop for Replay {
    fn drop(&mut self) {
        self.give_up.cancel();
    }
}

/// How much the ledger remembers: [`Given::filter`] limits it, and nothing may expire before the last
/// event is sent.
pub(super) const UNLIMITED: ledger::Config =
    ledger::Config { window: Duration::from_hours(10 * 365 * 24), max_ids: usize::MAX };
