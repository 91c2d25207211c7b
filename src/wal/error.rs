//! The log's errors: of opening it, appending to it, storing and reading.

use std::path::PathBuf;

use super::dir::{FORMAT, IDENTITY};
use crate::permission::FileError;
use crate::record::{DecodeError, Lsn};

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the log in {} is in use by another process; give each instance its own wal.dir",
        .0.display()
    )]
    Locked(PathBuf),
    /// Written in a format of another release.
    #[error(
        "the log in {} has format {found:?}, this version reads format {FORMAT}; \
         let the release that wrote it publish what it holds",
        dir.display()
    )]
    Format {
        /// The log's directory.
        dir: PathBuf,
        /// What its `log` file says.
        found: String,
    },
    /// There are segments, but not the file that says which log they are of.
    #[error(
        "there are segments in {dir}, but {path} is missing, without which they cannot be read; \
         put it back, or move the directory away",
        dir = .0.display(), path = .0.join(IDENTITY).display()
    )]
    Orphaned(PathBuf),
    /// No log there.
    #[error("there is no log in {}", .0.display())]
    Missing(PathBuf),
    /// From the file system.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A failure of the writer. It is final for the process: after a failed flush it is unknown what is
/// on disk, so the next process has to look (I6).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// From the file system, directly or by sled.
    #[error(transparent)]
    File(#[from] FileError),
    /// A thread of the log ended on its own.
    #[error("the log's {0} thread panicked")]
    Panicked(&'static str),
}

/// Why a record was not stored. It is then not in the log, except after [`AppendError::Failed`],
/// when it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The writer's queue is full.
    #[error("too many callbacks are waiting for the log")]
    Busy,
    /// `wal.max_bytes` is reached.
    #[error("the log has reached wal.max_bytes")]
    LogFull,
    /// The file system has less than `wal.min_free_bytes` left, or has no space for a further segment.
    #[error("the disk has less than wal.min_free_bytes free, or no space for a segment")]
    DiskFull,
    /// The log was closed, or the writer failed.
    #[error("the log has stopped")]
    Failed,
}

impl AppendError {
    /// Every value of [`Self::reason`].
    pub const REASONS: [&str; 4] = ["busy", "log_full", "disk_full", "log_failed"];

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

/// Why a group was not stored.
#[derive(Debug)]
pub(super) enum NotStored {
    /// Nothing was written and nothing has failed.
    Rejected(AppendError),
    /// The log has failed.
    Failed(StoreError),
}

impl<E: Into<StoreError>> From<E> for NotStored {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Why the log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// From the file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// A whole frame holds a record that this version cannot read.
    #[error("cannot decode the records at {lsn}: {cause}; a newer release may have written them")]
    Record {
        /// The frame's first record.
        lsn: Lsn,
        /// What is wrong with a record.
        #[source]
        cause: DecodeError,
    },
}
