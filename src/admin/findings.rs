//! Findings for operators: what is wrong, by the metrics of now and of 15 minutes ago, and what to do. Each
//! finding corresponds to the alert of its name in deploy/alerts.yml.

use serde::Serialize;

use crate::metrics::{Snapshot, UNVERIFIED};

/// Above this age of the oldest record, publishing is late.
const LATE_SECONDS: f64 = 60.0;
/// Below this, the log is about to reject callbacks.
const ROOM_LOW_BYTES: f64 = 256.0 * 1024.0 * 1024.0;

/// Reasons for a 401.
const AUTHENTICATION: [&str; 3] = ["unsigned", "bad_signature", "expired"];
/// Reasons for a 503.
const TURNED_AWAY: [&str; 6] =
    ["busy", "overloaded", "deadline", "log_full", "disk_full", "log_failed"];

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// No finding.
    Ok,
    /// Nothing is lost yet.
    Warning,
    /// Callbacks are lost now or soon.
    Critical,
}

/// One finding.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    title: String,
    advice: &'static str,
    /// The corresponding alert, which is a section of docs/runbook.md.
    alert: &'static str,
}

/// Counters whose increase is a finding.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    authentication: f64,
    unverified: f64,
    turned_away: f64,
    wrong_path: f64,
    rejected: f64,
    accepted: f64,
    dead: f64,
    quarantined: f64,
    damaged: f64,
    truncated: f64,
    fenced: f64,
}

impl Marks {
    pub(super) fn of(metrics: &Snapshot) -> Self {
        let refused = metrics.by_label("livebridge_callbacks_rejected_total");
        let used = metrics.by_label("livebridge_callback_key_accepted_total");
        let sum =
            |reasons: &[&str]| reasons.iter().filter_map(|reason| refused.get(reason)).sum::<f64>();
        Self {
            authentication: sum(&AUTHENTICATION),
            unverified: used.get(UNVERIFIED).copied().unwrap_or_default(),
            turned_away: sum(&TURNED_AWAY),
            wrong_path: sum(&["path"]),
            rejected: refused.values().sum(),
            accepted: metrics.sum("livebridge_callbacks_accepted_total"),
            dead: metrics.get("livebridge_dead_letters_total"),
            quarantined: metrics.get("livebridge_quarantined_total"),
            damaged: metrics.get("livebridge_wal_damaged_records_total"),
            truncated: metrics.get("livebridge_dedup_window_truncated_total"),
            fenced: metrics.get("livebridge_fenced_total"),
        }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            authentication: self.authentication - before.authentication,
            unverified: self.unverified - before.unverified,
            turned_away: self.turned_away - before.turned_away,
            wrong_path: self.wrong_path - before.wrong_path,
            rejected: self.rejected - before.rejected,
            accepted: self.accepted - before.accepted,
            dead: self.dead - before.dead,
            quarantined: self.quarantined - before.quarantined,
            damaged: self.damaged - before.damaged,
            truncated: self.truncated - before.truncated,
            fenced: self.fenced - before.fenced,
        }
    }
}

/// The input of the rules.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) metrics: &'a Snapshot,
    /// Increase of the counters in the last 15 minutes.
    pub(super) moved: Marks,
    /// Why callbacks are rejected, if they are.
    pub(super) not_ready: Option<&'a str>,
    /// Missing records by the self-audit.
    pub(super) missing: i64,
}

impl Facts<'_> {
    fn get(&self, name: &str) -> f64 {
        self.metrics.get(&format!("livebridge_{name}"))
    }
}

/// A rule: its alert, its level, the condition with the title, and the advice.
type Rule = (&'static str, Level, fn(&Facts<'_>) -> Option<String>, &'static str);

/// In the order in which they are shown.
const RULES: [Rule; 16] = [
    (
        "LivebridgeRejectingCallbacks",
        Level::Critical,
        |facts| facts.not_ready.map(|reason| format!("Callbacks are rejected: {reason}")),
        "Tencent retries for about 12 minutes. Free space, raise wal.max_bytes, or restore Kafka.",
    ),
    (
        "LivebridgeAuditMismatch",
        Level::Critical,
        |facts| {
            let missing = facts.missing;
            (missing != 0).then(|| format!("The self-audit differs by {missing} records"))
        },
        "Find out what is missing before you change anything else.",
    ),
    (
        "LivebridgeRecordsDamaged",
        Level::Critical,
        |facts| moved(facts.moved.damaged, "records of the log could not be read"),
        "The disk lost acknowledged records. Check it, and move the log to another disk.",
    ),
    (
        "LivebridgeLogSpaceLow",
        Level::Critical,
        |facts| {
            let room = facts.get("wal_room_bytes");
            let low = facts.not_ready.is_none() && room < ROOM_LOW_BYTES;
            low.then(|| format!("The log can grow by only {:.0} MB", room / 1e6))
        },
        "Then callbacks are rejected. Free space, raise wal.max_bytes, or restore Kafka.",
    ),
    (
        "LivebridgeKafkaUnreachable",
        Level::Warning,
        |facts| (facts.get("kafka_up") == 0.0).then(|| "Kafka does not answer".to_owned()),
        "The log lines give the cause. Nothing is lost until the log is full.",
    ),
    (
        "LivebridgePublishingLate",
        Level::Warning,
        |facts| {
            let age = facts.get("oldest_unpublished_age_seconds");
            (age > LATE_SECONDS).then(|| format!("The oldest callback has waited {age:.0} s"))
        },
        "Consumers receive events late. They are published as soon as Kafka accepts them.",
    ),
    (
        "LivebridgeRecordsQuarantined",
        Level::Warning,
        |facts| moved(facts.moved.quarantined, "records were moved to the quarantine"),
        "livebridge wal quarantine shows them, livebridge wal release returns them to the log.",
    ),
    (
        "LivebridgeDeadLetters",
        Level::Warning,
        |facts| moved(facts.moved.dead, "records were sent to the dead-letter topic"),
        "Kafka rejected them in their own topics, for the reasons below.",
    ),
    (
        "LivebridgeOnlyRejections",
        Level::Warning,
        |facts| {
            let only = facts.moved.accepted == 0.0;
            moved(facts.moved.rejected, "requests were rejected and none accepted").filter(|_| only)
        },
        "Below are the last ones, with the reason of each. A wrong callback URL, key or proxy?",
    ),
    (
        "LivebridgeWrongPath",
        Level::Warning,
        |facts| moved(facts.moved.wrong_path, "POST requests came to another path than http.path"),
        "Correct the callback URL in the console, or http.path.",
    ),
    (
        "LivebridgeSignatureFailures",
        Level::Warning,
        |facts| moved(facts.moved.authentication, "callbacks had no valid signature"),
        "Check that the callback key of the console is configured and that the clock is right.",
    ),
    (
        "LivebridgeSignatureUnverified",
        Level::Warning,
        |facts| {
            moved(
                facts.moved.unverified,
                "signed callbacks were accepted with an invalid signature",
            )
        },
        "callback.unsigned names their type. Add the console's key to callback.keys.",
    ),
    (
        "LivebridgeRejectingCallbacks",
        Level::Warning,
        |facts| match facts.not_ready {
            None => moved(facts.moved.turned_away, "callbacks got 503"),
            Some(_) => None,
        },
        "They are accepted again. Tencent retries rejected callbacks for about 12 minutes.",
    ),
    (
        "LivebridgeInstanceFenced",
        Level::Warning,
        |facts| moved(facts.moved.fenced, "times another producer fenced this instance"),
        "Give every instance its own kafka.instance.",
    ),
    (
        "LivebridgeDedupWindowTruncated",
        Level::Warning,
        |facts| moved(facts.moved.truncated, "times dedup.max_ids shortened the dedup window"),
        "Late retries may be published twice. Raise dedup.max_ids; an id takes about 22 bytes.",
    ),
    (
        "LivebridgeConfigurationRejected",
        Level::Warning,
        |facts| {
            let refused = facts.get("config_ok") == 0.0;
            refused.then(|| "The configuration on disk is wrong; the old one is used".to_owned())
        },
        "The log line and livebridge check give the reason.",
    ),
];

/// Title of a counter that has increased.
fn moved(count: f64, what: &str) -> Option<String> {
    (count > 0.0).then(|| format!("{count} {what} in the last 15 minutes"))
}

pub(super) fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    let finding = |&(alert, level, says, advice): &Rule| {
        says(facts).map(|title| Finding { level, title, advice, alert })
    };
    RULES.iter().filter_map(finding).collect()
}
