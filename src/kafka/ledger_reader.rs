//! Reads the ledger topic, `read_committed`, from a moment on and then as it grows.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio_util::sync::CancellationToken;

use super::{Config, Context, Delivery, METADATA_TIMEOUT, SetupError};
use crate::record::Timestamp;

/// The ledger has one partition: its order is the order of commits.
const PARTITION: i32 = 0;
/// How long one poll waits for a record.
const POLL: Duration = Duration::from_millis(100);
/// The ledger is given up when nothing of it has arrived for so long.
const STALLED: Duration = Duration::from_secs(30);
/// How long an instance waits to see what its peers committed a moment ago.
const PEERS: Duration = Duration::from_millis(500);

/// A position in the ledger topic.
pub struct LedgerReader {
    consumer: BaseConsumer<Context>,
    topic: String,
    /// The offset behind the last record read.
    next: i64,
    /// Offsets that a commit's marker takes.
    marker: i64,
}

impl std::fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerReader").field("next", &self.next).finish_non_exhaustive()
    }
}

impl LedgerReader {
    /// Stands before the first record that is not older than `since`.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn open(config: &Config, topic: &str, since: Timestamp) -> Result<Self, SetupError> {
        let consumer: BaseConsumer<Context> = config
            .base()
            // Required by librdkafka; nothing is ever committed to it.
            .set("group.id", format!("livebridge-{}", config.instance))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            // Own commits come back here too: keep few of them.
            .set("queued.max.messages.kbytes", "16384")
            .create_with_context(Context)
            .map_err(SetupError::Client)?;
        let marker = i64::from(config.delivery == Delivery::ExactlyOnce);
        let mut reader = Self { consumer, topic: topic.to_owned(), next: 0, marker };
        reader.start(since).map_err(|cause| reader.error(cause))?;
        Ok(reader)
    }

    fn start(&mut self, since: Timestamp) -> KafkaResult<()> {
        let mut wanted = TopicPartitionList::new();
        let millis = Offset::Offset(since.as_millis().max(0));
        wanted.add_partition_offset(&self.topic, PARTITION, millis)?;
        let found = self.consumer.offsets_for_times(wanted, METADATA_TIMEOUT)?;
        let (low, high) = self.bounds()?;
        self.next = match found.find_partition(&self.topic, PARTITION).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => offset,
            // Nothing is as new: only what comes will matter.
            _ => high,
        };
        self.next = self.next.max(low);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, PARTITION, Offset::Offset(self.next))?;
        self.consumer.assign(&assignment)
    }

    /// First and last stable offset.
    fn bounds(&self) -> KafkaResult<(i64, i64)> {
        self.consumer.fetch_watermarks(&self.topic, PARTITION, METADATA_TIMEOUT)
    }

    /// Reads everything committed before this call. Returns the records read.
    ///
    /// # Errors
    /// [`SetupError::Ledger`]
    pub fn read_to_end(
        &mut self,
        give_up: &CancellationToken,
        mut apply: impl FnMut(&[u8]),
    ) -> Result<u64, SetupError> {
        let (_, end) = self.bounds().map_err(|cause| self.error(cause))?;
        // A fresh fetch: an end that is reported from now on lies behind what is there now. Markers
        // of transactions take offsets too, so `next` alone would not tell.
        let start = Offset::Offset(self.next);
        self.consumer
            .seek(&self.topic, PARTITION, start, METADATA_TIMEOUT)
            .map_err(|cause| self.error(cause))?;
        let mut records = 0;
        let mut moved = Instant::now();
        while self.next < end && !give_up.is_cancelled() {
            match self.step(POLL, &mut apply) {
                Step::Record => {
                    records += 1;
                    moved = Instant::now();
                }
                Step::Nothing if moved.elapsed() > STALLED => {
                    return Err(self.error(KafkaError::MessageConsumption(Code::OperationTimedOut)));
                }
                Step::Nothing => {}
                Step::End => break,
            }
        }
        Ok(records)
    }

    /// Reads what has arrived by itself.
    pub fn read_arrived(&mut self, mut apply: impl FnMut(&[u8])) {
        while !matches!(self.step(Duration::ZERO, &mut apply), Step::Nothing) {}
    }

    /// Reads what other instances committed before this call.
    ///
    /// The last offset is taken for the marker of the last commit, so that of two instances that
    /// commit at the same instant one may miss the other; it sees it the next time.
    ///
    /// # Errors
    /// [`SetupError::Ledger`]
    pub fn read_peers(&mut self, mut apply: impl FnMut(&[u8])) -> Result<(), SetupError> {
        let (_, end) = self.bounds().map_err(|cause| self.error(cause))?;
        let started = Instant::now();
        while self.next + self.marker < end && started.elapsed() < PEERS {
            if let Step::End = self.step(POLL, &mut apply) {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, wait: Duration, apply: &mut impl FnMut(&[u8])) -> Step {
        match self.consumer.poll(wait) {
            None => Step::Nothing,
            Some(Ok(message)) => {
                self.next = message.offset() + 1;
                apply(message.payload().unwrap_or_default());
                Step::Record
            }
            Some(Err(KafkaError::PartitionEOF(_))) => Step::End,
            // librdkafka goes on by itself; what does not pass shows as a stall.
            Some(Err(error)) => {
                tracing::debug!(%error, "reading the ledger");
                Step::Nothing
            }
        }
    }

    fn error(&self, cause: KafkaError) -> SetupError {
        SetupError::Ledger { topic: self.topic.clone(), cause }
    }
}

enum Step {
    Record,
    Nothing,
    End,
}
