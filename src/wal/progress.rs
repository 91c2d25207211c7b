//! How far the log was published, on local disk: a copy of what the ledger says of this log.
//!
//! The ledger in Kafka is the truth; this copy spares what it tells when Kafka is away at the
//! start, and stands in when the ledger topic has forgotten it, which it does after a week. It is
//! written after each commit and never synced: an older one only means that the ledger knows more,
//! and a torn one is none.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::LogId;
use crate::record::Lsn;

const NAME: &str = "progress";

/// The copy, and where it is kept.
#[derive(Debug)]
pub(super) struct Progress {
    log: LogId,
    saved: Lsn,
    /// `None` when it cannot be written: then it is done without.
    file: Option<File>,
}

impl Progress {
    /// With what the last process left; [`Lsn::ZERO`] when that is nothing, or torn, or names a
    /// segment that is yet to be made: then segments were taken away, and numbers are given again.
    pub(super) fn open(dir: &Path, log: LogId, first_new: u32) -> (Self, Lsn) {
        let path = dir.join(NAME);
        let through = read(dir, log);
        let through = through.filter(|through| through.segment() < first_new);
        // What is not believed now must not be believed when the segment has been made.
        let file = File::options().create(true).write(true).truncate(through.is_none()).open(&path);
        if let Err(error) = &file {
            tracing::warn!(%error, path = %path.display(), "cannot keep a copy of the progress");
        }
        let saved = through.unwrap_or(Lsn::ZERO);
        (Self { log, saved, file: file.ok() }, saved)
    }

    /// Everything up to `through` is done with. It never goes back, whatever the ledger forgot.
    pub(super) fn save(&mut self, through: Lsn) {
        let Some(file) = self.file.as_ref().filter(|_| through > self.saved) else { return };
        self.saved = through;
        if let Err(error) = file.write_all_at(line(self.log, through).as_bytes(), 0) {
            tracing::warn!(%error, "cannot keep a copy of the progress any more");
            // A half-written one must not stay the last word.
            self.file = None;
        }
    }
}

/// What the copy in `dir` says; `None` when there is none, or it is torn or of another log.
pub(super) fn read(dir: &Path, log: LogId) -> Option<Lsn> {
    let text = fs::read_to_string(dir.join(NAME)).ok()?;
    let through = text.split(' ').next().and_then(Lsn::parse)?;
    (line(log, through) == text).then_some(through)
}

/// Always of the same length, so that a line overwrites the one before it whole.
fn line(log: LogId, through: Lsn) -> String {
    let location = format!("{:010}.{:010}", through.segment(), through.index());
    let checksum = crc32fast::hash(format!("{log} {location}").as_bytes());
    format!("{location} {checksum:08x}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId::from_bytes([7; 16]);

    #[test]
    fn what_was_saved_last_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut progress, found) = Progress::open(dir.path(), LOG, u32::MAX);
        assert_eq!(found, Lsn::ZERO);
        for lsn in [Lsn::new(1, 7), Lsn::new(2, 1), Lsn::new(u32::MAX - 1, u32::MAX)] {
            progress.save(lsn);
            assert_eq!(Progress::open(dir.path(), LOG, u32::MAX).1, lsn);
            progress.save(Lsn::new(1, 1));
            assert_eq!(Progress::open(dir.path(), LOG, u32::MAX).1, lsn, "it does not go back");
        }
        let other = LogId::from_bytes([8; 16]);
        assert_eq!(Progress::open(dir.path(), other, u32::MAX).1, Lsn::ZERO, "another log's");
    }

    #[test]
    fn what_is_beyond_the_log_is_none() {
        let dir = tempfile::tempdir().unwrap();
        Progress::open(dir.path(), LOG, u32::MAX).0.save(Lsn::new(5, 7));
        assert_eq!(Progress::open(dir.path(), LOG, 6).1, Lsn::new(5, 7));
        let (mut progress, found) = Progress::open(dir.path(), LOG, 5);
        assert_eq!(found, Lsn::ZERO);
        progress.save(Lsn::new(1, 1));
        assert_eq!(Progress::open(dir.path(), LOG, 6).1, Lsn::new(1, 1));
    }

    #[test]
    fn a_torn_line_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let whole = line(LOG, Lsn::new(12, 3456));
        for end in 0..whole.len() {
            fs::write(dir.path().join(NAME), &whole[..end]).unwrap();
            assert_eq!(Progress::open(dir.path(), LOG, u32::MAX).1, Lsn::ZERO, "{end} bytes");
        }
        for at in 0..whole.len() {
            let mut torn = whole.clone().into_bytes();
            torn[at] ^= 1;
            fs::write(dir.path().join(NAME), torn).unwrap();
            assert_eq!(Progress::open(dir.path(), LOG, u32::MAX).1, Lsn::ZERO, "byte {at}");
        }
    }
}
