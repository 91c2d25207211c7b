//! Publishes the events of a command as one more instance: those of an export of a log, dead letters,
//! or what was recovered from Tencent's records.
//!
//! What is sent is the same event: the same `ce_id`, key, value and `ce_time`, so that a consumer
//! that goes by `ce_id` sees a repeat as one. The publisher's own code sends it, with a ledger record
//! in each transaction, so that no other instance, replay or recovery publishes it as well. What was
//! published before is found in the topics ([`Plan::skip_published`]); what is published later, in the
//! ledger, which is followed from before the topics are read.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::events::{EventSource, PROGRESS_TIMEOUT};
use super::source::BatchSource;
use super::{Publisher, PublisherError, Topics};
use crate::event::EventId;
use crate::kafka::topic_reader::wait_until_decided;
use crate::kafka::{self, Deadline, ReadError, SetupError};
use crate::ledger::{self, Ledger};
use crate::record::Lsn;
use crate::wal::OpeningId;

mod event;
mod plan;

pub use event::{Event, Exported};
pub use plan::Plan;

/// The bytes and events of a chunk, which is passed to the publisher as one. A few chunks fill its
/// largest batch.
const CHUNK_BYTES: usize = 1024 * 1024;
const CHUNK_EVENTS: usize = 2000;
/// Chunks that wait for the publisher.
const CHUNKS_WAITING: usize = 4;
/// How much the ledger remembers: [`EventSource`] limits it to the events of the command, and nothing
/// may expire before the last of them is sent.
const UNLIMITED: ledger::Config =
    ledger::Config { window: Duration::from_hours(10 * 365 * 24), max_ids: usize::MAX };

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
    /// The topics or the producer are not ready.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A topic cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The publisher has failed or makes no progress.
    #[error(
        "Kafka did not accept the events: {0}; those before are published, so run the command again"
    )]
    Send(String),
    /// Two commands write to one topic that the ledger does not cover.
    #[error(
        "another replay with --to writes to this topic; let it finish, then run this one again"
    )]
    SameTarget,
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The publisher's thread panicked.
    #[error("the publisher's thread panicked")]
    Panicked,
}

/// An event that Kafka rejects, while it accepts others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedEvent {
    /// Its topic.
    pub topic: String,
    /// Its `ce_id`.
    pub id: EventId,
    /// Why Kafka rejects it.
    pub reason: String,
}

/// What became of the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Those sent.
    pub sent: u64,
    /// Those that another instance or command published in the same time.
    pub absorbed: u64,
    /// Those that Kafka rejected.
    pub rejected: Vec<RejectedEvent>,
}

/// Where the events go, and what counts as published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To their own topics, without those that others publish in the same time.
    Topics,
    /// To their own topics, also if others publish them: consumers then see repeats.
    TopicsAgain,
    /// To one other topic, without a ledger record. One command at a time can do that.
    Other(String),
}

/// Publishes the events of a command on a thread of its own.
#[derive(Debug)]
pub struct Replay {
    has_ledger: bool,
    /// `None` after the last event.
    chunks: Option<SyncSender<Vec<Event>>>,
    /// The next chunk, and its bytes.
    chunk: Vec<Event>,
    bytes: usize,
    /// Events so far.
    events: u64,
    rejected: Receiver<RejectedEvent>,
    /// Returns how many events were sent. `None` once it is joined.
    thread: Option<JoinHandle<Result<u64, PublisherError>>>,
    give_up: CancellationToken,
}

impl Replay {
    /// Connects as an instance of its own and begins to follow the ledger. `plan` has all events that
    /// may be sent, and is to be compared with the topics afterwards.
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
            // No two of these may run concurrently, because the ledger lists neither's events: Kafka
            // ends the first.
            Target::Other(topic) => format!("livebridge.replay-to.{topic}"),
            // Any number may run concurrently. If this process is killed, nothing takes the name again,
            // so Kafka ends its transaction when it times out.
            Target::Topics | Target::TopicsAgain => {
                format!("{}{COMMAND}{opening}", kafka.instance)
            }
        };
        let give_up = CancellationToken::new();
        let started = Deadline::start(PROGRESS_TIMEOUT, give_up.clone());
        let deadline = started.map_err(ReplayError::Thread)?;
        let (chunks, events) = sync_channel(CHUNKS_WAITING);
        let (report, rejected) = channel();
        let source = EventSource {
            target,
            opening,
            ids: plan.ids(),
            events,
            rejected: report,
            deadline: deadline.clone(),
            last: Lsn::new(1, 0),
            ledger_start: None,
            denied: HashMap::new(),
        };
        let has_ledger = source.has_ledger();
        let ledger = Ledger::new(&[opening], UNLIMITED);
        let source = BatchSource::Events(source);
        let mut publisher = Publisher::with(source, ledger, kafka, topics.clone(), give_up.clone());
        if has_ledger {
            publisher.make_topics()?;
            // An event that was seen as a dead letter is named in a ledger record. That record must
            // be behind where the ledger is followed from, or the event would seem to be published.
            wait_until_decided(&publisher.kafka, &[topics.ledger()])?;
        }
        deadline.extend(kafka::CONNECT_TIMEOUT);
        let connected = publisher.connect();
        let producer = match connected {
            Ok(_) if give_up.is_cancelled() => {
                return Err(SetupError::Unanswered(kafka::CONNECT_TIMEOUT).into());
            }
            Err(cause) if give_up.is_cancelled() => {
                return Err(cause.after(kafka::CONNECT_TIMEOUT).into());
            }
            connected => connected?,
        };
        deadline.extend(PROGRESS_TIMEOUT);
        let thread = thread::Builder::new().name("publisher".into()).spawn(move || {
            publisher.run_with(Some(producer))?;
            // The publisher ends here, and the receiver of events with it: nothing waits for it.
            Ok(publisher.ledger.own_events())
        });
        Ok(Self {
            has_ledger,
            chunks: Some(chunks),
            chunk: Vec::new(),
            bytes: 0,
            events: 0,
            rejected,
            thread: Some(thread.map_err(ReplayError::Thread)?),
            give_up,
        })
    }

    /// Publishes `event`, now or with the next ones.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn send(&mut self, event: Event) -> Result<(), ReplayError> {
        self.events += 1;
        self.bytes += event.len();
        self.chunk.push(event);
        let is_full = self.bytes >= CHUNK_BYTES || self.chunk.len() >= CHUNK_EVENTS;
        if is_full { self.flush() } else { Ok(()) }
    }

    /// Publishes what is left, and returns what became of all events.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn finish(mut self) -> Result<Summary, ReplayError> {
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

    fn join(&mut self) -> Result<Summary, ReplayError> {
        let Some(thread) = self.thread.take() else { return Err(ReplayError::Panicked) };
        let sent = match thread.join().map_err(|_| ReplayError::Panicked)? {
            Err(PublisherError::Fenced(_)) if !self.has_ledger => {
                return Err(ReplayError::SameTarget);
            }
            Err(error) => return Err(ReplayError::Send(error.to_string())),
            Ok(_) if self.give_up.is_cancelled() => {
                let cause = kafka::last_failure().unwrap_or_else(|| "no answer".into());
                let seconds = PROGRESS_TIMEOUT.as_secs();
                return Err(ReplayError::Send(format!(
                    "nothing was published for {seconds} s: {cause}"
                )));
            }
            Ok(sent) => sent,
        };
        let rejected: Vec<RejectedEvent> = self.rejected.try_iter().collect();
        let absorbed = self.events.saturating_sub(sent + rejected.len() as u64);
        Ok(Summary { sent, absorbed, rejected })
    }
}

/// An interrupted command leaves no thread that still publishes.
impl Drop for Replay {
    fn drop(&mut self) {
        self.give_up.cancel();
    }
}
