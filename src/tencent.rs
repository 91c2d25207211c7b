//! Tencent Cloud's API 3.0 for Cloud Live: the client, and the actions that livebridge calls.
//!
//! The running bridge never calls it, and needs no credentials: the commands `tencent`, `recover`
//! and `check` do. docs/tencent.md lists the facts of the API on which this module relies.

mod action;
mod callbacks;
mod credentials;
mod endpoint;
mod error;
mod history;
mod request_signature;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_rustls::rustls::crypto::ring;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy, ProxyProtocol};

pub use action::Action;
pub use callbacks::{
    CallbackRule, CallbackTemplate, PushDomain, TemplateKey, TemplateUrl, UrlKind,
};
pub use credentials::{Credentials, CredentialsError};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Reason, TencentError};
pub use history::{
    CallbackRecord, Page, RECORDS_SPAN_MAX, STREAM_EVENTS_REACHABLE, StreamEvent, utc_time,
};

use crate::authorities::{self, NoAuthorities};
use crate::backoff::Backoff;
use crate::event::Timestamp;
use crate::secret;
use action::RateLimits;

/// The service in the signature, and the version of its actions.
const SERVICE: &str = "live";
const VERSION: &str = "2018-08-01";

/// The default of [`Options::timeout`]: the API answers within a second, and a page of callback
/// records within a few.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The default of [`Options::pause`]. The pauses before the five retries of a rate limit, which is
/// counted by the second, are 8 s in all.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause: the last of these five.
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// The largest answer that is read: a page of a hundred callback records of 60 KiB each.
const ANSWER_MAX: u64 = 8 * 1024 * 1024;
/// The longest text of an answer that an error repeats.
const SHOWN_MAX: usize = 300;
/// The proxy variables; the first that is set takes effect. `NO_PROXY` names the exceptions.
const PROXY_VARIABLES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// How the client connects.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address of the API.
    pub endpoint: Endpoint,
    /// Time for one request, from the name lookup to the last byte of the answer.
    pub timeout: Duration,
    /// The pause before the first retry; each further one is twice as long.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { endpoint: Endpoint::default(), timeout: TIMEOUT, pause: PAUSE }
    }
}

/// Why the client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server can be verified.
    #[error(transparent)]
    NoAuthorities(#[from] NoAuthorities),
    /// A proxy variable has a value that is no URL of a proxy.
    #[error(
        "none of the proxy variables ({}) has the URL of a proxy such as http://proxy:3128; SOCKS is \
         not supported",
        .0.join(", ")
    )]
    Proxy(Vec<&'static str>),
}

/// Calls the API: each request signed, limited to the rate of its action, and sent again where that
/// is safe. May be shared between threads; calls block.
pub struct Client {
    agent: Agent,
    credentials: Credentials,
    options: Options,
    limits: RateLimits,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The envelope of every answer, also of an error.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope<'a> {
    #[serde(borrow)]
    response: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResponseHeader {
    error: Option<ErrorBody>,
    #[serde(default)]
    request_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorBody {
    code: String,
    #[serde(default)]
    message: String,
}

impl Client {
    /// Reads the system's certificate authorities and the proxy variables; connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn new(credentials: Credentials, options: Options) -> Result<Self, ClientError> {
        let mut config = Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            // A redirect would carry the signature elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("livebridge/", env!("CARGO_PKG_VERSION")));
        config = if options.endpoint.is_plain() {
            // A proxy cannot reach this machine's loopback interface.
            config.proxy(None)
        } else {
            config.https_only(true).tls_config(tls()?).proxy(proxy()?)
        };
        Ok(Self {
            agent: config.build().into(),
            credentials,
            options,
            limits: RateLimits::default(),
        })
    }

    /// Calls `action` with `parameters`, and again after a pause where that is safe and may help.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn call<T: DeserializeOwned>(
        &self,
        action: Action,
        parameters: &impl Serialize,
    ) -> Result<T, TencentError> {
        let body = serde_json::to_vec(parameters).map_err(|cause| {
            self.not_the_api(action, 0, format!("cannot encode the request: {cause}"))
        })?;
        let mut backoff = Backoff::new(self.options.pause, PAUSE_MAX);
        for attempt in 0.. {
            thread::sleep(self.limits.take(action));
            let error = match self.send(action, &body) {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            if attempt >= error.retries(action) {
                return Err(error);
            }
            let pause = backoff.pause();
            tracing::debug!(%error, ?pause, "retrying");
            thread::sleep(pause);
        }
        unreachable!("the attempts are counted");
    }

    fn send<T: DeserializeOwned>(&self, action: Action, body: &[u8]) -> Result<T, TencentError> {
        let host = self.options.endpoint.authority();
        // Each attempt has a new signature: a signature is valid for five minutes.
        let timestamp = u64::try_from(Timestamp::now().as_millis() / 1000).unwrap_or(0);
        let authorization =
            request_signature::authorization(&self.credentials, SERVICE, host, timestamp, body);
        let mut request = self
            .agent
            .post(format!("{}/", self.options.endpoint))
            .header("Host", host)
            .header("Content-Type", request_signature::CONTENT_TYPE)
            .header("Authorization", authorization)
            .header("X-TC-Action", action.to_string())
            .header("X-TC-Version", VERSION)
            .header("X-TC-Timestamp", timestamp.to_string());
        if let Some(token) = self.credentials.token() {
            request = request.header("X-TC-Token", token);
        }
        let mut response = request.send(body).map_err(|cause| self.failed(action, cause))?;
        let status = response.status().as_u16();
        let answer = response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
        let answer = answer.map_err(|cause| self.failed(action, cause))?;
        self.read(action, status, &answer)
    }

    fn read<T: DeserializeOwned>(
        &self,
        action: Action,
        status: u16,
        answer: &[u8],
    ) -> Result<T, TencentError> {
        let envelope: Envelope<'_> = serde_json::from_slice(answer)
            .map_err(|_| self.not_the_api(action, status, shown(answer)))?;
        let text = envelope.response.get();
        let malformed = |cause: serde_json::Error| {
            self.not_the_api(action, status, format!("unexpected members: {cause}"))
        };
        let header: ResponseHeader = serde_json::from_str(text).map_err(malformed)?;
        if let Some(ErrorBody { code, message }) = header.error {
            let message = secret::redact(&message).into_owned();
            let reason = Reason::of(&code);
            let request_id = header.request_id;
            return Err(TencentError::Rejected { action, reason, code, message, request_id });
        }
        serde_json::from_str(text).map_err(malformed)
    }

    fn not_the_api(&self, action: Action, status: u16, problem: String) -> TencentError {
        let endpoint = self.options.endpoint.to_string();
        TencentError::NotTheApi { action, endpoint, status, problem }
    }

    fn failed(&self, action: Action, cause: ureq::Error) -> TencentError {
        let endpoint = self.options.endpoint.to_string();
        match cause {
            ureq::Error::Timeout(_) => {
                TencentError::TimedOut { action, endpoint, timeout: self.options.timeout }
            }
            cause => TencentError::Unreachable { action, endpoint, cause: Box::new(cause) },
        }
    }
}

/// The beginning of an answer, for an error that repeats it.
fn shown(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let text = secret::redact(text.trim());
    if text.is_empty() {
        return "it is empty".to_owned();
    }
    text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn tls() -> Result<TlsConfig, ClientError> {
    let certificates = authorities::load()?.certs;
    let roots: Vec<_> =
        certificates.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

/// The proxy of the environment. One that cannot be used is an error: requests must not bypass the
/// configured proxy.
fn proxy() -> Result<Option<Proxy>, ClientError> {
    let is_set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let set: Vec<&str> = PROXY_VARIABLES.into_iter().filter(is_set).collect();
    let is_usable =
        |proxy: &Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
    let proxy = Proxy::try_from_env().filter(is_usable);
    if proxy.is_none() && !set.is_empty() { Err(ClientError::Proxy(set)) } else { Ok(proxy) }
}
