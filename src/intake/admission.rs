//! Connection limits: in total and per client address.
//!
//! When the limit of connections is reached, the connection that has gone longest without an
//! accepted callback is evicted: an idle sender, which connects again, or an attacker, whatever it
//! sends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::activity::{Activity, Timeouts};

/// Interval between two searches for a connection to evict, while another one waits.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_millis(20);
/// Connections that one search examines.
const SCAN_MAX: usize = 128;

/// All connections.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    slots: Mutex<Slots>,
    slots_max: usize,
    per_address_max: usize,
    timeouts: Timeouts,
    released: Notify,
    created: Instant,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<Arc<Activity>>>,
    free: Vec<usize>,
    by_address: HashMap<IpAddr, usize>,
    /// Where the next search for a connection to evict begins.
    next: usize,
}

/// One connection's slot, from its acceptance to its end.
#[derive(Debug)]
pub(super) struct Permit {
    limiter: Arc<ConnectionLimiter>,
    slot: usize,
    charged_to: Option<IpAddr>,
    pub(super) activity: Arc<Activity>,
}

impl ConnectionLimiter {
    pub(super) fn new(slots_max: usize, per_address_max: usize, timeouts: Timeouts) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            slots_max,
            per_address_max,
            timeouts,
            released: Notify::new(),
            created: Instant::now(),
        })
    }

    /// Waits for a slot.
    pub(super) async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            if let Some(permit) = self.try_acquire() {
                return permit;
            }
            self.evict_idlest();
            // Another thread may take the released slot first, so the wait is bounded.
            let _ = timeout(SCAN_INTERVAL, self.released.notified()).await;
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
        let activity = Arc::new(Activity::new(self.created, self.timeouts));
        slots.entries[slot] = Some(Arc::clone(&activity));
        Some(Permit { limiter: Arc::clone(self), slot, charged_to: None, activity })
    }

    /// Of [`SCAN_MAX`] connections, evicts the one that has gone longest without an accepted
    /// callback, if that is long enough.
    pub(super) fn evict_idlest(&self) {
        let mut slots = self.slots();
        let count = slots.entries.len();
        let start = slots.next;
        slots.next = (start + SCAN_MAX) % count.max(1);
        let scanned = (start..start + SCAN_MAX.min(count)).map(|at| &slots.entries[at % count]);
        let evictable = scanned.flatten().filter_map(|entry| Some((entry.evictable_for()?, entry)));
        if let Some((_, activity)) = evictable.max_by_key(|(idle_time, _)| *idle_time) {
            activity.evict();
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Counts the connection as one of `address`; false if that address is at its limit.
    pub(super) fn charge_to(&mut self, address: IpAddr) -> bool {
        let network = network(address);
        let mut slots = self.limiter.slots();
        let count = slots.by_address.entry(network).or_default();
        if *count >= self.limiter.per_address_max {
            return false;
        }
        *count += 1;
        drop(slots);
        self.charged_to = Some(network);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut slots = self.limiter.slots();
        slots.entries[self.slot] = None;
        slots.free.push(self.slot);
        if let Some(address) = self.charged_to {
            let left = slots.by_address.get(&address).map_or(0, |count| count - 1);
            if left == 0 {
                slots.by_address.remove(&address);
            } else {
                slots.by_address.insert(address, left);
            }
        }
        drop(slots);
        self.limiter.released.notify_one();
    }
}

/// The unit in which addresses are counted: for IPv6 a /64, within which a client may use any
/// address.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::activity::RequestOutcome;
    use crate::metrics::CloseReason;

    #[test]
    fn a_connection_ends_with_its_last_request_and_the_next_one_starts_from_zero() {
        let timeouts = Timeouts { keep_alive: Duration::MAX, append: Duration::MAX };
        let limiter = ConnectionLimiter::new(1, 1, timeouts);
        for _ in 0..2 {
            let permit = limiter.try_acquire().expect("the slot");
            let accept = || permit.activity.record_response(RequestOutcome::Accepted);
            let last = (1..=1_000_000).find(|_| accept().is_some());
            assert_eq!(last, Some(100_000));
            assert_eq!(accept(), Some(CloseReason::TooManyRequests));
        }
    }
}
