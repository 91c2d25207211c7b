//! Every metric: one function per fact. What each is called and means is in `table.rs`.
//!
//! The only module that names the metrics crates. Every series exists from the start, so that a
//! rate over it is never missing.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::event::Timestamp;

mod declared;
mod histogram;
mod intake;
mod process;
mod snapshot;
pub(crate) mod table;

pub use intake::{
    CloseReason, KeyUse, UNVERIFIED, admin_ended, certificate_expires, ended, register_rejections,
    rejected,
};
pub use snapshot::Snapshot;

use table::OUTCOMES;

/// What `/metrics` is rendered from.
#[derive(Clone, Debug)]
pub struct Exporter(PrometheusHandle);

/// Installs the process-wide recorder. Comes before every other function here.
///
/// # Errors
/// When there is a recorder already.
pub fn install() -> Result<Exporter, BuildError> {
    let exporter = Exporter(PrometheusBuilder::new().install_recorder()?);
    for metric in table::ALL {
        metric.make();
    }
    table::BUILD_INFO.of(env!("CARGO_PKG_VERSION")).set(1.0);
    table::CONFIG_OK.set(1.0);
    table::QUARANTINE_OK.set(1.0);
    table::WAL_READ_OK.set(1.0);
    Ok(exporter)
}

impl Exporter {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = self.0.render();
        for metric in table::ALL {
            metric.render(&mut text);
        }
        process::render(&mut text);
        sorted(&text)
    }
}

/// The families and their series by name, so that two scrapes can be compared: the recorder's order
/// differs from scrape to scrape.
fn sorted(text: &str) -> String {
    let families = text.split("\n\n").filter(|family| !family.is_empty());
    let mut families: Vec<Vec<&str>> =
        families.map(|family| family.trim().lines().collect()).collect();
    for family in &mut families {
        // Buckets are in the order of their bounds.
        if !family.iter().any(|line| line.ends_with(" histogram")) {
            family.sort_unstable();
        }
    }
    families.sort_unstable();
    families.iter().map(|family| family.join("\n") + "\n\n").collect()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 is enough")]
fn float(number: u64) -> f64 {
    number as f64
}

/// A callback of this type is durable and was answered 200, `elapsed` after its request.
pub fn accepted(type_name: &'static str, elapsed: Duration) {
    table::CALLBACKS_ACCEPTED.get(type_name).increment(1);
    table::ACKNOWLEDGE_SECONDS.record(elapsed.as_secs_f64());
}

/// The configuration was read anew, and taken or not.
pub fn reloaded(taken: bool) {
    table::CONFIG_RELOADS.get(if taken { "applied" } else { "rejected" }).increment(1);
    table::CONFIG_OK.set(if taken { 1.0 } else { 0.0 });
}

/// How long callbacks were not accepted, as far as that is not recovered.
pub fn gap_not_recovered(length: Duration) {
    table::GAP_NOT_RECOVERED_SECONDS.set(length.as_secs_f64());
}

/// How many log lines were dropped since the start.
pub fn log_lines_dropped(lines: u64) {
    table::LOG_LINES_DROPPED.absolute(lines);
}

/// A connection was opened.
pub fn connection_opened() {
    table::HTTP_CONNECTIONS.increment(1.0);
}

/// A connection was closed.
pub fn connection_closed() {
    table::HTTP_CONNECTIONS.decrement(1.0);
}

/// A group of `records` with this many bytes became durable in `elapsed`, of which `syncing` for
/// writing and syncing.
pub fn committed(records: usize, bytes: usize, elapsed: Duration, syncing: Duration) {
    flushed(bytes as u64);
    table::WAL_COMMIT_SECONDS.record(elapsed.as_secs_f64());
    table::WAL_SYNC_SECONDS.record(syncing.as_secs_f64());
    table::WAL_GROUP_RECORDS.record(float(records as u64));
}

/// This many bytes were written to the log and flushed to disk.
pub fn flushed(bytes: u64) {
    table::WAL_FLUSHES.increment(1);
    table::WAL_WRITTEN_BYTES.increment(bytes);
}

/// Records were found to be damaged.
pub fn damaged(records: u32) {
    table::WAL_DAMAGED_RECORDS.increment(u64::from(records));
}

/// Damaged segments that are kept.
pub fn damaged_segments(count: usize, bytes: u64) {
    table::WAL_DAMAGED_SEGMENTS.set(float(count as u64));
    table::WAL_DAMAGED_SEGMENTS_BYTES.set(float(bytes));
}

/// What the log holds.
pub fn stored(records: u64, disk_bytes: u64, segments: usize, oldest: Option<Timestamp>) {
    table::WAL_RECORDS.set(float(records));
    table::WAL_DISK_BYTES.set(float(disk_bytes));
    table::WAL_SEGMENTS.set(float(segments as u64));
    let age = oldest.map_or(Duration::ZERO, |oldest| Timestamp::now().since(oldest));
    table::OLDEST_UNPUBLISHED_AGE_SECONDS.set(age.as_secs_f64());
}

/// Free space, and what of it the log may take; unknown space is not shown as none.
pub fn disk(free_bytes: Option<u64>, room_bytes: u64) {
    table::DISK_FREE_BYTES.set(free_bytes.map_or(f64::NAN, float));
    table::WAL_ROOM_BYTES.set(float(room_bytes));
}

/// A record of this type is committed in Kafka, `delay` after it was received.
pub fn published(type_name: &'static str, delay: Duration) {
    table::PUBLISHED.get(type_name).increment(1);
    table::PUBLISH_DELAY_SECONDS.record(delay.as_secs_f64());
}

/// Records were absorbed as retries.
pub fn duplicates(records: u64) {
    table::DUPLICATES.increment(records);
}

/// Records share a natural key with another event.
pub fn conflicts(records: u64) {
    table::CONFLICTS.increment(records);
}

/// A record went to the dead-letter topic.
pub fn dead_letter() {
    table::DEAD_LETTERS.increment(1);
}

/// Whether the quarantine could be written at the last attempt.
pub fn quarantine_ok(ok: bool) {
    table::QUARANTINE_OK.set(f64::from(u8::from(ok)));
}

/// Whether the publisher could read the log at the last attempt.
pub fn wal_read_ok(ok: bool) {
    table::WAL_READ_OK.set(f64::from(u8::from(ok)));
}

/// A record went to the quarantine.
pub fn quarantined() {
    table::QUARANTINED.increment(1);
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug)]
pub enum Transaction {
    /// Its events are in Kafka.
    Committed,
    /// It was aborted and its events are sent again.
    Aborted,
    /// It was aborted because another instance published some of its events first.
    Contended,
    /// The producer failed before the outcome was known; the next one reads it from the ledger.
    Lost,
}

/// A transaction of `records` ended after `elapsed`.
pub fn transaction(outcome: Transaction, records: usize, elapsed: Duration) {
    let label = match outcome {
        Transaction::Committed => "committed",
        Transaction::Aborted => "aborted",
        Transaction::Contended => "contended",
        Transaction::Lost => "lost",
    };
    table::TRANSACTIONS.get(label).increment(1);
    table::TRANSACTION_SECONDS.record(elapsed.as_secs_f64());
    table::TRANSACTION_RECORDS.record(float(records as u64));
}

/// Whether Kafka answers.
pub fn kafka_up(up: bool) {
    table::KAFKA_UP.set(if up { 1.0 } else { 0.0 });
}

/// Ids in the dedup window.
pub fn dedup_ids(ids: usize) {
    table::DEDUP_IDS.set(float(ids as u64));
}

/// The dedup window was cut short by its size.
pub fn dedup_window_truncated() {
    table::DEDUP_WINDOW_TRUNCATED.increment(1);
}

/// A producer was made.
pub fn session() {
    table::KAFKA_SESSIONS.increment(1);
}

/// Another producer took this instance's name.
pub fn fenced() {
    table::FENCED.increment(1);
}

/// So much of the ledger topic is still to be read.
pub fn ledger_lag(offsets: u64) {
    table::LEDGER_LAG_RECORDS.set(float(offsets));
}

/// What librdkafka says of a producer and its brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProducerState {
    /// Brokers connected.
    pub brokers: u64,
    /// The slowest broker's mean round trip.
    pub round_trip: Duration,
    /// Messages in the queue.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests that failed since the last time.
    pub errors: u64,
    /// Requests that timed out since the last time.
    pub timeouts: u64,
    /// Requests that were sent again since the last time.
    pub retries: u64,
}

/// How a producer is.
pub fn producer(state: &ProducerState) {
    table::KAFKA_BROKERS_CONNECTED.set(float(state.brokers));
    table::KAFKA_ROUND_TRIP_SECONDS.set(state.round_trip.as_secs_f64());
    table::KAFKA_QUEUE_MESSAGES.set(float(state.messages));
    table::KAFKA_QUEUE_BYTES.set(float(state.bytes));
    table::KAFKA_REQUEST_FAILURES.get("error").increment(state.errors);
    table::KAFKA_REQUEST_FAILURES.get("timeout").increment(state.timeouts);
    table::KAFKA_REQUEST_FAILURES.get("retry").increment(state.retries);
}

/// The totals of the self-audit; see `wal/self_audit.rs`.
#[derive(Clone, Copy, Debug)]
pub struct SelfAuditTotals {
    /// Records accepted.
    pub accepted: u64,
    /// What became of them: published, absorbed, dead-lettered, quarantined, released because
    /// the ledger lists them, damaged.
    pub settled: [u64; 6],
    /// Those still in the log.
    pub pending: u64,
    /// What does not add up.
    pub missing: i64,
    /// When it began.
    pub since: Timestamp,
}

/// Sets the metrics of the self-audit.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 is enough")]
pub fn audit(totals: &SelfAuditTotals) {
    table::AUDIT_ACCEPTED.absolute(totals.accepted);
    for (outcome, records) in OUTCOMES.into_iter().zip(totals.settled) {
        table::AUDIT_SETTLED.get(outcome).absolute(records);
    }
    table::AUDIT_PENDING_RECORDS.set(float(totals.pending));
    table::AUDIT_MISSING_RECORDS.set(totals.missing as f64);
    table::AUDIT_SINCE_TIMESTAMP_SECONDS.set(totals.since.as_millis() as f64 / 1000.0);
}
