//! The real binary as a process, configured by environment variables: start, kill, stop, and read
//! its metrics. [`ConfiguredBridge`](super::configured_bridge::ConfiguredBridge) has a configuration file.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use super::kafka::{Guarded, free_port};
use super::process::{self, Finished};
use super::tools;
use super::wire::{self, Answer};

/// The callback key of every bridge in these tests.
pub const KEY: &str = "the-tests-callback-key";

/// A livebridge with its own log, on ports that stay the same across restarts.
#[derive(Debug)]
pub struct Bridge {
    dir: TempDir,
    environment: Vec<(String, String)>,
    http: u16,
    admin: u16,
    life: Arc<Mutex<ProcessState>>,
}

/// The current process, if any, and the number of processes before it.
#[derive(Debug, Default)]
struct ProcessState {
    number: u32,
    process: Option<Guarded>,
}

/// Kills the process that ran when it was created, and none of its successors.
#[derive(Clone, Debug)]
pub struct Killer {
    life: Arc<Mutex<ProcessState>>,
    number: u32,
}

impl Killer {
    /// Sends SIGKILL if the process is running.
    pub fn kill(&self) {
        let mut life = self.life.lock().expect("no panic under the lock");
        if life.number == self.number {
            life.process = None;
        }
    }
}

impl Bridge {
    /// Not yet running.
    pub fn new(instance: &str, brokers: &str, prefix: &str) -> Self {
        let mut bridge = Self {
            dir: TempDir::with_prefix_in(instance, env!("CARGO_TARGET_TMPDIR"))
                .expect("a directory for the log"),
            environment: Vec::new(),
            http: free_port(),
            admin: free_port(),
            life: Arc::default(),
        };
        let wal = bridge.dir.path().join("wal").display().to_string();
        for (name, value) in [
            ("HTTP_LISTEN", bridge.intake().to_string().as_str()),
            ("ADMIN_LISTEN", &format!("127.0.0.1:{}", bridge.admin)),
            ("CALLBACK_KEYS", KEY),
            ("WAL_DIR", &wal),
            ("KAFKA_INSTANCE", instance),
            ("KAFKA_BROKERS", brokers),
            ("KAFKA_TOPIC_PREFIX", prefix),
            ("KAFKA_PARTITIONS", "3"),
            ("LOG_FORMAT", "text"),
        ] {
            bridge = bridge.set(name, value);
        }
        bridge
    }

    /// Sets `LIVEBRIDGE_<name>` for later starts.
    pub fn set(self, name: &str, value: &str) -> Self {
        self.variable(&format!("LIVEBRIDGE_{name}"), value)
    }

    /// Sets an environment variable for later starts.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its configuration, for commands that share it.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The text of its configuration file, for settings that the environment cannot express.
    pub fn config(self, text: &str) -> Self {
        let path = self.dir.path().join("livebridge.toml");
        fs::write(&path, text).expect("a writable directory");
        let path = path.display().to_string();
        self.set("CONFIG", &path)
    }

    /// The address of its intake.
    pub fn intake(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.http))
    }

    /// Its log directory.
    pub fn wal(&self) -> PathBuf {
        self.dir.path().join("wal")
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    /// The log output of all its processes so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.output()).unwrap_or_default()
    }

    /// Starts it without waiting.
    pub fn spawn(&self) {
        let mut life = self.life();
        assert!(life.process.is_none(), "it is running");
        let output = OpenOptions::new().create(true).append(true).open(self.output());
        let output: File = output.expect("a writable directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        life.number += 1;
        life.process = Some(Guarded::spawn(&mut command).expect("the binary that is tested"));
    }

    fn life(&self) -> MutexGuard<'_, ProcessState> {
        self.life.lock().expect("no panic under the lock")
    }

    /// Starts it and waits until it accepts callbacks.
    pub fn start(&self) {
        self.spawn();
        self.wait_until_ready();
    }

    /// Waits until it accepts callbacks.
    pub fn wait_until_ready(&self) {
        self.wait_until("ready", Duration::from_mins(1), || self.is_ready() == Some(true));
    }

    /// Whether it reports that it accepts callbacks; `None` if it does not respond.
    pub fn is_ready(&self) -> Option<bool> {
        self.admin("/readyz").map(|(status, _)| status == 200)
    }

    /// Waits until `condition`, which `what` names, holds; the process must not exit.
    #[track_caller]
    pub fn wait_until(&self, what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
        let condition = || {
            self.assert_running();
            condition()
        };
        super::wait_until(limit, condition, || format!("not {what}: {}", self.last_lines()));
    }

    #[track_caller]
    pub fn assert_running(&self) {
        assert!(!self.is_over(), "exited by itself: {}", self.last_lines());
    }

    /// Whether it exited by itself.
    pub fn is_over(&self) -> bool {
        self.life().process.as_ref().is_some_and(Guarded::is_over)
    }

    pub fn killer(&self) -> Killer {
        Killer { life: Arc::clone(&self.life), number: self.life().number }
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.assert_running();
        self.killer().kill();
    }

    /// Sends SIGTERM and returns its exit status.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(Duration::from_mins(1))
    }

    /// Its process ID, for /proc.
    pub fn pid(&self) -> u64 {
        let pid = self.life().process.as_ref().expect("it was started").pid();
        u64::from(pid.as_raw_nonzero().get().unsigned_abs())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.life().process.as_ref().expect("it was started").pid();
        kill_process(pid, signal).expect("a child that is not yet reaped");
    }

    /// Its exit status, once it has exited.
    pub fn wait(&self, within: Duration) -> ExitStatus {
        let message = || format!("does not exit: {}", self.last_lines());
        super::wait_until(within, || self.is_over(), message);
        let process = self.life().process.take();
        process.expect("it was started").wait().expect("a child that is not yet reaped")
    }

    /// Runs `livebridge` with `arguments` and its settings to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        process::run(process::livebridge(arguments).envs(self.environment()))
    }

    /// The exit code and the output of `livebridge check` with its settings.
    pub fn check(&self) -> (i32, String) {
        let Finished { code, stdout, stderr } = self.run(&["check"]);
        (code.expect("an exit"), stdout + &stderr)
    }

    /// The output of `livebridge wal export`.
    pub(crate) fn export(&self) -> String {
        self.run(&["wal", "export"]).stdout
    }

    /// Waits until its log has an error with `says`.
    pub fn wait_for_error(&self, says: &str, within: Duration) {
        let is_error = |line: &str| line.contains("ERROR") && line.contains(says);
        let message = || format!("no {says:?} in {}", self.last_lines());
        super::wait_until(within, || self.log_text().lines().any(is_error), message);
    }

    /// Waits until its log has `says`: a thread of its own writes it, after what is logged has happened.
    #[track_caller]
    pub fn wait_for_log(&self, says: &str) {
        let is_logged = || self.log_text().contains(says);
        self.wait_until(&format!("logging {says:?}"), Duration::from_mins(1), is_logged);
    }

    /// The response of its admin listener at `path`.
    pub fn get(&self, path: &str) -> String {
        let (status, body) = self.admin(path).expect("an answer");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The address of its admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin))
    }

    /// The value of a metric, summed over its labels; `None` if it does not respond.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.admin("/metrics")?;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
        });
        Some(values.sum())
    }

    /// Whether it publishes, as far as it knows.
    pub fn is_connected(&self) -> bool {
        self.metric("livebridge_kafka_up") == Some(1.0)
    }

    /// Waits until it publishes: its topics exist, and the ledger is read.
    pub fn wait_until_connected(&self, within: Duration) {
        self.wait_until("connected", within, || self.is_connected());
    }

    /// Waits until everything stored is published.
    pub fn drain(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut empty = 0;
        // Twice, because subsequent work, such as the removal of segments, takes a moment.
        while empty < 2 {
            self.assert_running();
            let left = self.metric("livebridge_wal_records");
            empty = if left == Some(0.0) { empty + 1 } else { 0 };
            assert!(Instant::now() < deadline, "{left:?} left: {}", self.last_lines());
            thread::sleep(Duration::from_millis(150));
        }
    }

    pub fn last_lines(&self) -> String {
        tools::last_lines(&self.log_text())
    }

    /// Sends a callback; `None` without a connection or a response.
    pub(crate) fn post(&self, body: &str) -> Option<Answer> {
        wire::exchange(self.intake(), wire::post("/callback", body))
    }

    fn admin(&self, path: &str) -> Option<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = wire::exchange(self.admin_address(), request)?;
        Some((answer.status, answer.body))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.killer().kill();
        if thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("the bridge's log and output: {}", self.dir.path().display());
        }
    }
}
