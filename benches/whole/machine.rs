//! The machine on which the figures were measured.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::util::get_rdkafka_version;
use serde_json::{Value, json};

use super::Fallible;
use super::histogram::Histogram;
use super::request::BODY_BYTES;
use super::stats::millis;

/// Timed appends that characterise the disk: enough for a median in a short time.
const SYNCS: usize = 200;

/// The file in which the tests set the real broker's version.
const POM: &str = include_str!("../../tests/support/kafka/pom.xml");

/// The properties that are needed to interpret the figures.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    /// Processes ready to run at the start: above zero, other processes use the machine.
    pub(crate) load_average: String,
    /// Median of appending one body to a file and syncing its data.
    pub(crate) append_sync: Duration,
    /// The measured program, with its commit.
    pub(crate) livebridge: String,
    /// The versions of compiler and Kafka.
    pub(crate) made_with: String,
}

impl Machine {
    pub(crate) fn inspect(directory: &Path, livebridge: &Path) -> Fallible<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpus
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        let load = fs::read_to_string("/proc/loadavg")?;
        let version = first_line(Command::new(livebridge).arg("--version"));
        let mut git = Command::new("git");
        git.args(["describe", "--always", "--dirty"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let (_, librdkafka) = get_rdkafka_version();
        let kafka = POM.split("<version>").nth(2).and_then(|rest| rest.split('<').next());
        Ok(Self {
            cores: thread::available_parallelism()?.get(),
            cpu: cpu.to_owned(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load_average: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
            append_sync: append_sync(directory)?,
            livebridge: format!("{version} (commit {})", first_line(&mut git)),
            made_with: format!(
                "{}, librdkafka {librdkafka}, Kafka {}",
                first_line(Command::new("rustc").arg("--version")),
                kafka.unwrap_or("unknown")
            ),
        })
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "cpu": self.cpu,
            "kernel": self.kernel,
            "load_average": self.load_average,
            "append_sync_ms": millis(self.append_sync),
            "livebridge": self.livebridge,
            "made_with": self.made_with,
        })
    }
}

/// The first output line of a command.
fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let line = output.and_then(|output| String::from_utf8(output.stdout).ok());
    line.map_or_else(|| "unknown".to_owned(), |line| line.trim().to_owned())
}

/// Appends and syncs one body at a time, and returns the median.
pub(crate) fn append_sync(directory: &Path) -> Fallible<Duration> {
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

/// The share of all cores in use while this process only waits.
pub(crate) fn busy(within: Duration) -> Fallible<f64> {
    let before = ticks()?;
    thread::sleep(within);
    let after = ticks()?;
    let (all, idle) = (after.0 - before.0, after.1 - before.1);
    Ok(if all > 0.0 { 1.0 - idle / all } else { 0.0 })
}

/// CPU ticks of all cores, and the idle ones among them.
fn ticks() -> Fallible<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let fields = line.split_whitespace().skip(1).take(8).map(str::parse::<f64>);
    let fields: Vec<f64> = fields.collect::<Result<_, _>>()?;
    let [_, _, _, idle, waiting, ..] = fields[..] else {
        return Err("no processor times in /proc/stat".into());
    };
    Ok((fields.iter().sum(), idle + waiting))
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}", self.livebridge, self.made_with)?;
        write!(
            f,
            "{} cores, {}, Linux {}, load average {}, append + fdatasync {:.2} ms",
            self.cores,
            self.cpu,
            self.kernel,
            self.load_average,
            millis(self.append_sync),
        )
    }
}
