//! Reloads the configuration of a running bridge: on SIGHUP, and when one of its files has changed.
//!
//! A configuration is applied whole or not at all: while a file is wrong, the old one stays in use,
//! and a log line and `livebridge_config_ok` report it. [`Parts`] is what changes without a
//! restart.

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
use crate::wal::Limits;
use crate::{logging, metrics};

/// Interval between two checks of the files: short for an operator who edits one and watches the
/// log lines. Kubernetes takes a minute to update a mounted secret anyway.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The sections that are applied without a restart, beside the limits of the log.
const RELOADABLE_SECTIONS: [&str; 4] = ["access", "callback", "log", "tls"];

/// The parts of a running bridge that a new configuration replaces.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// Which callbacks are accepted.
    pub policy: Reloadable<IntakePolicy>,
    /// How large the log may become.
    pub limits: Reloadable<Limits>,
    /// The settings in effect, for the status page.
    pub settings: Reloadable<Value>,
}

impl Parts {
    /// From `config`.
    #[must_use]
    pub(crate) fn new(config: &Config, limits: Reloadable<Limits>) -> Self {
        let settings = Reloadable::new(config.settings.to_json());
        Self { policy: Reloadable::new(policy(config)), settings, limits }
    }

    fn apply(&self, config: &Config) {
        logging::set_level(&config.log);
        self.limits.set(config.wal.limits);
        self.policy.set(policy(config));
    }
}

fn policy(config: &Config) -> IntakePolicy {
    let expires = config.access.tls.as_ref().map(Tls::expires);
    metrics::certificate_expires(expires);
    if expires.is_some_and(|expires| expires < SystemTime::now()) {
        tracing::error!("the certificate of tls.certificate has expired; clients may reject it");
    }
    for key in config.verifier.keys.iter().filter(|key| key.is_example()) {
        tracing::warn!(
            key = key.name(),
            "the callback key is change-me, the example of the documentation: every client that \
             reaches the port can write to Kafka; use the CallbackKey of the callback template"
        );
    }
    IntakePolicy::new(config.verifier.clone(), config.access.clone(), config.omit.clone())
}

/// Identifies a state of a file: a rename changes the inode, a write the time.
type Stamp = Option<(u64, i64, i64, u64)>;

/// Watches the files of the configuration.
#[derive(Debug)]
pub(crate) struct ConfigWatcher {
    file: Option<PathBuf>,
    config: Config,
    /// The state of the files when they were last read.
    read: Vec<Stamp>,
    /// Why the last configuration read was rejected, if it was.
    rejected: Option<String>,
}

impl ConfigWatcher {
    /// `config` was read from `file` and the environment.
    #[must_use]
    pub(crate) fn new(file: Option<PathBuf>, config: Config) -> Self {
        let read = file_stamps(&config.files);
        Self { file, config, read, rejected: None }
    }

    /// Applies changes of the files to `parts`, forever; `hangup` completes at each SIGHUP.
    pub(crate) async fn watch(mut self, parts: Parts, mut hangup: impl AsyncFnMut()) {
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.read.clone();
        loop {
            let requested = tokio::select! {
                () = hangup() => true,
                _ = checks.tick() => false,
            };
            let now = file_stamps(&self.config.files);
            // The same state twice: no file is being written.
            let settled = now == std::mem::replace(&mut seen, now.clone());
            if requested || (settled && now != self.read) {
                self.read = now;
                self.reload(&parts);
            } else if settled && self.rejected.is_some() {
                // The rejected configuration may name a file that is not watched yet, and that file
                // may have been the cause.
                self.read_again(&parts);
            }
        }
    }

    fn reload(&mut self, parts: &Parts) {
        service::notify(Stage::Reloading);
        self.rejected = None;
        self.read_again(parts);
        service::notify(Stage::Ready);
    }

    fn read_again(&mut self, parts: &Parts) {
        let config = match Config::load(self.file.as_deref()) {
            Ok(config) => config,
            Err(error) => {
                let reason = error.to_string();
                if self.rejected.as_ref() != Some(&reason) {
                    metrics::reloaded(false);
                    tracing::error!(%error, "new configuration rejected; the old one stays in use");
                }
                self.rejected = Some(reason);
                return;
            }
        };
        self.rejected = None;
        parts.apply(&config);
        metrics::reloaded(true);
        let keys: Vec<&str> = config.verifier.keys.iter().map(CallbackKey::name).collect();
        tracing::info!(keys = keys.join(", "), "new configuration applied");
        for note in config.notes.iter().filter(|note| !self.config.notes.contains(note)) {
            tracing::warn!("{note}");
        }
        let waiting = differing(&self.config, &config);
        if !waiting.is_empty() {
            let sections = waiting.join(", ");
            tracing::warn!(sections, "changes in these sections are applied at the next start");
        }
        if self.config.files != config.files {
            self.read = file_stamps(&config.files);
        }
        // Settings that need a restart keep their old values.
        self.config.notes = config.notes;
        let is_reloadable = |setting: &Setting| {
            let limit = setting.table == "wal" && setting.key != "dir";
            let format = setting.table == "log" && setting.key == "format";
            !format && (limit || RELOADABLE_SECTIONS.contains(&setting.table.as_str()))
        };
        let kept = self.config.settings.0.iter().filter(|setting| !is_reloadable(setting));
        let new = config.settings.0.iter().filter(|setting| is_reloadable(setting));
        let settings = Settings(kept.chain(new).cloned().collect());
        parts.settings.set(settings.to_json());
        self.config.settings = settings;
        self.config.files = config.files;
    }
}

fn file_stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
    };
    files.iter().map(stamp).collect()
}

/// The sections whose changes need a restart.
fn differing(old: &Config, new: &Config) -> Vec<&'static str> {
    let token =
        |config: &Config| config.admin.token.as_ref().map(|token| token.reveal().to_owned());
    [
        ("http", format!("{:?}", old.http) != format!("{:?}", new.http)),
        ("admin", old.admin.listen != new.admin.listen || token(old) != token(new)),
        ("wal", old.wal.dir != new.wal.dir),
        ("kafka", old.kafka != new.kafka || old.topics != new.topics),
        ("dedup", format!("{:?}", old.dedup) != format!("{:?}", new.dedup)),
        ("log", old.log.format() != new.log.format()),
    ]
    .into_iter()
    .filter_map(|(section, differs)| differs.then_some(section))
    .collect()
}
