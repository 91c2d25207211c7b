//! Accepts connections, and gives each to the core that has the fewest.
//!
//! If every core accepted for itself, those that come together would go to whichever wakes first, and
//! a sender that keeps its connections would keep one core busy while others idle.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::admission::{ConnectionLimiter, Permit};
use super::{Shared, connection};

/// At a stop, the longest that open requests are waited for.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// At a stop, the longest that further connections are taken out of the kernel's queue, and the
/// pause between two that says that it is empty.
const QUEUE_GRACE: Duration = Duration::from_millis(20);
const QUEUE_GAP: Duration = Duration::from_millis(1);
/// Pause after the operating system refuses a connection, for lack of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection on its way to its core.
struct NewConnection {
    stream: std::net::TcpStream,
    peer: IpAddr,
    permit: Permit,
    /// It counts as one of the core's from here on.
    counted: TaskTrackerToken,
}

/// The acceptor's end of a core.
pub(super) struct WorkerHandle {
    new_connections: mpsc::UnboundedSender<NewConnection>,
    connections: TaskTracker,
}

/// The core's end. What waits here has a seat, so their number bounds it.
pub(super) struct WorkerInbox {
    inbox: mpsc::UnboundedReceiver<NewConnection>,
    connections: TaskTracker,
}

/// Both ends of one core.
pub(super) fn worker_channel() -> (WorkerHandle, WorkerInbox) {
    let (new_connections, inbox) = mpsc::unbounded_channel();
    let connections = TaskTracker::new();
    (
        WorkerHandle { new_connections, connections: connections.clone() },
        WorkerInbox { inbox, connections },
    )
}

/// Accepts connections until `stop`, and then those that are in the kernel's queue already, who would
/// be cut off with the socket.
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
        // Who waits for a seat is accepted: only then may somebody else have to leave for it.
        let permit = limiter.acquire().await;
        Ok((stream.into_std()?, from, permit))
    };
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = next() => next,
        };
        match next {
            Ok((stream, from, permit)) => place(&workers, stream, from, permit),
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let until = Instant::now() + QUEUE_GRACE;
    while Instant::now() < until
        && let Ok(Ok((stream, from, permit))) = timeout(QUEUE_GAP, next()).await
    {
        place(&workers, stream, from, permit);
    }
}

fn place(workers: &[WorkerHandle], stream: std::net::TcpStream, from: SocketAddr, permit: Permit) {
    let Some(worker) = workers.iter().min_by_key(|worker| worker.connections.len()) else { return };
    let peer = from.ip().to_canonical();
    let counted = worker.connections.token();
    // A core is there for as long as its worker.
    let _ = worker.new_connections.send(NewConnection { stream, peer, permit, counted });
}

/// Serves a core's connections until the acceptor is gone and they have ended.
pub(super) async fn serve(new_connections: WorkerInbox, shared: Arc<Shared>) {
    let WorkerInbox { mut inbox, connections } = new_connections;
    while let Some(NewConnection { stream, peer, permit, counted }) = inbox.recv().await {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, %peer, "cannot serve a connection");
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            connection::serve(stream, peer, shared, permit).await;
            drop(counted);
        });
    }
    connections.close();
    if timeout(STOP_GRACE, connections.wait()).await.is_err() {
        let connections = connections.len();
        tracing::warn!(connections, "connections cut off that did not end in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_goes_to_the_core_with_the_fewest_connections() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (workers, mut cores): (Vec<_>, Vec<_>) = (0..2).map(|_| worker_channel()).unzip();
        let stop = CancellationToken::new();
        let limiter = ConnectionLimiter::new(64, 64);
        let acceptor = tokio::spawn(accept(listener, limiter, workers, stop.clone()));
        let connect = || std::net::TcpStream::connect(address).unwrap();

        let mut clients: Vec<_> = (0..6).map(|_| connect()).collect();
        let mut first = Vec::new();
        for _ in 0..3 {
            first.push(cores[0].inbox.recv().await.unwrap());
            cores[1].inbox.recv().await.unwrap();
        }
        // Those of the second core have ended; those of the first have not.
        clients.extend((0..3).map(|_| connect()));
        for _ in 0..3 {
            cores[1].inbox.recv().await.unwrap();
        }

        drop(first);
        stop.cancel();
        acceptor.await.unwrap();
        assert!(cores[0].inbox.recv().await.is_none(), "nothing else went there");
    }
}
