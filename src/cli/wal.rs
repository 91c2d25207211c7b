//! `livebridge wal`: what is in a log.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use livebridge::publisher::quarantine;
use livebridge::record::{Entry, type_name};
use livebridge::wal;

use super::CliError;

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
    let line = serde_json::json!({
        "lsn": lsn.to_string(),
        "event_type": record.event_type.map(|event_type| event_type.0),
        "id": record.id.to_string(),
        "received_at": record.received_at.to_string(),
        "occurred_at": record.occurred_at.map(|time| time.to_string()),
        "key": record.key.as_deref().map(String::from_utf8_lossy),
        "body": String::from_utf8_lossy(&record.body),
    });
    writeln!(out, "{line}").map_err(CliError::other("print"))
}

fn status(dir: &std::path::Path, out: &mut impl Write) -> Result<(), CliError> {
    let mut counts = std::collections::BTreeMap::<_, u64>::new();
    let mut times = None;
    wal::visit(dir, |entry| {
        *counts.entry(type_name(entry.record.event_type)).or_default() += 1;
        let received_at = entry.record.received_at;
        let (first, _) = times.unwrap_or((received_at, received_at));
        times = Some((first, received_at));
        Ok::<_, CliError>(())
    })?;
    let held = quarantine::list(&dir.join("quarantine"))
        .map_err(CliError::other("list the quarantine"))?;
    let mut print = |line: String| writeln!(out, "{line}").map_err(CliError::other("print"));
    print(format!("records      {}", counts.values().sum::<u64>()))?;
    for (name, count) in counts {
        print(format!("  {name:<20} {count}"))?;
    }
    if let Some((first, last)) = times {
        print(format!("received     {first} to {last}"))?;
    }
    print(format!("quarantined  {}", held.len()))?;
    for path in held {
        print(format!("  {}", path.display()))?;
    }
    Ok(())
}
