//! `livebridge wal`: what is in a log.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use livebridge::publisher::quarantine::{self, Held};
use livebridge::record::{Entry, Record, type_name};
use livebridge::wal;
use serde_json::Value;

use super::{CliError, block_on};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print every record as a line of JSON, those already published but not removed included.
    Export(Dir),
    /// Count the records by event type, and say how old they are and what is in quarantine.
    Status(Dir),
    /// Print every record in quarantine as a line of JSON, with the reason.
    ///
    /// There is what Kafka refused even in the dead-letter topic.
    Quarantine(Dir),
    /// Put what is in quarantine back into the log, to be published after the next start.
    ///
    /// Needs the instance to be stopped. Mend first what Kafka refused it for.
    Release(Dir),
}

#[derive(Debug, Args)]
struct Dir {
    /// The log's directory: wal.dir of the configuration.
    #[arg(long, value_name = "DIR", env = "LIVEBRIDGE_WAL_DIR", default_value = "data")]
    dir: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match &options.command {
        Command::Export(Dir { dir }) => wal::visit(dir, |entry| export(&entry, &mut out)),
        Command::Status(Dir { dir }) => status(dir, &mut out),
        Command::Quarantine(Dir { dir }) => held(dir)?.iter().try_for_each(|held| {
            let mut line = json(&held.record);
            line["reason"] = held.reason.clone().into();
            line["file"] = held.path.display().to_string().into();
            print(&mut out, &line)
        }),
        Command::Release(Dir { dir }) => release(dir, &mut out),
    };
    match done.and_then(|()| out.flush().map_err(CliError::other("print"))) {
        // Somebody has seen enough: `export | head`.
        Err(CliError::Other { cause, .. })
            if cause
                .downcast_ref::<io::Error>()
                .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        done => done,
    }
}

fn export(Entry { lsn, record }: &Entry, out: &mut impl Write) -> Result<(), CliError> {
    let mut line = json(record);
    line["lsn"] = lsn.to_string().into();
    print(out, &line)
}

fn json(record: &Record) -> Value {
    serde_json::json!({
        "event_type": record.event_type.map(|event_type| event_type.0),
        "id": record.id.to_string(),
        "received_at": record.received_at.to_string(),
        "occurred_at": record.occurred_at.map(|time| time.to_string()),
        "key": record.key.as_deref().map(String::from_utf8_lossy),
        "body": String::from_utf8_lossy(&record.body),
    })
}

fn print(out: &mut impl Write, line: &impl Display) -> Result<(), CliError> {
    writeln!(out, "{line}").map_err(CliError::other("print"))
}

fn held(dir: &Path) -> Result<Vec<Held>, CliError> {
    quarantine::list(&quarantine::dir_of(dir)).map_err(CliError::other("read the quarantine"))
}

fn status(dir: &Path, out: &mut impl Write) -> Result<(), CliError> {
    let mut counts = BTreeMap::<_, u64>::new();
    let mut times = None;
    wal::visit(dir, |entry| {
        *counts.entry(type_name(entry.record.event_type)).or_default() += 1;
        let received_at = entry.record.received_at;
        let (first, _) = times.unwrap_or((received_at, received_at));
        times = Some((first, received_at));
        Ok::<_, CliError>(())
    })?;
    print(out, &format_args!("records      {}", counts.values().sum::<u64>()))?;
    for (name, count) in counts {
        print(out, &format_args!("  {name:<20} {count}"))?;
    }
    if let Some((first, last)) = times {
        print(out, &format_args!("received     {first} to {last}"))?;
    }
    print(out, &format_args!("quarantined  {}", held(dir)?.len()))
}

fn release(dir: &Path, out: &mut impl Write) -> Result<(), CliError> {
    let held = held(dir)?;
    if held.is_empty() {
        return print(out, &"nothing is in quarantine");
    }
    // No limits: what is in quarantine takes its space already.
    let config = wal::Config { dir: dir.to_owned(), max_bytes: u64::MAX, min_free_bytes: 0 };
    let (appender, reader, mut log) = wal::open(&config)?;
    let released = block_on(async {
        for held in &held {
            let append = appender.append(held.record.clone()).await;
            append.map_err(CliError::other("append to the log"))?;
            quarantine::remove(held).map_err(CliError::other("empty the quarantine"))?;
        }
        drop(appender);
        log.ended().await.map_err(CliError::other("close the log"))
    });
    drop(reader);
    log.close();
    released?;
    print(out, &format_args!("{} records are back in the log", held.len()))
}
