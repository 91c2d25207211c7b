//! Findings for operators: what is wrong, by the metrics of now and of 15 minutes ago, and what to do. Each
//! finding corresponds to the alert of its name in deploy/alerts.yml.

use serde::Serialize;

use crate::event::Timestamp;
use crate::health::Unready;
use crate::metrics::{Snapshot, UNVERIFIED, table};
use crate::wal::AppendError;

/// Above this age of the oldest record, publishing is late.
const LATE_SECONDS: f64 = 60.0;
/// Below this, the log is about to reject callbacks.
const ROOM_LOW_BYTES: f64 = 256.0 * 1024.0 * 1024.0;

/// Beyond this, the ledger is read too slowly.
const LEDGER_LAG_RECORDS: f64 = 10_000.0;

/// A certificate that expires in fewer days than this should be replaced.
const CERTIFICATE_DAYS: f64 = 14.0;

/// Reasons for a 403.
const ACCESS: &[&str] = &["address", "secret"];
/// Reasons for a 400 or 413.
const MALFORMED: &[&str] =
    &["malformed", "not_an_object", "duplicate_key", "too_deep", "wrong_type", "too_large"];
/// Reasons for a 401.
const AUTHENTICATION: &[&str] = &["unsigned", "bad_signature", "expired"];
/// Reasons for a 503.
const UNAVAILABLE: &[&str] =
    &["busy", "overloaded", "deadline", "log_full", "disk_full", "log_failed"];

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

/// The input of the rules.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) metrics: &'a Snapshot,
    /// Increase of the counters in the last 15 minutes.
    pub(super) increase: Counts,
    /// Why readiness checks fail, if they do.
    pub(super) not_ready: Option<Unready>,
    /// The part that makes no progress, if one does not.
    pub(super) stuck: Option<&'a str>,
    /// Missing records by the self-audit.
    pub(super) missing: i64,
}

impl Facts<'_> {
    /// Why callbacks are rejected, if they are.
    fn rejecting(&self) -> Option<AppendError> {
        match self.not_ready {
            Some(Unready::Rejecting(reason)) => Some(reason),
            Some(Unready::Draining) | None => None,
        }
    }

    /// In how many days the certificate of the intake expires, if it has one.
    fn certificate_days(&self) -> Option<f64> {
        let at = self.metrics.get(&table::TLS_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS);
        #[expect(clippy::cast_precision_loss, reason = "days are enough")]
        let now = Timestamp::now().as_millis() as f64 / 1000.0;
        (at > 0.0).then_some((at - now) / 86_400.0)
    }
}

/// When a rule has a finding, and its title.
enum Condition {
    /// By the current state.
    State(fn(&Facts<'_>) -> Option<String>),
    /// When this count has increased, if the second condition holds too.
    Increase(fn(&Snapshot) -> f64, fn(&Facts<'_>) -> bool, &'static str),
}

use Condition::{Increase, State};

/// A rule: its alert, its level, its condition, and the advice.
type Rule = (&'static str, Level, Condition, &'static str);

/// The counts of the rules, in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    of_rules: [f64; RULES.len()],
    accepted: f64,
}

impl Counts {
    pub(super) fn of(metrics: &Snapshot) -> Self {
        let of_rules = std::array::from_fn(|rule| match RULES[rule].2 {
            State(_) => 0.0,
            Increase(count, ..) => count(metrics),
        });
        Self { of_rules, accepted: metrics.sum(&table::CALLBACKS_ACCEPTED) }
    }

    pub(super) fn since(self, before: Self) -> Self {
        let of_rules = std::array::from_fn(|rule| self.of_rules[rule] - before.of_rules[rule]);
        Self { of_rules, accepted: self.accepted - before.accepted }
    }
}

/// Requests rejected for one of these reasons.
fn rejected(metrics: &Snapshot, reasons: &[&str]) -> f64 {
    let rejected = metrics.by_label(&table::CALLBACKS_REJECTED);
    reasons.iter().filter_map(|reason| rejected.get(reason)).sum()
}

/// In the order in which they are shown.
const RULES: [Rule; 27] = [
    (
        "LivebridgeRejectingCallbacks",
        Level::Critical,
        State(|facts| facts.rejecting().map(|reason| format!("Callbacks are rejected: {reason}"))),
        "Tencent retries for about 12 minutes. Restore Kafka, raise wal.max_bytes, or free space outside wal.dir: it \
         holds acknowledged callbacks that are not yet in Kafka, no log files.",
    ),
    (
        "LivebridgeRejectingCallbacks",
        Level::Critical,
        State(|facts| facts.stuck.map(|part| format!("{part} makes no progress"))),
        "/healthz fails, so that a supervisor restarts livebridge. Does the disk answer?",
    ),
    (
        "LivebridgeAuditMismatch",
        Level::Critical,
        State(|facts| {
            let missing = facts.missing;
            (missing != 0).then(|| format!("The self-audit differs by {missing} records"))
        }),
        "Find out what is missing before you change anything else.",
    ),
    (
        "LivebridgeRecordsDamaged",
        Level::Critical,
        Increase(
            |metrics| metrics.get(&table::WAL_DAMAGED_RECORDS),
            |_| true,
            "records of the write-ahead log could not be read",
        ),
        "The disk lost acknowledged records. Check it, and copy wal.dir to another disk; delete nothing in it.",
    ),
    (
        "LivebridgeLogNotReadable",
        Level::Critical,
        State(|facts| {
            let unreadable = facts.metrics.get(&table::WAL_READ_OK) == 0.0;
            unreadable
                .then(|| "The write-ahead log cannot be read, so nothing is published".to_owned())
        }),
        "The log lines name the file and the cause. Callbacks are accepted. Delete nothing in wal.dir.",
    ),
    (
        "LivebridgeQuarantineNotWritable",
        Level::Critical,
        State(|facts| {
            let blocked = facts.metrics.get(&table::QUARANTINE_OK) == 0.0;
            blocked.then(|| "A record that Kafka rejects cannot be stored".to_owned())
        }),
        "Nothing behind it is published until it is. The log lines name the file and the cause.",
    ),
    (
        "LivebridgeLogSpaceLow",
        Level::Critical,
        State(|facts| {
            let room = facts.metrics.get(&table::WAL_ROOM_BYTES);
            let low = facts.rejecting().is_none() && room < ROOM_LOW_BYTES;
            low.then(|| format!("The write-ahead log can grow by only {:.0} MB", room / 1e6))
        }),
        "When it is full, callbacks are rejected. Restore Kafka, raise wal.max_bytes, or free space outside wal.dir: it \
         holds acknowledged callbacks that are not yet in Kafka, no log files.",
    ),
    (
        "LivebridgeCertificateExpiry",
        Level::Critical,
        State(|facts| {
            let expired = facts.certificate_days()? <= 0.0;
            expired.then(|| "The certificate of tls.certificate has expired".to_owned())
        }),
        "Clients that verify it do not connect. A new one is loaded within seconds.",
    ),
    (
        "LivebridgeDown",
        Level::Warning,
        State(|facts| {
            let stops = facts.not_ready == Some(Unready::Draining);
            stops.then(|| "It stops soon; callbacks are accepted until then".to_owned())
        }),
        "/readyz fails meanwhile (http.drain), so that balancers choose another instance.",
    ),
    (
        "LivebridgeCertificateExpiry",
        Level::Warning,
        State(|facts| {
            let days = facts.certificate_days()?;
            let soon = days > 0.0 && days < CERTIFICATE_DAYS;
            soon.then(|| format!("The certificate of tls.certificate expires in {days:.1} days"))
        }),
        "Install a new one with its key. It is loaded within seconds.",
    ),
    (
        "LivebridgeKafkaUnreachable",
        Level::Warning,
        State(|facts| {
            (facts.metrics.get(&table::KAFKA_UP) == 0.0).then(|| "Kafka does not answer".to_owned())
        }),
        "The log lines give the cause. Nothing is lost until the write-ahead log is full; delete nothing in wal.dir.",
    ),
    (
        "LivebridgePublishingLate",
        Level::Warning,
        State(|facts| {
            let age = facts.metrics.get(&table::OLDEST_UNPUBLISHED_AGE_SECONDS);
            (age > LATE_SECONDS).then(|| format!("The oldest callback has waited {age:.0} s"))
        }),
        "Consumers receive events late. Nothing is lost; another finding or the log lines give the cause.",
    ),
    (
        "LivebridgeGapNotRecovered",
        Level::Warning,
        State(|facts| {
            let minutes = facts.metrics.get(&table::GAP_NOT_RECOVERED_SECONDS) / 60.0;
            (minutes > 0.0).then(|| format!("For {minutes:.0} min no callback was accepted"))
        }),
        "Events may be missing: livebridge recover --gap. livebridge wal gaps shows the times.",
    ),
    (
        "LivebridgeRecordsQuarantined",
        Level::Warning,
        Increase(
            |metrics| metrics.get(&table::QUARANTINED),
            |_| true,
            "records were moved to the quarantine",
        ),
        "livebridge wal quarantine shows why. Remove the cause, stop livebridge, run livebridge wal release, start it.",
    ),
    (
        "LivebridgeDeadLetters",
        Level::Warning,
        Increase(
            |metrics| metrics.get(&table::DEAD_LETTERS),
            |_| true,
            "records were sent to the dead-letter topic",
        ),
        "Kafka rejected them in their own topics, for the reasons below.",
    ),
    (
        "LivebridgeDamagedSegmentsKept",
        Level::Warning,
        State(|facts| {
            let kept = facts.metrics.get(&table::WAL_DAMAGED_SEGMENTS);
            (kept > 0.0).then(|| format!("{kept} segments with damaged records are kept"))
        }),
        "livebridge wal damaged lists them, exports what can be read, and removes them.",
    ),
    (
        "LivebridgeOnlyRejections",
        Level::Warning,
        Increase(
            |metrics| metrics.sum(&table::CALLBACKS_REJECTED),
            |facts| facts.increase.accepted == 0.0,
            "requests were rejected and none accepted",
        ),
        "Below are the last ones, with the reason of each. A wrong callback URL, key or proxy?",
    ),
    (
        "LivebridgeWrongPath",
        Level::Warning,
        Increase(
            |metrics| rejected(metrics, &["path"]),
            |_| true,
            "POST requests came to another path than http.path",
        ),
        "Correct the callback URL in the console, or http.path.",
    ),
    (
        "LivebridgeMalformedCallbacks",
        Level::Warning,
        Increase(
            |metrics| rejected(metrics, MALFORMED),
            |_| true,
            "requests were answered with 400 or 413",
        ),
        "If Tencent sent them, these callbacks are lost. Below are the last ones.",
    ),
    (
        "LivebridgeAccessDenied",
        Level::Warning,
        Increase(
            |metrics| rejected(metrics, ACCESS),
            |_| true,
            "requests did not fulfil access.allow or access.secret",
        ),
        "Are the load balancer's addresses in access.trusted_proxies, and its header right?",
    ),
    (
        "LivebridgeSignatureFailures",
        Level::Warning,
        Increase(
            |metrics| rejected(metrics, AUTHENTICATION),
            |_| true,
            "callbacks had no valid signature",
        ),
        "Is the callback key of the console in callback.keys, and the clock right? Tencent drops them after 12 minutes.",
    ),
    (
        "LivebridgeSignatureUnverified",
        Level::Warning,
        Increase(
            |metrics| {
                metrics
                    .by_label(&table::CALLBACK_KEY_ACCEPTED)
                    .get(UNVERIFIED)
                    .copied()
                    .unwrap_or_default()
            },
            |_| true,
            "signed callbacks were accepted with an invalid signature",
        ),
        "callback.unsigned names their type. Add the console's key to callback.keys.",
    ),
    (
        "LivebridgeRejectingCallbacks",
        Level::Warning,
        Increase(
            |metrics| rejected(metrics, UNAVAILABLE),
            |facts| facts.rejecting().is_none(),
            "callbacks got 503",
        ),
        "They are accepted again. Tencent retries rejected callbacks for about 12 minutes.",
    ),
    (
        "LivebridgeInstanceFenced",
        Level::Warning,
        Increase(
            |metrics| metrics.get(&table::FENCED),
            |_| true,
            "times another producer fenced this instance",
        ),
        "Give every instance its own kafka.instance.",
    ),
    (
        "LivebridgeLedgerLag",
        Level::Warning,
        State(|facts| {
            let lag = facts.metrics.get(&table::LEDGER_LAG_RECORDS);
            (lag > LEDGER_LAG_RECORDS)
                .then(|| format!("{lag} records of the ledger topic are not read yet"))
        }),
        "Is the broker that leads the ledger topic slow, or the processor of this machine busy?",
    ),
    (
        "LivebridgeDedupWindowTruncated",
        Level::Warning,
        Increase(
            |metrics| metrics.get(&table::DEDUP_WINDOW_TRUNCATED),
            |_| true,
            "times dedup.max_ids shortened the dedup window",
        ),
        "Late retries may be published twice. Raise dedup.max_ids; an id takes about 22 bytes.",
    ),
    (
        "LivebridgeConfigurationRejected",
        Level::Warning,
        State(|facts| {
            let rejected = facts.metrics.get(&table::CONFIG_OK) == 0.0;
            rejected.then(|| "The configuration on disk is wrong; the old one is used".to_owned())
        }),
        "The log line and livebridge check give the reason.",
    ),
];

pub(super) fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    let rules = RULES.iter().zip(facts.increase.of_rules);
    let finding = |(&(alert, level, ref condition, advice), count): (&Rule, f64)| {
        let title = match condition {
            State(title) => title(facts)?,
            Increase(_, only_if, what) if count > 0.0 && only_if(facts) => {
                format!("{count} {what} in the last 15 minutes")
            }
            Increase(..) => return None,
        };
        Some(Finding { level, title, advice, alert })
    };
    rules.filter_map(finding).collect()
}
