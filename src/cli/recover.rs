//! `livebridge recover`: publishes the events whose callbacks Tencent Cloud gave up on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::config::Config;
use crate::event::Timestamp;
use crate::gaps::{self, Gap, RECOVERABLE};
use crate::publisher::replay::{Event, Plan, Target};
use crate::record::Record;
use crate::recover::{
    Comparison, ComparisonReport, Finder, RecoverError, Spool, TimeRange, UndecodedFile, covers,
    event_of, find_gaps, gaps_ahead, oldest_available, range_of, streams_of_file, verifier,
};
use crate::tencent::CallbackRecord;
use crate::wal::read_identity;

use super::progress::ProgressBar;
use super::range::{now, parse_time};
use super::tencent::Account;
use super::{CliError, ConfigFile, replay};

/// How far back `--gap` looks without `--since`.
const GAP_SINCE: Duration = Duration::from_hours(24);
/// Events of each kind that are printed without --json.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Events at this time or later: 2026-11-24T20:00:00+08:00, 2026-11-24T12:00:00Z, or 2h for two
    /// hours ago; at most 14 days ago. With --gap: gaps since then; the default is a day ago.
    #[arg(long, value_name = "TIME", value_parser = parse_time, required_unless_present = "gap")]
    since: Option<Timestamp>,
    /// Events up to this time; the default is now.
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "gap")]
    until: Option<Timestamp>,
    /// Recover the gaps that this instance recorded (see livebridge wal gaps), and those in which no
    /// instance accepted a callback, found in the ledger topic.
    #[arg(long)]
    gap: bool,
    /// Only the events of this stream; may be given several times.
    #[arg(long, value_name = "NAME")]
    stream: Vec<String>,
    /// Only the events of the streams in this file, a name a line.
    #[arg(long, value_name = "FILE")]
    streams_file: Option<PathBuf>,
    /// Compare Tencent Cloud's records with Kafka, and send nothing.
    #[arg(long, conflicts_with = "yes")]
    report: bool,
    /// Print the report as JSON.
    #[arg(long, requires = "report")]
    json: bool,
    /// Send the events. Without it, the command prints what it would send.
    #[arg(long)]
    yes: bool,
    /// Write records that cannot be decoded to this file.
    #[arg(long, value_name = "FILE", default_value = "recover-undecoded.jsonl")]
    undecoded: PathBuf,
    #[command(flatten)]
    account: Account,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  livebridge was stopped or rejected everything. Show what would be sent, then send it:
    livebridge recover --config livebridge.toml --gap
    livebridge recover --config livebridge.toml --gap --yes
  A known time, and some streams:
    livebridge recover --config livebridge.toml --since 2026-11-24T20:00:00+08:00 \\
      --until 2026-11-24T22:00:00+08:00 --streams-file streams.txt --yes
  Is everything of the last two hours in Kafka?
    livebridge recover --config livebridge.toml --since 2h --report

Tencent Cloud keeps records of the callbacks of types 0, 1, 100 and 200 for 14 days. A recovered
event is published like a callback that arrived in time, with the header livebridge-recovered-at.
Events that are in Kafka are skipped, also those that others publish in the meantime: recover may
run beside every instance, several times concurrently, and again after it was killed. It queries one
stream after another, 18 a second.

Exits 0 if every failed callback is in Kafka, or would be; 1 if some cannot be decoded or are
rejected, or, with --report, are missing; 64 if the configuration, an option or the credentials are
wrong.";

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load(options.config.config.as_deref())?;
    let client = options.account.connect()?;
    let now = now();
    let ahead = gaps_ahead(gaps::recorded(&config.wal.dir).unwrap_or_default(), Timestamp::now());
    let Some(range) = range(options, &config, now)? else {
        print_out!("No gap of more than 10 minutes was found.");
        return Ok(());
    };
    print_err!("events from {} to {}", range.since, range.until);
    let finder = Finder::new(&client, range);
    let named = named_streams(options)?;
    let streams = match &named {
        Some(streams) => streams.clone(),
        None => finder.streams(now)?,
    };
    if options.report {
        return report(options, &config, &finder, range, &streams, named.as_deref(), now);
    }
    recover(options, &config, &finder, &streams, now)?;
    if named.is_none() {
        let is_recovered = |gap: Gap| covers(range, gap, &ahead, now);
        remove_recovered_gaps(&config.wal.dir, range, is_recovered, options.yes);
    }
    Ok(())
}

/// Removes the recorded gaps that are recovered by a run for `range`.
fn remove_recovered_gaps(
    dir: &Path,
    range: TimeRange,
    is_recovered: impl Fn(Gap) -> bool,
    yes: bool,
) {
    let outcome = gaps::recorded(dir).and_then(|known| {
        if yes {
            gaps::remove(dir, &is_recovered)?;
        }
        Ok(known)
    });
    match outcome {
        Ok(known) => {
            for gap in known.into_iter().filter(|gap| gap.end > range.since) {
                let how = match (is_recovered(gap), yes) {
                    (true, true) => "is recovered",
                    (true, false) => "would be recovered with --yes",
                    (false, _) => {
                        "stays recorded, as this run ends before it or covers a part only"
                    }
                };
                print_out!("the gap from {} to {} {how}", gap.begin, gap.end);
            }
        }
        Err(error) => print_err!(
            "{error}; the gaps stay recorded, and so does the alert: run `livebridge wal gaps \
             --drop` as the user that runs livebridge"
        ),
    }
}

/// The time to recover; `None` when there is no gap.
fn range(
    options: &Options,
    config: &Config,
    now: Timestamp,
) -> Result<Option<TimeRange>, CliError> {
    let earliest = now.before(RECOVERABLE);
    if options.gap {
        let since = options.since.unwrap_or_else(|| now.before(GAP_SINCE)).max(earliest);
        let mut gaps = find_gaps(&config.kafka, config.topics.ledger(), since, now)?;
        if let Err(error) = read_identity(&config.wal.dir) {
            print_err!("{error} (wal.dir): gaps that are recorded there are not considered");
        }
        let recorded = gaps::all(&config.wal.dir, now)?;
        let first = options.since.unwrap_or(earliest).max(earliest);
        gaps.extend(recorded.into_iter().filter(|gap| gap.end >= first));
        let range = range_of(&gaps, now);
        return Ok(range.map(|range| TimeRange { since: range.since.max(earliest), ..range }));
    }
    let since = options.since.unwrap_or(earliest);
    let until = options.until.unwrap_or(now).min(now);
    if since < earliest {
        return Err(CliError::Usage(
            "--since is more than 14 days ago; Tencent Cloud keeps its records for 14 days".into(),
        ));
    }
    if since >= until {
        return Err(CliError::Usage("--since must be before --until, and before now".into()));
    }
    Ok(Some(TimeRange { since, until }))
}

/// The streams that the options select; `None` for all.
fn named_streams(options: &Options) -> Result<Option<Vec<String>>, CliError> {
    let mut names = options.stream.clone();
    if let Some(path) = &options.streams_file {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| CliError::unreadable("--streams-file", path, &cause))?;
        names.extend(streams_of_file(&text));
    } else if names.is_empty() {
        return Ok(None);
    }
    names.sort_unstable();
    names.dedup();
    Ok(Some(names))
}

/// Calls `visit` for each record of `streams` that yields an event, and writes the others to their
/// file. Returns the number of records, and the undecoded ones.
fn read_events(
    options: &Options,
    config: &Config,
    finder: &Finder<'_>,
    streams: &[String],
    failed_only: bool,
    now: Timestamp,
    mut visit: impl FnMut(&CallbackRecord, &Record) -> Result<(), RecoverError>,
) -> Result<(u64, UndecodedFile), CliError> {
    let verifier = verifier(&config.verifier);
    let mut undecoded = UndecodedFile::new(&options.undecoded);
    let mut records = 0;
    let days = finder.days();
    let bar =
        ProgressBar::count("reading the records of streams", (days.len() * streams.len()) as u64);
    let mut unavailable = None;
    for day in days {
        for stream in streams {
            finder.records(stream, day, failed_only, |record| {
                records += 1;
                match event_of(&record, &verifier, &config.omit, now) {
                    Ok(event) => visit(&record, &event),
                    Err(error) => undecoded.push(&record, &error),
                }
            })?;
            bar.add(1);
        }
        let oldest = oldest_available(Timestamp::now());
        unavailable = (day.since < oldest).then_some(oldest).or(unavailable);
    }
    drop(bar);
    if let Some(oldest) = unavailable {
        print_err!(
            "records of events before {oldest} could not all be read: Tencent Cloud keeps its \
             records for 14 days"
        );
    }
    undecoded.finish()?;
    Ok((records, undecoded))
}

fn recover(
    options: &Options,
    config: &Config,
    finder: &Finder<'_>,
    streams: &[String],
    now: Timestamp,
) -> Result<(), CliError> {
    let (mut spool, mut plan) = (Spool::new(&options.undecoded)?, Plan::default());
    let (topics, instance) = (&config.topics, config.kafka.instance.as_str());
    let (failed, undecoded) =
        read_events(options, config, finder, streams, true, now, |_, event| spool.push(event))?;
    spool.each(|line| {
        let event = Event::of_recovered(line, topics, instance, now);
        if let Some(event) = event {
            plan.add(&event);
        }
        Ok::<_, RecoverError>(())
    })?;
    print_out!("{failed} failed callbacks of {} streams", streams.len());
    let events = plan.ids().len() as u64;
    let complete =
        replay::publish(config, plan, Target::Topics, false, options.yes, events, |send| {
            spool.each(|line| {
                Event::of_recovered(line, topics, instance, now).map_or(Ok(()), &mut *send)
            })
        })?;
    for record in &undecoded.first {
        print_err!(
            "not decoded: stream {:?}, type {}, {}: {}",
            record.stream,
            record.event_type.map_or_else(|| "unknown".to_owned(), |code| code.to_string()),
            record.event_time.as_deref().unwrap_or("time unknown"),
            record.reason
        );
    }
    if undecoded.count > 0 {
        print_err!(
            "{} records were not decoded; they are in {}, which may contain personal data",
            undecoded.count,
            options.undecoded.display()
        );
    }
    if complete && undecoded.count == 0 { Ok(()) } else { Err(CliError::Found) }
}

fn report(
    options: &Options,
    config: &Config,
    finder: &Finder<'_>,
    range: TimeRange,
    streams: &[String],
    named: Option<&[String]>,
    now: Timestamp,
) -> Result<(), CliError> {
    let mut comparison = Comparison::default();
    let add = |record: &CallbackRecord, event: &Record| {
        comparison.add(record, event);
        Ok(())
    };
    let (_, undecoded) = read_events(options, config, finder, streams, false, now, add)?;
    let report =
        comparison.with_kafka(&config.kafka, &config.topics, range, named, undecoded.count)?;
    if options.json {
        let text = serde_json::to_string_pretty(&report).map_err(CliError::other("print"))?;
        print_out!("{text}");
    } else {
        show(&report);
    }
    if report.is_complete() { Ok(()) } else { Err(CliError::Found) }
}

fn show(report: &ComparisonReport) {
    print_out!("delivered, and in Kafka          {}", report.delivered);
    print_out!("failed, and in Kafka             {}", report.recovered);
    for (what, events) in [
        ("delivered, and not in Kafka     ", &report.delivered_and_missing),
        ("failed, and not in Kafka        ", &report.lost),
        ("in Kafka, and not in the records", &report.only_in_kafka),
    ] {
        print_out!("{what} {}", events.count);
        for event in events.events.iter().take(SHOWN) {
            let time = event.time.as_deref().unwrap_or("time unknown");
            print_out!("  {}  {time}  stream {:?}", event.id, event.stream);
        }
        if events.count > SHOWN as u64 {
            print_out!("  and {} more; --json lists them", events.count - SHOWN as u64);
        }
    }
    print_out!("records that are not decoded     {}", report.undecoded);
}
