//! Each metric, declared once: name, kind, unit, label, help. `docs/metrics.md` has the same table,
//! and a test compares it with what a running bridge prints.

use metrics::{Counter, Gauge, Unit};

use super::declared::{Counters, Declaration, Declared, Family, Metric};
use super::histogram::Histogram;
use super::intake::close_reasons;
use crate::event::{EventType, OTHER};

/// Seconds, from the fastest commit to the deadline of a sender.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 20.0,
];
/// Seconds, from a quick transaction to a day without Kafka.
const LONG_SECONDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86400.0];
/// Records per group or transaction.
const RECORDS: [f64; 12] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 8192.0];

const fn counter(name: &'static str, help: &'static str) -> Metric<Counter> {
    Metric::new(Declaration::new(name, Unit::Count, help))
}

const fn bytes(name: &'static str, help: &'static str) -> Metric<Counter> {
    Metric::new(Declaration::new(name, Unit::Bytes, help))
}

/// Counters by the values of a label.
const fn counters(
    name: &'static str,
    label: &'static str,
    values: fn() -> Vec<&'static str>,
    help: &'static str,
) -> Metric<Counters> {
    let declaration = Declaration::new(name, Unit::Count, help);
    Metric::new(Declaration { label, values, ..declaration })
}

/// By the values of a label that are known at run time only.
const fn family<H>(
    name: &'static str,
    label: &'static str,
    unit: Unit,
    help: &'static str,
) -> Metric<Family<H>> {
    Metric::new(Declaration { label, ..Declaration::new(name, unit, help) })
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Metric<Gauge> {
    Metric::new(Declaration::new(name, unit, help))
}

const fn seconds(
    name: &'static str,
    bounds: &'static [f64],
    help: &'static str,
) -> Metric<Histogram> {
    Metric::new(Declaration { bounds, ..Declaration::new(name, Unit::Seconds, help) })
}

const fn records(name: &'static str, help: &'static str) -> Metric<Histogram> {
    Metric::new(Declaration { bounds: &RECORDS, ..Declaration::new(name, Unit::Count, help) })
}

/// What becomes of a record, in the order of [`super::SelfAuditTotals`].
pub(super) const OUTCOMES: [&str; 6] =
    ["published", "absorbed", "dead_lettered", "quarantined", "by_ledger", "damaged"];

fn event_types() -> Vec<&'static str> {
    EventType::known().map(|(_, name)| name).chain([OTHER]).collect()
}

/// Makes a static of each metric, and the list of all.
macro_rules! declare {
    ($($name:ident: $handle:ty = $metric:expr;)*) => {
        $(pub(crate) static $name: Metric<$handle> = $metric;)*
        pub(super) const ALL: &[&dyn Declared] = &[$(&$name),*];
    };
}

// The metrics of the process are in `process.rs`.
declare! {
    BUILD_INFO: Family<Gauge> = family("livebridge_build_info", "version", Unit::Count,
        "Always 1; the version is a label");
    CONFIG_RELOADS: Counters = counters(
        "livebridge_config_reloads_total", "outcome", || vec!["applied", "rejected"],
        "Configuration reloads, by outcome");
    CONFIG_OK: Gauge = gauge("livebridge_config_ok", Unit::Count,
        "1 while the configuration on disk is in use, 0 while it is rejected");
    LOG_LINES_DROPPED: Counter = counter("livebridge_log_lines_dropped_total",
        "Log lines dropped because standard error was not read fast enough");
    // Intake.
    CALLBACKS_ACCEPTED: Counters = counters(
        "livebridge_callbacks_accepted_total", "event_type", event_types,
        "Callbacks answered 200: durable in the log");
    CALLBACKS_REJECTED: Counters = counters(
        "livebridge_callbacks_rejected_total", "reason", Vec::new,
        "Requests answered with an error, by reason");
    CALLBACK_KEY_ACCEPTED: Family<Counter> = family(
        "livebridge_callback_key_accepted_total", "key", Unit::Count,
        "Callbacks by the key that signed them");
    CALLBACK_KEY_LAST_USED_TIMESTAMP_SECONDS: Family<Gauge> = family(
        "livebridge_callback_key_last_used_timestamp_seconds", "key", Unit::Seconds,
        "When a callback signed with the key was last accepted; 0 for never");
    HTTP_CONNECTIONS: Gauge = gauge("livebridge_http_connections", Unit::Count,
        "Open connections to the intake");
    HTTP_CONNECTIONS_CLOSED: Counters = counters(
        "livebridge_http_connections_closed_total", "reason", close_reasons,
        "Connections closed by livebridge, by reason");
    TLS_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS: Gauge = gauge(
        "livebridge_tls_certificate_expiry_timestamp_seconds", Unit::Seconds,
        "When the TLS certificate of the intake expires; 0 without one");
    ACKNOWLEDGE_SECONDS: Histogram = seconds("livebridge_acknowledge_seconds", &SECONDS,
        "From request to durable");
    GAP_NOT_RECOVERED_SECONDS: Gauge = gauge(
        "livebridge_gap_not_recovered_seconds", Unit::Seconds,
        "Length of the times without acceptance that are not recovered; 0 when there is none");
    ADMIN_CONNECTIONS_CLOSED: Counters = counters(
        "livebridge_admin_connections_closed_total", "reason", || vec!["evicted", "idle_timeout"],
        "Connections to the admin listener closed by livebridge, by reason");
    // Log.
    WAL_COMMIT_SECONDS: Histogram = seconds("livebridge_wal_commit_seconds", &SECONDS,
        "Duration of a commit: write and sync");
    WAL_SYNC_SECONDS: Histogram = seconds("livebridge_wal_sync_seconds", &SECONDS,
        "Duration of the sync of a commit");
    WAL_GROUP_RECORDS: Histogram = records("livebridge_wal_group_records", "Records per commit");
    WAL_FLUSHES: Counter = counter("livebridge_wal_flushes_total",
        "Flushes of the log to disk, each of one write or more");
    WAL_WRITTEN_BYTES: Counter = bytes("livebridge_wal_written_bytes_total",
        "Bytes written to the log, including preallocated zeros");
    WAL_RECORDS: Gauge = gauge("livebridge_wal_records", Unit::Count,
        "Records in the log that are not published yet");
    WAL_DISK_BYTES: Gauge = gauge("livebridge_wal_disk_bytes", Unit::Bytes,
        "Size of the log on disk");
    WAL_SEGMENTS: Gauge = gauge("livebridge_wal_segments", Unit::Count, "Segments in the log");
    WAL_DAMAGED_SEGMENTS: Gauge = gauge("livebridge_wal_damaged_segments", Unit::Count,
        "Damaged segments that are kept");
    WAL_DAMAGED_SEGMENTS_BYTES: Gauge = gauge("livebridge_wal_damaged_segments_bytes", Unit::Bytes,
        "Bytes of the damaged segments that are kept");
    WAL_ROOM_BYTES: Gauge = gauge("livebridge_wal_room_bytes", Unit::Bytes,
        "How much the log can grow before callbacks are rejected; 0 while they are");
    OLDEST_UNPUBLISHED_AGE_SECONDS: Gauge = gauge(
        "livebridge_oldest_unpublished_age_seconds", Unit::Seconds,
        "Age of the oldest record that is not published; 0 when there is none");
    DISK_FREE_BYTES: Gauge = gauge("livebridge_disk_free_bytes", Unit::Bytes,
        "Free space on the log's file system");
    WAL_DAMAGED_RECORDS: Counter = counter("livebridge_wal_damaged_records_total",
        "Records lost to damage on disk");
    // Publisher.
    PUBLISHED: Counters = counters("livebridge_published_total", "event_type", event_types,
        "Records committed to their Kafka topic");
    PUBLISH_DELAY_SECONDS: Histogram = seconds("livebridge_publish_delay_seconds", &LONG_SECONDS,
        "From received to committed in Kafka");
    DUPLICATES: Counter = counter("livebridge_duplicates_total",
        "Records absorbed as retries of a published event");
    CONFLICTS: Counter = counter("livebridge_conflicts_total",
        "Records with a known natural key but other content; published");
    DEAD_LETTERS: Counter = counter("livebridge_dead_letters_total",
        "Records that Kafka rejected, sent to the dead-letter topic");
    QUARANTINED: Counter = counter("livebridge_quarantined_total",
        "Records that the dead-letter topic rejected too, kept on disk");
    QUARANTINE_OK: Gauge = gauge("livebridge_quarantine_ok", Unit::Count,
        "0 while a record that Kafka rejects cannot be stored, which stops the publisher");
    WAL_READ_OK: Gauge = gauge("livebridge_wal_read_ok", Unit::Count,
        "0 while the publisher cannot read the log");
    TRANSACTIONS: Counters = counters(
        "livebridge_transactions_total", "outcome",
        || vec!["committed", "aborted", "contended", "lost"],
        "Transactions with Kafka, by outcome");
    TRANSACTION_SECONDS: Histogram = seconds("livebridge_transaction_seconds", &LONG_SECONDS,
        "From the first send to the end of a transaction");
    TRANSACTION_RECORDS: Histogram = records("livebridge_transaction_records",
        "Records per transaction");
    // Self-audit.
    AUDIT_ACCEPTED: Counter = counter("livebridge_audit_accepted_total",
        "Records accepted since the self-audit began");
    AUDIT_SETTLED: Counters = counters(
        "livebridge_audit_settled_total", "outcome", || OUTCOMES.to_vec(),
        "Accepted records that are settled, by outcome");
    AUDIT_PENDING_RECORDS: Gauge = gauge("livebridge_audit_pending_records", Unit::Count,
        "Accepted records that are not settled yet");
    AUDIT_MISSING_RECORDS: Gauge = gauge("livebridge_audit_missing_records", Unit::Count,
        "Accepted minus settled minus pending; other than 0 is an error");
    AUDIT_SINCE_TIMESTAMP_SECONDS: Gauge = gauge(
        "livebridge_audit_since_timestamp_seconds", Unit::Seconds,
        "When the self-audit began, in seconds since 1970");
    // Ledger.
    DEDUP_IDS: Gauge = gauge("livebridge_dedup_ids", Unit::Count, "Event ids in the dedup window");
    DEDUP_WINDOW_TRUNCATED: Counter = counter("livebridge_dedup_window_truncated_total",
        "Times that dedup.max_ids shortened the dedup window");
    LEDGER_LAG_RECORDS: Gauge = gauge("livebridge_ledger_lag_records", Unit::Count,
        "Committed offsets of the ledger topic that are not read yet");
    // Kafka.
    KAFKA_UP: Gauge = gauge("livebridge_kafka_up", Unit::Count,
        "1 while the last attempt to publish succeeded and a broker is connected");
    KAFKA_SESSIONS: Counter = counter("livebridge_kafka_sessions_total",
        "Producers created: at the start, and whenever one failed or needed other settings");
    FENCED: Counter = counter("livebridge_fenced_total",
        "Times that another producer with this transactional id fenced this one");
    KAFKA_BROKERS_CONNECTED: Gauge = gauge("livebridge_kafka_brokers_connected", Unit::Count,
        "Brokers that the producer is connected to");
    KAFKA_ROUND_TRIP_SECONDS: Gauge = gauge("livebridge_kafka_round_trip_seconds", Unit::Seconds,
        "Mean round trip to the slowest broker in the last interval");
    KAFKA_QUEUE_MESSAGES: Gauge = gauge("livebridge_kafka_queue_messages", Unit::Count,
        "Messages in the producer's queue, on their way to Kafka");
    KAFKA_QUEUE_BYTES: Gauge = gauge("livebridge_kafka_queue_bytes", Unit::Bytes,
        "Bytes of these messages");
    KAFKA_REQUEST_FAILURES: Counters = counters(
        "livebridge_kafka_request_failures_total", "kind", || vec!["error", "timeout", "retry"],
        "Requests to brokers that failed, by kind, as librdkafka counts them");
}
