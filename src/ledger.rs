//! Which events are published: progress through this log, and the window of known ids.
//!
//! Each transaction writes its events and one [`Commit`] to the ledger topic. That topic
//! therefore contains, without doubt, how far this log was published (I4) and which ids any
//! instance has published (I5). Only the progress has a copy on local disk (wal/checkpoint.rs):
//! nothing can be published while Kafka is away, so the ids are not needed then.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::event::{EventId, Timestamp};
use crate::metrics;
use crate::record::Lsn;
use crate::wal::{OpeningId, Progress};

mod start;
mod window;

pub use start::first_offset;
use window::DedupWindow;

/// How long and how many ids are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A retry is recognised if it was received within this time of its original.
    pub window: Duration,
    /// More ids than this are not kept, whatever the window is.
    pub max_ids: usize,
}

/// What one transaction published: a record of the ledger topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The opening that published it.
    pub publisher: OpeningId,
    /// The opening that wrote the records to the log: the publisher or one before it.
    pub writer: OpeningId,
    /// The first record of the batch. Only for people who read the topic.
    pub first: Lsn,
    /// The last record of the batch: everything up to it that `writer` wrote is published.
    pub last: Lsn,
    /// When the newest of them was received.
    pub newest: Timestamp,
    /// The events published.
    pub ids: Vec<EventId>,
}

/// Bytes that are not a ledger record in a format that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a ledger record that this version can read")]
pub struct InvalidCommit;

/// First byte of an encoded commit.
const VERSION: u8 = 2;
/// First byte of a commit that names its log in place of publisher and writer.
const VERSION_OF_LOG: u8 = 1;
/// first, last, newest.
const NUMBERS_BYTES: usize = 3 * 8;
const ID_BYTES: usize = 16;

impl Commit {
    /// The record's value in Kafka: version, publisher, writer, the numbers in big-endian, the ids.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let header = 1 + 2 * ID_BYTES + NUMBERS_BYTES;
        let mut out = Vec::with_capacity(header + self.ids.len() * ID_BYTES);
        out.push(VERSION);
        out.extend_from_slice(self.publisher.as_bytes());
        out.extend_from_slice(self.writer.as_bytes());
        out.extend_from_slice(&self.first.as_u64().to_be_bytes());
        out.extend_from_slice(&self.last.as_u64().to_be_bytes());
        out.extend_from_slice(&self.newest.as_millis().to_be_bytes());
        for id in &self.ids {
            out.extend_from_slice(&id.to_bytes());
        }
        out
    }

    /// Whether `publisher` wrote the encoded commit in `bytes`, without decoding it.
    #[must_use]
    pub fn is_published_by(bytes: &[u8], publisher: OpeningId) -> bool {
        bytes.split_first().is_some_and(|(version, rest)| {
            *version == VERSION && rest.starts_with(publisher.as_bytes())
        })
    }

    /// The commit that [`Commit::encode`] wrote, or an earlier version in format 1.
    ///
    /// The log that version 1 names stands for publisher and writer: it is in no lineage, so only
    /// the ids count.
    ///
    /// # Errors
    /// [`InvalidCommit`]
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidCommit> {
        let (&version, rest) = bytes.split_first().ok_or(InvalidCommit)?;
        let (&publisher, rest) = rest.split_first_chunk().ok_or(InvalidCommit)?;
        let (writer, rest) = match version {
            VERSION => rest.split_first_chunk().map(|(&writer, rest)| (writer, rest)),
            VERSION_OF_LOG => Some((publisher, rest)),
            _ => None,
        }
        .ok_or(InvalidCommit)?;
        let (numbers, ids) = rest.split_first_chunk::<NUMBERS_BYTES>().ok_or(InvalidCommit)?;
        let (ids, rest) = ids.as_chunks::<ID_BYTES>();
        if !rest.is_empty() {
            return Err(InvalidCommit);
        }
        let number = |index: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&numbers[index * 8..][..8]);
            u64::from_be_bytes(number)
        };
        Ok(Self {
            publisher: OpeningId::from_bytes(publisher),
            writer: OpeningId::from_bytes(writer),
            first: Lsn::from_u64(number(0)),
            last: Lsn::from_u64(number(1)),
            newest: Timestamp::from_millis(number(2).cast_signed()),
            ids: ids.iter().map(|id| EventId::from_bytes(*id)).collect(),
        })
    }
}

/// What the ledger knows of an id.
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
    /// The openings whose commits count as progress.
    lineage: HashSet<OpeningId>,
    progress: Progress,
    /// This process's opening.
    own: OpeningId,
    /// The last record of its commits that are applied.
    own_last: Lsn,
    /// Events in the applied commits of this process.
    own_events: u64,
    window: DedupWindow,
}

impl Ledger {
    /// An empty ledger for the publisher of a log with this `lineage`, whose last opening is its own.
    #[must_use]
    pub fn new(lineage: &[OpeningId], config: Config) -> Self {
        let own = lineage.last().copied().unwrap_or_default();
        Self {
            lineage: lineage.iter().copied().collect(),
            progress: Progress::default(),
            own,
            own_last: Lsn::ZERO,
            own_events: 0,
            window: DedupWindow::new(config),
        }
    }

    /// How far the records of this log are published.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How many events this process has published.
    #[must_use]
    pub fn own_events(&self) -> u64 {
        self.own_events
    }

    /// How long an id is remembered.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window.config().window
    }

    /// Applies a commit of any instance; `now` is the monotonic clock's time.
    ///
    /// It counts as progress only if an opening of this log's lineage published it. An opening
    /// that is not in it had another directory: a copy of this one, or one that this was copied
    /// from, which may lack what is here.
    pub fn apply(&mut self, commit: &Commit, now: Instant) {
        if commit.publisher == self.own {
            // Applied when it was committed, and read from the topic once more.
            if commit.last <= self.own_last {
                return;
            }
            self.own_last = commit.last;
            self.own_events += commit.ids.len() as u64;
        }
        if self.lineage.contains(&commit.publisher) {
            self.progress.advance(commit.writer, commit.last);
        }
        for id in &commit.ids {
            if self.window.insert(*id, commit.newest, now) {
                metrics::dedup_window_truncated();
            }
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
        self.window.expire(oldest.before(self.window()), now);
    }
}

#[cfg(test)]
mod tests;
