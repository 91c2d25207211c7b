//! The state of a connection, and when it must be closed: time-outs, requests, rejections.

use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::wake_gate::PolledOnWake;
use crate::metrics::CloseReason;

/// Requests on one connection. The sender must then open another, which may be assigned to another
/// core or, by a balancer, to another instance.
const REQUESTS_MAX: u32 = 100_000;
/// Consecutive rejections on one connection: with pipelining, such requests cost their sender
/// little.
const REJECTIONS_MAX: u32 = 16;
/// From a connection's opening, or the first byte of a later request, to the end of the request's
/// header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// From the header to the end of the body. Tencent waits 20 s for an answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the handler is polled again while a request is overdue.
const OVERDUE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a connection is kept without an accepted callback while its requests are rejected or
/// its responses are not read.
const UNPRODUCTIVE_MAX: Duration = Duration::from_secs(30);
/// At the limit of connections, one without an accepted callback for this long may be evicted.
const EVICTABLE_AFTER: Duration = Duration::from_millis(250);

/// The time-outs that are configured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// How long an idle connection is kept after an accepted callback.
    pub(super) keep_alive: Duration,
    /// The longest that a whole callback waits for the log.
    pub(super) append: Duration,
}

/// The state of a connection. Times are in milliseconds after `created`.
#[derive(Debug)]
pub(super) struct Activity {
    created: Instant,
    timeouts: Timeouts,
    /// When it was opened, or its last callback was accepted.
    productive_at: AtomicU64,
    phase: AtomicU8,
    phase_since: AtomicU64,
    /// Since when a write has been waiting for the client; [`NEVER`] if none is.
    blocked_since: AtomicU64,
    requests: AtomicU32,
    /// Rejections since the last accepted callback.
    rejections: AtomicU32,
    linger: AtomicU8,
    evict: Notify,
}

const NEVER: u64 = u64::MAX;

/// The phases of a connection, in their order; after `Idle` comes `Header` again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opened,
    /// A part of a request's header has arrived.
    Header,
    Body,
    /// The whole request has arrived and is not answered yet.
    Storing,
    Response,
    Idle,
}

/// The phase of each number that an atomic holds.
const PHASES: [Phase; 6] =
    [Phase::Opened, Phase::Header, Phase::Body, Phase::Storing, Phase::Response, Phase::Idle];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestOutcome {
    /// The callback was accepted.
    Accepted,
    /// It was rejected.
    Rejected,
    /// It was a health check.
    HealthCheck,
}

/// Whether a connection is read after its last response, so that the client gets that response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linger {
    No,
    Short,
    Long,
}

impl Activity {
    pub(super) fn new(created: Instant, timeouts: Timeouts) -> Self {
        let activity = Self {
            created,
            timeouts,
            productive_at: AtomicU64::default(),
            phase: AtomicU8::new(Phase::Opened as u8),
            phase_since: AtomicU64::default(),
            blocked_since: AtomicU64::new(NEVER),
            requests: AtomicU32::default(),
            rejections: AtomicU32::default(),
            linger: AtomicU8::new(Linger::No as u8),
            evict: Notify::new(),
        };
        let now = activity.now();
        activity.productive_at.store(now, Ordering::Relaxed);
        activity.enter(Phase::Opened, now);
        activity
    }

    fn now(&self) -> u64 {
        millis(self.created.elapsed())
    }

    fn enter(&self, phase: Phase, since: u64) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.phase_since.store(since, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// Records that the handshake is complete.
    pub(super) fn handshake_completed(&self) {
        self.enter(Phase::Opened, self.now());
    }

    /// Records that bytes of a request arrived.
    pub(super) fn bytes_received(&self) {
        if self.phase() == Phase::Opened {
            // The first request's time counts from the opening.
            self.phase.store(Phase::Header as u8, Ordering::Relaxed);
        } else if self.phase() == Phase::Idle {
            self.enter(Phase::Header, self.now());
        }
    }

    /// Records that a request's header is complete, and returns the current time.
    pub(super) fn begin_request(&self) -> Instant {
        let now = Instant::now();
        self.enter(Phase::Body, millis(now.saturating_duration_since(self.created)));
        now
    }

    /// Records that the body is complete.
    pub(super) fn begin_storing(&self) {
        self.enter(Phase::Storing, self.now());
    }

    /// The output of `future`, or `None` at the deadline of the current phase. It is polled then
    /// because the same task polls the timer of [`Activity::wait_for_close`]: a timer for every
    /// request would cost more than everything else here.
    pub(super) async fn in_time<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut is_first = true;
        let is_overdue = || self.phase_deadline().is_some_and(|(at, _)| self.now() >= at);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if !mem::take(&mut is_first) && is_overdue() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Records how a request ended. Returns the reason if the connection must be closed after the
    /// response.
    pub(super) fn record_response(&self, outcome: RequestOutcome) -> Option<CloseReason> {
        let now = self.now();
        self.enter(Phase::Response, now);
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let rejections = match outcome {
            RequestOutcome::Accepted => {
                self.productive_at.store(now, Ordering::Relaxed);
                self.rejections.store(0, Ordering::Relaxed);
                0
            }
            RequestOutcome::Rejected => self.rejections.fetch_add(1, Ordering::Relaxed) + 1,
            RequestOutcome::HealthCheck => 0,
        };
        if rejections >= REJECTIONS_MAX {
            Some(CloseReason::TooManyRejections)
        } else if requests >= REQUESTS_MAX {
            Some(CloseReason::TooManyRequests)
        } else {
            None
        }
    }

    /// Sets whether the connection is read after its last response.
    pub(super) fn set_linger(&self, linger: Linger) {
        self.linger.store(linger as u8, Ordering::Relaxed);
    }

    /// Whether the connection is read after its last response. After an invalid or incomplete
    /// request, the client may still be sending.
    pub(super) fn linger(&self) -> Linger {
        let set = self.linger.load(Ordering::Relaxed);
        if set == Linger::Long as u8 {
            Linger::Long
        } else if set == Linger::Short as u8 {
            Linger::Short
        } else if self.phase() == Phase::Header {
            Linger::Long
        } else {
            Linger::No
        }
    }

    /// Records that a write waits for the client.
    pub(super) fn write_blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Records that everything is written.
    pub(super) fn response_flushed(&self) {
        let was_blocked = self.blocked_since.load(Ordering::Relaxed) != NEVER;
        if was_blocked {
            self.blocked_since.store(NEVER, Ordering::Relaxed);
        }
        if self.phase() == Phase::Response {
            // Otherwise the response was written at once.
            let since = if was_blocked { self.now() } else { self.phase_since() };
            self.enter(Phase::Idle, since);
        }
    }

    /// Completes with the reason when the connection must be closed. The task that serves the
    /// connection must poll it, so that the timer is checked after each change of the phase.
    pub(super) async fn wait_for_close(&self) -> CloseReason {
        let mut timer = pin!(sleep(HEADER_TIMEOUT));
        let evicted = pin!(async {
            self.evict.notified().await;
            // It may no longer be evictable.
            while self.evictable_for().is_none() {
                self.evict.notified().await;
            }
        });
        let mut evicted = PolledOnWake::new(evicted);
        poll_fn(|cx| {
            if Pin::new(&mut evicted).poll(cx).is_ready() {
                return Poll::Ready(CloseReason::Evicted);
            }
            loop {
                let Some((deadline, reason)) = self.deadline() else { return Poll::Pending };
                let at =
                    tokio::time::Instant::from_std(self.created + Duration::from_millis(deadline));
                // A timer that is set too early is set again when it fires: the deadline moves with
                // every request, and setting a timer costs more than that.
                if timer.deadline() > at {
                    timer.as_mut().reset(at);
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if self.now() < deadline {
                    timer.as_mut().reset(at);
                } else if let Some(reason) = reason {
                    return Poll::Ready(reason);
                } else {
                    timer.as_mut().reset(tokio::time::Instant::now() + OVERDUE_INTERVAL);
                }
            }
        })
        .await
    }

    fn phase_since(&self) -> u64 {
        self.phase_since.load(Ordering::Relaxed)
    }

    /// When the current phase must end, and the reason for which the connection is closed then;
    /// without a reason, the handler ends the request.
    fn phase_deadline(&self) -> Option<(u64, Option<CloseReason>)> {
        let (timeout, reason) = match self.phase() {
            Phase::Opened | Phase::Header => (HEADER_TIMEOUT, Some(CloseReason::HeaderTimeout)),
            Phase::Body => (BODY_TIMEOUT, None),
            Phase::Storing => (self.timeouts.append, None),
            Phase::Idle => (self.timeouts.keep_alive, Some(CloseReason::IdleTimeout)),
            Phase::Response => return None,
        };
        Some((self.phase_since() + millis(timeout), reason))
    }

    /// The next [`Activity::phase_deadline`], or that of a connection that is of no use.
    fn deadline(&self) -> Option<(u64, Option<CloseReason>)> {
        let rejected = self.rejections.load(Ordering::Relaxed) > 0;
        let productive_at = self.productive_at.load(Ordering::Relaxed);
        let blocked_since = self.blocked_since.load(Ordering::Relaxed);
        let unproductive = [rejected.then_some(productive_at), Some(blocked_since)]
            .into_iter()
            .flatten()
            .filter(|since| *since != NEVER && self.phase() != Phase::Storing)
            .map(|since| (since + millis(UNPRODUCTIVE_MAX), Some(CloseReason::IdleTimeout)));
        self.phase_deadline().into_iter().chain(unproductive).min_by_key(|(deadline, _)| *deadline)
    }

    /// How long ago it was opened or had a callback accepted, if it may be evicted.
    pub(super) fn evictable_for(&self) -> Option<Duration> {
        let since = Duration::from_millis(self.productive_at.load(Ordering::Relaxed));
        let idle_time = self.created.elapsed().saturating_sub(since);
        (self.phase() != Phase::Storing && idle_time >= EVICTABLE_AFTER).then_some(idle_time)
    }

    /// Has the connection closed, unless a request comes first.
    pub(super) fn evict(&self) {
        self.evict.notify_one();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts =
        Timeouts { keep_alive: Duration::from_secs(75), append: Duration::from_secs(5) };

    #[test]
    fn each_phase_has_its_own_time_out() {
        let activity = Activity::new(Instant::now(), TIMEOUTS);
        // In seconds since the creation; the fraction is what the test has taken so far.
        let left = || activity.deadline().map(|(at, reason)| (at / 1000, reason));
        assert_eq!(left(), Some((15, Some(CloseReason::HeaderTimeout))));
        activity.begin_request();
        assert_eq!(left(), Some((10, None)), "the body");
        activity.begin_storing();
        assert_eq!(left(), Some((5, None)), "the log");
        activity.record_response(RequestOutcome::Accepted);
        activity.write_blocked();
        assert_eq!(left(), Some((30, Some(CloseReason::IdleTimeout))), "the client does not read");
        activity.response_flushed();
        assert_eq!(left(), Some((75, Some(CloseReason::IdleTimeout))), "keep-alive");
        activity.bytes_received();
        assert_eq!(left(), Some((15, Some(CloseReason::HeaderTimeout))));
        activity.begin_request();
        activity.record_response(RequestOutcome::Rejected);
        activity.response_flushed();
        assert_eq!(left(), Some((30, Some(CloseReason::IdleTimeout))), "only rejected");
        activity.begin_request();
        activity.record_response(RequestOutcome::Accepted);
        activity.response_flushed();
        assert_eq!(left(), Some((75, Some(CloseReason::IdleTimeout))));
    }
}
