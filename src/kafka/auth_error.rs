//! Why brokers turn a client away: a wrong password, or a certificate that it does not believe. To
//! whoever only waits for an answer, such brokers look as if they were not there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::Context;

/// Keeps the last refusal that librdkafka told of.
#[derive(Debug, Default)]
pub(super) struct AuthErrors(Mutex<Option<String>>);

impl ClientContext for AuthErrors {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let refuses = [Code::Authentication, Code::SSL, Code::SaslAuthenticationFailed];
        if error.rdkafka_error_code().is_some_and(|code| refuses.contains(&code)) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
        Context.error(error, reason);
    }
}

impl ConsumerContext for AuthErrors {}

/// What `consumer` was told since it was made; `None` when nobody turned it away.
pub(super) fn heard(consumer: &BaseConsumer<AuthErrors>) -> Option<String> {
    // Events that nobody has asked for yet. More there cannot have been in the time.
    const EVENTS: u32 = 64;
    for _ in 0..EVENTS {
        drop(consumer.poll(Duration::ZERO));
    }
    let context = consumer.client().context();
    context.0.lock().unwrap_or_else(PoisonError::into_inner).take()
}
