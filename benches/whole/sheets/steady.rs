//! The backlog while the intake runs at full rate against the mock cluster: whether publishing
//! keeps up, and the memory use.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome, Target};
use crate::whole::bridge::{Bridge, Brokers};
use crate::whole::load::{self, Plan, Seen};
use crate::whole::process;
use crate::whole::server::Server;
use crate::whole::stats::{mib, millis, real, slope};
use crate::whole::table::Table;
use crate::whole::watcher::{self, Sample};

const DRAIN_MAX: Duration = Duration::from_mins(2);

/// The backlog counts as level if it grows by less than this share of the accepted callbacks.
const GROWTH_WANTED: f64 = 0.01;

/// The options of this sheet.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512])]
    connections: Vec<u32>,
}

struct Course {
    connections: u32,
    samples: Vec<Sample>,
    seen: Seen,
    memory: u64,
    /// From the end of the load until all were published.
    drain: Duration,
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench, options: &Options) -> Fallible<Outcome> {
    let duration = bench.time(25.0, 2.0);
    let head = [
        "connections", "accepted/s", "published/s", "backlog at 1/4", "1/2", "3/4", "end",
        "growth/s", "of accepted", "all after", "p99 ms", "RSS MiB",
    ];
    let mut table = Table::new(head);
    let (mut outcome, mut courses) = (Outcome::default(), Vec::new());
    for connections in options.connections.iter().copied().filter(|count| *count > 0) {
        eprintln!("{connections} connections for {duration:?}");
        let course = measure(bench, connections, duration)?;
        table.row(course.row());
        let at = format!("steady, {connections} connections");
        let growth = course.growth() / course.rate(|sample| sample.accepted);
        let what = format!("{at}: the backlog's growth of what is accepted");
        outcome.targets.push(Target::at_most(what, GROWTH_WANTED, growth, ""));
        let memory = mib(course.memory);
        outcome.targets.push(Target::at_most(format!("{at}: memory"), 150.0, memory, " MiB"));
        for (what, count) in &course.seen.errors {
            outcome.faults.push(format!("{at}: {count} x {what}"));
        }
        courses.push(course.json());
    }
    println!(
        "full load for {duration:?} while it publishes to the mock cluster; growth in the second half"
    );
    println!("\n{table}");
    outcome.figures = json!({ "courses": courses });
    Ok(outcome)
}

fn measure(bench: &Bench, connections: u32, duration: Duration) -> Fallible<Course> {
    let mock = Server::start(&["mock-kafka"])?;
    let directory = bench.new_directory()?;
    let bridge = Bridge::start(bench, directory.path(), &Brokers::Mock(mock.address.clone()))?;
    let warm_up_count = bridge.warm_up(bench)?;
    bridge.wait_until_published(warm_up_count, DRAIN_MAX)?;
    let plan = Plan {
        duration,
        threads: bench.load_threads(),
        ..Plan::closed(bridge.address()?, connections, bench.next_run())
    };
    let (samples, seen, end) = thread::scope(|scope| {
        let load = scope.spawn(|| (load::run(&plan), std::time::Instant::now()));
        let samples = watcher::watch(&bridge, |_| Ok(()), |_| load.is_finished());
        let (seen, end) = load.join().map_err(|_| "the load panicked")?;
        Fallible::Ok((samples?, seen?, end))
    })?;
    let published = bridge.wait_until_published(warm_up_count + seen.accepted, DRAIN_MAX)?;
    let memory = process::peak_memory(bridge.server.pid)?;
    drop(bridge);
    let drain = published.saturating_duration_since(end);
    Ok(Course { connections, samples, seen, memory, drain })
}

impl Course {
    fn at(&self, quarter: usize) -> Option<&Sample> {
        self.samples.get((self.samples.len() * quarter / 4).min(self.samples.len() - 1))
    }

    /// Per second between the first and the last sample.
    fn rate(&self, of: fn(&Sample) -> f64) -> f64 {
        match (self.samples.first(), self.samples.last()) {
            (Some(first), Some(last)) if last.at > first.at => {
                (of(last) - of(first)) / (last.at - first.at)
            }
            _ => 0.0,
        }
    }

    /// Records per second by which the backlog grows in the second half.
    fn growth(&self) -> f64 {
        let half = &self.samples[self.samples.len() / 2..];
        slope(&half.iter().map(|sample| (sample.at, sample.backlog)).collect::<Vec<_>>())
    }

    fn row(&self) -> [String; 12] {
        let accepted = self.rate(|sample| sample.accepted);
        let backlog = |quarter| {
            self.at(quarter).map_or("-".into(), |sample| format!("{:.0}", sample.backlog))
        };
        [
            self.connections.to_string(),
            format!("{accepted:.0}"),
            format!("{:.0}", self.rate(|sample| sample.published)),
            backlog(1),
            backlog(2),
            backlog(3),
            backlog(4),
            format!("{:.0}", self.growth()),
            format!("{:.1} %", self.growth() / accepted * 100.0),
            format!("{:.2} s", self.drain.as_secs_f64()),
            format!("{:.2}", millis(self.seen.latency.quantile(990))),
            format!("{:.0}", mib(self.memory)),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "connections": self.connections,
            "accepted_per_second": self.rate(|sample| sample.accepted),
            "published_per_second": self.rate(|sample| sample.published),
            "growth_per_second": self.growth(),
            "accepted": real(self.seen.accepted),
            "drain_seconds": self.drain.as_secs_f64(),
            "p50_ms": millis(self.seen.latency.quantile(500)),
            "p99_ms": millis(self.seen.latency.quantile(990)),
            "peak_memory_mib": mib(self.memory),
            "samples": self.samples.iter().map(Sample::json).collect::<Vec<_>>(),
        })
    }
}
