//! From bytes to an authentic callback.
