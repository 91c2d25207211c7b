//! Why a request is not answered 200: the one table of reasons, statuses and messages.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use crate::callback::CallbackError;
use crate::wal::AppendError;

/// `Retry-After` of a 503, in seconds: a full inbox or a short stall of the disk is over by then.
const RETRY_AFTER_SECONDS: &str = "10";

/// Why a request is not answered 200. Messages go to the sender; none contains a part of the
/// configured path, which may be secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    #[error("callbacks are sent with POST")]
    Method,
    /// A POST to another path: probably a wrong callback URL.
    #[error("callbacks are not accepted at this path (http.path)")]
    Path,
    /// Another method on another path: scanners, and health checks of the wrong path.
    #[error(
        "nothing is here; callbacks are sent with POST to http.path, health checks ask /readyz"
    )]
    NotFound,
    #[error("callbacks are not accepted from this address (access.allow)")]
    Address,
    #[error("the header X-Livebridge-Secret is missing or wrong (access.secret)")]
    Secret,
    #[error("the body is compressed (Content-Encoding); send it as it is")]
    ContentEncoding,
    #[error("the body is larger than {max} bytes")]
    TooLarge { max: usize },
    #[error("the body did not arrive whole")]
    BodyIncomplete,
    #[error("too much is being received at once")]
    Overloaded,
    #[error("the log did not answer in time")]
    Deadline,
    #[error(transparent)]
    Callback(#[from] CallbackError),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Reasons of requests that never reach the parser.
const REQUEST_REASONS: [&str; 10] = [
    "method",
    "path",
    "not_found",
    "address",
    "secret",
    "content_encoding",
    "too_large",
    "body_incomplete",
    "overloaded",
    "deadline",
];
const APPEND_ERRORS: [AppendError; 4] =
    [AppendError::Busy, AppendError::LogFull, AppendError::DiskFull, AppendError::Failed];

/// Every value of [`Rejection::reason`].
pub(super) fn reasons() -> impl Iterator<Item = &'static str> {
    let append = APPEND_ERRORS.into_iter().map(AppendError::reason);
    REQUEST_REASONS.into_iter().chain(append).chain(CallbackError::REASONS)
}

impl Rejection {
    /// The status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Path | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Address | Self::Secret => StatusCode::FORBIDDEN,
            Self::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyIncomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded | Self::Deadline | Self::Append(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Callback(error) if error.is_authentication() => StatusCode::UNAUTHORIZED,
            Self::Callback(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The label in metrics and log lines.
    pub(super) fn reason(&self) -> &'static str {
        let [
            method,
            path,
            not_found,
            address,
            secret,
            encoding,
            large,
            incomplete,
            overloaded,
            deadline,
        ] = REQUEST_REASONS;
        match self {
            Self::Method => method,
            Self::Path => path,
            Self::NotFound => not_found,
            Self::Address => address,
            Self::Secret => secret,
            Self::ContentEncoding => encoding,
            Self::TooLarge { .. } => large,
            Self::BodyIncomplete => incomplete,
            Self::Overloaded => overloaded,
            Self::Deadline => deadline,
            Self::Callback(error) => error.reason(),
            Self::Append(error) => error.reason(),
        }
    }

    /// Whether the body was not read to its end: the connection cannot be used again.
    pub(super) fn leaves_body_unread(&self) -> bool {
        !matches!(self, Self::Deadline | Self::Callback(_) | Self::Append(_))
    }

    /// The answer.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let status = self.status();
        let text = serde_json::json!({ "code": status.as_u16(), "message": self.to_string() });
        let mut response = response(status, Bytes::from(text.to_string()));
        let headers = response.headers_mut();
        let mut insert = |name, value| headers.insert(name, HeaderValue::from_static(value));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                insert(header::ALLOW, "POST");
            }
            // RFC 7694: which codings are accepted.
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                insert(header::ACCEPT_ENCODING, "identity");
            }
            _ => {}
        }
        if self.leaves_body_unread() {
            insert(header::CONNECTION, "close");
        }
        response
    }
}

/// A response with a JSON body.
pub(super) fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    set_content_type(&mut response);
    response
}

/// Says that the body is JSON.
pub(super) fn set_content_type(response: &mut Response<Full<Bytes>>) {
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
}
