//! What the figures were taken on.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::Fallible;
use super::histogram::Histogram;
use super::request::BODY_BYTES;

/// Appends timed to know the disk: enough for a median, over in a blink.
const SYNCS: usize = 200;

/// The facts without which no figure means anything.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    /// Processes wanting a core at the start: above zero, somebody else was busy.
    pub(crate) load_average: String,
    /// Median of appending one body to a file and syncing its data.
    pub(crate) append_sync: Duration,
}

impl Machine {
    pub(crate) fn inspect(directory: &Path) -> Fallible<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpus
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            cores: thread::available_parallelism()?.get(),
            cpu: cpu.to_owned(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load_average: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
            append_sync: append_sync(directory)?,
        })
    }
}

fn append_sync(directory: &Path) -> Fallible<Duration> {
    let path = directory.join("probe");
    let mut file = File::create(&path)?;
    let mut latencies = Histogram::new();
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[b'x'; BODY_BYTES])?;
        file.sync_data()?;
        latencies.record(started.elapsed());
    }
    fs::remove_file(path)?;
    Ok(latencies.quantile(500))
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores, {}, Linux {}, load average {}, append + fdatasync {:.2} ms",
            self.cores,
            self.cpu,
            self.kernel,
            self.load_average,
            self.append_sync.as_secs_f64() * 1e3,
        )
    }
}
