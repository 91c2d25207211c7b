//! How long a command waits for Kafka.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio_util::sync::CancellationToken;

/// How often the deadline is compared with the clock.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// When a command gives up.
#[derive(Clone, Debug)]
pub(crate) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    /// Cancels `give_up` once `timeout` has passed without [`Self::extend`]; as long as there is a
    /// copy of the deadline.
    pub(crate) fn start(timeout: Duration, give_up: CancellationToken) -> io::Result<Self> {
        let at = Arc::new(Mutex::new(Instant::now() + timeout));
        let watched = Arc::downgrade(&at);
        let watch = move || {
            while let Some(at) = watched.upgrade() {
                if *at.lock().unwrap_or_else(PoisonError::into_inner) < Instant::now() {
                    return give_up.cancel();
                }
                drop(at);
                thread::sleep(CHECK_INTERVAL);
            }
        };
        thread::Builder::new().spawn(watch)?;
        Ok(Self(at))
    }

    /// Gives up `timeout` from now.
    pub(crate) fn extend(&self, timeout: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + timeout;
    }
}
