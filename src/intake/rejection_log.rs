//! Log lines about rejected requests: one a minute, with counts by reason and the last example.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;

/// Between two lines: many rejections must not flood standard error.
const INTERVAL: Duration = Duration::from_mins(1);
/// Characters of a path or method that a line shows.
const TEXT_MAX: usize = 40;

/// The rejections since the last line.
#[derive(Debug, Default)]
pub(super) struct RejectionLog {
    /// Whether a callback was accepted since the last line.
    accepted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<&'static str, u64>,
    example: Option<Example>,
    last_line: Option<Instant>,
}

/// One rejected request, without its secrets: of the path, only the first segment.
#[derive(Clone, Debug)]
pub(super) struct Example {
    status: StatusCode,
    reason: &'static str,
    method: String,
    path: String,
    address: Option<IpAddr>,
}

impl Example {
    pub(super) fn new(
        status: StatusCode,
        reason: &'static str,
        method: &str,
        path: &str,
        address: Option<IpAddr>,
    ) -> Self {
        let cut = |text: &str| text.chars().take(TEXT_MAX).collect();
        let mut segments = path.trim_start_matches('/').splitn(2, '/');
        let first = segments.next().unwrap_or_default();
        let rest = if segments.next().is_some() { "/…" } else { "" };
        let path = format!("/{}{rest}", cut(first));
        Self { status, reason, method: cut(method), path, address }
    }
}

impl RejectionLog {
    /// Records that a callback was accepted.
    pub(super) fn record_accepted(&self) {
        // Usually it is set already, and a read keeps the cache line shared between cores.
        if !self.accepted.load(Ordering::Relaxed) {
            self.accepted.store(true, Ordering::Relaxed);
        }
    }

    /// Records a rejected request.
    pub(super) fn record_rejected(&self, example: Example) {
        let mut state = self.lock();
        *state.counts.entry(example.reason).or_default() += 1;
        state.example = Some(example);
    }

    /// Writes a line if there were rejections and the last line is a minute old.
    pub(super) fn report_if_due(&self) {
        if let Some(report) = self.take(Instant::now()) {
            report.log();
        }
    }

    /// Writes a line if there were rejections since the last one.
    pub(super) fn report(&self) {
        self.lock().last_line = None;
        self.report_if_due();
    }

    fn take(&self, now: Instant) -> Option<RejectionSummary> {
        let mut state = self.lock();
        if state.last_line.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            return None;
        }
        let example = state.example.take()?;
        state.last_line = Some(now);
        let counts = std::mem::take(&mut state.counts);
        Some(RejectionSummary {
            counts,
            example,
            accepted: self.accepted.swap(false, Ordering::Relaxed),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct RejectionSummary {
    counts: BTreeMap<&'static str, u64>,
    example: Example,
    accepted: bool,
}

impl RejectionSummary {
    fn log(&self) {
        let Example { status, reason, method, path, address } = &self.example;
        let count: u64 = self.counts.values().sum();
        let reasons = self.counts.iter().map(|(reason, count)| format!("{reason} {count}"));
        let reasons = reasons.collect::<Vec<_>>().join(", ");
        let address = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let status = status.as_u16();
        // While callbacks are accepted too, rejections are mostly scanners and forged requests.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    count,
                    reasons,
                    status,
                    reason,
                    method,
                    path,
                    address,
                    "requests were rejected; this is the last one"
                )
            };
        }
        if self.accepted && status != StatusCode::SERVICE_UNAVAILABLE {
            line!(info);
        } else {
            line!(warn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(path: &str) -> Example {
        Example::new(StatusCode::NOT_FOUND, "path", "POST", path, None)
    }

    #[test]
    fn counts_are_reported_at_once_and_then_once_a_minute() {
        let log = RejectionLog::default();
        let start = Instant::now();
        let counts = |seconds| {
            let report = log.take(start + Duration::from_secs(seconds))?;
            Some((report.counts.values().sum::<u64>(), report.accepted))
        };
        assert_eq!(counts(0), None, "nothing was rejected");
        log.record_rejected(example("/"));
        assert_eq!(counts(1), Some((1, false)));
        (0..1000).for_each(|_| log.record_rejected(example("/")));
        log.record_accepted();
        assert_eq!(counts(60), None);
        assert_eq!(counts(61), Some((1000, true)));
        assert_eq!(counts(200), None);
        log.record_rejected(example("/"));
        assert_eq!(counts(200), Some((1, false)));
    }

    #[test]
    fn an_example_shows_the_first_segment_of_the_path_only() {
        for (path, shown) in [
            ("/", "/"),
            ("/hook", "/hook"),
            ("/hook/s3cret", "/hook/…"),
            ("/hook/s3cret/more", "/hook/…"),
            ("*", "/*"),
        ] {
            assert_eq!(example(path).path, shown, "{path}");
        }
        assert!(example(&"/x".repeat(5000)).path.len() < 50);
        assert!(example(&format!("/{}", "x".repeat(5000))).path.len() < 50);
    }
}
