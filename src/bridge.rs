//! The running bridge: started back to front, stopped front to back.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::intake::{Intake, Listener};
use crate::metrics::Exporter;
use crate::publisher::{Publisher, PublisherError, quarantine};
use crate::reload::Parts;
use crate::service::{self, Stage};
use crate::wal::{Log, OpenError, Probe, StoreError};
use crate::{admin, heartbeat, wal};

/// After an order to stop, the longest that records are still published. The rest waits on disk.
const PUBLISH_GRACE: Duration = Duration::from_secs(10);
/// It is not waited for when nothing was published for so long: Kafka is away, and every moment
/// costs callbacks that would be taken after a start.
const STANDSTILL: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// After an order to give up, the longest that the publisher is waited for.
const GIVE_UP: Duration = Duration::from_secs(1);

/// Why the bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// A port.
    #[error("cannot listen on {address} ({key}): {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The key that says so.
        key: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The service manager's.
    #[error("the socket that LISTEN_FDS speaks of cannot be used: {0}; give one ListenStream=")]
    Socket(#[source] io::Error),
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why the bridge stopped on its own.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
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

/// A bridge at work.
#[derive(Debug)]
pub struct Bridge {
    /// Where callbacks are taken.
    pub intake_address: SocketAddr,
    /// Where operators look.
    pub admin_address: SocketAddr,
    /// What can be replaced while it works.
    pub parts: Parts,
    intake: Intake,
    drain: Duration,
    log: Log,
    publisher: oneshot::Receiver<Result<(), PublisherError>>,
    stop_intake: CancellationToken,
    give_up: CancellationToken,
    stop_admin: CancellationToken,
}

impl Bridge {
    /// Opens the log, then the publisher, then the ports: what can be wrong is found before the
    /// first callback is taken. Kafka being away is not wrong.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(config: Config, exporter: Exporter) -> Result<Self, StartError> {
        let listener = match service::socket() {
            Ok(Some(socket)) => Listener::adopt(socket),
            Ok(None) => Listener::bind(config.http.listen),
            Err(cause) => return Err(StartError::Socket(cause)),
        };
        let listener = listener.map_err(listen_error(config.http.listen, "http.listen"))?;
        let admin_listener = TcpListener::bind(config.admin.listen).await;
        let admin_listener =
            admin_listener.map_err(listen_error(config.admin.listen, "admin.listen"))?;
        let intake_address = listener.address().map_err(StartError::Thread)?;
        let admin_address = admin_listener.local_addr().map_err(StartError::Thread)?;

        let (appender, reader, log) = wal::open(&config.wal)?;
        let parts = Parts::new(&config, log.probe());
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
        let intake = Intake::start(&listener, &config.http, &parts.policy, &appender, &stop_intake)
            .map_err(StartError::Thread)?;
        drop(appender);
        tracing::info!(address = %intake_address, "intake listening");
        let stop_admin = CancellationToken::new();
        let is_open = config.admin.token.is_none() && !admin_address.ip().is_loopback();
        let (token, stop) = (config.admin.token, stop_admin.clone());
        let settings = parts.settings.clone();
        let (probe, heartbeat) = (log.probe(), intake.heartbeat());
        tokio::spawn(admin::run(admin_listener, token, exporter, probe, heartbeat, settings, stop));
        tracing::info!(address = %admin_address, "admin listening");
        if is_open {
            tracing::warn!(
                "whoever reaches admin.listen can read the metrics; set admin.token, or listen on \
                 127.0.0.1"
            );
        }
        Ok(Self {
            intake_address,
            admin_address,
            parts,
            intake,
            drain,
            log,
            publisher: publisher_end,
            stop_intake,
            give_up,
            stop_admin,
        })
    }

    /// Tells whether intake and log are at work, however little there is to do.
    pub fn is_well(&self) -> impl Fn() -> bool + use<> {
        let (heartbeat, log) = (self.intake.heartbeat(), self.log.probe());
        move || !heartbeat.is_stuck() && log.busy() < heartbeat::STUCK
    }

    /// Works until `stop`, or until a part ends on its own, which is an error.
    ///
    /// Then: whoever asks is told to go elsewhere, and as long as `http.drain` says callbacks are
    /// taken nevertheless. After that: no new connections, every accepted callback gets its answer,
    /// the log closes, and what can be published within the grace period is.
    ///
    /// # Errors
    /// [`StopError`]
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<(), StopError> {
        let mut publisher_ended = false;
        let (probe, drain) = (self.log.probe(), self.drain);
        let intake = &self.intake;
        let stop = async {
            stop.await;
            service::tell(Stage::Stopping);
            probe.leave();
            intake.leave();
            if !drain.is_zero() {
                tracing::info!(seconds = drain.as_secs_f64(), "stopping soon; not ready any more");
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

        self.intake.leave();
        self.stop_intake.cancel();
        let intake = self.intake;
        let intake = tokio::task::spawn_blocking(move || intake.join());
        let log_end = async {
            // The writer ends when the intake has let go of it.
            let _ = intake.await;
            self.log.ended().await
        };
        let closed = log_end.await;
        let mut published = Ok(());
        if !publisher_ended {
            let probe = self.log.probe();
            let end = finish(&mut self.publisher, &probe, &self.give_up).await;
            publisher_ended = end.is_some();
            published = end.unwrap_or(Ok(()));
        }
        let left = self.log.stored().records;
        if publisher_ended {
            let log = self.log;
            let _ = tokio::task::spawn_blocking(move || log.close()).await;
        } else {
            // Its reader keeps the log open. What it did, the ledger tells the next process.
            tracing::warn!(
                "the publisher is stuck in a call of librdkafka; it ends with the process"
            );
        }
        self.stop_admin.cancel();
        tracing::info!(records_left = left, "stopped");
        reason.and(closed.map_err(StopError::Log)).and(published)
    }
}

/// Lets the publisher finish, as long as it gets somewhere, then makes it give up; `None` when it
/// does not end.
async fn finish(
    publisher: &mut oneshot::Receiver<Result<(), PublisherError>>,
    log: &Probe,
    give_up: &CancellationToken,
) -> Option<Result<(), StopError>> {
    let until = Instant::now() + PUBLISH_GRACE;
    let mut left = log.records();
    let mut moved = Instant::now();
    let mut end = None;
    while end.is_none() && left > 0 && moved.elapsed() < STANDSTILL && Instant::now() < until {
        end = timeout(LOOK, &mut *publisher).await.ok();
        if log.records() < left {
            left = log.records();
            moved = Instant::now();
        }
    }
    if end.is_none() {
        give_up.cancel();
        end = timeout(GIVE_UP, publisher).await.ok();
    }
    Some(match end? {
        Ok(end) => end.map_err(StopError::Publisher),
        Err(_) => Err(StopError::PublisherPanicked),
    })
}

fn listen_error(address: SocketAddr, key: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::Listen { address, key, cause }
}
