//! A configuration file with its log directory beside it, and `livebridge serve` on it.
//!
//! For tests of settings, reloads, exit codes and log lines. A [`Bridge`](super::bridge::Bridge) is
//! configured by environment variables and keeps its ports, for tests that kill and restart it.

use std::fs::{self, Permissions};
use std::iter;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use livebridge::config::Config;
use livebridge::kafka::topic_reader::{ConsumedRecord, TopicReader};
use rustix::process::Signal;
use tempfile::TempDir;
use toml::{Table, Value};

use super::intake::KEY;
use super::metrics::scrape;
use super::process::{Running, livebridge};
use super::wire::{Answer, exchange, post};
use super::{TIME_LIMIT, log, wait_until};

/// The settings of every test; a log of this size fits on the disk of every machine.
const BASE: &str = r#"
    http.listen = "127.0.0.1:0"
    admin.listen = "127.0.0.1:0"
    callback.unsigned = ["push"]
    wal.max_bytes = "1GiB"
    wal.min_free_bytes = 0
    kafka.instance = "configured"
    kafka.create_topics = false
"#;

/// A configuration file and its log, which exist until the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct ConfiguredBridge {
    dir: Arc<TempDir>,
    settings: Table,
}

impl ConfiguredBridge {
    /// `more` is TOML, and takes precedence over [`BASE`]. Unless it has keys or a file of keys, the
    /// callback key is [`KEY`].
    pub(crate) fn new(brokers: &str, more: &str) -> Self {
        Self::with_files(tempfile::tempdir().unwrap(), brokers, more)
    }

    /// As [`Self::new`], in a directory with files that `more` names, or with a log.
    pub(crate) fn with_files(dir: TempDir, brokers: &str, more: &str) -> Self {
        let mut bridge = Self { dir: Arc::new(dir), settings: BASE.parse().unwrap() };
        let wal = bridge.wal();
        let own = format!("kafka.brokers = {brokers:?}\nwal.dir = \"{}\"", wal.display());
        merge(&mut bridge.settings, own.parse().unwrap());
        merge(&mut bridge.settings, more.parse().unwrap());
        bridge.set("");
        // `livebridge check` reports keys that every user can read.
        fs::set_permissions(bridge.file(), Permissions::from_mode(0o640)).unwrap();
        bridge
    }

    /// Writes the file: the settings that it had at first, and `more`.
    pub(crate) fn set(&self, more: &str) {
        let mut settings = self.settings.clone();
        merge(&mut settings, more.parse().unwrap());
        let callback = settings["callback"].as_table_mut().unwrap();
        if !callback.contains_key("keys") && !callback.contains_key("keys_file") {
            callback.insert("keys".into(), Value::from(vec![KEY]));
        }
        fs::write(self.file(), settings.to_string()).unwrap();
    }

    /// A file beside the configuration file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration file.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("livebridge.toml")
    }

    /// Its log directory.
    pub(crate) fn wal(&self) -> PathBuf {
        self.path("wal")
    }

    /// The bodies in the log, in order.
    pub(crate) fn stored(&self) -> Vec<String> {
        log::bodies(&self.wal())
    }

    /// The binary with `arguments` and this configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = livebridge(arguments);
        command.arg("--config").arg(self.file());
        command
    }

    /// Starts `livebridge serve` and waits until it listens.
    #[track_caller]
    pub(crate) fn serve(&self) -> RunningBridge {
        self.start(&mut self.command(&["serve"]))
    }

    /// As [`Self::serve`], with a `command` that differs in its environment.
    #[track_caller]
    pub(crate) fn start(&self, command: &mut Command) -> RunningBridge {
        let process = Running::start(command);
        let (intake, admin) =
            (process.address("intake listening"), process.address("admin listening"));
        RunningBridge { process, intake, admin, configured: self.clone() }
    }
}

/// Merges tables; replaces every other value.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// `livebridge serve` with a configuration file.
#[derive(Debug)]
pub(crate) struct RunningBridge {
    pub(crate) process: Running,
    pub(crate) intake: SocketAddr,
    pub(crate) admin: SocketAddr,
    configured: ConfiguredBridge,
}

impl Deref for RunningBridge {
    type Target = ConfiguredBridge;

    fn deref(&self) -> &ConfiguredBridge {
        &self.configured
    }
}

impl RunningBridge {
    /// Writes the file, as [`ConfiguredBridge::set`], and signals the process to load it.
    pub(crate) fn reload(&self, more: &str) {
        self.set(more);
        self.signal_reload();
    }

    /// Signals the process to load its files, after a change of one.
    pub(crate) fn signal_reload(&self) {
        self.process.signal(Signal::HUP);
    }

    /// The response to a callback.
    #[track_caller]
    pub(crate) fn post(&self, body: &str) -> Answer {
        exchange(self.intake, post("/callback", body)).unwrap()
    }

    /// The value of a metric's series.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let all = scrape(self.admin);
        *all.get(series).unwrap_or_else(|| panic!("no {series} in {all:?}"))
    }

    /// Waits until a series has this value.
    #[track_caller]
    pub(crate) fn wait_for_metric(&self, series: &str, value: f64) {
        self.wait_for_metric_within(TIME_LIMIT, series, value);
    }

    #[track_caller]
    pub(crate) fn wait_for_metric_within(&self, limit: Duration, series: &str, value: f64) {
        let is_reached = || (self.metric(series) - value).abs() < 1e-9;
        let message = || {
            let lines = self.process.stderr.text();
            format!("{series} = {} instead of {value}:\n{lines}", self.metric(series))
        };
        wait_until(limit, is_reached, message);
    }

    /// The published records of `topic` from its start. Waits for each, but not endlessly for all.
    pub(crate) fn published(&self, topic: &str) -> impl Iterator<Item = ConsumedRecord> {
        let config = Config::load(Some(&self.file())).unwrap();
        let reader = TopicReader::new(&config.kafka, &[topic]).unwrap();
        let deadline = Instant::now() + 4 * TIME_LIMIT;
        iter::repeat_with(move || {
            loop {
                let lines = || self.process.stderr.text();
                assert!(Instant::now() < deadline, "nothing more is published:\n{}", lines());
                if let Some(record) = reader.next(Duration::from_millis(100)).unwrap() {
                    return record;
                }
            }
        })
    }
}
