//! The progress of long work: on standard error, and only if that is a terminal.

use indicatif::{ProgressDrawTarget, ProgressStyle};

/// A progress bar; it disappears when it is dropped.
pub(super) struct ProgressBar(indicatif::ProgressBar);

impl ProgressBar {
    /// Over a number of bytes; `activity` is shown, such as "reading".
    pub(super) fn bytes(activity: &'static str, total: u64) -> Self {
        Self::with(activity, total, "{msg} {bar:30} {bytes}/{total_bytes} ({eta} left)")
    }

    /// Over a number of items.
    pub(super) fn count(activity: &'static str, total: u64) -> Self {
        Self::with(activity, total, "{msg} {bar:30} {pos}/{len} ({eta} left)")
    }

    fn with(activity: &'static str, total: u64, template: &str) -> Self {
        /// Redraws per second.
        const RATE: u8 = 5;
        let bar = indicatif::ProgressBar::with_draw_target(
            Some(total),
            ProgressDrawTarget::stderr_with_hz(RATE),
        );
        // With an invalid template, the bar only looks plainer.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()),
        );
        Self(bar.with_message(activity))
    }

    /// Advances the bar by `done`.
    pub(super) fn add(&self, done: u64) {
        self.0.inc(done);
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
