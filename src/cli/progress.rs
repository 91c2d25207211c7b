//! How far long work is, for people: on standard error, and only when that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over a number of bytes; it disappears when it is dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// `doing` says what is done, such as "reading".
    pub(super) fn bytes(doing: &'static str, total: u64) -> Self {
        Self::with(doing, total, "{msg} {bar:30} {bytes}/{total_bytes} ({eta} left)")
    }

    /// As [`Progress::bytes`], over a number of items.
    pub(super) fn count(doing: &'static str, total: u64) -> Self {
        Self::with(doing, total, "{msg} {bar:30} {pos}/{len} ({eta} left)")
    }

    fn with(doing: &'static str, total: u64, template: &str) -> Self {
        /// Drawings a second.
        const RATE: u8 = 5;
        let bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(RATE));
        // A template that cannot be read would only look plainer.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()),
        );
        Self(bar.with_message(doing))
    }

    /// So much more is done.
    pub(super) fn add(&self, done: u64) {
        self.0.inc(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
