//! A log whose files were damaged while it was stopped: intact records are read in order, damaged
//! ones are reported, and nothing that may still be recoverable is deleted.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use livebridge::metrics::{self, Exporter};
use livebridge::record::{Entry, Lsn};
use livebridge::wal::{self, LogView, OpenError, remove_damaged};
use proptest::prelude::*;
use proptest::sample::Index;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::log::{OpenLog, cases, copy_dir, record, segment_dirs, temp_dir, visit};
use crate::support::mount::Mount;
use crate::support::wait_until;

const MAGIC: &[u8] = b"\xFFLBWAL2\xFE";

/// Serialises tests that read metrics, because metrics are global to the process.
static EXPORTER: LazyLock<Mutex<Exporter>> =
    LazyLock::new(|| Mutex::new(metrics::install().expect("no recorder is installed yet")));

fn exporter() -> MutexGuard<'static, Exporter> {
    EXPORTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a log after the metrics recorder is installed.
fn open(dir: &Path) -> Result<OpenLog, OpenError> {
    LazyLock::force(&EXPORTER);
    OpenLog::open(dir)
}

/// The number of records reported as damaged.
fn damaged(exporter: &Exporter) -> u64 {
    let text = exporter.render();
    let line = text.lines().find(|line| line.starts_with("livebridge_wal_damaged_records_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// A frame in a segment's file.
#[derive(Clone, Debug)]
struct Place {
    bytes: Range<usize>,
    records: Range<u32>,
}

fn frames(data: &[u8]) -> Vec<Place> {
    let number = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
    let at = memchr::memmem::find_iter(data, MAGIC);
    at.map(|at| {
        let first = number(at + 28);
        Place {
            bytes: at..at + 44 + number(at + 36) as usize,
            records: first..first + number(at + 32),
        }
    })
    .collect()
}

/// A stopped log with many frames in one segment.
struct Stopped {
    /// Its files in memory, because a temporary directory in a static is never removed.
    files: Vec<(PathBuf, Vec<u8>)>,
    entries: Vec<Entry>,
    frames: Vec<Place>,
}

impl Stopped {
    /// Groups of one to five records of about 300 bytes, and some of several thousand bytes.
    fn new() -> Self {
        let dir = temp_dir();
        let log = open(dir.path()).unwrap();
        let mut number = 0;
        for group in 0..40 {
            let len = if group % 10 == 9 { 40_000 } else { 300 };
            let records = (number..=number + group % 5).map(|number| record(number, len));
            log.append_all(records.collect());
            number += 1 + group % 5;
        }
        log.close().unwrap();
        let entries = visit(dir.path());
        assert_eq!(entries.len() as u64, number);
        let frames = frames(&fs::read(Self::data_of(dir.path())).unwrap());
        let mut files = Vec::new();
        read_files(dir.path(), Path::new(""), &mut files);
        Self { files, entries, frames }
    }

    fn data_of(dir: &Path) -> PathBuf {
        segment_dirs(dir).remove(0).join("db")
    }

    /// A copy of the log to damage.
    fn copy(&self) -> tempfile::TempDir {
        let copy = temp_dir();
        for (path, bytes) in &self.files {
            let path = copy.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        copy
    }

    /// The entries of frames that have no byte in `hit`.
    fn whole(&self, hit: &Range<usize>) -> Vec<Entry> {
        let lost = |place: &&Place| place.bytes.start < hit.end && hit.start < place.bytes.end;
        let lost: Vec<_> = self.frames.iter().filter(lost).collect();
        let is_lost = |lsn: Lsn| lost.iter().any(|place| place.records.contains(&lsn.index()));
        self.entries.iter().filter(|entry| !is_lost(entry.lsn)).cloned().collect()
    }

    /// Opens the damaged `copy`: the entries in `left` are read, the others are reported.
    fn check(&self, copy: &Path, left: &[Entry]) {
        let exporter = exporter();
        let before = damaged(&exporter);
        let mut log = open(copy).unwrap();
        assert_eq!(log.log.stored().records, self.entries.len() as u64);
        let read = log.read();
        assert!(read == left, "{} of {} records are read", read.len(), left.len());
        let lost = (self.entries.len() - left.len()) as u64;
        assert_eq!(damaged(&exporter) - before, lost, "records reported as damaged");
        // The log works after the damage and releases the damaged records with the others.
        let lsn = log.append_all(vec![record(1_000_000, 10)])[0];
        assert_eq!(log.read().len(), 1);
        log.reader.release(lsn, None);
        assert_eq!(log.log.stored().records, 0);
        log.close().unwrap();
        assert!(visit(copy).iter().all(|entry| entry.lsn >= lsn), "the damaged segment is removed");
    }
}

fn read_files(dir: &Path, below: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir.join(below)).unwrap() {
        let path = below.join(entry.unwrap().file_name());
        if dir.join(&path).is_dir() {
            read_files(dir, &path, into);
        } else {
            let bytes = fs::read(dir.join(&path)).unwrap();
            into.push((path, bytes));
        }
    }
}

static STOPPED: LazyLock<Stopped> = LazyLock::new(Stopped::new);

fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_damaged_byte_anywhere_costs_the_records_of_its_frame_only(at: Index, flip in 1_u8..) {
        let copy = STOPPED.copy();
        let data = Stopped::data_of(copy.path());
        let bytes = fs::read(&data).unwrap();
        let at = at.index(bytes.len());
        overwrite(&data, at, &[bytes[at] ^ flip]);
        STOPPED.check(copy.path(), &STOPPED.whole(&(at..at + 1)));
    }

    #[test]
    fn a_zeroed_block_costs_the_records_of_the_frames_it_touches(block: Index) {
        const BLOCK: usize = 4096;
        let copy = STOPPED.copy();
        let data = Stopped::data_of(copy.path());
        let blocks = fs::read(&data).unwrap().len() / BLOCK;
        let at = block.index(blocks) * BLOCK;
        overwrite(&data, at, &[0; BLOCK]);
        STOPPED.check(copy.path(), &STOPPED.whole(&(at..at + BLOCK)));
    }

    #[test]
    fn a_truncated_segment_costs_what_is_cut_off(at: Index) {
        let copy = STOPPED.copy();
        let data = Stopped::data_of(copy.path());
        let at = at.index(fs::read(&data).unwrap().len());
        OpenOptions::new().write(true).open(&data).unwrap().set_len(at as u64).unwrap();
        STOPPED.check(copy.path(), &STOPPED.whole(&(at..usize::MAX)));
    }

    /// Only a killed process leaves a segment without its marker. Its last frame may never have
    /// been acknowledged, so it may be skipped; all others must be read.
    #[test]
    fn a_damaged_byte_in_a_killed_log_costs_no_other_frame(at: Index, flip in 1_u8..) {
        let copy = STOPPED.copy();
        let data = Stopped::data_of(copy.path());
        fs::remove_file(data.with_file_name("closed")).unwrap();
        let bytes = fs::read(&data).unwrap();
        let at = at.index(bytes.len());
        overwrite(&data, at, &[bytes[at] ^ flip]);
        let _turn = exporter();
        let mut log = open(copy.path()).unwrap();
        let left = STOPPED.whole(&(at..at + 1));
        prop_assert!(log.read() == left);
        log.close().unwrap();
    }
}

/// Regression: a changed digit in the marker made records, or the whole segment, disappear.
#[test]
fn a_damaged_marker_changes_nothing() {
    let copy = STOPPED.copy();
    let marker = segment_dirs(copy.path())[0].join("closed");
    let whole = fs::read(&marker).unwrap();
    let flips = (0..whole.len()).flat_map(|at| [1, 2, 4, 8, 16, 255].map(|flip| (at, flip)));
    let mut markers: Vec<Vec<u8>> = flips
        .map(|(at, flip)| {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            damaged
        })
        .collect();
    markers.extend((0..whole.len()).map(|cut| whole[..cut].to_vec()));
    let others: [&[u8]; 6] = [
        b"0 records\n", b"1 records\n", b"4000000000 records\n", b"99999999999 records\n",
        &[0; 64], b"\xFF\xFE",
    ];
    markers.extend(others.map(<[u8]>::to_vec));
    let exporter = exporter();
    let before = damaged(&exporter);
    for damaged in markers {
        fs::write(&marker, &damaged).unwrap();
        let mut log = open(copy.path()).unwrap();
        let read = log.read();
        assert!(
            read == STOPPED.entries,
            "{} records with {:?}",
            read.len(),
            damaged.escape_ascii().to_string()
        );
        log.close().unwrap();
    }
    assert_eq!(damaged(&exporter), before);
}

/// Regression: opening removed such a segment as empty, so a single damaged bit could destroy the
/// only copy of recoverable records.
#[test]
fn a_segment_without_a_readable_record_is_kept() {
    for closed in [false, true] {
        let dir = temp_dir();
        let log = open(dir.path()).unwrap();
        let last = log.append_all(vec![record(1, 300)])[0];
        log.close().unwrap();
        let data = Stopped::data_of(dir.path());
        if !closed {
            fs::remove_file(data.with_file_name("closed")).unwrap();
        }
        let bytes = fs::read(&data).unwrap();
        overwrite(&data, frames(&bytes)[0].bytes.start + 100, b"damage");
        let damaged_bytes = fs::read(&data).unwrap();

        let _turn = exporter();
        let mut log = open(dir.path()).unwrap();
        assert_eq!(log.read(), []);
        let next = log.append_all(vec![record(2, 300)])[0];
        assert!(next > last, "LSNs continue after the unreadable records");
        log.reader.release(next, None);
        log.close().unwrap();
        let kept = kept(dir.path());
        assert_eq!(kept.len(), 1, "closed {closed}: {kept:?}");
        assert_eq!(fs::read(kept[0].join("db")).unwrap(), damaged_bytes);
        // It is not read as a segment, and the next start does not modify it.
        open(dir.path()).unwrap().close().unwrap();
        assert_eq!(self::kept(dir.path()), kept);
    }
}

/// Regression: the segment was deleted with its neighbours before an operator could copy it.
#[test]
fn a_damaged_segment_is_kept_when_the_rest_of_it_is_released_also_by_a_later_process() {
    let _turn = exporter();
    for killed in [false, true] {
        let copy = STOPPED.copy();
        let data = Stopped::data_of(copy.path());
        let frame = &STOPPED.frames[STOPPED.frames.len() / 2];
        overwrite(&data, frame.bytes.start + 100, b"damage");
        let bytes = fs::read(&data).unwrap();
        let mut log = open(copy.path()).unwrap();
        let read = log.read();
        let last = read.last().unwrap().lsn;
        if killed {
            // Everything up to the last record is released, including the damaged records.
            log.reader.release(read[read.len() - 2].lsn, None);
            log.close().unwrap();
            assert_eq!(kept(copy.path()), Vec::<PathBuf>::new());
            log = open(copy.path()).unwrap();
            assert_eq!(log.read().last().unwrap().lsn, last);
        }
        log.reader.release(last, None);
        log.close().unwrap();
        let kept = kept(copy.path());
        assert_eq!(kept.len(), 1, "killed {killed}: {kept:?}");
        assert_eq!(fs::read(kept[0].join("db")).unwrap(), bytes);

        let view = LogView::open(copy.path()).unwrap();
        let segment = &view.damaged[0];
        let mut readable = Vec::new();
        view.read(segment, |entry| {
            readable.push(entry);
            Ok::<_, OpenError>(())
        })
        .unwrap();
        assert!(readable == STOPPED.whole(&frame.bytes), "what is readable can be exported");
        assert_eq!(segment.closed, Some(u32::try_from(STOPPED.entries.len()).unwrap()));

        // It uses disk space, and the log line reports how much.
        let log = open(copy.path()).unwrap();
        let is_counted = || log.log.stored().disk_bytes >= bytes.len() as u64;
        wait_until(Duration::from_secs(10), is_counted, || format!("{:?}", log.log.stored()));
        log.close().unwrap();
        remove_damaged(segment).unwrap();
        assert_eq!(self::kept(copy.path()), Vec::<PathBuf>::new());
    }
}

/// The damaged segments that are kept.
fn kept(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("segments")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "damaged")).collect()
}

/// Regression: the publisher ended with an error at every start.
#[test]
fn a_missing_data_file_is_reported_and_the_rest_is_read() {
    let dir = temp_dir();
    for number in 0..3 {
        let log = open(dir.path()).unwrap();
        log.append_all(vec![record(10 * number, 300), record(10 * number + 1, 300)]);
        log.close().unwrap();
    }
    let entries = visit(dir.path());
    let middle = entries[2].lsn.segment();
    fs::remove_file(dir.path().join(format!("segments/{middle:010}/db"))).unwrap();

    let exporter = exporter();
    let before = damaged(&exporter);
    let mut log = open(dir.path()).unwrap();
    let read = log.read();
    assert_eq!(read, [&entries[..2], &entries[4..]].concat());
    assert_eq!(damaged(&exporter) - before, 2);
    assert_eq!(log.append_all(vec![record(100, 10)]).len(), 1);
    log.close().unwrap();
}

#[test]
fn a_missing_segment_directory_leaves_the_others_in_order() {
    let dir = temp_dir();
    for number in 0..3 {
        let log = open(dir.path()).unwrap();
        log.append_all(vec![record(number, 300)]);
        log.close().unwrap();
    }
    let entries = visit(dir.path());
    let middle = entries[1].lsn.segment();
    fs::remove_dir_all(dir.path().join(format!("segments/{middle:010}"))).unwrap();
    let _turn = exporter();
    let mut log = open(dir.path()).unwrap();
    assert_eq!(log.log.stored().records, 2);
    assert_eq!(log.read(), [entries[0].clone(), entries[2].clone()]);
    log.close().unwrap();
}

fn open_error(dir: &Path) -> OpenError {
    open(dir).expect_err("the log is not opened")
}

#[test]
fn a_log_of_another_format_is_rejected_by_name_and_not_modified() {
    let damaged = STOPPED.copy();
    let identity = damaged.path().join("log");
    let ours = fs::read_to_string(&identity).unwrap();
    let theirs = [
        ours.replace("format 2", "format 1"),
        ours.replace("livebridge log", "another log"),
        ours[..ours.len() / 2].to_owned(),
        String::new(),
        "\0".repeat(ours.len()),
    ];
    for text in theirs {
        fs::write(&identity, &text).unwrap();
        let error = open_error(damaged.path());
        assert!(matches!(&error, OpenError::Format { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains(&damaged.path().display().to_string()), "{error}");
        let visited = wal::visit(damaged.path(), |_| Ok::<_, OpenError>(()));
        assert!(matches!(visited, Err(OpenError::Format { .. })), "{visited:?}");
    }
    fs::write(&identity, &ours).unwrap();
    assert_eq!(visit(damaged.path()), STOPPED.entries, "nothing was modified");
}

/// Regression: opening created a new identity, treated every segment as another log's, and removed
/// them all.
#[test]
fn a_log_without_its_identity_is_rejected_and_not_modified() {
    let damaged = STOPPED.copy();
    let identity = damaged.path().join("log");
    let ours = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    let error = open_error(damaged.path());
    assert!(error.to_string().contains(&identity.display().to_string()), "{error}");
    fs::write(&identity, &ours).unwrap();
    assert_eq!(visit(damaged.path()), STOPPED.entries, "nothing was modified");
}

#[test]
fn an_identity_that_is_not_text_is_rejected() {
    let damaged = STOPPED.copy();
    let identity = damaged.path().join("log");
    fs::write(&identity, b"livebridge log, format 2, id \xFF\xFE").unwrap();
    let error = open_error(damaged.path());
    assert!(error.to_string().contains(&identity.display().to_string()), "{error}");
}

#[test]
fn an_invalid_log_directory_is_rejected_with_its_path() {
    let dir = temp_dir();
    let file = dir.path().join("a-file");
    fs::write(&file, "text").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = open_error(&path);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
    let missing = dir.path().join("missing");
    let visited = wal::visit(&missing, |_| Ok::<_, OpenError>(()));
    assert!(matches!(&visited, Err(OpenError::Missing(path)) if *path == missing), "{visited:?}");
    assert!(!missing.exists(), "inspecting creates nothing");
    let deep = dir.path().join("a/b/c");
    open(&deep).unwrap().close().unwrap();
    assert!(deep.join("log").exists(), "missing directories are made");
}

#[test]
fn a_segment_that_cannot_be_opened_is_listed_and_reading_it_is_an_error() {
    let copy = STOPPED.copy();
    let segments = LogView::open(copy.path()).unwrap().segments.len();
    let dir = segment_dirs(copy.path()).pop().unwrap();
    fs::remove_file(dir.join("db")).unwrap();
    // A socket has metadata and cannot be opened.
    let (kind, mode) = (FileType::Socket, Mode::RUSR);
    mknodat(CWD, dir.join("db"), kind, mode, 0).unwrap();
    let view = LogView::open(copy.path()).unwrap();
    assert_eq!(view.segments.len(), segments);
    let error = view.read(view.segments.last().unwrap(), |_| Ok::<_, OpenError>(())).unwrap_err();
    assert!(error.to_string().contains(&dir.join("db").display().to_string()), "{error}");
}

#[test]
fn leftovers_of_a_kill_are_removed() {
    let copy = STOPPED.copy();
    let segments = copy.path().join("segments");
    let with_marker = |name: &str, marker: &[u8]| {
        let dir = segments.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("closed"), marker).unwrap();
    };
    // An interrupted removal of a segment with records.
    copy_dir(&segment_dirs(copy.path())[0], &segments.join("0000000000.gone"));
    fs::create_dir(segments.join("0000000007")).unwrap();
    with_marker("0000000008", b"garbage");
    with_marker("0000000009", b"0 records\n");
    fs::create_dir(segments.join("0000000010")).unwrap();
    fs::write(segments.join("0000000010/db"), [0; 10_000]).unwrap();
    fs::write(copy.path().join("log.partial"), "liveb").unwrap();
    fs::write(segments.join("notes.txt"), "not ours").unwrap();
    fs::create_dir(segments.join("lost+found")).unwrap();

    let _turn = exporter();
    let mut log = open(copy.path()).unwrap();
    assert_eq!(log.log.stored().records, STOPPED.entries.len() as u64);
    assert!(log.read() == STOPPED.entries);
    assert_eq!(log.append_all(vec![record(1, 10)])[0], Lsn::new(11, 1));
    log.close().unwrap();
    let names: Vec<_> =
        fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for gone in ["0000000000.gone", "0000000007", "0000000008", "0000000009"] {
        assert!(!names.iter().any(|name| name == gone), "{gone} is removed");
    }
    for kept in ["notes.txt", "lost+found"] {
        assert!(names.iter().any(|name| name == kept), "{kept} is none of the log's business");
    }
}

/// Root can write everywhere except on a read-only mount.
#[test]
fn a_read_only_directory_is_rejected_with_its_path() {
    let dir = temp_dir();
    let Some(mount) = Mount::at("a read-only directory", dir.path(), "ro,size=1m") else { return };
    let error = open_error(&dir.path().join("data"));
    drop(mount);
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    assert!(error.to_string().contains("Read-only"), "{error}");
}

/// Regression: damaged records counted as unpublished until a later record was published, and for
/// ever if there was none.
#[test]
fn damaged_records_are_released_with_those_before_them() {
    let _turn = exporter();
    for kept in [STOPPED.frames.len() / 2, 0] {
        let copy = STOPPED.copy();
        let data = Stopped::data_of(copy.path());
        for place in &STOPPED.frames[kept..] {
            overwrite(&data, place.bytes.start + 50, b"damage");
        }
        let mut log = open(copy.path()).unwrap();
        assert_eq!(log.log.stored().records, STOPPED.entries.len() as u64);
        let read = log.read();
        assert_eq!(
            read.len(),
            STOPPED.frames[..kept].iter().map(|place| place.records.len()).sum::<usize>()
        );
        if let Some(last) = read.last() {
            assert_eq!(log.log.stored().records, STOPPED.entries.len() as u64, "not before");
            log.reader.release(last.lsn, None);
        }
        assert_eq!(log.log.stored().records, 0);
        assert_eq!(log.log.stored().segments, 0);
        log.close().unwrap();
    }
}
