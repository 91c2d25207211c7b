//! Reads the ledger topic, `read_committed`, from an offset on and then as it grows.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio_util::sync::CancellationToken;

use super::{
    Config, Context, LEDGER_PARTITION, METADATA_TIMEOUT, READ_STALLED, SetupError, reachability,
    text,
};
use crate::event::Timestamp;
use crate::metrics;

/// How long one poll waits for a record.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// A longer wait for an open transaction is logged, and reported to the caller.
const OPEN_TRANSACTION_LOGGED_AFTER: Duration = Duration::from_secs(2);
/// How long the next record on the way to this instance's own, which is delivered, may take; shorter
/// than the time-out of a transaction.
const OWN_RECORD_TIMEOUT: Duration = Duration::from_secs(10);
/// A reader of open transactions that is more offsets behind skips to what is undecided: a fetch
/// there costs less than to read 50 ledger records of up to 512 KiB within a transaction.
const OPEN_LAG_MAX: i64 = 100;
/// Pause between two checks whether an open transaction has ended.
const OPEN_TRANSACTION_PAUSE: Duration = Duration::from_millis(2);

/// A transaction that hides own commits for longer is reported: without raised time-outs, Kafka
/// would have ended it.
const HIDDEN_MIN: Duration = Duration::from_mins(1);

/// Committed records are fetched once there are this many bytes, or after 50 ms ([`settings`]):
/// otherwise own records would cause a request for each transaction. Those of others may be late,
/// because [`LedgerReader::read_open`] reads them in time.
const FETCH_BYTES_MIN: usize = 64 * 1024;

/// Finds the first offset with a timestamp at a time or later.
pub(super) type OffsetAt<'a> = dyn FnMut(Timestamp) -> KafkaResult<Option<i64>> + 'a;

/// A position in the ledger topic.
pub struct LedgerReader {
    consumer: Arc<BaseConsumer<Context>>,
    /// Also reads records of open transactions.
    open: BaseConsumer<Context>,
    /// The next offset of `open`, once it reads.
    open_next: Option<i64>,
    /// The offset of the next record of this instance if no other instance has written since:
    /// directly after the records that were read, or after the marker of its own last commit. (The
    /// mock cluster writes no markers.)
    expected: RangeInclusive<i64>,
    topic: String,
    /// The next offset to read.
    next: i64,
    transactional: bool,
    lag: Lag,
    /// An own record that is committed and not read yet, and since when.
    unread: Option<(i64, Instant)>,
}

/// The state for the metric of the reader's lag. librdkafka's statistics have the lag too, but it
/// keeps them until the reader is polled, which does not happen during an outage.
struct Lag {
    interval: Duration,
    /// When Kafka was asked last up to where the topic is decided.
    asked: Instant,
    /// The request, on a thread of its own: publishing does not wait for the answer. A short time-out
    /// would not do, because librdkafka closes a connection over which a request timed out, and what
    /// is read arrives over the same one.
    request: Option<JoinHandle<KafkaResult<(i64, i64)>>>,
    /// The last answer, and when it was asked for.
    decided: Option<(i64, Instant)>,
    /// Whether the end was reached since the last answer.
    at_end: bool,
    /// Everything before this offset was read, though its last offsets may hold no record.
    read: i64,
}

impl Lag {
    fn new(interval: Duration) -> Self {
        let asked = Instant::now();
        Self { interval, asked, request: None, decided: None, at_end: false, read: 0 }
    }

    /// The answer to the last request, once it has arrived.
    fn answer(&mut self) -> Option<KafkaResult<i64>> {
        let request = self.request.take_if(|request| request.is_finished())?;
        let answer = request.join().ok()?.map(|(_, decided)| decided);
        if let Ok(decided) = answer {
            self.decided = Some((decided, self.asked));
        }
        Some(answer)
    }

    /// How long a record at `offset`, committed at `since`, was hidden when Kafka was asked last, and
    /// up to where the topic was decided then. Without such an answer, reading may just be slow.
    fn hides(&self, offset: i64, since: Instant) -> Option<(Duration, i64)> {
        let (decided, asked) = self.decided.filter(|(decided, _)| *decided <= offset)?;
        let open = asked.saturating_duration_since(since);
        (open > HIDDEN_MIN).then_some((open, decided))
    }

    /// How many offsets are decided and not read, when the next one to read is `next`.
    fn update(&mut self, next: i64, decided: i64) -> u64 {
        if std::mem::take(&mut self.at_end) || decided <= self.read {
            self.read = decided;
            return 0;
        }
        u64::try_from(decided - next).unwrap_or(0)
    }
}

impl std::fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerReader").field("next", &self.next).finish_non_exhaustive()
    }
}

impl LedgerReader {
    /// Opens the ledger topic at the offset that `start` returns for the topic's first and first
    /// unstable offset, and a look-up of the first offset with a timestamp at a time or later.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn open(
        config: &Config,
        topic: &str,
        start: impl FnOnce((i64, i64), &mut OffsetAt<'_>) -> KafkaResult<i64>,
    ) -> Result<Self, SetupError> {
        let client = |isolation: &str, min_bytes: usize| {
            let mut client = settings(config, isolation);
            client.set("fetch.min.bytes", min_bytes.to_string());
            let client: BaseConsumer<_> =
                client.create_with_context(Context).map_err(SetupError::Client)?;
            // Connects and finds the leader, so that the time-out of what follows is for one answer.
            client
                .fetch_metadata(Some(topic), METADATA_TIMEOUT)
                .map_err(|cause| SetupError::ledger(topic, cause))?;
            Ok(client)
        };
        let consumer = Arc::new(client("read_committed", FETCH_BYTES_MIN)?);
        let open = client("read_uncommitted", 1)?;
        let transactional = config.is_transactional();
        let topic = topic.to_owned();
        let mut reader = Self {
            consumer,
            open,
            open_next: None,
            expected: 0..=0,
            topic,
            next: 0,
            transactional,
            lag: Lag::new(config.statistics_interval()),
            unread: None,
        };
        reader.start(start).map_err(|cause| reader.error(cause))?;
        Ok(reader)
    }

    fn start(
        &mut self,
        start: impl FnOnce((i64, i64), &mut OffsetAt<'_>) -> KafkaResult<i64>,
    ) -> KafkaResult<()> {
        let bounds = self.bounds()?;
        self.next = start(bounds, &mut |time| self.offset_at(time))?;
        let mut assignment = TopicPartitionList::new();
        let next = Offset::Offset(self.next);
        assignment.add_partition_offset(&self.topic, LEDGER_PARTITION, next)?;
        self.consumer.assign(&assignment)
    }

    /// The first offset with a timestamp at `time` or later; `None` when there is none.
    fn offset_at(&self, time: Timestamp) -> KafkaResult<Option<i64>> {
        let mut wanted = TopicPartitionList::new();
        let millis = Offset::Offset(time.as_millis().max(0));
        wanted.add_partition_offset(&self.topic, LEDGER_PARTITION, millis)?;
        let found = self.consumer.offsets_for_times(wanted, METADATA_TIMEOUT)?;
        match found.find_partition(&self.topic, LEDGER_PARTITION).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => Ok(Some(offset)),
            _ => Ok(None),
        }
    }

    /// First offset, and the first that is not stable: it may belong to an open transaction.
    fn bounds(&self) -> KafkaResult<(i64, i64)> {
        self.consumer.fetch_watermarks(&self.topic, LEDGER_PARTITION, METADATA_TIMEOUT)
    }

    /// Reads every commit that precedes this call, of any instance. Returns the number of records
    /// read.
    ///
    /// What an open transaction hides is waited for: it may be a commit of this instance, or of a
    /// third one. `hidden` is called once when that takes long.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn read_to_end(
        &mut self,
        give_up: &CancellationToken,
        mut apply: impl FnMut(&[u8]),
        hidden: impl FnOnce(),
    ) -> Result<u64, SetupError> {
        let end = self.open.fetch_watermarks(&self.topic, LEDGER_PARTITION, METADATA_TIMEOUT);
        let (_, end) = end.map_err(|cause| self.error(cause))?;
        let mut records = 0;
        let mut moved = Instant::now();
        let mut hidden = Some(hidden);
        while self.next < end && !give_up.is_cancelled() {
            let step = self.step(POLL_TIMEOUT, &mut apply);
            if matches!(step, Step::Record) {
                records += 1;
                moved = Instant::now();
                continue;
            }
            let (_, stable) = self.bounds().map_err(|cause| self.error(cause))?;
            if stable >= end {
                // Offsets up to `end` may hold no record: markers, and what was aborted. Which they
                // are cannot be told by counting: records without a transaction have no marker.
                records += self.read_stable(end, give_up, &mut apply)?;
                break;
            }
            if moved.elapsed() > READ_STALLED {
                let topic = self.topic.clone();
                return Err(SetupError::OpenTransaction { topic, stable, open: moved.elapsed() });
            }
            if moved.elapsed() > OPEN_TRANSACTION_LOGGED_AFTER
                && let Some(hidden) = hidden.take()
            {
                tracing::warn!(
                    stable,
                    end,
                    "waiting for Kafka to end an open transaction, which hides a part of the ledger"
                );
                hidden();
            }
            thread::sleep(OPEN_TRANSACTION_PAUSE);
        }
        if self.next > *self.expected.end() {
            // A marker may follow, or a record of another instance: `read_open` looks.
            self.expected = self.next..=self.next;
        }
        Ok(records)
    }

    /// Reads what lies before this instance's own record at `mine` and may not be decided; nothing
    /// when no other instance has written since its last one.
    ///
    /// # Errors
    /// librdkafka's.
    pub fn read_open(
        &mut self,
        mine: i64,
        give_up: &CancellationToken,
        mut visit: impl FnMut(i64, &[u8]),
    ) -> KafkaResult<()> {
        if self.expected.contains(&mine) || !self.transactional {
            return Ok(());
        }
        if mine < self.next {
            // The topic was deleted and created again since it was read.
            return Err(KafkaError::MessageConsumption(Code::OffsetOutOfRange));
        }
        // Far behind when no other instance has written for long: decided records do not matter.
        if self.open_next.is_none_or(|next| next + OPEN_LAG_MAX < self.next) {
            let mut assignment = TopicPartitionList::new();
            let start = Offset::Offset(self.next);
            assignment.add_partition_offset(&self.topic, LEDGER_PARTITION, start)?;
            self.open.assign(&assignment)?;
            self.open_next = Some(self.next);
        }
        let mut moved = Instant::now();
        while self.open_next.is_none_or(|next| next <= mine) && !give_up.is_cancelled() {
            match self.open.poll(POLL_TIMEOUT) {
                Some(Ok(message)) => {
                    moved = Instant::now();
                    self.open_next = Some(message.offset() + 1);
                    // What is before `next` is decided, and the ledger has it.
                    if message.offset() >= self.next {
                        visit(message.offset(), message.payload().unwrap_or_default());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => tracing::debug!(error = text(&error), "reading the ledger"),
                None if moved.elapsed() > OWN_RECORD_TIMEOUT => {
                    return Err(KafkaError::MessageConsumption(Code::OperationTimedOut));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// This instance's record at `mine` is committed.
    pub fn committed(&mut self, mine: i64) {
        self.expected = mine + 1..=mine + 1 + i64::from(self.transactional);
        if self.unread.is_none_or(|(offset, _)| offset < self.next) {
            self.unread = Some((mine, Instant::now()));
        }
    }

    /// An error when a record that this instance committed cannot be read for long: a transaction
    /// that Kafka does not end hides it.
    #[must_use]
    pub fn hidden(&self) -> Option<SetupError> {
        let (offset, since) = self.unread.filter(|(offset, _)| *offset >= self.next)?;
        let (open, stable) = self.lag.hides(offset, since)?;
        Some(SetupError::OpenTransaction { topic: self.topic.clone(), stable, open })
    }

    /// Everything before this offset is decided and read.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Reads up to `end`, which is known to be stable.
    fn read_stable(
        &mut self,
        end: i64,
        give_up: &CancellationToken,
        apply: &mut impl FnMut(&[u8]),
    ) -> Result<u64, SetupError> {
        // A fresh fetch: an end that is reported from now on lies at `end` or behind it.
        let start = Offset::Offset(self.next);
        self.consumer
            .seek(&self.topic, LEDGER_PARTITION, start, METADATA_TIMEOUT)
            .map_err(|cause| self.error(cause))?;
        let mut records = 0;
        let mut moved = Instant::now();
        while self.next < end && !give_up.is_cancelled() {
            match self.step(POLL_TIMEOUT, apply) {
                Step::Record => {
                    records += 1;
                    moved = Instant::now();
                }
                Step::Nothing if moved.elapsed() > READ_STALLED => {
                    return Err(self.error(KafkaError::MessageConsumption(Code::OperationTimedOut)));
                }
                Step::Nothing => {}
                Step::End => {
                    self.next = self.next.max(end);
                }
            }
        }
        Ok(records)
    }

    /// Reads what has arrived by itself.
    pub fn read_arrived(&mut self, mut apply: impl FnMut(&[u8])) {
        while !matches!(self.step(Duration::ZERO, &mut apply), Step::Nothing) {}
        match self.lag.answer() {
            Some(Ok(decided)) => {
                reachability::observe(reachability::Observation::Connected);
                metrics::ledger_lag(self.lag.update(self.next, decided));
            }
            Some(Err(error)) => {
                tracing::debug!(error = text(&error), "where the ledger ends is unknown");
            }
            None => {}
        }
        if self.lag.request.is_none() && self.lag.asked.elapsed() >= self.lag.interval {
            self.lag.asked = Instant::now();
            let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
            let ask = move || consumer.fetch_watermarks(&topic, LEDGER_PARTITION, METADATA_TIMEOUT);
            self.lag.request = thread::Builder::new().name("ledger-lag".into()).spawn(ask).ok();
        }
    }

    fn step(&mut self, wait: Duration, apply: &mut impl FnMut(&[u8])) -> Step {
        match self.consumer.poll(wait) {
            None => Step::Nothing,
            Some(Ok(message)) => {
                self.next = message.offset() + 1;
                apply(message.payload().unwrap_or_default());
                Step::Record
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                self.lag.at_end = true;
                Step::End
            }
            // librdkafka goes on by itself; what does not pass shows as a stall.
            Some(Err(error)) => {
                tracing::debug!(error = text(&error), "reading the ledger");
                Step::Nothing
            }
        }
    }

    fn error(&self, cause: KafkaError) -> SetupError {
        SetupError::ledger(&self.topic, cause)
    }
}

/// librdkafka's settings for a consumer of the ledger topic.
pub(super) fn settings(config: &Config, isolation: &str) -> ClientConfig {
    let mut client = config.base();
    client
        // Required by librdkafka; nothing is ever committed to it.
        .set("group.id", format!("livebridge-{}", config.instance))
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        // Neither a jump nor the end of the topic waits longer for a fetch.
        .set("fetch.wait.max.ms", "50")
        // Own commits come back here too: keep few of them.
        .set("queued.max.messages.kbytes", "16384");
    client
}

enum Step {
    Record,
    Nothing,
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_hidden_only_if_kafka_says_so_a_minute_after_its_commit() {
        let committed = Instant::now();
        let later = committed + HIDDEN_MIN + Duration::from_secs(1);
        let hides = |decided| Lag { decided, ..Lag::new(Duration::ZERO) }.hides(10, committed);
        assert_eq!(hides(None), None, "Kafka has not answered");
        assert_eq!(hides(Some((7, committed + HIDDEN_MIN))), None, "it may be decided since");
        assert_eq!(hides(Some((11, later))), None, "it is decided, and reading is slow");
        assert_eq!(hides(Some((7, later))), Some((HIDDEN_MIN + Duration::from_secs(1), 7)));
    }

    #[test]
    fn lag_is_none_at_the_end_and_counts_what_is_decided_before_it() {
        let mut lag = Lag::new(Duration::from_secs(5));
        assert_eq!(lag.update(4, 10), 6);
        lag.at_end = true;
        assert_eq!(lag.update(9, 10), 0, "a marker at the end is not behind");
        assert_eq!(lag.update(9, 10), 0, "nothing came since");
        assert_eq!(lag.update(9, 12), 3);
        assert_eq!(lag.update(13, 12), 0, "more is read than was decided");
    }
}
