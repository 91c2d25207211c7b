//! The commands and their options.

#![allow(rustdoc::invalid_html_tags, reason = "the comments are the texts of --help")]

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::bridge::{Bridge, StartError, StopError};
use crate::config::{Config, ConfigError};
use crate::recover::RecoverError;
use crate::reload::ConfigWatcher;
use crate::service::{self, Stage};
use crate::tencent::Reason;
use crate::{logging, metrics};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[macro_use]
mod output;

mod audit;
mod check;
mod config;
mod dev;
mod generate;
mod progress;
mod range;
mod ready;
mod recover;
mod replay;
mod send;
mod tencent;
mod wal;

/// A wrong configuration or command line, as in sysexits.h.
const EXIT_USAGE: u8 = 64;
/// Kafka cannot be used, and everything else can.
const EXIT_UNAVAILABLE: u8 = 69;
/// Any other failure.
const EXIT_FAILURE: u8 = 1;

/// Receives Tencent Cloud Live callbacks and delivers each to Kafka exactly once.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = BEGIN)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive callbacks and publish them to Kafka.
    ///
    /// Every key of the configuration file can also be set as LIVEBRIDGE_<SECTION>_<KEY> in the
    /// environment, which takes precedence over the file. Stops on SIGTERM or SIGINT; a second one
    /// ends the process at once. On SIGHUP, and within seconds of a change of the configuration,
    /// key or certificate files, it reloads the sections tls, access and callback, log.level and the
    /// limits of the log.
    ///
    /// Exits 0 after SIGTERM or SIGINT, 1 after a second one, 64 if the configuration is wrong, 1 for
    /// any other problem.
    #[command(after_long_help = SERVE_EXAMPLES)]
    Serve(ConfigFile),
    /// Try livebridge with an in-memory Kafka; nothing else needs to be installed.
    ///
    /// Starts the in-memory Kafka, which any Kafka client can connect to, a log in a temporary
    /// directory and the intake, and prints each event that it reads from the topics.
    #[command(after_long_help = DEV_EXAMPLES)]
    Dev(dev::Options),
    /// Check the configuration, the log's directory, the clock, the callback keys and Kafka.
    ///
    /// Exits 0 if nothing is wrong, 64 if the configuration is wrong, 69 if only Kafka cannot be
    /// used (callbacks would be accepted), 1 for any other problem.
    #[command(after_long_help = CHECK_EXAMPLES)]
    Check(check::Options),
    /// Ask a running instance whether it accepts callbacks: for health checks of containers.
    ///
    /// Exits 0 if it does, 1 if it does not or does not answer, 64 if the configuration or an
    /// option is wrong.
    Ready(ready::Options),
    /// Print the configuration in effect, and where each value comes from; secrets are redacted.
    ///
    /// Exits 64 if `serve` would reject it.
    #[command(after_long_help = CONFIG_EXAMPLES)]
    Config(config::Options),
    /// Send signed callbacks, and retry those that are not answered 200, as Tencent does.
    #[command(after_long_help = SEND_EXAMPLES)]
    Send(send::Options),
    /// Inspect a log, also that of a running instance; only `--drop` and `release` change it.
    #[command(after_long_help = WAL_EXAMPLES)]
    Wal(wal::Options),
    /// Publish events again: those of an export of a log, or dead letters.
    ///
    /// Prints what it would send, and sends it with --yes.
    #[command(after_long_help = replay::EXAMPLES)]
    Replay(replay::Options),
    /// Publish events whose callbacks Tencent Cloud stopped retrying, read from its callback records.
    ///
    /// Prints what it would send, and sends it with --yes. Needs credentials of Tencent Cloud.
    #[command(after_long_help = recover::EXAMPLES)]
    Recover(recover::Options),
    /// Compare log, ledger and topics, and report events that are missing or duplicated.
    ///
    /// Changes nothing, and may run beside a running instance. Exits 0 if nothing is wrong, 1 if
    /// events are missing or, with exactly-once, duplicated, or if something cannot be read, 64 if
    /// the configuration is wrong.
    #[command(after_long_help = audit::EXAMPLES)]
    Audit(audit::Options),
    /// Set up, examine and remove the callbacks in Tencent Cloud, and rotate their key.
    #[command(after_long_help = tencent::EXAMPLES)]
    Tencent(tencent::Options),
    /// Print the completion script of a shell.
    #[command(after_long_help = COMPLETIONS_EXAMPLES)]
    Completions(generate::Completions),
    /// Print the manual page, or write those of all commands.
    Man(generate::Man),
}

const BEGIN: &str =
    "Begin with `livebridge dev --samples 2`. `livebridge <COMMAND> --help` has examples.";
const SERVE_EXAMPLES: &str = "\
Examples:
  livebridge check --config livebridge.toml && livebridge serve --config livebridge.toml
  LIVEBRIDGE_CALLBACK_KEYS=secret LIVEBRIDGE_KAFKA_BROKERS=kafka:9092 livebridge serve";
const DEV_EXAMPLES: &str = "\
Examples:
  Two sample callbacks a second, until ctrl-C:
    livebridge dev --samples 2
  In another terminal, one callback of your own:
    LIVEBRIDGE_SEND_KEY=dev-callback-key livebridge send --event-type push";
const CHECK_EXAMPLES: &str = "\
Examples:
  livebridge check --config livebridge.toml
  As an init container, which must not wait for Kafka:
    livebridge check --offline
  The same, but report problems of Kafka without failing:
    livebridge check || [ $? -eq 69 ]";
const CONFIG_EXAMPLES: &str = "\
Examples:
  livebridge config --config livebridge.toml
  Values that differ from the default:
    livebridge config --config livebridge.toml | grep -v '# default$'
  One value:
    livebridge config --json | jq -r '.[\"wal.dir\"].value'";
const SEND_EXAMPLES: &str = "\
Examples:
  Test a callback key:
    LIVEBRIDGE_SEND_KEY=secret livebridge send --url http://host:8080/callback
  A thousand a second for a minute, of all event types:
    livebridge send --key-file key --rate 1000 --count 60000 --connections 8
  A saved callback, byte for byte:
    livebridge send --file callback.json";
const WAL_EXAMPLES: &str = "\
Examples:
  Records that wait for Kafka:
    livebridge wal status --dir /var/lib/livebridge/log
  Check a copy of a log:
    livebridge wal verify --dir /backup/log
  Why Kafka rejected the records in quarantine:
    livebridge wal quarantine | jq -r .reason";
const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  livebridge completions bash > /etc/bash_completion.d/livebridge
  livebridge completions zsh > ~/.zfunc/_livebridge";

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file; without it, defaults and the environment.
    #[arg(long, value_name = "FILE", env = "LIVEBRIDGE_CONFIG")]
    config: Option<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Stop(#[from] StopError),
    #[error(transparent)]
    Log(#[from] crate::wal::OpenError),
    #[error(transparent)]
    Replay(#[from] crate::publisher::replay::ReplayError),
    #[error(transparent)]
    File(#[from] crate::permission::FileError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Kafka(#[from] crate::kafka::ReadError),
    #[error(transparent)]
    Tencent(#[from] crate::tencent::TencentError),
    #[error("{0}")]
    Usage(String),
    /// A cause outside the configuration and the command line.
    #[error("{0}")]
    Failed(String),
    #[error("cannot {what}: {cause}")]
    Other { what: &'static str, cause: Box<dyn std::error::Error + Send + Sync> },
    /// The command has printed the problems that it found.
    #[error("problems were found")]
    Found,
    /// The same, and all of them concern Kafka.
    #[error("Kafka cannot be used")]
    Unavailable,
}

impl CliError {
    fn other<E: std::error::Error + Send + Sync + 'static>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |cause| Self::Other { what, cause: Box::new(cause) }
    }

    /// The file that `option` names cannot be read.
    fn unreadable(option: &str, path: &Path, cause: &io::Error) -> Self {
        Self::Usage(format!("cannot read {option} {}: {cause}", path.display()))
    }

    /// Whether the configuration, the command line or the credentials are wrong.
    fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) | Self::Usage(_) => true,
            Self::Tencent(error) | Self::Recover(RecoverError::Tencent(error)) => {
                error.reason().is_some_and(Reason::is_wrong_credentials)
            }
            _ => false,
        }
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap returns the texts of --help and --version as errors, too.
        Err(text) => {
            let usage = text.use_stderr();
            let _ = text.print();
            return if usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if !matches!(cli.command, Command::Serve(_)) {
        logging::install(&logging::Config::of_environment());
    }
    let outcome = match cli.command {
        Command::Serve(options) => serve(&options),
        Command::Dev(options) => dev::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Config(options) => config::run(&options),
        Command::Send(options) => send::run(options),
        Command::Wal(options) => wal::run(&options),
        Command::Ready(options) => ready::run(&options),
        Command::Replay(options) => replay::run(&options),
        Command::Recover(options) => recover::run(&options),
        Command::Audit(options) => audit::run(&options),
        Command::Tencent(options) => tencent::run(&options),
        Command::Completions(options) => generate::completions(&options),
        Command::Man(options) => generate::man(&options),
    };
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Found) => ExitCode::from(EXIT_FAILURE),
        Err(CliError::Unavailable) => ExitCode::from(EXIT_UNAVAILABLE),
        Err(error) => {
            logging::print_last_line(&format!("livebridge: {error}"));
            ExitCode::from(if error.is_usage() { EXIT_USAGE } else { EXIT_FAILURE })
        }
    };
    logging::flush();
    code
}

fn serve(options: &ConfigFile) -> Result<(), CliError> {
    let config = Config::load(options.config.as_deref())?;
    logging::install(&config.log);
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    let exporter = metrics::install().map_err(CliError::other("install metrics"))?;
    block_on(async {
        // First, so that a signal during the start does not end the process midway.
        let stop = stop_signal()?;
        let mut hangups = signal(SignalKind::hangup()).map_err(CliError::other("await signals"))?;
        let watcher = ConfigWatcher::new(options.config.clone(), config.clone());
        let bridge = Bridge::start(config, exporter).await?;
        service::notify(Stage::Ready);
        tokio::spawn(service::watchdog(bridge.makes_progress()));
        let parts = bridge.parts.clone();
        tokio::spawn(watcher.watch(parts, async move || {
            hangups.recv().await;
        }));
        bridge.run_until(stop).await?;
        Ok(())
    })
}

/// A rate per second: 0, or one whose intervals are at most a day long.
fn parse_rate(text: &str) -> Result<f64, String> {
    const RATES: std::ops::RangeInclusive<f64> = 1.0 / 86400.0..=1e9;
    let rate = text.parse().ok().filter(|rate| *rate == 0.0 || RATES.contains(rate));
    rate.ok_or_else(|| "must be 0 or a number of times a second".to_owned())
}

/// Runs `work` on a runtime of one thread. The intake's workers have their own runtimes.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::other("start a runtime"))?;
    runtime.block_on(work)
}

/// Completes at the first SIGTERM (a service manager) or SIGINT (a person). At the second, the
/// process ends at once: acknowledged callbacks are on disk.
fn stop_signal() -> Result<impl Future<Output = ()>, CliError> {
    let listen = |kind| signal(kind).map_err(CliError::other("listen for signals"));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("stopped at once by a second signal");
            logging::flush();
            std::process::exit(i32::from(EXIT_FAILURE));
        });
    })
}
