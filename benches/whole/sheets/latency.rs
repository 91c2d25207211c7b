//! End-to-end latency at a fixed rate and at full load: from a callback's due time until a
//! `read_committed` consumer of a real broker has its event, compared with the broker's own time for
//! a transaction of one message by a plain producer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

use crate::support::kafka::create_topic;
use crate::support::unique;
use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome, Target};
use crate::whole::bridge::{Bridge, Brokers};
use crate::whole::histogram::Histogram;
use crate::whole::kafka::{self, PARTITIONS};
use crate::whole::load::{self, Plan};
use crate::whole::request;
use crate::whole::stats::{median, millis, real};
use crate::whole::table::Table;

/// The time-out for operations that usually take milliseconds.
const TIME_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// Multiples of the broker's own time, at the fixed rate.
const P50_OF_BROKER: f64 = 1.5;
const P99_OF_BROKER: f64 = 3.0;
/// At full load, in milliseconds.
const P99_AT_FULL_LOAD: f64 = 250.0;

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Callbacks per second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    connections: u32,
}

/// One quantity in one round, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    count: u64,
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug)]
struct Series {
    name: &'static str,
    rounds: Vec<Times>,
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let broker = match bench.kafka() {
        Ok(broker) => broker.bootstrap(),
        Err(missing) => {
            println!("not measured without a real broker: {missing}");
            return Ok(Outcome::default());
        }
    };
    let names = [
        "the broker's own commit", "the same, seen by a consumer", "request to 200",
        "request to consumer", "full load: request to 200", "full load: request to consumer",
    ];
    let mut lines = names.map(|name| Series { name, rounds: Vec::new() });
    let mut faults = Vec::new();
    // A new broker is slow at first, so the warm-up is not measured.
    own_commit(broker, bench.time(4.0, 1.0) / 2)?;
    let rounds = bench.rounds(3);
    for round in 1..=rounds {
        eprintln!("round {round}/{rounds}: the broker's own, {} callbacks/s, all", options.rate);
        let (own, bridge) = (bench.time(12.0, 1.5) / 3, bench.time(12.0, 1.5));
        let connections = options.connections.max(1);
        let mut through =
            |rate, time| end_to_end(bench, broker, connections, rate, time, &mut faults);
        let own = own_commit(broker, own)?;
        let at_rate = through(Some(options.rate), bridge)?;
        let full = through(None, bridge / 2)?;
        for (line, times) in lines.iter_mut().zip([own, at_rate, full].into_iter().flatten()) {
            line.rounds.push(times);
        }
    }
    println!(
        "{} callbacks/s (open loop, {} connections), {rounds} rounds; medians of each round's quantiles",
        options.rate, options.connections
    );
    let mut table = Table::new(["what", "times", "p50 ms", "p99 ms", "max ms"]);
    for line in &lines {
        table.row(line.row());
    }
    println!("\n{table}");
    Ok(Outcome {
        figures: json!({
            "rate": options.rate,
            "connections": options.connections,
            "table": lines.iter().map(Series::json).collect::<Vec<_>>(),
        }),
        targets: targets(&lines),
        faults,
    })
}

fn targets(series: &[Series; 6]) -> Vec<Target> {
    let [_, own, _, whole, _, full] = series;
    let of_broker = |figure| whole.median(figure) / own.median(figure);
    let (p50, p99) = (of_broker(|times| times.p50), of_broker(|times| times.p99));
    let full = full.median(|times| times.p99);
    vec![
        Target::at_most("latency: p50 to a consumer, of the broker's own", P50_OF_BROKER, p50, ""),
        Target::at_most("latency: p99 to a consumer, of the broker's own", P99_OF_BROKER, p99, ""),
        Target::at_most("latency: p99 to a consumer at full load", P99_AT_FULL_LOAD, full, " ms"),
    ]
}

impl Series {
    fn median(&self, figure: fn(&Times) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    fn row(&self) -> [String; 5] {
        [
            self.name.to_owned(),
            self.rounds.iter().map(|times| times.count).sum::<u64>().to_string(),
            format!("{:.2}", self.median(|times| times.p50)),
            format!("{:.2}", self.median(|times| times.p99)),
            format!("{:.2}", self.rounds.iter().map(|times| times.max).fold(0.0, f64::max)),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "what": self.name,
            "p50_ms": self.rounds.iter().map(|times| times.p50).collect::<Vec<_>>(),
            "p99_ms": self.rounds.iter().map(|times| times.p99).collect::<Vec<_>>(),
            "max_ms": self.rounds.iter().map(|times| times.max).collect::<Vec<_>>(),
        })
    }
}

impl Times {
    fn of(histogram: &Histogram, count: u64) -> Self {
        Self {
            count,
            p50: millis(histogram.quantile(500)),
            p99: millis(histogram.quantile(990)),
            max: millis(histogram.max()),
        }
    }
}

/// Sequential transactions of one message: until the commit returns, and until a consumer has the
/// message.
fn own_commit(broker: &str, duration: Duration) -> Fallible<[Times; 2]> {
    let topic = unique("own");
    create_topic(broker, &topic, PARTITIONS, 1);
    let consumer = kafka::reader(broker, &topic)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("transactional.id", &topic)
        .create()?;
    producer.init_transactions(TIME_LIMIT)?;
    let (mut commits, mut seen) = (Histogram::new(), Histogram::new());
    let mut count = 0;
    let body = [b'x'; request::BODY_BYTES];
    let transaction = |number: u64| -> Fallible<(Duration, Duration)> {
        let key = number.to_string();
        let start = Instant::now();
        producer.begin_transaction()?;
        let record = BaseRecord::<str, [u8]>::to(&topic).key(&key).payload(&body);
        producer.send(record).map_err(|(cause, _)| cause)?;
        // A commit waits for delivery reports, and polling every 100 ms would delay them.
        while producer.in_flight_count() > 0 {
            producer.poll(POLL);
        }
        let (committed, read) = thread::scope(|scope| {
            let reading = scope.spawn(|| next(&consumer));
            producer.commit_transaction(TIME_LIMIT)?;
            let committed = start.elapsed();
            let read = reading.join().map_err(|_| "the reader panicked")??;
            Fallible::Ok((committed, read.saturating_duration_since(start)))
        })?;
        Ok((committed, read))
    };
    // The first transaction finds the coordinator.
    transaction(0)?;
    let end = Instant::now() + duration;
    while Instant::now() < end {
        count += 1;
        let (committed, read) = transaction(count)?;
        commits.record(committed);
        seen.record(read);
    }
    Ok([Times::of(&commits, count), Times::of(&seen, count)])
}

/// When the next message arrives.
fn next(consumer: &BaseConsumer) -> Fallible<Instant> {
    let deadline = Instant::now() + TIME_LIMIT;
    while Instant::now() < deadline {
        if let Some(message) = consumer.poll(POLL) {
            message?;
            return Ok(Instant::now());
        }
    }
    Err("a committed message does not arrive".into())
}

/// Callbacks at the rate, or as many as are answered: until the response, and until a consumer has the
/// event.
fn end_to_end(
    bench: &Bench,
    broker: &str,
    connections: u32,
    rate: Option<u32>,
    duration: Duration,
    faults: &mut Vec<String>,
) -> Fallible<[Times; 2]> {
    let directory = bench.new_directory()?;
    let prefix = unique("latency");
    let brokers = Brokers::Real { bootstrap: broker.to_owned(), prefix: prefix.clone() };
    let bridge = Bridge::start(bench, directory.path(), &brokers)?;
    let warm_up_count = bridge.warm_up(bench)?;
    bridge.wait_until_published(warm_up_count, TIME_LIMIT)?;
    let consumer = kafka::reader(broker, &format!("{prefix}.push"))?;
    for _ in 0..warm_up_count {
        next(&consumer)?;
    }
    let plan = Plan {
        rate,
        threads: bench.load_threads(),
        warm_up: duration / 5,
        duration,
        trace: true,
        ..Plan::closed(bridge.address()?, connections, bench.next_run())
    };
    let is_over = AtomicBool::new(false);
    let (seen, arrivals) = thread::scope(|scope| {
        let reading = scope.spawn(|| arrivals(&consumer, &is_over));
        let seen = load::run(&plan);
        let published = seen.as_ref().map_or(Ok(()), |seen| {
            bridge.wait_until_published(warm_up_count + seen.accepted, TIME_LIMIT).map(drop)
        });
        is_over.store(true, Ordering::Release);
        let arrivals = reading.join().map_err(|_| "the reader panicked")?;
        published?;
        Fallible::Ok((seen?, arrivals?))
    })?;
    drop(bridge);
    let mut whole = Histogram::new();
    let mut missing = 0;
    for (sequence, due) in &seen.sent {
        match arrivals.get(sequence) {
            Some(arrived) => whole.record(arrived.saturating_duration_since(*due)),
            None => missing += 1,
        }
    }
    if missing > 0 {
        faults.push(format!("latency: {missing} callbacks reached no consumer"));
    }
    if real(seen.unsent) > 0.0 {
        faults.push(format!("latency: {} callbacks were due and not sent", seen.unsent));
    }
    faults.extend(seen.errors.iter().map(|(what, count)| format!("latency: {count} x {what}")));
    let count = seen.sent.len() as u64;
    Ok([Times::of(&seen.latency, count), Times::of(&whole, count)])
}

/// When each event arrived, by its sequence number, until the load is over and no more arrive.
fn arrivals(consumer: &BaseConsumer, is_over: &AtomicBool) -> Fallible<HashMap<u64, Instant>> {
    let mut arrivals = HashMap::new();
    let mut last = Instant::now();
    // A consumer has a committed event long before this time-out.
    let quiet = Duration::from_secs(1);
    while !is_over.load(Ordering::Acquire) || last.elapsed() < quiet {
        let Some(message) = consumer.poll(POLL) else { continue };
        let message = message?;
        last = Instant::now();
        if let Some(sequence) = message.payload().and_then(request::sequence) {
            arrivals.entry(sequence).or_insert(last);
        }
    }
    Ok(arrivals)
}
