//! Reads the file and the environment into one checked [`Config`]; each part has its own config
//! type.
//!
//! The environment takes precedence over the file: `LIVEBRIDGE_<SECTION>_<KEY>`. Unknown keys are
//! rejected in both, so that a typo does not select a default.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use toml::Table;

use crate::callback::Verifier;
use crate::intake::TlsError;
use crate::kafka::{SettingError, settings};
use crate::permission;
use crate::publisher::Topics;
use crate::{admin, intake, kafka, ledger, logging, wal};

mod access;
mod environment;
mod file;
mod keys;
mod layers;
mod rejection;
mod secrets;
mod values;

pub use layers::{ConfigLayers, Setting, Settings, Source};
pub use values::listen_address;

/// The configuration of `serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The intake.
    pub http: intake::Config,
    /// Access control, and the protocols of the intake.
    pub access: intake::Access,
    /// The admin listener.
    pub admin: admin::Config,
    /// How callbacks are authenticated.
    pub verifier: Verifier,
    /// Members of a callback that are dropped.
    pub omit: Vec<String>,
    /// The log.
    pub wal: wal::Config,
    /// Kafka.
    pub kafka: kafka::Config,
    /// Topic names.
    pub topics: Topics,
    /// The dedup window.
    pub dedup: ledger::Config,
    /// Log lines.
    pub log: logging::Config,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// Notes for operators about values that are accepted and probably not intended; no secrets.
    pub notes: Vec<String>,
    /// The settings as they were given, without secrets.
    pub settings: Settings,
}

/// Why a configuration is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}{}", permission::advice(path, cause), path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: this is not TOML: {problem}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong; never the line itself, which may hold a secret.
        problem: String,
    },
    /// A key is unknown.
    #[error("{location}{problem}")]
    Key {
        /// File and line, followed by a colon and a space; empty when there is no file.
        location: String,
        /// The key, and the one that may have been meant.
        problem: String,
    },
    /// An environment variable is unknown or has a value of the wrong kind.
    #[error("environment variable {name}: {problem}")]
    Environment {
        /// Its name.
        name: String,
        /// What is wrong; never the value, which may be secret.
        problem: String,
    },
    /// A value, or what it names, cannot be used.
    #[error("{location}{key}: {problem}")]
    Value {
        /// File and line or the variable, followed by a colon and a space; empty if the key is not
        /// set.
        location: String,
        /// The key, or the section.
        key: Cow<'static, str>,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Config {
    /// Reads `file`, if one is given, and the environment.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut config = ConfigLayers::read(file)?.check()?;
        config.files.extend(file.map(Path::to_owned));
        Ok(config)
    }

    /// The same, for the command that creates the first callback key: no key is needed yet.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load_before_first_key(file: Option<&Path>) -> Result<Self, ConfigError> {
        match Self::load(file) {
            Err(ConfigError::Value { key, .. }) if key == "callback.keys" => {
                let mut layers = ConfigLayers::read(file)?;
                layers.add_variable("LIVEBRIDGE_CALLBACK_UNSIGNED", "all".to_owned())?;
                layers.check()
            }
            other => other,
        }
    }

    /// From a parsed file and environment variables.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn from_parts(
        table: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        ConfigLayers::from_parts(table, environment)?.check()
    }
}

impl ConfigError {
    /// A value of `key`, or what it names, cannot be used.
    fn value(key: &'static str, problem: impl Into<String>) -> Self {
        Self::Value { location: String::new(), key: key.into(), problem: problem.into() }
    }
}

impl From<SettingError> for ConfigError {
    fn from(cause: SettingError) -> Self {
        let meant = cause.mistyped().and_then(|name| keys::nearest(name, settings::known()));
        let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        Self::value("kafka.client", format!("{cause}{meant}"))
    }
}

impl From<TlsError> for ConfigError {
    fn from(cause: TlsError) -> Self {
        Self::value("tls", cause.to_string())
    }
}

fn not_toml(path: &Path, text: &str, cause: &toml::de::Error) -> ConfigError {
    let before = cause.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    ConfigError::Syntax {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        problem: cause.message().to_owned(),
    }
}
