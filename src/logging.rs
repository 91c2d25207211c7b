//! Where log lines go: to standard error, for people on a terminal and as JSON elsewhere.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Sets the filter, as `info` or `livebridge=debug,info`.
const FILTER: &str = "LIVEBRIDGE_LOG";
/// `json` or `text`, whatever standard error is.
const FORMAT: &str = "LIVEBRIDGE_LOG_FORMAT";

/// Installs the subscriber. A second call changes nothing.
pub fn install() {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let json = match std::env::var(FORMAT).as_deref() {
        Ok("json") => true,
        Ok("text") => false,
        _ => !io::stderr().is_terminal(),
    };
    let subscriber = subscriber.with_target(false);
    // An error means that there is a subscriber already, which is as good.
    let _ = if json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_ansi(io::stderr().is_terminal()).try_init()
    };
}
