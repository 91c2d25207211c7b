//! From the rounds to the table: medians, ratios within a round, and the same as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::cell::{Measured, Setting, Subject, System, real};
use super::machine::Machine;

/// All rounds of all cells.
#[derive(Debug, Default)]
pub(crate) struct Results {
    cells: BTreeMap<(u32, Subject), BTreeMap<u32, Measured>>,
    /// Subjects that could not be measured, and why.
    pub(crate) missing: BTreeMap<Subject, String>,
    /// Whether the load had a fixed rate: then the better shape is the quicker one.
    open_loop: bool,
}

/// A line of the table: one system at one number of connections, in the better of its shapes.
#[derive(Debug)]
struct Row {
    subject: Subject,
    connections: u32,
    rate: f64,
    of_hyper: Option<f64>,
    of_raw_log: Option<f64>,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
    memory: f64,
    cpu: f64,
    load_busy: f64,
    /// Share of what was accepted that was in Kafka when the load ended, and the seconds until
    /// all of it was.
    in_kafka: Option<(f64, f64)>,
}

impl Results {
    pub(crate) fn new(setting: &Setting) -> Self {
        Self { open_loop: setting.rate.is_some(), ..Self::default() }
    }

    pub(crate) fn add(&mut self, round: u32, subject: Subject, connections: u32, seen: Measured) {
        self.cells.entry((connections, subject)).or_default().insert(round, seen);
    }

    /// What should not have happened, with its place.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self
            .missing
            .iter()
            .map(|(subject, reason)| format!("{subject}: not measured: {reason}"))
            .collect();
        for ((connections, subject), rounds) in &self.cells {
            for (round, measured) in rounds {
                for fault in measured.faults() {
                    faults.push(format!(
                        "{subject}, {connections} connections, round {round}: {fault}"
                    ));
                }
            }
        }
        faults
    }

    /// The better shape of a system at a number of connections.
    fn best(&self, system: System, connections: u32) -> Option<Subject> {
        let candidates = Subject::all_of(system);
        let measured = candidates.into_iter().filter_map(|subject| {
            let rounds = self.cells.get(&(connections, subject))?;
            let score = if self.open_loop {
                -median(rounds.values().map(|seen| seen.p99.as_secs_f64()))
            } else {
                median(rounds.values().map(|seen| seen.rate))
            };
            Some((subject, score))
        });
        measured.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(subject, _)| subject)
    }

    fn rows(&self) -> Vec<Row> {
        let columns: BTreeSet<u32> =
            self.cells.keys().map(|(connections, _)| *connections).collect();
        let systems: BTreeSet<System> =
            self.cells.keys().map(|(_, subject)| subject.system).collect();
        columns
            .into_iter()
            .flat_map(|connections| systems.iter().map(move |system| (connections, *system)))
            .filter_map(|(connections, system)| {
                Some(self.row(self.best(system, connections)?, connections))
            })
            .collect()
    }

    fn row(&self, subject: Subject, connections: u32) -> Row {
        let rounds = &self.cells[&(connections, subject)];
        let of = |figure: fn(&Measured) -> f64| median(rounds.values().map(figure));
        let kafka: Vec<_> =
            rounds.values().filter_map(|seen| Some((seen.accepted, seen.kafka?))).collect();
        Row {
            subject,
            connections,
            rate: of(|seen| seen.rate),
            of_hyper: self.ratio(rounds, connections, System::Bare),
            of_raw_log: self.ratio(rounds, connections, System::RawLog),
            p50: of(|seen| millis(seen.p50)),
            p99: of(|seen| millis(seen.p99)),
            p999: of(|seen| millis(seen.p999)),
            max: of(|seen| millis(seen.max)),
            memory: rounds.values().map(|seen| real(seen.peak_memory)).fold(0.0, f64::max)
                / f64::from(1 << 20),
            cpu: of(|seen| seen.cpu.as_secs_f64() * 1e6),
            load_busy: of(|seen| seen.load_busy),
            in_kafka: (!kafka.is_empty()).then(|| {
                let share =
                    kafka.iter().map(|(accepted, seen)| real(seen.at_end) / real(*accepted));
                (median(share), median(kafka.iter().map(|(_, seen)| seen.drain.as_secs_f64())))
            }),
        }
    }

    /// The median over the rounds of the ratio within each: what else the machine did in a round
    /// is then in both figures.
    fn ratio(
        &self,
        rounds: &BTreeMap<u32, Measured>,
        connections: u32,
        yardstick: System,
    ) -> Option<f64> {
        let base = self.cells.get(&(connections, self.best(yardstick, connections)?))?;
        let ratios: Vec<f64> = rounds
            .iter()
            .filter_map(|(round, seen)| Some(seen.rate / base.get(round)?.rate))
            .collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// The table as text.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<34}{:>6}{:>12}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}  {}\n",
            "system",
            "conns",
            "callbacks/s",
            "x hyper",
            "x rawlog",
            "p50 ms",
            "p99 ms",
            "RSS MiB",
            "CPU us",
            "load",
            "in Kafka at end, all after"
        );
        let mut last = None;
        for row in self.rows() {
            if last.replace(row.connections).is_some_and(|last| last != row.connections) {
                text.push('\n');
            }
            let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |r| format!("{r:.2}"));
            let kafka = row.in_kafka.map_or(String::new(), |(share, drain)| {
                format!("{:.1} %, {drain:.2} s", share * 100.0)
            });
            let _ = writeln!(
                text,
                "{:<34}{:>6}{:>12.0}{:>8}{:>9}{:>9.3}{:>9.3}{:>9.1}{:>9.1}{:>5.0} %  {kafka}",
                row.subject.to_string(),
                row.connections,
                row.rate,
                ratio(row.of_hyper),
                ratio(row.of_raw_log),
                row.p50,
                row.p99,
                row.memory,
                row.cpu,
                row.load_busy * 100.0,
            );
        }
        text
    }

    /// Everything: the machine, how it was measured, the table and each round.
    pub(crate) fn json(&self, machine: &Machine, setting: &Setting) -> Value {
        json!({
            "machine": {
                "cores": machine.cores,
                "cpu": machine.cpu,
                "kernel": machine.kernel,
                "load_average": machine.load_average,
                "append_sync_ms": millis(machine.append_sync),
            },
            "seconds": setting.duration.as_secs_f64(),
            "warm_up_seconds": setting.warm_up.as_secs_f64(),
            "rate": setting.rate,
            "load_threads": setting.threads,
            "table": self.rows().iter().map(Row::json).collect::<Vec<_>>(),
            "rounds": self.cells.iter().flat_map(|((connections, subject), rounds)| {
                rounds.iter().map(|(round, seen)| round_json(*connections, *subject, *round, seen))
            }).collect::<Vec<_>>(),
            "faults": self.faults(),
        })
    }
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "system": self.subject.to_string(),
            "connections": self.connections,
            "callbacks_per_second": self.rate,
            "of_bare_hyper": self.of_hyper,
            "of_raw_log": self.of_raw_log,
            "p50_ms": self.p50,
            "p99_ms": self.p99,
            "p999_ms": self.p999,
            "max_ms": self.max,
            "peak_memory_mib": self.memory,
            "cpu_us_per_callback": self.cpu,
            "load_busy": self.load_busy,
            "in_kafka_at_end": self.in_kafka.map(|(share, _)| share),
            "drain_seconds": self.in_kafka.map(|(_, drain)| drain),
        })
    }
}

fn round_json(connections: u32, subject: Subject, round: u32, seen: &Measured) -> Value {
    json!({
        "system": subject.to_string(),
        "connections": connections,
        "round": round,
        "callbacks_per_second": seen.rate,
        "p50_ms": millis(seen.p50),
        "p99_ms": millis(seen.p99),
        "p999_ms": millis(seen.p999),
        "max_ms": millis(seen.max),
        "accepted": seen.accepted,
        "errors": seen.errors,
        "unsent": seen.unsent,
        "peak_memory_bytes": seen.peak_memory,
        "cpu_us_per_callback": seen.cpu.as_secs_f64() * 1e6,
        "load_busy": seen.load_busy,
        "in_kafka_at_end": seen.kafka.map(|kafka| kafka.at_end),
        "in_kafka_after_drain": seen.kafka.map(|kafka| kafka.after_drain),
        "drain_seconds": seen.kafka.map(|kafka| kafka.drain.as_secs_f64()),
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle figure, or the mean of the two in the middle; zero of none.
fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        n if n % 2 == 1 => figures[n / 2],
        n => f64::midpoint(figures[n / 2 - 1], figures[n / 2]),
    }
}
