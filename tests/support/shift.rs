//! A clock that can be set: a library for `LD_PRELOAD`, built with the system's C compiler.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::bridge::Bridge;
use super::preload;

/// The clock of the bridges to which it is applied.
#[derive(Debug)]
pub struct Shift {
    dir: tempfile::TempDir,
    library: PathBuf,
    file: File,
}

impl Shift {
    /// An unshifted clock; `None`, with a message, without a C compiler.
    pub fn new(test: &str) -> Option<Self> {
        let library = preload(test, "tests/support/shift.c")?;
        let dir = tempfile::TempDir::with_prefix_in("clock", env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::write(path(dir.path()), [0; 16]).unwrap();
        let file = File::options().write(true).open(path(dir.path())).unwrap();
        Some(Self { dir, library, file })
    }

    /// Sets the clock: this many seconds ahead of the system's.
    pub fn set(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// Lets time pass: this many seconds since the start.
    pub fn pass(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 8).unwrap();
    }

    /// Lets `bridge` run by this clock.
    pub fn apply(&self, bridge: Bridge) -> Bridge {
        let file = path(self.dir.path()).display().to_string();
        let library = self.library.display().to_string();
        bridge.variable("CLOCK_SHIFT", &file).variable("LD_PRELOAD", &library)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("seconds")
}
