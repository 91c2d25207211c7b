//! Records that Kafka takes in no topic: one file each, until somebody looks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::PublisherError;
use crate::record::Entry;
use crate::wal;

/// Stores `entry` durably as `<lsn>.json`, the body as received, with the reason in `<lsn>.reason`.
pub(super) fn store(dir: &Path, entry: &Entry, reason: &str) -> Result<(), PublisherError> {
    let path = dir.join(format!("{}.json", entry.lsn));
    let stored: io::Result<()> = fs::create_dir_all(dir)
        .and_then(|()| wal::write_durably(&path.with_extension("reason"), reason.as_bytes()))
        .and_then(|()| wal::write_durably(&path, &entry.record.body))
        .and_then(|()| wal::sync_dir(dir))
        .and_then(|()| wal::sync_dir(dir.parent().unwrap_or(dir)));
    stored.map_err(|cause| PublisherError::Quarantine { path, cause })
}

/// The bodies in the quarantine `dir`, in order; none when there is no such directory.
///
/// # Errors
/// The file system's.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut bodies = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            bodies.push(path);
        }
    }
    bodies.sort_unstable();
    Ok(bodies)
}
