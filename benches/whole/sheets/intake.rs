//! The intake: every system at every number of connections.

use clap::ValueEnum as _;

use super::cell::{self, Load, Subject, System};
use super::report::Results;
use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome};
use crate::whole::machine;

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256, 512])]
    connections: Vec<u32>,
    /// Systems to measure [default: all].
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Callbacks per second of an open loop, instead of a closed one; latency then counts from each
    /// callback's due time.
    #[arg(long)]
    rate: Option<u32>,
}

/// Measures and prints. Baseline servers run in two configurations and count in the better one; the
/// column `load` shows whether the load was the limit.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let duration = bench.time(2.0, 0.3);
    let load = Load { duration, warm_up: duration / 5, rate: options.rate };
    let append_sync = machine::append_sync(&bench.directory)?;
    let results = measure_all(bench, options, &load);
    let rounds = bench.rounds(3);
    match load.rate {
        Some(rate) => println!(
            "{rate} callbacks/s (open loop), {duration:?}, {rounds} rounds; latency from the due time"
        ),
        None => println!("as fast as it goes (closed loop), {duration:?}, {rounds} rounds"),
    }
    println!("\n{}", results.table());
    Ok(Outcome {
        figures: results.json(&load),
        targets: results.targets(append_sync),
        faults: results.faults(),
    })
}

fn measure_all(bench: &Bench, options: &Options, load: &Load) -> Results {
    let systems = if options.systems.is_empty() {
        System::value_variants().to_vec()
    } else {
        options.systems.clone()
    };
    let subjects: Vec<Subject> = systems.into_iter().flat_map(Subject::all_of).collect();
    let rounds = bench.rounds(3);
    let mut results = Results::new(load);
    for round in 1..=rounds {
        for connections in options.connections.iter().copied().filter(|count| *count > 0) {
            for subject in subjects.iter().copied() {
                if results.missing.contains_key(&subject) {
                    continue;
                }
                eprint!("round {round}/{rounds}, {connections:>4} connections, {subject}: ");
                match cell::measure(bench, subject, connections, load, None) {
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
