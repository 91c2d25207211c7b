//! The dedup window: the ids of published events, in generations that are dropped whole.
//!
//! Two clocks decide when an id expires, and both must agree. The records' times of receipt: a
//! retry that waited in the log through a long outage is still recognised. A monotonic clock:
//! a system clock that is set forward ages nothing, and set back it only delays expiry. Callers
//! pass both times in, so that tests and models choose them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use super::{Config, Known};
use crate::event::{EventId, Timestamp};

/// The window is this many generations, and up to one more while the oldest expires.
pub(super) const GENERATIONS: u32 = 8;

#[derive(Debug)]
pub(super) struct DedupWindow {
    config: Config,
    generations: VecDeque<Generation>,
    len: usize,
    /// The latest horizon that [`DedupWindow::expire`] was given.
    horizon: Timestamp,
}

/// Ids that were published about the same time.
#[derive(Debug)]
struct Generation {
    /// When the record of the first id was received.
    first_received: Timestamp,
    /// When the first id was learned.
    first_learned: Instant,
    /// When the newest of the records was received.
    newest: Timestamp,
    /// When the last of the ids was learned.
    learned: Instant,
    /// Natural key to content.
    ids: HashMap<u64, u64, BuildHasherDefault<AlreadyHashed>>,
    /// Further contents under a natural key that is in `ids`.
    conflicts: HashSet<EventId>,
}

impl DedupWindow {
    pub(super) fn new(config: Config) -> Self {
        let horizon = Timestamp::from_millis(i64::MIN);
        Self { config, generations: VecDeque::new(), len: 0, horizon }
    }

    pub(super) fn config(&self) -> Config {
        self.config
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn known(&self, id: EventId) -> Known {
        let mut known = Known::New;
        for generation in self.generations.iter().rev() {
            match generation.ids.get(&id.natural) {
                Some(_) if generation.contains(id) => return Known::Retry,
                Some(_) => known = Known::Conflict,
                None => {}
            }
        }
        known
    }

    /// Adds the id of a record received at `received`; `now` is the monotonic clock's time. Returns
    /// whether ids that have not expired were dropped for it.
    ///
    /// An id in a generation that is as new is not added again: the ledger is read once more after an
    /// outage, and copies would take the place of other ids.
    pub(super) fn insert(&mut self, id: EventId, received: Timestamp, now: Instant) -> bool {
        let mut as_new = self.generations.iter_mut().rev().filter(|kept| kept.newest >= received);
        if let Some(generation) = as_new.find(|generation| generation.contains(id)) {
            generation.learned = generation.learned.max(now);
            return false;
        }
        let ids_max = (self.config.max_ids / GENERATIONS as usize).max(1);
        let span = self.config.window / GENERATIONS;
        let full = self.generations.back().is_none_or(|generation| {
            generation.len() >= ids_max
                || received.since(generation.first_received) > span
                || now.saturating_duration_since(generation.first_learned) > span
        });
        if full {
            // The next generation will be about as large as the last: allocate for it at once.
            let expected = self.generations.back().map_or(0, Generation::len).min(ids_max);
            self.generations.push_back(Generation::new(received, now, expected));
        }
        let mut truncated = false;
        while self.len >= self.config.max_ids && self.generations.len() > 1 {
            truncated |= self.drop_oldest().is_some_and(|newest| newest >= self.horizon);
        }
        if let Some(generation) = self.generations.back_mut() {
            let before = generation.len();
            generation.insert(id, received, now);
            self.len += generation.len() - before;
        }
        truncated
    }

    /// Drops the generations whose records were all received before `horizon` and whose ids were
    /// all learned at least a window before `now`.
    pub(super) fn expire(&mut self, horizon: Timestamp, now: Instant) {
        self.horizon = horizon;
        while self.generations.front().is_some_and(|oldest| {
            let age = now.saturating_duration_since(oldest.learned);
            oldest.newest < horizon && age >= self.config.window
        }) {
            self.drop_oldest();
        }
    }

    /// Drops a generation. Returns when the newest of its records was received.
    fn drop_oldest(&mut self) -> Option<Timestamp> {
        let oldest = self.generations.pop_front()?;
        self.len -= oldest.len();
        Some(oldest.newest)
    }
}

impl Generation {
    fn new(received: Timestamp, now: Instant, expected: usize) -> Self {
        Self {
            first_received: received,
            first_learned: now,
            newest: received,
            learned: now,
            ids: HashMap::with_capacity_and_hasher(expected, BuildHasherDefault::default()),
            conflicts: HashSet::new(),
        }
    }

    fn len(&self) -> usize {
        self.ids.len() + self.conflicts.len()
    }

    fn contains(&self, id: EventId) -> bool {
        self.ids.get(&id.natural) == Some(&id.content) || self.conflicts.contains(&id)
    }

    fn insert(&mut self, id: EventId, received: Timestamp, now: Instant) {
        self.newest = self.newest.max(received);
        self.learned = self.learned.max(now);
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
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ids_received_at_once_fill_no_more_generations_than_the_window_has() {
        const MAX: u64 = 4001;
        let config = Config { window: Duration::from_hours(1), max_ids: 4001 };
        let (mut window, now) = (DedupWindow::new(config), Instant::now());
        for number in 0..MAX {
            let id = EventId { natural: number, content: number };
            window.insert(id, Timestamp::from_millis(0), now);
        }
        assert_eq!(window.known(EventId { natural: 0, content: 0 }), Known::Retry);
        assert_eq!(window.len(), 4001, "as many ids as are allowed");
        assert!(window.generations.len() <= GENERATIONS as usize + 1);
    }
}
