//! Log lines go to standard error: as text on a terminal, as JSON elsewhere.
//!
//! What a level means:
//! - **error**: an operator must act, or callbacks are rejected or events delayed until then.
//! - **warn**: something is wrong that livebridge copes with.
//! - **info**: a change of state, one line each: started, Kafka lost, Kafka found.
//! - **debug**: messages of librdkafka, and single requests that failed.
//!
//! No level has a line for each callback: those are counted. A level applies to livebridge itself;
//! the crates that it uses log warnings and errors only, unless the level names them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::panic;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt as lines, reload};

use crate::secret::redact;

mod writer;

use writer::{Line, STANDARD_ERROR};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Text, for people.
    Text,
    /// JSON, for programs.
    Json,
}

/// Which events become log lines, and in which format.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    level: String,
    format: Format,
}

impl Config {
    /// `level` is a level, such as `info`, or a list of levels by target, such as
    /// `livebridge=debug,sled=info`.
    ///
    /// # Errors
    /// Why `level` is neither.
    pub fn new(level: &str, format: Format) -> Result<Self, String> {
        // A word that is not a level would be taken for a target, and everything else be silent.
        let is_level = |word: &str| LEVELS.contains(&word.trim());
        let is_part = |part: &str| part.rsplit('=').next().is_some_and(is_level);
        match EnvFilter::try_new(level) {
            Ok(_) if level.split(',').all(is_part) => Ok(Self { level: level.to_owned(), format }),
            _ => Err(format!(
                "{level:?} is no level; use error, warn, info, debug, trace or off, or levels by \
                 target such as \"livebridge=debug,sled=info\""
            )),
        }
    }

    /// The values of `LIVEBRIDGE_LOG_LEVEL` and `LIVEBRIDGE_LOG_FORMAT`, for commands that read no
    /// configuration; the defaults where they are not valid.
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

    /// Their format, which stays until a restart.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    fn filter(&self) -> EnvFilter {
        // `new` has checked it.
        EnvFilter::try_new(directives(&self.level)).unwrap_or_default()
    }
}

/// What the filter gets for `level`: a level without a target is livebridge's, and caps the other
/// crates, which log at most warnings unless they are named.
fn directives(level: &str) -> String {
    let (named, bare): (Vec<&str>, Vec<&str>) =
        level.split(',').map(str::trim).partition(|part| part.contains('='));
    let own = bare.last().copied().unwrap_or("info");
    let foreign = if ["off", "error"].contains(&own) { own } else { "warn" };
    let all = [foreign.to_owned(), format!("livebridge={own}")];
    all.into_iter().chain(named.into_iter().map(str::to_owned)).collect::<Vec<_>>().join(",")
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

/// Installs the subscriber and the panic hook. A second call only changes the level.
pub(crate) fn install(config: &Config) {
    let terminal = io::stderr().is_terminal();
    let json = config.format == Format::Json || (config.format == Format::Auto && !terminal);
    let (filter, handle) = reload::Layer::new(config.filter());
    let layer = lines::layer().with_writer(Line::default).with_target(false);
    let layer = if json {
        layer.json().flatten_event(true).boxed()
    } else {
        layer.with_ansi(terminal).boxed()
    };
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_err() {
        return set_level(config);
    }
    let _ = FILTER.set(handle);
    if let Err(error) = STANDARD_ERROR.start(io::stderr()) {
        // Without the thread nothing is ever written, not even this as a log line.
        let _ = writeln!(io::stderr(), "livebridge: cannot start the log's thread: {error}");
    }
    panic::set_hook(Box::new(log_panic));
}

/// Logs a panic as any other error, and waits until it is written: the process may be about to end.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let message = panic.payload_as_str().unwrap_or("a value that is not text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, location, panic = message, %backtrace, "a thread panicked");
    } else {
        tracing::error!(thread, location, panic = message, "a thread panicked");
    }
    flush();
}

/// Applies the level of `config`. The format stays.
pub(crate) fn set_level(config: &Config) {
    if let Some(filter) = FILTER.get() {
        // It fails only when the subscriber is gone, and then there are no log lines at all.
        let _ = filter.reload(config.filter());
    }
}

/// Writes `text` as the last line of a command, behind all log lines before it.
///
/// Whether or not standard error is read, this returns after a second at the latest.
pub(crate) fn print_last_line(text: &str) {
    let text = redact(text);
    if FILTER.get().is_some() {
        STANDARD_ERROR.push(format!("{text}\n").into_bytes());
        flush();
    } else {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Waits until all log lines are written, for at most a second. To be called before the process
/// ends.
pub(crate) fn flush() {
    STANDARD_ERROR.flush();
}

/// How many log lines were dropped because standard error was not read.
#[must_use]
pub(crate) fn dropped_lines() -> u64 {
    STANDARD_ERROR.dropped()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_livebridges_and_other_crates_log_warnings_unless_named() {
        for (level, expected) in [
            ("debug", "warn,livebridge=debug"),
            ("info", "warn,livebridge=info"),
            ("error", "error,livebridge=error"),
            ("off", "off,livebridge=off"),
            ("livebridge=debug", "warn,livebridge=info,livebridge=debug"),
            ("livebridge=debug,sled=debug", "warn,livebridge=info,livebridge=debug,sled=debug"),
            ("sled=trace, debug", "warn,livebridge=debug,sled=trace"),
        ] {
            assert_eq!(directives(level), expected, "{level}");
            assert!(EnvFilter::try_new(directives(level)).is_ok(), "{level}");
        }
    }
}
