//! One cell of the table in one round: fresh processes, a load, and what they made of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Fallible;
use super::baseline::Shape;
use super::kafka::{self, Landed};
use super::load::{self, Plan};
use super::process;
use super::request::KEY;
use super::server::Server;

/// How long what was accepted may take to reach Kafka after the load.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// What is compared. The order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum System {
    /// hyper reads the body and answers.
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

/// A system in the shape in which it runs; livebridge chooses its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) system: System,
    pub(crate) shape: Option<Shape>,
}

impl Subject {
    /// The ways in which a system is measured.
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
        f.write_str(match self.system {
            System::Bare => "bare hyper",
            System::RawLog => "hyper + raw log",
            System::DirectKafka => "hyper + mock Kafka",
            System::Livebridge => "livebridge",
            System::LivebridgeKafkaAway => "livebridge, Kafka away",
        })?;
        match self.shape {
            Some(Shape::MultiThread) => f.write_str(" (multi-thread)"),
            Some(Shape::PerCore) => f.write_str(" (per core)"),
            None => Ok(()),
        }
    }
}

/// How to measure.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) rate: Option<u32>,
    pub(crate) threads: u32,
    /// The program measured as livebridge.
    pub(crate) livebridge: PathBuf,
    /// For everything that is written; on the same disk as the logs would be.
    pub(crate) directory: PathBuf,
}

/// What a subject did in one round.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Callbacks per second answered 200.
    pub(crate) rate: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    pub(crate) max: Duration,
    /// Callbacks answered 200, warm-up included.
    pub(crate) accepted: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) unsent: u64,
    pub(crate) peak_memory: u64,
    /// Processor time of the server per callback, until everything accepted is in Kafka.
    pub(crate) cpu: Duration,
    /// Share of one core that each load thread used; near one, the load is the limit.
    pub(crate) load_busy: f64,
    pub(crate) kafka: Option<InKafka>,
}

/// What of the accepted callbacks reached Kafka.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InKafka {
    pub(crate) at_end: u64,
    pub(crate) after_drain: u64,
    /// From the end of the load until all was there.
    pub(crate) drain: Duration,
}

impl Measured {
    /// Everything that should not have happened, as sentences.
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

/// Measures a subject once. `run` tells its events from those of other runs.
///
/// # Errors
/// When a process does not start or dies.
pub(crate) fn measure(
    subject: Subject,
    connections: u32,
    run: u32,
    setting: &Setting,
) -> Fallible<Measured> {
    let directory = setting.directory.join(format!("run-{run}"));
    fs::create_dir_all(&directory)?;
    let outcome = measure_in(&directory, subject, connections, run, setting);
    fs::remove_dir_all(&directory)?;
    outcome
}

fn measure_in(
    directory: &Path,
    subject: Subject,
    connections: u32,
    run: u32,
    setting: &Setting,
) -> Fallible<Measured> {
    let mock = subject.wants_kafka().then(|| Server::start(&["mock-kafka"])).transpose()?;
    let landed = mock.as_ref().map(|mock| Landed::new(&mock.address)).transpose()?;
    let brokers = match &mock {
        Some(mock) => mock.address.clone(),
        None => unused_address()?,
    };
    let server = Server::start(&arguments(directory, subject, &brokers, setting)?)?;
    let plan = Plan {
        address: server.address.parse()?,
        connections,
        threads: setting.threads,
        warm_up: setting.warm_up,
        duration: setting.duration,
        rate: setting.rate,
        run,
    };
    let primed = prime(&plan, landed.as_ref())?;
    let cpu_before = process::cpu_time(server.pid)?;
    let seen = load::run(&plan)?;
    let accepted = seen.accepted + primed;
    let kafka = landed.map(|landed| drain(&landed, accepted)).transpose()?;
    let cpu = process::cpu_time(server.pid)?.saturating_sub(cpu_before);
    let busy = seen.cpu.as_secs_f64() / seen.elapsed.as_secs_f64();
    Ok(Measured {
        rate: real(seen.measured) / setting.duration.as_secs_f64(),
        p50: seen.latency.quantile(500),
        p99: seen.latency.quantile(990),
        p999: seen.latency.quantile(999),
        max: seen.latency.max(),
        accepted,
        peak_memory: process::peak_memory(server.pid)?,
        cpu: cpu.div_f64(real(seen.accepted.max(1))),
        load_busy: busy / f64::from(setting.threads.clamp(1, connections)),
        errors: seen.errors,
        unsent: seen.unsent,
        kafka,
    })
}

/// The command line of the subject's process.
fn arguments(
    directory: &Path,
    subject: Subject,
    brokers: &str,
    setting: &Setting,
) -> Fallible<Vec<OsString>> {
    let shape = match subject.shape {
        Some(Shape::PerCore) => "per-core",
        Some(Shape::MultiThread) | None => "multi-thread",
    };
    Ok(match subject.system {
        System::Bare => vec!["bare".into(), shape.into()],
        System::RawLog => vec!["raw-log".into(), shape.into(), directory.join("raw.log").into()],
        System::DirectKafka => vec!["direct-kafka".into(), shape.into(), brokers.into()],
        System::Livebridge | System::LivebridgeKafkaAway => {
            let config = directory.join("livebridge.toml");
            fs::write(&config, livebridge_config(&directory.join("data"), brokers))?;
            let log = directory.join("livebridge.log");
            vec!["livebridge".into(), setting.livebridge.clone().into(), config.into(), log.into()]
        }
    })
}

/// As in production, but for the ports and the topics, which the mock cannot create on request.
fn livebridge_config(data: &Path, brokers: &str) -> String {
    let data = toml::Value::from(data.display().to_string());
    format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\n\
         [callback]\nkeys = [\"{KEY}\"]\n\n\
         [wal]\ndir = {data}\n\n\
         [kafka]\nbrokers = \"{brokers}\"\ninstance = \"bench\"\ncreate_topics = false\n\
         partitions = {}\n",
        kafka::PARTITIONS
    )
}

/// An address at which nobody listens: bound, and given back.
fn unused_address() -> Fallible<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Sends callbacks for a moment and, with Kafka, waits until they are there: the load then meets
/// a server whose connection to Kafka stands. Returns how many were accepted.
fn prime(plan: &Plan, landed: Option<&Landed>) -> Fallible<u64> {
    let plan = Plan {
        connections: 1,
        threads: 1,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(20),
        rate: None,
        // The runs proper count up from zero; see `Request::new` for the limit.
        run: 8999 - plan.run,
        ..plan.clone()
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

fn drain(landed: &Landed, accepted: u64) -> Fallible<InKafka> {
    let end_of_load = Instant::now();
    let at_end = landed.count()?;
    let after_drain = landed.wait_for(accepted, DRAIN_MAX)?;
    Ok(InKafka { at_end, after_drain, drain: end_of_load.elapsed() })
}

/// For figures in a table: counts here are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "exact for every count a benchmark reaches")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}
