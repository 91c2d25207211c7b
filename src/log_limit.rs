//! Limits repeated log lines to one a minute, with a count of the suppressed ones.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one kind.
const INTERVAL: Duration = Duration::from_mins(1);

/// The limiter of one kind of line.
#[derive(Debug)]
pub(crate) struct LogLimiter(Mutex<State>);

#[derive(Debug)]
struct State {
    last_line: Option<Instant>,
    suppressed: u64,
}

impl LogLimiter {
    /// A limiter that permits the first line.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { last_line: None, suppressed: 0 }))
    }

    /// Returns how many lines were suppressed since the last permitted one, or `None` if this one
    /// is suppressed too.
    pub(crate) fn permit(&self) -> Option<u64> {
        self.permit_at(Instant::now())
    }

    fn permit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last_line.is_some_and(|last_line| now.duration_since(last_line) < INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.last_line = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_permitted_and_then_one_a_minute_with_a_count_of_the_others() {
        let log_limit = LogLimiter::new();
        let start = Instant::now();
        let at = |seconds| log_limit.permit_at(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(0), at(1), at(59)), (None, None, None));
        assert_eq!(at(60), Some(3));
        assert_eq!(at(61), None);
        assert_eq!(at(500), Some(1));
        assert_eq!(at(1000), Some(0));
    }
}
