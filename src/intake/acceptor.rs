//! Accepts connections, and gives each to the worker that has the fewest.
//!
//! If each worker accepted connections, those that arrive together would all go to the first one to
//! wake, and a sender with keep-alive connections would keep one core busy while others idle.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::admission::{ConnectionLimiter, Permit, SCAN_INTERVAL};
use crate::log_limit::LogLimiter;

/// When stopping, how long connections are still accepted from the kernel's queue, and the pause
/// between two after which the queue counts as empty.
const QUEUE_GRACE: Duration = Duration::from_millis(20);
const QUEUE_GAP: Duration = Duration::from_millis(1);
/// Pause after `accept` failed.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection on its way to its worker.
pub(super) struct NewConnection {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: IpAddr,
    pub(super) permit: Permit,
    /// Counts it as one of the worker's connections.
    pub(super) counted: TaskTrackerToken,
}

/// The acceptor's side of a worker's channel.
pub(super) struct WorkerHandle {
    new_connections: mpsc::UnboundedSender<NewConnection>,
    connections: TaskTracker,
}

/// The worker's side. Every connection in it holds a permit, which bounds its length.
pub(super) struct WorkerInbox {
    pub(super) inbox: mpsc::UnboundedReceiver<NewConnection>,
    pub(super) connections: TaskTracker,
}

/// Both sides of one worker's channel.
pub(super) fn worker_channel() -> (WorkerHandle, WorkerInbox) {
    let (new_connections, inbox) = mpsc::unbounded_channel();
    let connections = TaskTracker::new();
    (
        WorkerHandle { new_connections, connections: connections.clone() },
        WorkerInbox { inbox, connections },
    )
}

/// Accepts connections until `stop`, and then those that are already in the kernel's queue: closing
/// the socket would reset them.
pub(super) async fn accept(
    listener: std::net::TcpListener,
    limiter: Arc<ConnectionLimiter>,
    workers: Vec<WorkerHandle>,
    stop: CancellationToken,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot accept connections"),
    };
    let next = async || -> io::Result<(std::net::TcpStream, SocketAddr, Permit)> {
        let (stream, from) = listener.accept().await?;
        // Accept first: a connection is evicted only when another one really waits.
        let permit = limiter.acquire().await;
        Ok((stream.into_std()?, from, permit))
    };
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = next() => next,
        };
        match next {
            Ok((stream, from, permit)) => assign(&workers, stream, from, permit),
            Err(error) if is_out_of_descriptors(&error) => {
                static LIMIT: LogLimiter = LogLimiter::new();
                if let Some(suppressed) = LIMIT.permit() {
                    tracing::error!(
                        %error, suppressed,
                        "no file descriptor is left for a connection: idle ones are evicted; raise the limit \
                         (LimitNOFILE=, ulimit -Hn)"
                    );
                }
                // Evict, as at the connection limit, instead of waiting until a connection times
                // out.
                limiter.evict_idlest();
                sleep(SCAN_INTERVAL).await;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
    let until = Instant::now() + QUEUE_GRACE;
    while Instant::now() < until
        && let Ok(Ok((stream, from, permit))) = timeout(QUEUE_GAP, next()).await
    {
        assign(&workers, stream, from, permit);
    }
}

/// Whether the process, or the machine, has no file descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&error.raw_os_error())
}

fn assign(workers: &[WorkerHandle], stream: std::net::TcpStream, from: SocketAddr, permit: Permit) {
    let Some(worker) = workers.iter().min_by_key(|worker| worker.connections.len()) else { return };
    let peer = from.ip().to_canonical();
    let counted = worker.connections.token();
    // This fails only if the worker has panicked; the connection is closed then.
    let _ = worker.new_connections.send(NewConnection { stream, peer, permit, counted });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::activity::Timeouts;

    #[tokio::test]
    async fn a_connection_goes_to_the_worker_with_the_fewest() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (workers, mut inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| worker_channel()).unzip();
        let stop = CancellationToken::new();
        let timeouts =
            Timeouts { keep_alive: Duration::from_secs(75), append: Duration::from_secs(5) };
        let limiter = ConnectionLimiter::new(64, 64, timeouts);
        let acceptor = tokio::spawn(accept(listener, limiter, workers, stop.clone()));
        let connect = || std::net::TcpStream::connect(address).unwrap();

        let mut clients: Vec<_> = (0..6).map(|_| connect()).collect();
        let mut first = Vec::new();
        for _ in 0..3 {
            first.push(inboxes[0].inbox.recv().await.unwrap());
            inboxes[1].inbox.recv().await.unwrap();
        }
        // The second worker's connections have ended; the first one's have not.
        clients.extend((0..3).map(|_| connect()));
        for _ in 0..3 {
            inboxes[1].inbox.recv().await.unwrap();
        }

        drop(first);
        stop.cancel();
        acceptor.await.unwrap();
        assert!(inboxes[0].inbox.recv().await.is_none(), "the first worker gets no other");
    }
}
