//! The servers that livebridge is compared with: plain hyper, hyper with a raw log, hyper with
//! Kafka.
//!
//! All three read the whole body and respond `{"code":0}`; they differ in what they do in between.
//! None parses or verifies anything, so each is an upper bound and not a substitute.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rdkafka::ClientConfig;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::AsyncRuntime;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::{Fallible, kafka};

/// The backlog of the listening socket.
const BACKLOG: i32 = 4096;

/// Bodies queued for the raw log's writer: more than there are connections, so no sender blocks.
const INBOX_MAX: usize = 8192;

/// How a server distributes its work over the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Shape {
    /// One work-stealing runtime with a thread per core.
    MultiThread,
    /// A single-threaded runtime per core, each with its own listener on the same port.
    PerCore,
}

/// What a baseline does with a body before it responds.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Bare,
    RawLog { file: PathBuf },
    DirectKafka { brokers: String },
}

#[derive(Clone)]
enum Backend {
    Bare,
    RawLog(mpsc::Sender<Append>),
    DirectKafka(FutureProducer<DefaultClientContext, OnTokio>),
}

struct Append {
    body: Bytes,
    durable: oneshot::Sender<()>,
}

/// Starts a baseline on a free port of the loopback address and keeps it running.
pub(crate) fn start(kind: &Kind, shape: Shape) -> Fallible<SocketAddr> {
    let backend = match kind {
        Kind::Bare => Backend::Bare,
        Kind::RawLog { file } => Backend::RawLog(start_log(file)?),
        Kind::DirectKafka { brokers } => Backend::DirectKafka(producer(brokers)?),
    };
    let first = listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = first.local_addr()?;
    let cores = thread::available_parallelism()?.get();
    match shape {
        Shape::MultiThread => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            start_runtime(runtime, first, backend);
        }
        Shape::PerCore => {
            let mut listeners = vec![first];
            for _ in 1..cores {
                listeners.push(listener(address)?);
            }
            for listener in listeners {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                start_runtime(runtime, listener, backend.clone());
            }
        }
    }
    Ok(address)
}

fn listener(address: SocketAddr) -> Fallible<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn start_runtime(runtime: Runtime, listener: std::net::TcpListener, backend: Backend) {
    thread::spawn(move || {
        // With a handle of the runtime, accepting also runs on its workers.
        let accepting = runtime.spawn(accept(listener, backend));
        if let Ok(Err(cause)) = runtime.block_on(accepting) {
            eprintln!("accepting ended: {cause}");
        }
    });
}

async fn accept(listener: std::net::TcpListener, backend: Backend) -> Fallible<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let backend = backend.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(backend.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // A disconnecting client is the normal end here.
            let _ = connection.await;
        });
    }
}

async fn answer(
    backend: Backend,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let stored = match read_body(request.into_body()).await {
        Ok(body) => store(&backend, body).await,
        Err(cause) => Err(cause.into()),
    };
    let (status, text) = match stored {
        Ok(()) => (StatusCode::OK, "{\"code\":0}"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "{\"code\":503}"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A body in one frame, the usual case, is used without a copy.
async fn read_body(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.is_empty() {
            whole = data;
        } else {
            let mut joined = BytesMut::from(whole);
            joined.extend_from_slice(&data);
            whole = joined.freeze();
        }
    }
    Ok(whole)
}

async fn store(backend: &Backend, body: Bytes) -> Fallible<()> {
    match backend {
        Backend::Bare => {}
        Backend::RawLog(log) => {
            let (durable, done) = oneshot::channel();
            log.send(Append { body, durable }).await?;
            done.await?;
        }
        Backend::DirectKafka(producer) => {
            let record = FutureRecord::<(), [u8]>::to(kafka::PUSH_TOPIC).payload(&body);
            producer.send(record, Duration::from_secs(5)).await.map_err(|(cause, _)| cause)?;
        }
    }
    Ok(())
}

/// The raw log: one thread takes all bodies queued during the last sync, appends them to a growing
/// file, syncs the data and sends all responses.
fn start_log(path: &Path) -> Fallible<mpsc::Sender<Append>> {
    let mut file = File::create(path)?;
    let (sender, mut inbox) = mpsc::channel::<Append>(INBOX_MAX);
    thread::spawn(move || {
        let mut group = Vec::new();
        let mut bytes = Vec::new();
        while let Some(first) = inbox.blocking_recv() {
            group.push(first);
            while let Ok(next) = inbox.try_recv() {
                group.push(next);
            }
            bytes.clear();
            for append in &group {
                bytes.extend_from_slice(&append.body.len().to_le_bytes());
                bytes.extend_from_slice(&append.body);
            }
            if let Err(cause) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
                eprintln!("the raw log failed: {cause}");
                std::process::exit(1);
            }
            for append in group.drain(..) {
                // Its client may have disconnected.
                let _ = append.durable.send(());
            }
        }
    });
    Ok(sender)
}

/// The typical settings of a handler without a log: acknowledged by all replicas, without linger
/// time.
fn producer(brokers: &str) -> Fallible<FutureProducer<DefaultClientContext, OnTokio>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("linger.ms", "0")
        .create()?)
}

/// Lets the producer's futures sleep on tokio.
struct OnTokio;

impl AsyncRuntime for OnTokio {
    type Delay = tokio::time::Sleep;

    fn spawn<T>(task: T)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(task);
    }

    fn delay_for(duration: Duration) -> Self::Delay {
        tokio::time::sleep(duration)
    }
}
