//! How long the writer waits for further records before it commits those that are queued, as with
//! `commit_delay` of `PostgreSQL`.
//!
//! A commit costs a write and a flush of the disk and some 200 µs of processor time, however many
//! records it has. Volumes sell such operations, so records that arrive soon after each other should
//! share them. A sender that waits for each answer before it sends again must not be made to wait
//! for others that do not exist, though: waiting brings nothing while every sender that is active is
//! waiting already.

use std::time::{Duration, Instant};

/// What a commit costs, in time that records wait. Commits at intervals of `t` seconds, with `r`
/// records a second, make records wait `r * t / 2` in each second and cost `COMMIT_COST / t`; the
/// sum is smallest at `t = sqrt(2 * COMMIT_COST / r)`.
const COMMIT_COST: f64 = 0.003;
/// The shortest interval between the starts of two commits, when records are waited for: 800 commits a
/// second, which a usual cloud volume sustains.
const INTERVAL_MIN: Duration = Duration::from_micros(1250);
/// The longest one: half of it is what the median answer waits.
const INTERVAL_MAX: Duration = Duration::from_micros(2400);
/// An idle time counts as this long in the rate, so that the rate follows a burst soon.
const IDLE_MAX: Duration = Duration::from_millis(20);
/// What a group weighs in the rate when the next one is added.
const DECAY: f64 = 7.0 / 8.0;
/// Groups whose outstanding records tell how many senders are active.
const REMEMBERED: usize = 16;
/// Waits in a row that may bring no record before some are left out.
const FRUITLESS_WAITS_MAX: u32 = 3;
/// At most 2 to this power of groups are committed without a wait, until one is tried again.
const SKIPS_LOG_MAX: u32 = 6;

/// A wait before a commit: until this many records are queued, or until this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) count: usize,
    pub(super) until: Instant,
}

/// Decides from the groups so far.
#[derive(Debug)]
pub(super) struct CommitDelay {
    /// When the last commit started.
    started: Instant,
    /// Records of recent groups and the seconds in which they came, the older the less.
    records: f64,
    seconds: f64,
    /// The last group's size.
    size: usize,
    /// Records that waited for an answer at once, in each of the last groups.
    outstanding: [usize; REMEMBERED],
    groups: usize,
    /// Waits in a row that brought nothing.
    fruitless_waits: u32,
    /// Groups to commit without a wait.
    skips: u32,
}

impl CommitDelay {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            records: 0.0,
            seconds: 0.0,
            size: 0,
            outstanding: [0; REMEMBERED],
            groups: 0,
            fruitless_waits: 0,
            skips: 0,
        }
    }

    /// Whether to wait before committing the `queued` records.
    pub(super) fn next_wait(&mut self, now: Instant, queued: usize) -> Option<Wait> {
        // A lone sender has one record outstanding at any time.
        let count = self.outstanding.into_iter().max().unwrap_or(0);
        let until = self.started + interval(self.records / self.seconds)?;
        if queued >= count || now >= until {
            return None;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return None;
        }
        Some(Wait { count, until })
    }

    /// Adapts the number of fruitless waits to a wait in which `brought` records arrived.
    pub(super) fn record_wait(&mut self, brought: usize) {
        self.fruitless_waits =
            if brought == 0 { self.fruitless_waits + 1 } else { self.fruitless_waits / 2 };
        self.fruitless_waits = self.fruitless_waits.min(FRUITLESS_WAITS_MAX + SKIPS_LOG_MAX);
        if let Some(power) = self.fruitless_waits.checked_sub(FRUITLESS_WAITS_MAX) {
            self.skips = 1 << power;
        }
    }

    /// A commit of `size` records starts.
    pub(super) fn record_start(&mut self, now: Instant, size: usize) {
        let passed = now.saturating_duration_since(self.started).min(IDLE_MAX);
        self.seconds = self.seconds * DECAY + passed.as_secs_f64();
        self.records = self.records * DECAY + f64::from(u32::try_from(size).unwrap_or(u32::MAX));
        self.started = now;
        self.size = size;
    }

    /// The commit is done, and `queued` records came meanwhile.
    pub(super) fn record_end(&mut self, queued: usize) {
        self.outstanding[self.groups % REMEMBERED] = self.size + queued;
        self.groups = self.groups.wrapping_add(1);
    }
}

/// The interval between the starts of commits at which `rate` records a second cost least; `None`
/// when they come too rarely to share commits.
fn interval(rate: f64) -> Option<Duration> {
    if rate.is_nan() || rate * INTERVAL_MAX.as_secs_f64() < 1.0 {
        return None;
    }
    let best = (2.0 * COMMIT_COST / rate).sqrt();
    let best = Duration::try_from_secs_f64(best).unwrap_or(INTERVAL_MAX);
    Some(best.clamp(INTERVAL_MIN, INTERVAL_MAX))
}

#[cfg(test)]
mod tests;
