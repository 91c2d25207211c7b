//! What librdkafka reports of the producer's deliveries, and of itself.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::stats::ProducerStats;
use super::{Context, text};
use crate::secret::redact;

/// Collects what deliveries failed, and where the ledger record of a batch got to.
#[derive(Default)]
pub(super) struct Reports {
    failed: Mutex<Vec<Failed>>,
    /// The record's place.
    ledger: AtomicUsize,
    ledger_offset: AtomicI64,
    stats: ProducerStats,
    transaction_error: Mutex<Option<String>>,
}

/// A delivery that failed.
pub(super) struct Failed {
    /// The message's place.
    pub(super) index: usize,
    pub(super) error: KafkaError,
    /// It did not leave this process.
    pub(super) here: bool,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Why a transaction failed is in no delivery report: its messages are dropped.
        if facility == "TXNERR" {
            let mut error = self.transaction_error.lock().unwrap_or_else(PoisonError::into_inner);
            *error = Some(redact(message).into_owned());
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

impl Failed {
    /// librdkafka dropped it after another message had failed.
    pub(super) fn is_purged(&self) -> bool {
        let code = self.error.rdkafka_error_code();
        matches!(code, Some(Code::PurgeQueue | Code::PurgeInflight))
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        match result {
            Ok(message) if index == self.ledger.load(Ordering::Relaxed) => {
                self.ledger_offset.store(message.offset(), Ordering::Relaxed);
            }
            Ok(_) => {}
            Err((error, message)) => {
                tracing::debug!(error = text(error), topic = message.topic(), "delivery failed");
                self.failed(Failed { index, error: error.clone(), here: false });
            }
        }
    }
}

impl Reports {
    /// Which place the ledger record of the next batch has.
    pub(super) fn expect(&self, ledger: Option<usize>) {
        self.ledger.store(ledger.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Where the last one that was delivered is.
    pub(super) fn ledger_offset(&self) -> i64 {
        self.ledger_offset.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self, failed: Failed) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
    }

    /// Whether deliveries failed, and whether it is known why.
    pub(super) fn look(&self) -> (bool, bool) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        (!failed.is_empty(), failed.iter().any(|failed| !failed.is_purged()))
    }

    /// Why the last transaction failed, as librdkafka logged it.
    pub(super) fn take_transaction_error(&self) -> Option<String> {
        self.transaction_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn take(&self) -> Vec<Failed> {
        std::mem::take(&mut self.failed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
