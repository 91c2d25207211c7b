//! How far the log was published, on local disk: a copy of what the ledger says.
//!
//! It is used when Kafka is unreachable at the start, and when the ledger topic has expired its
//! records. It is written after each commit and never synced: an older copy means that the ledger
//! is ahead, and a torn one counts as missing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::LogId;
use super::opening::{OpeningId, Position};
use crate::record::Lsn;

const NAME: &str = "progress";

/// The copy, and where it is kept.
#[derive(Debug)]
pub(super) struct ProgressFile {
    log: LogId,
    saved: Option<Position>,
    /// `None` after a failure to write: the log works without.
    file: Option<File>,
}

impl ProgressFile {
    /// With what the last process left; `None` when the file is missing or torn.
    pub(super) fn open(dir: &Path, log: LogId) -> (Self, Option<Position>) {
        let path = dir.join(NAME);
        let saved = read(dir, log);
        let file = File::options().create(true).write(true).truncate(saved.is_none()).open(&path);
        if let Err(error) = &file {
            tracing::warn!(%error, path = %path.display(), "cannot keep a copy of the progress");
        }
        (Self { log, saved, file: file.ok() }, saved)
    }

    /// Everything up to `position` is published.
    pub(super) fn save(&mut self, position: Position) {
        let Some(file) = self.file.as_ref().filter(|_| self.saved != Some(position)) else {
            return;
        };
        self.saved = Some(position);
        if let Err(error) = file.write_all_at(line(self.log, position).as_bytes(), 0) {
            tracing::warn!(%error, "cannot keep a copy of the progress any more");
            // A half-written line counts as missing, and stays so.
            self.file = None;
        }
    }
}

/// What the copy in `dir` says; `None` when there is none, or it is torn or of another log.
pub(super) fn read(dir: &Path, log: LogId) -> Option<Position> {
    let text = fs::read_to_string(dir.join(NAME)).ok()?;
    let mut words = text.split(' ');
    let writer = words.next().and_then(OpeningId::parse)?;
    let lsn = words.next().and_then(Lsn::parse)?;
    let position = Position { writer, lsn };
    (line(log, position) == text).then_some(position)
}

/// Always of the same length, so that a line overwrites the one before it whole.
fn line(log: LogId, Position { writer, lsn }: Position) -> String {
    let text = format!("{writer} {:010}.{:010}", lsn.segment(), lsn.index());
    let checksum = crc32fast::hash(format!("{log} {text}").as_bytes());
    format!("{text} {checksum:08x}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId::from_bytes([7; 16]);

    fn at(lsn: Lsn) -> Position {
        Position { writer: OpeningId::from_bytes([9; 16]), lsn }
    }

    #[test]
    fn the_position_saved_last_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut progress, found) = ProgressFile::open(dir.path(), LOG);
        assert_eq!(found, None);
        for lsn in [Lsn::new(1, 7), Lsn::new(2, 1), Lsn::new(u32::MAX - 1, u32::MAX)] {
            progress.save(at(lsn));
            assert_eq!(ProgressFile::open(dir.path(), LOG).1, Some(at(lsn)));
        }
        // Numbers that restart are another opening's.
        let restarted = Position { writer: OpeningId::unique(), lsn: Lsn::new(1, 1) };
        progress.save(restarted);
        assert_eq!(ProgressFile::open(dir.path(), LOG).1, Some(restarted));
        let other = LogId::from_bytes([8; 16]);
        assert_eq!(ProgressFile::open(dir.path(), other).1, None, "another log's");
    }

    #[test]
    fn a_torn_line_counts_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let whole = line(LOG, at(Lsn::new(12, 3456)));
        for end in 0..whole.len() {
            fs::write(dir.path().join(NAME), &whole[..end]).unwrap();
            assert_eq!(ProgressFile::open(dir.path(), LOG).1, None, "{end} bytes");
        }
        for at in 0..whole.len() {
            let mut torn = whole.clone().into_bytes();
            torn[at] ^= 1;
            fs::write(dir.path().join(NAME), torn).unwrap();
            assert_eq!(ProgressFile::open(dir.path(), LOG).1, None, "byte {at}");
        }
    }
}
