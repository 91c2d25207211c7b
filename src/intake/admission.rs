//! Those who are connected: how many in all, how many from each address, and who has to leave when it
//! is full and others wait.
//!
//! Whoever holds connections would otherwise keep everybody out. When every seat is taken, the one
//! leaves of whom nothing was taken for the longest, be it an idle sender, who connects again, or an
//! attacker, whatever he says meanwhile.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::metrics::CloseReason;

/// Requests on one connection; then the sender has to make another, which may land on another core or
/// behind a balancer on another instance.
const REQUESTS_MAX: u32 = 100_000;
/// Requests refused one after another on one connection; then it ends. Sent all at once, refusals cost
/// little to ask for.
const REFUSALS_MAX: u32 = 16;
/// The longest that nothing is taken of a connection. Idle ones, headers and bodies that do not come are
/// given up earlier; this is for senders that are only refused, or do not take their answers.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// When it is full, of whom nothing was taken for so long may have to leave.
const EVICTABLE_AFTER: Duration = Duration::from_millis(250);
/// How often who has to leave is looked for, while somebody waits for a seat.
const SCAN_INTERVAL: Duration = Duration::from_millis(20);
/// How many are looked at each time.
const SCAN_MAX: usize = 128;

/// All of them.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    slots: Mutex<Slots>,
    slots_max: usize,
    per_address_max: usize,
    left: Notify,
    opened: Instant,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<Arc<Activity>>>,
    free: Vec<usize>,
    by_address: HashMap<IpAddr, usize>,
    /// Where the search for who has to leave goes on.
    next: usize,
}

/// One connection, from its acceptance to its end.
#[derive(Debug)]
pub(super) struct Permit {
    limiter: Arc<ConnectionLimiter>,
    slot: usize,
    counted: Option<IpAddr>,
    pub(super) activity: Arc<Activity>,
}

/// What a connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    /// When it was opened, or something of it last taken, in milliseconds after `opened`.
    since: AtomicU64,
    /// Its request is here as a whole and not answered yet.
    in_request: AtomicBool,
    requests: AtomicU32,
    /// Refused since something was taken.
    refusals: AtomicU32,
    evict: Notify,
}

impl ConnectionLimiter {
    pub(super) fn new(slots_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            slots_max,
            per_address_max,
            left: Notify::new(),
            opened: Instant::now(),
        })
    }

    /// A seat, as soon as there is one.
    pub(super) async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            if let Some(permit) = self.try_acquire() {
                return permit;
            }
            self.evict_idlest();
            // A seat that another thread was faster to take is no reason to wait for ever.
            let _ = timeout(SCAN_INTERVAL, self.left.notified()).await;
        }
    }

    fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut slots = self.slots();
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None if slots.entries.len() < self.slots_max => {
                slots.entries.push(None);
                slots.entries.len() - 1
            }
            None => return None,
        };
        let activity = Arc::new(Activity {
            opened: self.opened,
            since: AtomicU64::default(),
            in_request: AtomicBool::default(),
            requests: AtomicU32::default(),
            refusals: AtomicU32::default(),
            evict: Notify::new(),
        });
        activity.touch();
        slots.entries[slot] = Some(Arc::clone(&activity));
        Some(Permit { limiter: Arc::clone(self), slot, counted: None, activity })
    }

    /// Asks one to leave who has been waiting for long, if there is such a one.
    fn evict_idlest(&self) {
        let mut slots = self.slots();
        let count = slots.entries.len();
        let start = slots.next;
        slots.next = (start + SCAN_MAX) % count.max(1);
        let scanned = (start..start + SCAN_MAX.min(count)).map(|at| &slots.entries[at % count]);
        let idle_time = scanned.flatten().map(|activity| (activity.idle_time(), activity));
        let longest = idle_time.max_by_key(|(idle_time, _)| *idle_time);
        if let Some((_, activity)) = longest.filter(|(idle_time, _)| *idle_time >= EVICTABLE_AFTER)
        {
            activity.evict.notify_one();
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Counts it among those from `address`; false when there are too many already.
    pub(super) fn charge_to(&mut self, address: IpAddr) -> bool {
        let network = network(address);
        let mut slots = self.limiter.slots();
        let count = slots.by_address.entry(network).or_default();
        if *count >= self.limiter.per_address_max {
            return false;
        }
        *count += 1;
        drop(slots);
        self.counted = Some(network);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut slots = self.limiter.slots();
        slots.entries[self.slot] = None;
        slots.free.push(self.slot);
        if let Some(address) = self.counted {
            let left = slots.by_address.get(&address).map_or(0, |count| count - 1);
            if left == 0 {
                slots.by_address.remove(&address);
            } else {
                slots.by_address.insert(address, left);
            }
        }
        drop(slots);
        self.limiter.left.notify_one();
    }
}

impl Activity {
    fn touch(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(millis, Ordering::Relaxed);
    }

    /// The whole request is here.
    pub(super) fn begin_request(&self) {
        self.in_request.store(true, Ordering::Relaxed);
    }

    /// The answer is ready. Why it is the last on this connection, if it is.
    pub(super) fn record_response(&self, taken: bool) -> Option<CloseReason> {
        if taken {
            self.touch();
            self.refusals.store(0, Ordering::Relaxed);
        }
        self.in_request.store(false, Ordering::Relaxed);
        let refusals = self.refusals.fetch_add(u32::from(!taken), Ordering::Relaxed);
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if !taken && refusals + 1 >= REFUSALS_MAX {
            Some(CloseReason::TooManyRejections)
        } else if requests >= REQUESTS_MAX {
            Some(CloseReason::TooManyRequests)
        } else {
            None
        }
    }

    /// Completes when the connection has to end, and says why.
    pub(super) async fn evicted(&self) -> CloseReason {
        loop {
            let idle_time = self.idle_time();
            let Some(left) = IDLE_MAX.checked_sub(idle_time).filter(|left| !left.is_zero()) else {
                return CloseReason::IdleTimeout;
            };
            tokio::select! {
                () = self.evict.notified() => {
                    // It may have begun to work since it was chosen.
                    if self.idle_time() >= EVICTABLE_AFTER {
                        return CloseReason::Evicted;
                    }
                }
                () = sleep(left) => {}
            }
        }
    }

    /// For how long nothing of it was taken; none while it is being worked for.
    fn idle_time(&self) -> Duration {
        if self.in_request.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let since = Duration::from_millis(self.since.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(since)
    }
}

/// Whom an address belongs to: of IPv6 a whole /64, within which a sender may take any.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_with_its_last_request_and_the_next_one_begins_anew() {
        let limiter = ConnectionLimiter::new(1, 1);
        for _ in 0..2 {
            let permit = limiter.try_acquire().expect("the slot");
            let last = (1..=REQUESTS_MAX).find(|_| permit.activity.record_response(true).is_some());
            assert_eq!(last, Some(REQUESTS_MAX));
            assert_eq!(permit.activity.record_response(true), Some(CloseReason::TooManyRequests));
        }
    }
}
