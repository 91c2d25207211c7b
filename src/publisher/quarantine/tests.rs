//! The quarantine across crashes and full disks.

use std::time::Instant;

use super::*;
use crate::event::{EventId, EventType, Timestamp};
use crate::ledger::{self, Ledger};
use crate::wal::{Entries, OpeningId};

/// Where a process crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    BeforeCommit,
    AfterCommit,
}

fn entry(number: u32) -> Entry {
    let id = EventId { natural: u64::from(number), content: 1 };
    let record = Record {
        id,
        event_type: Some(EventType(1)),
        received_at: Timestamp::from_millis(i64::from(number)),
        occurred_at: None,
        key: None,
        has_stream: false,
        body: Bytes::from_static(b"{}"),
    };
    Entry { lsn: Lsn::new(1, number), record }
}

const WRITER: OpeningId = OpeningId::from_bytes([1; 16]);

/// A ledger without ids.
fn ledger() -> Ledger {
    let config = ledger::Config { window: std::time::Duration::from_hours(1), max_ids: 1000 };
    Ledger::new(&[WRITER], config)
}

fn batch(numbers: &[u32]) -> Batch {
    let entries = numbers.iter().map(|number| entry(*number)).collect();
    let mut batch = Batch::new(Entries { writer: WRITER, entries });
    batch.deduplicate(&ledger());
    batch
}

/// A batch whose record `index` no topic accepts, up to its commit.
fn reject(quarantine: &mut Quarantine, numbers: &[u32], index: usize) -> Batch {
    let mut batch = batch(numbers);
    batch.reject(index, &"too large");
    batch.reject(index, &"too large there as well");
    batch.store(quarantine).unwrap();
    batch
}

fn held(dir: &Path) -> Vec<u64> {
    list(dir).unwrap().records.iter().map(|held| held.record.id.natural).collect()
}

fn all_files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = names.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_record_is_in_quarantine_once_its_transaction_is_committed() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    let mut quarantine = Quarantine::new(dir.clone());
    let batch = reject(&mut quarantine, &[1, 2, 3], 1);
    assert_eq!(held(&dir), [] as [u64; 0]);
    let stem = "1.2-00000000000000020000000000000001";
    assert_eq!(all_files(&dir), [format!("{stem}.pending"), format!("{stem}.reason")]);
    quarantine.finalize(&batch, &ledger()).unwrap();
    assert_eq!(held(&dir), [2]);
    assert_eq!(list(&dir).unwrap().records[0].reason, "too large there as well");
}

#[test]
fn a_crash_at_any_point_leaves_a_record_in_quarantine_or_published_and_never_both() {
    for crash in [Crash::BeforeCommit, Crash::AfterCommit] {
        for accepted_later in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let dir = dir_of(home.path());
            reject(&mut Quarantine::new(dir.clone()), &[1, 2, 3], 1);

            // The next process: the ledger contains whether the batch was committed.
            let mut quarantine = Quarantine::new(dir.clone());
            let numbers: &[u32] = if crash == Crash::AfterCommit { &[4, 5] } else { &[1, 2, 3, 4] };
            let next = if crash == Crash::BeforeCommit && !accepted_later {
                reject(&mut quarantine, numbers, 1)
            } else {
                batch(numbers)
            };
            quarantine.finalize(&next, &ledger()).unwrap();
            let published = crash == Crash::BeforeCommit && accepted_later;
            let expected: &[u64] = if published { &[] } else { &[2] };
            assert_eq!(held(&dir), expected, "{crash:?} {accepted_later}");
            let left = all_files(&dir).len();
            assert_eq!(left, if published { 0 } else { 2 }, "{crash:?} {accepted_later}");
        }
    }
}

/// The limit of the topic was raised between the first crash and the commit.
#[test]
fn a_record_that_was_published_before_a_second_crash_is_not_in_quarantine() {
    let mut ledger = ledger();
    ledger.apply(&batch(&[1, 2, 3]).to_commit(WRITER).unwrap(), Instant::now());
    for finalize in [
        |quarantine: &mut Quarantine, ledger: &Ledger| quarantine.finalize(&batch(&[4]), ledger),
        |quarantine: &mut Quarantine, ledger: &Ledger| quarantine.finalize_all(ledger),
    ] {
        let home = tempfile::tempdir().unwrap();
        let dir = dir_of(home.path());
        reject(&mut Quarantine::new(dir.clone()), &[1, 2, 3], 1);
        finalize(&mut Quarantine::new(dir.clone()), &ledger).unwrap();
        assert_eq!(all_files(&dir), [] as [String; 0]);
    }
}

#[test]
fn what_a_crash_left_is_in_quarantine_when_the_log_has_nothing_more() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    reject(&mut Quarantine::new(dir.clone()), &[1], 0);
    Quarantine::new(dir.clone()).finalize_all(&ledger()).unwrap();
    assert_eq!(held(&dir), [1]);
}

#[test]
fn records_behind_the_batch_stay_pending() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    let mut quarantine = Quarantine::new(dir.clone());
    let later = reject(&mut quarantine, &[7], 0);
    quarantine.finalize(&batch(&[1, 2]), &ledger()).unwrap();
    assert_eq!(held(&dir), [] as [u64; 0]);
    quarantine.finalize(&later, &ledger()).unwrap();
    assert_eq!(held(&dir), [7]);
}

#[test]
fn a_quarantine_that_cannot_be_written_is_an_error_until_it_can() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    fs::write(&dir, "in the way").unwrap();
    let mut quarantine = Quarantine::new(dir.clone());
    let mut blocked = batch(&[1]);
    blocked.reject(0, &"too large");
    blocked.reject(0, &"too large");
    assert!(blocked.store(&mut quarantine).is_err());
    assert!(blocked.store(&mut quarantine).is_err(), "it is not taken for stored");
    fs::remove_file(&dir).unwrap();
    blocked.store(&mut quarantine).unwrap();
    quarantine.finalize(&blocked, &ledger()).unwrap();
    assert_eq!(held(&dir), [1]);
}

#[test]
fn a_removed_record_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    let mut quarantine = Quarantine::new(dir.clone());
    let batch = reject(&mut quarantine, &[1], 0);
    quarantine.finalize(&batch, &ledger()).unwrap();
    remove(&list(&dir).unwrap().records[0]).unwrap();
    assert_eq!(all_files(&dir), [] as [&str; 0]);
}

/// LSNs restart when an operator removes the log's segments.
#[test]
fn a_record_with_the_lsn_of_another_replaces_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    let mut quarantine = Quarantine::new(dir.clone());
    let first = reject(&mut quarantine, &[1], 0);
    quarantine.finalize(&first, &ledger()).unwrap();
    // One more is left pending by a crash; then numbers restart, with other records.
    reject(&mut quarantine, &[2], 0);
    let mut quarantine = Quarantine::new(dir.clone());
    let entries = [8, 9].map(|number| {
        let Entry { lsn, record } = entry(number);
        Entry { lsn: Lsn::new(1, lsn.index() - 7), record }
    });
    let writer = OpeningId::from_bytes([2; 16]);
    let mut restarted = Batch::new(Entries { writer, entries: entries.into() });
    let config = ledger::Config { window: std::time::Duration::from_hours(1), max_ids: 1000 };
    restarted.deduplicate(&Ledger::new(&[writer], config));
    restarted.reject(0, &"too large");
    restarted.reject(0, &"too large");
    restarted.store(&mut quarantine).unwrap();
    quarantine.finalize(&restarted, &ledger()).unwrap();
    assert_eq!(held(&dir), [1, 2, 8], "9 was published, and nothing else is gone");
}

#[test]
fn an_error_at_one_record_does_not_have_the_others_decided_again() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("quarantine");
    let mut quarantine = Quarantine::new(dir.clone());
    let numbers: Vec<u32> = (1..=20).collect();
    for number in &numbers {
        quarantine.store(&entry(*number), "too large").unwrap();
    }
    // Nothing can be renamed to a directory with a file in it.
    let Entry { lsn, record } = entry(7);
    let in_the_way = quarantine.path((lsn, record.id), RECORD);
    fs::create_dir_all(in_the_way.join("file")).unwrap();
    for _ in 0..3 {
        quarantine.finalize_all(&ledger()).unwrap_err();
    }
    fs::remove_dir_all(in_the_way).unwrap();
    let Entry { lsn, record } = entry(9);
    let by_hand = quarantine.path((lsn, record.id), PENDING);
    let _ =
        fs::remove_file(&by_hand).and_then(|()| fs::remove_file(by_hand.with_extension(REASON)));
    quarantine.finalize_all(&ledger()).unwrap();
    assert!(held(&dir).len() >= 19, "{:?}", all_files(&dir));
    assert!(all_files(&dir).iter().all(|name| !name.ends_with(PENDING)), "{:?}", all_files(&dir));
}

#[test]
fn a_damaged_file_is_named_and_the_others_are_listed() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    let mut quarantine = Quarantine::new(dir.clone());
    for number in [1, 2, 3] {
        let batch = reject(&mut quarantine, &[number], 0);
        quarantine.finalize(&batch, &ledger()).unwrap();
    }
    let files: Vec<_> = list(&dir).unwrap().records.into_iter().map(|held| held.path).collect();
    fs::write(&files[0], "no record").unwrap();
    // A directory cannot be read as a file.
    fs::remove_file(&files[2]).unwrap();
    fs::create_dir(&files[2]).unwrap();
    assert_eq!(held(&dir), [2]);
    let damaged = list(&dir).unwrap().damaged;
    let paths: Vec<_> = damaged.iter().map(|file| &file.path).collect();
    assert_eq!(paths, [&files[0], &files[2]]);
    for file in damaged {
        let text = file.to_string();
        assert!(text.contains(file.path.to_str().unwrap()), "{text}");
        assert!(text.contains("restore the file"), "{text}");
    }
}

/// What is in the quarantine when its only file has these bytes: the number of its record, or why it
/// has none.
fn read(bytes: &[u8]) -> Result<u64, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("1.record"), bytes).unwrap();
    let Contents { mut records, mut damaged } = list(dir.path()).unwrap();
    assert_eq!(records.len() + damaged.len(), 1);
    let record = records.pop().map(|held| held.record.id.natural);
    record.ok_or_else(|| damaged.remove(0).to_string())
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut quarantine = Quarantine::new(dir.path().into());
    quarantine.store(&entry(7), "too large").unwrap();
    quarantine.finalize_all(&ledger()).unwrap();
    let whole = fs::read(&list(dir.path()).unwrap().records[0].path).unwrap();
    assert_eq!(read(&whole), Ok(7));
    assert!(read(&whole[..5]).unwrap_err().contains("its heading is damaged"));
    for end in 0..whole.len() {
        assert!(read(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        assert!(read(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn a_file_of_an_earlier_version_is_read_unless_it_is_cut_short() {
    let mut whole = BytesMut::new();
    entry(7).record.encode(&mut whole);
    assert_eq!(read(&whole), Ok(7));
    for end in 0..whole.len() {
        assert!(read(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
    }
}

#[test]
fn an_error_says_whether_the_quarantine_was_read_or_written() {
    let home = tempfile::tempdir().unwrap();
    let dir = dir_of(home.path());
    fs::write(&dir, "in the way").unwrap();
    let name = dir.to_str().unwrap();
    for error in
        [Quarantine::new(dir.clone()).finalize_all(&ledger()).unwrap_err(), list(&dir).unwrap_err()]
    {
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot read the quarantine {name}: ")), "{text}");
    }
    fs::remove_file(&dir).unwrap();
    let mut quarantine = Quarantine::new(dir.clone());
    quarantine.finalize_all(&ledger()).unwrap();
    fs::write(&dir, "in the way").unwrap();
    let text = quarantine.store(&entry(1), "too large").unwrap_err().to_string();
    assert!(text.starts_with(&format!("cannot write to the quarantine {name}")), "{text}");
}
