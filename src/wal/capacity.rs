//! Whether the log may grow: its limits, the space on its disk, and whether segments can be created.
//!
//! Maintenance compares the log with its limits and creates segments; the writer finds out whether
//! there is space for a group. Every transition is logged here.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NotStored;
use super::segment::Segment;
use super::{AppendError, Limits, Stored};
use crate::permission::FileError;
use crate::reloadable::Reloadable;

/// A group is rejected when there is no segment, or no space in it, within this time; after that,
/// groups are rejected at once until there is.
const SPACE_WAIT: Duration = Duration::from_secs(1);
/// The pause between attempts to reserve space.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);
/// For how long the log counts as full after a group found no space: only the next group finds out
/// that there is some.
const FULL_FOR: Duration = Duration::from_secs(1);

/// The log's limits, and what keeps it from growing.
#[derive(Debug)]
pub(super) struct Capacity {
    pub(super) limits: Reloadable<Limits>,
    obstacles: Mutex<Obstacles>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Obstacles {
    /// The limit that the last check found exceeded.
    exceeded: Option<AppendError>,
    /// No segment can be created. The one being written may still have space.
    spare_missing: bool,
    /// When a group last found no space; `None` since one found some.
    full: Option<Instant>,
}

impl Capacity {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits: Reloadable::new(limits), obstacles: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Obstacles> {
        // Every update leaves the obstacles whole, so a panic elsewhere does not spoil them.
        self.obstacles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an append would be accepted now. `has_segment`: a segment can be written to.
    pub(super) fn ready(&self, has_segment: bool) -> Result<(), AppendError> {
        let Obstacles { exceeded, spare_missing, full } = *self.lock();
        let is_full = full.is_some_and(|since| since.elapsed() < FULL_FOR);
        match exceeded {
            Some(reason) => Err(reason),
            None if is_full || (spare_missing && !has_segment) => Err(AppendError::DiskFull),
            None => Ok(()),
        }
    }

    /// Bytes that the log may take beside those that are `stored`.
    pub(super) fn room_bytes(&self, stored: &Stored, free_bytes: Option<u64>) -> u64 {
        let Limits { max_bytes, min_free_bytes } = **self.limits.get();
        let free_bytes = free_bytes.unwrap_or(u64::MAX);
        let below_max = max_bytes.saturating_sub(stored.disk_bytes);
        below_max.min(free_bytes.saturating_sub(min_free_bytes))
    }

    /// Compares the log and its disk with the limits. Appends are rejected until the next check when
    /// one is exceeded.
    pub(super) fn check_limits(&self, stored: &Stored, free_bytes: Option<u64>) {
        let Limits { max_bytes, min_free_bytes } = **self.limits.get();
        let exceeded = if free_bytes.is_some_and(|bytes| bytes < min_free_bytes) {
            Some(AppendError::DiskFull)
        } else if stored.records > 0 && stored.disk_bytes >= max_bytes {
            // Without records it is never full: the segment being written, which may alone be over
            // the limit, is only removed after its successor has been needed.
            Some(AppendError::LogFull)
        } else {
            None
        };
        if mem::replace(&mut self.lock().exceeded, exceeded) == exceeded {
            return;
        }
        match exceeded {
            None => tracing::info!("the log accepts callbacks again"),
            Some(reason) => tracing::error!(
                %reason,
                stored_bytes = stored.disk_bytes,
                free_bytes,
                "callbacks are rejected with 503 until there is space; \
                 what is stored is still published"
            ),
        }
    }

    /// The next segment was created.
    pub(super) fn record_spare(&self) {
        if mem::take(&mut self.lock().spare_missing) {
            tracing::info!("segments can be created again");
        }
    }

    /// The next segment could not be created.
    pub(super) fn record_no_spare(&self, error: &FileError) {
        if !mem::replace(&mut self.lock().spare_missing, true) {
            tracing::error!(%error, "cannot create a segment; trying again until it works");
        }
    }

    /// How long the writer waits for a segment when it can write to none.
    pub(super) fn segment_wait(&self) -> Duration {
        if self.lock().full.is_some() { Duration::ZERO } else { SPACE_WAIT }
    }

    /// The writer has no segment to write to. Returns the answer to its group.
    pub(super) fn reject_without_segment(&self) -> NotStored {
        self.record_space(false);
        NotStored::Rejected(AppendError::DiskFull)
    }

    /// Reserves space in `segment` for a group of `bytes`, so that it does not fail for lack of it.
    /// Waits for space unless the last group found none.
    pub(super) fn reserve(&self, segment: &mut Segment, bytes: u64) -> Result<(), NotStored> {
        let Obstacles { exceeded, full, .. } = *self.lock();
        if let Some(reason) = exceeded {
            return Err(NotStored::Rejected(reason));
        }
        if full.is_some_and(|since| since.elapsed() < ATTEMPT_PAUSE) {
            return Err(NotStored::Rejected(AppendError::DiskFull));
        }
        let mut reserved = segment.reserve(bytes)?;
        if !reserved && full.is_none() {
            let deadline = Instant::now() + SPACE_WAIT;
            while !reserved && Instant::now() < deadline {
                thread::sleep(ATTEMPT_PAUSE);
                reserved = segment.reserve(bytes)?;
            }
        }
        if full.is_some() || !reserved {
            self.record_space(reserved);
        }
        if reserved { Ok(()) } else { Err(NotStored::Rejected(AppendError::DiskFull)) }
    }

    /// A group found a segment or space in it, or none.
    pub(super) fn record_space(&self, found: bool) {
        let full = (!found).then(Instant::now);
        let was_full = mem::replace(&mut self.lock().full, full).is_some();
        match (was_full, found) {
            (true, true) => tracing::info!("the log accepts callbacks again: it can grow"),
            (false, false) => tracing::error!(
                "callbacks are rejected with 503 until the log can grow: no segment with space could \
                 be had in time; what is stored is still published"
            ),
            (true, false) | (false, true) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_group_without_space_waits_and_the_next_one_with_space_ends_the_outage() {
        let capacity = Capacity::new(Limits::NONE);
        assert_eq!(capacity.segment_wait(), SPACE_WAIT);
        // It shows for a second; a test that is paused for longer needs another one.
        let is_full = (0..5).any(|_| {
            let answer = capacity.reject_without_segment();
            assert!(matches!(answer, NotStored::Rejected(AppendError::DiskFull)), "{answer:?}");
            capacity.ready(true) == Err(AppendError::DiskFull)
        });
        assert!(is_full);
        assert_eq!(capacity.segment_wait(), Duration::ZERO);

        let dir = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(dir.path(), 1).unwrap();
        segment.prepare().unwrap();
        thread::sleep(ATTEMPT_PAUSE);
        capacity.reserve(&mut segment, 1).unwrap();
        assert_eq!(capacity.ready(true), Ok(()));
        assert_eq!(capacity.segment_wait(), SPACE_WAIT);
    }

    #[test]
    fn a_log_without_records_is_never_full_but_its_disk_may_be() {
        let capacity = Capacity::new(Limits { max_bytes: 100, min_free_bytes: 10 });
        let stored =
            |records, disk_bytes| Stored { records, disk_bytes, segments: 1, oldest: None };
        let check = |stored: &Stored, free_bytes| {
            capacity.check_limits(stored, free_bytes);
            (capacity.ready(true), capacity.room_bytes(stored, free_bytes))
        };
        assert_eq!(check(&stored(1, 99), Some(500)), (Ok(()), 1));
        assert_eq!(check(&stored(1, 100), None), (Err(AppendError::LogFull), 0));
        assert_eq!(check(&stored(1, 100), Some(9)), (Err(AppendError::DiskFull), 0));
        assert_eq!(check(&stored(0, 100), Some(10)), (Ok(()), 0));
        assert_eq!(check(&stored(0, 0), Some(50)), (Ok(()), 40));
    }
}
