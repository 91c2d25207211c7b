//! Which events are published: progress through this log, and the window of known ids.
//!
//! Each transaction writes its events and one [`Commit`] to the ledger topic. Reading that topic
//! back therefore tells, without doubt, how far this log was published (I4) and which ids any
//! instance has published (I5). Of that, only the progress has a copy on local disk (wal/progress.rs):
//! nothing can be published while Kafka is away, so nobody asks for the ids then.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use crate::metrics;
use crate::record::{EventId, Lsn, Timestamp};
use crate::wal::LogId;

/// How long and how many ids are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A retry is known for what it is if it was received within this time of its original.
    pub window: Duration,
    /// More ids than this are not kept, whatever the window says.
    pub max_ids: usize,
}

/// What one transaction published: a record of the ledger topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The log that the records came from.
    pub log: LogId,
    /// The first record that the transaction dealt with.
    pub first: Lsn,
    /// The last one: everything up to it is done with.
    pub last: Lsn,
    /// When the newest of them was received.
    pub newest: Timestamp,
    /// The events published.
    pub ids: Vec<EventId>,
}

/// Bytes that are not a ledger record of a version this release reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a ledger record that this release can read")]
pub struct DecodeError;

/// First byte of an encoded commit.
const VERSION: u8 = 1;
/// version, log, first, last, newest.
const HEADER_BYTES: usize = 1 + 16 + 8 + 8 + 8;
const ID_BYTES: usize = 16;

impl Commit {
    /// The record's value in Kafka: a fixed header in big-endian, then the ids.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.ids.len() * ID_BYTES);
        out.push(VERSION);
        out.extend_from_slice(self.log.as_bytes());
        out.extend_from_slice(&self.first.as_u64().to_be_bytes());
        out.extend_from_slice(&self.last.as_u64().to_be_bytes());
        out.extend_from_slice(&self.newest.as_millis().to_be_bytes());
        for id in &self.ids {
            out.extend_from_slice(&id.to_bytes());
        }
        out
    }

    /// The commit that [`Commit::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, ids) = bytes.split_at_checked(HEADER_BYTES).ok_or(DecodeError)?;
        let (ids, rest) = ids.as_chunks::<ID_BYTES>();
        if header[0] != VERSION || !rest.is_empty() {
            return Err(DecodeError);
        }
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&header[at..at + 8]);
            u64::from_be_bytes(number)
        };
        let mut log = [0; 16];
        log.copy_from_slice(&header[1..17]);
        Ok(Self {
            log: LogId::from_bytes(log),
            first: Lsn::from_u64(number(17)),
            last: Lsn::from_u64(number(25)),
            newest: Timestamp::from_millis(number(33).cast_signed()),
            ids: ids.iter().map(|id| EventId::from_bytes(*id)).collect(),
        })
    }
}

/// What the ledger says of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: publish it.
    New,
    /// It is published: a retry.
    Retry,
    /// An event with the same natural key but other content is published: not provably a retry,
    /// so publish it. A repeat is cheaper than a loss.
    Conflict,
}

/// The state that the ledger's records add up to.
#[derive(Debug)]
pub struct Ledger {
    log: LogId,
    progress: Lsn,
    window: Window,
}

impl Ledger {
    /// An empty ledger for the publisher of `log`.
    #[must_use]
    pub fn new(log: LogId, config: Config) -> Self {
        Self { log, progress: Lsn::ZERO, window: Window::new(config) }
    }

    /// The last record of this log that is done with.
    #[must_use]
    pub fn progress(&self) -> Lsn {
        self.progress
    }

    /// How far back ids matter when the oldest record to publish was received at `oldest`.
    #[must_use]
    pub fn horizon(&self, oldest: Timestamp) -> Timestamp {
        oldest.before(self.window.config.window)
    }

    /// Takes in a commit, be it this log's or another's.
    pub fn apply(&mut self, commit: &Commit) {
        if commit.log == self.log {
            if commit.last <= self.progress {
                return;
            }
            self.progress = commit.last;
        }
        for id in &commit.ids {
            self.window.insert(*id, commit.newest);
        }
        metrics::dedup_ids(self.window.len());
    }

    /// What is known of `id`.
    #[must_use]
    pub fn known(&self, id: EventId) -> Known {
        self.window.known(id)
    }

    /// Forgets ids that no record to come can be a retry of.
    ///
    /// The clock is the records' time of receipt: a retry that waited in the log through an outage
    /// longer than the window still meets its original.
    pub fn expire(&mut self, oldest: Timestamp) {
        let horizon = self.horizon(oldest);
        self.window.expire(horizon);
    }
}

/// Ids in generations, which are dropped whole.
#[derive(Debug)]
struct Window {
    config: Config,
    generations: VecDeque<Generation>,
    len: usize,
}

/// The window is this many generations, and up to one more while the oldest runs out.
const GENERATIONS: u32 = 8;

/// Ids that were published about the same time.
#[derive(Debug)]
struct Generation {
    started: Timestamp,
    newest: Timestamp,
    /// Natural key to content.
    ids: HashMap<u64, u64, BuildHasherDefault<AlreadyHashed>>,
    /// Further contents under a natural key that is in `ids`.
    conflicts: HashSet<EventId>,
}

impl Window {
    fn new(config: Config) -> Self {
        Self { config, generations: VecDeque::new(), len: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn known(&self, id: EventId) -> Known {
        let mut known = Known::New;
        for generation in self.generations.iter().rev() {
            match generation.ids.get(&id.natural) {
                Some(content) if *content == id.content => return Known::Retry,
                Some(_) if generation.conflicts.contains(&id) => return Known::Retry,
                Some(_) => known = Known::Conflict,
                None => {}
            }
        }
        known
    }

    fn insert(&mut self, id: EventId, received: Timestamp) {
        let ids_max = (self.config.max_ids / GENERATIONS as usize).max(1);
        let span = self.config.window / GENERATIONS;
        let full = self.generations.back().is_none_or(|generation| {
            generation.len() >= ids_max || received.since(generation.started) > span
        });
        if full {
            // The next generation will be about as large as the last: spare it the growing.
            let expected = self.generations.back().map_or(0, Generation::len).min(ids_max);
            self.generations.push_back(Generation::new(received, expected));
        }
        while self.len >= self.config.max_ids && self.generations.len() > 1 {
            self.drop_oldest();
            metrics::dedup_squeezed();
        }
        if let Some(generation) = self.generations.back_mut() {
            let before = generation.len();
            generation.insert(id, received);
            self.len += generation.len() - before;
        }
    }

    fn expire(&mut self, horizon: Timestamp) {
        while self.generations.front().is_some_and(|oldest| oldest.newest < horizon) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.generations.pop_front() {
            self.len -= oldest.len();
        }
    }
}

impl Generation {
    fn new(started: Timestamp, expected: usize) -> Self {
        Self {
            started,
            newest: started,
            ids: HashMap::with_capacity_and_hasher(expected, BuildHasherDefault::default()),
            conflicts: HashSet::new(),
        }
    }

    fn len(&self) -> usize {
        self.ids.len() + self.conflicts.len()
    }

    fn insert(&mut self, id: EventId, received: Timestamp) {
        self.newest = self.newest.max(received);
        let content = *self.ids.entry(id.natural).or_insert(id.content);
        if content != id.content {
            self.conflicts.insert(id);
        }
    }
}

/// Natural keys are digests: hashing them again would spread them no better.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
