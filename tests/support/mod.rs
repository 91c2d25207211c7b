//! Shared by the integration tests: real Kafka brokers and an independent consumer.
//!
//! Both are built from public artifacts on first use and kept in the target directory. Where they
//! are not available, a test prints `SKIPPED` and the reason; with `LIVEBRIDGE_REQUIRE_KAFKA=1`, as
//! in CI, that is a failure.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]

pub mod bridge;
pub mod browser;
pub mod consumer;
pub mod kafka;
pub mod load;
pub mod proxy;
pub mod random;
pub mod rights;
pub mod skip;
pub mod tencent;
mod tools;

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

pub use tools::Unavailable;

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
    format!("{stem}-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
