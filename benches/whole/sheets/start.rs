//! Start, idle use and size: from process start to the first accepted callback, with an empty log
//! and with a backlog; memory and CPU time of an idle instance.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::kafka::free_port;
use crate::support::unique;
use crate::whole::Fallible;
use crate::whole::bench::{Bench, Outcome, Target};
use crate::whole::bridge::{Bridge, Brokers};
use crate::whole::process;
use crate::whole::server::Server;
use crate::whole::stats::{median, mib, millis, real};
use crate::whole::stock::Stock;
use crate::whole::table::Table;

const EMPTY_WANTED: f64 = 100.0;
const BACKLOG_WANTED: f64 = 1000.0;
/// In CPU seconds per minute: a hundredth of a core.
const IDLE_WANTED: f64 = 0.6;

/// The pause after the last callback before idle use is measured.
const SETTLE: Duration = Duration::from_secs(2);
const PUBLISH_MAX: Duration = Duration::from_secs(30);

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Fallible<Outcome> {
    let mut outcome = Outcome::default();
    let starts = starts(bench, &mut outcome)?;
    let idle = idle(bench, &mut outcome)?;
    let size = size(bench)?;
    println!("\nthe program: {:.1} MiB, stripped {:.1} MiB", mib(size.0), mib(size.1));
    outcome.figures = json!({
        "starts": starts,
        "idle": idle,
        "program_bytes": size.0,
        "stripped_bytes": size.1,
    });
    Ok(outcome)
}

fn starts(bench: &Bench, outcome: &mut Outcome) -> Fallible<serde_json::Value> {
    let stocks = bench.stocks()?;
    let logs: Vec<Option<&Stock>> = std::iter::once(None).chain(stocks.iter().map(Some)).collect();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); logs.len()];
    let rounds = if bench.quick() { 3 } else { bench.rounds(9) };
    for _ in 0..rounds {
        for (times, stock) in times.iter_mut().zip(&logs) {
            times.push(start(bench, *stock)?);
        }
    }
    println!("from the start of the process to the first 200, Kafka away, {rounds} starts");
    let mut table = Table::new(["records before", "median ms", "slowest ms"]);
    let mut rows = Vec::new();
    for (times, stock) in times.iter().zip(&logs) {
        let records = stock.map_or(0, |stock| stock.records);
        let slowest = times.iter().copied().fold(0.0, f64::max);
        let middle = median(times.iter().copied());
        table.row([records.to_string(), format!("{middle:.0}"), format!("{slowest:.0}")]);
        let wanted = if records == 0 { EMPTY_WANTED } else { BACKLOG_WANTED };
        let what = format!("start upon {records} records: first 200");
        outcome.targets.push(Target::at_most(what, wanted, middle, " ms"));
        rows.push(json!({ "records": records, "ms": times }));
    }
    println!("\n{table}");
    Ok(rows.into())
}

/// Milliseconds until the first 200.
fn start(bench: &Bench, stock: Option<&Stock>) -> Fallible<f64> {
    let directory = bench.new_directory()?;
    if let Some(stock) = stock {
        stock.copy_to(directory.path())?;
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let (bridge, took) =
        Bridge::start_and_ask(bench, directory.path(), &Brokers::away()?, address)?;
    drop(bridge);
    Ok(millis(took))
}

fn idle(bench: &Bench, outcome: &mut Outcome) -> Fallible<serde_json::Value> {
    let duration = bench.time(20.0, 2.0);
    let mock = Server::start(&["mock-kafka"])?;
    let mut kafkas = vec![("mock cluster", Brokers::Mock(mock.address.clone()))];
    if let Ok(broker) = bench.kafka() {
        let bootstrap = broker.bootstrap().to_owned();
        kafkas.push(("real broker", Brokers::Real { bootstrap, prefix: unique("idle") }));
    }
    kafkas.push(("none there", Brokers::away()?));
    println!("nothing to do, {duration:?} each");
    let mut table = Table::new(["Kafka", "CPU s per minute", "RSS MiB"]);
    let mut rows = Vec::new();
    for (name, brokers) in &kafkas {
        eprintln!("idle, Kafka: {name}");
        let directory = bench.new_directory()?;
        let bridge = Bridge::start(bench, directory.path(), brokers)?;
        let warm_up_count = bridge.warm_up(bench)?;
        if !matches!(brokers, Brokers::Away(_)) {
            bridge.wait_until_published(warm_up_count, PUBLISH_MAX)?;
        }
        thread::sleep(SETTLE);
        let before = process::cpu_time(bridge.server.pid)?;
        thread::sleep(duration);
        let cpu = process::cpu_time(bridge.server.pid)?.saturating_sub(before);
        let per_minute = cpu.as_secs_f64() * 60.0 / duration.as_secs_f64();
        let memory = mib(process::memory(bridge.server.pid)?);
        drop(bridge);
        table.row([(*name).to_owned(), format!("{per_minute:.2}"), format!("{memory:.0}")]);
        let what = format!("idle, Kafka: {name}: processor time per minute");
        outcome.targets.push(Target::at_most(what, IDLE_WANTED, per_minute, " s"));
        rows.push(json!({ "kafka": name, "cpu_s_per_minute": per_minute, "memory_mib": memory }));
    }
    println!("\n{table}");
    Ok(rows.into())
}

/// The program's size in bytes as built, and without symbols.
fn size(bench: &Bench) -> Fallible<(u64, u64)> {
    let built = fs::metadata(bench.livebridge())?.len();
    let stripped = bench.directory.join("stripped");
    let size = strip(bench.livebridge(), &stripped).unwrap_or_else(|| {
        println!("without `strip`, from binutils: symbols count as program");
        built
    });
    if real(size) < real(built) {
        fs::remove_file(stripped)?;
    }
    Ok((built, size))
}

fn strip(program: &Path, into: &Path) -> Option<u64> {
    let status = Command::new("strip").arg("-o").arg(into).arg(program).status().ok()?;
    status.success().then(|| fs::metadata(into).ok().map(|file| file.len()))?
}
