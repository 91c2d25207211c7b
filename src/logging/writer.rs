//! Writes log lines to standard error on a thread of its own, so that a reader that has stopped
//! reading (a full pipe, a hung terminal) never blocks the thread that logs.
//!
//! Lines wait in a bounded queue. When it is full, new lines are dropped and counted.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::secret::redact;

/// Bytes of lines that wait to be written: some seconds of the busiest debug level.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest that [`LineQueue::flush`] waits: the end of the process must not depend on the
/// reader of its log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue in front of standard error.
pub(super) static STANDARD_ERROR: LazyLock<LineQueue> = LazyLock::new(LineQueue::default);

/// Lines on their way to a slow writer.
#[derive(Debug, Default)]
pub(super) struct LineQueue {
    state: Mutex<State>,
    /// Notified when there is a line to write.
    filled: Condvar,
    /// Notified when everything is written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines taken from the queue are being written.
    writing: bool,
    dropped: u64,
}

impl LineQueue {
    /// Starts the thread that writes lines to `output`.
    ///
    /// # Errors
    /// The operating system's, when it starts no thread.
    pub(super) fn start(&'static self, mut output: impl Write + Send + 'static) -> io::Result<()> {
        thread::Builder::new().name("log".into()).spawn(move || self.run(&mut output))?;
        Ok(())
    }

    fn run(&self, output: &mut impl Write) {
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() {
                state.writing = false;
                self.emptied.notify_all();
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let line = state.lines.pop_front().unwrap_or_default();
            state.bytes -= line.len();
            state.writing = true;
            drop(state);
            // A log that cannot be written has no place to report that.
            let _ = output.write_all(&line).and_then(|()| output.flush());
        }
    }

    /// Queues a line, or drops and counts it when the queue is full.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.bytes + line.len() > QUEUE_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until every queued line is written, for at most [`FLUSH_TIMEOUT`].
    pub(super) fn flush(&self) {
        let until = Instant::now() + FLUSH_TIMEOUT;
        let mut state = self.lock();
        while !state.lines.is_empty() || state.writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.emptied.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many lines were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line, written as a whole: the subscriber makes one for each event.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            STANDARD_ERROR.push(redacted(std::mem::take(&mut self.0)));
        }
    }
}

/// `line` without secrets: the text of other libraries may repeat a value that it was given.
fn redacted(line: Vec<u8>) -> Vec<u8> {
    let masked = match redact(&String::from_utf8_lossy(&line)) {
        Cow::Borrowed(_) => None,
        Cow::Owned(masked) => Some(masked.into_bytes()),
    };
    masked.unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A writer that writes nothing before it may.
    struct Gated {
        open: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.open.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_writer_blocks_neither_push_nor_flush_and_loses_only_what_exceeds_the_queue() {
        let queue: &'static LineQueue = Box::leak(Box::default());
        let (gate, open) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        queue.start(Gated { open, written: Arc::clone(&written) }).unwrap();
        let started = Instant::now();
        let line = vec![b'x'; 1024];
        let count = QUEUE_BYTES_MAX / line.len() + 100;
        (0..count).for_each(|_| queue.push(line.clone()));
        // One line may have left the queue for the blocked writer.
        assert!((99..=100).contains(&queue.dropped()), "{}", queue.dropped());
        queue.flush();
        // A blocked call would not return before the writer may write.
        assert!(started.elapsed() < 30 * FLUSH_TIMEOUT, "{:?}", started.elapsed());
        assert!(written.lock().unwrap().is_empty());

        drop(gate);
        let kept = (count as u64 - queue.dropped()) * 1024;
        let opened = Instant::now();
        while (written.lock().unwrap().len() as u64) < kept && opened.elapsed().as_secs() < 30 {
            thread::sleep(Duration::from_millis(1));
        }
        queue.flush();
        assert_eq!(written.lock().unwrap().len() as u64, kept);
    }
}
