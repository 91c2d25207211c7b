//! Logs of unpublished callbacks, created once and copied for many runs.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::Fallible;
use super::bench::Bench;
use super::bridge::{Bridge, Brokers};
use super::load::{self, Plan};
use super::stats::real;

/// Connections that fill a log.
const CONNECTIONS: u32 = 64;

/// Files from this size on are data files of segments, which are not written again: they are
/// hard-linked.
const SHARED_FROM: u64 = 1 << 20;

/// The maximum number of records added between two checks of the total.
const STEP: Duration = Duration::from_secs(5);

/// A directory as livebridge leaves it when it stops while Kafka is unreachable.
#[derive(Debug)]
pub(crate) struct Stock {
    directory: TempDir,
    pub(crate) records: u64,
}

impl Stock {
    /// A log of at least `records` callbacks, which extends a copy of `below`, if given.
    pub(crate) fn fill(bench: &Bench, records: u64, below: Option<&Self>) -> Fallible<Self> {
        eprintln!("filling a log with {records} callbacks");
        let directory = bench.new_directory()?;
        let mut filled = below.map_or(0, |stock| stock.records);
        if let Some(below) = below {
            below.copy_to(directory.path())?;
        }
        let bridge = Bridge::start(bench, directory.path(), &Brokers::away()?)?;
        let mut rate = 20_000.0;
        while filled < records {
            let missing = Duration::from_secs_f64(real(records - filled) / rate);
            let duration = missing.clamp(Duration::from_millis(50), STEP);
            let plan = Plan::closed(bridge.address()?, CONNECTIONS, bench.next_run());
            let seen = load::run(&Plan { duration, ..plan })?;
            if !seen.errors.is_empty() || seen.accepted == 0 {
                return Err(format!("filling a log: {:?}", seen.errors).into());
            }
            filled += seen.accepted;
            rate = real(seen.accepted) / duration.as_secs_f64();
        }
        Ok(Self { directory, records: filled })
    }

    /// Copies the log to the place where a livebridge started in `directory` expects it.
    pub(crate) fn copy_to(&self, directory: &Path) -> io::Result<()> {
        share(&self.directory.path().join("data"), &directory.join("data"))
    }
}

fn share(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            share(&source, &target)?;
        } else if metadata.len() >= SHARED_FROM {
            fs::hard_link(source, target)?;
        } else {
            fs::copy(source, target)?;
        }
    }
    Ok(())
}
