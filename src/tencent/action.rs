//! The actions of the API that livebridge calls, with their documented rates.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An action of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of the API's reference")]
pub enum Action {
    CreateLiveCallbackTemplate,
    ModifyLiveCallbackTemplate,
    DeleteLiveCallbackTemplate,
    DescribeLiveCallbackTemplates,
    CreateLiveCallbackRule,
    DeleteLiveCallbackRule,
    DescribeLiveCallbackRules,
    DescribeLiveDomains,
    DescribeLiveStreamEventList,
    DescribeCallbackRecordsList,
}

impl Action {
    /// Requests a second that an account may make, as docs/tencent.md lists them. Where the
    /// documents that were available state none, it is 20, the API's default.
    fn rate(self) -> u32 {
        match self {
            Self::CreateLiveCallbackTemplate
            | Self::ModifyLiveCallbackTemplate
            | Self::CreateLiveCallbackRule => 200,
            Self::DescribeLiveCallbackRules => 500,
            Self::DescribeLiveStreamEventList => 300,
            Self::DeleteLiveCallbackTemplate
            | Self::DeleteLiveCallbackRule
            | Self::DescribeLiveCallbackTemplates
            | Self::DescribeLiveDomains
            | Self::DescribeCallbackRecordsList => 20,
        }
    }

    /// Whether a request of unknown outcome may be sent again: it changes nothing, or sets a state
    /// that is the same the second time. A repeated creation would create twice, and a repeated
    /// deletion reports an error that the first one did not have.
    #[must_use]
    pub fn is_repeatable(self) -> bool {
        self.to_string().starts_with("Describe") || self == Self::ModifyLiveCallbackTemplate
    }
}

/// The value of the header `X-TC-Action`: the names of the variants are those of the API.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A token bucket for each action.
#[derive(Debug, Default)]
pub(super) struct RateLimits(Mutex<BTreeMap<Action, TokenBucket>>);

impl RateLimits {
    /// How long to wait before a request of `action`; counts the request.
    pub(super) fn take(&self, action: Action) -> Duration {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        buckets.entry(action).or_insert_with(|| TokenBucket::new(action.rate(), now)).take(now)
    }
}

/// Permits as many requests in any second as its rate: a tenth of them at once, the others evenly.
#[derive(Debug)]
struct TokenBucket {
    burst: f64,
    per_second: f64,
    /// Below zero when requests wait.
    tokens: f64,
    updated: Instant,
}

impl TokenBucket {
    fn new(rate: u32, now: Instant) -> Self {
        let rate = f64::from(rate);
        let burst = (rate / 10.0).max(1.0);
        Self { burst, per_second: rate - burst, tokens: burst, updated: now }
    }

    fn take(&mut self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst) - 1.0;
        self.updated = now;
        Duration::from_secs_f64((-self.tokens / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_requests_than_the_rate() {
        for rate in [20_u32, 200, 500] {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(rate, start);
            // A client that asks again at once, and one that pauses first and then does.
            let mut now = start;
            let mut sent = Vec::new();
            for number in 0..rate * 4 {
                if number == rate * 2 {
                    now += Duration::from_secs(5);
                }
                now += bucket.take(now);
                sent.push(now);
            }
            for first in &sent {
                let window = *first..*first + Duration::from_millis(999);
                let count = sent.iter().filter(|at| window.contains(at)).count();
                assert!(count <= rate as usize, "{count} in a second at {rate}/s");
            }
            let fastest = Duration::from_secs_f64(5.0 + 4.0 * 0.9);
            assert!(now - start <= fastest + Duration::from_secs(1), "{rate}/s is not reached");
        }
    }
}
