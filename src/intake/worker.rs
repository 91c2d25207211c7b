//! One core's worker: serves the connections that the acceptor gives it.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::acceptor::{NewConnection, WorkerInbox};
use super::rejection_log::RejectionLog;
use super::{Shared, connection};
use crate::heartbeat::{self, Heartbeat};

/// When stopping, the longest wait for open requests. Tencent gives up a call after 20 s.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Beats as long as the worker's runtime gets to its tasks, and reports rejections if it is the one
/// worker that does.
pub(super) async fn beat(heartbeat: Heartbeat, core: usize, rejections: Option<Arc<RejectionLog>>) {
    loop {
        heartbeat.beat(core);
        if let Some(rejections) = &rejections {
            rejections.report_if_due();
        }
        sleep(heartbeat::INTERVAL).await;
    }
}

/// Serves connections until the acceptor has ended and the connections have too.
pub(super) async fn serve(inbox: WorkerInbox, shared: Arc<Shared>) {
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
