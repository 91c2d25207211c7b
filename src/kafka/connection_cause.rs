//! Why Kafka cannot be reached, as librdkafka logs it beside the blocking call: the call itself
//! only times out.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::{Context, text};
use crate::secret::redact;

/// A reason that librdkafka gave, and what to do about it.
#[derive(Clone, Debug)]
pub struct Cause {
    what: &'static str,
    reason: String,
    advice: &'static str,
    /// Whether it lasts until the configuration is changed.
    pub(super) lasting: bool,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.reason, self.advice)
    }
}

impl Cause {
    /// The cause for `error`, which only reports that there is no answer.
    pub(super) fn unknown(error: &KafkaError) -> Self {
        Self { reason: text(error), ..Self::NO_ANSWER }
    }

    const NO_ANSWER: Self = Self {
        what: "Kafka does not answer",
        reason: String::new(),
        advice: "check kafka.brokers and the network",
        lasting: false,
    };

    fn of(code: Code, reason: &str) -> Option<Self> {
        let lower = reason.to_ascii_lowercase();
        let has = |part: &str| lower.contains(part);
        let reason = redact(reason).into_owned();
        let (what, advice) = match code {
            Code::Resolve => (
                "a host name cannot be resolved",
                "check kafka.brokers, and DNS where this runs; brokers also name themselves \
                 (advertised.listeners)",
            ),
            Code::SSL => tls(has),
            Code::BrokerTransportFailure if has("ssl handshake") => tls(has),
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
                if has("mechanism") =>
            {
                (
                    "Kafka does not offer this SASL mechanism",
                    "set sasl.mechanisms in [kafka.client] to one that it offers",
                )
            }
            Code::Authentication | Code::SaslAuthenticationFailed => (
                "Authentication with Kafka fails",
                "check sasl.username, sasl.password and sasl.mechanisms in [kafka.client]",
            ),
            Code::BrokerTransportFailure
                if has("ssl listener") || has("state apiversion_query") =>
            {
                (
                    "Kafka closes the connection at the first request",
                    "its port may use TLS, or require a user: set security.protocol in [kafka.client] to \
                 SSL, SASL_SSL or SASL_PLAINTEXT",
                )
            }
            Code::BrokerTransportFailure if has("require sasl") => (
                "Kafka closes the connection at the first request",
                "its port may require a user: set security.protocol in [kafka.client] to \
                 SASL_PLAINTEXT or SASL_SSL, and sasl.*",
            ),
            Code::BrokerTransportFailure if has("in state auth") => (
                "Kafka closes the connection during authentication",
                "its port may not support users: check security.protocol and sasl.* in [kafka.client]",
            ),
            Code::BrokerTransportFailure => return Some(Self { reason, ..Self::NO_ANSWER }),
            _ => return None,
        };
        Some(Self { what, reason, advice, lasting: true })
    }
}

/// The cause of a TLS failure, and advice.
fn tls(has: impl Fn(&str) -> bool) -> (&'static str, &'static str) {
    if has("plaintext broker") || has("wrong version number") || has("disconnected") {
        (
            "this port of Kafka does not use TLS",
            "set security.protocol in [kafka.client] to PLAINTEXT or SASL_PLAINTEXT, or kafka.brokers \
             to the port for TLS",
        )
    } else if has("alert") {
        (
            "Kafka rejects the TLS certificate of livebridge",
            "check ssl.certificate.location and ssl.key.location in [kafka.client]",
        )
    } else if has("hostname mismatch") || has("ip address mismatch") {
        (
            "the TLS certificate of Kafka is for another host name",
            "name the host in kafka.brokers as its certificate does",
        )
    } else {
        (
            "the TLS certificate of Kafka is not trusted, or has expired",
            "set ssl.ca.location in [kafka.client] to the authority that signed it; if that is right, \
             renew the certificate, or set the clock here",
        )
    }
}

/// A client context that records the last cause, and prefers lasting ones.
#[derive(Debug, Default)]
pub(super) struct Causes(Mutex<Option<Cause>>);

impl Causes {
    fn record(&self, cause: Option<Cause>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = kept.as_ref().is_some_and(|kept| kept.lasting);
        if let Some(cause) = cause.filter(|cause| cause.lasting || !lasting) {
            *kept = Some(cause);
        }
    }
}

impl ClientContext for Causes {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            let reason = message.split_once("]: ").map_or(message, |(_thread, reason)| reason);
            self.record(Cause::of(Code::BrokerTransportFailure, reason));
        }
        Context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.record(error.rdkafka_error_code().and_then(|code| Cause::of(code, reason)));
        Context.error(error, reason);
    }
}

impl ConsumerContext for Causes {}

/// The cause that was recorded since `consumer` was created.
pub(super) fn recorded_cause(consumer: &BaseConsumer<Causes>) -> Option<Cause> {
    /// Queued events that are handled; one request cannot cause more.
    const EVENTS: u32 = 64;
    for _ in 0..EVENTS {
        drop(consumer.poll(Duration::ZERO));
    }
    let context = consumer.client().context();
    context.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
