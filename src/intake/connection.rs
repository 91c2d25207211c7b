//! One connection: who is there, by TLS or not, and then one request after another.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::admission::Permit;
use super::proxy_protocol::Source;
use super::{Access, Caller, Shared, answer, proxy_protocol};
use crate::metrics::{self, CloseReason};

/// From a connection's opening to the end of a PROXY header and of TLS's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From a connection's opening, or its last answer, to the end of the next request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// At a stop, the longest that a connection on which nothing happens is kept: a request that is on
/// its way meets nobody when it is closed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Header bytes of a request. hyper takes no less than 8 KiB.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Header fields of a request.
const HEADERS_MAX: usize = 64;

/// Serves the connection from `peer` until it ends, or has to.
pub(super) async fn serve(
    stream: TcpStream,
    peer: IpAddr,
    shared: Arc<Shared>,
    mut permit: Permit,
) {
    metrics::connection_opened();
    // Answers are single small packets.
    let _ = stream.set_nodelay(true);
    let activity = Arc::clone(&permit.activity);
    let policy = Arc::clone(&shared.policy.get());
    let outcome = tokio::select! {
        outcome = timeout(HANDSHAKE_TIMEOUT, handshake(stream, peer, policy.access(), &mut permit)) => outcome,
        reason = activity.evicted() => Ok(Err(reason)),
        () = shutdown_grace(shared.stop.clone()) => return metrics::connection_closed(),
    };
    match outcome {
        Ok(Ok((stream, peer))) => {
            let caller = Caller { peer, activity: &activity, policy: &policy };
            match stream {
                Stream::Plain(stream) => serve_http(stream, &shared, caller).await,
                Stream::Tls(stream) => serve_http(*stream, &shared, caller).await,
            }
        }
        Ok(Err(reason)) => metrics::ended(reason),
        Err(_) => metrics::ended(CloseReason::HandshakeTimeout),
    }
    metrics::connection_closed();
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Finds out who is there, and whether they may stay.
async fn handshake(
    mut stream: TcpStream,
    mut peer: IpAddr,
    access: &Access,
    permit: &mut Permit,
) -> Result<(Stream, IpAddr), CloseReason> {
    let mut trusted = access.is_trusted(peer);
    if trusted && access.proxy_protocol {
        let source = proxy_protocol::read(&mut stream).await.map_err(|error| {
            tracing::debug!(%error, %peer, "a proxy does not say whom it speaks for");
            CloseReason::ProxyHeader
        })?;
        match source {
            Source::Address(source) => {
                peer = source.to_canonical();
                trusted = access.is_trusted(peer);
            }
            Source::Itself => {}
            // It is not the proxy that speaks then, so nothing it sends is a proxy's word.
            Source::Unknown => return Err(CloseReason::ProxyHeader),
        }
    }
    // Whom a trusted proxy speaks for is told by each request, and it may have many connections.
    if !trusted {
        if !access.is_allowed(peer) {
            return Err(CloseReason::Address);
        }
        if !permit.charge_to(peer) {
            return Err(CloseReason::PerAddressLimit);
        }
    }
    let Some(tls) = &access.tls else { return Ok((Stream::Plain(stream), peer)) };
    let stream = tls.accept(stream).await.map_err(|error| {
        tracing::debug!(%error, %peer, "a TLS handshake failed");
        CloseReason::Tls
    })?;
    Ok((Stream::Tls(Box::new(stream)), peer))
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shared: &Shared,
    caller: Caller<'_>,
) {
    let service = service_fn(|request| answer(shared, caller, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // A sender that has nothing more to say still wants its answer.
        .half_close(true)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // Mostly it is the connection that has something to do.
        biased;
        ended = &mut connection => ended,
        reason = caller.activity.evicted() => return metrics::ended(reason),
        () = shutdown_grace(shared.stop.clone()) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        if let Some(reason) = reason(&error) {
            metrics::ended(reason);
        }
        tracing::debug!(%error, peer = %caller.peer, "a connection ended early");
    }
}

/// Completes a moment after the order to stop.
async fn shutdown_grace(stop: CancellationToken) {
    stop.cancelled().await;
    sleep(SHUTDOWN_GRACE).await;
}

/// Which of the limits ended a connection; `None` when it was the other side.
fn reason(error: &hyper::Error) -> Option<CloseReason> {
    if error.is_timeout() {
        Some(CloseReason::HeaderTimeout)
    } else if error.is_parse_too_large() {
        Some(CloseReason::HeaderTooLarge)
    } else if error.is_parse() {
        Some(CloseReason::HeaderMalformed)
    } else {
        None
    }
}
