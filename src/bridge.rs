//! The running bridge: started from the log to the ports, stopped from the ports to the log.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::descriptors;
use crate::gaps::Watch;
use crate::health::Health;
use crate::intake::{Intake, Listener};
use crate::metrics::{Exporter, table};
use crate::permission::listen_advice;
use crate::publisher::{Publisher, PublisherError, quarantine};
use crate::reload::Parts;
use crate::service::{self, Stage};
use crate::wal::{Log, OpenError, Probe, StoreError};
use crate::{admin, intake, wal};

/// When stopping, the longest that records are still published. The rest stays in the log.
const PUBLISH_GRACE: Duration = Duration::from_secs(10);
/// Publishing is given up when nothing was published for this long: the next process can accept
/// callbacks only after this one has ended.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two checks of that progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// After the publisher was told to give up, the longest wait for it to end its transaction.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// The same while Kafka is unreachable: no transaction can be ended then, and a call of librdkafka
/// does not return before its time-out.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_millis(200);

/// The longest wait for the time of the last acceptance to be written, which takes a sync.
const GAPS_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the bridge did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// A port.
    #[error("cannot listen on {address} ({key}): {cause}{}", listen_advice(.cause))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The key that configures it.
        key: &'static str,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The socket of the service manager.
    #[error(
        "cannot use the socket that the service manager passed (LISTEN_FDS): {0}; configure exactly \
         one ListenStream= with a TCP address"
    )]
    Socket(#[source] io::Error),
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why the bridge stopped on its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    /// The log.
    #[error("the log failed: {0}")]
    Log(#[from] StoreError),
    /// The publisher.
    #[error("the publisher failed: {0}")]
    Publisher(#[from] PublisherError),
    /// It panicked.
    #[error("the publisher's thread panicked")]
    PublisherPanicked,
}

/// A running bridge.
#[derive(Debug)]
pub(crate) struct Bridge {
    /// The address of the intake.
    pub intake_address: SocketAddr,
    /// The address of the admin listener.
    pub admin_address: SocketAddr,
    /// The parts that a new configuration replaces.
    pub parts: Parts,
    intake: Intake,
    gaps: Watch,
    health: Health,
    metrics: Exporter,
    drain: Duration,
    log: Log,
    publisher: oneshot::Receiver<Result<(), PublisherError>>,
    stop_intake: CancellationToken,
    give_up: CancellationToken,
    stop_admin: CancellationToken,
}

impl Bridge {
    /// Opens the log, starts the publisher, then the intake: errors are found before the first
    /// callback is accepted. Kafka being unreachable is not an error.
    ///
    /// # Errors
    /// [`StartError`]
    pub(crate) async fn start(config: Config, exporter: Exporter) -> Result<Self, StartError> {
        let (listener, intake_address) = bind_intake(config.http.listen)?;
        let (admin_listener, admin_address) = bind_admin(config.admin.listen).await?;

        let (appender, reader, log) = wal::open(&config.wal)?;
        let parts = Parts::new(&config, log.limits());
        let stored = log.stored();
        tracing::info!(
            log = %log.id(),
            dir = %config.wal.dir.display(),
            records = stored.records,
            bytes = stored.disk_bytes,
            "log open"
        );
        let give_up = CancellationToken::new();
        let quarantine = quarantine::dir_of(&config.wal.dir);
        let publisher = Publisher::new(
            reader,
            config.kafka,
            config.topics,
            config.dedup,
            quarantine,
            give_up.clone(),
        );
        let (ended, publisher_end) = oneshot::channel();
        thread::Builder::new()
            .name("publisher".into())
            .spawn(move || ended.send(publisher.run()))
            .map_err(StartError::Thread)?;

        let stop_intake = CancellationToken::new();
        let drain = config.http.drain;
        let http = limit_connections(config.http);
        let probe = log.probe();
        let intake = Intake::start(&listener, &http, &parts.policy, &appender, probe, &stop_intake)
            .map_err(StartError::Thread)?;
        drop(appender);
        tracing::info!(address = %intake_address, "intake listening");
        let stop_admin = CancellationToken::new();
        let metrics = exporter.clone();
        let is_open = config.admin.token.is_none() && !admin_address.ip().is_loopback();
        let (token, stop) = (config.admin.token, stop_admin.clone());
        let settings = parts.settings.clone();
        let health = intake.health().clone();
        let gaps = watch_gaps(config.wal.dir, health.clone(), log.probe())?;
        let (probe, of_admin) = (log.probe(), health.clone());
        let admin = admin::run(admin_listener, token, exporter, probe, of_admin, settings, stop);
        tokio::spawn(admin);
        tracing::info!(address = %admin_address, "admin listening");
        if is_open {
            tracing::warn!(
                "every client that reaches admin.listen can read the metrics; set admin.token, or listen on \
                 127.0.0.1"
            );
        }
        Ok(Self {
            intake_address,
            admin_address,
            parts,
            intake,
            gaps,
            health,
            metrics,
            drain,
            log,
            publisher: publisher_end,
            stop_intake,
            give_up,
            stop_admin,
        })
    }

    /// Whether the intake and the log make progress, or have nothing to do.
    pub(crate) fn makes_progress(&self) -> impl Fn() -> bool + use<> {
        let health = self.health.clone();
        move || health.stuck().is_none()
    }

    /// Runs until `stop`, or until a part ends on its own, which is an error.
    ///
    /// Then, for `http.drain`, health checks say not ready while callbacks are still accepted.
    /// After that no connection is accepted, every callback in progress gets its answer, the log
    /// closes, and records are published as far as the grace period allows.
    ///
    /// # Errors
    /// [`StopError`]
    pub(crate) async fn run_until(
        mut self,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StopError> {
        let mut publisher_ended = false;
        let (intake, drain) = (&self.intake, self.drain);
        let stop = async {
            stop.await;
            service::notify(Stage::Stopping);
            intake.drain();
            if !drain.is_zero() {
                tracing::info!(seconds = drain.as_secs_f64(), "stopping soon; no longer ready");
                tokio::time::sleep(drain).await;
            }
        };
        let reason = tokio::select! {
            () = stop => Ok(()),
            end = self.log.ended() => end.map_err(StopError::Log),
            end = &mut self.publisher => {
                publisher_ended = true;
                match end {
                    Ok(end) => end.map_err(StopError::Publisher),
                    Err(_) => Err(StopError::PublisherPanicked),
                }
            }
        };
        match &reason {
            Ok(()) => tracing::info!("stopping"),
            Err(error) => tracing::error!(%error, "stopping"),
        }

        // While the log still accepts: a gap begins when it does not.
        let gaps = tokio::task::spawn_blocking(move || self.gaps.stop());
        if timeout(GAPS_TIMEOUT, gaps).await.is_err() {
            tracing::debug!("the disk is too slow to write last-accepting");
        }
        self.intake.drain();
        self.stop_intake.cancel();
        let intake = self.intake;
        let intake = tokio::task::spawn_blocking(move || intake.join());
        let log_end = async {
            // The writer ends when the intake has dropped its handles.
            let _ = intake.await;
            self.log.ended().await
        };
        let closed = log_end.await;
        let mut published = Ok(());
        if !publisher_ended {
            let reachable = self.metrics.snapshot().get(&table::KAFKA_UP) > 0.0;
            let probe = self.log.probe();
            let end = finish(&mut self.publisher, &probe, &self.give_up, reachable).await;
            publisher_ended = end.is_some();
            published = end.unwrap_or(Ok(()));
        }
        let left = self.log.stored().records;
        if publisher_ended {
            let log = self.log;
            let _ = tokio::task::spawn_blocking(move || log.close()).await;
        } else {
            // Its reader keeps the log open. The ledger lists what it published for the next
            // process.
            tracing::debug!("the publisher is in a call of librdkafka; it ends with the process");
        }
        self.stop_admin.cancel();
        tracing::info!(records_left = left, "stopped");
        reason.and(closed.map_err(StopError::Log)).and(published)
    }
}

/// Records times without acceptance that are so long that events may be missing.
fn watch_gaps(dir: PathBuf, health: Health, log: Probe) -> Result<Watch, StartError> {
    let mut accepted = log.audit().accepted;
    let accepts = move || {
        let before = std::mem::replace(&mut accepted, log.audit().accepted);
        accepted != before || health.accepts()
    };
    Watch::start(dir, accepts).map_err(StartError::Thread)
}

/// Lets the publisher finish as long as it makes progress, then tells it to give up; `None` when it
/// does not end.
async fn finish(
    publisher: &mut oneshot::Receiver<Result<(), PublisherError>>,
    log: &Probe,
    give_up: &CancellationToken,
    reachable: bool,
) -> Option<Result<(), StopError>> {
    let until = Instant::now() + PUBLISH_GRACE;
    let mut left = log.stored().records;
    let mut progressed_at = Instant::now();
    let mut end = None;
    let progress_timeout = if reachable { PROGRESS_TIMEOUT } else { Duration::ZERO };
    while end.is_none()
        && left > 0
        && progressed_at.elapsed() < progress_timeout
        && Instant::now() < until
    {
        end = timeout(PROGRESS_INTERVAL, &mut *publisher).await.ok();
        if log.stored().records < left {
            left = log.stored().records;
            progressed_at = Instant::now();
        }
    }
    if end.is_none() {
        give_up.cancel();
        let give_up_timeout = if reachable { GIVE_UP_TIMEOUT } else { UNREACHABLE_TIMEOUT };
        end = timeout(give_up_timeout, publisher).await.ok();
    }
    Some(match end? {
        Ok(end) => end.map_err(StopError::Publisher),
        Err(_) => Err(StopError::PublisherPanicked),
    })
}

/// The intake's socket, bound here or by the service manager, and its address.
fn bind_intake(address: SocketAddr) -> Result<(Listener, SocketAddr), StartError> {
    let listener = match service::socket() {
        Ok(Some(socket)) => Listener::adopt(socket),
        Ok(None) => Listener::bind(address),
        Err(cause) => return Err(StartError::Socket(cause)),
    };
    let bound = listener.and_then(|listener| Ok((listener.address()?, listener)));
    let (address, listener) = bound.map_err(listen_error(address, "http.listen"))?;
    Ok((listener, address))
}

async fn bind_admin(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = TcpListener::bind(address).await;
    let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(listen_error(address, "admin.listen"))?;
    Ok((listener, address))
}

/// Raises the limit of file descriptors, and lowers `http.max_connections` to what it allows.
fn limit_connections(mut http: intake::Config) -> intake::Config {
    let limit = descriptors::raise_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
        descriptors::current_limit()
    });
    let max_connections = descriptors::connections(http.max_connections, limit);
    if max_connections < http.max_connections {
        tracing::warn!(
            limit,
            configured = http.max_connections,
            max_connections,
            "http.max_connections is lowered to what the limit of file descriptors allows; raise \
             that (LimitNOFILE=, ulimit -n)"
        );
        http.max_connections = max_connections;
    }
    http
}

fn listen_error(address: SocketAddr, key: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::Listen { address, key, cause }
}
