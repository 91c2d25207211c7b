//! `livebridge replay`: sends events to Kafka again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use crate::config::Config;
use crate::event::{EventType, Timestamp, type_name};
use crate::kafka::topic_reader::read_to_end;
use crate::publisher::replay::{Event, Plan, RejectedEvent, Replay, ReplayError, Summary, Target};
use clap::Args;

use super::progress::Progress;
use super::range::Range;
use super::{CliError, ConfigFile};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    range: Range,
    /// Send to this topic instead of each event's own. It must exist.
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// Send also what is in its topic already: consumers then see it twice.
    #[arg(long)]
    again: bool,
    /// Really send. Without it, nothing is changed and only said what would be.
    #[arg(long)]
    yes: bool,
}

/// Rejected events that are named; all are counted.
const SHOWN: usize = 20;

/// Where the events come from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The dead-letter topic.
    #[arg(long)]
    dead_letters: bool,
    /// A file that `livebridge wal export` wrote.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  A topic took no messages above 1 MB and has been mended. What would be sent, then send it:
    livebridge replay --config livebridge.toml --dead-letters --since 6h
    livebridge replay --config livebridge.toml --dead-letters --since 6h --yes
  The disk of a lost host, read on another one:
    livebridge wal export --dir /mnt/rescued/log --unpublished > rescued.jsonl
    livebridge replay --config livebridge.toml --export rescued.jsonl --yes
  The same events into a topic to try a consumer with:
    livebridge replay --config livebridge.toml --export rescued.jsonl --to test --yes

What a consumer sees: the event as it was, with the same ce_id, key, value and timestamp, and the
header livebridge-replayed-at. It comes after what was published meanwhile, and retention counts
from its own time. An event that is in its topic already is left out, and so is one that another
instance or replay publishes meanwhile: it may run beside every livebridge, several times at once,
and again after it was killed. With --again, or with --to, nothing is compared with what others
publish meanwhile; of two that send to one topic with --to at once, the first is ended.";

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load(options.config.config.as_deref())?;
    if let Some(topic) = &options.to {
        check_target(&config, topic)?;
    }
    let now = Timestamp::now();
    let mut plan = Plan::default();
    let bytes = options.source.export.as_ref().and_then(|path| path.metadata().ok());
    let bar = Progress::bytes("reading", bytes.map_or(0, |meta| meta.len()));
    let (read, foreign) = each(options, &config, now, true, |event, bytes| {
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
    let skipped = foreign;
    let outcome = publish(&config, plan, target, options.again, options.yes, read, |send| {
        each(options, &config, now, false, |event, _| send(event)).map(|_| ())
    })?;
    if outcome && skipped == 0 { Ok(()) } else { Err(CliError::Found) }
}

/// Compares `plan` with the topics, and publishes what is missing with `yes`. `again` publishes also
/// what is there. `each` calls its argument for every event of the plan. Returns whether all of them
/// are published, or would be.
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
    // First, so that what is published while the topics are read is found in the ledger.
    let replay = (yes && read > 0)
        .then(|| Replay::connect(&config.kafka, &config.topics, target, &plan))
        .transpose()?;
    if !again {
        plan.leave_out_what_is_there(&config.kafka)?;
    }
    let absent = config.kafka.missing_topics(plan.counts().map(|(topic, ..)| topic));
    for topic in absent.map_err(ReplayError::from)? {
        let count = plan.drop_topic(&topic);
        complete &= count == 0;
        print_err!(
            "skipped {count} events: there is no topic {topic}; livebridge serve creates it"
        );
    }
    print_out!("{read} events are meant");
    let mut to_send = 0;
    for (topic, sent, there) in plan.counts() {
        to_send += sent;
        print_out!("  {topic:<26} {sent} to send, {there} there already");
    }
    if to_send == 0 {
        return Ok(complete);
    }
    let Some(mut replay) = replay else {
        print_out!("Nothing was sent: --yes sends.");
        return Ok(complete);
    };
    let bar = Progress::count("sending", to_send as u64);
    each(&mut |event| {
        if plan.take(&event) {
            bar.add(1);
            replay.send(event)?;
        }
        Ok(())
    })?;
    let Summary { sent, absorbed, rejected } = replay.finish()?;
    drop(bar);
    if absorbed > 0 {
        print_out!("{absorbed} events were published by others meanwhile");
    }
    print_out!("{sent} events sent");
    for RejectedEvent { topic, id, reason } in rejected.iter().take(SHOWN) {
        print_err!("{topic} rejects the event {id}: {reason}");
    }
    if !rejected.is_empty() {
        print_err!(
            "{} events were rejected; remove the cause (max.message.bytes of the topic, say) and run \
             it again: what was sent is not sent twice",
            rejected.len()
        );
    }
    Ok(complete && rejected.is_empty())
}

/// Rejects the ledger as a target, and topics that do not exist: a typo must not create one.
fn check_target(config: &Config, topic: &str) -> Result<(), CliError> {
    if topic == config.topics.ledger() {
        return Err(CliError::Usage(format!("--to {topic}: that is the ledger, not for events")));
    }
    if topic == config.topics.dead_letter() {
        return Err(CliError::Usage(format!("--to {topic}: that is for dead letters only")));
    }
    match config.kafka.missing_topics([topic].into_iter()) {
        Ok(missing) if missing.is_empty() => Ok(()),
        Ok(_) => Err(CliError::Usage(format!("--to {topic}: there is no such topic"))),
        Err(cause) => Err(ReplayError::from(cause).into()),
    }
}

/// Calls `visit` for every event that the options mean, with the bytes read for it. Returns how many
/// there are, and how many dead letters were skipped: a header of theirs chooses the topic, and every
/// client with permission to write dead letters can set it. The `first` call says which.
fn each(
    options: &Options,
    config: &Config,
    now: Timestamp,
    first: bool,
    mut visit: impl FnMut(Event, u64) -> Result<(), CliError>,
) -> Result<(u64, u64), CliError> {
    let (mut count, mut skipped) = (0, 0);
    let mut take = |mut event: Event, bytes: usize, place: &str| {
        let known = EventType::parse(&event.type_name);
        if !options.range.has(event.received_at, type_name(known)) {
            return Ok(());
        }
        if options.to.is_none() && !config.topics.takes_events(&event.topic) {
            skipped += 1;
            if first {
                print_err!(
                    "skipped {place}: its topic {:?} takes no events in this configuration; add it to \
                     [kafka.topics], or send it elsewhere with --to",
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
    if let Some(path) = &options.source.export {
        let file = File::open(path).map_err(CliError::other("open the export"))?;
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(CliError::other("read the export"))?;
            let event = Event::of_line(&line, &config.topics, &config.kafka.instance, now);
            let place = format!("{}:{}", path.display(), number + 1);
            let event = event.ok_or_else(|| {
                CliError::Usage(format!("{place}: not a line that `livebridge wal export` wrote"))
            })?;
            take(event, line.len() + 1, &place)?;
        }
    } else {
        // From its beginning: the topic goes by the events' times, the options by their receipt.
        let beginning = Timestamp::from_millis(0);
        read_to_end(&config.kafka, config.topics.dead_letter(), beginning, |landed| {
            let place = format!("dead letter {}/{}", landed.partition, landed.offset);
            let Some(event) = Event::of_dead_letter(landed, now) else {
                if first {
                    print_err!("skipped {place}: livebridge did not put it there");
                }
                return Ok(());
            };
            take(event, 0, &place)
        })?;
    }
    Ok((count, skipped))
}
