//! The properties of sled that livebridge depends on: it stores every frame contiguously, in order,
//! once, and never moves it. Reading the log (`src/wal/frame.rs`) and the pinned version depend on
//! this.

use std::fs;
use std::path::Path;

use livebridge::record::{BODY_MAX, KEY_MAX, Lsn, Record};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::log::{OpenLog, cases, record, segment_dirs, temp_dir, visit};

/// The first bytes of every frame, and the positions of its first LSN and record count.
const MAGIC: &[u8] = b"\xFFLBWAL2\xFE";

/// First and last LSN of everything that looks like a frame in a segment's file, in file order.
fn frames(segment: &Path) -> Vec<(Lsn, Lsn)> {
    let bytes = fs::read(segment.join("db")).expect("a segment has a data file");
    let at = memchr::memmem::find_iter(&bytes, MAGIC);
    at.map(|at| {
        let first = Lsn::from_u64(u64::from_be_bytes(bytes[at + 24..at + 32].try_into().unwrap()));
        let count = u32::from_be_bytes(bytes[at + 32..at + 36].try_into().unwrap());
        (first, Lsn::new(first.segment(), first.index() + count - 1))
    })
    .collect()
}

/// Appends all `groups`, one at a time, and checks that each is stored in the expected place.
/// Returns every frame's first and last LSN.
fn append_and_check(groups: Vec<Vec<Record>>) -> Vec<(Lsn, Lsn)> {
    let dir = temp_dir();
    let log = OpenLog::open(dir.path()).unwrap();
    let mut written = Vec::new();
    for group in groups {
        written.extend(log.append_all(group.clone()).into_iter().zip(group));
    }
    check(dir.path(), &written);
    log.close().unwrap();
    // sled writes once more on closing.
    check(dir.path(), &written)
}

fn segments(frames: &[(Lsn, Lsn)]) -> u32 {
    frames.last().map_or(0, |(_, last)| last.segment())
}

fn check(dir: &Path, written: &[(Lsn, Record)]) -> Vec<(Lsn, Lsn)> {
    let read: Vec<_> = visit(dir).into_iter().map(|entry| (entry.lsn, entry.record)).collect();
    let differs = written.iter().zip(&read).find(|(written, read)| written != read);
    assert!(differs.is_none(), "{} was read for {}", differs.unwrap().1.0, differs.unwrap().0.0);
    assert_eq!(read.len(), written.len(), "everything written is read");
    let mut in_files = Vec::new();
    for segment in segment_dirs(dir) {
        let blobs = fs::read_dir(segment.join("blobs")).unwrap().count();
        assert_eq!(blobs, 0, "{} has blobs, which sled never syncs", segment.display());
        in_files.extend(frames(&segment));
    }
    let mut expected = Lsn::ZERO;
    for &(first, last) in &in_files {
        let follows = if first.segment() == expected.segment() {
            expected.next()
        } else {
            Lsn::new(first.segment(), 1)
        };
        assert_eq!(first, follows, "frames are in LSN order, none missing, none twice");
        expected = last;
    }
    assert_eq!(Some(expected), written.last().map(|(last, _)| *last));
    in_files
}

proptest! {
    #![proptest_config(cases(6))]

    /// Groups and bodies of any size, so that trees and segments change at any position.
    #[test]
    fn every_appended_record_is_read_once_and_in_order(
        groups in vec(
            prop_oneof![
                6 => vec(1_usize..3000, 1..20),
                3 => vec(1_usize..60_000, 1..20),
                2 => vec(1_usize..=BODY_MAX, 1..6),
            ],
            1..120,
        ),
    ) {
        let mut numbers = 0..;
        let groups = groups.into_iter().map(|group| {
            group.into_iter().map(|len| record(numbers.next().unwrap(), len)).collect()
        });
        append_and_check(groups.collect());
    }
}

/// The smallest commits of one record each: the segment is filled by its number of trees, not its
/// bytes.
#[test]
fn single_records_at_a_low_rate_are_never_moved() {
    let groups = (0..2500).map(|number| vec![record(number, 700)]);
    let frames = append_and_check(groups.collect());
    assert_eq!(segments(&frames), 2, "the records continue in a second segment");
}

/// The largest frames: a tree of nine exceeds sled's own segment size.
#[test]
fn the_largest_records_are_never_moved() {
    let groups = (0..90).map(|number| {
        let mut largest = record(number, BODY_MAX);
        largest.key = Some(bytes::Bytes::from(vec![b'k'; KEY_MAX]));
        // A record just below the size at which a frame is closed, then the largest: one frame.
        vec![record(1000 + number, 250 * 1024 - 200), largest]
    });
    let frames = append_and_check(groups.collect());
    assert!(segments(&frames) >= 2, "the segments rotate");
    assert!(frames.iter().any(|(first, last)| first < last), "some frames hold both records");
}

/// Every frame size from one byte to the largest, in steps that approach sled's own limits from
/// both sides.
#[test]
fn every_frame_size_is_stored_contiguously() {
    let powers = (0..=19).flat_map(|bit| [(1_usize << bit) - 1, 1 << bit, (1 << bit) + 1]);
    let sizes = powers.chain((1..=64).map(|step| step * 8192)).filter(|size| *size <= BODY_MAX);
    let groups = (0..).zip(sizes).map(|(number, size)| vec![record(number, size)]);
    append_and_check(groups.collect());
}
