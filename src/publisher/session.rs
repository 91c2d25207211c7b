//! A session: batches published through one producer, until it has to be replaced.

use std::time::{Duration, Instant, SystemTime};

use super::batch::{Batch, Destination};
use super::source::Input;
use super::{LONGEST_PAUSE, Publisher, RETRIES};
use crate::event::Timestamp;
use crate::kafka::{self, Failure, KafkaError, Producer, RejectedMessage, SetupError};
use crate::ledger::Commit;
use crate::metrics::{self, Transaction};

/// How long a wait for records lasts before the next look at `give_up`.
const IDLE: Duration = Duration::from_millis(500);

/// Why a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The log has ended and all of it is published, or `give_up` is set.
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
    Shrink,
    /// Another producer is needed, with other settings or because this one has ended.
    Replace,
    /// Kafka did not take a transaction, for a reason that is reported and may pass.
    Abandoned,
}

/// What one attempt to publish a batch led to.
#[derive(Debug)]
enum Attempt {
    /// The batch is published; with its ledger record, if it needed one.
    Published(Option<Commit>),
    /// Nothing has changed: try again after a pause.
    Later,
    /// Another instance was first with some of the batch: wait for its transaction.
    Contended,
    /// This producer cannot go on.
    End(SessionEnd),
}

/// The next thing to do.
enum Work {
    Batch(Batch),
    Idle,
    /// The source cannot be read: how old its records are is unknown.
    Unreadable,
    End,
}

impl Publisher {
    pub(super) fn publish(&mut self, producer: &Producer) -> SessionEnd {
        let done = self.reader.resume(self.ledger.progress());
        for batch in &mut self.queue {
            batch.retain(|lsn| lsn > done);
        }
        self.queue.retain(|batch| !batch.is_empty());
        // Otherwise the outage ends when the batch that failed is published.
        if self.queue.is_empty() {
            self.kafka_outage.resolved();
        }
        let mut retries = RETRIES;
        while !self.give_up.is_cancelled() {
            if self.request_size.grow() || self.limits.restore_timeouts(Instant::now()) {
                return SessionEnd::Replace;
            }
            std::thread::sleep(self.delay());
            let work = self.next_work();
            self.follow_ledger();
            let mut batch = match work {
                Work::Batch(batch) => batch,
                Work::Idle => {
                    producer.serve();
                    self.finalize_quarantine(producer, None);
                    self.ledger.expire(Timestamp::now(), Instant::now());
                    continue;
                }
                Work::Unreadable => {
                    producer.serve();
                    continue;
                }
                Work::End => {
                    self.finalize_quarantine(producer, None);
                    return SessionEnd::Done;
                }
            };
            self.pace.begin(batch.len(), Instant::now());
            batch.deduplicate(&self.ledger);
            let attempt = self.attempt(producer, &mut batch);
            if let Attempt::Published(commit) = attempt {
                self.finish(producer, &batch, commit.as_ref());
                retries.reset();
                continue;
            }
            self.queue.push_front(batch);
            match attempt {
                Attempt::Published(_) => {}
                Attempt::Later => self.wait(retries.pause()),
                Attempt::Contended => {
                    self.back_off();
                    if let Err(cause) = self.await_ledger() {
                        return SessionEnd::Setup(cause);
                    }
                }
                Attempt::End(end) => return end,
            }
        }
        SessionEnd::Done
    }

    /// How long to let records gather before the next transaction.
    fn delay(&self) -> Duration {
        if self.backlog { Duration::ZERO } else { self.pace.delay(Instant::now()) }
    }

    /// The next batch, within the limits.
    fn next_work(&mut self) -> Work {
        let queued = self.queue.pop_front();
        let mut batch = match queued {
            Some(batch) => batch,
            None => match self.reader.next(self.limits.bytes(), IDLE) {
                Ok(Input::Batch(batch)) => batch,
                Ok(idle_or_end) => {
                    self.log_outage.resolved();
                    return if matches!(idle_or_end, Input::End) { Work::End } else { Work::Idle };
                }
                Err(cause) => {
                    self.log_outage.report(&cause);
                    self.wait(LONGEST_PAUSE);
                    return Work::Unreadable;
                }
            },
        };
        self.log_outage.resolved();
        self.backlog = batch.bytes() >= self.limits.bytes() / 2;
        if let Some(rest) = batch.split(&self.limits) {
            self.queue.push_front(rest);
        }
        Work::Batch(batch)
    }

    /// Tries once to publish `batch`.
    fn attempt(&mut self, producer: &Producer, batch: &mut Batch) -> Attempt {
        if let Some(quarantine) = &mut self.quarantine {
            if let Err(cause) = batch.store(quarantine) {
                self.quarantine_outage.report(&cause);
                return Attempt::Later;
            }
            self.quarantine_outage.resolved();
        }
        if let Some(given) = &mut self.given {
            given.refuse_denied(batch);
        }
        let Some(commit) = batch.commit(self.reader.opening()) else {
            self.kafka_outage.resolved();
            return Attempt::Published(None);
        };
        if self.open_commits.is_full()
            && let Err(cause) = self.await_ledger()
        {
            return Attempt::End(SessionEnd::Setup(cause));
        }
        let started = Instant::now();
        let handed = self.hand_over(producer, batch, &commit);
        batch.mark_delivered(&producer.take_delivered());
        let ended = handed.and_then(|offset| self.commit_if_first(producer, &commit, offset));
        let elapsed = started.elapsed();
        let transaction = match &ended {
            Ok(true) => Transaction::Committed,
            Ok(false) => Transaction::Contended,
            Err(Failure::Lost(_) | Failure::Fenced(_) | Failure::NotIdempotent(_)) => {
                Transaction::Lost
            }
            Err(_) => Transaction::Aborted,
        };
        metrics::transaction(transaction, batch.pending(), elapsed);
        match ended {
            Ok(true) => {
                self.limits.on_published(batch.bytes(), batch.len(), elapsed);
                self.kafka_outage.resolved();
                self.contended.reset();
                Attempt::Published(Some(commit))
            }
            Ok(false) => Attempt::Contended,
            Err(failure) => self.failed(producer, batch, failure, elapsed),
        }
    }

    /// Hands `batch` to Kafka, and reads the next one while Kafka works.
    fn hand_over(
        &mut self,
        producer: &Producer,
        batch: &Batch,
        commit: &Commit,
    ) -> Result<i64, Failure> {
        let ledger = batch.ledger(&self.topics, &self.kafka, commit);
        let ledger = self.has_ledger().then_some(&ledger);
        let messages = || batch.messages(&self.topics, &self.kafka);
        let (reader, queue) = (&mut self.reader, &mut self.queue);
        let (ahead, bytes) = (self.backlog && queue.is_empty(), self.limits.bytes());
        producer.hand_over(ledger, messages, || {
            // An error shows again when there is nothing else to publish.
            if ahead && let Ok(Input::Batch(batch)) = reader.next(bytes, Duration::ZERO) {
                queue.push_back(batch);
            }
        })
    }

    /// What to do about a failed attempt.
    fn failed(
        &mut self,
        producer: &Producer,
        batch: &mut Batch,
        failure: Failure,
        elapsed: Duration,
    ) -> Attempt {
        match failure {
            Failure::Rejected(rejected) => self.rejected(batch, &rejected),
            Failure::LedgerRejected(cause) => self.ledger_rejected(producer, batch, cause),
            Failure::TimedOut(cause) => {
                self.kafka_outage.report(&kafka::text(&cause));
                let needs_longer_timeouts = self.limits.on_timed_out(batch.bytes(), batch.len());
                if needs_longer_timeouts && !self.is_transactional() {
                    return Attempt::End(SessionEnd::Replace);
                }
                self.try_again()
            }
            failure @ Failure::TimestampRejected { .. } => {
                self.kafka_outage.report(&failure);
                self.try_again_after(failure, producer)
            }
            Failure::Retry(_) if self.give_up.is_cancelled() => Attempt::End(SessionEnd::Done),
            Failure::Retry(cause) => {
                if kafka::is_denied(&cause) && self.narrow_denied(batch, &cause) {
                    return Attempt::End(SessionEnd::Replace);
                }
                self.kafka_outage.report(&kafka::text(&cause));
                // A deleted topic is made again: here, or before the next producer.
                if !self.is_transactional()
                    && let Err(cause) = self.make_topics()
                {
                    self.kafka_outage.report(&cause);
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
        self.kafka_outage.report(&format_args!(
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
        if self.is_transactional() { Attempt::End(SessionEnd::Abandoned) } else { Attempt::Later }
    }

    /// Of given events, the other topics may still be written: halves `batch` until one event is
    /// left, whose topic is the denied one. Returns whether the next attempt differs from this one.
    fn narrow_denied(&mut self, batch: &mut Batch, cause: &KafkaError) -> bool {
        let Some(given) = &mut self.given else { return false };
        if let Some(rest) = batch.split_at((batch.len() / 2).max(1)) {
            self.queue.push_front(rest);
        } else if let Some(event) = batch.event(0) {
            given.deny(event, kafka::text(cause));
        }
        true
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.kafka.delivery == kafka::Delivery::ExactlyOnce
    }

    /// Directs records that Kafka rejects elsewhere, or narrows down which they are.
    fn rejected(&mut self, batch: &mut Batch, rejected: &[RejectedMessage]) -> Attempt {
        let alone = rejected.iter().filter(|rejected| rejected.alone);
        let (mut dead_lettered, mut quarantined, mut reported) = (0, 0, 0);
        for RejectedMessage { index, reason, .. } in alone {
            match batch.reject(*index, reason) {
                Some(Destination::DeadLetter) => dead_lettered += 1,
                Some(Destination::Quarantine) => quarantined += 1,
                Some(Destination::Report) => {
                    reported += 1;
                    if let (Some(given), Some(event)) = (&mut self.given, batch.event(*index)) {
                        given.refuse(event, kafka::text(reason));
                    }
                }
                None => {}
            }
        }
        if dead_lettered + quarantined + reported == 0 {
            return Attempt::End(SessionEnd::Shrink);
        }
        self.limits.on_rejected(batch.bytes());
        tracing::debug!(dead_lettered, quarantined, reported, "records are rejected");
        // The dropped messages had sequence numbers, which brokers would miss in what this producer
        // sends next.
        Attempt::End(SessionEnd::Replace)
    }

    /// Commits the transaction whose ledger record is `own`, at `offset` of the ledger topic; or aborts
    /// it, and returns `false`, if a record of another publisher with one of the same event ids comes
    /// before it, committed or not.
    ///
    /// Of two instances with the same event one finds the other's record, so at most one commits.
    fn commit_if_first(
        &mut self,
        producer: &Producer,
        own: &Commit,
        offset: i64,
    ) -> Result<bool, Failure> {
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
            // After `give_up` not all of it is read.
            if self.give_up.is_cancelled() || open_commits.is_contended(own, offset) {
                producer.abort()?;
                return Ok(false);
            }
        }
        producer.commit()?;
        if let Some(reader) = &mut self.ledger_reader {
            reader.committed(offset);
        }
        Ok(true)
    }

    /// Pauses for a random time, so that two instances that aborted for each other do not meet
    /// again.
    fn back_off(&mut self) {
        let chance = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let part = f64::from(chance.subsec_nanos() % 1000) / 1000.0;
        std::thread::sleep(self.contended.pause().mul_f64(part));
    }

    /// The batch is published, for good: counts it and releases its space in the log (I3).
    fn finish(&mut self, producer: &Producer, batch: &Batch, commit: Option<&Commit>) {
        if let Some(commit) = commit {
            self.ledger.apply(commit, Instant::now());
        }
        if let Some(given) = &self.given {
            given.progressed();
        }
        self.finalize_quarantine(producer, Some(batch));
        let outcomes = batch.record_outcomes();
        if let Some(last) = batch.entries().last() {
            self.ledger.expire(last.record.received_at, Instant::now());
            self.reader.settle(last.lsn, Some(last.record.received_at), outcomes);
        }
    }

    /// Gives quarantined records of published batches their final names. What `give_up` leaves is
    /// done after the next start.
    fn finalize_quarantine(&mut self, producer: &Producer, batch: Option<&Batch>) {
        let mut retries = RETRIES;
        loop {
            let Some(quarantine) = &mut self.quarantine else { return };
            let settled = match batch {
                Some(batch) => quarantine.finalize(batch),
                None => quarantine.finalize_all(),
            };
            match settled {
                Ok(()) => return self.quarantine_outage.resolved(),
                Err(cause) => self.quarantine_outage.report(&cause),
            }
            if self.give_up.is_cancelled() {
                return;
            }
            // Its statistics would fill the memory.
            producer.serve();
            self.wait(retries.pause());
        }
    }
}

#[cfg(test)]
mod tests;
