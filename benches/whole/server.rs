//! Every server runs in its own process: this program again, started with a hidden subcommand.
//!
//! The child prints one line when it is ready, `ready ADDRESS PID` and further values (or `failed
//! REASON`), and exits when its standard input closes, so that no process outlives the benchmark,
//! even if that is killed. livebridge does not do this itself, so such a child starts and
//! supervises it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::baseline::{self, Kind, Shape};
use super::kafka::PARTITIONS;
use super::request::Request;
use super::{Fallible, producer};
use crate::support::kafka::mock_cluster;
use crate::support::wire::exchange;

/// The time-out for livebridge to start listening.
const START_MAX: Duration = Duration::from_secs(30);

/// The time-out for livebridge to stop: the run's log is deleted, so waiting longer is useless.
const STOP_MAX: Duration = Duration::from_secs(1);

/// The role of a child process.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// Plain hyper.
    Bare { shape: Shape },
    /// hyper with an append log in this file.
    RawLog { shape: Shape, file: PathBuf },
    /// hyper with a Kafka producer.
    DirectKafka { shape: Shape, brokers: String },
    /// The mock cluster. A line `down` stops its broker, `up` restarts it.
    MockKafka,
    /// A plain producer of records that are read from another broker.
    Producer(producer::Order),
    /// livebridge with this configuration; its log lines are written to the file.
    Livebridge {
        program: PathBuf,
        config: PathBuf,
        log: PathBuf,
        /// It is ready when a callback sent here is accepted; the time until then is printed in
        /// microseconds.
        #[arg(long, requires = "run")]
        ask: Option<SocketAddr>,
        /// Makes that callback distinct.
        #[arg(long)]
        run: Option<u32>,
    },
}

/// Runs a role until standard input closes; a failure is also reported to the parent.
pub(crate) fn play(role: Role) -> Fallible<()> {
    play_role(role).inspect_err(|cause| println!("failed {cause}"))
}

fn play_role(role: Role) -> Fallible<()> {
    let (kind, shape) = match role {
        Role::Bare { shape } => (Kind::Bare, shape),
        Role::RawLog { shape, file } => (Kind::RawLog { file }, shape),
        Role::DirectKafka { shape, brokers } => (Kind::DirectKafka { brokers }, shape),
        Role::MockKafka => {
            let cluster = mock_cluster("live", 1, PARTITIONS);
            println!("ready {} {}", cluster.bootstrap_servers(), std::process::id());
            for line in std::io::stdin().lines() {
                match line?.as_str() {
                    "down" => cluster.broker_down(1)?,
                    "up" => cluster.broker_up(1)?,
                    other => return Err(format!("{other:?} is no order").into()),
                }
            }
            return Ok(());
        }
        Role::Producer(order) => return producer::play(&order),
        Role::Livebridge { program, config, log, ask, run } => {
            return keep(&program, &config, &log, ask.zip(run));
        }
    };
    println!("ready {} {}", baseline::start(&kind, shape)?, std::process::id());
    wait_for_parent()
}

fn wait_for_parent() -> Fallible<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Runs livebridge and prints its address.
fn keep(program: &Path, config: &Path, log: &Path, ask: Option<(SocketAddr, u32)>) -> Fallible<()> {
    let log_file = File::create(log)?;
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(["serve", "--config"])
        .arg(config)
        .env("NO_COLOR", "1")
        .env("LIVEBRIDGE_LOG_FORMAT", "text")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .spawn()?;
    let first = ask.map(|(address, run)| first_answer(&mut child, address, run, started));
    let outcome = match first.transpose() {
        Ok(first) => keep_running(&mut child, log, first),
        Err(cause) => Err(format!("{cause}: {}", last_lines(log)).into()),
    };
    if child.try_wait()?.is_none() {
        stop(&mut child)?;
    }
    outcome
}

/// Sends callbacks until one is accepted; returns the time since `started`.
fn first_answer(
    child: &mut Child,
    address: SocketAddr,
    run: u32,
    started: Instant,
) -> Fallible<Duration> {
    let mut request = Request::new(&address.to_string(), run, 0);
    while started.elapsed() < START_MAX {
        if let Some(status) = child.try_wait()? {
            return Err(format!("livebridge ended with {status}").into());
        }
        if exchange(address, request.next()).is_some_and(|answer| answer.status == 200) {
            return Ok(started.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(format!("livebridge accepts nothing within {START_MAX:?}").into())
}

/// Prints the listening address, and the time to the first response if it was awaited.
fn keep_running(child: &mut Child, log: &Path, first: Option<Duration>) -> Fallible<()> {
    let (closed, parent) = mpsc::channel();
    thread::spawn(move || closed.send(wait_for_parent().is_ok()));
    let deadline = Instant::now() + START_MAX;
    let mut address = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Err(format!("livebridge ended with {status}: {}", last_lines(log)).into());
        }
        if address.is_none() {
            let text = fs::read_to_string(log)?;
            let admin = address_in(&text, "admin listening");
            address = address_in(&text, "intake listening").filter(|_| admin.is_some());
            match &address {
                Some(address) => match first {
                    Some(first) => {
                        println!("ready {address} {} {}", child.id(), first.as_micros());
                    }
                    None => println!("ready {address} {}", child.id()),
                },
                None if Instant::now() >= deadline => {
                    return Err(format!("livebridge does not listen: {}", last_lines(log)).into());
                }
                None => {}
            }
        }
        let pause = Duration::from_millis(if address.is_some() { 200 } else { 10 });
        match parent.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// The field `address` of the log line for the start of listening.
pub(crate) fn address_in(log: &str, saying: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(saying))?;
    let (_, rest) = line.split_once("address=")?;
    let rest = rest.trim_start_matches('"');
    let end = rest.find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
    Some(rest[..end.unwrap_or(rest.len())].to_owned())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join(" | ");
    if tail.is_empty() { "no reason given".into() } else { tail }
}

fn stop(child: &mut Child) -> Fallible<()> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM)?;
    }
    let deadline = Instant::now() + STOP_MAX;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The listening address.
    pub(crate) address: String,
    /// The process that does the work: the child, or the livebridge that it supervises.
    pub(crate) pid: u32,
    /// Further values of the ready line.
    pub(crate) ready_values: Vec<String>,
}

impl Server {
    /// Starts a child and waits until it is ready.
    ///
    /// # Errors
    /// When it exits before that.
    pub(crate) fn start<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Fallible<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("server")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("a child without stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some((address, pid, ready_values)) = parse_ready(&line) else {
            drop(child.stdin.take());
            let status = child.wait()?;
            let reason = line.trim().strip_prefix("failed ").unwrap_or("no reason given");
            return Err(format!("it did not start ({status}): {reason}").into());
        };
        Ok(Self { child, stdout, address, pid, ready_values })
    }

    /// Sends a line to the child.
    pub(crate) fn tell(&mut self, line: &str) -> Fallible<()> {
        let stdin = self.child.stdin.as_mut().ok_or("a child without stdin")?;
        Ok(writeln!(stdin, "{line}")?)
    }

    /// Waits for the child's next line.
    pub(crate) fn hear(&mut self) -> Fallible<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        match line.trim().strip_prefix("failed ") {
            Some(reason) => Err(reason.into()),
            None => Ok(line.trim().to_owned()),
        }
    }
}

fn parse_ready(line: &str) -> Option<(String, u32, Vec<String>)> {
    let mut words = line.trim().strip_prefix("ready ")?.split(' ');
    let (address, pid) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    Some((address, pid, words.map(str::to_owned).collect()))
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + 3 * STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
