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

use crate::metrics::Ended;

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
const PATIENCE: Duration = Duration::from_millis(250);
/// How often who has to leave is looked for, while somebody waits for a seat.
const LOOK: Duration = Duration::from_millis(20);
/// How many are looked at each time.
const LOOKED_AT: usize = 128;

/// All of them.
#[derive(Debug)]
pub(super) struct Guests {
    room: Mutex<Room>,
    seats_max: usize,
    per_address_max: usize,
    left: Notify,
    opened: Instant,
}

#[derive(Debug, Default)]
struct Room {
    seats: Vec<Option<Arc<Visit>>>,
    free: Vec<usize>,
    by_address: HashMap<IpAddr, usize>,
    /// Where the search for who has to leave goes on.
    next: usize,
}

/// One connection, from its acceptance to its end.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    seat: usize,
    counted: Option<IpAddr>,
    pub(super) visit: Arc<Visit>,
}

/// What a connection is doing.
#[derive(Debug)]
pub(super) struct Visit {
    opened: Instant,
    /// When it was opened, or something of it last taken, in milliseconds after `opened`.
    since: AtomicU64,
    /// Its request is here as a whole and not answered yet.
    at_work: AtomicBool,
    requests: AtomicU32,
    /// Refused since something was taken.
    refusals: AtomicU32,
    leave: Notify,
}

impl Guests {
    pub(super) fn new(seats_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            room: Mutex::default(),
            seats_max,
            per_address_max,
            left: Notify::new(),
            opened: Instant::now(),
        })
    }

    /// A seat, as soon as there is one.
    pub(super) async fn seat(self: &Arc<Self>) -> Guest {
        loop {
            if let Some(guest) = self.try_seat() {
                return guest;
            }
            self.make_room();
            // A seat that another thread was faster to take is no reason to wait for ever.
            let _ = timeout(LOOK, self.left.notified()).await;
        }
    }

    fn try_seat(self: &Arc<Self>) -> Option<Guest> {
        let mut room = self.room();
        let seat = match room.free.pop() {
            Some(seat) => seat,
            None if room.seats.len() < self.seats_max => {
                room.seats.push(None);
                room.seats.len() - 1
            }
            None => return None,
        };
        let visit = Arc::new(Visit {
            opened: self.opened,
            since: AtomicU64::default(),
            at_work: AtomicBool::default(),
            requests: AtomicU32::default(),
            refusals: AtomicU32::default(),
            leave: Notify::new(),
        });
        visit.is_welcome();
        room.seats[seat] = Some(Arc::clone(&visit));
        Some(Guest { guests: Arc::clone(self), seat, counted: None, visit })
    }

    /// Asks one to leave who has been waiting for long, if there is such a one.
    fn make_room(&self) {
        let mut room = self.room();
        let count = room.seats.len();
        let start = room.next;
        room.next = (start + LOOKED_AT) % count.max(1);
        let looked_at = (start..start + LOOKED_AT.min(count)).map(|at| &room.seats[at % count]);
        let waiting = looked_at.flatten().map(|visit| (visit.waiting(), visit));
        let longest = waiting.max_by_key(|(waiting, _)| *waiting);
        if let Some((_, visit)) = longest.filter(|(waiting, _)| *waiting >= PATIENCE) {
            visit.leave.notify_one();
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Counts it among those from `address`; false when there are too many already.
    pub(super) fn comes_from(&mut self, address: IpAddr) -> bool {
        let network = network(address);
        let mut room = self.guests.room();
        let count = room.by_address.entry(network).or_default();
        if *count >= self.guests.per_address_max {
            return false;
        }
        *count += 1;
        drop(room);
        self.counted = Some(network);
        true
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut room = self.guests.room();
        room.seats[self.seat] = None;
        room.free.push(self.seat);
        if let Some(address) = self.counted {
            let left = room.by_address.get(&address).map_or(0, |count| count - 1);
            if left == 0 {
                room.by_address.remove(&address);
            } else {
                room.by_address.insert(address, left);
            }
        }
        drop(room);
        self.guests.left.notify_one();
    }
}

impl Visit {
    fn is_welcome(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(millis, Ordering::Relaxed);
    }

    /// The whole request is here.
    pub(super) fn works(&self) {
        self.at_work.store(true, Ordering::Relaxed);
    }

    /// The answer is ready. Why it is the last on this connection, if it is.
    pub(super) fn is_answered(&self, taken: bool) -> Option<Ended> {
        if taken {
            self.is_welcome();
            self.refusals.store(0, Ordering::Relaxed);
        }
        self.at_work.store(false, Ordering::Relaxed);
        let refusals = self.refusals.fetch_add(u32::from(!taken), Ordering::Relaxed);
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if !taken && refusals + 1 >= REFUSALS_MAX {
            Some(Ended::Refusals)
        } else if requests >= REQUESTS_MAX {
            Some(Ended::Requests)
        } else {
            None
        }
    }

    /// Completes when the connection has to end, and says why.
    pub(super) async fn has_to_leave(&self) -> Ended {
        loop {
            let waiting = self.waiting();
            let Some(left) = IDLE_MAX.checked_sub(waiting).filter(|left| !left.is_zero()) else {
                return Ended::Idle;
            };
            tokio::select! {
                () = self.leave.notified() => {
                    // It may have begun to work since it was chosen.
                    if self.waiting() >= PATIENCE {
                        return Ended::Crowded;
                    }
                }
                () = sleep(left) => {}
            }
        }
    }

    /// For how long nothing of it was taken; none while it is being worked for.
    fn waiting(&self) -> Duration {
        if self.at_work.load(Ordering::Relaxed) {
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
        let guests = Guests::new(1, 1);
        for _ in 0..2 {
            let guest = guests.try_seat().expect("the seat");
            let last = (1..=REQUESTS_MAX).find(|_| guest.visit.is_answered(true).is_some());
            assert_eq!(last, Some(REQUESTS_MAX));
            assert_eq!(guest.visit.is_answered(true), Some(Ended::Requests));
        }
    }
}
