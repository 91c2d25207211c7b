//! Senders that behave like Tencent's, record the acknowledged callbacks, and verify the result in
//! Kafka.
//!
//! One sender sends each stream, one callback at a time. The order in which its callbacks were
//! acknowledged is therefore the order of their numbers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp, type_name};
use livebridge::sample::Samples;
use livebridge::sender::{RetryPolicy, Sender};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::Unavailable;
use super::consumer::{self, Isolation};
use super::random::Random;

type Event = Map<String, Value>;

/// Event types whose samples have a stream.
const TYPES: [i64; 8] = [1, 0, 100, 200, 317, 321, 328, 332];
/// The member that contains a stream's name.
const STREAM: [&str; 2] = ["stream_id", "streamId"];
/// Members added by the tests.
const NUMBER: &str = "test_number";
const PADDING: &str = "test_padding";
/// Sent callbacks of a stream that may be sent again.
const REMEMBERED: usize = 64;

/// The contents and rate of the load.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Senders, each with one stream and one connection.
    pub streams: usize,
    /// A sender's average pause between two callbacks.
    pub pace: Duration,
    /// The pause before a callback that was not answered 200 is retried.
    pub retry: Duration,
    /// The percentage of acknowledged callbacks that are sent again,
    pub resend: u64,
    /// and the shortest time before that.
    pub resend_after: Duration,
    /// The number of large callbacks per thousand.
    pub large: u64,
    /// The bridges; every attempt goes to the next.
    pub intakes: Vec<SocketAddr>,
}

impl Plan {
    /// Several hundred callbacks a second to one bridge.
    pub fn new(intake: SocketAddr) -> Self {
        Self {
            streams: 24,
            pace: Duration::from_millis(20),
            retry: Duration::from_millis(100),
            resend: 5,
            resend_after: Duration::ZERO,
            large: 5,
            intakes: vec![intake],
        }
    }
}

/// Running senders.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<Stream>>,
    runtime: Handle,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    samples: Mutex<Samples>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    retries: AtomicU64,
    resent: AtomicU64,
    rejected: Mutex<BTreeMap<u16, u64>>,
}

/// A stream as it was sent: its name, and its acknowledged events in order.
#[derive(Debug)]
struct Stream {
    name: String,
    events: Vec<Sent>,
}

/// An event that was answered 200.
#[derive(Clone, Copy, Debug)]
struct Sent {
    event_type: i64,
    digest: u64,
}

/// Everything that was acknowledged.
#[derive(Debug)]
pub struct Acknowledged {
    streams: Vec<Stream>,
    /// Attempts that were not answered 200.
    pub retries: u64,
    /// Acknowledged callbacks that were sent and acknowledged again.
    pub resent: u64,
    /// Responses other than 200.
    pub rejected: BTreeMap<u16, u64>,
}

impl Load {
    pub fn start(runtime: &Handle, plan: Plan, random: &mut Random) -> Self {
        let streams = plan.streams;
        let shared = Arc::new(Shared {
            plan,
            samples: Mutex::new(Samples::new(CallbackKey::new(super::bridge::KEY))),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            rejected: Mutex::default(),
        });
        let senders = (0..streams)
            .map(|index| {
                let name = super::unique(&format!("stream-{index}"));
                let line = StreamSender::new(Arc::clone(&shared), random.fork(), index);
                runtime.spawn(line.run(name))
            })
            .collect();
        Self { shared, senders, runtime: runtime.clone() }
    }

    /// Callbacks acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `more` further callbacks are acknowledged.
    pub fn wait_for(&self, more: u64, within: Duration) {
        let until = self.acknowledged() + more;
        let message = || "callbacks are not acknowledged".to_owned();
        super::wait_until(within, || self.acknowledged() >= until, message);
    }

    /// Stops when every callback that was begun is acknowledged.
    pub fn finish(self, within: Duration) -> Acknowledged {
        self.shared.stop.store(true, Ordering::Relaxed);
        let senders = self.senders;
        let streams = self.runtime.block_on(async {
            let ended = async {
                let mut streams = Vec::new();
                for sender in senders {
                    streams.push(sender.await.expect("a sender that does not panic"));
                }
                streams
            };
            tokio::time::timeout(within, ended).await
        });
        let rejected = self.shared.rejected.lock().expect("no panic under the lock").clone();
        let Ok(streams) = streams else { panic!("callbacks are not acknowledged: {rejected:?}") };
        Acknowledged {
            streams,
            retries: self.shared.retries.load(Ordering::Relaxed),
            resent: self.shared.resent.load(Ordering::Relaxed),
            rejected,
        }
    }
}

/// One sender.
struct StreamSender {
    shared: Arc<Shared>,
    random: Random,
    /// One connection per bridge.
    connections: Vec<Sender>,
    turn: usize,
}

impl StreamSender {
    fn new(shared: Arc<Shared>, random: Random, turn: usize) -> Self {
        let connection =
            |intake: &SocketAddr| Sender::new(&format!("http://{intake}/callback")).expect("a URL");
        let connections = shared.plan.intakes.iter().map(connection).collect();
        Self { shared, random, connections, turn }
    }

    async fn run(mut self, name: String) -> Stream {
        let mut stream = Stream { name, events: Vec::new() };
        let mut remembered: Vec<(Instant, Event)> = Vec::new();
        let pace = u64::try_from(self.shared.plan.pace.as_millis()).unwrap_or(0) * 2 + 1;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let event_type = if self.random.percent(60) { 1 } else { self.random.pick(&TYPES) };
            let event = self.event(event_type, &stream);
            self.deliver(&event).await;
            stream.events.push(Sent { event_type, digest: digest(&event) });
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            let event = (Instant::now(), event);
            match remembered.len() {
                0..REMEMBERED => remembered.push(event),
                full => remembered[self.random.index(full)] = event,
            }
            let (at, again) = &remembered[self.random.index(remembered.len())];
            let due = at.elapsed() >= self.shared.plan.resend_after;
            if due && self.random.percent(self.shared.plan.resend) {
                self.deliver(again).await;
                self.shared.resent.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(self.random.millis(0..pace)).await;
        }
        stream
    }

    /// The stream's next event.
    fn event(&mut self, event_type: i64, stream: &Stream) -> Event {
        let samples = self.shared.samples.lock().expect("no panic under the lock");
        let mut event = samples.event(EventType(event_type));
        drop(samples);
        for name in STREAM {
            if let Some(value) = event.get_mut(name) {
                *value = stream.name.as_str().into();
            }
        }
        event.insert(NUMBER.into(), stream.events.len().into());
        if self.random.within(0..1000) < self.shared.plan.large {
            let length = 10_000 + self.random.index(140_000);
            event.insert(PADDING.into(), "x".repeat(length).into());
        }
        event
    }

    /// Sends it, with a new signature each time, until it is answered 200.
    async fn deliver(&mut self, event: &Event) {
        let once = RetryPolicy { retries: 0, interval: Duration::ZERO };
        loop {
            let body = {
                let samples = self.shared.samples.lock().expect("no panic under the lock");
                samples.delivery(event.clone(), Timestamp::now())
            };
            let count = self.connections.len();
            let connection = &mut self.connections[self.turn % count];
            self.turn += 1;
            let outcome = connection.send(body, once, String::new).await;
            let status = outcome.status.map(|status| status.as_u16());
            if status == Some(200) {
                return;
            }
            self.shared.retries.fetch_add(1, Ordering::Relaxed);
            if let Some(status) = status {
                let mut rejected = self.shared.rejected.lock().expect("no panic under the lock");
                *rejected.entry(status).or_default() += 1;
            }
            tokio::time::sleep(self.shared.plan.retry).await;
        }
    }
}

/// The members that are equal in every delivery of an event.
fn digest(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, value) in event.iter().filter(|(name, _)| !matches!(name.as_str(), "t" | "sign")) {
        (name, value.to_string()).hash(&mut hasher);
    }
    hasher.finish()
}

// === Verification ===

/// Compares the records that a `read_committed` consumer reads with the acknowledged events.
#[derive(Debug, Default)]
pub struct Verdict {
    pub acknowledged: u64,
    pub retries: u64,
    pub resent: u64,
    pub landed: u64,
    /// Acknowledged and missing.
    pub lost: u64,
    /// Present more than once.
    pub duplicates: u64,
    /// Present before an earlier event of its stream.
    pub disorder: u64,
    /// One `ce_id` for two events or two for one; a changed body; a wrong topic or key; a stream in
    /// two partitions.
    pub conflicts: u64,
    /// Never acknowledged.
    pub unknown: u64,
    /// The number of missing events per topic.
    pub lost_of: BTreeMap<String, u64>,
    /// Lengths of the bodies in event topics, and of those in the dead letter topic.
    pub lengths: [Vec<usize>; 2],
    /// The first errors found.
    examples: Vec<String>,
}

/// The relevant fields of a record.
struct ConsumedRecord<'a> {
    topic: &'a str,
    place: &'a str,
    partition: &'a str,
    ce_id: &'a str,
    is_dead: bool,
    stream: usize,
    number: usize,
}

impl Acknowledged {
    /// The number only.
    pub fn count(&self) -> u64 {
        self.streams.iter().map(|stream| stream.events.len() as u64).sum()
    }

    /// Both.
    pub fn and(mut self, other: Self) -> Self {
        self.streams.extend(other.streams);
        self.retries += other.retries;
        self.resent += other.resent;
        for (status, count) in other.rejected {
            *self.rejected.entry(status).or_default() += count;
        }
        self
    }

    /// Reads all topics of `prefix` and compares.
    pub fn check(&self, bootstrap: &str, prefix: &str) -> Result<Verdict, Unavailable> {
        let topics = super::kafka::topics(prefix);
        let fields = [
            "topic", "partition", "offset", "key", "value", "ce_id", "livebridge-topic",
            "livebridge-reason",
        ];
        let records =
            consumer::read_fields(bootstrap, &topics.all(), Isolation::Committed, fields)?;
        let mut verdict = Verdict {
            acknowledged: self.count(),
            retries: self.retries,
            resent: self.resent,
            landed: records.len() as u64,
            ..Verdict::default()
        };
        let names: HashMap<&str, usize> = self
            .streams
            .iter()
            .enumerate()
            .map(|(at, stream)| (stream.name.as_str(), at))
            .collect();
        let mut seen = Seen::default();
        let dead_letter = format!("{prefix}.dead-letter");
        for [topic, partition, offset, key, value, ce_id, meant_for, reason] in &records {
            let place = format!("{topic}/{partition}@{offset}");
            let is_dead = *topic == dead_letter && !reason.is_empty();
            verdict.lengths[usize::from(is_dead)].push(value.len());
            let topic = if is_dead { meant_for } else { topic };
            match self.identify(&names, prefix, topic, key, value) {
                Ok((stream, number)) => seen.take(
                    &ConsumedRecord {
                        topic,
                        place: &place,
                        partition,
                        ce_id,
                        is_dead,
                        stream,
                        number,
                    },
                    &mut verdict,
                ),
                Err(Anomaly::Unknown) => verdict.note(&Count::Unknown, &place),
                Err(Anomaly::Wrong(what)) => {
                    verdict.note(&Count::Conflict, &format!("{place}: {what}"));
                }
            }
        }
        for (at, stream) in self.streams.iter().enumerate() {
            for number in 0..stream.events.len() {
                if !seen.events.contains_key(&(at, number)) {
                    let event_type = EventType(stream.events[number].event_type);
                    let topic = format!("{prefix}.{}", type_name(Some(event_type)));
                    *verdict.lost_of.entry(topic).or_default() += 1;
                    verdict.note(&Count::Lost, &format!("{} number {number}", stream.name));
                }
            }
        }
        Ok(verdict)
    }

    /// The event's stream and number.
    fn identify(
        &self,
        names: &HashMap<&str, usize>,
        prefix: &str,
        topic: &str,
        key: &str,
        value: &str,
    ) -> Result<(usize, usize), Anomaly> {
        let Ok(Value::Object(event)) = serde_json::from_str(value) else {
            return Err(Anomaly::Wrong("not an object".into()));
        };
        let name = STREAM.iter().find_map(|name| event.get(*name)?.as_str());
        let number = event.get(NUMBER).and_then(Value::as_u64);
        let (Some(name), Some(number)) = (name, number) else { return Err(Anomaly::Unknown) };
        let stream = *names.get(name).ok_or(Anomaly::Unknown)?;
        let number = usize::try_from(number).expect("a small number");
        let sent = self.streams[stream].events.get(number).ok_or(Anomaly::Unknown)?;
        if sent.digest != digest(&event) {
            return Err(Anomaly::Wrong("the body differs from the sent one".into()));
        }
        let wanted = format!("{prefix}.{}", type_name(Some(EventType(sent.event_type))));
        if wanted != topic || key != name {
            return Err(Anomaly::Wrong(format!("belongs to {wanted} with key {name}, has {key}")));
        }
        Ok((stream, number))
    }
}

enum Anomaly {
    Unknown,
    Wrong(String),
}

enum Count {
    Lost,
    Duplicate,
    Disorder,
    Conflict,
    Unknown,
}

/// The records read so far.
#[derive(Default)]
struct Seen {
    /// An event's position and `ce_id`.
    events: HashMap<(usize, usize), (String, String)>,
    ids: HashSet<String>,
    /// The partition and last number of a stream in a topic.
    last: HashMap<(usize, String), (String, usize)>,
}

impl Seen {
    fn take(&mut self, landed: &ConsumedRecord<'_>, verdict: &mut Verdict) {
        let &ConsumedRecord { topic, place, partition, ce_id, is_dead, stream, number } = landed;
        if let Some((first, first_id)) = self.events.get(&(stream, number)) {
            verdict.note(&Count::Duplicate, &format!("{place} is {first} once more"));
            if ce_id != first_id {
                verdict.note(&Count::Conflict, &format!("{place}, {first}: two ids"));
            }
            if let Some((its, _)) = self.last.get(&(stream, topic.to_owned()))
                && !is_dead
                && its != partition
            {
                verdict.note(&Count::Conflict, &format!("{place}: its stream was in {its}"));
            }
            return;
        }
        self.events.insert((stream, number), (place.to_owned(), ce_id.to_owned()));
        if !self.ids.insert(ce_id.to_owned()) {
            verdict.note(&Count::Conflict, &format!("{place}: the id of another event"));
        }
        if is_dead {
            return;
        }
        let (its, last) = self
            .last
            .entry((stream, topic.to_owned()))
            .or_insert_with(|| (partition.to_owned(), number));
        if its != partition {
            verdict.note(&Count::Conflict, &format!("{place}: its stream was in {its}"));
        }
        if number < *last {
            verdict.note(&Count::Disorder, &format!("{place}: number {number} after {last}"));
        }
        *last = number;
    }
}

impl Verdict {
    fn note(&mut self, count: &Count, example: &str) {
        /// Examples of each kind; the rest is only counted. Repeats, which one delivery mode permits,
        /// must not displace examples of what it forbids.
        const EXAMPLES: u64 = 10;
        let (counter, name) = match count {
            Count::Lost => (&mut self.lost, "lost"),
            Count::Duplicate => (&mut self.duplicates, "duplicate"),
            Count::Disorder => (&mut self.disorder, "disorder"),
            Count::Conflict => (&mut self.conflicts, "conflict"),
            Count::Unknown => (&mut self.unknown, "unknown"),
        };
        *counter += 1;
        if *counter <= EXAMPLES {
            self.examples.push(format!("{name}: {example}"));
        }
    }

    /// # Panics
    /// When anything is lost, duplicated, out of order or inconsistent.
    pub fn assert_clean(&self) {
        self.assert_once();
        assert_eq!(self.disorder, 0, "{self}");
    }

    /// As [`Self::assert_clean`] without order: a stream is ordered within one bridge only.
    ///
    /// # Panics
    /// When anything is lost, duplicated or inconsistent.
    pub fn assert_once(&self) {
        let wrong = [self.lost, self.duplicates, self.conflicts, self.unknown];
        assert_eq!(wrong, [0; 4], "{self}");
        assert_eq!(self.landed, self.acknowledged, "{self}");
    }

    /// As [`Self::assert_clean`], with repeats: each has its first copy's `ce_id`, topic, key, body
    /// and partition. Order is that of the first copies.
    ///
    /// # Panics
    /// When anything is lost, out of order or confused.
    pub fn assert_at_least_once(&self) {
        let wrong = [self.lost, self.disorder, self.conflicts, self.unknown];
        assert_eq!(wrong, [0; 4], "{self}");
        assert_eq!(self.landed, self.acknowledged + self.duplicates, "{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acknowledged {}, sent again {} unanswered and {} on purpose, landed {} ({} dead): \
             lost {}, duplicates {}, order violations {}, conflicts {}, unknown {}",
            self.acknowledged,
            self.retries,
            self.resent,
            self.landed,
            self.lengths[1].len(),
            self.lost,
            self.duplicates,
            self.disorder,
            self.conflicts,
            self.unknown
        )?;
        self.examples.iter().try_for_each(|example| write!(f, "\n  {example}"))
    }
}
