//! The log's directory: its lock, its identity, the names and markers of segments, and how files and
//! directories are made so that a power cut cannot undo it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::opening::OpeningId;
use super::progress::Extent;
use super::{LogId, OpenError, SegmentView};
use crate::permission::FileError;

/// The format of everything below a log's directory.
pub(super) const FORMAT: u32 = 2;
/// Names the format and the log's id.
pub(super) const IDENTITY: &str = "log";
pub(super) const SEGMENTS: &str = "segments";
/// Extension of a segment's directory while it is being removed: what is left of it is not read.
pub(super) const REMOVING: &str = "gone";
/// A segment with records that could not be published because they cannot be read; kept until an
/// operator drops it. Within a segment's directory: marks it as such before its removal.
pub(super) const DAMAGED: &str = "damaged";

/// Where sled keeps a database's data, within its directory.
const DATA: &str = "db";
/// In a closed segment's directory: how many records it has, which spares a scan.
const CLOSED: &str = "closed";

/// The directory of segment `number` in `segments`.
pub(super) fn segment_dir(segments: &Path, number: u32) -> PathBuf {
    segments.join(format!("{number:010}"))
}

/// The file of `dir` that holds a segment's frames.
pub(super) fn data_file(dir: &Path) -> PathBuf {
    dir.join(DATA)
}

/// Marks a segment as closed. Not synced: without the marker the next start counts the records.
pub(super) fn mark_closed(dir: &Path, extent: Extent) -> io::Result<()> {
    fs::write(dir.join(CLOSED), closed_text(extent))
}

/// What the marker says; `None` when there is none, or not a whole one.
pub(super) fn read_closed(dir: &Path, number: u32) -> Option<Extent> {
    let text = fs::read_to_string(dir.join(CLOSED)).ok()?;
    let mut words = text.split([' ', ',']);
    let records = words.next()?.parse().ok()?;
    let extent = Extent { number, writer: words.find_map(OpeningId::parse)?, records };
    (text == closed_text(extent)).then_some(extent)
}

fn closed_text(Extent { number, writer, records }: Extent) -> String {
    let text = format!("{records} records in segment {number} by opening {writer}");
    let checksum = crc32fast::hash(text.as_bytes());
    format!("{text}, checksum {checksum:08x}\n")
}

/// Marks a segment as one to be kept as damaged.
pub(super) fn mark_damaged(dir: &Path) -> io::Result<()> {
    File::create(dir.join(DAMAGED))?.sync_all()?;
    sync_dir(dir)
}

/// Whether the segment is to be kept as damaged. If that cannot be told, it is.
pub(super) fn is_marked_damaged(dir: &Path) -> bool {
    dir.join(DAMAGED).try_exists().unwrap_or(true)
}

/// Keeps a segment as damaged: renames its directory, to a name that is not taken. The last one gets
/// an empty directory in its place, so that numbers do not restart.
pub(super) fn keep_damaged(dir: &Path, is_last: bool) -> io::Result<PathBuf> {
    let mut kept = dir.with_extension(DAMAGED);
    let mut number = 2;
    while kept.try_exists()? {
        kept = dir.with_extension(format!("{number}.{DAMAGED}"));
        number += 1;
    }
    fs::rename(dir, &kept)?;
    if is_last {
        fs::create_dir(dir)?;
    }
    Ok(kept)
}

/// Damaged segments that are kept: number and directory, in order.
pub(super) fn list_damaged(segments: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(segments)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number =
            name.strip_suffix(DAMAGED).and_then(|name| name.split('.').next()?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes a damaged segment that is kept ([`LogView::damaged`](super::LogView::damaged)).
///
/// # Errors
/// [`FileError`]
pub fn remove_damaged(segment: &SegmentView) -> Result<(), FileError> {
    let dir = segment.path.parent().unwrap_or(&segment.path);
    fs::remove_dir_all(dir).map_err(FileError::at("remove", dir))
}

/// Removes all that is in a segment's directory, but not the directory.
///
/// The marker goes first: without it and without data, a segment has no records.
pub(super) fn empty(dir: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(dir.join(CLOSED)))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The result of a removal; that there was nothing to remove is no error.
pub(super) fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    /// Right after a kill the old process may hold its lock a little longer.
    const ATTEMPTS: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    let path = dir.join("lock");
    let io = FileError::at("lock", &path);
    let file = File::create(&path).map_err(io)?;
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Err(TryLockError::Error(cause)) => return Err(io(cause).into()),
        }
    }
    Err(OpenError::Locked(dir.to_owned()))
}

/// The identity of the log in `dir`, which is therefore there.
///
/// # Errors
/// [`OpenError`]
pub fn read_identity(dir: &Path) -> Result<LogId, OpenError> {
    let path = dir.join(IDENTITY);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing(dir.to_owned()));
        }
        Err(cause) => return Err(FileError::at("read", &path)(cause).into()),
    };
    let id = text
        .trim()
        .strip_prefix("livebridge log, format ")
        .and_then(|rest| rest.split_once(", id "))
        .filter(|(format, _)| *format == FORMAT.to_string())
        .and_then(|(_, id)| LogId::parse(id));
    id.ok_or_else(|| OpenError::Format {
        dir: dir.to_owned(),
        found: text.trim().chars().take(80).collect(),
    })
}

/// The uid of the user that created the log in `dir`, and so runs livebridge.
///
/// # Errors
/// [`FileError`]
pub fn owner(dir: &Path) -> Result<u32, FileError> {
    let path = dir.join(IDENTITY);
    let meta = fs::metadata(&path).map_err(FileError::at("examine", &path))?;
    Ok(meta.uid())
}

pub(super) fn make_identity(dir: &Path) -> Result<LogId, OpenError> {
    let id = LogId::unique();
    let path = dir.join(IDENTITY);
    let text = format!("livebridge log, format {FORMAT}, id {id}\n");
    write_durably(&path, text.as_bytes())
        .and_then(|()| sync_dir(dir))
        .map_err(FileError::at("write", &path))?;
    Ok(id)
}

/// Makes a directory and those above it that are missing, each entry durable.
///
/// The entry is synced even if it is there: the process that made it may have been killed before it
/// synced it. What is above it was synced before it was made.
pub(crate) fn create_dir_durably(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let existed = dir.is_dir();
    if !existed {
        create_dir_durably(parent)?;
        fs::create_dir(dir)?;
    }
    match sync_dir(parent) {
        // The directory belongs to another user, who made the entry.
        Err(cause) if existed && cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Writes a file whole or not at all; its directory is left for the caller to sync.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// Segment numbers and directories, in order.
pub(super) fn list(segments: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(segments)? {
        let path = entry?.path();
        if let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
