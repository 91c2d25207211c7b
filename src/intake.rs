//! The intake: takes callbacks over HTTP, under limits, and answers 200 only for what is durable.
//!
//! One socket, one single-threaded runtime per core: connections stay on the core that they are
//! given to. The one table from errors to status is `Rejection::status`.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::callback::CallbackError;
use crate::heartbeat::{self, Heartbeat};
use crate::metrics::{self, RequestError};
use crate::recent;
use crate::record::{Timestamp, type_name};
use crate::reloadable::Reloadable;
use crate::wal::{AppendError, AppendHandle, Appender};

mod acceptor;
mod access;
mod admission;
mod connection;
mod policy;
mod proxy_protocol;
mod tls;

pub use access::{Access, Networks};
use admission::{Activity, ConnectionLimiter};
pub use policy::IntakePolicy;
pub use tls::{Tls, TlsError};

/// Where callbacks are taken, and how much of what.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The path of callbacks; anything below it is one too.
    pub path: String,
    /// The largest body, in bytes.
    pub max_body: usize,
    /// Open connections at once; further ones wait in the kernel.
    pub max_connections: usize,
    /// Those of them from one address; further ones are closed.
    pub max_connections_per_address: usize,
    /// The longest that a whole callback waits for the log.
    pub deadline: Duration,
    /// At an order to stop, how long callbacks are still taken, and only said not to be wanted.
    pub drain: Duration,
}

/// From the headers to the end of the body. Tencent gives up a call after 20 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of bodies that came in part and are waited for, whatever connections and their limits would
/// allow. Of each, [`BODY_BYTES_FREE`] do not count.
const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A body that is not longer always has its place, however many long ones are on their way: it is as
/// long as usual ones are, and takes no more than its connection does.
const BODY_BYTES_FREE: usize = 16 * 1024;
/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 4096;
/// After a refusal for lack of room, the sender may come back in so many seconds.
const RETRY_AFTER_SECONDS: &str = "10";

/// The bound socket.
#[derive(Debug)]
pub struct Listener(std::net::TcpListener);

impl Listener {
    /// Binds `address`. Nothing is accepted yet.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(socket.into()))
    }

    /// A socket that somebody else has bound.
    ///
    /// # Errors
    /// The operating system's.
    pub fn adopt(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The address bound, its port chosen if the configured one was 0.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// The running intake.
#[derive(Debug)]
pub struct Intake {
    threads: Vec<thread::JoinHandle<()>>,
    leaving: Arc<AtomicBool>,
    heartbeat: Heartbeat,
}

/// What every connection of a core needs.
struct Shared {
    config: Config,
    policy: Reloadable<IntakePolicy>,
    appends: AppendHandle,
    /// Of all cores.
    body_bytes: Arc<AtomicUsize>,
    /// Every answer is its connection's last.
    leaving: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Intake {
    /// Accepts connections until `stop`.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub fn start(
        listener: &Listener,
        config: &Config,
        policy: &Reloadable<IntakePolicy>,
        appender: &Appender,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let limiter =
            ConnectionLimiter::new(config.max_connections, config.max_connections_per_address);
        let body_bytes = Arc::new(AtomicUsize::new(0));
        let leaving = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let heartbeat = Heartbeat::new(cores);
        let (workers, new_connections): (Vec<_>, Vec<_>) =
            (0..cores).map(|_| acceptor::worker_channel()).unzip();
        let listener = listener.0.try_clone()?;
        let mut acceptor = Some(acceptor::accept(listener, limiter, workers, stop.clone()));
        let start = |(core, new_connections)| {
            let beats = beat(heartbeat.clone(), core);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let entered = runtime.enter();
            let appends = appender.handle();
            drop(entered);
            let shared = Arc::new(Shared {
                config: config.clone(),
                policy: policy.clone(),
                appends,
                body_bytes: Arc::clone(&body_bytes),
                leaving: Arc::clone(&leaving),
                // One of its own: every look at a token locks it.
                stop: stop.child_token(),
            });
            let acceptor = acceptor.take();
            thread::Builder::new().name(format!("intake-{core}")).spawn(move || {
                runtime.spawn(beats);
                acceptor.map(|acceptor| runtime.spawn(acceptor));
                runtime.block_on(acceptor::serve(new_connections, shared));
            })
        };
        let threads =
            new_connections.into_iter().enumerate().map(start).collect::<io::Result<_>>()?;
        Ok(Self { threads, leaving, heartbeat })
    }

    /// The beats of its threads.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// From now on every answer is its connection's last, so that who keeps connections open comes
    /// to know of the end before it is one.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Waits until every request is answered, after the order to stop.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an intake thread panicked");
            }
        }
    }
}

/// Beats as long as the thread's runtime gets to its tasks.
async fn beat(heartbeat: Heartbeat, thread: usize) {
    loop {
        heartbeat.beat(thread);
        tokio::time::sleep(heartbeat::INTERVAL).await;
    }
}

/// On whose behalf a request comes.
#[derive(Clone, Copy)]
struct Caller<'a> {
    /// The other end of the connection, or whom a proxy's header names.
    peer: IpAddr,
    activity: &'a Activity,
    /// The one that let the connection in.
    policy: &'a Arc<IntakePolicy>,
}

/// Why a request is not answered 200.
#[derive(Debug)]
enum Rejection {
    Request(RequestError),
    Callback(CallbackError),
    Append(AppendError),
}

impl Rejection {
    /// The table from errors to status.
    fn status(&self) -> StatusCode {
        match self {
            Self::Request(RequestError::Method) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Request(RequestError::Path) => StatusCode::NOT_FOUND,
            Self::Request(RequestError::Address | RequestError::Secret) => StatusCode::FORBIDDEN,
            Self::Request(RequestError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Request(RequestError::BodyIncomplete) => StatusCode::REQUEST_TIMEOUT,
            Self::Request(RequestError::Overloaded | RequestError::Deadline) | Self::Append(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Callback(error) if error.is_authentication() => StatusCode::UNAUTHORIZED,
            Self::Callback(_) => StatusCode::BAD_REQUEST,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Request(refusal) => refusal.reason(),
            Self::Callback(error) => error.reason(),
            Self::Append(error) => error.reason(),
        }
    }

    fn message(&self, config: &Config) -> String {
        match self {
            Self::Request(RequestError::Method) => "callbacks are sent with POST".to_owned(),
            // The path may have a secret part.
            Self::Request(RequestError::Path) => {
                "callbacks are not taken here (http.path)".to_owned()
            }
            Self::Request(RequestError::Address) => {
                "callbacks are not taken from this address (access.allow)".to_owned()
            }
            Self::Request(RequestError::Secret) => {
                "the header X-Livebridge-Secret is missing or wrong (access.secret)".to_owned()
            }
            Self::Request(RequestError::TooLarge) => {
                format!("the body is larger than {} bytes", config.max_body)
            }
            Self::Request(RequestError::BodyIncomplete) => {
                "the body did not arrive whole".to_owned()
            }
            Self::Request(RequestError::Overloaded) => {
                "too much is being received at once".to_owned()
            }
            Self::Request(RequestError::Deadline) => "the log did not answer in time".to_owned(),
            Self::Callback(error) => error.to_string(),
            Self::Append(error) => error.to_string(),
        }
    }

    /// Whether the rest of the connection is of no use: its body was not read to the end.
    fn closes(&self) -> bool {
        matches!(self, Self::Request(refusal) if *refusal != RequestError::Deadline)
    }
}

impl From<RequestError> for Rejection {
    fn from(refusal: RequestError) -> Self {
        Self::Request(refusal)
    }
}

impl From<CallbackError> for Rejection {
    fn from(error: CallbackError) -> Self {
        Self::Callback(error)
    }
}

async fn answer(
    shared: &Shared,
    caller: Caller<'_>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let started = Instant::now();
    let mut response = match receive(shared, caller, request).await {
        Ok(type_name) => {
            metrics::accepted(type_name, started.elapsed());
            response(StatusCode::OK, Bytes::from_static(br#"{"code":0}"#))
        }
        Err(rejection) => {
            let (status, reason) = (rejection.status().as_u16(), rejection.reason());
            metrics::refused(reason);
            recent::refused(status, reason, || rejection.message(&shared.config));
            refuse(&rejection, &shared.config)
        }
    };
    let last = caller.activity.record_response(response.status() == StatusCode::OK);
    if let Some(reason) = last {
        metrics::ended(reason);
    }
    // What was found out when it connected may not be what the gate asks now.
    let outdated = !shared.policy.is(caller.policy);
    if last.is_some() || outdated || shared.leaving.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Takes one callback and returns its type's name once it is durable (I1).
async fn receive(
    shared: &Shared,
    caller: Caller<'_>,
    request: Request<Incoming>,
) -> Result<&'static str, Rejection> {
    let config = &shared.config;
    shared.policy.get().check_request(caller.peer, request.headers())?;
    let below = request.uri().path().strip_prefix(&*config.path);
    if !below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Err(RequestError::Path.into());
    }
    if request.method() != Method::POST {
        return Err(RequestError::Method.into());
    }
    let body = match timeout(BODY_TIMEOUT, read_body(shared, request.into_body())).await {
        Ok(body) => body?,
        Err(_) => return Err(RequestError::BodyIncomplete.into()),
    };
    caller.activity.begin_request();
    let received_at = Timestamp::now();
    let record = shared.policy.get().verify(&body, received_at)?;
    let type_name = type_name(record.event_type);
    let noted = recent::due(&record);
    match timeout(config.deadline, shared.appends.append(record)).await {
        Ok(Ok(_)) => {
            if let Some(noted) = noted {
                noted.accepted();
            }
            Ok(type_name)
        }
        Ok(Err(error)) => Err(Rejection::Append(error)),
        // The record may still become durable; the sender's retry is then absorbed.
        Err(_) => Err(RequestError::Deadline.into()),
    }
}

/// The whole body, within the limits for one and for all.
async fn read_body(shared: &Shared, mut body: Incoming) -> Result<Bytes, RequestError> {
    let max = shared.config.max_body;
    if body.size_hint().lower() > max as u64 {
        return Err(RequestError::TooLarge);
    }
    let mut whole = BytesMut::new();
    let mut reservation = BodyReservation { total: &shared.body_bytes, bytes: 0 };
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| RequestError::BodyIncomplete)?.into_data() else {
            continue;
        };
        if whole.len() + data.len() > max {
            return Err(RequestError::TooLarge);
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
        if !reservation.grow_to(whole.len().saturating_sub(BODY_BYTES_FREE)) {
            return Err(RequestError::Overloaded);
        }
    }
    Ok(whole.freeze())
}

/// A share of [`BODIES_BYTES_MAX`], given back on drop. It is taken as bytes arrive: what a sender
/// only says it will send holds up nobody.
struct BodyReservation<'a> {
    total: &'a AtomicUsize,
    bytes: usize,
}

impl BodyReservation<'_> {
    /// Whether there was room for so many.
    fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes - std::mem::replace(&mut self.bytes, bytes);
        more == 0 || self.total.fetch_add(more, Ordering::Relaxed) + more <= BODIES_BYTES_MAX
    }
}

impl Drop for BodyReservation<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn refuse(rejection: &Rejection, config: &Config) -> Response<Full<Bytes>> {
    let status = rejection.status();
    let text = serde_json::json!({
        "code": status.as_u16(),
        "message": rejection.message(config),
    });
    let mut response = response(status, Bytes::from(text.to_string()));
    let headers = response.headers_mut();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    if rejection.closes() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
