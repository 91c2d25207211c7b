//! Records that no topic accepts: a file each in the log's directory, until an operator returns
//! them.
//!
//! A record is stored as `.pending` before the transaction commits that leaves it out, and renamed to
//! `.record` afterwards. So a crash in between loses nothing, and a record that is accepted at the next
//! attempt leaves no copy to return.
//!
//! A file is named after the record's LSN and event id: LSNs restart when the log's segments were
//! removed by hand, and a new record must not replace one that is still in quarantine. It contains
//! [`FORMAT`], the CRC-32 of the encoded record, and the encoded record.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use serde::de::IgnoredAny;

use super::batch::Batch;
use crate::event::EventId;
use crate::ledger::{Known, Ledger};
use crate::permission::{self, FileError};
use crate::record::{Entry, Lsn, Record};
use crate::wal;

/// What a file begins with. One of an earlier version is the encoded record alone, and begins with the
/// version of that, 1.
const FORMAT: &[u8] = b"quarantine 2\n";

/// A quarantined record, with its reason in a `.reason` file beside it.
const RECORD: &str = "record";
/// The same, while the transaction that leaves it out may not be committed.
const PENDING: &str = "pending";
const REASON: &str = "reason";

/// A record in quarantine.
#[derive(Clone, Debug)]
pub struct QuarantinedRecord {
    /// Its file.
    pub path: PathBuf,
    /// The record.
    pub record: Record,
    /// Why Kafka rejected it.
    pub reason: String,
}

/// A file whose record cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "the quarantined record in {path} cannot be read: {cause}{}; restore the file, or move it out of \
     this directory if its callback is given up",
    permission::advice(path, cause), path = path.display()
)]
pub struct DamagedFile {
    /// The file.
    pub path: PathBuf,
    /// Why; [`io::ErrorKind::InvalidData`] when it is not a whole record.
    #[source]
    pub cause: io::Error,
}

/// What the quarantine holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Records, the oldest first.
    pub records: Vec<QuarantinedRecord>,
    /// Files whose records cannot be read: they must not keep the others from being returned.
    pub damaged: Vec<DamagedFile>,
}

const READ: &str = "read the quarantine";
const WRITE: &str = "write to the quarantine";
const REMOVE: &str = "remove a record from the quarantine";

/// The quarantine of the log in `dir`.
#[must_use]
pub fn dir_of(dir: &Path) -> PathBuf {
    dir.join("quarantine")
}

/// What a record's file is named after.
type Key = (Lsn, EventId);

/// The quarantine as the publisher uses it.
#[derive(Debug)]
pub(super) struct Quarantine {
    dir: PathBuf,
    /// Pending records; `None` until the directory is read.
    pending: Option<HashSet<Key>>,
    /// Whether a renamed or removed file is not synced.
    unsynced: bool,
}

impl Quarantine {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, pending: None, unsynced: false }
    }

    /// Stores `entry` durably as pending, with the reason.
    pub(super) fn store(&mut self, entry: &Entry, reason: &str) -> Result<(), FileError> {
        let key = (entry.lsn, entry.record.id);
        let path = self.path(key, PENDING);
        let bytes = encode(&entry.record);
        self.read_pending()?;
        let stored = wal::create_dir_durably(&self.dir)
            .and_then(|()| wal::write_durably(&path.with_extension(REASON), reason.as_bytes()))
            .and_then(|()| wal::write_durably(&path, &bytes))
            .and_then(|()| wal::sync_dir(&self.dir));
        stored.map_err(FileError::at(WRITE, &path))?;
        self.pending.get_or_insert_default().insert(key);
        Ok(())
    }

    /// The transactions of `batch` and of all before it are committed. A pending record that the batch
    /// published is removed; every other one as in [`Self::finalize_all`].
    pub(super) fn finalize(&mut self, batch: &Batch, ledger: &Ledger) -> Result<(), FileError> {
        let Some(last) = batch.entries().last().map(|entry| entry.lsn) else { return Ok(()) };
        self.decide(|key| match batch.is_quarantined(key) {
            _ if key.0 > last => Decision::Wait,
            Some(false) => Decision::Remove,
            Some(true) => Decision::Keep,
            None => Decision::of_committed(key, ledger),
        })
    }

    /// The transactions of all records of the log are committed. A pending record gets its final name,
    /// but for one that was published at a later attempt, of a process that died before it removed
    /// the file: the ledger has the ids of published records only.
    pub(super) fn finalize_all(&mut self, ledger: &Ledger) -> Result<(), FileError> {
        self.decide(|key| Decision::of_committed(key, ledger))
    }

    fn decide(&mut self, decision: impl Fn(Key) -> Decision) -> Result<(), FileError> {
        let keys: Vec<Key> = self.read_pending()?.iter().copied().collect();
        for key in keys {
            let path = self.path(key, PENDING);
            let done = match decision(key) {
                Decision::Wait => continue,
                Decision::Keep => keep(&path),
                Decision::Remove => remove_files(&path),
            };
            done.map_err(FileError::at(WRITE, &path))?;
            // At once: after an error of the next record, this one must not be decided again.
            self.pending.get_or_insert_default().remove(&key);
            self.unsynced = true;
        }
        if self.unsynced {
            wal::sync_dir(&self.dir).map_err(FileError::at(WRITE, &self.dir))?;
            self.unsynced = false;
        }
        Ok(())
    }

    fn read_pending(&mut self) -> Result<&HashSet<Key>, FileError> {
        if self.pending.is_none() {
            let names = files(&self.dir, PENDING).map_err(FileError::at(READ, &self.dir))?;
            let key = |path: &PathBuf| {
                let (lsn, id) = path.file_stem()?.to_str()?.split_once('-')?;
                Some((Lsn::parse(lsn)?, EventId::parse(id)?))
            };
            self.pending = Some(names.iter().filter_map(key).collect());
        }
        Ok(self.pending.get_or_insert_default())
    }

    fn path(&self, (lsn, id): Key, extension: &str) -> PathBuf {
        self.dir.join(format!("{lsn}-{id}.{extension}"))
    }
}

fn encode(record: &Record) -> Vec<u8> {
    let mut encoded = BytesMut::with_capacity(record.encoded_len());
    record.encode(&mut encoded);
    [FORMAT, &crc32fast::hash(&encoded).to_be_bytes(), &encoded].concat()
}

/// The record that [`encode`] or an earlier version wrote.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when `bytes` are not a whole record.
fn decode(mut bytes: Bytes) -> io::Result<Record> {
    let damaged = |cause: &str| io::Error::new(io::ErrorKind::InvalidData, cause);
    let has_checksum = bytes.starts_with(FORMAT);
    if has_checksum {
        bytes.advance(FORMAT.len());
        let checksum = bytes.try_get_u32().map_err(|_| damaged("it is cut short"))?;
        if checksum != crc32fast::hash(&bytes) {
            return Err(damaged("its checksum does not match"));
        }
    }
    if !has_checksum && bytes.first() == FORMAT.first() {
        return Err(damaged("its heading is damaged"));
    }
    let record = Record::decode(bytes).map_err(|cause| damaged(&cause.to_string()))?;
    // Every body is a JSON object, so a shorter one is not.
    if !has_checksum && serde_json::from_slice::<IgnoredAny>(&record.body).is_err() {
        return Err(damaged("it is cut short"));
    }
    Ok(record)
}

enum Decision {
    Wait,
    Keep,
    Remove,
}

impl Decision {
    /// Of a record whose transaction is committed.
    fn of_committed((_, id): Key, ledger: &Ledger) -> Self {
        if ledger.known(id) == Known::Retry { Self::Remove } else { Self::Keep }
    }
}

/// Gives a pending record its final name; one that was removed by hand needs none.
fn keep(path: &Path) -> io::Result<()> {
    match fs::rename(path, path.with_extension(RECORD)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            tracing::error!(path = %path.display(), "a record was removed from the quarantine by hand");
            Ok(())
        }
        renamed => renamed,
    }
}

/// The files of a kind in `dir`; none when there is no such directory.
fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(files)
}

/// What is in the quarantine `dir`; nothing when there is no such directory.
///
/// # Errors
/// When the directory cannot be read. A file that cannot be read is in [`Contents::damaged`].
pub fn list(dir: &Path) -> Result<Contents, FileError> {
    let mut contents = Contents::default();
    for path in files(dir, RECORD).map_err(FileError::at(READ, dir))? {
        match fs::read(&path).and_then(|bytes| decode(bytes.into())) {
            Ok(record) => {
                let reason = fs::read_to_string(path.with_extension(REASON)).unwrap_or_default();
                contents.records.push(QuarantinedRecord { path, record, reason });
            }
            // Released since the directory was read.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => contents.damaged.push(DamagedFile { path, cause }),
        }
    }
    contents.records.sort_unstable_by_key(|held| held.record.received_at);
    contents.damaged.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(contents)
}

/// Removes a record that is in the log again, durably: after a power cut it must not be there to be
/// returned once more.
///
/// # Errors
/// When its files cannot be removed.
pub fn remove(held: &QuarantinedRecord) -> Result<(), FileError> {
    let removed = remove_files(&held.path);
    removed
        .and_then(|()| held.path.parent().map_or(Ok(()), wal::sync_dir))
        .map_err(FileError::at(REMOVE, &held.path))
}

/// The record first: a reason without a record is not listed.
fn remove_files(path: &Path) -> io::Result<()> {
    for path in [path, &path.with_extension(REASON)] {
        match fs::remove_file(path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
