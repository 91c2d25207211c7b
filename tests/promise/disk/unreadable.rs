//! The real binary over a disk that cannot read a part of a segment: it starts, accepts callbacks,
//! publishes everything readable, and keeps the segment.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use livebridge::wal::LogView;

use super::faults::SHIM;
use crate::support::configured_bridge::ConfiguredBridge;
use crate::support::intake::push;
use crate::support::kafka::mock_kafka;
use crate::support::log::{OpenLog, copy_dir, record, temp_dir, visit};
use crate::support::{TIME_LIMIT, turn};

/// A block of the disk.
const BLOCK: u64 = 4096;
/// Positions in each segment at which reading fails.
const PLACES: u64 = 5;
/// Concurrent bridges.
const RUNS: usize = 4;

/// A file of the log and its unreadable part; with length 0 the file cannot be opened.
#[derive(Clone, Debug)]
struct Fault {
    segment: u32,
    from: u64,
    length: u64,
}

fn data_of(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("wal/segments/{segment:010}/db"))
}

/// A log of three segments, the last of a killed process, which a start must scan.
fn make_log(dir: &Path) -> Vec<u32> {
    let wal = dir.join("wal");
    for opening in 0..3 {
        let log = OpenLog::open(&wal).unwrap();
        for group in 0..10 {
            let first = opening * 1000 + group * 10;
            log.append_all((first..first + 5).map(|number| record(number, 3000)).collect());
        }
        log.close().unwrap();
    }
    let segments: BTreeSet<u32> = visit(&wal).iter().map(|entry| entry.lsn.segment()).collect();
    let segments: Vec<u32> = segments.into_iter().collect();
    assert_eq!(segments.len(), 3);
    fs::remove_file(data_of(dir, segments[2]).with_file_name("closed")).unwrap();
    segments
}

/// The bodies that are readable in spite of `fault`.
fn readable(dir: &Path, fault: &Fault) -> BTreeSet<Vec<u8>> {
    let copy = temp_dir();
    copy_dir(dir, copy.path());
    let data = data_of(copy.path(), fault.segment);
    if fault.length == 0 {
        fs::remove_dir_all(data.parent().unwrap()).unwrap();
    } else {
        let size = fs::metadata(&data).unwrap().len();
        let length = fault.length.min(size.saturating_sub(fault.from));
        let zeros = vec![0; usize::try_from(length).unwrap()];
        OpenOptions::new()
            .write(true)
            .open(&data)
            .unwrap()
            .write_all_at(&zeros, fault.from)
            .unwrap();
    }
    visit(&copy.path().join("wal")).into_iter().map(|entry| entry.record.body.to_vec()).collect()
}

fn check(log: &Path, fault: &Fault) {
    let dir = temp_dir();
    copy_dir(log, dir.path());
    let mut expected = readable(dir.path(), fault);
    let total = visit(&dir.path().join("wal")).len();
    let kafka = mock_kafka(1);
    let bridge = ConfiguredBridge::with_files(dir, &kafka.brokers(), "");
    let mut command = bridge.command(&["serve"]);
    command.env("LD_PRELOAD", SHIM.as_ref().unwrap());
    command.env("FAIL_READ", data_of(&bridge.path(""), fault.segment));
    command.env("FAIL_FROM", fault.from.to_string()).env("FAIL_LENGTH", fault.length.to_string());
    let mut running = bridge.start(&mut command);

    let body = push();
    assert_eq!(running.post(&body).status, 200, "{fault:?}");
    expected.insert(body.into_bytes());

    let published = running.published("live.push").take(expected.len());
    let published: BTreeSet<_> = published.map(|record| record.value).collect();
    assert!(published == expected, "{fault:?}");
    // Until they are released, which may be after they are in Kafka, a stop leaves the segment as it is.
    running.wait_for_metric_within(3 * TIME_LIMIT, "livebridge_wal_records", 0.0);
    running.process.stop();

    // Unreadable records must be kept, because a repair tool may be able to read them later.
    let lost = total + 1 - expected.len();
    let kept = LogView::open(&bridge.wal()).unwrap().damaged;
    let numbers: Vec<u32> = kept.iter().map(|segment| segment.number).collect();
    if lost > 0 {
        assert_eq!(numbers, [fault.segment], "{fault:?}: {lost} were lost");
        assert!(data_of(log, fault.segment).metadata().unwrap().len() == kept[0].bytes);
    }
}

#[test]
fn an_unreadable_part_of_a_segment_costs_its_records_and_nothing_else() {
    let _turn = turn::beside_others();
    if SHIM.is_none() {
        return;
    }
    let dir = temp_dir();
    let segments = make_log(dir.path());
    let mut faults = Vec::new();
    for segment in segments {
        let size = fs::metadata(data_of(dir.path(), segment)).unwrap().len();
        // The file ends in zeros that sled has allocated; records are at its beginning.
        let size = size.min(BLOCK * 60);
        for place in 0..PLACES {
            let from = size * place / PLACES / BLOCK * BLOCK;
            faults.push(Fault { segment, from, length: BLOCK });
        }
        faults.push(Fault { segment, from: size / 2 / BLOCK * BLOCK, length: 10 * BLOCK });
        faults.push(Fault { segment, from: 0, length: u64::MAX / 4 });
        faults.push(Fault { segment, from: 0, length: 0 });
    }
    let all: usize = faults.iter().map(|fault| readable(dir.path(), fault).len()).sum();
    assert!(all < faults.len() * 145, "the faults hit records");
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..RUNS {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(dir.path(), fault);
                }
            });
        }
    });
}
