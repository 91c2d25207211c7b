//! The mock cluster with a consumer that records its contents, also at every removal of a
//! segment.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::kafka::mock::MockKafka;
use livebridge::ledger::Commit;
use livebridge::record::Lsn;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::load::Callback;
use crate::support::kafka::{TIME_LIMIT, topics};

const PARTITIONS: i32 = 6;
const LEDGER: &str = "live.ledger";

/// The records found in Kafka.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Callbacks in the order in which they were found.
    positions: HashMap<Callback, usize>,
    /// The `ce_id`s that were found.
    ids: HashSet<String>,
    /// Ledger records whose events have not all been found yet.
    commits: Vec<Commit>,
    /// The end of the last commit whose events have all been found.
    progress: Lsn,
    snapshots: Vec<RemovalSnapshot>,
}

/// The contents just before a segment was removed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RemovalSnapshot {
    /// The removal's offset in the trace.
    place: usize,
    /// The number of callbacks in Kafka.
    callbacks: usize,
    /// The published position in the ledger.
    pub(crate) progress: Lsn,
}

impl Seen {
    fn new() -> Self {
        Self {
            positions: HashMap::new(),
            ids: HashSet::new(),
            commits: Vec::new(),
            progress: Lsn::ZERO,
            snapshots: Vec::new(),
        }
    }

    /// The last state before `place` at which a segment was about to be removed.
    pub(crate) fn snapshot_before(&self, place: usize) -> Option<RemovalSnapshot> {
        self.snapshots.iter().rev().find(|snapshot| snapshot.place < place).copied()
    }

    /// Counts commits whose events have been found by now.
    fn settle(&mut self) {
        let Self { commits, ids, progress, .. } = self;
        commits.retain(|commit| {
            let complete = commit.ids.iter().all(|id| ids.contains(&id.to_string()));
            if complete {
                *progress = commit.last.max(*progress);
            }
            !complete
        });
    }

    /// Whether `callback` was in Kafka then.
    pub(crate) fn had(&self, snapshot: RemovalSnapshot, callback: Callback) -> bool {
        self.positions.get(&callback).is_some_and(|position| *position < snapshot.callbacks)
    }

    pub(crate) fn has(&self, callback: Callback) -> bool {
        self.positions.contains_key(&callback)
    }

    /// Callbacks found so far.
    pub(crate) fn count(&self) -> usize {
        self.positions.len()
    }
}

/// A mock cluster for this test.
pub(crate) struct Kafka {
    brokers: String,
    pub(crate) snapshot: u16,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

impl Kafka {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a socket option");
        let snapshot = listener.local_addr().expect("a bound socket").port();
        let seen = Arc::new(Mutex::new(Seen::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (started, brokers) = mpsc::channel();
        // Closing takes seconds, and no test waits for it.
        thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                let topics = topics("live");
                let mock =
                    MockKafka::start(&topics.all(), PARTITIONS, LEDGER).expect("a mock cluster");
                let brokers = mock.brokers();
                let watcher = Watcher::new(&brokers, seen);
                started.send(brokers).expect("the receiver exists");
                watcher.run(&listener, &stop);
            }
        });
        let brokers = brokers.recv().expect("the mock cluster starts");
        Self { brokers, snapshot, seen, stop }
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done`; returns whether it became true.
    pub(crate) fn comes_to(&self, done: impl Fn(&Seen) -> bool) -> bool {
        let started = Instant::now();
        while !done(&self.seen()) {
            if started.elapsed() > TIME_LIMIT {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Reads all records, and answers the shim when it asks whether a segment may be removed.
struct Watcher {
    consumer: BaseConsumer,
    seen: Arc<Mutex<Seen>>,
    next: HashMap<(String, i32), i64>,
}

impl Watcher {
    fn new(brokers: &str, seen: Arc<Mutex<Seen>>) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "power")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "10")
            .create()
            .expect("a consumer");
        let mut partitions: Vec<_> = Callback::TYPES
            .iter()
            .flat_map(|name| (0..PARTITIONS).map(move |number| (format!("live.{name}"), number)))
            .collect();
        partitions.push((LEDGER.to_owned(), 0));
        let mut assignment = TopicPartitionList::new();
        for (topic, number) in &partitions {
            assignment
                .add_partition_offset(topic, *number, Offset::Beginning)
                .expect("an offset to start at");
        }
        consumer.assign(&assignment).expect("an assignment");
        let next = partitions.into_iter().map(|partition| (partition, 0)).collect();
        Self { consumer, seen, next }
    }

    fn run(mut self, listener: &TcpListener, stop: &AtomicBool) {
        let mut askers: Vec<TcpStream> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            self.poll(Duration::from_millis(5));
            if let Ok((asker, _)) = listener.accept() {
                asker.set_nonblocking(true).expect("a socket option");
                askers.push(asker);
            }
            askers.retain_mut(|asker| self.answer(asker));
        }
    }

    /// Whether the asking process still exists.
    fn answer(&mut self, asker: &mut TcpStream) -> bool {
        let mut place = [0; 8];
        match asker.read(&mut place) {
            Ok(8) => {
                self.catch_up();
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.settle();
                let snapshot = RemovalSnapshot {
                    place: usize::try_from(u64::from_le_bytes(place)).expect("an offset"),
                    callbacks: seen.positions.len(),
                    progress: seen.progress,
                };
                seen.snapshots.push(snapshot);
                asker.write_all(b"y").is_ok()
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Ok(_) | Err(_) => false,
        }
    }

    /// Reads all records that are in Kafka now.
    fn catch_up(&mut self) {
        let partitions: Vec<(String, i32)> = self.next.keys().cloned().collect();
        let started = Instant::now();
        for (topic, number) in partitions {
            let (_, end) = self
                .consumer
                .fetch_watermarks(&topic, number, TIME_LIMIT)
                .expect("the mock cluster answers");
            let partition = (topic, number);
            while self.next[&partition] < end {
                assert!(started.elapsed() < TIME_LIMIT, "{partition:?} cannot be read to {end}");
                self.poll(Duration::from_millis(5));
            }
        }
    }

    fn poll(&mut self, wait: Duration) {
        let Some(message) = self.consumer.poll(wait) else { return };
        // librdkafka reconnects automatically.
        let Ok(message) = message else { return };
        let partition = (message.topic().to_owned(), message.partition());
        let expected = self.next.insert(partition, message.offset() + 1);
        assert_eq!(
            expected,
            Some(message.offset()),
            "the mock cluster keeps 5 MB per partition and has dropped records before they were \
             read"
        );
        note(&message, &mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn note(message: &BorrowedMessage<'_>, seen: &mut Seen) {
    let value = message.payload().expect("every record has a value");
    if message.topic() == LEDGER {
        let commit = Commit::decode(value).expect("a ledger record");
        seen.commits.push(commit);
        return;
    }
    let headers = message.headers().expect("every event has headers");
    let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
    let id = str::from_utf8(id.expect("every event has an id")).expect("ids are text");
    seen.ids.insert(id.to_owned());
    let body = str::from_utf8(value).expect("bodies are text");
    let callback = Callback::of(body).expect("a body that was sent, byte for byte");
    let position = seen.positions.len();
    seen.positions.entry(callback).or_insert(position);
}
