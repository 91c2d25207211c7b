//! `livebridge audit`: compares log, ledger and topics.

use std::path::PathBuf;
use std::time::Duration;

use crate::audit::{Audit, Findings, Report};
use crate::config::Config;
use crate::event::Timestamp;
use crate::kafka::topic_reader::PartitionRange;
use clap::Args;

use super::progress::ProgressBar;
use super::range::{now, parse_time};
use super::{CliError, ConfigFile};

/// The default of `--since`.
const SINCE: Duration = Duration::from_hours(24);
/// Events of each kind that are printed without --json.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Events received at this time or later: 2026-11-24T20:00:00+08:00, 2026-11-24T12:00:00Z, or 2h
    /// for two hours ago; the default is a day ago.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Events received before this time; the default is now.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Compare the log in this directory instead of wal.dir, such as that of a lost host.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the whole report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  The last day, beside a running instance:
    livebridge audit --config livebridge.toml
  One outage, for a script:
    livebridge audit --since 2026-11-24T20:00:00+08:00 --until 2026-11-24T22:00:00+08:00 \\
      --json | jq .missing

missing: events that the ledger or the log lists as published, and that are in no topic, not in the
dead-letter topic and not in quarantine. Retention removes events too: truncated_partitions lists
the partitions whose first records were removed. duplicated: events that are in their topic more
than once; with at-least-once this is no error. unaccounted: events that are in a topic and not in
the ledger: another program wrote them, or they are older than the ledger's retention (7 days).
The command holds the ids of all events of the time in memory, about 100 MB for a million.";

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load(options.config.config.as_deref())?;
    let now = now();
    let audit = Audit {
        kafka: &config.kafka,
        topics: &config.topics,
        dir: options.dir.clone().unwrap_or(config.wal.dir),
        since: options.since.unwrap_or_else(|| now.before(SINCE)),
        until: options.until.unwrap_or(now),
    };
    if audit.since >= audit.until {
        return Err(CliError::Usage("--since must be before --until".into()));
    }
    let bar = ProgressBar::count("comparing", audit.steps());
    let report = audit.run(|| bar.add(1)).map_err(CliError::other("compare"))?;
    drop(bar);
    if options.json {
        let text = serde_json::to_string_pretty(&report).map_err(CliError::other("print"))?;
        print_out!("{text}");
    } else {
        show(&report);
    }
    if report.ok { Ok(()) } else { Err(CliError::Found) }
}

fn show(report: &Report) {
    let Report { since, until, log, ledger, topics, dead_letters, quarantined, .. } = report;
    print_out!("received     {since} to {until}");
    print_out!("log          {} records on disk, {} of them pending", log.records, log.pending);
    print_out!("ledger       {} events in {} transactions", ledger.events, ledger.commits);
    print_out!("topics       {} events", topics.values().sum::<u64>());
    for (topic, count) in topics {
        print_out!("  {topic:<26} {count}");
    }
    print_out!("undelivered  {dead_letters} dead letters, {quarantined} in quarantine");
    if log.damaged > 0 {
        print_out!("damaged      {} records of the log cannot be read", log.damaged);
    }
    for damaged in &report.quarantine_damaged {
        print_out!("damaged      {damaged}");
    }
    list("missing", &report.missing);
    list("duplicated", &report.duplicated);
    list("unaccounted", &report.unaccounted);
    if report.missing.count > 0 {
        for PartitionRange { topic, partition, begin, .. } in &report.truncated_partitions {
            print_out!(
                "  {topic}/{partition} begins at offset {begin}: retention or an administrator \
                 removed earlier records"
            );
        }
    }
    print_out!("{}", if report.ok { "no problems found" } else { "problems found" });
}

fn list(name: &str, findings: &Findings) {
    print_out!("{name:<12} {}", findings.count);
    for finding in findings.events.iter().take(SHOWN) {
        print_out!("  {}  {}", finding.id, finding.at);
    }
    if findings.count > SHOWN as u64 {
        print_out!("  and {} more; --json lists them", findings.count - SHOWN as u64);
    }
}
