//! The intake: accepts callbacks over HTTP, within limits, and answers 200 only for what is
//! durable.
//!
//! One acceptor distributes connections over single-threaded runtimes, one per core: a connection
//! stays on its core. `rejection.rs` is the only table of errors and their answers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::heartbeat::Heartbeat;
use crate::metrics;
use crate::reloadable::Reloadable;
use crate::wal::{AppendHandle, Appender, Probe};

mod acceptor;
mod access;
mod activity;
mod admission;
mod body;
mod connection;
mod handler;
mod listener;
mod policy;
mod rejection;
mod rejection_log;
mod stream;
mod tls;
mod wake_gate;
mod worker;

pub use access::{Access, Networks};
use activity::Timeouts;
use admission::ConnectionLimiter;
pub use listener::Listener;
pub use policy::IntakePolicy;
use rejection_log::RejectionLog;
pub use tls::{Tls, TlsError, certificate_expiry};

/// The address of the intake, and its limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The path of callbacks; paths below it are accepted too.
    pub path: String,
    /// The largest body, in bytes.
    pub max_body: usize,
    /// Open connections at once; further ones wait in the kernel.
    pub max_connections: usize,
    /// Open connections of one client address; further ones are closed.
    pub max_connections_per_address: usize,
    /// How long an idle connection is kept after an accepted callback.
    pub keep_alive: Duration,
    /// The longest that a whole callback waits for the log.
    pub deadline: Duration,
    /// When stopping, how long callbacks are still accepted while health checks say not ready.
    pub drain: Duration,
}

/// The running intake.
#[derive(Debug)]
pub struct Intake {
    threads: Vec<thread::JoinHandle<()>>,
    health: Health,
    rejections: Arc<RejectionLog>,
}

/// What the connections of a worker share.
struct IntakeContext {
    config: Config,
    policy: Reloadable<IntakePolicy>,
    appends: AppendHandle,
    health: Health,
    rejections: Arc<RejectionLog>,
    /// Bytes of partly received bodies, over all workers; see [`body`].
    body_bytes: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Intake {
    /// Accepts connections until `stop`. `log` is a probe of the log behind `appender`.
    ///
    /// # Errors
    /// The operating system's, if it cannot start a thread.
    pub fn start(
        listener: &Listener,
        config: &Config,
        policy: &Reloadable<IntakePolicy>,
        appender: &Appender,
        log: Probe,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        metrics::register_rejections(rejection::reasons());
        let limiter = ConnectionLimiter::new(
            config.max_connections,
            config.max_connections_per_address,
            Timeouts { keep_alive: config.keep_alive, append: config.deadline },
        );
        let body_bytes = Arc::new(AtomicUsize::new(0));
        let rejections = Arc::new(RejectionLog::default());
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let heartbeat = Heartbeat::new(cores);
        let health = Health::new(heartbeat.clone(), log);
        let (workers, inboxes): (Vec<_>, Vec<_>) =
            (0..cores).map(|_| acceptor::worker_channel()).unzip();
        let mut acceptor =
            Some(acceptor::accept(listener.try_clone()?, limiter, workers, stop.clone()));
        let start = |(core, inbox)| {
            let background = worker::run_heartbeat(
                heartbeat.clone(),
                core,
                (core == 0).then(|| Arc::clone(&rejections)),
            );
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let entered = runtime.enter();
            let appends = appender.handle();
            drop(entered);
            let shared = Arc::new(IntakeContext {
                config: config.clone(),
                policy: policy.clone(),
                appends,
                health: health.clone(),
                rejections: Arc::clone(&rejections),
                body_bytes: Arc::clone(&body_bytes),
                // One token per worker: every check of a token locks it.
                stop: stop.child_token(),
            });
            let acceptor = acceptor.take();
            thread::Builder::new().name(format!("intake-{core}")).spawn(move || {
                runtime.spawn(background);
                acceptor.map(|acceptor| runtime.spawn(acceptor));
                runtime.block_on(worker::serve(inbox, shared));
            })
        };
        let threads = inboxes.into_iter().enumerate().map(start).collect::<io::Result<_>>()?;
        Ok(Self { threads, health, rejections })
    }

    /// The state of its threads and of the log.
    #[must_use]
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// From now on, readiness checks fail and responses carry `Connection: close`, so that clients
    /// with keep-alive connections reconnect elsewhere before the listener closes.
    pub fn drain(&self) {
        self.health.drain();
    }

    /// Waits until every request is answered, after `stop`.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an intake thread panicked");
            }
        }
        self.rejections.report();
    }
}
