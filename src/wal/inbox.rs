//! The queue in front of the writer, bounded by items and by bytes.
//!
//! The writer sets how many items it waits for and is woken once for them, not once for each.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How much may be queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) items: usize,
    /// Of the queued items, and of those that were taken until [`Receiver::discount`].
    pub(super) bytes: usize,
}

/// Why an item was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Full,
    Closed,
}

struct Channel<T> {
    queue: Mutex<Queue<T>>,
    ready: Condvar,
    limits: QueueLimits,
}

struct Queue<T> {
    items: Vec<T>,
    bytes: usize,
    /// The receiver is woken at this many items; `usize::MAX` while it does not wait.
    wake_at: usize,
    /// One of the ends was dropped.
    closed: bool,
}

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        // Every update leaves the queue whole, so a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end for senders; the queue is closed when all clones are dropped.
pub(super) struct Sender<T>(Arc<ClosesOnDrop<T>>);

struct ClosesOnDrop<T>(Arc<Channel<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Drop for ClosesOnDrop<T> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.ready.notify_one();
    }
}

/// The writer's end.
pub(super) struct Receiver<T>(Arc<Channel<T>>);

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.items);
        drop(queue);
        // Outside the lock: this wakes the senders that wait for an answer.
        drop(left);
    }
}

pub(super) fn channel<T>(limits: QueueLimits) -> (Sender<T>, Receiver<T>) {
    let queue = Queue { items: Vec::new(), bytes: 0, wake_at: usize::MAX, closed: false };
    let shared = Arc::new(Channel { queue: Mutex::new(queue), ready: Condvar::new(), limits });
    (Sender(Arc::new(ClosesOnDrop(Arc::clone(&shared)))), Receiver(shared))
}

impl<T> Sender<T> {
    /// Queues an item of this many bytes.
    pub(super) fn send(&self, item: T, bytes: usize) -> Result<(), Rejected> {
        let Channel { ready, limits, .. } = &*self.0.0;
        let mut queue = self.0.0.lock();
        if queue.closed {
            return Err(Rejected::Closed);
        }
        if queue.items.len() >= limits.items || queue.bytes + bytes > limits.bytes {
            return Err(Rejected::Full);
        }
        queue.items.push(item);
        queue.bytes += bytes;
        if queue.items.len() >= queue.wake_at {
            queue.wake_at = usize::MAX;
            drop(queue);
            ready.notify_one();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Waits for `count` items, until `until` if there is such a time, or until every sender is
    /// gone. Returns how many are queued.
    pub(super) fn wait(&self, count: usize, until: Option<Instant>) -> usize {
        let mut queue = self.0.lock();
        while queue.items.len() < count && !queue.closed {
            queue.wake_at = count;
            queue = match until {
                None => self.0.ready.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.0.ready.wait_timeout(queue, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        queue.wake_at = usize::MAX;
        queue.items.len()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().items.len()
    }

    /// Moves up to `max` items, the oldest first, to `into`, which is empty.
    pub(super) fn take(&self, into: &mut Vec<T>, max: usize) {
        let mut queue = self.0.lock();
        if queue.items.len() <= max {
            std::mem::swap(&mut queue.items, into);
        } else {
            into.extend(queue.items.drain(..max));
        }
    }

    /// Frees this many bytes of items that were taken.
    pub(super) fn discount(&self, bytes: usize) {
        self.0.lock().bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LIMITS: QueueLimits = QueueLimits { items: 4, bytes: 100 };

    fn take<T>(receiver: &Receiver<T>, max: usize) -> Vec<T> {
        let mut taken = Vec::new();
        receiver.take(&mut taken, max);
        taken
    }

    #[test]
    fn items_come_in_order_and_at_most_as_many_as_wanted() {
        let (sender, receiver) = channel(LIMITS);
        for item in 1..=4 {
            assert_eq!(sender.send(item, 1), Ok(()));
        }
        assert_eq!(receiver.wait(1, None), 4);
        assert_eq!(take(&receiver, 3), [1, 2, 3]);
        assert_eq!(receiver.len(), 1);
        assert_eq!(take(&receiver, 3), [4]);
        assert_eq!(take(&receiver, 3), [0; 0]);
    }

    #[test]
    fn items_and_bytes_are_limited_and_bytes_count_until_they_are_discounted() {
        let (sender, receiver) = channel(LIMITS);
        assert_eq!(sender.send(1, 101), Err(Rejected::Full));
        assert_eq!(sender.send(1, 100), Ok(()));
        assert_eq!(sender.send(2, 1), Err(Rejected::Full));
        assert_eq!(take(&receiver, 9), [1]);
        assert_eq!(sender.send(2, 1), Err(Rejected::Full));
        receiver.discount(100);
        for item in 0..4 {
            assert_eq!(sender.send(item, 1), Ok(()));
        }
        assert_eq!(sender.send(5, 1), Err(Rejected::Full));
    }

    #[test]
    fn a_wait_ends_at_the_count_at_its_deadline_and_when_the_senders_are_gone() {
        let (sender, receiver) = channel(LIMITS);
        let pause = Duration::from_millis(20);
        assert_eq!(receiver.wait(1, Some(Instant::now() + pause)), 0);
        let start = Instant::now();
        let sending = thread::spawn(move || {
            for item in 0..3 {
                thread::sleep(pause);
                sender.send(item, 1).unwrap();
            }
            thread::sleep(pause);
        });
        assert!(receiver.wait(2, None) >= 2);
        assert!(start.elapsed() >= 2 * pause);
        assert_eq!(receiver.wait(9, None), 3, "the sender is gone");
        sending.join().unwrap();
        assert_eq!(take(&receiver, 9), [0, 1, 2], "what was sent is still there");
    }

    #[test]
    fn without_a_receiver_nothing_is_queued_and_what_was_is_dropped() {
        let (sender, receiver) = channel(LIMITS);
        let item = Arc::new(());
        sender.send(Arc::clone(&item), 1).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&item), 1);
        assert_eq!(sender.send(item, 1), Err(Rejected::Closed));
    }
}
