//! Several instances beside a cluster of three brokers: rate, processor time of both, the ledger's
//! size and memory, by the number of instances.
//!
//! Each instance follows the whole ledger, because a retry may reach any of them. After the load
//! every instance gets the callbacks of its neighbour again, and all of them must be absorbed.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::kafka::{Cluster, Setup};
use crate::support::unique;
use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome};
use crate::whole::bridge::{Bridge, Brokers, Launch};
use crate::whole::load::{self, Plan, Seen};
use crate::whole::process;
use crate::whole::stats::{median, mib, millis, real};
use crate::whole::table::Table;

const NODES: usize = 3;
const PUBLISH_MAX: Duration = Duration::from_mins(2);
/// How many of its callbacks each connection repeats to a neighbour, and the longest that it may take:
/// few, so that none is sent that the neighbour did not get.
const RETRIES: (u64, Duration) = (5, Duration::from_secs(1));

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Numbers of instances.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    instances: Vec<u32>,
    /// Connections of the load, spread over the instances.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Callbacks per second in all, instead of as many as possible.
    #[arg(long)]
    rate: Option<u32>,
}

/// One round with one number of instances; all instances together unless noted.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Callbacks per second.
    rate: f64,
    p99: f64,
    /// Processor time per callback, in microseconds.
    own: f64,
    brokers: f64,
    /// Of one replica, per event.
    ledger_bytes: f64,
    /// Of transactions.
    contended: f64,
    /// The largest instance's peak, in MiB.
    memory: f64,
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let cluster = match Cluster::start(&Setup::nodes(NODES).production_jvm()) {
        Ok(cluster) => cluster,
        Err(missing) => {
            println!("not measured without real brokers: {missing}");
            return Ok(Outcome::default());
        }
    };
    let (rounds, mut outcome) = (bench.rounds(3), Outcome::default());
    let mut measured: Vec<(u32, Vec<Figures>)> =
        options.instances.iter().map(|count| (*count, Vec::new())).collect();
    // New brokers are slow at first, so no figures are taken from them.
    if !bench.quick() {
        measure(bench, &cluster, 1, options, &mut outcome.faults)?;
    }
    for round in 1..=rounds {
        for (instances, figures) in &mut measured {
            eprint!("round {round}/{rounds}, {instances} instances: ");
            let seen = measure(bench, &cluster, *instances, options, &mut outcome.faults)?;
            eprintln!("{:.0}/s", seen.rate);
            figures.push(seen);
        }
    }
    println!(
        "{NODES} brokers beside, {} connections, {rounds} rounds; medians",
        options.connections
    );
    let mut table = Table::new([
        "instances", "callbacks/s", "p99 ms", "own CPU us", "brokers' CPU us",
        "ledger bytes/event", "contended", "MiB each",
    ]);
    for (instances, figures) in &measured {
        let of = |figure: fn(&Figures) -> f64| median(figures.iter().map(figure));
        table.row([
            instances.to_string(),
            format!("{:.0}", of(|seen| seen.rate)),
            format!("{:.1}", of(|seen| seen.p99)),
            format!("{:.1}", of(|seen| seen.own)),
            format!("{:.1}", of(|seen| seen.brokers)),
            format!("{:.1}", of(|seen| seen.ledger_bytes)),
            format!("{:.1} %", of(|seen| seen.contended) * 100.0),
            format!("{:.0}", of(|seen| seen.memory)),
        ]);
    }
    println!("\n{table}");
    let rows = measured.iter().map(|(instances, figures)| {
        let rounds: Vec<Value> = figures.iter().map(Figures::json).collect();
        json!({ "instances": instances, "rounds": rounds })
    });
    outcome.figures = json!({ "rate": options.rate, "table": rows.collect::<Vec<_>>() });
    Ok(outcome)
}

impl Figures {
    fn json(&self) -> Value {
        json!({
            "callbacks_per_second": self.rate,
            "p99_ms": self.p99,
            "own_cpu_us": self.own,
            "brokers_cpu_us": self.brokers,
            "ledger_bytes_per_event": self.ledger_bytes,
            "contended_transactions": self.contended,
            "peak_memory_mib": self.memory,
        })
    }
}

fn measure(
    bench: &Bench,
    cluster: &Cluster,
    instances: u32,
    options: &Options,
    faults: &mut Vec<String>,
) -> Fallible<Figures> {
    let prefix = unique("instances");
    let brokers = Brokers::Real { bootstrap: cluster.bootstrap(), prefix: prefix.clone() };
    let directory = bench.new_directory()?;
    let bridges = start_all(bench, directory.path(), &brokers, instances)?;
    let mut sent = Vec::new();
    for bridge in &bridges {
        let accepted = bridge.warm_up(bench)?;
        bridge.wait_until_published(accepted, PUBLISH_MAX)?;
        sent.push(accepted);
    }
    let plans: Vec<Plan> = bridges
        .iter()
        .map(|bridge| {
            let connections = (options.connections / instances).max(1);
            let rate = options.rate.map(|rate| (rate / instances).max(1));
            let plan = Plan::closed(bridge.address()?, connections, bench.next_run());
            Ok(Plan { duration: bench.time(5.0, 0.5), rate, ..plan })
        })
        .collect::<Fallible<_>>()?;
    let times = || -> Fallible<[Duration; 2]> {
        let mut brokers = Duration::ZERO;
        for node in 1..=NODES {
            brokers += process::jvm_cpu_time(cluster.pid(node))?;
        }
        let own = bridges.iter().map(|bridge| process::cpu_time(bridge.server.pid));
        Ok([brokers, own.sum::<Result<_, _>>()?])
    };
    let (before, started) = (times()?, Instant::now());
    let seen = load_all(&plans)?;
    let mut published = started;
    for ((bridge, sent), seen) in bridges.iter().zip(&mut sent).zip(&seen) {
        *sent += seen.accepted;
        published = published.max(bridge.wait_until_published(*sent, PUBLISH_MAX)?);
    }
    let after = times()?;
    let events: u64 = seen.iter().map(|seen| seen.accepted).sum();
    let (mut transactions, mut contended, mut memory) = (0.0, 0.0, 0.0_f64);
    for bridge in &bridges {
        let [all, lost] = bridge.metrics([
            "livebridge_transactions_total",
            "livebridge_transactions_total{outcome=\"contended\"}",
        ])?;
        transactions += all;
        contended += lost;
        memory = memory.max(mib(process::peak_memory(bridge.server.pid)?));
    }
    let ledger = cluster.bytes_of(&format!("{prefix}.ledger-0"))?;
    if instances > 1 {
        faults.extend(repeat_to_neighbours(&bridges, &plans, &sent)?);
    }
    drop(bridges);
    for seen in &seen {
        faults
            .extend(seen.errors.iter().map(|(what, count)| format!("instances: {count} x {what}")));
    }
    let each = |of: usize| after[of].saturating_sub(before[of]).as_secs_f64() * 1e6 / real(events);
    Ok(Figures {
        rate: real(events) / published.saturating_duration_since(started).as_secs_f64(),
        p99: seen.iter().map(|seen| millis(seen.latency.quantile(990))).fold(0.0, f64::max),
        own: each(1),
        brokers: each(0),
        ledger_bytes: real(ledger) / real(events),
        contended: if transactions > 0.0 { contended / transactions } else { 0.0 },
        memory,
    })
}

fn start_all(
    bench: &Bench,
    directory: &Path,
    brokers: &Brokers,
    instances: u32,
) -> Fallible<Vec<Bridge>> {
    let start = |number: u32| {
        let directory = directory.join(number.to_string());
        fs::create_dir_all(&directory)?;
        let instance = format!("bench-{number}");
        let launch = Launch { instance: &instance, replication: NODES, ..Launch::default() };
        Bridge::start_as(bench, &directory, brokers, &launch)
    };
    (0..instances).map(start).collect()
}

/// Sends every instance what its neighbour has accepted: nothing may be published. Returns what was.
fn repeat_to_neighbours(
    bridges: &[Bridge],
    plans: &[Plan],
    sent: &[u64],
) -> Fallible<Option<String>> {
    let neighbours = plans.iter().cycle().skip(1);
    let repeat = |(own, neighbour): (&Plan, &Plan)| Plan {
        address: own.address,
        duration: RETRIES.1,
        each_max: RETRIES.0,
        rate: None,
        ..neighbour.clone()
    };
    load_all(&plans.iter().zip(neighbours).map(repeat).collect::<Vec<_>>())?;
    thread::sleep(RETRIES.1);
    let mut published = 0.0;
    for bridge in bridges {
        published += bridge.metrics(["livebridge_published_total"])?[0];
    }
    let repeated = published - real(sent.iter().sum());
    Ok((repeated > 0.0).then(|| format!("instances: {repeated} retries were published")))
}

/// All loads at once.
fn load_all(plans: &[Plan]) -> Fallible<Vec<Seen>> {
    thread::scope(|scope| {
        let loads: Vec<_> = plans.iter().map(|plan| scope.spawn(|| load::run(plan))).collect();
        let seen = loads.into_iter().map(|load| load.join().map_err(|_| "the load panicked")?);
        seen.collect()
    })
}
