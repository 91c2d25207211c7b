//! The macro-benchmark: livebridge as a whole over TCP, compared with baselines.
//!
//! ```text
//! cargo bench --bench whole                          all sheets: tables and JSON
//! cargo bench --bench whole -- --quick               a smoke run of all
//! cargo bench --bench whole -- publishing            one sheet; --help lists them
//! cargo bench --bench whole -- intake --rate 20000 --connections 64
//! ```
//!
//! Every measurement uses its own processes. A round measures every subject once before any is
//! measured again, and a ratio compares two figures of the same round, so that other load on the
//! machine affects all alike. Load and servers share the cores. Settings of livebridge can be
//! changed by the environment, e.g. `LIVEBRIDGE_KAFKA_DELIVERY=at-least-once`.

#[path = "../tests/support/mod.rs"]
mod support;

mod whole {
    mod baseline;
    pub(crate) mod bench;
    mod bridge;
    mod histogram;
    mod kafka;
    mod load;
    pub(crate) mod machine;
    mod process;
    mod producer;
    mod request;
    pub(crate) mod server;
    mod stats;
    mod stock;
    mod table;
    mod watcher;

    pub(crate) mod sheets {
        pub(crate) mod broker;
        mod cell;
        pub(crate) mod flatness;
        pub(crate) mod instances;
        pub(crate) mod intake;
        pub(crate) mod latency;
        pub(crate) mod outage;
        pub(crate) mod publishing;
        mod report;
        pub(crate) mod start;
        pub(crate) mod steady;
    }

    /// Errors are only printed here.
    pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use whole::Fallible;
use whole::bench::{Bench, Common, Outcome, Target};
use whole::server::{self, Role};
use whole::sheets::{
    broker, flatness, instances, intake, latency, outage, publishing, start, steady,
};

/// Measures livebridge and baselines; without a command, runs all sheets.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench whole --")]
struct Options {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    sheet: Option<Sheet>,
}

#[derive(Debug, Subcommand)]
enum Sheet {
    /// Rate and latency by connections, compared with plain hyper, a raw log and a Kafka handler.
    Intake(intake::Options),
    /// The drain rate of a backlog, compared with a plain producer that sends the same records from
    /// memory.
    Publishing,
    /// The backlog while the intake runs at full rate.
    Steady(steady::Options),
    /// From request to a `read_committed` consumer of a real broker, compared with the broker's
    /// commit time.
    Latency(latency::Options),
    /// What a callback costs a real broker, compared with a plain producer that sends the same at the
    /// same rate.
    Broker(broker::Options),
    /// The intake's rate with a backlog, compared with that on an empty log.
    Flatness(flatness::Options),
    /// Several instances beside a cluster of three brokers: what each further one costs.
    Instances(instances::Options),
    /// Time to the first response, memory, idle CPU time, size.
    Start,
    /// Rate, publishing and backlog over time during an outage of Kafka.
    Outage(outage::Options),
    /// The hidden subcommand with which the benchmark starts child processes.
    #[command(hide = true)]
    Server {
        #[command(subcommand)]
        role: Role,
    },
}

/// In the order in which all are run.
const SHEETS: [&str; 9] = [
    "intake", "publishing", "steady", "latency", "broker", "instances", "flatness", "start",
    "outage",
];

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match options.sheet {
        Some(Sheet::Server { role }) => server::play(role).map(|()| true),
        sheet if options.common.bench => measure(options.common, sheet),
        _ => {
            println!("a benchmark; run it by `cargo bench --bench whole`");
            Ok(true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("whole: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports; returns whether everything worked. A missed target is not an error.
fn measure(common: Common, sheet: Option<Sheet>) -> Fallible<bool> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.join(format!("bench-{}", std::process::id()));
    remove_leftovers(scratch)?;
    fs::create_dir_all(&directory)?;
    let outcome = measure_in(directory.clone(), common, sheet);
    fs::remove_dir_all(directory)?;
    outcome
}

fn measure_in(directory: PathBuf, common: Common, sheet: Option<Sheet>) -> Fallible<bool> {
    let bench = Bench::new(common, directory)?;
    println!("{}", bench.machine);
    let sheets = match sheet {
        Some(sheet) => vec![sheet],
        None => SHEETS.into_iter().filter_map(of_name).collect(),
    };
    let (mut targets, mut faults) = (Vec::new(), Vec::new());
    for sheet in &sheets {
        match run(sheet, &bench) {
            Ok(outcome) => {
                targets.extend(outcome.targets);
                faults.extend(outcome.faults);
            }
            Err(cause) => faults.push(format!("{}: {cause}", sheet.name())),
        }
    }
    println!("\n== targets\n");
    for Target { what, wanted, seen, reached } in &targets {
        println!(
            "{} {what}: {seen} (wanted: {wanted})",
            if *reached { "ok    " } else { "MISSED" }
        );
    }
    for fault in &faults {
        println!("FAULT {fault}");
    }
    Ok(faults.is_empty())
}

/// A sheet with its defaults.
fn of_name(name: &str) -> Option<Sheet> {
    Options::try_parse_from(["whole", name]).ok()?.sheet
}

fn run(sheet: &Sheet, bench: &Bench) -> Fallible<Outcome> {
    bench.begin(sheet.name())?;
    let outcome = match sheet {
        Sheet::Intake(options) => intake::run(bench, options),
        Sheet::Publishing => publishing::run(bench),
        Sheet::Steady(options) => steady::run(bench, options),
        Sheet::Latency(options) => latency::run(bench, options),
        Sheet::Broker(options) => broker::run(bench, options),
        Sheet::Flatness(options) => flatness::run(bench, options),
        Sheet::Instances(options) => instances::run(bench, options),
        Sheet::Start => start::run(bench),
        Sheet::Outage(options) => outage::run(bench, options),
        Sheet::Server { .. } => Err("a server is not a sheet".into()),
    }?;
    bench.keep(sheet.name(), &outcome)?;
    Ok(outcome)
}

impl Sheet {
    fn name(&self) -> &'static str {
        match self {
            Self::Intake(_) => "intake",
            Self::Publishing => "publishing",
            Self::Steady(_) => "steady",
            Self::Latency(_) => "latency",
            Self::Broker(_) => "broker",
            Self::Flatness(_) => "flatness",
            Self::Instances(_) => "instances",
            Self::Start => "start",
            Self::Outage(_) => "outage",
            Self::Server { .. } => "server",
        }
    }
}

/// Directories of killed runs, recognised by their process no longer existing.
fn remove_leftovers(scratch: &Path) -> Fallible<()> {
    let Ok(entries) = fs::read_dir(scratch) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("bench-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
