//! What each metric is: the one place for name, kind, unit, labels and help. `docs/metrics.md` is
//! the same table for people, and a test compares it with what a running bridge prints.

use metrics::Unit;

/// What a metric's values are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Only grows, from the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bounds.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
}

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

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit: Unit::Count, help }
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, help }
}

const fn seconds(name: &'static str, bounds: &'static [f64], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(bounds), unit: Unit::Seconds, help }
}

const fn records(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(&RECORDS), unit: Unit::Count, help }
}

/// All that are counted here; those of the process are in `process.rs`.
pub(super) const TABLE: &[Metric] = &[
    gauge("livebridge_build_info", Unit::Count, "Always 1; the version is a label"),
    counter("livebridge_config_reloads_total", "Configuration reloads, by outcome"),
    gauge(
        "livebridge_config_ok",
        Unit::Count,
        "1 while the configuration on disk is in use, 0 while it is rejected",
    ),
    counter(
        "livebridge_log_lines_dropped_total",
        "Log lines dropped because standard error was not read fast enough",
    ),
    // Intake.
    counter("livebridge_callbacks_accepted_total", "Callbacks answered 200: durable in the log"),
    counter("livebridge_callbacks_rejected_total", "Requests answered with an error, by reason"),
    counter("livebridge_callback_key_accepted_total", "Callbacks by the key that signed them"),
    gauge(
        "livebridge_callback_key_last_used_timestamp_seconds",
        Unit::Seconds,
        "When a callback signed with the key was last accepted; 0 for never",
    ),
    gauge("livebridge_http_connections", Unit::Count, "Open connections to the intake"),
    counter(
        "livebridge_http_connections_closed_total",
        "Connections closed by livebridge, by reason",
    ),
    gauge(
        "livebridge_tls_certificate_expiry_timestamp_seconds",
        Unit::Seconds,
        "When the TLS certificate of the intake expires; 0 without one",
    ),
    seconds("livebridge_acknowledge_seconds", &SECONDS, "From request to durable"),
    counter(
        "livebridge_admin_connections_closed_total",
        "Connections to the admin listener closed by livebridge, by reason",
    ),
    // Log.
    seconds("livebridge_wal_commit_seconds", &SECONDS, "Duration of a commit: write and sync"),
    seconds("livebridge_wal_sync_seconds", &SECONDS, "Duration of the sync of a commit"),
    records("livebridge_wal_group_records", "Records per commit"),
    gauge("livebridge_wal_records", Unit::Count, "Records in the log that are not published yet"),
    gauge("livebridge_wal_disk_bytes", Unit::Bytes, "Size of the log on disk"),
    gauge("livebridge_wal_segments", Unit::Count, "Segments in the log"),
    gauge("livebridge_wal_damaged_segments", Unit::Count, "Damaged segments that are kept"),
    gauge(
        "livebridge_wal_damaged_segments_bytes",
        Unit::Bytes,
        "Bytes of the damaged segments that are kept",
    ),
    gauge(
        "livebridge_wal_room_bytes",
        Unit::Bytes,
        "How much the log can grow before callbacks are rejected; 0 while they are",
    ),
    gauge(
        "livebridge_oldest_unpublished_age_seconds",
        Unit::Seconds,
        "Age of the oldest record that is not published; 0 when there is none",
    ),
    gauge("livebridge_disk_free_bytes", Unit::Bytes, "Free space on the log's file system"),
    counter("livebridge_wal_damaged_records_total", "Records lost to damage on disk"),
    // Publisher.
    counter("livebridge_published_total", "Records committed to their Kafka topic"),
    seconds(
        "livebridge_publish_delay_seconds",
        &LONG_SECONDS,
        "From received to committed in Kafka",
    ),
    counter("livebridge_duplicates_total", "Records absorbed as retries of a published event"),
    counter(
        "livebridge_conflicts_total",
        "Records with a known natural key but other content; published",
    ),
    counter(
        "livebridge_dead_letters_total",
        "Records that Kafka rejected, sent to the dead-letter topic",
    ),
    counter(
        "livebridge_quarantined_total",
        "Records that the dead-letter topic rejected too, kept on disk",
    ),
    gauge(
        "livebridge_quarantine_ok",
        Unit::Count,
        "0 while a record that Kafka rejects cannot be stored, which stops the publisher",
    ),
    gauge("livebridge_wal_read_ok", Unit::Count, "0 while the publisher cannot read the log"),
    counter("livebridge_transactions_total", "Transactions with Kafka, by outcome"),
    seconds(
        "livebridge_transaction_seconds",
        &LONG_SECONDS,
        "From the first send to the end of a transaction",
    ),
    records("livebridge_transaction_records", "Records per transaction"),
    // Self-audit.
    counter("livebridge_audit_accepted_total", "Records accepted since the self-audit began"),
    counter("livebridge_audit_settled_total", "Accepted records that are settled, by outcome"),
    gauge(
        "livebridge_audit_pending_records",
        Unit::Count,
        "Accepted records that are not settled yet",
    ),
    gauge(
        "livebridge_audit_missing_records",
        Unit::Count,
        "Accepted minus settled minus pending; other than 0 is an error",
    ),
    gauge(
        "livebridge_audit_since_timestamp_seconds",
        Unit::Seconds,
        "When the self-audit began, in seconds since 1970",
    ),
    // Ledger.
    gauge("livebridge_dedup_ids", Unit::Count, "Event ids in the dedup window"),
    counter(
        "livebridge_dedup_window_truncated_total",
        "Times that dedup.max_ids shortened the dedup window",
    ),
    gauge(
        "livebridge_ledger_lag_records",
        Unit::Count,
        "Committed offsets of the ledger topic that are not read yet",
    ),
    // Kafka.
    gauge("livebridge_kafka_up", Unit::Count, "1 while the last exchange with Kafka succeeded"),
    counter(
        "livebridge_kafka_sessions_total",
        "Producers created: one at the start, one after each that failed",
    ),
    counter(
        "livebridge_fenced_total",
        "Times that another producer with this transactional id fenced this one",
    ),
    gauge(
        "livebridge_kafka_brokers_connected",
        Unit::Count,
        "Brokers that the producer is connected to",
    ),
    gauge(
        "livebridge_kafka_round_trip_seconds",
        Unit::Seconds,
        "Mean round trip to the slowest broker in the last interval",
    ),
    gauge(
        "livebridge_kafka_queue_messages",
        Unit::Count,
        "Messages in the producer's queue, on their way to Kafka",
    ),
    gauge("livebridge_kafka_queue_bytes", Unit::Bytes, "Bytes of these messages"),
    counter(
        "livebridge_kafka_request_failures_total",
        "Requests to brokers that failed, by kind, as librdkafka counts them",
    ),
];
