//! File systems in memory, for tests of full and read-only disks.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use livebridge::wal;
use tempfile::TempDir;

use super::log::temp_dir;
use super::skip;

/// The unit in which tmpfs allocates memory.
const PAGE: usize = 4096;

/// A tmpfs, unmounted when the value is dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    path: PathBuf,
    /// The mount point, if it is temporary.
    dir: Option<TempDir>,
}

impl Mount {
    /// Mounts a tmpfs on a temporary directory; `None`, with a message, without the permission.
    pub(crate) fn new(test: &str, options: &str) -> Option<Self> {
        let dir = temp_dir();
        let mut mount = Self::at(test, dir.path(), options)?;
        mount.dir = Some(dir);
        Some(mount)
    }

    /// As [`Mount::new`], on the directory `path`, which is created if it does not exist.
    pub(crate) fn at(test: &str, path: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path);
        if mount.output().is_ok_and(|done| done.status.success()) {
            return Some(Self { path: path.to_owned(), dir: None });
        }
        skip::skip(test, &"mounting needs root");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        wal::free_bytes(&self.path).unwrap()
    }

    /// Fills the file system except for `left` bytes.
    pub(crate) fn fill(&self, left: u64) -> Filler<'_> {
        let filler = Filler { mount: self, left };
        filler.refill();
        filler
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: threads of a killed log may still use it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A file that uses disk space until it is dropped.
#[derive(Debug)]
pub(crate) struct Filler<'m> {
    mount: &'m Mount,
    left: u64,
}

impl Filler<'_> {
    fn path(&self) -> PathBuf {
        self.mount.path.join("filler")
    }

    /// Uses the space that was freed since as well.
    pub(crate) fn refill(&self) {
        let mut file = File::options().create(true).append(true).open(self.path()).unwrap();
        let page = [0x55; PAGE];
        while self.mount.free_bytes() >= self.left + PAGE as u64 && file.write_all(&page).is_ok() {}
    }
}

impl Drop for Filler<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path());
    }
}
