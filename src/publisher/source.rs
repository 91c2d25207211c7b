//! Where a publisher's batches come from: the log, or a command that publishes given events.

use std::fmt;
use std::time::Duration;

use super::batch::Batch;
use crate::event::Timestamp;
use crate::record::Lsn;
use crate::wal::{Next, OpeningId, Outcomes, Progress, Reader};

/// What there is to publish next.
#[derive(Debug)]
pub(super) enum Input {
    /// A batch that is not empty.
    Batch(Batch),
    /// Nothing yet.
    Idle,
    /// Nothing, and there will be nothing.
    End,
}

/// A source of batches in order.
pub(super) trait Source: fmt::Debug + Send {
    /// The opening that its commits name as their publisher.
    fn opening(&self) -> OpeningId;

    /// The next batch: about `max_bytes` of records. Waits up to `timeout` for the first.
    ///
    /// # Errors
    /// Why it cannot be read; calling again tries again.
    fn next(
        &mut self,
        max_bytes: usize,
        timeout: Duration,
    ) -> Result<Input, Box<dyn std::error::Error>>;

    /// Continues after what the ledger says is published, and returns the last such record.
    fn resume(&mut self, progress: &Progress) -> Lsn;

    /// Everything up to `through` is done with. `newest` is when the record at `through` was
    /// received, `outcomes` what became of the records since the last call.
    fn settle(&mut self, through: Lsn, newest: Option<Timestamp>, outcomes: Outcomes);
}

impl Source for Reader {
    fn opening(&self) -> OpeningId {
        Reader::opening(self)
    }

    fn next(
        &mut self,
        max_bytes: usize,
        timeout: Duration,
    ) -> Result<Input, Box<dyn std::error::Error>> {
        Ok(match Reader::next(self, max_bytes, timeout)? {
            Next::Entries(read) => Input::Batch(Batch::new(read)),
            Next::Idle => Input::Idle,
            Next::End => Input::End,
        })
    }

    fn resume(&mut self, progress: &Progress) -> Lsn {
        Reader::resume(self, progress)
    }

    fn settle(&mut self, through: Lsn, newest: Option<Timestamp>, outcomes: Outcomes) {
        Reader::settle(self, through, newest, outcomes);
    }
}
