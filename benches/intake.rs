//! The macro-benchmark of the intake: livebridge, whole and over TCP, beside what it could be.
//!
//! ```text
//! cargo bench --bench intake                                  the table
//! cargo bench --bench intake -- --quick                       a smoke run
//! cargo bench --bench intake -- --rate 20000 --connections 64 latency at a fixed rate
//! ```
//!
//! Every cell of every round has processes of its own, rounds go through all systems before any is
//! measured again, and a ratio compares two figures of the same round: so what else the machine
//! does falls on all alike. Bare servers run in two shapes and count in the better one. Load and
//! server share the cores; the column `load` says whether the load was the limit. Settings of
//! livebridge can be tried by its environment, e.g. `LIVEBRIDGE_KAFKA_DELIVERY=at-least-once`.

mod intake {
    pub(crate) mod baseline;
    pub(crate) mod cell;
    mod histogram;
    mod kafka;
    mod load;
    pub(crate) mod machine;
    mod process;
    pub(crate) mod report;
    mod request;
    pub(crate) mod server;

    /// Nothing here acts on an error but by printing it.
    pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum as _};

use intake::Fallible;
use intake::cell::{self, Setting, Subject, System};
use intake::machine::Machine;
use intake::report::Results;
use intake::server::{self, Role};

/// Measures what the intake of livebridge costs.
#[derive(Debug, Parser)]
#[command(name = "intake")]
struct Options {
    /// One round of one second.
    #[arg(long)]
    quick: bool,
    /// Rounds [default: 3].
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds per cell and round, after a warm-up of a fifth of that [default: 5].
    #[arg(long)]
    seconds: Option<f64>,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    connections: Vec<u32>,
    /// Systems to measure [default: all].
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Callbacks per second of an open loop, instead of a closed one.
    #[arg(long)]
    rate: Option<u32>,
    /// Threads of the load.
    #[arg(long, default_value_t = 1)]
    load_threads: u32,
    /// Another livebridge to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_livebridge"))]
    livebridge: PathBuf,
    /// Where the figures go as JSON [default: bench/intake.json in the target directory].
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the benchmark starts itself as.
    #[command(hide = true)]
    Server {
        #[command(subcommand)]
        role: Role,
    },
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    let outcome = match options.command.take() {
        Some(Command::Server { role }) => server::play(role).map(|()| true),
        None if options.bench => compare(&options),
        None => {
            println!("a benchmark; run it by `cargo bench --bench intake`");
            Ok(true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("intake: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports; whether everything went as it should.
fn compare(options: &Options) -> Fallible<bool> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.join(format!("bench-intake-{}", std::process::id()));
    remove_leftovers(scratch)?;
    fs::create_dir_all(&directory)?;
    let outcome = compare_in(options, directory.clone());
    fs::remove_dir_all(directory)?;
    outcome
}

fn compare_in(options: &Options, directory: PathBuf) -> Fallible<bool> {
    let seconds = options.seconds.unwrap_or(if options.quick { 1.0 } else { 5.0 });
    let duration = Duration::try_from_secs_f64(seconds)?;
    let setting = Setting {
        duration,
        warm_up: duration / 5,
        rate: options.rate,
        threads: options.load_threads,
        livebridge: options.livebridge.clone(),
        directory,
    };
    let machine = Machine::inspect(&setting.directory)?;
    println!("{machine}");
    let results = measure_all(options, &setting);
    match options.rate {
        Some(rate) => println!("\nopen loop, {rate} callbacks/s, latency from the due time\n"),
        None => println!("\nclosed loop\n"),
    }
    print!("{}", results.table());
    let path = options.json.clone().unwrap_or_else(default_json);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, format!("{:#}\n", results.json(&machine, &setting)))?;
    println!("\nfigures of each round: {}", path.display());
    let faults = results.faults();
    for fault in &faults {
        println!("FAULT {fault}");
    }
    Ok(faults.is_empty())
}

fn measure_all(options: &Options, setting: &Setting) -> Results {
    let systems = if options.systems.is_empty() {
        System::value_variants().to_vec()
    } else {
        options.systems.clone()
    };
    let subjects: Vec<Subject> = systems.into_iter().flat_map(Subject::all_of).collect();
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let mut results = Results::new(setting);
    let mut run = 0;
    for round in 1..=rounds {
        for connections in options.connections.iter().copied().filter(|count| *count > 0) {
            for subject in subjects.iter().copied() {
                if results.missing.contains_key(&subject) {
                    continue;
                }
                run += 1;
                eprint!("round {round}/{rounds}, {connections:>4} connections, {subject}: ");
                match cell::measure(subject, connections, run, setting) {
                    Ok(measured) => {
                        eprintln!("{:.0}/s", measured.rate);
                        results.add(round, subject, connections, measured);
                    }
                    Err(cause) => {
                        eprintln!("{cause}");
                        results.missing.insert(subject, cause.to_string());
                    }
                }
            }
        }
    }
    results
}

/// Directories of runs that were killed, told by their process being gone.
fn remove_leftovers(scratch: &Path) -> Fallible<()> {
    let Ok(entries) = fs::read_dir(scratch) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("bench-intake-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn default_json() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target.unwrap_or(Path::new(".")).join("bench/intake.json")
}
