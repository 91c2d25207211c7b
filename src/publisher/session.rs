//! A session: batches published through one producer, until it has to be replaced.
//!
//! What follows a failed attempt to publish a batch, by [`Failure`]:
//!
//! | failure | with transactions | without |
//! |---|---|---|
//! | `Retry`, `Denied`, `TimestampRejected` | another producer after a pause | the same producer after a pause |
//! | `TimedOut` | as above, with a smaller batch or longer time-outs | as above; longer time-outs need another producer at once |
//! | `Rejected` | another producer at once: without those records, or with smaller requests | the same |
//! | `LedgerRejected` | another producer at once, with fewer ids; after a pause when one id is too many | the same |
//! | `Lost`, `Fenced` | another producer after a pause, which reads in the ledger what is published | the same, if there is a ledger |
//! | `NotIdempotent` | cannot occur | another producer after a pause, without idempotence |
//!
//! A command publishes to the other topics when one is denied, by another producer at once.

use std::time::{Duration, Instant, SystemTime};

use super::batch::Batch;
use super::source::Input;
use super::{LONGEST_PAUSE, Publisher, RETRIES};
use crate::event::Timestamp;
use crate::kafka::{self, Failure, KafkaError, Producer, RejectedMessage, SetupError};
use crate::ledger::Commit;
use crate::metrics::{self, Transaction};
use crate::wal::ReadError;

/// How long a wait for records lasts before the next look at `give_up`.
const IDLE: Duration = Duration::from_millis(500);

/// Why a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The source has ended and all of it is published, or `give_up` is set.
    Done,
    /// The producer cannot be used any more.
    Lost {
        failure: Failure,
        /// Its transaction had been open for as long as Kafka allows.
        late: bool,
    },
    /// The ledger, or a topic, cannot be used.
    Setup(SetupError),
    /// Kafka rejects messages that are sent together: smaller requests are needed.
    ShrinkRequests,
    /// Another producer is needed, with other settings or because this one has ended.
    Replace,
    /// The transaction is abandoned, for a cause that is reported and may pass: the next session
    /// follows after a pause.
    Abandoned,
}

/// What one attempt to publish a batch led to.
#[derive(Debug)]
enum Attempt {
    /// The batch is published; with its ledger record, if it needed one.
    Published(Option<Commit>),
    /// The cause is reported and may pass: try again after a pause.
    Later,
    /// Another instance was first with some of the batch: wait for its transaction.
    Contended,
    /// This producer cannot go on.
    End(SessionEnd),
}

impl Publisher {
    /// Publishes batches from the source through `producer` until the session ends.
    pub(super) fn run_session(&mut self, producer: &Producer) -> SessionEnd {
        let published = self.source.resume(self.ledger.progress());
        for batch in &mut self.queue {
            batch.retain(|lsn| lsn > published);
        }
        self.queue.retain(|batch| !batch.is_empty());
        // Otherwise the outage ends when the batch that failed is published.
        if self.queue.is_empty() {
            kafka::report_success();
        }
        let mut retries = RETRIES;
        while !self.give_up.is_cancelled() {
            if self.request_size.grow() || self.limits.restore_timeouts(Instant::now()) {
                return SessionEnd::Replace;
            }
            std::thread::sleep(self.delay());
            let input = self.next_input();
            self.follow_ledger();
            let mut batch = match input {
                Ok(Input::Batch(batch)) => batch,
                Ok(Input::Idle) => {
                    producer.serve();
                    self.finalize_quarantine(producer, None);
                    self.ledger.expire(Timestamp::now(), Instant::now());
                    continue;
                }
                // No id expires: how old the records are that cannot be read is unknown.
                Err(cause) => {
                    self.log_outage.report(&cause);
                    producer.serve();
                    self.wait(LONGEST_PAUSE);
                    continue;
                }
                Ok(Input::End) => {
                    self.finalize_quarantine(producer, None);
                    return SessionEnd::Done;
                }
            };
            self.pace.begin(batch.len(), Instant::now());
            // Before the batch is deduplicated: a commit that the ledger learns of later must stay in
            // `open_commits` until this transaction is compared with it.
            if self.open_commits.is_full()
                && let Err(cause) = self.await_ledger()
            {
                self.queue.push_front(batch);
                return SessionEnd::Setup(cause);
            }
            batch.deduplicate(&self.ledger);
            let end = match self.attempt(producer, &mut batch) {
                Attempt::Published(commit) => {
                    self.finish(producer, &batch, commit.as_ref());
                    retries.reset();
                    continue;
                }
                Attempt::Later => {
                    self.wait(retries.pause());
                    None
                }
                Attempt::Contended => {
                    self.back_off();
                    self.await_ledger().err().map(SessionEnd::Setup)
                }
                Attempt::End(end) => Some(end),
            };
            self.queue.push_front(batch);
            if let Some(end) = end {
                return end;
            }
        }
        SessionEnd::Done
    }

    /// How long to let records gather before the next transaction.
    fn delay(&self) -> Duration {
        if self.backlog { Duration::ZERO } else { self.pace.delay(Instant::now()) }
    }

    /// What there is to publish next; a batch is within the limits.
    fn next_input(&mut self) -> Result<Input, ReadError> {
        let input = match self.queue.pop_front() {
            Some(batch) => Input::Batch(batch),
            None => self.source.next(self.limits.bytes(), IDLE)?,
        };
        self.log_outage.resolved();
        let Input::Batch(mut batch) = input else { return Ok(input) };
        self.backlog = batch.bytes() >= self.limits.bytes() / 2;
        if let Some(rest) = batch.split(&self.limits) {
            self.queue.push_front(rest);
        }
        Ok(Input::Batch(batch))
    }

    /// Tries once to publish `batch`.
    fn attempt(&mut self, producer: &Producer, batch: &mut Batch) -> Attempt {
        if let Err(cause) = self.source.prepare(batch) {
            self.quarantine_outage.report(&cause);
            return Attempt::Later;
        }
        self.quarantine_outage.resolved();
        let Some(commit) = batch.to_commit(self.source.opening()) else {
            kafka::report_nothing_to_send();
            return Attempt::Published(None);
        };
        let started = Instant::now();
        let sent = self.send(producer, batch, &commit);
        batch.mark_delivered(&producer.take_delivered());
        let committed = sent.and_then(|offset| self.commit_if_first(producer, &commit, offset));
        let elapsed = started.elapsed();
        let outcome = match &committed {
            Ok(outcome) => *outcome,
            Err(Failure::Lost(_) | Failure::Fenced(_) | Failure::NotIdempotent(_)) => {
                Transaction::Lost
            }
            Err(_) => Transaction::Aborted,
        };
        metrics::transaction(outcome, batch.pending(), elapsed);
        match committed {
            Ok(Transaction::Committed) => {
                self.limits.on_published(batch.bytes(), batch.len(), elapsed);
                kafka::report_success();
                self.contended.reset();
                Attempt::Published(Some(commit))
            }
            Ok(Transaction::Contended) => Attempt::Contended,
            Ok(Transaction::Aborted | Transaction::Lost) => Attempt::End(SessionEnd::Done),
            Err(failure) => self.failed(producer, batch, failure, elapsed),
        }
    }

    /// Sends `batch`, and reads the next one while Kafka works. Returns the offset of the ledger record.
    fn send(
        &mut self,
        producer: &Producer,
        batch: &Batch,
        commit: &Commit,
    ) -> Result<i64, Failure> {
        let ledger = batch.ledger(&self.topics, &self.kafka, commit);
        let ledger = self.source.has_ledger().then_some(&ledger);
        let messages = || batch.messages(&self.topics, &self.kafka);
        let (source, queue) = (&mut self.source, &mut self.queue);
        let (reads_ahead, bytes) = (self.backlog && queue.is_empty(), self.limits.bytes());
        producer.hand_over(ledger, messages, || {
            // An error shows again when there is nothing else to publish.
            if reads_ahead && let Ok(Input::Batch(batch)) = source.next(bytes, Duration::ZERO) {
                queue.push_back(batch);
            }
        })
    }

    /// Decides what follows a failed attempt.
    fn failed(
        &mut self,
        producer: &Producer,
        batch: &mut Batch,
        failure: Failure,
        elapsed: Duration,
    ) -> Attempt {
        match failure {
            Failure::Rejected(rejected) => self.rejected(batch, rejected),
            Failure::LedgerRejected(cause) => self.ledger_rejected(producer, batch, cause),
            Failure::TimedOut(cause) => {
                kafka::report_failure(&kafka::text(&cause));
                let needs_longer_timeouts = self.limits.on_timed_out(batch.bytes(), batch.len());
                if needs_longer_timeouts && !self.kafka.is_transactional() {
                    return Attempt::End(SessionEnd::Replace);
                }
                self.try_again()
            }
            Failure::Denied { ref topic }
                if topic != self.topics.ledger() && self.source.deny(topic, &failure) =>
            {
                Attempt::End(SessionEnd::Replace)
            }
            failure @ (Failure::Denied { .. } | Failure::TimestampRejected { .. }) => {
                kafka::report_failure(&failure);
                self.try_again_after(failure, producer)
            }
            Failure::Retry(_) if self.give_up.is_cancelled() => Attempt::End(SessionEnd::Done),
            Failure::Retry(cause) => {
                kafka::report_failure(&kafka::text(&cause));
                // A deleted topic is made again: here, or before the next producer.
                if !self.kafka.is_transactional()
                    && let Err(cause) = self.make_topics()
                {
                    kafka::report_failure(&cause);
                }
                self.try_again()
            }
            failure @ (Failure::Lost(_) | Failure::Fenced(_) | Failure::NotIdempotent(_)) => {
                let late = elapsed >= producer.transaction_timeout();
                if late {
                    self.limits.on_timed_out(batch.bytes(), batch.len());
                }
                Attempt::End(SessionEnd::Lost { failure, late })
            }
        }
    }

    /// Sends smaller ledger records, until the smallest one is rejected.
    fn ledger_rejected(
        &mut self,
        producer: &Producer,
        batch: &Batch,
        cause: KafkaError,
    ) -> Attempt {
        if self.limits.on_ledger_rejected(batch.len()) {
            let ids = self.limits.ids();
            let cause = kafka::text(&cause);
            tracing::warn!(cause, ids, "Kafka rejects a ledger record; smaller ones follow");
            return Attempt::End(SessionEnd::Replace);
        }
        kafka::report_failure(&format_args!(
            "Kafka rejects the smallest ledger record: {}; raise max.message.bytes of topic {}",
            kafka::text(&cause),
            self.topics.ledger()
        ));
        self.try_again_after(Failure::Lost(cause), producer)
    }

    /// As [`Self::try_again`], unless the `failure` has ended the producer.
    fn try_again_after(&self, failure: Failure, producer: &Producer) -> Attempt {
        if producer.has_ended() {
            return Attempt::End(SessionEnd::Lost { failure, late: false });
        }
        self.try_again()
    }

    /// Tries again after a pause; with transactions through another producer ([`Producer::hand_over`]).
    fn try_again(&self) -> Attempt {
        if self.kafka.is_transactional() {
            Attempt::End(SessionEnd::Abandoned)
        } else {
            Attempt::Later
        }
    }

    /// Directs records that Kafka rejects elsewhere. If Kafka rejected whole requests, the next producer
    /// sends smaller ones, to find out which of their records it rejects.
    fn rejected(&mut self, batch: &mut Batch, mut rejected: Vec<RejectedMessage>) -> Attempt {
        let bytes = batch.bytes();
        rejected.retain(|message| message.is_specific);
        let records = self.source.reject(batch, &rejected);
        if records == 0 {
            return Attempt::End(SessionEnd::ShrinkRequests);
        }
        self.limits.on_rejected(bytes);
        tracing::debug!(records, "records are rejected");
        // The dropped messages had sequence numbers, which brokers would miss in what this producer
        // sends next.
        Attempt::End(SessionEnd::Replace)
    }

    /// Commits the transaction whose ledger record is `own`, at `offset` of the ledger topic. If a record
    /// of another publisher with one of the same event ids comes before it, committed or not, aborts it
    /// as contended; after `give_up`, when not all records before it were read, as aborted.
    ///
    /// Of two instances with the same event one finds the other's record, so at most one commits.
    fn commit_if_first(
        &mut self,
        producer: &Producer,
        own: &Commit,
        offset: i64,
    ) -> Result<Transaction, Failure> {
        if let Some(reader) = &mut self.ledger_reader {
            let open_commits = &mut self.open_commits;
            let read = reader.read_open(offset, &self.give_up, |at, bytes| {
                open_commits.record(own.publisher, at, bytes);
            });
            if let Err(cause) = read {
                self.ledger_reader = None;
                producer.abort()?;
                return Err(Failure::Lost(cause));
            }
            let is_contended = open_commits.is_contended(own, offset);
            if is_contended || self.give_up.is_cancelled() {
                producer.abort()?;
                let outcome =
                    if is_contended { Transaction::Contended } else { Transaction::Aborted };
                return Ok(outcome);
            }
        }
        producer.commit()?;
        if let Some(reader) = &mut self.ledger_reader {
            reader.committed(offset);
        }
        Ok(Transaction::Committed)
    }

    /// Pauses for a random time, so that two instances that aborted for each other do not meet
    /// again.
    fn back_off(&mut self) {
        let chance = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let part = f64::from(chance.subsec_nanos() % 1000) / 1000.0;
        std::thread::sleep(self.contended.pause().mul_f64(part));
    }

    /// `batch` is published: applies its ledger record, and releases its space in the log (I3).
    fn finish(&mut self, producer: &Producer, batch: &Batch, commit: Option<&Commit>) {
        if let Some(commit) = commit {
            self.ledger.apply(commit, Instant::now());
        }
        self.finalize_quarantine(producer, Some(batch));
        if let Some(last) = batch.entries().last() {
            self.ledger.expire(last.record.received_at, Instant::now());
        }
        self.source.settle(batch);
    }

    /// Gives quarantined records of published batches their final names. After `give_up`, the next start
    /// does it.
    fn finalize_quarantine(&mut self, producer: &Producer, batch: Option<&Batch>) {
        let mut retries = RETRIES;
        loop {
            match self.source.finalize(batch, &self.ledger) {
                Ok(()) => return self.quarantine_outage.resolved(),
                Err(cause) => self.quarantine_outage.report(&cause),
            }
            if self.give_up.is_cancelled() {
                return;
            }
            // Unread statistics would fill the memory.
            producer.serve();
            self.wait(retries.pause());
        }
    }
}

#[cfg(test)]
mod tests;
