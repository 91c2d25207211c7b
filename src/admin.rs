//! The second listener, for operators and their tools: `/metrics`, `/healthz`, `/readyz`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Exporter;
use crate::secret::Secret;
use crate::wal::Probe;

/// Where operators look.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; loopback unless told otherwise.
    pub listen: SocketAddr,
    /// What `Authorization: Bearer` must say for all but the health checks.
    pub token: Option<Secret>,
}

/// Connections at once: a few scrapers and a few people.
const CONNECTIONS_MAX: usize = 64;
/// Idle connections, and headers that do not come, are given up after this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often histograms are folded; each keeps every sample until then.
const UPKEEP: Duration = Duration::from_secs(1);

/// What the answers are made of.
struct Shared {
    token: Option<Secret>,
    exporter: Exporter,
    probe: Probe,
    stop: CancellationToken,
}

/// Answers until `stop`.
pub async fn run(
    listener: TcpListener,
    token: Option<Secret>,
    exporter: Exporter,
    probe: Probe,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shared = Arc::new(Shared { token, exporter, probe, stop: stop.clone() });
    let mut upkeep = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = upkeep.tick() => shared.exporter.upkeep(),
            accepted = listener.accept() => {
                // Over the limit the connection is closed at once.
                if let (Ok((stream, _)), Ok(permit)) =
                    (accepted, Arc::clone(&connections).try_acquire_owned())
                {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        serve(stream, &shared).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: &Shared) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(async |request| Ok::<_, Infallible>(answer(shared, &request))),
        );
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "an admin connection ended early");
            }
        }
        () = shared.stop.cancelled() => {}
    }
}

/// Whether whoever asks may know, and do, everything. Whoever only checks the health need not be.
fn is_operator(shared: &Shared, request: &Request<Incoming>) -> bool {
    let said = || {
        let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
    };
    shared.token.as_ref().is_none_or(|token| said().is_some_and(|said| token.is(said)))
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (_, path) if !["/healthz", "/readyz"].contains(&path) && !is_operator(shared, request) => {
            let text = "this needs the header Authorization: Bearer and the token of admin.token\n";
            (StatusCode::UNAUTHORIZED, "text/plain", text.to_owned())
        }
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4", shared.exporter.render())
        }
        (&Method::GET | &Method::HEAD, "/healthz") => {
            (StatusCode::OK, "text/plain", "alive\n".to_owned())
        }
        // Not about Kafka: without it callbacks are taken all the same.
        (&Method::GET | &Method::HEAD, "/readyz") => match shared.probe.ready() {
            Ok(()) => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Err(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("not ready: {reason}\n"))
            }
        },
        (_, "/metrics" | "/healthz" | "/readyz") => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "use GET\n".to_owned())
        }
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "here are /metrics, /healthz and /readyz\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
