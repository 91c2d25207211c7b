//! Every server is a process of its own: this program again, started with a hidden subcommand.
//!
//! The child prints one line, `ready ADDRESS PID`, when it can be used (or `failed REASON`), and ends when its standard
//! input closes: so nothing outlives the benchmark, even when that is killed. livebridge, which
//! knows nothing of this, is run by such a child, its keeper.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::baseline::{self, Kind, Shape};
use super::{Fallible, kafka};

/// How long livebridge may take until it listens.
const START_MAX: Duration = Duration::from_secs(30);

/// How long livebridge may take to stop: its log goes away with the run, so waiting for more is idle.
const STOP_MAX: Duration = Duration::from_secs(2);

/// What a child is asked to be.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// hyper alone.
    Bare { shape: Shape },
    /// hyper before an append log in this file.
    RawLog { shape: Shape, file: PathBuf },
    /// hyper before a Kafka producer.
    DirectKafka { shape: Shape, brokers: String },
    /// The mock cluster.
    MockKafka,
    /// livebridge with this configuration; its log lines go to the file.
    Livebridge { program: PathBuf, config: PathBuf, log: PathBuf },
}

/// Runs a role until standard input closes; a failure goes to the parent, too.
pub(crate) fn play(role: Role) -> Fallible<()> {
    play_role(role).inspect_err(|cause| println!("failed {cause}"))
}

fn play_role(role: Role) -> Fallible<()> {
    let (kind, shape) = match role {
        Role::Bare { shape } => (Kind::Bare, shape),
        Role::RawLog { shape, file } => (Kind::RawLog { file }, shape),
        Role::DirectKafka { shape, brokers } => (Kind::DirectKafka { brokers }, shape),
        Role::MockKafka => {
            let cluster = kafka::start()?;
            println!("ready {} {}", cluster.bootstrap_servers(), std::process::id());
            return wait_for_parent();
        }
        Role::Livebridge { program, config, log } => return keep(&program, &config, &log),
    };
    println!("ready {} {}", baseline::start(&kind, shape)?, std::process::id());
    wait_for_parent()
}

fn wait_for_parent() -> Fallible<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Runs livebridge and passes its address on.
fn keep(program: &Path, config: &Path, log: &Path) -> Fallible<()> {
    let mut child = Command::new(program)
        .args(["serve", "--config"])
        .arg(config)
        .env("NO_COLOR", "1")
        .env("LIVEBRIDGE_LOG_FORMAT", "text")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log)?)
        .spawn()?;
    let outcome = keep_running(&mut child, log);
    if child.try_wait()?.is_none() {
        stop(&mut child)?;
    }
    outcome
}

fn keep_running(child: &mut Child, log: &Path) -> Fallible<()> {
    let (closed, parent) = mpsc::channel();
    thread::spawn(move || closed.send(wait_for_parent().is_ok()));
    let deadline = Instant::now() + START_MAX;
    let mut address = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Err(format!("livebridge ended with {status}: {}", last_lines(log)).into());
        }
        if address.is_none() {
            address = listening_address(&fs::read_to_string(log)?);
            match &address {
                Some(address) => println!("ready {address} {}", child.id()),
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

/// The field `address` of the line that says that the intake listens.
fn listening_address(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("intake listening"))?;
    let (_, rest) = line.split_once("address=")?;
    let rest = rest.trim_start_matches('"');
    let end = rest.find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
    Some(rest[..end.unwrap_or(rest.len())].to_owned())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join(" | ");
    if tail.is_empty() { "it said nothing".into() } else { tail }
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
    /// Kept open: a child that prints once more must not die of it.
    _stdout: BufReader<ChildStdout>,
    /// Where it listens.
    pub(crate) address: String,
    /// The process that does the work: the child, or what it keeps.
    pub(crate) pid: u32,
}

impl Server {
    /// Starts a child and waits until it is ready.
    ///
    /// # Errors
    /// When it ends before that.
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
        let Some((address, pid)) = parse_ready(&line) else {
            drop(child.stdin.take());
            let status = child.wait()?;
            let reason = line.trim().strip_prefix("failed ").unwrap_or("it said nothing");
            return Err(format!("it did not start ({status}): {reason}").into());
        };
        Ok(Self { child, _stdout: stdout, address, pid })
    }
}

fn parse_ready(line: &str) -> Option<(String, u32)> {
    let (address, pid) = line.trim().strip_prefix("ready ")?.split_once(' ')?;
    Some((address.to_owned(), pid.parse().ok()?))
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
