//! A value that is replaced while it is used: how a new configuration reaches parts that run.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// One value for all holders. A value obtained before a replacement stays valid.
#[derive(Debug)]
pub struct Reloadable<T>(Arc<ArcSwap<T>>);

impl<T> Reloadable<T> {
    /// Starts with `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// The value of now. Shares no cache line with other cores while it is held briefly, which is
    /// why it is not an `Arc` of the caller's own.
    #[must_use]
    pub fn get(&self) -> impl Deref<Target = Arc<T>> + use<T> {
        self.0.load()
    }

    /// Whether `value` is that of now.
    #[must_use]
    pub fn is(&self, value: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.0.load(), value)
    }

    /// Replaces it, for all.
    pub fn set(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
