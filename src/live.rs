//! A value that is replaced while it is used: how a new configuration reaches parts that run.

use std::sync::Arc;

use tokio::sync::watch;

/// One value for all that hold it. Whoever has taken it works on with what it has taken.
#[derive(Debug)]
pub struct Live<T>(Arc<watch::Sender<Arc<T>>>);

impl<T> Live<T> {
    /// Starts with `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(value))))
    }

    /// The value of now. Costs two atomic operations and a lock that only a change holds up.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }

    /// Replaces it, for all.
    pub fn set(&self, value: T) {
        self.0.send_replace(Arc::new(value));
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
