//! A directory, the consecutive processes that ran on it, and their trace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::trace::Trace;
use crate::support::kafka::UNREACHABLE;

/// Longer than any start takes on a busy machine.
const START: Duration = Duration::from_secs(30);
/// The log's directory within the traced one, created by livebridge.
pub(crate) const LOG: &str = "var/data";

/// How a process under the shim is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    pub(crate) brokers: &'a str,
    /// Kills itself after this number of trace records.
    pub(crate) kill_at: Option<u64>,
    /// Which syncs do nothing: `fdatasync`, those of `files`, or those of `directories`.
    pub(crate) swallow: Option<&'a str>,
    /// The socket on which it asks before it removes a segment.
    pub(crate) snapshot: Option<u16>,
}

pub(crate) const PLAIN: Options<'static> =
    Options { brokers: UNREACHABLE, kill_at: None, swallow: None, snapshot: None };

/// The files of a directory while no process ran.
pub(crate) type Image = BTreeMap<PathBuf, Option<(u64, u32)>>;

/// The directory under test.
#[derive(Debug)]
pub(crate) struct Site {
    home: TempDir,
    shim: PathBuf,
    /// The directory's contents when the trace had this length.
    images: Vec<(usize, Image)>,
}

impl Site {
    pub(crate) fn new(shim: &Path) -> Self {
        let home = temporary();
        fs::create_dir(home.path().join("disk")).expect("a directory");
        Self { home, shim: shim.to_owned(), images: Vec::new() }
    }

    fn disk(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    fn lock_path(&self) -> PathBuf {
        self.home.path().join("lock")
    }

    /// Runs `livebridge serve` under the shim until its intake listens; `None` if it exited first.
    pub(crate) fn start(&self, options: Options<'_>) -> Option<Bridge> {
        let mut command = serve(&self.disk().join(LOG), options.brokers);
        command
            .env("LD_PRELOAD", &self.shim)
            .env("POWER_DIR", self.disk())
            .env("POWER_TRACE", self.home.path().join("trace"))
            .env("POWER_LOCK", self.lock_path());
        if let Some(records) = options.kill_at {
            command.env("POWER_KILL_AT", records.to_string());
        }
        if let Some(what) = options.swallow {
            command.env("POWER_SWALLOW", what);
        }
        if let Some(port) = options.snapshot {
            command.env("POWER_GATE", port.to_string());
        }
        Bridge::spawn(command, &self.home.path().join("stderr"))
    }

    /// Kills `bridge` between two trace records, so that trace and directory agree.
    pub(crate) fn kill(&mut self, bridge: Bridge) {
        let lock = File::create(self.lock_path()).expect("the lock's file");
        lock.lock().expect("the shim releases the lock");
        bridge.kill();
        drop(lock);
        self.take_image();
    }

    /// Stops `bridge` with SIGTERM, as an operator would.
    pub(crate) fn stop(&mut self, bridge: Bridge) {
        bridge.stop();
        self.take_image();
    }

    /// Stores the directory's contents for comparison with the trace. No process may run.
    pub(crate) fn take_image(&mut self) {
        let length = fs::metadata(self.home.path().join("trace")).map_or(0, |meta| meta.len());
        let length = usize::try_from(length).expect("a trace that fits in memory");
        self.images.push((length, image(&self.disk())));
    }

    pub(crate) fn images(&self) -> &[(usize, Image)] {
        &self.images
    }

    pub(crate) fn trace(&self) -> Trace {
        Trace::read(&self.home.path().join("trace"))
    }
}

/// A directory on the target's disk that is removed with the value.
pub(crate) fn temporary() -> TempDir {
    tempfile::Builder::new()
        .prefix("power-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a temporary directory")
}

/// Every path below `dir`, with length and checksum of files.
pub(crate) fn image(dir: &Path) -> Image {
    let mut image = Image::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("a directory to list") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(dir).expect("below").to_owned();
            if path.is_dir() {
                image.insert(name, None);
                todo.push(path);
            } else {
                let content = fs::read(&path).expect("a file to read");
                image.insert(name, Some((content.len() as u64, crc32fast::hash(&content))));
            }
        }
    }
    image
}

/// The binary, without environment variables of the caller that could configure it.
fn livebridge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// `livebridge serve` on the log in `dir`.
fn serve(dir: &Path, brokers: &str) -> Command {
    let mut command = livebridge();
    command
        .arg("serve")
        .env("LIVEBRIDGE_LOG_FORMAT", "text")
        .env("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:0")
        .env("LIVEBRIDGE_ADMIN_LISTEN", "127.0.0.1:0")
        .env("LIVEBRIDGE_CALLBACK_UNSIGNED", "all")
        .env("LIVEBRIDGE_WAL_DIR", dir)
        .env("LIVEBRIDGE_WAL_MIN_FREE_BYTES", "0")
        .env("LIVEBRIDGE_KAFKA_BROKERS", brokers)
        .env("LIVEBRIDGE_KAFKA_INSTANCE", "power")
        .env("LIVEBRIDGE_KAFKA_CREATE_TOPICS", "false")
        .stdout(Stdio::null());
    command
}

/// The output of `livebridge wal export` for the log in `dir`; empty if it reports that there is
/// none.
pub(crate) fn export(dir: &Path) -> Result<String, String> {
    let output = livebridge()
        .args(["wal", "export", "--dir"])
        .arg(dir)
        .output()
        .map_err(|cause| format!("cannot run the export: {cause}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        String::from_utf8(output.stdout).map_err(|cause| format!("the export: {cause}"))
    } else if errors.contains("there is no log") {
        Ok(String::new())
    } else {
        Err(format!("the export failed: {errors}"))
    }
}

/// A running `livebridge serve`.
#[derive(Debug)]
pub(crate) struct Bridge {
    child: Child,
    address: SocketAddr,
}

impl Bridge {
    /// Without the shim, on the log in `dir`.
    pub(crate) fn start(dir: &Path, brokers: &str) -> Result<Self, String> {
        let home = temporary();
        let stderr = home.path().join("stderr");
        Self::spawn(serve(dir, brokers), &stderr).ok_or_else(|| {
            let output_text = fs::read_to_string(&stderr).unwrap_or_default();
            format!("livebridge did not start: {output_text}")
        })
    }

    fn spawn(mut command: Command, stderr: &Path) -> Option<Self> {
        let log = File::create(stderr).expect("a file for standard error");
        let child = command.stderr(log).spawn().expect("livebridge can be run");
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut bridge = Self { child, address: nowhere };
        let started = Instant::now();
        while started.elapsed() < START {
            let output_text = fs::read_to_string(stderr).expect("standard error is text");
            if let Some(address) = intake_address(&output_text) {
                bridge.address = address;
                return Some(bridge);
            }
            if bridge.child.try_wait().expect("a child's state").is_some() {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("livebridge neither started nor exited");
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for its exit, at most for this time.
    pub(crate) fn wait(&mut self, limit: Duration) {
        let started = Instant::now();
        while started.elapsed() < limit && self.child.try_wait().expect("a child's state").is_none()
        {
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child to kill");
        self.child.wait().expect("a child to reap");
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child");
    }

    /// Sends SIGTERM and waits for a successful exit.
    pub(crate) fn stop(mut self) {
        self.terminate();
        let status = self.child.wait().expect("a child to reap");
        assert!(status.success(), "a clean stop ended with {status}");
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // An error means that it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn intake_address(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("intake listening"))?;
    line.split_once("address=")?.1.split_whitespace().next()?.parse().ok()
}
