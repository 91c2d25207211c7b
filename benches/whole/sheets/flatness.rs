//! The intake's rate on logs with a backlog while Kafka is unreachable, compared with its rate on
//! an empty log.

use serde_json::{Value, json};

use super::cell::{self, Load, Measured, Subject, System};
use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome, Target};
use crate::whole::stats::{median, mib, millis};
use crate::whole::stock::Stock;
use crate::whole::table::Table;

/// The required share of the empty log's rate.
const SHARE_WANTED: f64 = 0.9;

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    connections: u32,
}

#[derive(Debug, Default)]
struct Series {
    records: u64,
    rounds: Vec<Measured>,
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let stocks = bench.stocks()?;
    let duration = bench.time(3.0, 0.5);
    let load = Load { duration, warm_up: duration / 5, rate: None };
    let subject = Subject { system: System::LivebridgeKafkaAway, shape: None };
    let logs: Vec<Option<&Stock>> = std::iter::once(None).chain(stocks.iter().map(Some)).collect();
    let mut lines: Vec<Series> = logs
        .iter()
        .map(|stock| Series { records: stock.map_or(0, |stock| stock.records), rounds: Vec::new() })
        .collect();
    let rounds = bench.rounds(5);
    for round in 1..=rounds {
        for (line, stock) in lines.iter_mut().zip(&logs) {
            eprint!("round {round}/{rounds}, upon {} records: ", line.records);
            let seen = cell::measure(bench, subject, options.connections.max(1), &load, *stock)?;
            eprintln!("{:.0}/s", seen.rate);
            line.rounds.push(seen);
        }
    }
    let connections = options.connections;
    println!(
        "Kafka away, {connections} connections, {duration:?}, {rounds} rounds; ratios within each"
    );
    Ok(report(&lines))
}

fn report(lines: &[Series]) -> Outcome {
    let head = ["records before", "callbacks/s", "of empty", "p50 ms", "p99 ms", "RSS MiB"];
    let mut table = Table::new(head);
    let mut outcome = Outcome::default();
    let mut rows = Vec::new();
    for line in lines {
        let of = |figure: fn(&Measured) -> f64| median(line.rounds.iter().map(figure));
        let both = line.rounds.iter().zip(lines.iter().take(1).flat_map(|empty| &empty.rounds));
        let ratio = median(both.map(|(seen, empty)| seen.rate / empty.rate));
        table.row([
            line.records.to_string(),
            format!("{:.0}", of(|seen| seen.rate)),
            format!("{ratio:.2}"),
            format!("{:.3}", of(|seen| millis(seen.p50))),
            format!("{:.3}", of(|seen| millis(seen.p99))),
            format!("{:.0}", of(|seen| mib(seen.peak_memory))),
        ]);
        rows.push(json!({
            "records": line.records,
            "of_empty": ratio,
            "callbacks_per_second": line.rounds.iter().map(|seen| seen.rate).collect::<Vec<_>>(),
        }));
        if line.records > 0 {
            let what = format!("flatness, upon {} records: rate of an empty log's", line.records);
            outcome.targets.push(Target::at_least(what, SHARE_WANTED, ratio, ""));
        }
        for fault in line.rounds.iter().flat_map(Measured::faults) {
            outcome.faults.push(format!("flatness, upon {} records: {fault}", line.records));
        }
    }
    println!("\n{table}");
    outcome.figures = Value::from(rows);
    outcome
}
