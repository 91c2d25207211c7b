//! The front of the log: hands a record to the writer and waits until it is durable.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::state::State;
use crate::record::{Lsn, Record};

/// Records waiting for the writer: a few groups, so that one fills while another is committed.
const INBOX_MAX: usize = 16 * 1024;
/// Bytes of records waiting for the writer, which bounds the memory of a burst of large ones.
const INBOX_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why a record was not taken. It is then not in the log, save after [`AppendError::Failed`],
/// when it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// More is waiting than the writer gets done.
    #[error("too many callbacks are waiting for the log")]
    Busy,
    /// `wal.max_bytes` is reached.
    #[error("the log has reached wal.max_bytes")]
    LogFull,
    /// The file system has less than `wal.min_free_bytes` left, or takes no further segment.
    #[error("the log has no room left on its disk")]
    DiskFull,
    /// The log stopped, by order or by an error.
    #[error("the log has stopped")]
    Failed,
}

impl AppendError {
    /// The metrics label.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::LogFull => "log_full",
            Self::DiskFull => "disk_full",
            Self::Failed => "log_failed",
        }
    }
}

/// A record on its way to the writer. The writer owns it: a sender that goes away changes nothing.
pub(super) struct Append {
    pub(super) record: Record,
    pub(super) reply: oneshot::Sender<Result<Lsn, AppendError>>,
}

/// The writer's end of the inbox.
pub(super) type Inbox = mpsc::Receiver<Append>;

/// A handle to append with. The log closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Appender {
    inbox: mpsc::Sender<Append>,
    state: Arc<State>,
}

impl Appender {
    pub(super) fn new(state: Arc<State>) -> (Self, Inbox) {
        let (inbox, receiver) = mpsc::channel(INBOX_MAX);
        (Self { inbox, state }, receiver)
    }

    /// Appends `record`; when this returns `Ok`, it is durable (I1).
    ///
    /// # Errors
    /// [`AppendError`]
    pub async fn append(&self, record: Record) -> Result<Lsn, AppendError> {
        let bytes = record.encoded_len();
        if !self.state.queue(bytes, INBOX_BYTES_MAX) {
            return Err(AppendError::Busy);
        }
        let (reply, outcome) = oneshot::channel();
        if let Err(refused) = self.inbox.try_send(Append { record, reply }) {
            self.state.unqueue(bytes);
            return Err(match refused {
                mpsc::error::TrySendError::Full(_) => AppendError::Busy,
                mpsc::error::TrySendError::Closed(_) => AppendError::Failed,
            });
        }
        outcome.await.unwrap_or(Err(AppendError::Failed))
    }
}
