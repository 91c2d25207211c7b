//! A sender like Tencent's: posts callbacks, and retries until it is answered exactly 200.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::authorities;

/// The retries of a callback that is not answered 200.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: u32,
    /// The pause before each of them.
    pub interval: Duration,
}

/// The result of one callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryOutcome {
    /// The status of the last answer; `None` without an answer.
    pub status: Option<StatusCode>,
    /// Its body, or why there is none.
    pub answer: String,
    /// The number of attempts.
    pub tries: u32,
    /// The duration of the last attempt.
    pub elapsed: Duration,
}

/// Why a URL cannot be sent to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is none.
    #[error("{0:?} is not a URL such as http://127.0.0.1:8080/callback or https://HOST/callback")]
    Invalid(String),
    /// There is no TLS.
    #[error("cannot use https: {0}")]
    Tls(String),
}

/// Tencent treats a call as failed after this time.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// Verifies certificates with the system's authorities.
static TLS: LazyLock<Result<Arc<ClientConfig>, UrlError>> = LazyLock::new(|| {
    let found = authorities::load().map_err(|cause| UrlError::Tls(cause.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|cause| UrlError::Tls(cause.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
});

/// One sender with one connection, opened when needed.
#[derive(Debug)]
pub struct Sender {
    authority: String,
    path: String,
    /// For https.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Sender {
    /// Sends to `url`.
    ///
    /// # Errors
    /// [`UrlError`]
    pub fn new(url: &str) -> Result<Self, UrlError> {
        let error = || UrlError::Invalid(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| error())?;
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(error());
        };
        let (port, tls) = match scheme {
            "http" => (80, None),
            "https" => {
                let name = host.trim_matches(['[', ']']).to_owned();
                (443, Some((TLS.clone()?, ServerName::try_from(name).map_err(|_| error())?)))
            }
            _ => return Err(error()),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            authority: format!("{host}:{}", uri.port_u16().unwrap_or(port)),
            path: path.to_owned(),
            tls,
            connection: None,
        })
    }

    /// Posts `body` until it is answered 200 or the policy is exhausted. `sign_anew` makes the body
    /// of each further try.
    pub async fn send(
        &mut self,
        body: String,
        policy: RetryPolicy,
        mut sign_anew: impl FnMut() -> String,
    ) -> DeliveryOutcome {
        let mut body = body;
        let mut tries = 1;
        loop {
            let started = Instant::now();
            let answer = tokio::time::timeout(TIMEOUT, self.post(body)).await;
            let elapsed = started.elapsed();
            let (status, answer) = match answer {
                Ok(Ok((status, answer))) => (Some(status), answer),
                Ok(Err(cause)) => (None, cause.to_string()),
                Err(_) => (None, format!("no answer within {}s", TIMEOUT.as_secs())),
            };
            if status != Some(StatusCode::OK) {
                self.connection = None;
            }
            if status == Some(StatusCode::OK) || tries > policy.retries {
                return DeliveryOutcome { status, answer, tries, elapsed };
            }
            tokio::time::sleep(policy.interval).await;
            tries += 1;
            body = sign_anew();
        }
    }

    async fn post(&mut self, body: String) -> Result<(StatusCode, String), PostError> {
        let request = Request::post(&self.path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let mut connection = match self.connection.take().filter(|open| !open.is_closed()) {
            Some(mut open) => {
                open.ready().await?;
                open
            }
            None => self.connect().await?,
        };
        let response = connection.send_request(request).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let answer = answer.map_err(PostError::Answer)?.to_bytes();
        self.connection = Some(connection);
        Ok((status, String::from_utf8_lossy(&answer).into_owned()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, PostError> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => open(stream).await,
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                open(connector.connect(name.clone(), stream).await?).await
            }
        }
    }
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, PostError> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its error shows in the request's answer.
    tokio::spawn(connection);
    Ok(sender)
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("cannot make the request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("cannot read the answer: {0}")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}
