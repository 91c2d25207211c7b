//! The producer's delivery reports, and librdkafka's log lines and statistics.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::stats::ProducerStats;
use super::{Context, text};

/// Collects which deliveries failed, and the offset of the batch's ledger record.
#[derive(Default)]
pub(super) struct Reports {
    failed: Mutex<Vec<FailedDelivery>>,
    /// The indices of delivered messages, if they are recorded.
    delivered: Option<Mutex<Vec<usize>>>,
    /// The index of the ledger record.
    ledger: AtomicUsize,
    ledger_offset: AtomicI64,
    stats: ProducerStats,
    denied_topic: Mutex<Option<String>>,
}

/// A delivery that failed.
pub(super) struct FailedDelivery {
    /// The message's index.
    pub(super) index: usize,
    pub(super) error: KafkaError,
    /// Whether librdkafka rejected the message before it was sent.
    pub(super) is_local: bool,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(topic) = denied_topic(facility, message) {
            *self.denied_topic.lock().unwrap_or_else(PoisonError::into_inner) = Some(topic.into());
        }
        Context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.stats.report(statistics);
    }
}

impl FailedDelivery {
    /// Whether librdkafka dropped it after another message had failed.
    pub(super) fn is_purged(&self) -> bool {
        let code = self.error.rdkafka_error_code();
        matches!(code, Some(Code::PurgeQueue | Code::PurgeInflight))
    }

    /// Whether its timestamp is too far from the broker's clock.
    pub(super) fn is_timestamp_rejected(&self) -> bool {
        self.error.rdkafka_error_code() == Some(Code::InvalidTimestamp)
    }

    /// Whether the message itself is invalid, so that sending it again would fail again.
    ///
    /// Other errors can be corrected: an operator grants authorization, creates a topic, or sets a
    /// clock or the topic's settings for timestamps.
    pub(super) fn is_rejected(&self) -> bool {
        let (KafkaError::MessageProduction(code) | KafkaError::Global(code)) = &self.error else {
            return false;
        };
        matches!(
            code,
            Code::MessageSizeTooLarge
                | Code::MessageBatchTooLarge
                | Code::InvalidMessage
                | Code::InvalidMessageSize
                | Code::InvalidRecord
                | Code::InvalidTopic
        )
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        match result {
            Ok(message) if index == self.ledger.load(Ordering::Relaxed) => {
                self.ledger_offset.store(message.offset(), Ordering::Relaxed);
            }
            Ok(_) => {
                if let Some(delivered) = &self.delivered {
                    lock(delivered).push(index);
                }
            }
            Err((error, message)) => {
                tracing::debug!(error = text(error), topic = message.topic(), "delivery failed");
                self.record_failure(FailedDelivery {
                    index,
                    error: error.clone(),
                    is_local: false,
                });
            }
        }
    }
}

impl Reports {
    /// With `record_delivered`, [`Self::take_delivered`] returns the delivered messages.
    pub(super) fn new(record_delivered: bool) -> Self {
        Self { delivered: record_delivered.then(Mutex::default), ..Self::default() }
    }

    /// Sets the index of the next batch's ledger record, whose offset is recorded.
    pub(super) fn set_ledger_index(&self, ledger: Option<usize>) {
        self.ledger.store(ledger.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// The offset of the last ledger record that was delivered.
    pub(super) fn ledger_offset(&self) -> i64 {
        self.ledger_offset.load(Ordering::Relaxed)
    }

    /// Adds a delivery that failed.
    pub(super) fn record_failure(&self, failed: FailedDelivery) {
        lock(&self.failed).push(failed);
    }

    /// Whether deliveries failed, and whether the reason is among the reports.
    pub(super) fn failures(&self) -> (bool, bool) {
        let failed = lock(&self.failed);
        (!failed.is_empty(), failed.iter().any(|failed| !failed.is_purged()))
    }

    /// A topic that Kafka did not let this user add to a transaction since the last call.
    pub(super) fn take_denied_topic(&self) -> Option<String> {
        self.denied_topic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn take_failed(&self) -> Vec<FailedDelivery> {
        std::mem::take(&mut lock(&self.failed))
    }

    pub(super) fn take_delivered(&self) -> Vec<usize> {
        self.delivered
            .as_ref()
            .map(|delivered| std::mem::take(&mut *lock(delivered)))
            .unwrap_or_default()
    }
}

/// The topic that may not be added to a transaction, in a log line of librdkafka. Nothing else names
/// it: the messages of the transaction are dropped before they are sent, those for other topics too.
fn denied_topic<'a>(facility: &str, message: &'a str) -> Option<&'a str> {
    let is_denied = facility == "ADDPARTS" && message.ends_with("Topic authorization failed");
    let (_, partition) = message.split_once("add partition \"").filter(|_| is_denied)?;
    partition.split('"').next()
}

fn lock<T>(reports: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}
