//! Shared by the tests and the benchmarks: brokers, consumers, clients, proxies, load.
//!
//! Brokers and the independent consumer are built from public artifacts on first use and kept in the target directory. Where they
//! are not available, a test prints `SKIPPED` and the reason; with `LIVEBRIDGE_REQUIRE_KAFKA=1`, as
//! in CI, that is a failure.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod bridge;
pub mod browser;
pub mod configured_bridge;
pub mod consumer;
pub mod intake;
pub mod json;
pub mod kafka;
pub mod kafka_gate;
pub mod load;
pub mod log;
pub mod metrics;
pub mod mount;
pub mod process;
pub mod proxy;
pub mod random;
pub mod rights;
pub mod shift;
pub mod skip;
pub mod tencent;
pub mod tls;
mod tools;
pub mod turn;
pub mod wire;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

pub use tools::Unavailable;
pub(crate) use tools::preload;

/// How long a test waits for what must happen soon, and for a response: long enough for a busy
/// machine, shorter than the intake's time-outs for headers, which must not be the cause.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The value, or `None` with a message that names the skipped test and the reason.
///
/// # Panics
/// Instead of skipping, when `LIVEBRIDGE_REQUIRE_KAFKA` is set.
pub fn or_skip<T>(test: &str, asked: Result<T, Unavailable>) -> Option<T> {
    let missing = match asked {
        Ok(thing) => return Some(thing),
        Err(missing) => missing,
    };
    skip::skip(test, &missing);
    None
}

/// A name that no other test or test run uses, for topics, instances and directories.
pub fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A temporary file with `contents`.
pub fn temp_file(contents: impl AsRef<[u8]>) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, contents).unwrap();
    file
}

/// All files below `dir`, in order.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort_unstable();
    found
}

/// Waits until `condition` holds.
///
/// # Panics
/// With the text of `message`, when it does not hold within `limit`.
#[track_caller]
pub fn wait_until<M: Display>(
    limit: Duration,
    mut condition: impl FnMut() -> bool,
    message: impl Fn() -> M,
) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "{}", message());
        thread::sleep(Duration::from_millis(20));
    }
}
