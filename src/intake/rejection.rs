//! The table of rejections: reasons, statuses and messages of requests that are not answered 200.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::PARTIAL_BODIES_BYTES_MAX;
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
        "not found; callbacks are sent with POST to http.path, health checks with GET to /readyz"
    )]
    NotFound,
    #[error("callbacks are not accepted from this address (access.allow)")]
    Address,
    #[error("the header X-Livebridge-Secret is missing or wrong (access.secret)")]
    Secret,
    #[error("the body is compressed (Content-Encoding); send it uncompressed")]
    ContentEncoding,
    #[error("the body is larger than {max} bytes")]
    TooLarge { max: usize },
    #[error("the body did not arrive completely")]
    BodyIncomplete,
    #[error(
        "the limit of {} MiB for partly received bodies is reached",
        PARTIAL_BODIES_BYTES_MAX >> 20
    )]
    Overloaded,
    #[error("the log did not answer in time")]
    Deadline,
    #[error(transparent)]
    Callback(#[from] CallbackError),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Every value of [`Rejection::reason`].
pub(super) fn reasons() -> impl Iterator<Item = &'static str> {
    REQUEST_REASONS.into_iter().chain(AppendError::REASONS).chain(CallbackError::REASONS)
}

/// Reasons of requests that are not rejected by the parser or the log.
const REQUEST_REASONS: [&str; 10] = [
    "method", "path", "not_found", "address", "secret", "content_encoding", "too_large",
    "body_incomplete", "overloaded", "deadline",
];

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
        match self {
            Self::Method => "method",
            Self::Path => "path",
            Self::NotFound => "not_found",
            Self::Address => "address",
            Self::Secret => "secret",
            Self::ContentEncoding => "content_encoding",
            Self::TooLarge { .. } => "too_large",
            Self::BodyIncomplete => "body_incomplete",
            Self::Overloaded => "overloaded",
            Self::Deadline => "deadline",
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

/// Declares the body as JSON.
pub(super) fn set_content_type(response: &mut Response<Full<Bytes>>) {
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    /// The variant after `rejection`: without a case here, a new variant does not compile.
    fn next(rejection: &Rejection) -> Option<Rejection> {
        Some(match rejection {
            Rejection::Method => Rejection::Path,
            Rejection::Path => Rejection::NotFound,
            Rejection::NotFound => Rejection::Address,
            Rejection::Address => Rejection::Secret,
            Rejection::Secret => Rejection::ContentEncoding,
            Rejection::ContentEncoding => Rejection::TooLarge { max: 1 },
            Rejection::TooLarge { .. } => Rejection::BodyIncomplete,
            Rejection::BodyIncomplete => Rejection::Overloaded,
            Rejection::Overloaded => Rejection::Deadline,
            Rejection::Deadline => AppendError::Busy.into(),
            Rejection::Append(error) => match error {
                AppendError::Busy => AppendError::LogFull.into(),
                AppendError::LogFull => AppendError::DiskFull.into(),
                AppendError::DiskFull => AppendError::Failed.into(),
                AppendError::Failed => {
                    let malformed = serde_json::from_str::<()>("").unwrap_err();
                    CallbackError::Malformed(malformed).into()
                }
            },
            Rejection::Callback(error) => Rejection::Callback(match error {
                CallbackError::Malformed(_) => CallbackError::NotAnObject,
                CallbackError::NotAnObject => CallbackError::DuplicateKey("t".into()),
                CallbackError::DuplicateKey(_) => CallbackError::TooDeep,
                CallbackError::TooDeep => {
                    CallbackError::WrongType { field: "t", wanted: "a number" }
                }
                CallbackError::WrongType { .. } => CallbackError::Unsigned,
                CallbackError::Unsigned => CallbackError::BadSignature,
                CallbackError::BadSignature => CallbackError::Expired(Duration::ZERO),
                CallbackError::Expired(_) => return None,
            }),
        })
    }

    /// A metric is created for each reason before the first rejection.
    #[test]
    fn each_variant_has_a_reason_of_its_own_and_the_list_of_reasons_has_no_other() {
        let variants = std::iter::successors(Some(Rejection::Method), next);
        let found: Vec<_> = variants.map(|rejection| rejection.reason()).collect();
        let listed: Vec<_> = reasons().collect();
        assert_eq!(found.iter().collect::<BTreeSet<_>>(), listed.iter().collect());
        assert_eq!(found.len(), listed.len());
    }
}
