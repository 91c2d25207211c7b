//! The newest frames, in memory: a reader that keeps up reads no files.

use std::collections::VecDeque;

use super::frame::Frame;
use crate::record::Lsn;

/// Bytes of frames that are kept.
const BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Tail {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Tail {
    /// Adds the log's newest frame, and drops the oldest ones above the limit.
    pub(super) fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.bytes > BYTES_MAX {
            self.pop();
        }
    }

    /// Takes the frame with the record at `lsn`, and drops those before it.
    pub(super) fn take(&mut self, lsn: Lsn) -> Option<Frame> {
        while self.frames.front().is_some_and(|frame| frame.last() < lsn) {
            self.pop();
        }
        if self.frames.front()?.first() > lsn { None } else { self.pop() }
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}
