//! One core's worker: serves the connections that the acceptor gives it.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::acceptor::{NewConnection, WorkerInbox};
use super::rejection_log::RejectionLog;
use super::{IntakeContext, connection};
use crate::heartbeat::{self, Heartbeat};

/// When stopping, the longest wait for open requests. Tencent gives up a call after 20 s.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Records heartbeats while the worker's runtime runs its tasks. One of the workers gets
/// `rejections` and reports them.
pub(super) async fn run_heartbeat(
    heartbeat: Heartbeat,
    core: usize,
    rejections: Option<Arc<RejectionLog>>,
) {
    loop {
        heartbeat.beat(core);
        if let Some(rejections) = &rejections {
            rejections.report_if_due();
        }
        sleep(heartbeat::INTERVAL).await;
    }
}

/// Serves connections until the acceptor and all connections have ended.
pub(super) async fn serve(inbox: WorkerInbox, shared: Arc<IntakeContext>) {
    let WorkerInbox { mut inbox, connections } = inbox;
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
        tracing::warn!(connections, "connections that did not end in time were closed");
    }
}
