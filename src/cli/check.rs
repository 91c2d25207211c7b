//! `livebridge check`: says what is wrong before production does, and what to do about it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clap::Args;
use livebridge::callback::Unsigned;
use livebridge::config::Config;
use livebridge::kafka::Delivery;
use livebridge::record::Timestamp;
use livebridge::wal;

use super::{CliError, ConfigFile};

/// A clock before this release's making is wrong: 2026-01-01.
const RELEASED: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// Prints findings and counts the bad ones.
#[derive(Default)]
struct Findings {
    count: u32,
    bad: u32,
}

impl Findings {
    fn print(&mut self, mark: &str, what: &str, detail: &dyn std::fmt::Display) {
        self.count += 1;
        println!("{mark:<5} {what:<12} {detail}");
    }

    fn ok(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.print("ok", what, &detail);
    }

    fn note(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.print("note", what, &detail);
    }

    fn bad(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.bad += 1;
        self.print("BAD", what, &detail);
    }
}

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Leave Kafka out: callbacks are taken without it.
    #[arg(long)]
    offline: bool,
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let file = options.config.config.as_deref();
    let config = Config::load(file)?;
    let mut findings = Findings::default();
    let source = file.map_or("defaults".into(), |file| file.display().to_string());
    findings.ok("config", format_args!("{source} and the environment"));
    directory(&config, &mut findings);
    clock(&mut findings);
    keys(&config, &mut findings);
    files(&config, &mut findings);
    let bad_here = findings.bad;
    if !options.offline {
        kafka(&config, &mut findings);
    }
    println!("{} findings, {} bad", findings.count, findings.bad);
    match (bad_here, findings.bad) {
        (0, 0) => Ok(()),
        // Callbacks would be taken and stored meanwhile.
        (0, _) => Err(CliError::Unavailable),
        _ => Err(CliError::Found),
    }
}

/// Looks into the log's directory. Made for that, it is removed again: its owner should be whoever
/// runs `serve`.
fn directory(config: &Config, findings: &mut Findings) {
    let dir = &config.wal.dir;
    let missing: Vec<&Path> = dir.ancestors().take_while(|above| !above.exists()).collect();
    look_into(dir, config, findings);
    for made in missing {
        // The empty path above a relative one is not there either.
        let _ = fs::remove_dir(made);
    }
}

fn look_into(dir: &Path, config: &Config, findings: &mut Findings) {
    let probe = dir.join("check.partial");
    let write = || {
        fs::create_dir_all(dir)?;
        let mut file = File::create(&probe)?;
        file.write_all(b"livebridge check\n")?;
        file.sync_all()?;
        fs::remove_file(&probe)
    };
    match write() {
        Ok(()) => findings.ok("directory", format_args!("{} can be written", dir.display())),
        Err(cause) => {
            return findings.bad(
                "directory",
                format_args!("cannot write in {}: {cause}; set wal.dir", dir.display()),
            );
        }
    }
    match wal::free_bytes(dir) {
        Some(free) if free < config.wal.min_free_bytes => findings.bad(
            "disk",
            format_args!(
                "{} free, less than wal.min_free_bytes = {}: every callback would get 503",
                bytesize::ByteSize(free),
                bytesize::ByteSize(config.wal.min_free_bytes)
            ),
        ),
        Some(free) if free - config.wal.min_free_bytes < config.wal.max_bytes => findings.note(
            "disk",
            format_args!(
                "{} free: the log cannot reach wal.max_bytes = {}",
                bytesize::ByteSize(free),
                bytesize::ByteSize(config.wal.max_bytes)
            ),
        ),
        Some(free) => findings.ok("disk", format_args!("{} free", bytesize::ByteSize(free))),
        None => findings.note("disk", "the free space cannot be told"),
    }
    match log(dir) {
        Ok((segments, bytes)) => findings.ok(
            "log",
            format_args!(
                "of this release's format: {segments} segments, {}",
                bytesize::ByteSize(bytes)
            ),
        ),
        Err(wal::OpenError::Missing(_)) => findings.ok("log", "none yet; serve makes it"),
        Err(error) => findings.bad("log", error),
    }
}

/// How many segments the log has and of how many bytes. Of its records only the first and those of
/// the last segment are read: this should not take minutes, and `wal verify` reads the rest.
fn log(dir: &Path) -> Result<(usize, u64), wal::OpenError> {
    let view = wal::LogView::open(dir)?;
    if let Some(first) = view.segments.first() {
        view.oldest(first)?;
    }
    if let Some(last) = view.segments.last() {
        view.read::<wal::OpenError>(last, |_| Ok(()))?;
    }
    Ok((view.segments.len(), view.segments.iter().map(|segment| segment.bytes).sum()))
}

fn clock(findings: &mut Findings) {
    let now = Timestamp::now();
    if now < RELEASED {
        findings.bad(
            "clock",
            format_args!("it is {now}? Signatures expire by it; set it and run a time service"),
        );
    } else {
        findings.ok("clock", format_args!("{now}; signatures expire by it, so keep it in step"));
    }
}

fn keys(config: &Config, findings: &mut Findings) {
    let verifier = &config.verifier;
    for key in verifier.keys.iter().filter(|key| key.is_example()) {
        findings.bad(
            "keys",
            format_args!(
                "{} is change-me, which everybody knows; put in the CallbackKey of the callback \
                 template",
                key.name()
            ),
        );
    }
    match (&verifier.unsigned, verifier.keys.len()) {
        (Unsigned::All, _) => findings.note(
            "keys",
            "callback.unsigned = [\"all\"]: whoever reaches the port can write to Kafka",
        ),
        (Unsigned::Types(types), keys) => findings.ok(
            "keys",
            format_args!("{keys}; {} event types are taken without a signature", types.len()),
        ),
        (Unsigned::Refused, keys) => {
            findings.ok("keys", format_args!("{keys}; unsigned callbacks are refused"));
        }
    }
}

/// Says which files with secrets in them anybody on this machine may read. Not bad: where there is
/// nobody else, as in a container, it does no harm.
fn files(config: &Config, findings: &mut Findings) {
    for (path, key) in config.settings.secret_files() {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.mode() & 0o004 != 0 {
            let path = path.display();
            findings.note(
                "files",
                format_args!("everybody may read {path}, which has {key}; chmod o-r {path}"),
            );
        }
    }
}

fn kafka(config: &Config, findings: &mut Findings) {
    let topics = config.topics.all();
    let all = || topics.iter().copied().chain([config.topics.ledger()]);
    let missing = match config.kafka.missing_topics(all()) {
        Ok(missing) => missing,
        Err(error) => return findings.bad("Kafka", error),
    };
    findings.ok("Kafka", format_args!("{} answers", config.kafka.brokers));
    if missing.is_empty() {
        findings.ok("topics", format_args!("all {} are there", all().count()));
    } else if config.kafka.create_topics {
        findings.note("topics", format_args!("serve will create {}", missing.join(", ")));
    } else {
        findings.bad(
            "topics",
            format_args!(
                "missing: {}; create them or set kafka.create_topics = true",
                missing.join(", ")
            ),
        );
    }
    if config.kafka.delivery == Delivery::AtLeastOnce {
        return findings.note("delivery", "at-least-once: consumers may see repeats after a crash");
    }
    // Under a name of its own: the instance's would fence a bridge that is running.
    let mut rehearsal = config.kafka.clone();
    rehearsal.instance.push_str(".check");
    let present: Vec<&str> = all().filter(|name| !missing.iter().any(|m| m == name)).collect();
    let rehearsed = rehearsal
        .producer_soon()
        .map_err(|error| error.to_string())
        .and_then(|producer| producer.rehearse(&present));
    match rehearsed {
        Ok(()) => findings.ok(
            "transactions",
            format_args!("work; {} topics may be written (tried and undone)", present.len()),
        ),
        Err(error) => findings.bad("transactions", error),
    }
}
