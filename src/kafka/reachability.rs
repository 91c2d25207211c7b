//! Whether Kafka can be published to, as the log and `livebridge_kafka_up` show it.
//!
//! The only place that sets the gauge. Two conditions make it 1: the last attempt to publish
//! succeeded, and a broker is connected. An idle publisher makes no attempts, so the second
//! condition does not depend on them: librdkafka reports when the last connection is lost, and the
//! ledger's reader when a broker answers again.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::metrics;
use crate::outage::OutageLog;

static OUTAGE: Mutex<OutageLog> = Mutex::new(OutageLog::new(
    "cannot publish to Kafka; callbacks are still accepted and stored, trying again",
    "publishing to Kafka again",
    |ok| observe(if ok { Observation::Succeeded } else { Observation::Failed }),
));
static STATE: Mutex<State> = Mutex::new(State { publishing: false, connected: false });

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// Whether the last attempt to publish, or to become ready for it, succeeded.
    publishing: bool,
    /// Whether a broker is known to be connected.
    connected: bool,
}

/// What shows whether Kafka can be published to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observation {
    /// Kafka answered an attempt to publish.
    Succeeded,
    /// An attempt to publish failed, or has had no answer for long.
    Failed,
    /// The last connection to a broker is lost.
    Disconnected,
    /// A broker has answered.
    Connected,
    /// Everything that there was to publish is in Kafka already.
    NothingToSend,
}

impl State {
    fn after(self, observation: Observation) -> Self {
        match observation {
            Observation::Succeeded => Self { publishing: true, connected: true },
            Observation::Failed => Self { publishing: false, ..self },
            Observation::Disconnected => Self { connected: false, ..self },
            Observation::Connected => Self { connected: true, ..self },
            Observation::NothingToSend => Self { publishing: true, ..self },
        }
    }
}

/// Logs that an attempt to publish, or to become ready for it, failed or has had no answer for
/// long.
pub fn report_failure(cause: &dyn Display) {
    outage().report(cause);
}

/// Logs that an attempt to publish, or to become ready for it, succeeded, if one failed before.
pub fn report_success() {
    outage().resolved();
}

/// Everything that there was to publish is in Kafka already. Kafka was not asked, so this shows
/// neither a connection nor the end of an outage.
pub fn report_nothing_to_send() {
    observe(Observation::NothingToSend);
}

/// The cause of the last failure.
#[must_use]
pub fn last_failure() -> Option<String> {
    outage().last_cause()
}

fn outage() -> MutexGuard<'static, OutageLog> {
    OUTAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Updates the gauge.
pub(super) fn observe(observation: Observation) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    *state = state.after(observation);
    // Under the lock, so that the gauge has the latest state.
    metrics::kafka_up(state.publishing && state.connected);
}

#[cfg(test)]
mod tests {
    use super::Observation::{Connected, Disconnected, Failed, NothingToSend, Succeeded};
    use super::*;

    fn is_up(observations: &[Observation]) -> bool {
        let start = State { publishing: false, connected: false };
        let end = observations.iter().fold(start, |state, seen| state.after(*seen));
        end.publishing && end.connected
    }

    #[test]
    fn a_connection_ends_an_idle_outage_but_not_a_failure_to_publish() {
        assert!(!is_up(&[]));
        assert!(!is_up(&[Connected]), "nothing has succeeded yet");
        assert!(is_up(&[Succeeded]));
        assert!(!is_up(&[Succeeded, Disconnected]));
        assert!(is_up(&[Succeeded, Disconnected, Connected]));
        assert!(!is_up(&[Succeeded, Failed, Connected]), "a right that was withdrawn, say");
        assert!(!is_up(&[Succeeded, Disconnected, Failed, Connected]));
        assert!(is_up(&[Succeeded, Disconnected, Failed, Succeeded]));
        assert!(is_up(&[Succeeded, Failed, NothingToSend]));
        assert!(!is_up(&[Succeeded, Disconnected, NothingToSend]), "Kafka was not asked");
    }
}
