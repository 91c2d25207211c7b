//! Micro-benchmarks: what each part of a callback's path costs.
//!
//! ```text
//! cargo bench --bench parts
//! ```
//!
//! Allocations and instructions are the same under any load; the time is that of the fastest of many
//! runs. Instructions need valgrind, which executes this program again for each part, with and
//! without runs of it; the difference is what the part costs. The blocks of SHA-256 are left out:
//! valgrind's processor has no instructions for them, and they would count ten times as much as they
//! take. Their time is in `hash of the body`.
//!
//! The whole request goes over TCP through the intake to a log, one after another, and is counted
//! for each thread.

#[path = "parts/allocations.rs"]
mod allocations;
#[path = "parts/path.rs"]
mod path;
#[path = "whole/request.rs"]
#[allow(dead_code, reason = "shared with the macro-benchmark, which uses the rest of it")]
mod request;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "whole/table.rs"]
mod table;

use std::error::Error;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use allocations::Allocations;
use clap::Parser;
use path::{PARTS, Part, Parts, Whole};
use table::Table;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Runs of a part that are timed at once, and how often.
const RUNS: u32 = 200;
const SAMPLES: u32 = 300;
/// Requests whose allocations are counted; the log is a commit for each.
const REQUESTS: u32 = 1024;
/// Runs of a part, and requests, that valgrind executes; it takes fifty times as long as the
/// processor.
const COUNTED: u32 = 1000;
/// The name of the whole request, beside those of the parts.
const REQUEST: &str = "request";
/// The threads that a request passes through.
const THREADS: [&str; 2] = ["intake-", "wal-writer"];

/// What each part of a callback's path costs.
#[derive(Debug, Parser)]
struct Options {
    /// Only runs a part so often: for valgrind, and for a profiler.
    #[arg(long, num_args = 2, value_names = ["PART", "TIMES"])]
    run: Vec<String>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Fallible<()> {
    let options = Options::parse();
    match options.run.as_slice() {
        [part, times] => run(part, times.parse()?),
        _ if options.bench => measure(),
        _ => {
            println!("a benchmark; run it by `cargo bench --bench parts`");
            Ok(())
        }
    }
}

/// Runs a part; prints the threads that there are, in the order in which they began.
fn run(name: &str, times: u32) -> Fallible<()> {
    if name == REQUEST {
        livebridge::metrics::install()?;
        let mut whole = Whole::new();
        whole.send(COUNTED / 10 + times);
        let mut threads = Vec::new();
        for entry in fs::read_dir("/proc/self/task")? {
            let entry = entry?;
            let thread: u32 = entry.file_name().to_string_lossy().parse()?;
            threads.push((thread, fs::read_to_string(entry.path().join("comm"))?));
        }
        threads.sort();
        for (_, name) in threads {
            print!("{name}");
        }
        return Ok(());
    }
    let (_, part) = PARTS.iter().find(|(known, _)| *known == name).ok_or("no such part")?;
    let mut parts = Parts::new();
    (0..times).for_each(|_| part(&mut parts));
    Ok(())
}

fn measure() -> Fallible<()> {
    livebridge::metrics::install()?;
    let mut table = Table::new(["part", "ns", "instructions", "allocations", "bytes"]);
    let mut parts = Parts::new();
    for part in PARTS {
        let time = fastest(part, &mut parts);
        let before = allocations::of_this_thread();
        (part.1)(&mut parts);
        let Allocations { count, bytes } = allocations::of_this_thread() - before;
        let instructions = instructions(part.0)?.map(|threads| threads[0].1);
        let instructions = instructions.map_or("-".into(), |count| format!("{count:.0}"));
        let time = format!("{:.0}", time.as_secs_f64() * 1e9);
        table.row([part.0.into(), time, instructions, count.to_string(), bytes.to_string()]);
    }
    table.gap();
    let mut whole = Whole::new();
    whole.send(REQUESTS);
    let before = THREADS.map(allocations::of_threads);
    whole.send(REQUESTS);
    let after = THREADS.map(allocations::of_threads);
    drop(whole);
    let instructions = instructions(REQUEST)?;
    for (at, name) in THREADS.into_iter().enumerate() {
        let of_name = |threads: Vec<(String, f64)>| {
            threads.iter().filter(|(thread, _)| thread.starts_with(name)).map(|(_, n)| n).sum()
        };
        let instructions = instructions.clone().map(of_name);
        let instructions = instructions.map_or("-".into(), |count: f64| format!("{count:.0}"));
        let Allocations { count, bytes } = after[at] - before[at];
        let each = |sum: u64| {
            let hundredths = sum * 100 / u64::from(REQUESTS);
            format!("{}.{:02}", hundredths / 100, hundredths % 100)
        };
        let name = format!("{REQUEST}, {}", name.trim_end_matches('-'));
        table.row([name, "-".into(), instructions, each(count), each(bytes)]);
    }
    print!("{table}");
    Ok(())
}

fn fastest((_, part): Part, parts: &mut Parts) -> Duration {
    let sample = |_| {
        let started = Instant::now();
        (0..RUNS).for_each(|_| part(parts));
        started.elapsed()
    };
    (0..SAMPLES).map(sample).min().unwrap_or_default() / RUNS
}

/// Instructions of one run of a part, for each thread with its name; `None` without valgrind.
fn instructions(part: &str) -> Fallible<Option<Vec<(String, f64)>>> {
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let (without, with) = (counted(part, 0)?, counted(part, COUNTED)?);
    let each = without
        .into_iter()
        .zip(with)
        .map(|((name, without), (_, with))| (name, (with - without) / f64::from(COUNTED)));
    Ok(Some(each.collect()))
}

fn counted(part: &str, times: u32) -> Fallible<Vec<(String, f64)>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("counted");
    let output = Command::new("valgrind")
        .args(["-q", "--tool=callgrind", "--separate-threads=yes"])
        // Not within this function; the second option undoes a part of the first.
        .args(["--toggle-collect=sha2::sha256::*::compress", "--collect-atstart=yes"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe()?)
        .args(["--run", part, &times.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let names = String::from_utf8(output.stdout)?;
    let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
    if names.is_empty() {
        names.push("main".into());
    }
    // A file for each thread, numbered as they began.
    let total = |number: usize| -> Fallible<f64> {
        let text = fs::read_to_string(format!("{}-{number:02}", file.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(line.ok_or("valgrind wrote no total")?.trim().parse()?)
    };
    names.into_iter().zip(1..).map(|(name, number)| Ok((name, total(number)?))).collect()
}
