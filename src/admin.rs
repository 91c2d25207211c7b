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
use crate::wal::Probe;

/// Where operators look.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The address to listen on; loopback unless told otherwise.
    pub listen: SocketAddr,
}

/// Connections at once: a few scrapers and a few people.
const CONNECTIONS_MAX: usize = 64;
/// Idle connections, and headers that do not come, are given up after this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often histograms are folded; each keeps every sample until then.
const UPKEEP: Duration = Duration::from_secs(1);

/// What the answers are made of.
struct Shared {
    exporter: Exporter,
    probe: Probe,
    stop: CancellationToken,
}

/// Answers until `stop`.
pub async fn run(listener: TcpListener, exporter: Exporter, probe: Probe, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shared = Arc::new(Shared { exporter, probe, stop: stop.clone() });
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

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
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
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
