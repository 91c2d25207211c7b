//! Where log lines go: to standard error, for people on a terminal and as JSON elsewhere.
//!
//! What a level means:
//! - **error**: somebody has to do something, or callbacks or events are turned away meanwhile.
//! - **warn**: not as it should be, and livebridge copes.
//! - **info**: a change of state, one line each: started, Kafka lost, Kafka found.
//! - **debug**: what librdkafka says, and single requests that went wrong.
//!
//! No level has a line for each callback: those are counted.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt as lines, reload};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As text on a terminal, as JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What is said, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    level: String,
    format: Format,
}

impl Config {
    /// With a level, such as `info`, or one for each target, such as `livebridge=debug,info`.
    ///
    /// # Errors
    /// Why `level` is neither.
    pub fn new(level: &str, format: Format) -> Result<Self, String> {
        // A word that is no level would be taken for a target, and all others fall silent.
        let is_level = |word: &str| LEVELS.contains(&word.trim());
        let is_part = |part: &str| part.rsplit('=').next().is_some_and(is_level);
        match EnvFilter::try_new(level) {
            Ok(_) if level.split(',').all(is_part) => Ok(Self { level: level.to_owned(), format }),
            _ => Err(format!(
                "{level:?} is no level; use error, warn, info, debug, trace or off, or levels by \
                 target such as \"livebridge=debug,info\""
            )),
        }
    }

    /// What `LIVEBRIDGE_LOG_LEVEL` and `LIVEBRIDGE_LOG_FORMAT` say, for commands that read no
    /// configuration; the default where they say nothing that makes sense.
    #[must_use]
    pub fn of_environment() -> Self {
        let format = match env::var("LIVEBRIDGE_LOG_FORMAT").as_deref() {
            Ok("text") => Format::Text,
            Ok("json") => Format::Json,
            _ => Format::Auto,
        };
        let level = env::var("LIVEBRIDGE_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
        Self::new(&level, format).unwrap_or_default()
    }

    fn filter(&self) -> EnvFilter {
        // Checked when it was made.
        EnvFilter::try_new(&self.level).unwrap_or_default()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Auto }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config {{ level: {:?}, format: {:?} }}", self.level, self.format)
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The filter in use.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Installs the subscriber. Where there is one already, it only gets the new level.
pub fn install(config: &Config) {
    let terminal = io::stderr().is_terminal();
    let json = config.format == Format::Json || (config.format == Format::Auto && !terminal);
    let (filter, handle) = reload::Layer::new(config.filter());
    let layer = lines::layer().with_writer(io::stderr).with_target(false);
    let layer = if json {
        layer.json().flatten_event(true).boxed()
    } else {
        layer.with_ansi(terminal).boxed()
    };
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        let _ = FILTER.set(handle);
    } else {
        set_level(config);
    }
}

/// From now on what is said is as `config` has it. The format stays.
pub fn set_level(config: &Config) {
    if let Some(filter) = FILTER.get() {
        // It fails only when the subscriber is gone, and then nothing is said at all.
        let _ = filter.reload(config.filter());
    }
}
