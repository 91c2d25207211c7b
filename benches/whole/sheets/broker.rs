//! livebridge beside a real broker: what a callback costs the broker, and the rate and the latency of
//! the 200 that are left.
//!
//! The broker's processor time is compared with that of a plain idempotent producer which sends the
//! same records at the same rate; rate and latency with those of bare hyper and of a raw log, beside
//! which that producer runs. The broker has the JVM options of production; its compiler does not count. Requests are counted by a
//! proxy, in runs of their own, because a proxy takes part of the processor.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cell::{self, Subject, System};
use crate::support::kafka::{Cluster, Setup, create_topic, delete_topic};
use crate::support::proxy::Proxy;
use crate::support::unique;
use crate::whole::Fallible;
use crate::whole::baseline::Shape;
use crate::whole::bench::{Bench, Outcome, Target};
use crate::whole::bridge::{Bridge, Brokers, Launch};
use crate::whole::kafka::PARTITIONS;
use crate::whole::load::{self, Plan};
use crate::whole::process;
use crate::whole::server::Server;
use crate::whole::stats::{median, millis, real};
use crate::whole::table::Table;

const PUBLISH_MAX: Duration = Duration::from_mins(2);
/// Milliseconds that the plain producer waits for more.
const LINGER: &str = "5";
/// At most this multiple of the plain producer's processor time: at full load, and at a fixed rate.
const CPU_WANTED: (f64, f64) = (1.5, 3.0);
/// At least this share of bare hyper's rate.
const RATE_WANTED: f64 = 0.5;
/// At most this multiple of the raw log's p99: at full load, and at a fixed rate.
const P99_WANTED: (f64, f64) = (2.0, 1.5);

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Numbers of connections of loads as fast as they go.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512])]
    connections: Vec<u32>,
    /// Callbacks per second of loads at a fixed rate.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    rates: Vec<u32>,
    /// Compression to measure beside none.
    #[arg(long, value_delimiter = ',')]
    compression: Vec<Codec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Codec {
    Lz4,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    Closed(u32),
    Open(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    ExactlyOnce,
    /// Exactly once, compressed.
    Compressed(Codec),
    AtLeastOnce,
    Plain,
    Bare,
    RawLog,
}

/// One subject under one load.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Events per second.
    rate: f64,
    /// Processor time per event, in microseconds: the broker's and the sender's.
    broker: f64,
    own: f64,
    transactions: f64,
    /// On the broker's disk.
    bytes: f64,
    /// Of the 200, in milliseconds.
    p50: f64,
    p99: f64,
    p999: f64,
}

/// One per round.
type Costs = BTreeMap<(Load, Who), Vec<Cost>>;
/// Requests per thousand events, by their names.
type Requests = BTreeMap<String, f64>;

/// Measures and prints.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let runtime = tokio::runtime::Runtime::new()?;
    let proxy = Proxy::start(runtime.handle());
    let setup = Setup::nodes(1).proxies(&[proxy.port()]).production_jvm();
    let cluster = match Cluster::start(&setup) {
        Ok(cluster) => cluster,
        Err(missing) => {
            println!("not measured without a real broker: {missing}");
            return Ok(Outcome::default());
        }
    };
    proxy.set_upstream(cluster.behind(1));
    let loads: Vec<Load> = options.connections.iter().map(|count| Load::Closed(*count)).collect();
    let loads: Vec<Load> =
        loads.into_iter().chain(options.rates.iter().map(|rate| Load::Open(*rate))).collect();
    let rounds = bench.rounds(3);
    let (mut costs, mut requests) = (Costs::new(), BTreeMap::new());
    // A new broker is slow at first, so no subject is measured on it.
    if let (Some(load), false) = (loads.first(), bench.quick()) {
        livebridge(bench, &cluster, &cluster.bootstrap(), *load, Who::ExactlyOnce)?;
    }
    for round in 1..=rounds {
        for load in loads.iter().copied() {
            let compressed = options.compression.iter().copied().map(Who::Compressed);
            for who in [Who::ExactlyOnce].into_iter().chain(compressed).chain([Who::AtLeastOnce]) {
                eprint!("round {round}/{rounds}, {}, {}: ", load.name(), who.name());
                let cost = livebridge(bench, &cluster, &cluster.bootstrap(), load, who)?;
                eprintln!("{:.0}/s, broker {:.1} us", cost.rate, cost.broker);
                costs.entry((load, who)).or_insert_with(Vec::new).push(cost);
                if who == Who::ExactlyOnce {
                    let plain = plain(bench, &cluster, cost.rate)?;
                    costs.entry((load, Who::Plain)).or_insert_with(Vec::new).push(plain);
                    for who in [Who::Bare, Who::RawLog] {
                        let baseline = baseline(bench, &cluster, load, who, cost.rate)?;
                        costs.entry((load, who)).or_insert_with(Vec::new).push(baseline);
                    }
                }
            }
        }
    }
    for load in loads.iter().copied() {
        requests.insert(load, count_requests(bench, &cluster, &proxy, load)?);
    }
    println!("real broker beside, {rounds} rounds; medians; ratios within each round");
    Ok(report(&costs, &requests))
}

fn report(costs: &Costs, requests: &BTreeMap<Load, Requests>) -> Outcome {
    let head = [
        "load, sender", "events/s", "of bare", "p50 ms", "p99 ms", "p99.9 ms", "own CPU us",
        "broker CPU us", "of plain", "events/transaction", "bytes/event",
    ];
    let (mut table, mut outcome, mut rows) = (Table::new(head), Outcome::default(), Vec::new());
    for ((load, who), rounds) in costs {
        let of = |figure: fn(&Cost) -> f64| median(rounds.iter().map(figure));
        // Of another subject in the same round.
        let ratio = |figure: fn(&Cost) -> f64, other: Who| {
            let others = costs.get(&(*load, other)).into_iter().flatten();
            median(rounds.iter().zip(others).map(|(cost, other)| figure(cost) / figure(other)))
        };
        let (of_bare, of_plain) =
            (ratio(|cost| cost.rate, Who::Bare), ratio(|cost| cost.broker, Who::Plain));
        let shown = |figure: f64, digits: usize| {
            if figure.is_finite() { format!("{figure:.digits$}") } else { "-".into() }
        };
        table.row([
            format!("{}, {}", load.name(), who.name()),
            shown(of(|cost| cost.rate), 0),
            shown(of_bare, 2),
            shown(of(|cost| cost.p50), 2),
            shown(of(|cost| cost.p99), 1),
            shown(of(|cost| cost.p999), 1),
            shown(of(|cost| cost.own), 1),
            shown(of(|cost| cost.broker), 1),
            shown(of_plain, 2),
            shown(of(|cost| 1.0 / cost.transactions), 0),
            shown(of(|cost| cost.bytes), 0),
        ]);
        rows.push(json!({
            "load": load.name(),
            "sender": who.name(),
            "rate_of_bare": of_bare,
            "broker_cpu_of_plain": of_plain,
            "rounds": rounds.iter().map(Cost::json).collect::<Vec<_>>(),
        }));
        if *who == Who::ExactlyOnce {
            let p99 = ratio(|cost| cost.p99, Who::RawLog);
            outcome.targets.extend(targets(*load, of_plain, p99, of_bare));
        }
    }
    println!("\n{table}");
    for (load, requests) in requests {
        let mut line = format!("requests per 1,000 events, {}:", load.name());
        for (api, count) in requests {
            let _ = write!(line, " {api} {count:.1}");
        }
        println!("{line}");
    }
    let requests = requests
        .iter()
        .map(|(load, requests)| json!({ "load": load.name(), "requests": requests }));
    outcome.figures = json!({ "table": rows, "requests": requests.collect::<Vec<_>>() });
    outcome
}

/// The targets of exactly-once delivery under one load.
fn targets(load: Load, cpu: f64, p99: f64, rate: f64) -> Vec<Target> {
    let is_closed = matches!(load, Load::Closed(_));
    let wanted = |(closed, open): (f64, f64)| if is_closed { closed } else { open };
    let at = format!("broker, {}", load.name());
    let cpu_name = format!("{at}: CPU of a plain producer's");
    let p99_name = format!("{at}: p99 of the raw log's");
    let mut targets = vec![
        Target::at_most(cpu_name, wanted(CPU_WANTED), cpu, ""),
        Target::at_most(p99_name, wanted(P99_WANTED), p99, ""),
    ];
    if is_closed {
        let name = format!("{at}: rate of bare hyper's");
        targets.push(Target::at_least(name, RATE_WANTED, rate, ""));
    }
    targets
}

impl Load {
    /// Connections, and callbacks per second of an open loop.
    fn parts(self) -> (u32, Option<u32>) {
        match self {
            Self::Closed(connections) => (connections.max(1), None),
            Self::Open(rate) => (64, Some(rate)),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Closed(connections) => format!("{connections} connections"),
            Self::Open(rate) => format!("{rate}/s"),
        }
    }
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly once",
            Self::Compressed(Codec::Lz4) => "exactly once, lz4",
            Self::Compressed(Codec::Zstd) => "exactly once, zstd",
            Self::AtLeastOnce => "at least once",
            Self::Plain => "plain producer",
            Self::Bare => "bare hyper",
            Self::RawLog => "hyper + raw log",
        }
    }
}

impl Cost {
    const UNKNOWN: Self = Self {
        rate: f64::NAN,
        broker: f64::NAN,
        own: f64::NAN,
        transactions: f64::NAN,
        bytes: f64::NAN,
        p50: f64::NAN,
        p99: f64::NAN,
        p999: f64::NAN,
    };

    fn json(&self) -> Value {
        json!({
            "events_per_second": self.rate,
            "broker_cpu_us": self.broker,
            "own_cpu_us": self.own,
            "transactions_per_event": self.transactions,
            "bytes_per_event": self.bytes,
            "p50_ms": self.p50,
            "p99_ms": self.p99,
            "p999_ms": self.p999,
        })
    }
}

fn micros_each(time: Duration, events: u64) -> f64 {
    time.as_secs_f64() * 1e6 / real(events)
}

fn livebridge(
    bench: &Bench,
    cluster: &Cluster,
    bootstrap: &str,
    load: Load,
    who: Who,
) -> Fallible<Cost> {
    let duration = bench.time(5.0, 0.5);
    let directory = bench.new_directory()?;
    let prefix = unique("cost");
    let brokers = Brokers::Real { bootstrap: bootstrap.to_owned(), prefix: prefix.clone() };
    let delivery = if who == Who::AtLeastOnce { "at-least-once" } else { "exactly-once" };
    let compression = match who {
        Who::Compressed(Codec::Lz4) => "lz4",
        Who::Compressed(Codec::Zstd) => "zstd",
        _ => "none",
    };
    let launch = Launch { delivery, compression, ..Launch::default() };
    let bridge = Bridge::start_as(bench, directory.path(), &brokers, &launch)?;
    let warm_up = bridge.warm_up(bench)?;
    bridge.wait_until_published(warm_up, PUBLISH_MAX)?;
    let (connections, rate) = load.parts();
    let plan = Plan {
        rate,
        threads: bench.load_threads(),
        duration,
        ..Plan::closed(bridge.address()?, connections, bench.next_run())
    };
    let transactions = || bridge.metrics(["livebridge_transactions_total"]);
    let times = || -> Fallible<[Duration; 2]> {
        Ok([process::jvm_cpu_time(cluster.pid(1))?, process::cpu_time(bridge.server.pid)?])
    };
    let ([transactions_before], before, started) = (transactions()?, times()?, Instant::now());
    let seen = load::run(&plan)?;
    let published = bridge.wait_until_published(warm_up + seen.accepted, PUBLISH_MAX)?;
    let (after, [transactions_after]) = (times()?, transactions()?);
    drop(bridge);
    let topic = format!("{prefix}.push");
    let sizes = (0..PARTITIONS).map(|number| cluster.bytes_of(&format!("{topic}-{number}")));
    let bytes = sizes.sum::<io::Result<u64>>()?;
    delete_topic(&cluster.bootstrap(), &topic);
    if let Some((what, count)) = seen.errors.first_key_value() {
        return Err(format!("{count} x {what}").into());
    }
    let [broker, own] =
        [0, 1].map(|of| micros_each(after[of].saturating_sub(before[of]), seen.accepted));
    let elapsed = published.saturating_duration_since(started).as_secs_f64();
    Ok(Cost {
        rate: real(seen.accepted) / elapsed,
        broker,
        own,
        transactions: (transactions_after - transactions_before) / real(seen.accepted),
        bytes: real(bytes) / real(warm_up + seen.accepted),
        p50: millis(seen.latency.quantile(500)),
        p99: millis(seen.latency.quantile(990)),
        p999: millis(seen.latency.quantile(999)),
    })
}

/// A plain producer of `rate` records per second that waits for its start.
struct PlainProducer {
    server: Server,
    /// Keeps the broker that has its records.
    _pattern: Server,
    topic: String,
    bootstrap: String,
    count: u64,
}

impl PlainProducer {
    fn start(bench: &Bench, cluster: &Cluster, rate: f64) -> Fallible<Self> {
        let (topic, bootstrap) = (unique("plain"), cluster.bootstrap());
        create_topic(&bootstrap, &topic, PARTITIONS, 1);
        let pattern = super::publishing::pattern(bench)?;
        let duration = bench.time(5.0, 0.5);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let count = (rate * duration.as_secs_f64()) as u64;
        let (count_text, rate_text) = (count.to_string(), rate.to_string());
        let to = [&pattern.address, &bootstrap, &topic, &count_text].map(String::as_str);
        let paced = ["--rate", &rate_text, "--linger", LINGER];
        let server = Server::start(&[&["producer"][..], &to, &paced].concat())?;
        Ok(Self { server, _pattern: pattern, topic, bootstrap, count })
    }

    /// Waits until everything is sent; returns how long it took.
    fn finish(&mut self) -> Fallible<Duration> {
        let took = Duration::from_micros(self.server.hear()?.parse()?);
        delete_topic(&self.bootstrap, &self.topic);
        Ok(took)
    }
}

fn plain(bench: &Bench, cluster: &Cluster, rate: f64) -> Fallible<Cost> {
    let mut producer = PlainProducer::start(bench, cluster, rate)?;
    let times = |pid: u32| -> Fallible<[Duration; 2]> {
        Ok([process::jvm_cpu_time(cluster.pid(1))?, process::cpu_time(pid)?])
    };
    let before = times(producer.server.pid)?;
    producer.server.tell("go")?;
    let took = producer.finish()?;
    let after = times(producer.server.pid)?;
    let [broker, own] =
        [0, 1].map(|of| micros_each(after[of].saturating_sub(before[of]), producer.count));
    Ok(Cost { rate: real(producer.count) / took.as_secs_f64(), broker, own, ..Cost::UNKNOWN })
}

/// A server without Kafka, while a plain producer sends `rate` records per second.
fn baseline(bench: &Bench, cluster: &Cluster, load: Load, who: Who, rate: f64) -> Fallible<Cost> {
    let system = if who == Who::Bare { System::Bare } else { System::RawLog };
    let subject = Subject { system, shape: Some(Shape::PerCore) };
    let mut producer = PlainProducer::start(bench, cluster, rate)?;
    producer.server.tell("go")?;
    let (connections, rate) = load.parts();
    let load = cell::Load { duration: bench.time(5.0, 0.5), warm_up: Duration::ZERO, rate };
    let measured = cell::measure(bench, subject, connections, &load, None)?;
    producer.finish()?;
    Ok(Cost {
        rate: measured.rate,
        own: measured.cpu.as_secs_f64() * 1e6,
        p50: millis(measured.p50),
        p99: millis(measured.p99),
        p999: millis(measured.p999),
        ..Cost::UNKNOWN
    })
}

/// The requests of one livebridge, by a run behind the proxy.
fn count_requests(
    bench: &Bench,
    cluster: &Cluster,
    proxy: &Proxy,
    load: Load,
) -> Fallible<Requests> {
    let before = proxy.requests();
    let cost = livebridge(bench, cluster, &proxy.address(), load, Who::ExactlyOnce)?;
    let events = cost.rate * bench.time(5.0, 0.5).as_secs_f64();
    let after = proxy.requests().into_iter();
    let thousand = after.map(|(api, count)| {
        let count = count - before.get(&api).copied().unwrap_or(0);
        (api, real(count) * 1000.0 / events)
    });
    Ok(thousand.filter(|(_, count)| *count >= 0.05).collect())
}
