//! Gaps: times in which this instance accepted no callback for longer than Tencent's retries last,
//! so that events may be missing until `livebridge recover` has published them.
//!
//! While callbacks are accepted, the time is written to `last-accepting` in the log's directory. A
//! gap that has ended is a file in `gaps`, named after its begin and end, until it is recovered:
//! one file per gap, because a running bridge adds them while another process removes them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::event::Timestamp;
use crate::permission::FileError;
use crate::wal::{create_dir_durably, sync_dir, write_durably};

mod watch;

pub(crate) use watch::Watch;

/// A shorter time without acceptance loses no callback of the types with documented retries, which
/// outlast it (docs/protocol.md, section 4).
pub const GAP_MIN: Duration = Duration::from_mins(10);
/// How long Tencent Cloud keeps its records of callbacks; older gaps cannot be recovered.
pub const RECOVERABLE: Duration = Duration::from_hours(14 * 24);
/// Gaps that are kept. With one more, the two oldest are merged.
const GAPS_MAX: usize = 64;

const LAST_ACCEPTING: &str = "last-accepting";
const GAPS: &str = "gaps";

/// A time without acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// When a callback was last accepted, or would have been.
    pub begin: Timestamp,
    /// When a callback was next accepted, or would have been; or now.
    pub end: Timestamp,
}

impl Gap {
    /// How long it is.
    #[must_use]
    pub fn length(self) -> Duration {
        self.end.since(self.begin)
    }

    /// The gap that a file's name encodes.
    fn parse(name: &str) -> Option<Self> {
        let (begin, end) = name.split_once('-')?;
        let time = |text: &str| text.parse().ok().map(Timestamp::from_millis);
        Some(Self { begin: time(begin)?, end: time(end)? })
    }

    fn file(self, dir: &Path) -> PathBuf {
        dir.join(GAPS).join(format!("{}-{}", self.begin.as_millis(), self.end.as_millis()))
    }
}

/// The gaps that are recorded in the log's directory `dir`, oldest first.
///
/// # Errors
/// When the directory exists and cannot be read.
pub fn recorded(dir: &Path) -> Result<Vec<Gap>, FileError> {
    let dir = dir.join(GAPS);
    let entries = match fs::read_dir(&dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(FileError::at("read", &dir))?,
    };
    let mut gaps = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::at("read", &dir))?;
        gaps.extend(entry.file_name().to_str().and_then(Gap::parse));
    }
    gaps.sort_unstable();
    Ok(gaps)
}

/// The recorded gaps, and the current one: an instance that is stopped or rejects everything has
/// not recorded it yet.
///
/// # Errors
/// As [`recorded`].
pub fn all(dir: &Path, now: Timestamp) -> Result<Vec<Gap>, FileError> {
    // First, because a bridge that starts records the gap before it writes the time.
    let current = read_last_accepting(dir).map(|begin| Gap { begin, end: now });
    let mut gaps = recorded(dir)?;
    gaps.extend(current.filter(|gap| gap.length() > GAP_MIN));
    Ok(gaps)
}

/// Removes the recorded gaps that `is_recovered` selects, and returns them.
///
/// # Errors
/// When a file cannot be read or removed.
pub fn remove(dir: &Path, is_recovered: impl Fn(Gap) -> bool) -> Result<Vec<Gap>, FileError> {
    let mut gaps = recorded(dir)?;
    gaps.retain(|gap| is_recovered(*gap));
    for gap in &gaps {
        remove_file(&gap.file(dir))?;
    }
    Ok(gaps)
}

/// Removes a file, which another process may have removed first.
fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(FileError::at("remove", path)(cause))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn create_file(path: &Path) -> Result<(), FileError> {
    File::create(path).and_then(|file| file.sync_all()).map_err(FileError::at("write", path))
}

/// Records a gap, durably.
fn record(dir: &Path, gap: Gap) -> Result<(), FileError> {
    let gaps = dir.join(GAPS);
    create_dir_durably(&gaps).map_err(FileError::at("create", &gaps))?;
    let known = recorded(dir)?;
    create_file(&gap.file(dir))?;
    if let (GAPS_MAX.., [first, second, ..]) = (known.len(), &known[..]) {
        let both = Gap { begin: first.begin, end: first.end.max(second.end) };
        create_file(&both.file(dir))?;
        for part in [first, second].into_iter().filter(|part| **part != both) {
            remove_file(&part.file(dir))?;
        }
    }
    sync_dir(&gaps).map_err(FileError::at("sync", &gaps))
}

/// `None` if callbacks were never accepted with this directory, or the file cannot be parsed.
fn read_last_accepting(dir: &Path) -> Option<Timestamp> {
    Timestamp::parse(fs::read_to_string(dir.join(LAST_ACCEPTING)).ok()?.trim())
}

fn write_last_accepting(dir: &Path, now: Timestamp) -> Result<(), FileError> {
    let path = dir.join(LAST_ACCEPTING);
    write_durably(&path, format!("{now}\n").as_bytes()).map_err(FileError::at("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minute(minute: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + minute * 60_000)
    }

    const fn gap(begin: i64, end: i64) -> Gap {
        Gap { begin: minute(begin), end: minute(end) }
    }

    #[test]
    fn gaps_stay_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(recorded(dir.path()).unwrap(), []);
        for gap in [gap(100, 120), gap(0, 11)] {
            record(dir.path(), gap).unwrap();
        }
        fs::write(dir.path().join(GAPS).join("other"), "").unwrap();
        assert_eq!(recorded(dir.path()).unwrap(), [gap(0, 11), gap(100, 120)]);
        assert_eq!(remove(dir.path(), |gap| gap.end < minute(50)).unwrap(), [gap(0, 11)]);
        assert_eq!(recorded(dir.path()).unwrap(), [gap(100, 120)]);
    }

    #[test]
    fn the_oldest_become_one_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let count = i64::try_from(GAPS_MAX).unwrap() + 3;
        for number in 0..count {
            record(dir.path(), gap(100 * number, 100 * number + 20)).unwrap();
        }
        let known = recorded(dir.path()).unwrap();
        assert_eq!(known.len(), GAPS_MAX);
        assert_eq!(known[0], gap(0, 320));
        assert_eq!(known[1], gap(400, 420));
        assert_eq!(known.last(), Some(&gap(100 * (count - 1), 100 * (count - 1) + 20)));
        // The oldest contains the next one.
        remove(dir.path(), |_| true).unwrap();
        record(dir.path(), gap(0, 1_000_000)).unwrap();
        for number in 0..count {
            record(dir.path(), gap(100 * number + 1, 100 * number + 20)).unwrap();
        }
        assert_eq!(recorded(dir.path()).unwrap()[0], gap(0, 1_000_000));
        assert_eq!(recorded(dir.path()).unwrap().len(), GAPS_MAX);
    }

    #[test]
    fn the_current_gap_counts_once_the_retries_are_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all(dir.path(), minute(5000)).unwrap(), [], "never accepted");
        record(dir.path(), gap(0, 20)).unwrap();
        write_last_accepting(dir.path(), minute(100)).unwrap();
        assert_eq!(all(dir.path(), minute(110)).unwrap(), [gap(0, 20)]);
        assert_eq!(all(dir.path(), minute(111)).unwrap(), [gap(0, 20), gap(100, 111)]);
        assert_eq!(all(dir.path(), minute(50)).unwrap(), [gap(0, 20)], "a clock set back");
        fs::write(dir.path().join(LAST_ACCEPTING), "yesterday").unwrap();
        assert_eq!(all(dir.path(), minute(111)).unwrap(), [gap(0, 20)]);
    }
}
