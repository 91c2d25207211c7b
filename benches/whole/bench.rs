//! The common parameters of all sheets: duration, rounds, the livebridge binary, the output
//! directory.

use std::cell::{Cell, OnceCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Fallible;
use super::machine::{self, Machine};
use super::stock::Stock;
use crate::support::Unavailable;
use crate::support::kafka::Kafka;

/// The time before a sheet in which the load by other processes is measured.
const LOOK: Duration = Duration::from_millis(500);

/// Options of every sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// One short round of everything: shows that it runs, not how fast.
    #[arg(long, global = true)]
    quick: bool,
    /// Rounds, instead of the sheet's own number.
    #[arg(long, global = true)]
    rounds: Option<u32>,
    /// Seconds of each measurement, instead of the sheet's own number.
    #[arg(long, global = true)]
    seconds: Option<f64>,
    /// Threads of the load.
    #[arg(long, global = true, default_value_t = 1)]
    load_threads: u32,
    /// Sizes of backlogs in records, for `flatness` and `start`, the smallest also for
    /// `publishing`; ten million need about 9 GB [default: 1000000].
    #[arg(long, global = true, value_delimiter = ',')]
    backlog: Vec<u64>,
    /// Another livebridge binary to measure.
    #[arg(long, global = true, default_value = env!("CARGO_BIN_EXE_livebridge"))]
    livebridge: PathBuf,
    /// The directory of the JSON results [default: bench in the target directory].
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, global = true, hide = true)]
    pub(crate) bench: bool,
}

/// A run of the benchmark.
#[derive(Debug)]
pub(crate) struct Bench {
    common: Common,
    pub(crate) machine: Machine,
    /// For everything that is written while measuring, on the disk that the logs use.
    pub(crate) directory: PathBuf,
    /// The directory of the results.
    pub(crate) out: PathBuf,
    began: Instant,
    runs: Cell<u32>,
    kafka: OnceCell<Result<Kafka, Unavailable>>,
    stocks: OnceCell<Vec<Stock>>,
}

/// The results of a sheet.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Value,
    pub(crate) targets: Vec<Target>,
    /// Unexpected events, as sentences.
    pub(crate) faults: Vec<String>,
}

/// A target value.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) wanted: String,
    pub(crate) seen: String,
    pub(crate) reached: bool,
}

impl Target {
    /// A figure that must be at least `wanted`.
    pub(crate) fn at_least(what: impl Into<String>, wanted: f64, seen: f64, unit: &str) -> Self {
        let (wanted_text, seen_text) =
            (format!("at least {wanted}{unit}"), format!("{seen:.2}{unit}"));
        Self { what: what.into(), wanted: wanted_text, seen: seen_text, reached: seen >= wanted }
    }

    /// A figure that must be at most `wanted`.
    pub(crate) fn at_most(what: impl Into<String>, wanted: f64, seen: f64, unit: &str) -> Self {
        let (wanted_text, seen_text) = (format!("at most {wanted:.4}"), format!("{seen:.2}{unit}"));
        let wanted_text = wanted_text.trim_end_matches('0').trim_end_matches('.').to_owned() + unit;
        Self { what: what.into(), wanted: wanted_text, seen: seen_text, reached: seen <= wanted }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "wanted": self.wanted,
            "seen": self.seen,
            "reached": self.reached,
        })
    }
}

impl Bench {
    pub(crate) fn new(common: Common, directory: PathBuf) -> Fallible<Self> {
        let machine = Machine::inspect(&directory, &common.livebridge)?;
        let out = common.out.clone().unwrap_or_else(|| {
            let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
            target.unwrap_or(Path::new(".")).join("bench")
        });
        Ok(Self {
            common,
            machine,
            directory,
            out,
            began: Instant::now(),
            runs: Cell::new(0),
            kafka: OnceCell::new(),
            stocks: OnceCell::new(),
        })
    }

    pub(crate) fn quick(&self) -> bool {
        self.common.quick
    }

    pub(crate) fn livebridge(&self) -> &Path {
        &self.common.livebridge
    }

    pub(crate) fn load_threads(&self) -> u32 {
        self.common.load_threads
    }

    /// The requested number; otherwise one for a quick run, or the sheet's `usual` number.
    pub(crate) fn rounds(&self, usual: u32) -> u32 {
        self.common.rounds.unwrap_or(if self.quick() { 1 } else { usual })
    }

    /// The requested value; otherwise the sheet's `quick` or `usual` one.
    pub(crate) fn time(&self, usual: f64, quick: f64) -> Duration {
        let own = if self.quick() { quick } else { usual };
        Duration::from_secs_f64(self.common.seconds.unwrap_or(own).clamp(0.1, 3600.0))
    }

    /// A number that no other load of this process has: it makes the events distinct.
    pub(crate) fn next_run(&self) -> u32 {
        self.runs.set(self.runs.get() + 1);
        self.runs.get()
    }

    /// A new directory for one measurement.
    pub(crate) fn new_directory(&self) -> io::Result<TempDir> {
        TempDir::with_prefix_in("run-", &self.directory)
    }

    /// The real broker, started when the first sheet needs it.
    pub(crate) fn kafka(&self) -> Result<&Kafka, &Unavailable> {
        self.kafka.get_or_init(Kafka::start).as_ref()
    }

    /// Full logs of the requested sizes, created when the first sheet needs them.
    pub(crate) fn stocks(&self) -> Fallible<&[Stock]> {
        if self.stocks.get().is_none() {
            let mut sizes = self.common.backlog.clone();
            sizes.sort_unstable();
            if sizes.is_empty() {
                sizes.push(if self.quick() { 50_000 } else { 1_000_000 });
            }
            let mut stocks: Vec<Stock> = Vec::new();
            for size in sizes {
                stocks.push(Stock::fill(self, size, stocks.last())?);
            }
            return Ok(self.stocks.get_or_init(|| stocks));
        }
        Ok(self.stocks.get().map_or(&[], Vec::as_slice))
    }

    /// Prints the sheet and how busy the machine is.
    pub(crate) fn begin(&self, sheet: &str) -> Fallible<()> {
        let others = machine::busy(LOOK)?;
        let (minutes, seconds) =
            (self.began.elapsed().as_secs() / 60, self.began.elapsed().as_secs() % 60);
        println!(
            "\n== {sheet} (after {minutes}:{seconds:02}; others use {:.0} % of the cores)",
            others * 100.0
        );
        Ok(())
    }

    /// Writes a sheet's results.
    pub(crate) fn keep(&self, sheet: &str, outcome: &Outcome) -> Fallible<()> {
        fs::create_dir_all(&self.out)?;
        let whole = json!({
            "sheet": sheet,
            "machine": self.machine.json(),
            "load_threads": self.load_threads(),
            "figures": outcome.figures,
            "targets": outcome.targets.iter().map(Target::json).collect::<Vec<_>>(),
            "faults": outcome.faults,
        });
        fs::write(self.out.join(format!("{sheet}.json")), format!("{whole:#}\n"))?;
        Ok(())
    }
}
