//! `livebridge wal`: inspects a log.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::config::ConfigLayers;
use crate::event::{Timestamp, type_name};
use crate::gaps::{self, Gap};
use crate::publisher::Exported;
use crate::publisher::quarantine;
use crate::record::{Entry, Lsn};
use crate::wal::{self, LogView, SegmentContents, SegmentView};
use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::count;
use super::progress::ProgressBar;
use super::range::Range;
use super::{CliError, ConfigFile};

mod quarantined;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count the records of the log: by event type, unpublished ones, those in quarantine.
    Status(ReportOptions),
    /// List the log's segments: number and time of their records, and whether they are published.
    List(ReportOptions),
    /// Print every record as a line of JSON, also published ones that are not removed yet.
    ///
    /// `livebridge replay --export` reads these lines again. Exits 1 if records cannot be read and are
    /// therefore not in the output.
    #[command(after_long_help = EXPORT_EXAMPLES)]
    Export(Export),
    /// Read everything and check it: checksums, and that no record is missing.
    ///
    /// Exits 1 if a record is lost that was not published.
    Verify(ReportOptions),
    /// List, export or drop the damaged segments that are kept.
    ///
    /// A segment is kept if some of its records cannot be read, after its readable records were
    /// published. It takes disk space until it is dropped.
    Damaged(Damaged),
    /// List or drop the gaps: times without accepted callbacks that are not recovered.
    ///
    /// Events of these times may be missing. `livebridge recover --gap` prints what it would
    /// publish; with `--yes` it publishes that and drops the gaps.
    Gaps(Gaps),
    /// Print every record in quarantine as a line of JSON, with the reason.
    ///
    /// These are records that the dead-letter topic rejected too.
    Quarantine(Dir),
    /// Put the records in quarantine back into the log, to be published after the next start.
    ///
    /// The instance must be stopped. First remove the cause of the rejection.
    Release(Dir),
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  The records that are not in Kafka yet, into a file:
    livebridge wal export --unpublished > rescued.jsonl
  The pushes of the last hour, their bodies only:
    livebridge wal export --since 1h --event-type push | jq -r .body
  One record:
    livebridge wal export --from 12.7 --to 12.7";

#[derive(Debug, Args)]
struct Dir {
    /// The log's directory; without it, wal.dir of the configuration.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Dir {
    /// Without checking the whole configuration: the log can be read even if Kafka's settings are
    /// wrong. A directory without a log is an error: a wrong one must not pass for an empty one.
    fn path(&self) -> Result<PathBuf, CliError> {
        let configured = || {
            let dir = ConfigLayers::read(self.config.config.as_deref())?.text("wal", "dir");
            dir.map(PathBuf::from).ok_or_else(|| CliError::Usage("wal.dir is not a path".into()))
        };
        let dir = self.dir.clone().map_or_else(configured, Ok)?;
        wal::read_identity(&dir)?;
        Ok(dir)
    }
}

#[derive(Debug, Args)]
struct ReportOptions {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Damaged {
    #[command(flatten)]
    report: ReportOptions,
    /// Print the readable records of this segment as lines of JSON, as `wal export` does; `all` for
    /// those of all segments.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["drop", "json"])]
    export: Option<String>,
    /// Delete this segment; `all` for all of them.
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    drop: Option<String>,
}

#[derive(Debug, Args)]
struct Gaps {
    #[command(flatten)]
    report: ReportOptions,
    /// Drop all gaps: no event is missing, or the missing ones cannot be recovered.
    #[arg(long, conflicts_with = "json")]
    drop: bool,
}

#[derive(Debug, Args)]
struct Export {
    #[command(flatten)]
    dir: Dir,
    /// Only from this LSN on, such as 12.7: segment 12, record 7.
    #[arg(long, value_name = "LSN", value_parser = parse_lsn, default_value = "0.0",
          hide_default_value = true)]
    from: Lsn,
    /// Only up to and including this LSN.
    #[arg(long, value_name = "LSN", value_parser = parse_lsn)]
    to: Option<Lsn>,
    /// Only records that are unpublished according to the log's files; the ledger in Kafka may list
    /// more of them as published.
    #[arg(long)]
    unpublished: bool,
    #[command(flatten)]
    range: Range,
}

fn parse_lsn(text: &str) -> Result<Lsn, String> {
    Lsn::parse(text).ok_or_else(|| "is no LSN such as 12.7".to_owned())
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match &options.command {
        Command::Status(ReportOptions { dir, json }) => status(&dir.path()?, *json, &mut out),
        Command::List(ReportOptions { dir, json }) => list(&dir.path()?, *json, &mut out),
        Command::Export(options) => export(options, &mut out),
        Command::Verify(ReportOptions { dir, json }) => verify(&dir.path()?, *json, &mut out),
        Command::Damaged(options) => damaged(options, &mut out),
        Command::Gaps(options) => gaps(options, &mut out),
        Command::Quarantine(dir) => quarantined::list(&dir.path()?, &mut out),
        Command::Release(dir) => quarantined::release(&dir.path()?, &mut out),
    };
    let flushed = out.flush().map_err(CliError::other("print"));
    match done.and(flushed) {
        // The reader has closed the pipe: `export | head`.
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

fn print(out: &mut impl Write, line: &impl Display) -> Result<(), CliError> {
    writeln!(out, "{line}").map_err(CliError::other("print"))
}

/// The progress of reading all of `view`.
fn bar(view: &LogView) -> ProgressBar {
    ProgressBar::bytes("reading", view.segments.iter().map(|segment| segment.bytes).sum())
}

fn export(options: &Export, out: &mut impl Write) -> Result<(), CliError> {
    let view = LogView::open(&options.dir.path()?)?;
    let after = if options.unpublished { view.released } else { Lsn::ZERO };
    let is_selected = |Entry { lsn, record }: &Entry| {
        *lsn >= options.from
            && *lsn > after
            && options.to.is_none_or(|to| *lsn <= to)
            && options.range.contains(record.received_at, type_name(record.event_type))
    };
    let bar = bar(&view);
    let first = options.from.max(after).segment();
    let to = options.to.unwrap_or(Lsn::new(u32::MAX, 0));
    let last = to.segment();
    let mut unreadable = 0;
    for segment in view.segments.iter().filter(|s| (first..=last).contains(&s.number)) {
        let found = view.read(segment, |entry| {
            if !is_selected(&entry) {
                return Ok(());
            }
            print_entry(out, &entry)
        })?;
        bar.add(segment.bytes);
        unreadable += report_unreadable(segment, &found, options.from.max(after.next()), to);
    }
    drop(bar);
    if unreadable == 0 { Ok(()) } else { Err(CliError::Found) }
}

/// Prints how many records from `from` to `to` the output lacks, and returns their number.
fn report_unreadable(segment: &SegmentView, found: &SegmentContents, from: Lsn, to: Lsn) -> u64 {
    let unreadable = found.unreadable_between(from, to);
    if unreadable > 0 {
        let path = segment.path.display();
        print_err!("{unreadable} records of {path} cannot be read and are not in the output");
    }
    unreadable
}

fn print_entry(out: &mut impl Write, entry: &Entry) -> Result<(), CliError> {
    let mut line = json!(Exported::of(&entry.record));
    line["lsn"] = entry.lsn.to_string().into();
    print(out, &line)
}

/// The damaged segments that `name` selects.
fn select<'v>(view: &'v LogView, name: &str) -> Result<Vec<&'v SegmentView>, CliError> {
    let is_selected = |segment: &&SegmentView| name == "all" || segment.name() == name;
    let selected: Vec<_> = view.damaged.iter().filter(is_selected).collect();
    if selected.is_empty() && name != "all" {
        let cause = format!("no such damaged segment: {name}; `livebridge wal damaged` lists them");
        return Err(CliError::other("find the segment")(io::Error::other(cause)));
    }
    Ok(selected)
}

fn damaged(options: &Damaged, out: &mut impl Write) -> Result<(), CliError> {
    let view = LogView::open(&options.report.dir.path()?)?;
    let named = options.export.as_ref().or(options.drop.as_ref()).is_some_and(|name| name != "all");
    if view.damaged.is_empty() && !named && !options.report.json {
        let nothing = "no damaged segment is kept";
        if options.export.is_none() {
            return print(out, &nothing);
        }
        // Standard output has records only.
        print_err!("{nothing}");
        return Ok(());
    }
    if let Some(name) = &options.export {
        // That some of its records are unreadable is why it is kept: no reason to fail.
        for segment in select(&view, name)? {
            let found = view.read(segment, |entry| print_entry(out, &entry))?;
            report_unreadable(segment, &found, Lsn::ZERO, Lsn::new(u32::MAX, 0));
        }
        return Ok(());
    }
    if let Some(name) = &options.drop {
        for segment in select(&view, name)? {
            wal::remove_damaged(segment)?;
            print(out, &format_args!("{} is removed", segment.name()))?;
        }
        return Ok(());
    }
    for segment in &view.damaged {
        let mut readable = 0_u32;
        view.read(segment, |_| {
            readable += 1;
            Ok::<_, CliError>(())
        })?;
        let (name, bytes, records) = (segment.name(), segment.bytes, segment.closed);
        if options.report.json {
            let path = segment.path.display().to_string();
            let line = json!({
                "name": name, "bytes": bytes, "records": records, "readable": readable,
                "path": path,
            });
            print(out, &line)?;
        } else {
            let size = ByteSize(bytes);
            let records = records.map_or_else(|| "?".to_owned(), |records| records.to_string());
            print(out, &format_args!("{name}  {size}  {readable} of {records} records readable"))?;
        }
    }
    Ok(())
}

fn gaps(options: &Gaps, out: &mut impl Write) -> Result<(), CliError> {
    let dir = options.report.dir.path()?;
    let found = if options.drop {
        gaps::remove(&dir, |_| true)?
    } else {
        gaps::all(&dir, Timestamp::now())?
    };
    if found.is_empty() && !options.report.json {
        return print(out, &"no gap is recorded");
    }
    for Gap { begin, end } in found {
        if options.report.json {
            print(out, &json!({ "begin": begin.to_string(), "end": end.to_string() }))?;
        } else {
            let dropped = if options.drop { "  dropped" } else { "" };
            print(out, &format_args!("{begin}  {end}{dropped}"))?;
        }
    }
    Ok(())
}

fn status(dir: &Path, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let view = LogView::open(dir)?;
    let mut counts = BTreeMap::<_, u64>::new();
    let (mut unpublished, mut unreadable) = (0_u64, 0_u64);
    let mut times = None;
    let bar = bar(&view);
    for segment in &view.segments {
        let found = view.read(segment, |Entry { lsn, record }| {
            *counts.entry(type_name(record.event_type)).or_default() += 1;
            unpublished += u64::from(lsn > view.released);
            let (first, _) = times.unwrap_or((record.received_at, record.received_at));
            times = Some((first, record.received_at));
            Ok::<_, CliError>(())
        })?;
        unreadable += u64::from(found.missing);
        bar.add(segment.bytes);
    }
    drop(bar);
    let records: u64 = counts.values().sum();
    let bytes: u64 = view.segments.iter().map(|segment| segment.bytes).sum();
    let quarantine = quarantine::list(&quarantine::dir_of(dir))?;
    let (quarantined, quarantine_damaged) = (quarantine.records.len(), quarantine.damaged.len());
    if json {
        let times = times.map(|(first, last)| [first.to_string(), last.to_string()]);
        return print(
            out,
            &json!({
                "log": view.id.to_string(), "records": records, "unpublished": unpublished,
                "unreadable": unreadable, "by_event_type": counts, "received": times,
                "segments": view.segments.len(),
                "disk_bytes": bytes, "quarantined": quarantined,
                "quarantine_damaged": quarantine_damaged,
            }),
        );
    }
    print(out, &format_args!("log          {}", view.id))?;
    print(out, &format_args!("records      {records}, of which {unpublished} wait for Kafka"))?;
    if unreadable > 0 {
        let what = "more wait and cannot be read; `livebridge wal verify` lists their segments";
        print(out, &format_args!("  unreadable {unreadable} {what}"))?;
    }
    for (name, count) in counts {
        print(out, &format_args!("  {name:<20} {count}"))?;
    }
    if let Some((first, last)) = times {
        print(out, &format_args!("received     {first} to {last}"))?;
    }
    let segments = view.segments.len();
    print(out, &format_args!("on disk      {}, {segments} segments", ByteSize(bytes)))?;
    print(out, &format_args!("quarantined  {quarantined}"))?;
    if quarantine_damaged > 0 {
        let advice = "`livebridge wal quarantine` lists them";
        print(out, &format_args!("  unreadable {quarantine_damaged} more files; {advice}"))?;
    }
    Ok(())
}

fn list(dir: &Path, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let view = LogView::open(dir)?;
    if !json {
        print(out, &"segment        records        size  first received            state")?;
    }
    for segment in &view.segments {
        let records = match segment.closed {
            Some(records) => records,
            // Not closed yet, or not closed because of a crash: only such a segment must be read.
            None => view.read(segment, |_| Ok::<_, CliError>(()))?.last,
        };
        let oldest = view.oldest(segment)?.map(|time| time.to_string());
        let published = view.released >= Lsn::new(segment.number, records);
        let state = match (segment.closed, records, published) {
            (_, 0, _) => "empty",
            (_, _, true) => "published",
            (None, ..) => "open",
            (Some(_), ..) => "closed",
        };
        if json {
            print(
                out,
                &json!({
                    "segment": segment.number, "records": records, "bytes": segment.bytes,
                    "first_received": oldest, "state": state,
                    "path": segment.path.display().to_string(),
                }),
            )?;
        } else {
            let size = ByteSize(segment.bytes).to_string();
            let oldest = oldest.unwrap_or_else(|| "-".to_owned());
            let number = segment.number;
            print(
                out,
                &format_args!("{number:<12} {records:>9}  {size:>10}  {oldest:<24}  {state}"),
            )?;
        }
    }
    Ok(())
}

fn verify(dir: &Path, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let view = LogView::open(dir)?;
    let (mut records, mut missing) = (0_u64, 0_u64);
    let mut problems = Vec::new();
    let bar = bar(&view);
    for segment in &view.segments {
        let found = view.read(segment, |_| {
            records += 1;
            Ok::<_, CliError>(())
        })?;
        bar.add(segment.bytes);
        let path = segment.path.display();
        if found.missing > 0 {
            missing += u64::from(found.missing);
            let problem = "records are damaged and were not published";
            problems.push(format!("{path}: {} {problem}", found.missing));
        } else if found.torn && segment.closed.is_some() {
            problems.push(format!("{path}: has damaged bytes, but no record is missing"));
        }
    }
    drop(bar);
    if json {
        let report = json!({"records": records, "missing": missing, "problems": problems});
        print(out, &report)?;
    } else {
        problems.iter().try_for_each(|problem| print(out, problem))?;
        let segments = view.segments.len();
        print(
            out,
            &format_args!(
                "{} in {}, {missing} missing",
                count(records, "record"),
                count(segments, "segment")
            ),
        )?;
    }
    if missing > 0 { Err(CliError::Found) } else { Ok(()) }
}
