//! Every metric: one function per fact. What each is called and means is in `table.rs`.
//!
//! The only room that names the metrics crates. Handles are made once, so that counting costs an
//! atomic addition; every series exists from the start, so that a rate over it is never missing.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::event::{EventType, OTHER, Timestamp};

mod intake;
mod process;
mod snapshot;
mod table;

pub use intake::{
    CloseReason, KeyUse, UNVERIFIED, admin_ended, certificate_expires, ended, register_rejections,
    rejected,
};
pub use snapshot::Snapshot;

use table::{Kind, Metric, TABLE};

/// What `/metrics` is rendered from.
#[derive(Clone, Debug)]
pub struct Exporter(PrometheusHandle);

/// Installs the process-wide recorder. Comes before every other function here.
///
/// # Errors
/// When there is a recorder already.
pub fn install() -> Result<Exporter, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for Metric { name, kind, .. } in TABLE {
        if let Kind::Histogram(bounds) = kind {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
        }
    }
    let exporter = Exporter(builder.install_recorder()?);
    LazyLock::force(&METRICS);
    LazyLock::force(&intake::INTAKE);
    METRICS.build.set(1.0);
    METRICS.reload_ok.set(1.0);
    METRICS.quarantine_ok.set(1.0);
    METRICS.wal_read_ok.set(1.0);
    Ok(exporter)
}

impl Exporter {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = self.0.render();
        process::render(&mut text);
        text
    }

    /// Folds what histograms have buffered. Without it they grow until the next scrape.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// What becomes of a record, in the order of [`SelfAuditTotals`].
const OUTCOMES: [&str; 6] =
    ["published", "absorbed", "dead_lettered", "quarantined", "by_ledger", "damaged"];

/// Label values with a counter each.
struct Counters {
    by_label: Vec<(&'static str, Counter)>,
    /// For labels that do not exist.
    none: Counter,
}

impl Counters {
    fn new(
        labels: impl Iterator<Item = &'static str>,
        make: impl Fn(&'static str) -> Counter,
    ) -> Self {
        let by_label = labels.map(|label| (label, make(label))).collect();
        Self { by_label, none: Counter::noop() }
    }

    fn get(&self, label: &str) -> &Counter {
        let found = self.by_label.iter().find(|(known, _)| *known == label);
        found.map_or(&self.none, |(_, counter)| counter)
    }
}

struct Metrics {
    build: Gauge,
    reloads: Counters,
    reload_ok: Gauge,
    log_lines_dropped: Counter,
    accepted: Counters,
    connections: Gauge,
    acknowledge: Histogram,
    commit: Histogram,
    sync: Histogram,
    group: Histogram,
    damaged: Counter,
    records: Gauge,
    disk_bytes: Gauge,
    damaged_segments: Gauge,
    damaged_segments_bytes: Gauge,
    segments: Gauge,
    room: Gauge,
    oldest: Gauge,
    free: Gauge,
    published: Counters,
    duplicates: Counter,
    conflicts: Counter,
    dead: Counter,
    quarantined: Counter,
    quarantine_ok: Gauge,
    wal_read_ok: Gauge,
    delay: Histogram,
    transactions: Counters,
    transaction: Histogram,
    transaction_records: Histogram,
    kafka_up: Gauge,
    audit_accepted: Counter,
    audit_settled: Counters,
    audit_pending: Gauge,
    audit_missing: Gauge,
    audit_since: Gauge,
    ids: Gauge,
    truncated: Counter,
    ledger_lag: Gauge,
    sessions: Counter,
    fenced: Counter,
    brokers: Gauge,
    round_trip: Gauge,
    queue_messages: Gauge,
    queue_bytes: Gauge,
    request_failures: Counters,
}

fn type_labels() -> impl Iterator<Item = &'static str> {
    EventType::known().map(|(_, name)| name).chain([OTHER])
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    describe();
    Metrics {
        build: gauge!("livebridge_build_info", "version" => env!("CARGO_PKG_VERSION")),
        reloads: Counters::new(
            ["applied", "refused"].into_iter(),
            |label| counter!("livebridge_config_reloads_total", "outcome" => label),
        ),
        reload_ok: gauge!("livebridge_config_ok"),
        log_lines_dropped: counter!("livebridge_log_lines_dropped_total"),
        accepted: Counters::new(
            type_labels(),
            |label| counter!("livebridge_callbacks_accepted_total", "event_type" => label),
        ),
        connections: gauge!("livebridge_http_connections"),
        acknowledge: histogram!("livebridge_acknowledge_seconds"),
        commit: histogram!("livebridge_wal_commit_seconds"),
        sync: histogram!("livebridge_wal_sync_seconds"),
        group: histogram!("livebridge_wal_group_records"),
        damaged: counter!("livebridge_wal_damaged_records_total"),
        records: gauge!("livebridge_wal_records"),
        disk_bytes: gauge!("livebridge_wal_disk_bytes"),
        damaged_segments: gauge!("livebridge_wal_damaged_segments"),
        damaged_segments_bytes: gauge!("livebridge_wal_damaged_segments_bytes"),
        segments: gauge!("livebridge_wal_segments"),
        room: gauge!("livebridge_wal_room_bytes"),
        oldest: gauge!("livebridge_oldest_unpublished_age_seconds"),
        free: gauge!("livebridge_disk_free_bytes"),
        published: Counters::new(
            type_labels(),
            |label| counter!("livebridge_published_total", "event_type" => label),
        ),
        duplicates: counter!("livebridge_duplicates_total"),
        conflicts: counter!("livebridge_conflicts_total"),
        dead: counter!("livebridge_dead_letters_total"),
        quarantined: counter!("livebridge_quarantined_total"),
        quarantine_ok: gauge!("livebridge_quarantine_ok"),
        wal_read_ok: gauge!("livebridge_wal_read_ok"),
        delay: histogram!("livebridge_publish_delay_seconds"),
        transactions: Counters::new(
            ["committed", "aborted", "contended", "lost"].into_iter(),
            |label| counter!("livebridge_transactions_total", "outcome" => label),
        ),
        transaction: histogram!("livebridge_transaction_seconds"),
        transaction_records: histogram!("livebridge_transaction_records"),
        kafka_up: gauge!("livebridge_kafka_up"),
        audit_accepted: counter!("livebridge_audit_accepted_total"),
        audit_settled: Counters::new(
            OUTCOMES.into_iter(),
            |label| counter!("livebridge_audit_settled_total", "outcome" => label),
        ),
        audit_pending: gauge!("livebridge_audit_pending_records"),
        audit_missing: gauge!("livebridge_audit_missing_records"),
        audit_since: gauge!("livebridge_audit_since_timestamp_seconds"),
        ids: gauge!("livebridge_dedup_ids"),
        truncated: counter!("livebridge_dedup_window_truncated_total"),
        ledger_lag: gauge!("livebridge_ledger_lag_records"),
        sessions: counter!("livebridge_kafka_sessions_total"),
        fenced: counter!("livebridge_fenced_total"),
        brokers: gauge!("livebridge_kafka_brokers_connected"),
        round_trip: gauge!("livebridge_kafka_round_trip_seconds"),
        queue_messages: gauge!("livebridge_kafka_queue_messages"),
        queue_bytes: gauge!("livebridge_kafka_queue_bytes"),
        request_failures: Counters::new(
            ["error", "timeout", "retry"].into_iter(),
            |label| counter!("livebridge_kafka_request_failures_total", "kind" => label),
        ),
    }
});

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    for Metric { name, kind, unit, help } in TABLE {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram(_) => describe_histogram!(*name, *unit, *help),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 is enough")]
fn float(number: u64) -> f64 {
    number as f64
}

/// A callback of this type is durable and was answered 200, `elapsed` after its request.
pub fn accepted(type_name: &'static str, elapsed: Duration) {
    METRICS.accepted.get(type_name).increment(1);
    METRICS.acknowledge.record(elapsed);
}

/// The configuration was read anew, and taken or not.
pub fn reloaded(taken: bool) {
    METRICS.reloads.get(if taken { "applied" } else { "refused" }).increment(1);
    METRICS.reload_ok.set(if taken { 1.0 } else { 0.0 });
}

/// How many log lines were dropped since the start.
pub fn log_lines_dropped(lines: u64) {
    METRICS.log_lines_dropped.absolute(lines);
}

/// A connection was opened.
pub fn connection_opened() {
    METRICS.connections.increment(1.0);
}

/// A connection was closed.
pub fn connection_closed() {
    METRICS.connections.decrement(1.0);
}

/// A group of `records` became durable in `elapsed`, of which `syncing` for the sync.
pub fn committed(records: usize, elapsed: Duration, syncing: Duration) {
    METRICS.commit.record(elapsed);
    METRICS.sync.record(syncing);
    METRICS.group.record(float(records as u64));
}

/// Records were found to be damaged.
pub fn damaged(records: u32) {
    METRICS.damaged.increment(u64::from(records));
}

/// Damaged segments that are kept.
pub fn damaged_segments(count: usize, bytes: u64) {
    METRICS.damaged_segments.set(float(count as u64));
    METRICS.damaged_segments_bytes.set(float(bytes));
}

/// What the log holds.
pub fn stored(records: u64, disk_bytes: u64, segments: usize, oldest: Option<Timestamp>) {
    METRICS.records.set(float(records));
    METRICS.disk_bytes.set(float(disk_bytes));
    METRICS.segments.set(float(segments as u64));
    let age = oldest.map_or(Duration::ZERO, |oldest| Timestamp::now().since(oldest));
    METRICS.oldest.set(age.as_secs_f64());
}

/// Free space, and what of it the log may take; unknown space is not shown as none.
pub fn disk(free_bytes: Option<u64>, room_bytes: u64) {
    METRICS.free.set(free_bytes.map_or(f64::NAN, float));
    METRICS.room.set(float(room_bytes));
}

/// A record of this type is committed in Kafka, `delay` after it was received.
pub fn published(type_name: &'static str, delay: Duration) {
    METRICS.published.get(type_name).increment(1);
    METRICS.delay.record(delay);
}

/// Records were absorbed as retries.
pub fn duplicates(records: u64) {
    METRICS.duplicates.increment(records);
}

/// Records share a natural key with another event.
pub fn conflicts(records: u64) {
    METRICS.conflicts.increment(records);
}

/// A record went to the dead-letter topic.
pub fn dead_letter() {
    METRICS.dead.increment(1);
}

/// Whether the quarantine could be written at the last attempt.
pub fn quarantine_ok(ok: bool) {
    METRICS.quarantine_ok.set(f64::from(u8::from(ok)));
}

/// Whether the publisher could read the log at the last attempt.
pub fn wal_read_ok(ok: bool) {
    METRICS.wal_read_ok.set(f64::from(u8::from(ok)));
}

/// A record went to the quarantine.
pub fn quarantined() {
    METRICS.quarantined.increment(1);
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug)]
pub enum Transaction {
    /// It holds.
    Committed,
    /// It was undone and is tried again.
    Aborted,
    /// It was undone because another instance came first with some of it.
    Contended,
    /// The producer is gone; the next one finds out.
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
    METRICS.transactions.get(label).increment(1);
    METRICS.transaction.record(elapsed);
    METRICS.transaction_records.record(float(records as u64));
}

/// Whether Kafka answers.
pub fn kafka_up(up: bool) {
    METRICS.kafka_up.set(if up { 1.0 } else { 0.0 });
}

/// Ids in the dedup window.
pub fn dedup_ids(ids: usize) {
    METRICS.ids.set(float(ids as u64));
}

/// The dedup window was cut short by its size.
pub fn dedup_window_truncated() {
    METRICS.truncated.increment(1);
}

/// A producer was made.
pub fn session() {
    METRICS.sessions.increment(1);
}

/// Another producer took this instance's name.
pub fn fenced() {
    METRICS.fenced.increment(1);
}

/// So much of the ledger topic is still to be read.
pub fn ledger_lag(offsets: u64) {
    METRICS.ledger_lag.set(float(offsets));
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
    METRICS.brokers.set(float(state.brokers));
    METRICS.round_trip.set(state.round_trip.as_secs_f64());
    METRICS.queue_messages.set(float(state.messages));
    METRICS.queue_bytes.set(float(state.bytes));
    METRICS.request_failures.get("error").increment(state.errors);
    METRICS.request_failures.get("timeout").increment(state.timeouts);
    METRICS.request_failures.get("retry").increment(state.retries);
}

/// What the log's account of itself says; see `wal/account.rs`.
#[derive(Clone, Copy, Debug)]
pub struct SelfAuditTotals {
    /// Records accepted.
    pub accepted: u64,
    /// What became of them: published, absorbed, dead-lettered, quarantined, done with by the
    /// ledger's account, damaged.
    pub settled: [u64; 6],
    /// Those still in the log.
    pub pending: u64,
    /// What does not add up.
    pub missing: i64,
    /// When it began.
    pub since: Timestamp,
}

/// The log's account of itself.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 is enough")]
pub fn audit(account: &SelfAuditTotals) {
    METRICS.audit_accepted.absolute(account.accepted);
    for (outcome, records) in OUTCOMES.into_iter().zip(account.settled) {
        METRICS.audit_settled.get(outcome).absolute(records);
    }
    METRICS.audit_pending.set(float(account.pending));
    METRICS.audit_missing.set(account.missing as f64);
    METRICS.audit_since.set(account.since.as_millis() as f64 / 1000.0);
}
