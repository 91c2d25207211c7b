//! The second listener, for operators and their tools: a status page, `/metrics`, `/healthz`,
//! `/readyz`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::Timestamp;
use crate::health::Health;
use crate::log_limit::LogLimiter;
use crate::logging;
use crate::metrics::{self, CloseReason, Exporter};
use crate::proxy_protocol;
use crate::reloadable::Reloadable;
use crate::secret::Secret;
use crate::wal::Probe;

mod findings;
mod status;

use status::History;

/// The address of the admin listener, and the token that protects it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; loopback by default.
    pub listen: SocketAddr,
    /// The token that `Authorization: Bearer` must carry, except for health checks.
    pub token: Option<Secret>,
}

/// Open connections: a few scrapers and a few people. One more closes the oldest.
const CONNECTIONS_MAX: usize = 64;
/// From a connection's opening, or its last request, to the end of the next header: the limit for
/// clients that send nothing or do not read the answer.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// The pause after a connection could not be accepted: it stays in the queue, so that the next
/// attempt would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval between two checks for dropped log lines.
const DROPPED_LINES_INTERVAL: Duration = Duration::from_secs(1);
/// Paths without a token: health checks, and the page, which gets its data from `/status`.
const OPEN: [&str; 3] = ["/", "/healthz", "/readyz"];
/// The status page, with its style and script.
const PAGE: &str = include_str!("admin/page.html");
/// The placeholder in the page for the nonce, which allows only the page's own style and script.
const NONCE: &str = "NONCE";

/// What every connection shares.
struct AdminContext {
    token: Option<Secret>,
    exporter: Exporter,
    probe: Probe,
    health: Health,
    settings: Reloadable<Value>,
    started_at: Timestamp,
    history: Mutex<History>,
    stop: CancellationToken,
}

impl AdminContext {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until `stop`. The page shows `settings`, which contain no secrets.
pub(crate) async fn run(
    listener: TcpListener,
    token: Option<Secret>,
    exporter: Exporter,
    probe: Probe,
    health: Health,
    settings: Reloadable<Value>,
    stop: CancellationToken,
) {
    // The oldest first.
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    let shared = Arc::new(AdminContext {
        token,
        exporter,
        probe,
        health,
        settings,
        // The process's own start is that of `cargo`, if that replaced itself with it.
        started_at: Timestamp::now(),
        history: Mutex::default(),
        stop: stop.clone(),
    });
    let mut dropped_checks = tokio::time::interval(DROPPED_LINES_INTERVAL);
    let mut dropped_lines = DroppedLines::default();
    let mut sampling = tokio::time::interval(Duration::from_secs(status::SAMPLE_SECONDS));
    sampling.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // At once, so that the first answer has a sample.
    shared.history().sample(&shared.exporter);
    sampling.reset();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = dropped_checks.tick() => dropped_lines.report(),
            _ = sampling.tick() => shared.history().sample(&shared.exporter),
            accepted = listener.accept() => {
                connections.retain(|connection| !connection.is_finished());
                let (stream, _) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        report_accept_error(&error);
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                // Clients that do not read must not block health checks.
                if connections.len() >= CONNECTIONS_MAX
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                    metrics::admin_ended(CloseReason::Evicted);
                }
                let shared = Arc::clone(&shared);
                connections.push_back(tokio::spawn(async move { serve(stream, &shared).await }));
            }
        }
    }
}

fn report_accept_error(error: &io::Error) {
    static LIMIT: LogLimiter = LogLimiter::new();
    if let Some(suppressed) = LIMIT.permit() {
        tracing::warn!(%error, suppressed, "the admin listener cannot accept a connection; trying again");
    }
}

/// The number of dropped log lines that were reported.
#[derive(Default)]
struct DroppedLines {
    reported: u64,
}

impl DroppedLines {
    fn report(&mut self) {
        static LIMIT: LogLimiter = LogLimiter::new();
        let dropped = logging::dropped_lines();
        metrics::log_lines_dropped(dropped);
        if dropped > self.reported && LIMIT.permit().is_some() {
            let lines = dropped - std::mem::replace(&mut self.reported, dropped);
            tracing::warn!(lines, "log lines were dropped: standard error is not read fast enough");
        }
    }
}

async fn serve(mut stream: TcpStream, shared: &AdminContext) {
    // Balancers that send PROXY headers to the intake send them with health checks of any port.
    match timeout(IDLE_MAX, proxy_protocol::skip(&mut stream)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return tracing::debug!(%error, "an admin connection ended early"),
        Err(_) => return metrics::admin_ended(CloseReason::IdleTimeout),
    }
    let requested = Notify::new();
    let service = service_fn(async |request| {
        requested.notify_one();
        Ok::<_, Infallible>(answer(shared, &request))
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let idle = async { while timeout(IDLE_MAX, requested.notified()).await.is_ok() {} };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "an admin connection ended early");
            }
        }
        () = idle => metrics::admin_ended(CloseReason::IdleTimeout),
        () = shared.stop.cancelled() => {}
    }
}

/// Whether the request carries the token, or none is configured.
fn is_operator(shared: &AdminContext, request: &Request<Incoming>) -> bool {
    let presented = || {
        let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
    };
    shared.token.as_ref().is_none_or(|token| presented().is_some_and(|other| token.is(other)))
}

/// The `Host` of the request, unless it is an IP address or a name without dots. Rejecting it
/// blocks DNS rebinding: a web page could let its own domain resolve to this listener, and then
/// read every answer through the browser of an operator.
fn rebindable_host(request: &Request<Incoming>) -> Option<&str> {
    let hosts = request.headers().get_all(header::HOST).iter();
    hosts.map(|host| host.to_str().unwrap_or("?.")).find(|host| {
        let Ok(authority) = host.parse::<Authority>() else { return true };
        let name = authority.host();
        name.contains('.') && name.parse::<Ipv4Addr>().is_err()
    })
}

const TEXT: &str = "text/plain; charset=utf-8";

/// The status, content type and body of the answer to `request`.
fn route(
    shared: &AdminContext,
    request: &Request<Incoming>,
    nonce: &str,
) -> (StatusCode, &'static str, String) {
    // With a token, a page in an operator's browser cannot read anything.
    let rebindable = rebindable_host(request).filter(|_| shared.token.is_none());
    match (request.method(), request.uri().path()) {
        (_, path) if !OPEN.contains(&path) && !is_operator(shared, request) => {
            let text = "this needs the header Authorization: Bearer and the token of admin.token\n";
            (StatusCode::UNAUTHORIZED, TEXT, text.to_owned())
        }
        (_, "/" | "/status") if let Some(host) = rebindable => {
            let text = format!(
                "without admin.token, this is served only if Host is an IP address or a name \
                 without dots, not {host} (protection against DNS rebinding); set admin.token, or \
                 use the IP address or localhost\n"
            );
            (StatusCode::MISDIRECTED_REQUEST, TEXT, text)
        }
        (&Method::GET | &Method::HEAD, "/") => {
            (StatusCode::OK, "text/html; charset=utf-8", PAGE.replace(NONCE, nonce))
        }
        (&Method::GET | &Method::HEAD, "/status") => {
            let query = request.uri().query().unwrap_or_default();
            let after = query.split('&').find_map(|part| part.strip_prefix("after="));
            let Ok(after) = after.map_or(Ok(0), str::parse) else {
                let text = "after must be a time in milliseconds since 1970\n";
                return (StatusCode::BAD_REQUEST, TEXT, text.to_owned());
            };
            (StatusCode::OK, "application/json", status::status(shared, after))
        }
        (&Method::GET | &Method::HEAD, "/metrics") => {
            // The log updates its metrics only ten times a second.
            shared.probe.update_metrics();
            metrics::log_lines_dropped(logging::dropped_lines());
            (StatusCode::OK, "text/plain; version=0.0.4", shared.exporter.render())
        }
        (&Method::GET | &Method::HEAD, "/healthz") => match shared.health.stuck() {
            None => (StatusCode::OK, TEXT, "alive\n".to_owned()),
            Some(what) => {
                (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{what} makes no progress\n"))
            }
        },
        // Independent of Kafka: callbacks are accepted without it.
        (&Method::GET | &Method::HEAD, "/readyz") => match shared.health.ready() {
            Ok(()) => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            Err(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n"))
            }
        },
        (_, "/" | "/status" | "/metrics" | "/healthz" | "/readyz") => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n".to_owned())
        }
        _ => (
            StatusCode::NOT_FOUND,
            TEXT,
            "not found; use /, /status, /metrics, /healthz or /readyz\n".to_owned(),
        ),
    }
}

fn answer(shared: &AdminContext, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let nonce = Uuid::new_v4().simple().to_string();
    let (status, kind, text) = route(shared, request, &nonce);
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
    set_security_headers(headers, &nonce);
    response
}

/// Sets the headers by which a browser runs only the page's own style and script, and connects only
/// to this listener.
fn set_security_headers(headers: &mut HeaderMap, nonce: &str) {
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
