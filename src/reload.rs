//! A new configuration for a bridge that runs: read on SIGHUP, and when a file of it has changed.
//!
//! It is taken whole or not at all: while a file is wrong, the old configuration stays, and a log
//! line and `livebridge_config_ok` say so. What can change without a restart is [`Parts`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::callback::CallbackKey;
use crate::config::{Config, Setting, Settings};
use crate::intake::{IntakePolicy, Tls};
use crate::reloadable::Reloadable;
use crate::service::{self, Stage};
use crate::wal::Probe;
use crate::{logging, metrics};

/// How often the files are looked at. Kubernetes takes a minute to bring a new secret, and people
/// who edit a file look at the log.
const LOOK: Duration = Duration::from_secs(2);

/// The tables of the configuration that a running bridge takes over, beside the limits of the log.
const TAKEN: [&str; 4] = ["access", "callback", "log", "tls"];

/// What a running bridge takes over from a new configuration.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Who may call.
    pub policy: Reloadable<IntakePolicy>,
    /// How large the log may become.
    pub log: Probe,
    /// What is in effect, to be shown.
    pub settings: Reloadable<Value>,
}

impl Parts {
    /// As `config` has them.
    #[must_use]
    pub fn new(config: &Config, log: Probe) -> Self {
        let settings = Reloadable::new(config.settings.to_json());
        Self { policy: Reloadable::new(policy(config)), settings, log }
    }

    fn take(&self, config: &Config) {
        logging::set_level(&config.log);
        self.log.set_limits(config.wal.limits());
        self.policy.set(policy(config));
    }
}

fn policy(config: &Config) -> IntakePolicy {
    let expires = config.access.tls.as_ref().map(Tls::expires);
    metrics::certificate_expires(expires);
    if expires.is_some_and(|expires| expires < SystemTime::now()) {
        tracing::error!("the certificate of tls.certificate has expired; callers may turn away");
    }
    for key in config.verifier.keys.iter().filter(|key| key.is_example()) {
        tracing::warn!(
            key = key.name(),
            "the callback key is change-me, which everybody knows: anybody who reaches the port \
             can write to Kafka; put in the CallbackKey of the callback template"
        );
    }
    IntakePolicy::new(config.verifier.clone(), config.access.clone(), config.omit.clone())
}

/// What tells one state of a file from another: a rename changes its number, a write its time.
type Stamp = Option<(u64, i64, i64, u64)>;

/// Where the configuration comes from, and what it was like when it was last read.
#[derive(Debug)]
pub struct Source {
    file: Option<PathBuf>,
    config: Config,
    read: Vec<Stamp>,
    /// Why it was refused when it was last read, if it was.
    refused: Option<String>,
}

impl Source {
    /// `config` was read from `file` and the environment.
    #[must_use]
    pub fn new(file: Option<PathBuf>, config: Config) -> Self {
        let read = look(&config.files);
        Self { file, config, read, refused: None }
    }

    /// Keeps `parts` as the files say, for ever; `hangup` completes at each order to read them.
    pub async fn keep(mut self, parts: Parts, mut hangup: impl AsyncFnMut()) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.read.clone();
        loop {
            let ordered = tokio::select! {
                () = hangup() => true,
                _ = looks.tick() => false,
            };
            let now = look(&self.config.files);
            // Twice the same: nobody is writing it at this moment.
            let settled = now == std::mem::replace(&mut seen, now.clone());
            if ordered || (settled && now != self.read) {
                self.read = now;
                self.reload(&parts);
            } else if settled && self.refused.is_some() {
                // It may name a file that is not looked at yet, and only that was wrong.
                self.read_again(&parts);
            }
        }
    }

    fn reload(&mut self, parts: &Parts) {
        service::tell(Stage::Reloading);
        self.refused = None;
        self.read_again(parts);
        service::tell(Stage::Ready);
    }

    fn read_again(&mut self, parts: &Parts) {
        let config = match Config::load(self.file.as_deref()) {
            Ok(config) => config,
            Err(error) => {
                let reason = error.to_string();
                if self.refused.as_ref() != Some(&reason) {
                    metrics::reloaded(false);
                    tracing::error!(%error, "new configuration refused; the old one stays");
                }
                self.refused = Some(reason);
                return;
            }
        };
        self.refused = None;
        parts.take(&config);
        metrics::reloaded(true);
        let keys: Vec<&str> = config.verifier.keys.iter().map(CallbackKey::name).collect();
        tracing::info!(keys = keys.join(", "), "new configuration taken");
        let waiting = differing(&self.config, &config);
        if !waiting.is_empty() {
            let sections = waiting.join(", ");
            tracing::warn!(sections, "changes here are taken at the next start");
        }
        if self.config.files != config.files {
            self.read = look(&config.files);
        }
        // What waits for a restart is still what it was.
        self.config.verifier = config.verifier;
        self.config.access = config.access;
        self.config.omit = config.omit;
        self.config.log = config.log;
        let taken = |setting: &Setting| {
            let limit = setting.table == "wal" && setting.key != "dir";
            let format = setting.table == "log" && setting.key == "format";
            !format && (limit || TAKEN.contains(&setting.table.as_str()))
        };
        let kept = self.config.settings.0.iter().filter(|setting| !taken(setting));
        let new = config.settings.0.iter().filter(|setting| taken(setting));
        let settings = Settings(kept.chain(new).cloned().collect());
        parts.settings.set(settings.to_json());
        self.config.settings = settings;
        self.config.files = config.files;
    }
}

fn look(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
    };
    files.iter().map(stamp).collect()
}

/// The sections that differ in what only a start reads.
fn differing(old: &Config, new: &Config) -> Vec<&'static str> {
    let shown = |config: &Config| {
        [
            ("http", format!("{:?}", config.http)),
            ("admin", format!("{:?}", config.admin)),
            ("wal", config.wal.dir.display().to_string()),
            ("kafka", format!("{:?}{:?}", config.kafka, config.topics)),
            ("dedup", format!("{:?}", config.dedup)),
        ]
    };
    let pairs = shown(old).into_iter().zip(shown(new));
    pairs.filter(|(old, new)| old != new).map(|((section, _), _)| section).collect()
}
