//! Records that Kafka takes in no topic: one file each, until somebody releases them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::PublisherError;
use crate::record::{Entry, Record};
use crate::wal;

/// A record in quarantine.
#[derive(Clone, Debug)]
pub struct QuarantinedRecord {
    /// Its file.
    pub path: PathBuf,
    /// The record.
    pub record: Record,
    /// Why Kafka refused it.
    pub reason: String,
}

/// The quarantine of the log in `dir`.
#[must_use]
pub fn dir_of(dir: &Path) -> PathBuf {
    dir.join("quarantine")
}

/// Stores `entry` durably as `<lsn>.record`, with the reason in `<lsn>.reason`.
pub(super) fn store(dir: &Path, entry: &Entry, reason: &str) -> Result<(), PublisherError> {
    let path = dir.join(format!("{}.record", entry.lsn));
    let mut bytes = BytesMut::with_capacity(entry.record.encoded_len());
    entry.record.encode(&mut bytes);
    let stored: io::Result<()> = wal::create_dir_durably(dir)
        .and_then(|()| wal::write_durably(&path.with_extension("reason"), reason.as_bytes()))
        .and_then(|()| wal::write_durably(&path, &bytes))
        .and_then(|()| wal::sync_dir(dir));
    stored.map_err(|cause| PublisherError::Quarantine { path, cause })
}

/// What is in the quarantine `dir`; nothing when there is no such directory.
///
/// # Errors
/// The file system's; that a file is not a record is [`io::ErrorKind::InvalidData`].
pub fn list(dir: &Path) -> io::Result<Vec<QuarantinedRecord>> {
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut held = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "record") {
            continue;
        }
        let record = Record::decode(Bytes::from(fs::read(&path)?))
            .map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))?;
        let reason = fs::read_to_string(path.with_extension("reason")).unwrap_or_default();
        held.push(QuarantinedRecord { path, record, reason });
    }
    held.sort_unstable_by_key(|held| held.record.received_at);
    Ok(held)
}

/// Removes a record that went another way.
///
/// # Errors
/// The file system's.
pub fn remove(held: &QuarantinedRecord) -> io::Result<()> {
    fs::remove_file(&held.path)?;
    match fs::remove_file(held.path.with_extension("reason")) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        Ok(()) | Err(_) => Ok(()),
    }
}
