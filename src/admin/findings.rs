//! What an operator should know, of what the metrics say now and said a quarter of an hour ago. Each
//! finding has an alert of the same name in deploy/alerts.yml, which says it to those who sleep.

use serde::Serialize;

use crate::metrics::Snapshot;

/// The oldest record has waited longer than a Kafka that works lets it.
const LATE_SECONDS: f64 = 60.0;
/// The log nearly refuses callbacks.
const ROOM_LOW_BYTES: f64 = 256.0 * 1024.0 * 1024.0;

/// Reasons for a 401.
const AUTHENTICATION: [&str; 3] = ["unsigned", "bad_signature", "expired"];
/// Reasons for a 503.
const TURNED_AWAY: [&str; 6] =
    ["busy", "overloaded", "deadline", "log_full", "disk_full", "log_failed"];

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Not at all.
    Ok,
    /// Nothing is lost yet.
    Warning,
    /// Callbacks are being lost, or will be.
    Critical,
}

/// Something that an operator should know.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    title: String,
    advice: &'static str,
    /// The alert that tells of it, and the section of docs/runbook.md.
    alert: &'static str,
}

/// Counters that are a finding when they move.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    authentication: f64,
    turned_away: f64,
    dead: f64,
    quarantined: f64,
    damaged: f64,
    squeezed: f64,
    fenced: f64,
}

impl Marks {
    pub(super) fn of(metrics: &Snapshot) -> Self {
        let refused = metrics.by_label("livebridge_callbacks_refused_total");
        let sum =
            |reasons: &[&str]| reasons.iter().filter_map(|reason| refused.get(reason)).sum::<f64>();
        Self {
            authentication: sum(&AUTHENTICATION),
            turned_away: sum(&TURNED_AWAY),
            dead: metrics.get("livebridge_dead_letters_total"),
            quarantined: metrics.get("livebridge_quarantined_total"),
            damaged: metrics.get("livebridge_wal_damaged_records_total"),
            squeezed: metrics.get("livebridge_dedup_squeezed_total"),
            fenced: metrics.get("livebridge_fenced_total"),
        }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            authentication: self.authentication - before.authentication,
            turned_away: self.turned_away - before.turned_away,
            dead: self.dead - before.dead,
            quarantined: self.quarantined - before.quarantined,
            damaged: self.damaged - before.damaged,
            squeezed: self.squeezed - before.squeezed,
            fenced: self.fenced - before.fenced,
        }
    }
}

/// What there is to judge.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) metrics: &'a Snapshot,
    /// What has moved in the last quarter of an hour.
    pub(super) moved: Marks,
    /// Why callbacks are not taken.
    pub(super) not_ready: Option<&'a str>,
    /// What the self-audit misses.
    pub(super) missing: i64,
}

impl Facts<'_> {
    fn get(&self, name: &str) -> f64 {
        self.metrics.get(&format!("livebridge_{name}"))
    }
}

/// A rule: its alert, how bad it is, when it holds and what it then says, and what to do.
type Rule = (&'static str, Level, fn(&Facts<'_>) -> Option<String>, &'static str);

/// The most telling first.
const RULES: [Rule; 13] = [
    (
        "LivebridgeRejectingCallbacks",
        Level::Critical,
        |facts| facts.not_ready.map(|reason| format!("No room: {reason}")),
        "Tencent tries again for about 12 minutes. Make room, or bring Kafka back.",
    ),
    (
        "LivebridgeAuditMismatch",
        Level::Critical,
        |facts| {
            let missing = facts.missing;
            (missing != 0).then(|| format!("The self-audit is off by {missing} records"))
        },
        "Find out what is missing before anything else is changed.",
    ),
    (
        "LivebridgeRecordsDamaged",
        Level::Critical,
        |facts| moved(facts.moved.damaged, "records of the log could not be read"),
        "The disk lost them after they were acknowledged. Look at it, and move away from it.",
    ),
    (
        "LivebridgeLogSpaceLow",
        Level::Critical,
        |facts| {
            let room = facts.get("wal_room_bytes");
            let low = facts.not_ready.is_none() && room < ROOM_LOW_BYTES;
            low.then(|| format!("The log may grow by only {:.0} MB more", room / 1e6))
        },
        "Then callbacks are turned away. Make room, or bring Kafka back.",
    ),
    (
        "LivebridgeKafkaUnreachable",
        Level::Warning,
        |facts| (facts.get("kafka_up") == 0.0).then(|| "Kafka does not answer".to_owned()),
        "The log lines say why. Nothing is lost while the log has room.",
    ),
    (
        "LivebridgePublishingLate",
        Level::Warning,
        |facts| {
            let age = facts.get("oldest_unpublished_age_seconds");
            (age > LATE_SECONDS).then(|| format!("The oldest callback has waited {age:.0} s"))
        },
        "Consumers see nothing new meanwhile. It is published as soon as Kafka takes it.",
    ),
    (
        "LivebridgeRecordsQuarantined",
        Level::Warning,
        |facts| moved(facts.moved.quarantined, "records were refused even as dead letters"),
        "livebridge wal quarantine shows them, livebridge wal release puts them back on the line.",
    ),
    (
        "LivebridgeDeadLetters",
        Level::Warning,
        |facts| moved(facts.moved.dead, "records went to the dead letters"),
        "Kafka refused them in their topics; below is what it said.",
    ),
    (
        "LivebridgeSignatureFailures",
        Level::Warning,
        |facts| moved(facts.moved.authentication, "callbacks without a valid signature"),
        "Is the console's key the one configured here, and the clock right?",
    ),
    (
        "LivebridgeRejectingCallbacks",
        Level::Warning,
        |facts| match facts.not_ready {
            None => moved(facts.moved.turned_away, "callbacks got 503"),
            Some(_) => None,
        },
        "They are taken again now. Tencent tries again for about 12 minutes.",
    ),
    (
        "LivebridgeInstanceFenced",
        Level::Warning,
        |facts| moved(facts.moved.fenced, "times another producer took this instance's name"),
        "Give every instance its own kafka.instance.",
    ),
    (
        "LivebridgeDedupWindowTruncated",
        Level::Warning,
        |facts| moved(facts.moved.squeezed, "times dedup.max_ids cut the window short"),
        "Late retries may be published twice. Raise dedup.max_ids; an id takes about 22 bytes.",
    ),
    (
        "LivebridgeConfigurationRejected",
        Level::Warning,
        |facts| {
            let refused = facts.get("config_ok") == 0.0;
            refused.then(|| "The configuration last read was refused; the old one stays".to_owned())
        },
        "The log line says what is wrong; livebridge check says it too.",
    ),
];

/// So many, if any, in the time that is looked at.
fn moved(count: f64, what: &str) -> Option<String> {
    (count > 0.0).then(|| format!("{count} {what} in the last 15 minutes"))
}

pub(super) fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    let finding = |&(alert, level, says, advice): &Rule| {
        says(facts).map(|title| Finding { level, title, advice, alert })
    };
    RULES.iter().filter_map(finding).collect()
}
