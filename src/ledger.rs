//! Which events are published: progress through this log, and the window of known ids.
//!
//! Each transaction writes its events and one [`Commit`] to the ledger topic. Reading that topic
//! back therefore tells, without doubt, how far this log was published (I4) and which ids any
//! instance has published (I5). Of that, only the progress has a copy on local disk (wal/progress.rs):
//! nothing can be published while Kafka is away, so nobody asks for the ids then.

use std::time::{Duration, Instant};

use crate::metrics;
use crate::record::{EventId, Lsn, Timestamp};
use crate::wal::LogId;

mod window;

use window::Window;

/// How long and how many ids are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A retry is recognised if it was received within this time of its original.
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
        oldest.before(self.window.config().window)
    }

    /// Applies a commit of this log or of another; `now` is the monotonic clock's time.
    pub fn apply(&mut self, commit: &Commit, now: Instant) {
        if commit.log == self.log {
            if commit.last <= self.progress {
                return;
            }
            self.progress = commit.last;
        }
        for id in &commit.ids {
            self.window.insert(*id, commit.newest, now);
        }
        metrics::dedup_ids(self.window.len());
    }

    /// What is known of `id`.
    #[must_use]
    pub fn known(&self, id: EventId) -> Known {
        self.window.known(id)
    }

    /// Drops ids that no record to come can be a retry of: `oldest` is when the oldest record to
    /// publish was received, `now` the monotonic clock's time (see [`window`]).
    pub fn expire(&mut self, oldest: Timestamp, now: Instant) {
        self.window.expire(self.horizon(oldest), now);
    }
}

#[cfg(test)]
mod tests;
