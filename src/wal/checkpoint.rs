//! Checkpoint files: small texts in the log's directory that tell the next process where this one was.
//!
//! Each ends in a checksum, which covers the log's id too. A file that is torn, or that belongs to
//! another log, counts as missing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::LogId;
use super::dir::{sync_dir, write_durably};

/// What a checkpoint file says.
pub(super) trait Checkpoint: Sized {
    /// The file's name.
    const NAME: &'static str;
    /// What stands before the checksum.
    const CHECKSUM: &'static str;

    /// The text before that.
    fn text(&self) -> String;

    /// The value whose text is at the beginning of `file`.
    fn parse(file: &str) -> Option<Self>;
}

/// What a file says that is [overwritten in place](CheckpointFile): its text is always of the same
/// length, and shorter than what a disk writes at once.
pub(super) trait Overwritten: Checkpoint + Copy + PartialEq {
    /// What it is, in log lines.
    const CONTENT: &'static str;
    /// Whether an old text is worse than none: the file is then removed when writing it fails.
    const MISLEADS_WHEN_OLD: bool;
}

/// What the file in `dir` says; `None` when there is none, or it is torn or of another log.
pub(super) fn read<T: Checkpoint>(dir: &Path, log: LogId) -> Option<T> {
    parse(&fs::read_to_string(dir.join(T::NAME)).ok()?, log)
}

/// Replaces the file in `dir`, durably.
pub(super) fn replace<T: Checkpoint>(dir: &Path, log: LogId, value: &T) -> io::Result<()> {
    write_durably(&dir.join(T::NAME), with_checksum(value, log).as_bytes())?;
    sync_dir(dir)
}

fn parse<T: Checkpoint>(file: &str, log: LogId) -> Option<T> {
    T::parse(file).filter(|value| with_checksum(value, log) == file)
}

fn with_checksum<T: Checkpoint>(value: &T, log: LogId) -> String {
    let text = value.text();
    let checksum = crc32fast::hash(format!("{log} {text}").as_bytes());
    format!("{text}{}{checksum:08x}\n", T::CHECKSUM)
}

/// A checkpoint file that is overwritten in place.
#[derive(Debug)]
pub(super) struct CheckpointFile<T> {
    log: LogId,
    path: PathBuf,
    saved: Option<T>,
    /// `None` after a failure to write: the log works without.
    file: Option<File>,
}

impl<T: Overwritten> CheckpointFile<T> {
    /// With what the last process left.
    pub(super) fn open(dir: &Path, log: LogId) -> (Self, Option<T>) {
        let path = dir.join(T::NAME);
        let text = match fs::read_to_string(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => text,
        };
        let found: Option<T> = text.as_ref().ok().and_then(|text| parse(text, log));
        if found.is_none() && !text.as_ref().is_ok_and(String::is_empty) {
            tracing::warn!(
                path = %path.display(),
                cause = text.err().map(tracing::field::display),
                "{} cannot be read: the file is damaged, or of another log; it begins anew",
                T::CONTENT
            );
        }
        let file = File::options().create(true).write(true).truncate(found.is_none()).open(&path);
        if let Err(error) = &file {
            tracing::warn!(%error, path = %path.display(), "cannot keep {}", T::CONTENT);
        }
        (Self { log, path, saved: found, file: file.ok() }, found)
    }

    /// Not synced. After a kill the page cache has the newest text; after a power cut an older one is
    /// read.
    pub(super) fn save(&mut self, value: &T) {
        if self.file.is_none() || self.saved.as_ref() == Some(value) {
            return;
        }
        self.saved = Some(*value);
        let text = with_checksum(value, self.log);
        self.write(|file| file.write_all_at(text.as_bytes(), 0));
    }

    pub(super) fn save_durably(&mut self, value: &T) {
        self.save(value);
        self.write(File::sync_data);
    }

    fn write(&mut self, work: impl FnOnce(&File) -> io::Result<()>) {
        let Some(file) = &self.file else { return };
        if let Err(error) = work(file) {
            tracing::warn!(
                %error, path = %self.path.display(), "cannot keep {} any more", T::CONTENT
            );
            if T::MISLEADS_WHEN_OLD {
                let _ = fs::remove_file(&self.path);
            }
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::super::opening::{Lineage, OpeningId};
    use super::super::progress::Position;
    use super::super::self_audit::AuditTotals;
    use super::*;
    use crate::event::Timestamp;
    use crate::record::Lsn;

    const LOG: LogId = LogId::from_bytes([7; 16]);

    fn at(lsn: Lsn) -> Position {
        Position { writer: OpeningId::from_bytes([9; 16]), lsn }
    }

    fn assert_read_whole_or_not_at_all<T: Checkpoint + Debug + PartialEq>(value: &T) {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read::<T>(dir.path(), LOG), None);
        replace(dir.path(), LOG, value).unwrap();
        assert_eq!(read::<T>(dir.path(), LOG).as_ref(), Some(value));
        let other = LogId::from_bytes([8; 16]);
        assert_eq!(read::<T>(dir.path(), other), None, "another log's");
        let whole = fs::read(dir.path().join(T::NAME)).unwrap();
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 0x80 >> (at % 8);
            fs::write(dir.path().join(T::NAME), &torn).unwrap();
            assert_eq!(read::<T>(dir.path(), LOG), None, "byte {at}");
            fs::write(dir.path().join(T::NAME), &whole[..at]).unwrap();
            assert_eq!(read::<T>(dir.path(), LOG), None, "{at} bytes");
        }
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        assert_read_whole_or_not_at_all(&at(Lsn::new(12, 3456)));
        assert_read_whole_or_not_at_all(&AuditTotals::of_distinct_counts());
        let lineage = [1, 2].map(|number| OpeningId::from_bytes([number; 16]));
        assert_read_whole_or_not_at_all(&Lineage(lineage.into()));
    }

    /// An upgrade must read the files of the release before.
    #[test]
    fn the_files_have_these_bytes() {
        let progress = with_checksum(&at(Lsn::new(12, 3456)), LOG);
        assert_eq!(
            progress,
            "09090909-0909-0909-0909-090909090909 0000000012.0000003456 abf1cf62\n"
        );
        let lineage = [1, 2].map(|number| OpeningId::from_bytes([number; 16]));
        assert_eq!(
            with_checksum(&Lineage(lineage.into()), LOG),
            "livebridge openings 1\n01010101-0101-0101-0101-010101010101\n\
             02020202-0202-0202-0202-020202020202\nchecksum 69dd5c77\n"
        );
        let totals = with_checksum(&AuditTotals::new(Timestamp::from_millis(1)), LOG);
        assert_eq!(totals.len(), 449);
        assert!(totals.starts_with(
            "livebridge self-audit 2\nsince 00000000000000000001\naccepted 00000000000000000000\n\
             through 0000000000.0000000000 00000000-0000-0000-0000-000000000000\nreleased 0"
        ));
        assert!(totals.ends_with("\ndamaged 00000000000000000000\nchecksum 382c32f7\n"));
    }

    #[test]
    fn the_value_saved_last_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, found) = CheckpointFile::open(dir.path(), LOG);
        assert_eq!(found, None);
        for lsn in [Lsn::new(1, 7), Lsn::new(2, 1), Lsn::new(u32::MAX - 1, u32::MAX)] {
            file.save(&at(lsn));
            assert_eq!(CheckpointFile::open(dir.path(), LOG).1, Some(at(lsn)));
        }
        // Numbers that restart are another opening's.
        let restarted = Position { writer: OpeningId::unique(), lsn: Lsn::new(1, 1) };
        file.save(&restarted);
        assert_eq!(CheckpointFile::open(dir.path(), LOG).1, Some(restarted));
    }
}
