//! An outage over time: callbacks at a fixed rate while Kafka is unreachable for some time.
//! Accepted, published and pending callbacks are sampled several times a second.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome};
use crate::whole::bridge::{Bridge, Brokers};
use crate::whole::load::{self, Plan, Seen};
use crate::whole::process;
use crate::whole::server::Server;
use crate::whole::stats::{mib, millis, real};
use crate::whole::table::Table;
use crate::whole::watcher::{self, Sample};

const DRAIN_MAX: Duration = Duration::from_mins(2);

/// When Kafka becomes unreachable and reachable again, as fractions of the load's time.
const GOES: f64 = 0.2;
const COMES: f64 = 0.5;

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Callbacks per second.
    #[arg(long, default_value_t = 20_000)]
    rate: u32,
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    connections: u32,
}

/// The results.
struct Course {
    /// When Kafka became unreachable and reachable again, in seconds.
    goes: f64,
    comes: f64,
    samples: Vec<Sample>,
    seen: Seen,
    memory: u64,
    /// All accepted callbacks, and all published ones.
    accepted: f64,
    published: f64,
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let course = measure(bench, options)?;
    let Options { rate, connections } = options;
    let (goes, comes) = (course.goes, course.comes);
    println!(
        "{rate} callbacks/s (open loop, {connections} connections); \
         the mock cluster away from {goes:.0} s to {comes:.0} s"
    );
    println!("\n{}", course.table(*rate));
    let seen = &course.seen;
    let faults = seen.errors.iter().map(|(what, count)| format!("outage: {count} x {what}"));
    let mut faults: Vec<String> = faults.collect();
    if (course.published - course.accepted).abs() > 0.5 {
        let (accepted, published) = (course.accepted, course.published);
        faults.push(format!("outage: {accepted} accepted, but {published} published"));
    }
    Ok(Outcome {
        figures: json!({
            "rate": rate,
            "kafka_goes_at": goes,
            "kafka_comes_at": comes,
            "p50_ms": millis(seen.latency.quantile(500)),
            "p99_ms": millis(seen.latency.quantile(990)),
            "max_ms": millis(seen.latency.max()),
            "samples": course.samples.iter().map(Sample::json).collect::<Vec<_>>(),
        }),
        targets: Vec::new(),
        faults,
    })
}

fn measure(bench: &Bench, options: &Options) -> Fallible<Course> {
    let duration = bench.time(50.0, 6.0);
    let seconds = duration.as_secs_f64();
    let (goes, comes) = (seconds * GOES, seconds * COMES);
    let mut mock = Server::start(&["mock-kafka"])?;
    let directory = bench.new_directory()?;
    let bridge = Bridge::start(bench, directory.path(), &Brokers::Mock(mock.address.clone()))?;
    let warm_up_count = bridge.warm_up(bench)?;
    bridge.wait_until_published(warm_up_count, DRAIN_MAX)?;
    let plan = Plan {
        rate: Some(options.rate),
        threads: bench.load_threads(),
        duration,
        ..Plan::closed(bridge.address()?, options.connections.max(1), bench.next_run())
    };
    eprintln!("{} callbacks/s for {duration:?}, Kafka unreachable for a part of it", options.rate);
    let mut orders = vec![(comes, "up"), (goes, "down")];
    let order = |at: f64| match orders.pop_if(|(due, _)| at >= *due) {
        Some((_, order)) => mock.tell(order),
        None => Ok(()),
    };
    let (samples, seen) = thread::scope(|scope| {
        let load = scope.spawn(|| load::run(&plan));
        let samples = watcher::watch(&bridge, order, |sample| {
            let is_over = load.is_finished() && sample.backlog == 0.0;
            is_over || sample.at > seconds + DRAIN_MAX.as_secs_f64()
        });
        let seen = load.join().map_err(|_| "the load panicked")?;
        Fallible::Ok((samples?, seen?))
    })?;
    let accepted = real(seen.accepted + warm_up_count);
    let memory = process::peak_memory(bridge.server.pid)?;
    let [published] = bridge.metrics(["livebridge_published_total"])?;
    drop(bridge);
    Ok(Course { goes, comes, samples, seen, memory, accepted, published })
}

impl Course {
    fn table(&self, rate: u32) -> Table {
        let highest = self.samples.iter().map(|sample| sample.backlog).fold(0.0, f64::max);
        let before = published_at(&self.samples, self.comes);
        // Some recent callbacks are always pending.
        let few = f64::from(rate) / 4.0;
        let mut table = Table::new([
            "accepted", "highest backlog", "publishes again after", "caught up after", "p50 ms",
            "p99 ms", "max ms", "RSS MiB",
        ]);
        table.row([
            self.seen.accepted.to_string(),
            format!("{highest:.0}"),
            self.after(|sample| sample.published > before),
            self.after(|sample| sample.backlog < few),
            format!("{:.2}", millis(self.seen.latency.quantile(500))),
            format!("{:.2}", millis(self.seen.latency.quantile(990))),
            format!("{:.1}", millis(self.seen.latency.max())),
            format!("{:.0}", mib(self.memory)),
        ]);
        table
    }

    /// The time from Kafka's return until a condition held.
    fn after(&self, is_so: impl Fn(&Sample) -> bool) -> String {
        let mut after = self.samples.iter().filter(|sample| sample.at > self.comes);
        let first = after.find(|sample| is_so(sample));
        first.map_or("never".into(), |sample| format!("{:.1} s", sample.at - self.comes))
    }
}

/// The number published at a point in time.
fn published_at(samples: &[Sample], moment: f64) -> f64 {
    let before = samples.iter().take_while(|sample| sample.at <= moment);
    before.last().map_or(0.0, |sample| sample.published)
}
