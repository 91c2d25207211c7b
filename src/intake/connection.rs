//! Serves one connection: handshake, then one request after another.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::admission::Permit;
use super::handler::{ConnectionContext, answer};
use super::stream::{ClientStream, Transport};
use super::wake_gate::PolledOnWake;
use super::{Access, IntakeContext};
use crate::metrics::{self, CloseReason};
use crate::proxy_protocol::{self, ClientAddress};

/// From a connection's opening to the end of its PROXY header and TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// When stopping, how long idle connections are kept: a request that is in transit when its
/// connection is closed gets no answer.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Header bytes of a request; hyper accepts no limit below 8 KiB. Its default limit of 100 fields
/// stays: with any other, hyper initializes two tables of that size for each request.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Serves the connection from `peer` until it ends or must be closed.
pub(super) async fn serve(
    stream: TcpStream,
    peer: IpAddr,
    shared: Arc<IntakeContext>,
    mut permit: Permit,
) {
    metrics::connection_opened();
    // Each response is one small packet; Nagle's algorithm would only delay it.
    let _ = stream.set_nodelay(true);
    let activity = Arc::clone(&permit.activity);
    let policy = Arc::clone(&shared.policy.get());
    let outcome = tokio::select! {
        outcome = timeout(HANDSHAKE_TIMEOUT, handshake(stream, peer, policy.access(), &mut permit)) => outcome,
        reason = activity.wait_for_close() => Ok(Err(reason)),
        () = shutdown_grace(shared.stop.clone()) => return metrics::connection_closed(),
    };
    match outcome {
        Ok(Ok(Some((transport, peer)))) => {
            activity.handshake_completed();
            let stream = ClientStream::new(transport, Arc::clone(&activity));
            let context = ConnectionContext { peer, activity: &activity, policy: &policy };
            serve_http(stream, &shared, context).await;
        }
        // A TCP health check: connected, and closed without a byte.
        Ok(Ok(None)) => {}
        Ok(Err(reason)) => metrics::ended(reason),
        Err(_) => metrics::ended(CloseReason::HandshakeTimeout),
    }
    metrics::connection_closed();
}

/// Reads a PROXY header and performs a TLS handshake, as `access` configures them. Returns the
/// client's address, if it is known; or `None` if the client closes before it has sent anything.
async fn handshake(
    mut stream: TcpStream,
    peer: IpAddr,
    access: &Access,
    permit: &mut Permit,
) -> Result<Option<(Transport, Option<IpAddr>)>, CloseReason> {
    let proxied = access.proxy_protocol && access.is_trusted(peer);
    let mut client = Some(peer);
    if proxied {
        if is_closed(&stream).await {
            return Ok(None);
        }
        let address = proxy_protocol::read(&mut stream).await.map_err(|error| {
            tracing::debug!(%error, %peer, "a trusted proxy sent no valid PROXY header");
            CloseReason::ProxyHeader
        })?;
        client = match address {
            ClientAddress::Known(address) => Some(address.to_canonical()),
            // The proxy itself, for a health check.
            ClientAddress::Local => client,
            // Every request but a health check is answered 403.
            ClientAddress::Unknown => None,
        };
    }
    // A trusted proxy has many connections; the limit applies to clients.
    if let Some(client) = client.filter(|client| !access.is_trusted(*client))
        && !permit.charge_to(client)
    {
        return Err(CloseReason::PerAddressLimit);
    }
    let Some(tls) = &access.tls else { return Ok(Some((Transport::Plain(stream), client))) };
    if is_closed(&stream).await {
        return Ok(None);
    }
    let stream = tls.accept(stream).await.map_err(|error| {
        tracing::debug!(%error, %peer, "a TLS handshake failed");
        CloseReason::Tls
    })?;
    Ok(Some((Transport::Tls(Box::new(stream)), client)))
}

/// Whether the client closes the connection before its next byte.
async fn is_closed(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]).await {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

async fn serve_http(stream: ClientStream, shared: &IntakeContext, context: ConnectionContext<'_>) {
    let service = service_fn(|request| answer(shared, context, request));
    let connection = http1::Builder::new()
        // A client may close its sending side and still read the response.
        .half_close(true)
        // `Activity` has the time-outs: hyper's would also end idle connections.
        .header_read_timeout(None)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut closed = pin!(context.activity.wait_for_close());
    let stopping = pin!(shutdown_grace(shared.stop.clone()));
    let mut stopping = PolledOnWake::new(stopping);
    let mut is_stopping = false;
    let ended = loop {
        tokio::select! {
            // In this order: usually the connection is ready, and the other branches depend on the
            // state that it has just changed.
            biased;
            ended = &mut connection => break ended,
            reason = &mut closed => return metrics::ended(reason),
            () = &mut stopping, if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        if let Some(reason) = reason(&error) {
            metrics::ended(reason);
        }
        tracing::debug!(%error, peer = ?context.peer, "a connection ended early");
    }
}

/// Completes [`SHUTDOWN_GRACE`] after `stop` is cancelled.
async fn shutdown_grace(stop: CancellationToken) {
    stop.cancelled().await;
    sleep(SHUTDOWN_GRACE).await;
}

/// Why a connection was closed; `None` if the client closed it.
fn reason(error: &hyper::Error) -> Option<CloseReason> {
    if error.is_parse_too_large() {
        Some(CloseReason::HeaderTooLarge)
    } else if error.is_parse() {
        Some(CloseReason::HeaderMalformed)
    } else {
        None
    }
}
