//! The drain rate of a backlog, compared with a plain idempotent producer that sends the same
//! records (key, value, headers, timestamp) from memory, against the mock cluster and a real broker
//! if available.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::kafka::{create_topic, delete_topic};
use crate::support::unique;
use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome, Target};
use crate::whole::bridge::{Bridge, Brokers};
use crate::whole::kafka::{PARTITIONS, PUSH_TOPIC, PushCounter};
use crate::whole::load::{self, Plan};
use crate::whole::process;
use crate::whole::server::Server;
use crate::whole::stats::{median, real};
use crate::whole::stock::Stock;
use crate::whole::table::Table;

const DRAIN_MAX: Duration = Duration::from_mins(10);

/// The interval of checks of livebridge's progress.
const LOOK: Duration = Duration::from_millis(20);

/// The number of callbacks whose records the plain producer sends.
const PATTERN: Duration = Duration::from_millis(300);

const SHARE_WANTED: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kafka {
    Mock,
    Real,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Plain,
    Livebridge,
}

/// One drain.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// Records per second.
    rate: f64,
    /// CPU time of the sender per record, in microseconds.
    cpu: f64,
    /// From the start of livebridge to the last record.
    whole: Option<Duration>,
}

/// By Kafka and sender, one per round.
type Drains = BTreeMap<(Kafka, Who), Vec<Drain>>;

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Fallible<Outcome> {
    let stock = bench.stocks()?.first().ok_or("there is no backlog")?;
    let pattern = pattern(bench)?;
    let mut kafkas = vec![Kafka::Mock];
    match bench.kafka() {
        Ok(_) => kafkas.push(Kafka::Real),
        Err(missing) => println!("without a real broker: {missing}"),
    }
    let mut drains = Drains::new();
    // A new broker is slow at first, so no sender is measured on it.
    if let (Some(Kafka::Real), false) = (kafkas.last(), bench.quick()) {
        measure(bench, Kafka::Real, Who::Plain, stock, &pattern)?;
    }
    for round in 1..=bench.rounds(3) {
        for kafka in kafkas.iter().copied() {
            let mut order = [Who::Plain, Who::Livebridge];
            if round % 2 == 0 {
                order.reverse();
            }
            for who in order {
                eprint!("round {round}, {}, {}: ", kafka.name(), who.name());
                let drain = measure(bench, kafka, who, stock, &pattern)?;
                eprintln!("{:.0}/s", drain.rate);
                drains.entry((kafka, who)).or_default().push(drain);
            }
        }
    }
    let rounds = bench.rounds(3);
    println!("a backlog of {} records drains, {rounds} rounds; ratios within each", stock.records);
    Ok(report(&drains, stock.records))
}

fn report(drains: &Drains, records: u64) -> Outcome {
    let head = ["Kafka", "sender", "records/s", "of plain", "CPU us", "start to end"];
    let mut table = Table::new(head);
    let (mut targets, mut rows) = (Vec::new(), Vec::new());
    for ((kafka, who), rounds) in drains {
        let rate = median(rounds.iter().map(|drain| drain.rate));
        let cpu = median(rounds.iter().map(|drain| drain.cpu));
        let plain = drains.get(&(*kafka, Who::Plain)).into_iter().flatten();
        let ratio = median(rounds.iter().zip(plain).map(|(own, plain)| own.rate / plain.rate));
        let whole = rounds.iter().filter_map(|drain| Some(drain.whole?.as_secs_f64()));
        let whole: Vec<f64> = whole.collect();
        let text = if whole.is_empty() { "-".into() } else { format!("{:.2} s", median(whole)) };
        table.row([
            kafka.name().into(),
            who.name().into(),
            format!("{rate:.0}"),
            format!("{ratio:.2}"),
            format!("{cpu:.1}"),
            text,
        ]);
        rows.push(row(*kafka, *who, rounds, ratio));
        if *who == Who::Livebridge {
            let what = format!("publishing, {}: rate of a plain producer's", kafka.name());
            targets.push(Target::at_least(what, SHARE_WANTED, ratio, ""));
        }
    }
    println!("\n{table}");
    Outcome { figures: json!({ "records": records, "table": rows }), targets, ..Outcome::default() }
}

fn row(kafka: Kafka, who: Who, rounds: &[Drain], ratio: f64) -> Value {
    json!({
        "kafka": kafka.name(),
        "sender": who.name(),
        "of_plain": ratio,
        "records_per_second": rounds.iter().map(|drain| drain.rate).collect::<Vec<_>>(),
        "cpu_us_per_record": rounds.iter().map(|drain| drain.cpu).collect::<Vec<_>>(),
    })
}

impl Kafka {
    fn name(self) -> &'static str {
        match self {
            Self::Mock => "mock cluster",
            Self::Real => "real broker",
        }
    }
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain producer",
            Self::Livebridge => "livebridge",
        }
    }
}

/// A mock cluster with records that livebridge published.
pub(super) fn pattern(bench: &Bench) -> Fallible<Server> {
    let mock = Server::start(&["mock-kafka"])?;
    let directory = bench.new_directory()?;
    let bridge = Bridge::start(bench, directory.path(), &Brokers::Mock(mock.address.clone()))?;
    let plan = Plan::closed(bridge.address()?, 64, bench.next_run());
    let seen = load::run(&Plan { duration: PATTERN, ..plan })?;
    let count = PushCounter::new(&mock.address)?.wait_for(seen.accepted, Duration::from_mins(1))?;
    drop(bridge);
    if count < seen.accepted || count == 0 {
        return Err(format!("of {} callbacks {count} reached Kafka", seen.accepted).into());
    }
    Ok(mock)
}

fn measure(
    bench: &Bench,
    kafka: Kafka,
    who: Who,
    stock: &Stock,
    pattern: &Server,
) -> Fallible<Drain> {
    let mock = (kafka == Kafka::Mock).then(|| Server::start(&["mock-kafka"])).transpose()?;
    // A separate prefix on the shared broker: its ledger must not contain the log.
    let prefix = unique("drain");
    let brokers = if let Some(mock) = &mock {
        Brokers::Mock(mock.address.clone())
    } else {
        let bootstrap = bench.kafka().map_err(Clone::clone)?.bootstrap().to_owned();
        Brokers::Real { bootstrap, prefix }
    };
    let drain = match who {
        Who::Plain => plain(&brokers, stock.records, pattern),
        Who::Livebridge => livebridge(bench, &brokers, stock),
    };
    if let Brokers::Real { bootstrap, prefix } = &brokers {
        delete_topic(bootstrap, &format!("{prefix}.push"));
    }
    drain
}

fn plain(brokers: &Brokers, records: u64, pattern: &Server) -> Fallible<Drain> {
    let (bootstrap, topic) = match brokers {
        Brokers::Mock(bootstrap) | Brokers::Away(bootstrap) => (bootstrap, PUSH_TOPIC.to_owned()),
        Brokers::Real { bootstrap, prefix } => {
            let topic = format!("{prefix}.push");
            create_topic(bootstrap, &topic, PARTITIONS, 1);
            (bootstrap, topic)
        }
    };
    let arguments = ["producer", &pattern.address, bootstrap, &topic, &records.to_string()];
    let mut producer = Server::start(&arguments)?;
    let before = process::cpu_time(producer.pid)?;
    producer.tell("go")?;
    let micros: u64 = producer.hear()?.parse()?;
    // The killed process is not yet reaped, so its CPU time stays readable.
    let cpu = process::cpu_time(producer.pid)?.saturating_sub(before);
    Ok(Drain {
        rate: real(records) / Duration::from_micros(micros).as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / real(records),
        whole: None,
    })
}

fn livebridge(bench: &Bench, brokers: &Brokers, stock: &Stock) -> Fallible<Drain> {
    let directory = bench.new_directory()?;
    stock.copy_to(directory.path())?;
    let started = Instant::now();
    let bridge = Bridge::start(bench, directory.path(), brokers)?;
    // The rate counts from the first sample with a published event.
    let (mut first, deadline) = (None, Instant::now() + DRAIN_MAX);
    let (rate, whole) = loop {
        let [published] = bridge.metrics(["livebridge_published_total"])?;
        let now = Instant::now();
        let (since, already) = *first.get_or_insert((now, published));
        if published >= real(stock.records) {
            let rate = (published - already) / now.duration_since(since).as_secs_f64();
            break (rate, started.elapsed());
        }
        if published == 0.0 {
            first = None;
        }
        if now > deadline {
            return Err(format!("{published} of {} were published in time", stock.records).into());
        }
        thread::sleep(LOOK);
    };
    let cpu = process::cpu_time(bridge.server.pid)?;
    if let Brokers::Mock(bootstrap) = brokers {
        let landed = PushCounter::new(bootstrap)?.count()?;
        if landed != stock.records {
            return Err(format!("of {} records {landed} are in Kafka", stock.records).into());
        }
    }
    drop(bridge);
    Ok(Drain { rate, cpu: cpu.as_secs_f64() * 1e6 / real(stock.records), whole: Some(whole) })
}
