//! Creates segments before they are needed, closes them when they are full, removes them when they
//! are released, and checks the space: all that must not delay the writer or the publisher.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::checkpoint::CheckpointFile;
use super::dir::{self, REMOVING, SEGMENTS};
use super::preallocation::{self, PIECE_BYTES, Preallocation};
use super::progress::Extent;
use super::segment::{PREALLOCATED_BYTES, SEGMENT_BYTES, Segment};
use super::self_audit::AuditTotals;
use super::{AuditBalance, Config, OpeningId, Shared, free_bytes};
use crate::metrics;
use crate::permission::FileError;

/// How often the space is checked, and a segment that could not be created is tried again: short
/// against the time in which senders could fill the floor that `wal.min_free_bytes` leaves.
const SPACE_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How often the damaged segments that are kept are counted, which an operator removes, and removals
/// that failed are tried again.
const DAMAGED_COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// Free space below which nothing is preallocated, above `wal.min_free_bytes`.
const PREALLOCATION_FLOOR_BYTES: u64 = 4 * SEGMENT_BYTES;

pub(super) enum MaintenanceTask {
    /// The spare is in use: create another.
    CreateSpare,
    /// Close a segment into which `writer` put this many records.
    Close { segment: Segment, writer: OpeningId, records: u32 },
    /// Keep a segment's data when it would be removed: some of its records cannot be read.
    KeepDamaged(u32),
    /// Remove a closed segment.
    Remove(u32),
}

/// Runs until every sender of tasks is dropped.
pub(super) struct Maintenance {
    segments: PathBuf,
    next_number: u32,
    tasks: Receiver<MaintenanceTask>,
    spares: SyncSender<Segment>,
    /// The next segment, when it could not be prepared.
    unprepared: Option<Segment>,
    /// Segments that are being written, or are about to be, in whose files space is preallocated.
    preallocations: BTreeMap<u32, Preallocation>,
    shared: Arc<Shared>,
    totals: CheckpointFile<AuditTotals>,
    /// What was missing at the last audit.
    missing: i64,
    /// Segments with damage. The marker in each tells the next process.
    damaged: HashSet<u32>,
    /// Published segments that could not be removed yet.
    unremoved: BTreeSet<u32>,
    /// When the damaged segments that are kept were last counted.
    damaged_counted: Option<Instant>,
}

impl Maintenance {
    /// With the channel on which one ready segment waits.
    pub(super) fn new(
        config: &Config,
        next_number: u32,
        tasks: Receiver<MaintenanceTask>,
        shared: Arc<Shared>,
        totals: CheckpointFile<AuditTotals>,
    ) -> (Self, Receiver<Segment>) {
        let (spares, ready) = sync_channel(1);
        let maintenance = Self {
            segments: config.dir.join(SEGMENTS),
            next_number,
            tasks,
            spares,
            unprepared: None,
            preallocations: BTreeMap::new(),
            shared,
            totals,
            missing: 0,
            damaged: HashSet::new(),
            unremoved: BTreeSet::new(),
            damaged_counted: None,
        };
        (maintenance, ready)
    }

    pub(super) fn run(mut self) {
        let mut wanted = true;
        let mut checked: Option<Instant> = None;
        loop {
            if checked.is_none_or(|checked| checked.elapsed() >= SPACE_CHECK_INTERVAL) {
                let free_bytes = free_bytes(&self.segments);
                self.check(free_bytes);
                checked = Some(Instant::now());
                wanted = wanted && !self.create_spare();
                self.preallocate(free_bytes);
            }
            match self.tasks.recv_timeout(SPACE_CHECK_INTERVAL) {
                Ok(MaintenanceTask::CreateSpare) => wanted = !self.create_spare(),
                Ok(MaintenanceTask::Close { segment, writer, records }) => {
                    self.close(segment, writer, records);
                }
                Ok(MaintenanceTask::KeepDamaged(number)) => self.mark_damaged(number),
                Ok(MaintenanceTask::Remove(number)) => self.remove(number),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(segment) = self.unprepared.take() {
            segment.abandon();
        }
        self.check(free_bytes(&self.segments));
    }

    fn check(&mut self, free_bytes: Option<u64>) {
        self.audit();
        if self.damaged_counted.is_none_or(|counted| counted.elapsed() >= DAMAGED_COUNT_INTERVAL) {
            for number in std::mem::take(&mut self.unremoved) {
                self.remove(number);
            }
            self.count_damaged();
        }
        self.shared.update_metrics();
        let stored = self.shared.index.stored();
        metrics::disk(free_bytes, self.shared.capacity.room_bytes(&stored, free_bytes));
        self.shared.capacity.check_limits(&stored, free_bytes);
    }

    /// Saves the totals of the self-audit, and logs when records are missing.
    fn audit(&mut self) {
        self.totals.save(&self.shared.index.audit_totals());
        let audit = self.shared.index.audit();
        let missing = audit.missing();
        let AuditBalance { accepted, pending, outcomes, by_ledger, damaged, since } = audit;
        if missing == std::mem::replace(&mut self.missing, missing) {
            return;
        }
        if missing != 0 {
            tracing::error!(
                missing, accepted, pending, ?outcomes, by_ledger, damaged, %since,
                "the self-audit is off: the outcome of some records of the log is unknown"
            );
        }
    }

    /// Whether one is ready now.
    fn create_spare(&mut self) -> bool {
        match self.create() {
            Ok(segment) => {
                self.shared.capacity.record_spare();
                match segment.open_preallocation() {
                    Ok(file) => _ = self.preallocations.insert(self.next_number, file),
                    Err(error) => tracing::debug!(%error, "cannot preallocate space in a segment"),
                }
                self.next_number += 1;
                // The channel has room for the one spare; without a writer it is not wanted.
                let _ = self.spares.try_send(segment);
                true
            }
            Err(error) => {
                self.shared.capacity.record_no_spare(&error);
                false
            }
        }
    }

    /// A segment that could not be prepared is kept for the next attempt: closing it would have sled
    /// sync it, and sled panics when it cannot.
    fn create(&mut self) -> Result<Segment, FileError> {
        let mut segment = match self.unprepared.take() {
            Some(segment) => segment,
            None => Segment::create(&self.segments, self.next_number)?,
        };
        match segment.prepare() {
            Ok(()) => Ok(segment),
            Err(error) => {
                self.unprepared = Some(segment);
                Err(error)
            }
        }
    }

    /// Preallocates space in the active segment, up to four times what is used, and half as much in
    /// its successor: about as fast as records come, and not at all without traffic.
    fn preallocate(&mut self, free_bytes: Option<u64>) {
        let Some((active, used)) = self.shared.index.active() else { return };
        self.preallocations = self.preallocations.split_off(&active);
        let min_free_bytes = self.shared.capacity.limits.get().min_free_bytes;
        let floor = min_free_bytes.saturating_add(PREALLOCATION_FLOOR_BYTES);
        if free_bytes.is_none_or(|free| free < floor) {
            return;
        }
        self.preallocations.retain(|&number, preallocation| {
            let wanted = if number == active { 4 * used } else { 2 * used };
            let wanted = wanted.min(PREALLOCATED_BYTES);
            // Piece by piece: with many unwritten pages at once, the kernel has the writer wait too.
            while preallocation.len() < wanted {
                let len = preallocation.len() + PIECE_BYTES;
                if let Err(error) = preallocation.grow(len, len).and_then(|()| preallocation.sync())
                {
                    tracing::debug!(%error, number, "cannot preallocate space in a segment");
                    return false;
                }
                metrics::flushed(PIECE_BYTES);
            }
            preallocation.len() < PREALLOCATED_BYTES
        });
    }

    fn close(&self, segment: Segment, writer: OpeningId, records: u32) {
        let number = segment.number();
        drop(segment);
        let dir = dir::segment_dir(&self.segments, number);
        if let Err(error) = preallocation::trim(&dir::data_file(&dir)) {
            tracing::debug!(%error, path = %dir.display(), "cannot return preallocated space");
        }
        if let Err(error) = dir::mark_closed(&dir, Extent { number, writer, records }) {
            tracing::debug!(%error, path = %dir.display(), "cannot mark a segment as closed");
        }
    }

    fn mark_damaged(&mut self, number: u32) {
        if !self.damaged.insert(number) {
            return;
        }
        let dir = dir::segment_dir(&self.segments, number);
        if let Err(error) = dir::mark_damaged(&dir) {
            tracing::error!(%error, path = %dir.display(), "cannot mark a damaged segment");
        }
    }

    /// Counts the damaged segments that are kept, of which an operator may have removed some, and the
    /// bytes of these and of published segments that could not be removed.
    fn count_damaged(&mut self) {
        self.damaged_counted = Some(Instant::now());
        let kept = dir::list_damaged(&self.segments).unwrap_or_default();
        let bytes = |dir: &PathBuf| fs::metadata(dir::data_file(dir)).map_or(0, |data| data.len());
        let damaged = kept.iter().map(|(_, dir)| bytes(dir)).sum();
        let unremoved = self.unremoved.iter().map(|number| {
            let dir = dir::segment_dir(&self.segments, *number);
            bytes(&dir) + bytes(&dir.with_extension(REMOVING))
        });
        self.shared.index.set_further_bytes(damaged + unremoved.sum::<u64>());
        metrics::damaged_segments(kept.len(), damaged);
    }

    /// Renames first, so that a removal that a crash cuts short is finished by the next start. The
    /// last segment's directory stays, so that numbers do not restart.
    fn remove(&mut self, number: u32) {
        self.totals.save_durably(&self.shared.index.audit_totals());
        let dir = dir::segment_dir(&self.segments, number);
        let is_last = number + 1 == self.next_number;
        let damaged = self.damaged.contains(&number) || dir::is_marked_damaged(&dir);
        let removing = dir.with_extension(REMOVING);
        let removed: io::Result<()> = if damaged {
            self.keep(&dir, is_last)
        } else if is_last {
            dir::empty(&dir)
        } else if removing.is_dir() {
            fs::remove_dir_all(&removing)
        } else {
            fs::rename(&dir, &removing).and_then(|()| fs::remove_dir_all(&removing))
        };
        match removed {
            Ok(()) => {
                self.damaged.remove(&number);
                self.unremoved.remove(&number);
            }
            Err(error) if self.unremoved.insert(number) => {
                tracing::warn!(
                    %error, path = %dir.display(),
                    "cannot remove a published segment; trying again until it works"
                );
            }
            Err(_) => {}
        }
    }

    fn keep(&mut self, dir: &Path, is_last: bool) -> io::Result<()> {
        // A segment without a file has nothing to keep.
        if !dir::data_file(dir).try_exists().unwrap_or(true) {
            return if is_last {
                fs::create_dir_all(dir).and_then(|()| dir::empty(dir))
            } else {
                dir::unless_missing(fs::remove_dir_all(dir))
            };
        }
        let kept = dir::keep_damaged(dir, is_last)?;
        tracing::error!(
            path = %kept.display(),
            "everything readable in a damaged segment is published; it is kept until it is removed \
             with `livebridge wal damaged --drop`"
        );
        self.count_damaged();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::{Arc, mpsc};

    use super::super::Limits;
    use super::*;
    use crate::event::Timestamp;
    use crate::record::Lsn;
    use crate::wal::AppendError;
    use crate::wal::LogId;
    use crate::wal::index::Index;

    fn maintenance(dir: &Path, limits: Limits) -> (Maintenance, Receiver<Segment>) {
        let (totals, _) = CheckpointFile::open(dir, LogId::unique());
        let fresh = AuditTotals::new(Timestamp::now());
        let shared = Arc::new(Shared::new(Index::new(&[], Lsn::ZERO, None, fresh), limits));
        let (_, tasks) = mpsc::channel();
        let config = Config { dir: dir.to_owned(), limits };
        Maintenance::new(&config, 1, tasks, shared, totals)
    }

    #[test]
    fn without_a_segment_to_write_to_the_log_is_not_ready() {
        let dir = tempfile::tempdir().unwrap();
        let (mut maintenance, _ready) = maintenance(dir.path(), Limits::NONE);
        fs::write(dir.path().join(SEGMENTS), "in the way").unwrap();
        assert!(!maintenance.create_spare());
        assert_eq!(maintenance.shared.ready(), Err(AppendError::DiskFull));
        fs::remove_file(dir.path().join(SEGMENTS)).unwrap();
        assert!(maintenance.create_spare());
        assert_eq!(maintenance.shared.ready(), Ok(()));
    }

    #[test]
    fn a_removal_that_failed_is_tried_again_and_its_bytes_count_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let (mut maintenance, _ready) = maintenance(dir.path(), Limits::NONE);
        let segment = dir::segment_dir(&dir.path().join(SEGMENTS), 1);
        fs::create_dir_all(&segment).unwrap();
        fs::write(dir::data_file(&segment), [0; 1000]).unwrap();
        maintenance.next_number = 3;
        let in_the_way = segment.with_extension(REMOVING);
        fs::write(&in_the_way, "a file").unwrap();
        maintenance.remove(1);
        maintenance.check(None);
        assert!(segment.exists());
        assert_eq!(maintenance.shared.index.stored().disk_bytes, 1000);
        fs::remove_file(in_the_way).unwrap();
        maintenance.damaged_counted = None;
        maintenance.check(None);
        assert!(!segment.exists());
        assert_eq!(maintenance.shared.index.stored().disk_bytes, 0);
    }

    #[test]
    fn limits_count_from_the_moment_they_are_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(SEGMENTS)).unwrap();
        let (mut maintenance, _ready) = maintenance(dir.path(), Limits::NONE);
        assert!(maintenance.create_spare());
        for (min_free_bytes, room) in
            [(0, Ok(())), (u64::MAX, Err(AppendError::DiskFull)), (0, Ok(()))]
        {
            maintenance.shared.capacity.limits.set(Limits { min_free_bytes, ..Limits::NONE });
            maintenance.check(free_bytes(&maintenance.segments));
            assert_eq!(maintenance.shared.ready(), room);
        }
    }
}
