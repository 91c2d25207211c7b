//! Metrics of who comes, and how each proves that it may.

use std::fmt;
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};

use crate::record::Timestamp;

/// The use of one callback key.
#[derive(Clone)]
pub struct KeyUse {
    accepted: Counter,
    last: Gauge,
}

impl KeyUse {
    /// Of the key of this name, which is shown from now on.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            accepted: counter!("livebridge_callback_key_accepted_total", "key" => name.clone()),
            last: gauge!("livebridge_callback_key_last_used_timestamp_seconds", "key" => name),
        }
    }

    /// A callback that was signed with it and received at `now` was answered 200.
    pub fn count(&self, now: Timestamp) {
        self.accepted.increment(1);
        let epoch = Timestamp::from_millis(0);
        self.last.set(Duration::as_secs_f64(&now.since(epoch)));
    }
}

impl fmt::Debug for KeyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyUse")
    }
}
