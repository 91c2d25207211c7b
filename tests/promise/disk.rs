//! Full and failing disks: every callback answered 200 is stored, stored records can be read and
//! released, and the intake recovers without intervention.

mod faults;
mod kept;
mod unreadable;

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use livebridge::record::{Entry, Lsn, Record};
use livebridge::wal::{self, AppendError, Limits};

use crate::support::log::{OpenLog, block_on, config, record, segment_dirs, temp_dir, visit};
use crate::support::mount::Mount;
use crate::support::{turn, wait_until};

const MIB: u64 = 1024 * 1024;

/// A file system in memory; `None`, with a message, where mounting is not permitted.
fn mount(options: &str) -> Option<Mount> {
    Mount::new("a full disk", options)
}

fn log_dir(mount: &Mount) -> PathBuf {
    mount.path().join("data")
}

/// Appends at most `max` records until one is rejected; returns the acknowledged records and the
/// error.
fn append_until_rejected(log: &OpenLog, first: u64, max: u64) -> (Vec<Entry>, Option<AppendError>) {
    let mut acknowledged = Vec::new();
    for number in first..first + max {
        let record = record(number, 100_000);
        match append_one(log, record.clone()) {
            Ok(lsn) => acknowledged.push(Entry { lsn, record }),
            Err(error) => return (acknowledged, Some(error)),
        }
    }
    (acknowledged, None)
}

fn append_one(log: &OpenLog, record: Record) -> Result<Lsn, AppendError> {
    let within = Duration::from_secs(10);
    let outcome = block_on(async {
        tokio::time::timeout(within, log.appender.handle().append(record)).await
    });
    outcome.expect("an append is answered within the deadline")
}

/// Waits until an append is accepted again.
fn wait_for_room(log: &OpenLog, record: &Record) -> Lsn {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match append_one(log, record.clone()) {
            Ok(lsn) => return lsn,
            Err(AppendError::Failed) => panic!("the log ended"),
            Err(error) => assert!(
                Instant::now() < deadline,
                "the intake resumes without intervention: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn release_all(log: &mut OpenLog, last: Lsn) {
    log.reader.release(last, None);
    assert_eq!(log.log.stored().records, 0);
}

/// The log contains all of `acknowledged` in order; unacknowledged records may lie between them.
fn assert_contains(read: &[Entry], acknowledged: &[Entry]) {
    let mut read = read.iter();
    for entry in acknowledged {
        assert!(read.any(|other| other == entry), "{} is lost", entry.lsn);
    }
}

#[test]
fn appends_are_rejected_before_the_disk_is_full_and_accepted_again_when_there_is_space() {
    let _turn = turn::beside_others();
    let Some(mount) = mount("size=352m") else { return };
    let floor = 192 * MIB;
    let config = wal::Config {
        limits: Limits { min_free_bytes: floor, ..Limits::NONE },
        ..config(&log_dir(&mount))
    };
    let mut log = OpenLog::open_with(&config).unwrap();
    let mut number = 0;
    for _ in 0..2 {
        let (acknowledged, rejected) = append_until_rejected(&log, number, 4000);
        number += 4000;
        assert_eq!(rejected, Some(AppendError::DiskFull));
        assert_eq!(log.log.probe().ready(), Err(AppendError::DiskFull));
        assert!(mount.free_bytes() < floor, "there was free space");
        assert!(mount.free_bytes() > MIB, "{} bytes are left", mount.free_bytes());
        // Stored records can still be published, which frees space.
        assert_eq!(log.read(), acknowledged);
        release_all(&mut log, acknowledged.last().unwrap().lsn);
        let last = wait_for_room(&log, &record(number - 1, 100));
        assert_eq!(log.read().len(), 1);
        log.reader.release(last, None);
    }
    log.close().unwrap();
}

#[test]
fn the_size_limit_of_the_log_is_enforced_and_lifted() {
    let _turn = turn::beside_others();
    let dir = temp_dir();
    let limit = 80 * MIB;
    let config =
        wal::Config { limits: Limits { max_bytes: limit, ..Limits::NONE }, ..config(dir.path()) };
    let mut log = OpenLog::open_with(&config).unwrap();
    let (acknowledged, rejected) = append_until_rejected(&log, 0, 4000);
    assert_eq!(rejected, Some(AppendError::LogFull));
    let bytes = log.log.stored().disk_bytes;
    // Free space is checked ten times a second, and later while the maintenance task closes a
    // segment.
    assert!((limit..limit + 256 * MIB).contains(&bytes), "{bytes} bytes");
    assert_eq!(log.read(), acknowledged);
    release_all(&mut log, acknowledged.last().unwrap().lsn);
    wait_for_room(&log, &record(9999, 100));
    log.close().unwrap();
}

/// Without `wal.min_free_bytes`, a full disk shows when a segment cannot grow: callbacks are
/// rejected, and accepted again when there is space, in the same process.
#[test]
fn a_full_disk_rejects_until_there_is_space_and_loses_nothing() {
    let _turn = turn::beside_others();
    for left in [0, 3000, 40_000, 90_000, 600_000, 5_000_000] {
        let Some(mount) = mount("size=48m") else { return };
        let mut log = OpenLog::open(&log_dir(&mount)).unwrap();
        let (mut acknowledged, rejected) = append_until_rejected(&log, 0, 20);
        assert_eq!(rejected, None);
        let filler = mount.fill(left);
        for first in [100, 1100, 2100] {
            // A rejection shows for a second: on a busy machine, there may have to be another one.
            let is_full = || {
                let (more, rejected) = append_until_rejected(&log, first, 1000);
                acknowledged.extend(more);
                assert_eq!(rejected, Some(AppendError::DiskFull), "with {left} bytes left");
                log.log.probe().ready() == Err(AppendError::DiskFull)
            };
            wait_until(Duration::from_secs(10), is_full, || "it reports that it accepts");
            // Space is asked for again after a pause.
            thread::sleep(Duration::from_millis(150));
        }
        assert_eq!(log.read(), acknowledged);
        log.close().unwrap();

        // A log that is opened while the disk is full rejects as well, and can be read.
        let mut log = OpenLog::open(&log_dir(&mount)).unwrap();
        let (more, rejected) = append_until_rejected(&log, 4000, 1000);
        acknowledged.extend(more);
        assert_eq!(rejected, Some(AppendError::DiskFull), "with {left} bytes left, at the start");
        assert_eq!(log.read(), acknowledged);
        drop(filler);
        let record = record(5000, 100_000);
        let lsn = wait_for_room(&log, &record);
        acknowledged.push(Entry { lsn, record });
        assert_eq!(log.log.probe().ready(), Ok(()));
        log.close().unwrap();
        assert_eq!(visit(&log_dir(&mount)), acknowledged);
    }
}

/// Publishing alone must free a disk that the log itself has filled.
#[test]
fn publishing_frees_a_disk_that_the_log_filled() {
    let _turn = turn::beside_others();
    for segments in [1, 2] {
        let Some(mount) = mount(&format!("size={}m", 34 * segments)) else { return };
        let log = OpenLog::open(&log_dir(&mount)).unwrap();
        let (acknowledged, rejected) = append_until_rejected(&log, 0, 4000);
        assert_eq!(rejected, Some(AppendError::DiskFull));
        log.close().unwrap();

        let filler = mount.fill(0);
        let mut log = OpenLog::open(&log_dir(&mount)).unwrap();
        let read = log.read();
        assert_contains(&read, &acknowledged);
        release_all(&mut log, read.last().unwrap().lsn);
        let is_freed = || mount.free_bytes() >= MIB;
        wait_until(Duration::from_secs(10), is_freed, || "records are not freed".to_owned());
        let last = wait_for_room(&log, &record(6000, 100_000));
        assert!(last > read.last().unwrap().lsn, "LSNs go on");
        log.close().unwrap();
        drop(filler);
    }
}

/// Regression: a segment that was created on an almost full disk failed at its first append, which
/// ended the process.
#[test]
fn a_segment_is_created_when_there_is_space_for_its_first_records() {
    let _turn = turn::beside_others();
    for left in [0, 4096, 12_288, 20_000, 40_000, 100_000, 400_000, 1_000_000] {
        let Some(mount) = mount("size=16m") else { return };
        let log = OpenLog::open(&log_dir(&mount)).unwrap();
        let acknowledged = append_until_rejected(&log, 0, 10).0;
        log.close().unwrap();
        // Without the spare segment, the last segment has records and a new one needs new space.
        for spare in &segment_dirs(&log_dir(&mount))[1..] {
            fs::remove_dir_all(spare).unwrap();
        }
        let filler = mount.fill(left);
        let mut log = OpenLog::open(&log_dir(&mount)).unwrap();
        let outcome = append_one(&log, record(100, 500_000));
        assert_eq!(outcome, Err(AppendError::DiskFull), "with {left} bytes left");
        assert_eq!(log.read(), acknowledged);
        drop(filler);
        wait_for_room(&log, &record(200, 100));
        log.close().unwrap();
    }
}

/// Regression: sled permanently failed to open the remains of a failed attempt, such as a truncated
/// settings file.
#[test]
fn a_half_created_segment_is_created_again() {
    let _turn = turn::beside_others();
    let dir = temp_dir();
    let log = OpenLog::open(dir.path()).unwrap();
    let half_made = dir.path().join("segments/0000000003");
    fs::create_dir_all(half_made.join("blobs")).unwrap();
    fs::write(
        half_made.join("conf"),
        "segment_size: 4194304\nuse_compression: false\nversion: 0.34\n",
    )
    .unwrap();
    let (acknowledged, rejected) = append_until_rejected(&log, 0, 750);
    assert_eq!(rejected, None);
    assert_eq!(acknowledged.last().unwrap().lsn.segment(), 3);
    log.close().unwrap();
}

/// Inodes can also run out. New segments then cannot be created, while the current one can grow.
#[test]
fn a_log_that_cannot_create_segments_rejects_before_its_last_one_is_too_large() {
    let _turn = turn::beside_others();
    for inodes_left in [0, 1, 3] {
        let Some(mount) = mount("size=400m,nr_inodes=60") else { return };
        let log = OpenLog::open(&log_dir(&mount)).unwrap();
        assert_eq!(append_until_rejected(&log, 0, 3).1, None);
        let has_spare = || segment_dirs(&log_dir(&mount)).len() >= 2;
        wait_until(Duration::from_secs(30), has_spare, || "there is no spare segment");
        let in_the_way: Vec<_> = (0..100)
            .map(|number| mount.path().join(format!("file-{number}")))
            .take_while(|path| File::create(path).is_ok())
            .collect();
        for path in in_the_way.iter().take(inodes_left) {
            fs::remove_file(path).unwrap();
        }
        let (acknowledged, rejected) = append_until_rejected(&log, 10, 3000);
        assert_eq!(rejected, Some(AppendError::DiskFull), "after {} records", acknowledged.len());
        let bytes = log.log.stored().disk_bytes;
        assert!(bytes < 256 * MIB, "{bytes} bytes");
        for path in in_the_way.iter().skip(inodes_left) {
            fs::remove_file(path).unwrap();
        }
        wait_for_room(&log, &record(9999, 100));
        assert_contains(&visit(&log_dir(&mount)), &acknowledged);
        log.close().unwrap();
    }
}
