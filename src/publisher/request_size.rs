//! The size of requests: smaller after Kafka rejected a whole request, to find out which of its
//! messages it rejects.

use std::time::{Duration, Instant};

use crate::kafka;

/// The highest number of bytes in one request: what brokers accept by default, until Kafka rejects a
/// request. Then it is halved until Kafka rejects a message alone.
#[derive(Debug)]
pub(super) struct RequestSize {
    pub(super) bytes: usize,
    shrunk: Option<Instant>,
}

impl RequestSize {
    /// How long a smaller size is kept. Small requests cost throughput, and trying the full size costs
    /// about ten sessions.
    const KEPT: Duration = Duration::from_hours(1);

    pub(super) fn new() -> Self {
        Self { bytes: kafka::REQUEST_BYTES, shrunk: None }
    }

    pub(super) fn shrink(&mut self) {
        self.bytes = (self.bytes / 2).max(1);
        self.shrunk = Some(Instant::now());
        let bytes = self.bytes;
        tracing::warn!(
            bytes,
            "Kafka rejects messages that are sent together; sending fewer in one request"
        );
    }

    /// Tries the full size again when the smaller one has been kept for long enough; returns
    /// whether that is so.
    pub(super) fn grow(&mut self) -> bool {
        let due = self.shrunk.is_some_and(|shrunk| shrunk.elapsed() > Self::KEPT);
        if due {
            *self = Self::new();
        }
        due
    }
}
