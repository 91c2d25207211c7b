//! From the intake's rounds to its table: medians, ratios within a round, and JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::cell::{Load, Measured, Subject, System};
use crate::whole::bench::Target;
use crate::whole::stats::{median, mib, millis, real};
use crate::whole::table::Table;

/// All rounds of all cells.
#[derive(Debug, Default)]
pub(crate) struct Results {
    cells: BTreeMap<(u32, Subject), BTreeMap<u32, Measured>>,
    /// Subjects that could not be measured, with the reason.
    pub(crate) missing: BTreeMap<Subject, String>,
    /// Whether the load had a fixed rate: then the better configuration is the one with the lower
    /// latency.
    open_loop: bool,
}

/// A row of the table: one system with one number of connections, in the better of its
/// configurations.
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
    /// The processor time as a multiple of [`Results::cpu_limit`].
    of_limit: Option<f64>,
    load_busy: f64,
    /// The share of accepted callbacks in Kafka at the end of the load, and the seconds until all
    /// were there.
    in_kafka: Option<(f64, f64)>,
}

impl Results {
    pub(crate) fn new(load: &Load) -> Self {
        Self { open_loop: load.rate.is_some(), ..Self::default() }
    }

    pub(crate) fn add(&mut self, round: u32, subject: Subject, connections: u32, seen: Measured) {
        self.cells.entry((connections, subject)).or_default().insert(round, seen);
    }

    /// Unexpected events with their cell.
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

    /// The better configuration of a system with a number of connections.
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
            of_hyper: self.ratio(rounds, connections, System::Bare, |seen| seen.rate),
            of_raw_log: self.ratio(rounds, connections, System::RawLog, |seen| seen.rate),
            p50: of(|seen| millis(seen.p50)),
            p99: of(|seen| millis(seen.p99)),
            p999: of(|seen| millis(seen.p999)),
            max: of(|seen| millis(seen.max)),
            memory: rounds.values().map(|seen| mib(seen.peak_memory)).fold(0.0, f64::max),
            cpu: of(|seen| seen.cpu.as_secs_f64() * 1e6),
            of_limit: self.of_limit(subject.system, connections),
            load_busy: of(|seen| seen.load_busy),
            in_kafka: (!kafka.is_empty()).then(|| {
                let share =
                    kafka.iter().map(|(accepted, seen)| real(seen.at_end) / real(*accepted));
                (median(share), median(kafka.iter().map(|(_, seen)| seen.drain.as_secs_f64())))
            }),
        }
    }

    /// The median over the rounds of the ratio within each round, in which other load on the
    /// machine affects both figures.
    fn ratio(
        &self,
        rounds: &BTreeMap<u32, Measured>,
        connections: u32,
        yardstick: System,
        figure: fn(&Measured) -> f64,
    ) -> Option<f64> {
        let base = self.rounds(yardstick, connections)?;
        let ratios: Vec<f64> = rounds
            .iter()
            .filter_map(|(round, seen)| Some(figure(seen) / figure(base.get(round)?)))
            .collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// Processor time per callback, in seconds, that remains when nothing is done beside: that of HTTP
    /// and a synced log, and of a Kafka producer as long as Kafka is there.
    fn cpu_limit(&self, system: System, connections: u32, round: u32) -> Option<f64> {
        let cpu = |system| Some(self.rounds(system, connections)?.get(&round)?.cpu.as_secs_f64());
        match system {
            System::Livebridge => {
                Some(cpu(System::RawLog)? + cpu(System::DirectKafka)? - cpu(System::Bare)?)
            }
            System::LivebridgeKafkaAway => cpu(System::RawLog),
            System::Bare | System::RawLog | System::DirectKafka => None,
        }
    }

    fn of_limit(&self, system: System, connections: u32) -> Option<f64> {
        let rounds = self.rounds(system, connections)?.iter();
        let ratios: Vec<f64> = rounds
            .filter_map(|(round, seen)| {
                Some(seen.cpu.as_secs_f64() / self.cpu_limit(system, connections, *round)?)
            })
            .collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new([
            "system", "connections", "callbacks/s", "of hyper", "of raw log", "p50 ms", "p99 ms",
            "RSS MiB", "CPU us", "of limit", "load", "in Kafka at end", "all after",
        ]);
        let mut last = None;
        for row in self.rows() {
            if last.replace(row.connections).is_some_and(|last| last != row.connections) {
                table.gap();
            }
            let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |r| format!("{r:.2}"));
            let (share, drain) = row.in_kafka.map_or(Default::default(), |(share, drain)| {
                (format!("{:.1} %", share * 100.0), format!("{drain:.2} s"))
            });
            table.row([
                row.subject.to_string(),
                row.connections.to_string(),
                format!("{:.0}", row.rate),
                ratio(row.of_hyper),
                ratio(row.of_raw_log),
                format!("{:.3}", row.p50),
                format!("{:.3}", row.p99),
                format!("{:.1}", row.memory),
                format!("{:.1}", row.cpu),
                ratio(row.of_limit),
                format!("{:.0} %", row.load_busy * 100.0),
                share,
                drain,
            ]);
        }
        table
    }

    /// The targets of the closed loop, where it was measured.
    pub(crate) fn targets(&self, append_sync: Duration) -> Vec<Target> {
        let mut targets = Vec::new();
        if self.open_loop {
            return targets;
        }
        let bridge = System::Livebridge;
        for connections in [64, 512] {
            let Some(rounds) = self.rounds(bridge, connections) else { continue };
            let name = |what| format!("intake, {connections} connections: {what}");
            if let Some(ratio) = self.ratio(rounds, connections, System::Bare, |seen| seen.rate) {
                targets.push(Target::at_least(name("rate of bare hyper's"), 0.65, ratio, ""));
            }
            let p99 = |seen: &Measured| millis(seen.p99);
            if let Some(ratio) = self.ratio(rounds, connections, System::RawLog, p99) {
                targets.push(Target::at_most(name("p99 of the raw log's"), 2.0, ratio, ""));
            }
            for (system, what, wanted) in [
                (bridge, "CPU of log, producer and HTTP alone", 1.15),
                (System::LivebridgeKafkaAway, "CPU of the raw log's, Kafka away", 1.2),
            ] {
                if let Some(ratio) = self.of_limit(system, connections) {
                    targets.push(Target::at_most(name(what), wanted, ratio, ""));
                }
            }
        }
        if let Some(rounds) = self.rounds(bridge, 1) {
            let ratio = median(rounds.values().map(|seen| millis(seen.p50))) / millis(append_sync);
            let what = "intake, 1 connection: p50 of a bare append + fdatasync";
            targets.push(Target::at_most(what, 1.5, ratio, ""));
        }
        let rows = self.rows().into_iter().filter(|row| row.subject.system == bridge);
        let memory = rows.map(|row| row.memory);
        if let Some(memory) = memory.max_by(f64::total_cmp) {
            targets.push(Target::at_most("intake: memory, at most", 150.0, memory, " MiB"));
        }
        targets
    }

    fn rounds(&self, system: System, connections: u32) -> Option<&BTreeMap<u32, Measured>> {
        self.cells.get(&(connections, self.best(system, connections)?))
    }

    /// Everything: the conditions, the table and each round.
    pub(crate) fn json(&self, load: &Load) -> Value {
        json!({
            "seconds": load.duration.as_secs_f64(),
            "warm_up_seconds": load.warm_up.as_secs_f64(),
            "rate": load.rate,
            "table": self.rows().iter().map(Row::json).collect::<Vec<_>>(),
            "rounds": self.cells.iter().flat_map(|((connections, subject), rounds)| {
                rounds.iter().map(|(round, seen)| round_json(*connections, *subject, *round, seen))
            }).collect::<Vec<_>>(),
        })
    }
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "system": self.subject.system.name(),
            "subject": self.subject.to_string(),
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
            "cpu_of_limit": self.of_limit,
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
