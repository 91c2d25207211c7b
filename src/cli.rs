//! The commands and their options.

#![allow(rustdoc::invalid_html_tags, reason = "the comments are the texts of --help")]

use std::path::PathBuf;
use std::process::ExitCode;

use crate::bridge::{Bridge, StartError, StopError};
use crate::config::{Config, ConfigError};
use crate::reload::Source;
use crate::service::{self, Stage};
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
/// Whatever else went wrong.
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
    /// Take callbacks and publish them to Kafka.
    ///
    /// Every key of the configuration file can be given as LIVEBRIDGE_<SECTION>_<KEY> in the
    /// environment, which wins. Stops on SIGTERM or SIGINT; a second one stops at once. SIGHUP, or a
    /// change of its files, brings new callback keys, limits of the log and levels of log lines without
    /// a restart.
    ///
    /// Exits 0 when it was told to stop, 64 when the configuration is wrong, 1 otherwise.
    #[command(after_long_help = SERVE_EXAMPLES)]
    Serve(ConfigFile),
    /// Try it: the same pipeline with a Kafka of its own, nothing to install.
    ///
    /// Starts an in-memory Kafka that any Kafka client reaches, a log in a temporary directory and
    /// the intake, and prints each event as it lands in its topic.
    #[command(after_long_help = DEV_EXAMPLES)]
    Dev(dev::Options),
    /// Say what is wrong before production does: configuration, directory, clock, keys, Kafka.
    ///
    /// Exits 0 when nothing is wrong, 64 when the configuration is, 69 when nothing but Kafka is
    /// (callbacks would be taken all the same), 1 when something else is.
    #[command(after_long_help = CHECK_EXAMPLES)]
    Check(check::Options),
    /// Ask a running instance whether it accepts callbacks: for health checks of containers.
    ///
    /// Exits 0 when it does, 1 when it does not.
    Ready(ready::Options),
    /// Print the configuration in effect, and where each value comes from; secrets are hidden.
    ///
    /// Exits 64 when `serve` would reject it.
    #[command(after_long_help = CONFIG_EXAMPLES)]
    Config(config::Options),
    /// Send callbacks as Tencent does: signed, at a rate, tried again until answered 200.
    #[command(after_long_help = SEND_EXAMPLES)]
    Send(send::Options),
    /// Look into a log, also beside a running instance; only `--drop` and `release` change it.
    #[command(after_long_help = WAL_EXAMPLES)]
    Wal(wal::Options),
    /// Send events to Kafka again: from an export of a log, or out of the dead letters.
    ///
    /// Says what it would do, and does it with --yes.
    #[command(after_long_help = replay::EXAMPLES)]
    Replay(replay::Options),
    /// Publish the events whose callbacks Tencent Cloud gave up on, from its records of them.
    ///
    /// Says what it would do, and does it with --yes. Needs credentials of Tencent Cloud.
    #[command(after_long_help = recover::EXAMPLES)]
    Recover(recover::Options),
    /// Compare log, ledger and topics over a time: is anything missing, or there twice?
    ///
    /// Changes nothing, also beside a running instance. Exits 0 when all is accounted for, 1 when
    /// something is not or cannot be read, 64 when the configuration is wrong.
    #[command(after_long_help = audit::EXAMPLES)]
    Audit(audit::Options),
    /// Set up, examine and remove the callbacks in Tencent Cloud, and rotate their key.
    #[command(after_long_help = tencent::EXAMPLES)]
    Tencent(tencent::Options),
    /// Print a script that lets a shell complete livebridge's options.
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
  The same, and say in the log what is wrong with Kafka:
    livebridge check || [ $? -eq 69 ]";
const CONFIG_EXAMPLES: &str = "\
Examples:
  livebridge config --config livebridge.toml
  What is not as it comes:
    livebridge config --config livebridge.toml | grep -v '# default$'
  One value:
    livebridge config --json | jq -r '.[\"wal.dir\"].value'";
const SEND_EXAMPLES: &str = "\
Examples:
  Is this the right key?
    LIVEBRIDGE_SEND_KEY=secret livebridge send --url http://host:8080/callback
  A thousand a second for a minute, of all event types:
    livebridge send --key-file key --rate 1000 --count 60000 --connections 8
  A callback that was kept, byte for byte:
    livebridge send --file callback.json";
const WAL_EXAMPLES: &str = "\
Examples:
  What waits for Kafka:
    livebridge wal status --dir /var/lib/livebridge/log
  Is a copy of a log good?
    livebridge wal verify --dir /backup/log
  What Kafka rejected everywhere, and why:
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

/// What a command fails with.
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
    Quarantine(#[from] crate::publisher::quarantine::QuarantineError),
    #[error(transparent)]
    Recover(#[from] crate::recover::RecoverError),
    #[error(transparent)]
    Kafka(#[from] crate::kafka::KafkaError),
    #[error(transparent)]
    Tencent(#[from] crate::tencent::TencentError),
    #[error("{0}")]
    Usage(String),
    #[error("cannot {what}: {cause}")]
    Other { what: &'static str, cause: Box<dyn std::error::Error + Send + Sync> },
    /// A finding that was printed already.
    #[error("something is wrong")]
    Found,
    /// The same, and it is nothing but Kafka.
    #[error("Kafka cannot be used")]
    Unavailable,
}

impl CliError {
    fn other<E: std::error::Error + Send + Sync + 'static>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |cause| Self::Other { what, cause: Box::new(cause) }
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version come this way, too.
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
            let usage = matches!(error, CliError::Config(_) | CliError::Usage(_));
            ExitCode::from(if usage { EXIT_USAGE } else { EXIT_FAILURE })
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
        let source = Source::new(options.config.clone(), config.clone());
        let bridge = Bridge::start(config, exporter).await?;
        service::tell(Stage::Ready);
        tokio::spawn(service::watchdog(bridge.is_well()));
        let parts = bridge.parts.clone();
        tokio::spawn(source.keep(parts, async move || {
            hangups.recv().await;
        }));
        bridge.run_until(stop).await?;
        Ok(())
    })
}

/// How often a second: 0, or a rate that makes for pauses of at most a day.
fn parse_rate(text: &str) -> Result<f64, String> {
    const RATES: std::ops::RangeInclusive<f64> = 1.0 / 86400.0..=1e9;
    let rate = text.parse().ok().filter(|rate| *rate == 0.0 || RATES.contains(rate));
    rate.ok_or_else(|| "must be 0 or a number of times a second".to_owned())
}

/// Runs `work` on a runtime for everything but the intake, which has its own.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::other("start a runtime"))?;
    runtime.block_on(work)
}

/// Completes at the first SIGTERM (a service manager) or SIGINT (a person). At the second, the
/// process ends at once: what is acknowledged is on disk.
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
