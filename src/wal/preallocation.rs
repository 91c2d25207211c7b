//! Preallocation: zeros at the end of a segment's file, which commits overwrite.
//!
//! A commit into such space cannot fail for lack of space, and changes neither the file's size nor
//! its blocks: its `fdatasync` writes the data only, where a growing file takes two more writes, of
//! the file system's journal. Zeros are only appended (`O_APPEND`): the kernel chooses the offset
//! and writes there in one step, so zeros never overwrite what sled writes at the same time.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What is preallocated and synced at once in the background.
pub(super) const PIECE_BYTES: u64 = 1024 * 1024;
/// Zeros that [`trim`] leaves at a file's end, more than a frame can end with.
const KEPT_BYTES: u64 = 1024 * 1024;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A segment's file, opened to append zeros.
///
/// It must be opened for this purpose alone: the kernel reports an error of writing back once for
/// each time the file is opened, and the segment's own descriptor must see it.
#[derive(Debug)]
pub(super) struct Preallocation {
    file: File,
    len: u64,
}

impl Preallocation {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// The file's length; it may have grown since.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends zeros if the file has less than `at_least` bytes, until it has `len`. What could be
    /// appended before an error stays for the next attempt.
    pub(super) fn grow(&mut self, at_least: u64, len: u64) -> io::Result<()> {
        self.len = self.file.metadata()?.len();
        if self.len >= at_least {
            return Ok(());
        }
        while self.len < len {
            let bytes = (len - self.len).min(ZEROS.len() as u64);
            let zeros = &ZEROS[..usize::try_from(bytes).unwrap_or(ZEROS.len())];
            self.file.write_all(zeros)?;
            self.len += bytes;
        }
        Ok(())
    }

    /// Has what was written, and the file's length, on disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Returns the preallocated space of a file that will not be written again.
pub(super) fn trim(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut end = len;
    let mut block = vec![0; ZEROS.len()];
    while end > 0 {
        let start = (end - 1) / ZEROS.len() as u64 * ZEROS.len() as u64;
        let part = &mut block[..usize::try_from(end - start).unwrap_or(ZEROS.len())];
        file.read_exact_at(part, start)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            end = start + last as u64 + 1;
            break;
        }
        end = start;
    }
    let kept = end + KEPT_BYTES;
    if kept < len { file.set_len(kept) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn zeros_are_appended_behind_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fs::write(&path, "data").unwrap();
        let mut preallocation = Preallocation::open(&path).unwrap();
        preallocation.grow(100_000, 100_000).unwrap();
        preallocation.sync().unwrap();
        assert_eq!(preallocation.len(), 100_000);
        let mut expected = b"data".to_vec();
        expected.resize(100_000, 0);
        assert_eq!(fs::read(&path).unwrap(), expected);
        preallocation.grow(50, 200_000).unwrap();
        assert_eq!(preallocation.len(), 100_000, "it has enough");
    }

    #[test]
    fn trimming_keeps_the_data_and_a_frames_worth_of_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let size = |data: usize, zeros: usize| {
            let mut bytes = vec![7; data];
            bytes.resize(data + zeros, 0);
            fs::write(&path, &bytes).unwrap();
            trim(&path).unwrap();
            let left = fs::read(&path).unwrap();
            assert_eq!(left, bytes[..left.len()]);
            left.len()
        };
        let kept = usize::try_from(KEPT_BYTES).unwrap();
        assert_eq!(size(0, 0), 0);
        assert_eq!(size(100, 0), 100);
        assert_eq!(size(100, kept), 100 + kept);
        assert_eq!(size(100, 3 * kept), 100 + kept);
        assert_eq!(size(65_536, 3 * kept), 65_536 + kept);
        assert_eq!(size(0, 3 * kept), kept);
    }
}
