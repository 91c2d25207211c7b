//! `livebridge replay`: publishes events again.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::event::{EventType, Timestamp, type_name};
use crate::kafka::topic_reader::read_to_end;
use crate::publisher::replay::{Event, Plan, RejectedEvent, Replay, ReplayError, Summary, Target};
use clap::Args;

use super::output::count;
use super::progress::ProgressBar;
use super::range::Range;
use super::{CliError, ConfigFile};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    range: Range,
    /// Send to this topic instead of each event's own. It must exist.
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// Also send events that are already in their topic: consumers then see them twice.
    #[arg(long)]
    again: bool,
    /// Send the events. Without it, the command prints what it would send.
    #[arg(long)]
    yes: bool,
}

/// Rejected events that are printed; all are counted.
const SHOWN: usize = 20;

/// Where the events come from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The dead-letter topic.
    #[arg(long)]
    dead_letters: bool,
    /// A file that `livebridge wal export` wrote.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  max.message.bytes of a topic was too low and was raised. Show what would be sent, then send it:
    livebridge replay --config livebridge.toml --dead-letters --since 6h
    livebridge replay --config livebridge.toml --dead-letters --since 6h --yes
  The disk of a lost host, read on another one:
    livebridge wal export --dir /mnt/rescued/log --unpublished > rescued.jsonl
    livebridge replay --config livebridge.toml --export rescued.jsonl --yes
  The same events into a topic to try a consumer with:
    livebridge replay --config livebridge.toml --export rescued.jsonl --to test --yes

A replayed event has the ce_id, key, value and ce_time of the original, and the header
livebridge-replayed-at. Consumers receive it after events that were published in the meantime. The
timestamp of its record, by which retention removes it, is at most a day before the publication. An
event that is already in its topic is skipped, and so is one that another instance or replay
publishes in the meantime: replay may run beside every instance, several times concurrently, and
again after it was killed. With --again or --to, events are not compared with those that others
publish in the meantime. Only one replay with --to may run per topic: a second one fences the first,
which then exits with an error.";

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load(options.config.config.as_deref())?;
    if let Some(topic) = &options.to {
        check_target(&config, topic)?;
    }
    let now = Timestamp::now();
    let mut plan = Plan::default();
    let bytes = options.input.export.as_deref().map_or(Ok(0), size_of_export)?;
    let bar = ProgressBar::bytes("reading", bytes);
    let (read, skipped) = each(options, &config, now, true, |event, bytes| {
        bar.add(bytes);
        plan.add(&event);
        Ok(())
    })?;
    drop(bar);
    let target = match &options.to {
        Some(topic) => Target::Other(topic.clone()),
        None if options.again => Target::TopicsAgain,
        None => Target::Topics,
    };
    let outcome = publish(&config, plan, target, options.again, options.yes, read, |send| {
        each(options, &config, now, false, |event, _| send(event)).map(|_| ())
    })?;
    if outcome && skipped == 0 { Ok(()) } else { Err(CliError::Found) }
}

/// Compares `plan` with the topics and, with `yes`, publishes the events that are missing; with
/// `again`, also the others. `each` calls its argument for every event of the plan. Returns whether
/// all of them are published, or would be.
pub(super) fn publish(
    config: &Config,
    mut plan: Plan,
    target: Target,
    again: bool,
    yes: bool,
    read: u64,
    each: impl FnOnce(&mut dyn FnMut(Event) -> Result<(), CliError>) -> Result<(), CliError>,
) -> Result<bool, CliError> {
    let mut complete = true;
    // First, so that events published while the topics are read are found in the ledger.
    let replay = (yes && read > 0)
        .then(|| Replay::connect(&config.kafka, &config.topics, target, &plan))
        .transpose()?;
    if !again {
        plan.skip_published(&config.kafka)?;
    }
    let absent = config.kafka.missing_topics(plan.counts().map(|(topic, ..)| topic));
    for topic in absent.map_err(ReplayError::from)? {
        let count = plan.skip_topic(&topic);
        complete &= count == 0;
        print_err!(
            "skipped {count} events: there is no topic {topic}; livebridge serve creates it"
        );
    }
    let events = plan.counts().map(|(_, sent, present)| sent + present).sum::<usize>();
    print_out!("{}, {} selected", count(read, "record"), count(events, "event"));
    let mut to_send = 0;
    for (topic, sent, present) in plan.counts() {
        to_send += sent;
        print_out!("  {topic:<26} {sent} to send, {present} already in the topic");
    }
    if to_send == 0 {
        return Ok(complete);
    }
    let Some(mut replay) = replay else {
        print_out!("Nothing was sent. Run it again with --yes to send.");
        return Ok(complete);
    };
    let bar = ProgressBar::count("sending", to_send as u64);
    let mut passed = 0;
    each(&mut |event| {
        if plan.take(&event) {
            passed += 1;
            bar.add(1);
            replay.send(event)?;
        }
        Ok(())
    })?;
    let Summary { sent, absorbed, rejected } = replay.finish()?;
    drop(bar);
    if absorbed > 0 {
        print_out!("{absorbed} events were published by another instance in the meantime");
    }
    print_out!("{} sent", count(sent, "event"));
    for RejectedEvent { topic, id, reason } in rejected.iter().take(SHOWN) {
        print_err!("{topic} rejects the event {id}: {reason}");
    }
    if !rejected.is_empty() {
        print_err!(
            "{} events were rejected; remove the cause (for example, raise max.message.bytes of \
             the topic) and run it again: events that were sent are not sent twice",
            rejected.len()
        );
    }
    if passed < to_send {
        print_err!(
            "the input changed while it was read: only {passed} of {to_send} events were found a \
             second time; run it again: events that were sent are not sent twice"
        );
    }
    Ok(complete && rejected.is_empty() && passed == to_send)
}

fn unreadable(path: &Path, cause: &io::Error) -> CliError {
    CliError::unreadable("--export", path, cause)
}

/// The bytes of the file `path`, which is read twice: a pipe would be empty the second time.
fn size_of_export(path: &Path) -> Result<u64, CliError> {
    let meta = path.metadata().map_err(|cause| unreadable(path, &cause))?;
    if meta.is_file() {
        return Ok(meta.len());
    }
    let path = path.display();
    Err(CliError::Usage(format!(
        "--export {path} is not a regular file, and it is read twice; write the lines to a file first"
    )))
}

/// Rejects the ledger as a target, and topics that do not exist: a typo must not create one.
fn check_target(config: &Config, topic: &str) -> Result<(), CliError> {
    if topic == config.topics.ledger() {
        return Err(CliError::Usage(format!(
            "--to {topic}: this is the ledger, which takes no events"
        )));
    }
    if topic == config.topics.dead_letter() {
        return Err(CliError::Usage(format!("--to {topic}: this topic takes dead letters only")));
    }
    match config.kafka.missing_topics([topic].into_iter()) {
        Ok(missing) if missing.is_empty() => Ok(()),
        Ok(_) => Err(CliError::Usage(format!("--to {topic}: there is no such topic"))),
        Err(cause) => Err(ReplayError::from(cause).into()),
    }
}

/// Calls `visit` for every event that the options select, with the bytes read for it. Returns how
/// many there are, and how many dead letters were skipped: one of their headers names the topic,
/// and every client with permission to write dead letters can set it. The `first` call prints
/// which.
fn each(
    options: &Options,
    config: &Config,
    now: Timestamp,
    first: bool,
    mut visit: impl FnMut(Event, u64) -> Result<(), CliError>,
) -> Result<(u64, u64), CliError> {
    let (mut count, mut skipped) = (0, 0);
    let mut select = |mut event: Event, bytes: usize, location: &str| {
        let known = EventType::parse(&event.type_name);
        if !options.range.contains(event.received_at, type_name(known)) {
            return Ok(());
        }
        if options.to.is_none() && !config.topics.is_of_events(&event.topic) {
            skipped += 1;
            if first {
                print_err!(
                    "skipped {location}: its topic {:?} is not in this configuration; add it to \
                     [kafka.topics], or choose another one with --to",
                    event.topic
                );
            }
            return Ok(());
        }
        if let Some(topic) = &options.to {
            event.topic.clone_from(topic);
        }
        count += 1;
        visit(event, bytes as u64)
    };
    if let Some(path) = &options.input.export {
        let file = File::open(path).map_err(|cause| unreadable(path, &cause))?;
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|cause| unreadable(path, &cause))?;
            let event = Event::of_line(&line, &config.topics, &config.kafka.instance, now);
            let location = format!("{}:{}", path.display(), number + 1);
            let event = event.ok_or_else(|| {
                CliError::Usage(format!(
                    "{location}: not a line that `livebridge wal export` wrote"
                ))
            })?;
            select(event, line.len() + 1, &location)?;
        }
    } else {
        // From its beginning: the topic is ordered by the events' times, the options are about
        // their receipt.
        let beginning = Timestamp::from_millis(0);
        read_to_end(&config.kafka, config.topics.dead_letter(), beginning, |letter| {
            let location = format!("dead letter {}/{}", letter.partition, letter.offset);
            let Some(event) = Event::of_dead_letter(letter, now) else {
                if first {
                    print_err!("skipped {location}: livebridge did not write it");
                }
                return Ok(());
            };
            select(event, 0, &location)
        })?;
    }
    Ok((count, skipped))
}
