//! The errors of a call, by cause.

use std::time::Duration;

use tokio_rustls::rustls;

use super::Action;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum TencentError {
    /// The connection cannot be established, or it broke.
    #[error("{action}: cannot reach {endpoint}: {cause}{}", advice(cause))]
    Unreachable {
        /// The action.
        action: Action,
        /// The address.
        endpoint: String,
        /// The error of the HTTP client.
        #[source]
        cause: Box<ureq::Error>,
    },
    /// The time-out expired; whether the request was carried out is unknown.
    #[error(
        "{action}: no answer from {endpoint} within {}; check the network and the proxy variables, or \
         raise --timeout",
        humantime::format_duration(*timeout)
    )]
    TimedOut {
        /// The action.
        action: Action,
        /// The address.
        endpoint: String,
        /// The limit.
        timeout: Duration,
    },
    /// The answer is not one of API 3.0.
    #[error(
        "{action}: the answer of {endpoint} (status {status}) is not one of Tencent Cloud's API: \
         {problem}; is the endpoint right?"
    )]
    NotTheApi {
        /// The action.
        action: Action,
        /// The address.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        problem: String,
    },
    /// The API answered with an error.
    #[error("{action}: {reason} ({code}: {message}; request {request_id}){}", reason.advice())]
    Rejected {
        /// The action.
        action: Action,
        /// What the code means.
        reason: Reason,
        /// The code, as it arrived.
        code: String,
        /// The message, as it arrived, without secrets.
        message: String,
        /// What Tencent's support asks for.
        request_id: String,
    },
}

/// What an error code of the API means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no such secret ID, or it is disabled.
    #[error("the secret ID is not known")]
    UnknownSecretId,
    /// The secret key does not belong to the secret ID.
    #[error("the signature is not accepted")]
    WrongSecretKey,
    /// The clocks differ.
    #[error("the signature has expired")]
    ClockDiffers,
    /// The token of temporary credentials is wrong or has expired.
    #[error("the token is not accepted")]
    WrongToken,
    /// The policies of the account do not permit the action.
    #[error("permission denied")]
    PermissionDenied,
    /// Too many requests; the same request succeeds later.
    #[error("too many requests")]
    RateLimited,
    /// A named domain, template or rule does not exist.
    #[error("not found")]
    NotFound,
    /// It exists already.
    #[error("it exists already")]
    AlreadyExists,
    /// It cannot be deleted while it is in use.
    #[error("it is in use")]
    InUse,
    /// The account has reached its quota.
    #[error("the quota is exhausted")]
    QuotaExceeded,
    /// A parameter is missing or wrong.
    #[error("a parameter is wrong")]
    WrongParameter,
    /// A fault of Tencent Cloud.
    #[error("an internal error of Tencent Cloud")]
    Internal,
    /// Any other code.
    #[error("the request is rejected")]
    Other,
}

impl Reason {
    /// Whether there are no such credentials.
    #[must_use]
    pub fn is_wrong_credentials(self) -> bool {
        matches!(self, Self::UnknownSecretId | Self::WrongSecretKey | Self::WrongToken)
    }

    /// The meaning of a code. The suffix is more specific than the prefix:
    /// `InternalError.ConfNotFound` is not an internal error.
    pub(super) fn of(code: &str) -> Self {
        let (class, detail) = code.split_once('.').unwrap_or((code, ""));
        match (class, detail) {
            ("AuthFailure", "SecretIdNotFound" | "InvalidSecretId") => Self::UnknownSecretId,
            ("AuthFailure", "SignatureExpire") => Self::ClockDiffers,
            ("AuthFailure", "TokenFailure") => Self::WrongToken,
            ("AuthFailure", "SignatureFailure" | "InvalidAuthorization") => Self::WrongSecretKey,
            ("AuthFailure" | "UnauthorizedOperation", _) | (_, "NotPermmitOperat") => {
                Self::PermissionDenied
            }
            ("RequestLimitExceeded", _) => Self::RateLimited,
            (_, "RuleAlreadyExist" | "DomainAlreadyExist") => Self::AlreadyExists,
            (_, "ConfInUsed" | "RuleInUsing") | ("ResourceInUse", _) => Self::InUse,
            (_, "ConfOutLimit" | "RuleOutLimit")
            | ("LimitExceeded" | "ResourceInsufficient", _) => Self::QuotaExceeded,
            (
                _,
                "ConfNotFound" | "ConfigNotExist" | "DomainNotExist" | "NotFound" | "RuleNotFound"
                | "PushDomainNoRecord" | "DomainNoRecord",
            )
            | ("ResourceNotFound", _) => Self::NotFound,
            (_, "ArgsNotMatch" | "DomainFormatError" | "InvalidInput" | "InvalidRequest")
            | (
                "InvalidParameter"
                | "InvalidParameterValue"
                | "MissingParameter"
                | "UnknownParameter",
                _,
            ) => Self::WrongParameter,
            ("InternalError" | "ServiceUnavailable", _) => Self::Internal,
            _ => Self::Other,
        }
    }

    /// What to do, to be appended to the message.
    fn advice(self) -> &'static str {
        match self {
            Self::UnknownSecretId => "; check TENCENTCLOUD_SECRET_ID, and that the key is enabled",
            Self::WrongSecretKey => "; check that TENCENTCLOUD_SECRET_KEY belongs to the secret ID",
            Self::ClockDiffers => {
                "; this machine's clock differs from Tencent Cloud's by more than 5 minutes: set it"
            }
            Self::WrongToken => "; TENCENTCLOUD_TOKEN is wrong or has expired: get new credentials",
            Self::PermissionDenied => {
                "; docs/tencent.md has the CAM policy that each command needs"
            }
            Self::RateLimited => "; other programs of the account use the same action: try later",
            Self::NotFound => "; check the names, and that they are of this account",
            Self::Internal => "; try again, and give the request's ID to Tencent Cloud's support",
            Self::AlreadyExists
            | Self::InUse
            | Self::QuotaExceeded
            | Self::WrongParameter
            | Self::Other => "",
        }
    }
}

impl TencentError {
    /// The meaning of the API's error, if it answered with one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Rejected { reason, .. } => Some(*reason),
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::NotTheApi { .. } => None,
        }
    }

    /// How many times the request may be sent again.
    pub(super) fn retries(&self, action: Action) -> usize {
        /// For a rate limit, which the API counts per second and over all programs of the account.
        const OF_RATE_LIMIT: usize = 5;
        /// For faults that often end within a second, while a person waits for the answer.
        const OF_FAULT: usize = 2;
        match self {
            // Such a request was never carried out, so any action may be retried.
            Self::Rejected { reason: Reason::RateLimited, .. } => OF_RATE_LIMIT,
            Self::Rejected { reason: Reason::Internal, .. } | Self::TimedOut { .. }
                if action.is_repeatable() =>
            {
                OF_FAULT
            }
            Self::NotTheApi { status: 500.., .. } if action.is_repeatable() => OF_FAULT,
            Self::Unreachable { cause, .. } if action.is_repeatable() && is_transient(cause) => {
                OF_FAULT
            }
            _ => 0,
        }
    }
}

/// What to do about a connection that failed, to be appended to the message.
fn advice(cause: &ureq::Error) -> &'static str {
    match tls_error(cause) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            "; its certificate is not of an authority that this machine knows, or not for this host: \
             is it the right endpoint? SSL_CERT_FILE names other authorities"
        }
        Some(rustls::Error::InvalidMessage(_)) => "; it does not use TLS: is the port right?",
        Some(_) => "; the TLS handshake failed",
        None if is_closed_early(cause) => {
            "; it closed the connection: does it use TLS, if the endpoint is https?"
        }
        None => "",
    }
}

fn tls_error(cause: &ureq::Error) -> Option<&rustls::Error> {
    match cause {
        ureq::Error::Rustls(cause) => Some(cause),
        ureq::Error::Io(cause) => cause.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn is_closed_early(cause: &ureq::Error) -> bool {
    matches!(cause, ureq::Error::Io(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// Whether a retry may succeed: not if the server has no TLS or the wrong certificate, or if its
/// name does not exist.
fn is_transient(cause: &ureq::Error) -> bool {
    match cause {
        ureq::Error::Io(_) => tls_error(cause).is_none(),
        ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinguished_by_what_the_operator_can_do() {
        for (code, reason) in [
            ("AuthFailure.SecretIdNotFound", Reason::UnknownSecretId),
            ("AuthFailure.SignatureFailure", Reason::WrongSecretKey),
            ("AuthFailure.SignatureExpire", Reason::ClockDiffers),
            ("AuthFailure.TokenFailure", Reason::WrongToken),
            ("AuthFailure.UnauthorizedOperation", Reason::PermissionDenied),
            ("UnauthorizedOperation", Reason::PermissionDenied),
            ("UnauthorizedOperation.CamNoAuth", Reason::PermissionDenied),
            ("RequestLimitExceeded", Reason::RateLimited),
            ("RequestLimitExceeded.UinLimitExceeded", Reason::RateLimited),
            ("InternalError.ConfNotFound", Reason::NotFound),
            ("ResourceNotFound.DomainNotExist", Reason::NotFound),
            ("InternalError.ConfInUsed", Reason::InUse),
            ("FailedOperation.RuleAlreadyExist", Reason::AlreadyExists),
            ("InternalError.ConfOutLimit", Reason::QuotaExceeded),
            ("InternalError", Reason::Internal),
            ("InternalError.DBError", Reason::Internal),
            ("InvalidParameterValue", Reason::WrongParameter),
            ("MissingParameter", Reason::WrongParameter),
            ("FailedOperation", Reason::Other),
            ("", Reason::Other),
        ] {
            assert_eq!(Reason::of(code), reason, "{code}");
        }
    }
}
