//! `livebridge send`: sends callbacks as Tencent does.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::callback::CallbackKey;
use crate::event::{EventType, Timestamp};
use crate::sample::Samples;
use crate::sender::{DeliveryOutcome, RetryPolicy, Sender};
use clap::Args;

use super::output::count;
use super::{CliError, block_on, parse_rate};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The URL to send to.
    #[arg(long, default_value = "http://127.0.0.1:8080/callback")]
    url: String,
    /// A file with the callback key to sign with. Without it, the key itself is read from
    /// `LIVEBRIDGE_SEND_KEY` in the environment; without either, callbacks are unsigned. No option
    /// takes a key, because other users of the machine can see arguments.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// An event type by number or name, such as 1 or push; or all, in turn.
    #[arg(long, value_name = "TYPE", default_value = "all")]
    event_type: String,
    /// The number of callbacks.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// At most this many a second; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0.0, value_parser = parse_rate, allow_negative_numbers = true)]
    rate: f64,
    /// Connections to send on concurrently.
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Retries of a callback that is not answered 200. Tencent makes 12, a minute apart.
    #[arg(long, default_value_t = 3)]
    retries: u32,
    /// The pause before each retry.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    retry_interval: Duration,
    /// Send each callback this many times, each time with a new signature, also after a 200.
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    repeat: u32,
    /// Send these files instead, byte for byte: each is one body, or one a line if it ends in
    /// .jsonl.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    file: Vec<PathBuf>,
}

/// The answers, over all connections.
#[derive(Default)]
struct Tally {
    answers: BTreeMap<String, u64>,
    retried: u64,
    elapsed: Vec<Duration>,
}

pub(super) fn run(options: Options) -> Result<(), CliError> {
    let key = key(options.key_file.as_deref())?;
    let types: Vec<EventType> = if options.event_type == "all" {
        Samples::types().collect()
    } else {
        let unknown = || CliError::Usage(format!("unknown event type {:?}", options.event_type));
        vec![EventType::parse(&options.event_type).ok_or_else(unknown)?]
    };
    let bodies = Arc::new(read_files(&options.file)?);
    if bodies.is_empty() && !options.file.is_empty() {
        // Without bodies, samples would be sent.
        return Err(CliError::Usage("the files of --file contain no callbacks".into()));
    }
    let options = Arc::new(options);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tallies = block_on(async {
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..options.connections.max(1) {
            let sender =
                Sender::new(&options.url).map_err(|error| CliError::Usage(error.to_string()))?;
            let work = Work {
                options: Arc::clone(&options),
                bodies: Arc::clone(&bodies),
                types: types.clone(),
                samples: Samples::new(key.clone()),
                next: Arc::clone(&next),
                started,
            };
            senders.spawn(work.run(sender));
        }
        Ok(senders.join_all().await)
    })?;
    report(tallies, started.elapsed())
}

fn key(file: Option<&Path>) -> Result<Option<CallbackKey>, CliError> {
    let text = match file {
        Some(path) => Some(read(path, "--key-file")?),
        None => env::var("LIVEBRIDGE_SEND_KEY").ok(),
    };
    let empty = || CliError::Usage("the callback key is empty".into());
    text.map(|text| CallbackKey::new(&text).ok_or_else(empty)).transpose()
}

fn read(path: &Path, option: &'static str) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|cause| CliError::unreadable(option, path, &cause))
}

fn read_files(files: &[PathBuf]) -> Result<Vec<String>, CliError> {
    let mut bodies = Vec::new();
    for path in files {
        let text = read(path, "--file")?;
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            bodies.extend(lines.map(str::to_owned));
        } else {
            bodies.push(text);
        }
    }
    Ok(bodies)
}

/// The work of one connection.
struct Work {
    options: Arc<Options>,
    bodies: Arc<Vec<String>>,
    types: Vec<EventType>,
    samples: Samples,
    next: Arc<AtomicU64>,
    started: Instant,
}

impl Work {
    async fn run(self, mut sender: Sender) -> Tally {
        let options = Arc::clone(&self.options);
        let policy = RetryPolicy { retries: options.retries, interval: options.retry_interval };
        let total = match self.bodies.len() as u64 {
            0 => options.count,
            files => files * options.count,
        };
        let mut tally = Tally::default();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= total {
                return tally;
            }
            self.pace(number).await;
            let mut event = None;
            if self.bodies.is_empty() {
                let at = usize::try_from(number).unwrap_or(0) % self.types.len();
                event = Some(self.samples.event(self.types[at]));
            }
            let deliver = || match &event {
                Some(event) => self.samples.delivery(event.clone(), Timestamp::now()),
                None => {
                    self.bodies[usize::try_from(number).unwrap_or(0) % self.bodies.len()].clone()
                }
            };
            for _ in 0..options.repeat.max(1) {
                tally.add(&sender.send(deliver(), policy, deliver).await);
            }
        }
    }

    /// Waits until callback `number` is due.
    async fn pace(&self, number: u64) {
        if self.options.rate > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "a count of callbacks")]
            let due = Duration::from_secs_f64(number as f64 / self.options.rate);
            tokio::time::sleep_until((self.started + due).into()).await;
        }
    }
}

impl Tally {
    fn add(&mut self, outcome: &DeliveryOutcome) {
        let answer = match outcome.status {
            Some(status) if status == 200 => "200".to_owned(),
            Some(status) => format!("{} {}", status.as_u16(), outcome.answer),
            None => outcome.answer.clone(),
        };
        *self.answers.entry(answer).or_default() += 1;
        self.retried += u64::from(outcome.tries > 1);
        self.elapsed.push(outcome.elapsed);
    }
}

fn report(tallies: Vec<Tally>, elapsed: Duration) -> Result<(), CliError> {
    let mut all = Tally::default();
    for tally in tallies {
        for (answer, count) in tally.answers {
            *all.answers.entry(answer).or_default() += count;
        }
        all.retried += tally.retried;
        all.elapsed.extend(tally.elapsed);
    }
    all.elapsed.sort_unstable();
    for (answer, times) in &all.answers {
        print_out!("{times} × {answer}");
    }
    let at = |share: usize| {
        all.elapsed.get((all.elapsed.len() * share / 100).min(all.elapsed.len().saturating_sub(1)))
    };
    let (p50, p99) = (at(50).copied().unwrap_or_default(), at(99).copied().unwrap_or_default());
    print_out!(
        "{} in {:.2?}, p50 {p50:.2?}, p99 {p99:.2?}, {} needed more than one attempt",
        count(all.elapsed.len(), "callback"),
        elapsed,
        all.retried
    );
    if all.answers.keys().all(|answer| answer == "200") { Ok(()) } else { Err(CliError::Found) }
}
