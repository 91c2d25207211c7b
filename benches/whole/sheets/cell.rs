//! One cell of the intake's table in one round: new processes, a load, and its results.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::whole::Fallible;
use crate::whole::baseline::Shape;
use crate::whole::bench::Bench;
use crate::whole::bridge::{Bridge, Brokers};
use crate::whole::kafka::PushCounter;
use crate::whole::load::{self, Plan};
use crate::whole::process;
use crate::whole::server::Server;
use crate::whole::stats::real;
use crate::whole::stock::Stock;

/// The time-out for accepted callbacks to reach Kafka after the load.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// The compared systems, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum System {
    /// hyper reads the body and responds.
    Bare,
    /// hyper, then a group commit to a plain file.
    RawLog,
    /// hyper, then the delivery report of a Kafka producer.
    DirectKafka,
    /// livebridge, publishing while it accepts.
    Livebridge,
    /// livebridge while Kafka cannot be reached.
    LivebridgeKafkaAway,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare hyper",
            Self::RawLog => "hyper + raw log",
            Self::DirectKafka => "hyper + mock Kafka",
            Self::Livebridge => "livebridge",
            Self::LivebridgeKafkaAway => "livebridge, Kafka away",
        }
    }
}

/// A system in its runtime configuration; livebridge chooses its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) system: System,
    pub(crate) shape: Option<Shape>,
}

impl Subject {
    /// The runtime configurations in which a system is measured.
    pub(crate) fn all_of(system: System) -> Vec<Self> {
        match system {
            System::Bare | System::RawLog | System::DirectKafka => {
                [Shape::MultiThread, Shape::PerCore]
                    .map(|shape| Self { system, shape: Some(shape) })
                    .into()
            }
            System::Livebridge | System::LivebridgeKafkaAway => vec![Self { system, shape: None }],
        }
    }

    fn wants_kafka(self) -> bool {
        matches!(self.system, System::DirectKafka | System::Livebridge)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.system.name())?;
        match self.shape {
            Some(Shape::MultiThread) => f.write_str(" (multi-thread)"),
            Some(Shape::PerCore) => f.write_str(" (per core)"),
            None => Ok(()),
        }
    }
}

/// Duration and size of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    /// Callbacks per second of an open loop; `None` for a closed one.
    pub(crate) rate: Option<u32>,
}

/// The results of a subject in one round.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Callbacks per second answered 200.
    pub(crate) rate: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    pub(crate) max: Duration,
    /// Callbacks answered 200, including the warm-up.
    pub(crate) accepted: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) unsent: u64,
    pub(crate) peak_memory: u64,
    /// CPU time of the server per callback, until everything accepted is in Kafka.
    pub(crate) cpu: Duration,
    /// The share of a core that each load thread used; near one, the load is the limit.
    pub(crate) load_busy: f64,
    pub(crate) kafka: Option<InKafka>,
}

/// How many of the accepted callbacks reached Kafka.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InKafka {
    pub(crate) at_end: u64,
    pub(crate) after_drain: u64,
    /// From the end of the load until all were there.
    pub(crate) drain: Duration,
}

impl Measured {
    /// All unexpected events, as sentences.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            self.errors.iter().map(|(what, count)| format!("{count} x {what}")).collect();
        if let Some(kafka) = self.kafka
            && kafka.after_drain != self.accepted
        {
            let (accepted, landed) = (self.accepted, kafka.after_drain);
            faults.push(format!("{accepted} accepted, but {landed} in Kafka"));
        }
        faults
    }
}

/// Measures a subject once; livebridge starts with the log of `stock` if there is one.
///
/// # Errors
/// When a process does not start, or exits.
pub(crate) fn measure(
    bench: &Bench,
    subject: Subject,
    connections: u32,
    load: &Load,
    stock: Option<&Stock>,
) -> Fallible<Measured> {
    let directory = bench.new_directory()?;
    if let Some(stock) = stock {
        stock.copy_to(directory.path())?;
    }
    let mock = subject.wants_kafka().then(|| Server::start(&["mock-kafka"])).transpose()?;
    let landed = mock.as_ref().map(|mock| PushCounter::new(&mock.address)).transpose()?;
    let mock = mock.as_ref().map(|mock| mock.address.as_str());
    let server = start(directory.path(), bench, subject, mock)?;
    let plan = Plan {
        threads: bench.load_threads(),
        warm_up: load.warm_up,
        duration: load.duration,
        rate: load.rate,
        ..Plan::closed(server.address.parse()?, connections, bench.next_run())
    };
    let primed = prime(bench, &plan, landed.as_ref())?;
    let cpu_before = process::cpu_time(server.pid)?;
    let seen = load::run(&plan)?;
    let accepted = seen.accepted + primed;
    let kafka = landed.map(|landed| drain(&landed, accepted)).transpose()?;
    let cpu = process::cpu_time(server.pid)?.saturating_sub(cpu_before);
    let busy = seen.cpu.as_secs_f64() / seen.elapsed.as_secs_f64();
    Ok(Measured {
        rate: real(seen.measured) / load.duration.as_secs_f64(),
        p50: seen.latency.quantile(500),
        p99: seen.latency.quantile(990),
        p999: seen.latency.quantile(999),
        max: seen.latency.max(),
        accepted,
        peak_memory: process::peak_memory(server.pid)?,
        cpu: cpu.div_f64(real(seen.accepted.max(1))),
        load_busy: busy / f64::from(bench.load_threads().clamp(1, connections)),
        errors: seen.errors,
        unsent: seen.unsent,
        kafka,
    })
}

/// Starts the subject's process.
fn start(
    directory: &Path,
    bench: &Bench,
    subject: Subject,
    mock: Option<&str>,
) -> Fallible<Server> {
    let shape = match subject.shape {
        Some(Shape::PerCore) => "per-core",
        Some(Shape::MultiThread) | None => "multi-thread",
    };
    let brokers = mock.unwrap_or_default();
    let arguments: Vec<OsString> = match subject.system {
        System::Bare => vec!["bare".into(), shape.into()],
        System::RawLog => vec!["raw-log".into(), shape.into(), directory.join("raw.log").into()],
        System::DirectKafka => vec!["direct-kafka".into(), shape.into(), brokers.into()],
        System::Livebridge => {
            return Ok(Bridge::start(bench, directory, &Brokers::Mock(brokers.into()))?.server);
        }
        System::LivebridgeKafkaAway => {
            return Ok(Bridge::start(bench, directory, &Brokers::away()?)?.server);
        }
    };
    Server::start(&arguments)
}

/// Sends callbacks briefly and, with Kafka, waits until they are published, so that the load meets
/// a server with a connection to Kafka. Returns how many were accepted.
fn prime(bench: &Bench, plan: &Plan, landed: Option<&PushCounter>) -> Fallible<u64> {
    let plan = Plan {
        duration: Duration::from_millis(20),
        ..Plan::closed(plan.address, 1, bench.next_run())
    };
    let seen = load::run(&plan)?;
    if seen.accepted == 0 {
        return Err(format!("it accepts nothing: {:?}", seen.errors).into());
    }
    if let Some(landed) = landed {
        let count = landed.wait_for(seen.accepted, DRAIN_MAX)?;
        if count < seen.accepted {
            return Err(format!("{} accepted, {count} reached Kafka", seen.accepted).into());
        }
    }
    Ok(seen.accepted)
}

fn drain(landed: &PushCounter, accepted: u64) -> Fallible<InKafka> {
    let end_of_load = Instant::now();
    let at_end = landed.count()?;
    let after_drain = landed.wait_for(accepted, DRAIN_MAX)?;
    Ok(InKafka { at_end, after_drain, drain: end_of_load.elapsed() })
}
