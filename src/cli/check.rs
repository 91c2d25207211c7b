//! `livebridge check`: reports problems of the configuration and its environment, with advice.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::callback::UnsignedPolicy;
use crate::config::Config;
use crate::descriptors;
use crate::event::Timestamp;
use crate::intake::certificate_expiry;
use crate::kafka::{Delivery, SetupError};
use crate::permission;
use crate::secret::redact;
use crate::wal;
use clap::Args;
use uuid::Uuid;

use super::output::count;
use super::tencent::{Account, status};
use super::{CliError, ConfigFile};

/// A clock that is before this version was built is wrong: 2026-01-01.
const RELEASED: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// Prints the findings and counts the bad ones.
#[derive(Default)]
struct CheckReport {
    count: u32,
    bad: u32,
}

impl CheckReport {
    fn print(&mut self, mark: &str, what: &str, detail: &dyn std::fmt::Display) {
        self.count += 1;
        print_out!("{mark:<5} {what:<12} {}", redact(&detail.to_string()));
    }

    fn ok(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.print("ok", what, &detail);
    }

    fn note(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.print("note", what, &detail);
    }

    fn bad(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.bad += 1;
        self.print("FAIL", what, &detail);
    }
}

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Do not check Kafka and Tencent Cloud: callbacks are accepted without them.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    account: Account,
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let file = options.config.config.as_deref();
    let config = Config::load(file)?;
    let mut findings = CheckReport::default();
    let source = file.map_or("defaults".into(), |file| file.display().to_string());
    findings.ok("config", format_args!("{source} and the environment"));
    for note in &config.notes {
        findings.note("config", note);
    }
    directory(&config, &mut findings);
    addresses(&config, &mut findings);
    clock(&mut findings);
    file_descriptors(&config, &mut findings);
    keys(&config, &mut findings);
    files(&config, &options.account, &mut findings);
    if let Some(tls) = &config.access.tls {
        certificate("certificate", "tls.certificate", tls.expires(), &mut findings);
    }
    if !options.offline {
        tencent_cloud(&config, &options.account, &mut findings);
    }
    let bad_here = findings.bad;
    if !options.offline {
        kafka(&config, &mut findings);
    }
    print_out!("{}, {} failed", count(findings.count, "check"), findings.bad);
    match (bad_here, findings.bad) {
        (0, 0) => Ok(()),
        // Callbacks would be accepted and stored until Kafka can be used.
        (0, _) => Err(CliError::Unavailable),
        _ => Err(CliError::Found),
    }
}

/// Examines the log's directory. A directory created for this is removed again: its owner
/// must be the user that runs `serve`.
fn directory(config: &Config, findings: &mut CheckReport) {
    let dir = &config.wal.dir;
    let missing: Vec<&Path> = dir.ancestors().take_while(|above| !above.exists()).collect();
    examine_directory(dir, config, findings);
    for created in missing {
        // This includes the empty path above a relative one, which cannot be removed.
        let _ = fs::remove_dir(created);
    }
}

fn examine_directory(dir: &Path, config: &Config, findings: &mut CheckReport) {
    match write_probe(dir) {
        Ok(()) => findings.ok("directory", format_args!("{} can be written", dir.display())),
        Err(cause) => {
            return findings.bad(
                "directory",
                format_args!(
                    "cannot write in {}: {cause}; set wal.dir{}",
                    dir.display(),
                    permission::advice(dir, &cause)
                ),
            );
        }
    }
    let wal::Limits { max_bytes, min_free_bytes } = config.wal.limits;
    let log = log(dir);
    let stored = log.as_ref().map_or(0, |log| log.bytes);
    match wal::free_bytes(dir) {
        Some(free) if free < min_free_bytes => findings.bad(
            "disk",
            format_args!(
                "{} free, less than wal.min_free_bytes = {}: every callback would get 503",
                bytesize::ByteSize(free),
                bytesize::ByteSize(min_free_bytes)
            ),
        ),
        Some(free) if !can_reach_max_bytes(free, stored, config.wal.limits) => findings.note(
            "disk",
            format_args!(
                "{} free: the log cannot reach wal.max_bytes = {}",
                bytesize::ByteSize(free),
                bytesize::ByteSize(max_bytes)
            ),
        ),
        Some(free) => findings.ok("disk", format_args!("{} free", bytesize::ByteSize(free))),
        None => findings.note("disk", "the free space cannot be determined"),
    }
    match log {
        Ok(Log { unreadable: 1.., .. }) => findings.bad(
            "log",
            "records at its end cannot be read and are not published; livebridge wal verify reads all",
        ),
        Ok(Log { segments, bytes, .. }) => findings.ok(
            "log",
            format_args!(
                "readable by this version: {}, {}",
                count(segments, "segment"),
                bytesize::ByteSize(bytes)
            ),
        ),
        Err(wal::OpenError::Missing(_)) => findings.ok("log", "none yet; serve creates it"),
        Err(error) => findings.bad("log", error),
    }
}

/// Whether the log, which takes `stored` bytes already, can grow to `wal.max_bytes`.
fn can_reach_max_bytes(free: u64, stored: u64, limits: wal::Limits) -> bool {
    free.saturating_sub(limits.min_free_bytes) >= limits.max_bytes.saturating_sub(stored)
}

/// Writes a file in `dir` and removes it, also when the disk is full: one that stayed could not be
/// replaced by the next user.
fn write_probe(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("check-{}.partial", Uuid::new_v4()));
    let mut file = File::create_new(&path)?;
    let written = file.write_all(b"livebridge check\n").and_then(|()| file.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// A log as far as it was read.
struct Log {
    segments: usize,
    bytes: u64,
    /// Unpublished records of the last segment that cannot be read.
    unreadable: u32,
}

/// Reads only the first record and those of the last segment, so that this does not take minutes;
/// `wal verify` reads all.
fn log(dir: &Path) -> Result<Log, wal::OpenError> {
    let view = wal::LogView::open(dir)?;
    if let Some(first) = view.segments.first() {
        view.oldest(first)?;
    }
    let mut unreadable = 0;
    if let Some(last) = view.segments.last() {
        unreadable = view.read::<wal::OpenError>(last, |_| Ok(()))?.missing;
    }
    let bytes = view.segments.iter().chain(&view.damaged).map(|segment| segment.bytes).sum();
    Ok(Log { segments: view.segments.len(), bytes, unreadable })
}

/// Listens for a moment where `serve` will. A running instance has the addresses in use.
fn addresses(config: &Config, findings: &mut CheckReport) {
    const WHAT: &str = "addresses";
    for (key, address) in
        [("http.listen", config.http.listen), ("admin.listen", config.admin.listen)]
    {
        match TcpListener::bind(address) {
            Ok(_) => findings.ok(WHAT, format_args!("{address} ({key}) is free")),
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => findings.note(
                WHAT,
                format_args!(
                    "{address} ({key}) is in use: by a running instance, or by another program, and \
                     then serve cannot start"
                ),
            ),
            Err(cause) => findings.bad(
                WHAT,
                format_args!(
                    "cannot listen on {address} ({key}): {cause}{}",
                    permission::listen_advice(&cause)
                ),
            ),
        }
    }
}

fn clock(findings: &mut CheckReport) {
    let now = Timestamp::now();
    if now < RELEASED {
        findings.bad(
            "clock",
            format_args!(
                "the clock says {now}, which is before this version was built; signatures expire \
                 by it, so set it and run a time service"
            ),
        );
    } else {
        findings
            .ok("clock", format_args!("{now}; signatures expire by it, so keep it synchronized"));
    }
}

/// Reports when the limit of file descriptors allows fewer connections than are configured.
fn file_descriptors(config: &Config, findings: &mut CheckReport) {
    let configured = config.http.max_connections;
    let limit = descriptors::attainable_limit();
    let connections = descriptors::connections(configured, limit);
    if let Some(limit) = limit.filter(|_| connections < configured) {
        findings.note(
            "descriptors",
            format_args!(
                "the limit is {limit} file descriptors: http.max_connections = {configured} is \
                 lowered to {connections}; raise the limit (LimitNOFILE=, ulimit -Hn)"
            ),
        );
    }
}

fn keys(config: &Config, findings: &mut CheckReport) {
    let verifier = &config.verifier;
    for key in verifier.keys.iter().filter(|key| key.is_example()) {
        findings.bad(
            "keys",
            format_args!(
                "{} is change-me, the example of the documentation; replace it by the CallbackKey \
                 of the callback template",
                key.name()
            ),
        );
    }
    match (&verifier.unsigned, verifier.keys.len()) {
        (UnsignedPolicy::All, _) => findings.note(
            "keys",
            "callback.unsigned = [\"all\"]: any client that reaches the port can write to Kafka; \
             signatures are not required, and a wrong one is only counted",
        ),
        (UnsignedPolicy::Types(types), keys) => findings.ok(
            "keys",
            format_args!(
                "{}; {} accepted without a signature",
                count(keys, "key"),
                count(types.len(), "event type")
            ),
        ),
        (UnsignedPolicy::Rejected, keys) => {
            findings.ok(
                "keys",
                format_args!("{}; unsigned callbacks are rejected", count(keys, "key")),
            );
        }
    }
}

/// Reports which files with secrets every user of this machine can read. Only a note: without other
/// users, as in a container, it does no harm.
fn files(config: &Config, account: &Account, findings: &mut CheckReport) {
    let credentials = account.file().map(|path| (path, "credentials of Tencent Cloud".to_owned()));
    for (path, key) in config.settings.secret_files().into_iter().chain(credentials) {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.mode() & 0o004 != 0 {
            let path = path.display();
            findings.note(
                "files",
                format_args!(
                    "every user of this machine can read {path}, which contains {key}; chmod o-r {path}"
                ),
            );
        }
    }
}

/// Reports a certificate that has expired, or will within the time of the alert
/// `LivebridgeCertificateExpiry`.
fn certificate(what: &str, key: &str, expires: SystemTime, findings: &mut CheckReport) {
    const SOON: Duration = Duration::from_hours(14 * 24);
    let date = humantime::format_rfc3339_seconds(expires);
    match expires.duration_since(SystemTime::now()) {
        Err(_) => findings.bad(what, format_args!("{key} expired on {date}; install a new one")),
        Ok(left) if left < SOON => {
            findings.note(what, format_args!("{key} expires on {date}; install a new one"));
        }
        Ok(_) => findings.ok(what, format_args!("{key} expires on {date}")),
    }
}

/// Compares Tencent Cloud's templates and rules with the configuration, if there are credentials.
fn tencent_cloud(config: &Config, account: &Account, findings: &mut CheckReport) {
    const WHAT: &str = "Tencent";
    let client = match account.connect_if_given() {
        None => return,
        Some(Err(error)) => return findings.bad(WHAT, error),
        Some(Ok(client)) => client,
    };
    match status::examine(config, &client, &[], status::DEFAULT_NAME) {
        Err(error) => findings.bad(WHAT, error),
        Ok(report) => {
            for note in &report.notes {
                findings.note(WHAT, note);
            }
            for problem in &report.problems {
                findings.bad(WHAT, problem);
            }
            if report.problems.is_empty() {
                findings
                    .ok(WHAT, format_args!("the callbacks of {} rules come here", report.rules()));
            }
        }
    }
}

fn kafka(config: &Config, findings: &mut CheckReport) {
    const CLIENT_CERTIFICATE: &str = "ssl.certificate.location";
    if let Some(path) = config.kafka.client.get(CLIENT_CERTIFICATE)
        && let Ok(expires) = certificate_expiry(Path::new(path))
    {
        certificate("Kafka", CLIENT_CERTIFICATE, expires, findings);
    }
    let (topics, ledger) = (config.topics.all(), config.topics.ledger());
    let state = match config.kafka.topic_state(&topics, ledger) {
        Ok(state) => state,
        Err(error @ SetupError::LedgerPartitions { .. }) => return findings.bad("topics", error),
        Err(error) => return findings.bad("Kafka", error),
    };
    findings.ok("Kafka", format_args!("{} answers", config.kafka.brokers));
    let missing = state.missing.join(", ");
    if state.missing.is_empty() {
        findings.ok("topics", format_args!("all {} exist", topics.len() + 1));
    } else if !config.kafka.create_topics {
        findings.bad("topics", SetupError::Missing(missing));
    } else {
        match config.kafka.try_topics(&state, ledger) {
            Ok(()) => findings.note("topics", format_args!("serve will create {missing}")),
            Err(error) => findings.bad("topics", error),
        }
    }
    let all = topics.iter().copied().chain([ledger]);
    let present: Vec<&str> =
        all.filter(|name| !state.missing.iter().any(|missing| missing == name)).collect();
    cleanup_policies(config, &present, findings);
    if config.kafka.delivery == Delivery::AtLeastOnce {
        return findings.note(
            "delivery",
            "at-least-once: events may repeat, with the same ce_id, after a crash, after a stop while \
             Kafka does not answer, and after Kafka has failed a producer; on brokers without \
             idempotent producers, also whenever an answer is lost",
        );
    }
    // With its own transactional id: that of the instance would fence a running bridge.
    let mut test_producer = config.kafka.clone();
    test_producer.instance.push_str(".check");
    let tested = test_producer
        .producer_soon()
        .map_err(|error| error.to_string())
        .and_then(|producer| producer.test_write(&present));
    match (tested, present.len(), state.missing.len()) {
        (Ok(()), count, 0) => findings.ok(
            "transactions",
            format_args!("work; {count} topics can be written (tested with an aborted transaction)"),
        ),
        (Ok(()), 0, _) => findings
            .ok("transactions", "work; write permission can be tested only when the topics exist"),
        (Ok(()), count, absent) => findings.ok(
            "transactions",
            format_args!(
                "work; {count} topics can be written (tested with an aborted transaction), {absent} \
                 do not exist yet"
            ),
        ),
        (Err(error), ..) => findings.bad("transactions", error),
    }
}

/// Reports compacted topics: Kafka removes records from them by key.
fn cleanup_policies(config: &Config, present: &[&str], findings: &mut CheckReport) {
    const WHAT: &str = "cleanup.policy";
    if present.is_empty() {
        return;
    }
    let compacted = match config.kafka.compacted_topics(present) {
        Ok(compacted) => compacted,
        // Publishing does not need this right, so its absence is no fault.
        Err(error) if error.is_denied() => return findings.note(WHAT, error),
        // Some compatible systems support neither this request nor compaction.
        Err(_) => return,
    };
    for (topic, policy) in compacted {
        if topic == config.topics.ledger() {
            findings.bad(
                WHAT,
                format_args!(
                    "the ledger topic {topic} has cleanup.policy={policy}: Kafka keeps one record for each instance, \
                     and retries that the others would tell are published again. Set \
                     cleanup.policy=delete: kafka-configs.sh --bootstrap-server BROKER --alter --topic \
                     {topic} --add-config cleanup.policy=delete"
                ),
            );
        } else {
            findings.note(
                WHAT,
                format_args!(
                    "{topic} has {policy}: Kafka keeps one event of each stream there, and rejects \
                     events without a key"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_log_holds_already_counts_towards_its_largest_size() {
        const GIB: u64 = 1024 * 1024 * 1024;
        let limits = wal::Limits { max_bytes: 10 * GIB, min_free_bytes: GIB };
        let can = |free, stored| can_reach_max_bytes(free * GIB, stored * GIB, limits);
        assert!(can(11, 0) && can(4, 8) && can(3, 8) && can(1, 12));
        assert!(!can(10, 0) && !can(2, 8) && !can(0, 8));
    }
}
