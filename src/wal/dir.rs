//! The log's directory: its lock, its identity, the segments that earlier processes left, and how
//! files and directories are made so that a power cut cannot undo it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::frame::{Scanner, is_unreadable};
use super::opening::{Extent, OpeningId, Position};
use super::preallocation;
use super::{LogId, OpenError, SegmentView};
use crate::event::Timestamp;
use crate::metrics;
use crate::permission::FileError;
use crate::record::Lsn;

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

/// What the marker of a closed segment says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub(super) writer: OpeningId,
    pub(super) records: u32,
}

/// Marks a segment as closed. Not synced: without the marker the next start counts the records.
pub(super) fn mark_closed(dir: &Path, number: u32, closed: Closed) -> io::Result<()> {
    fs::write(dir.join(CLOSED), closed.text(number))
}

/// What the marker says; `None` when there is none, or not a whole one.
pub(super) fn read_closed(dir: &Path, number: u32) -> Option<Closed> {
    let text = fs::read_to_string(dir.join(CLOSED)).ok()?;
    let mut words = text.split([' ', ',']);
    let records = words.next()?.parse().ok()?;
    let closed = Closed { records, writer: words.find_map(OpeningId::parse)? };
    (text == closed.text(number)).then_some(closed)
}

impl Closed {
    fn text(self, number: u32) -> String {
        let Self { writer, records } = self;
        let text = format!("{records} records in segment {number} by opening {writer}");
        let checksum = crc32fast::hash(text.as_bytes());
        format!("{text}, checksum {checksum:08x}\n")
    }
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

/// Keeps a segment as damaged: renames its directory, to a name that is not taken.
pub(super) fn keep_damaged(dir: &Path) -> io::Result<PathBuf> {
    let mut kept = dir.with_extension(DAMAGED);
    let mut number = 2;
    while kept.try_exists()? {
        kept = dir.with_extension(format!("{number}.{DAMAGED}"));
        number += 1;
    }
    fs::rename(dir, &kept)?;
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
    match fs::remove_file(dir.join(CLOSED)) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        Ok(()) | Err(_) => {}
    }
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

pub(super) fn read_identity(dir: &Path) -> Result<LogId, OpenError> {
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

/// A segment found on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundSegment {
    pub(super) number: u32,
    pub(super) writer: OpeningId,
    /// Its last record's index.
    pub(super) records: u32,
    pub(super) disk_bytes: u64,
}

impl FoundSegment {
    pub(super) fn last(&self) -> Position {
        Position { writer: self.writer, lsn: Lsn::new(self.number, self.records) }
    }

    pub(super) fn extent(&self) -> Extent {
        Extent { number: self.number, writer: self.writer, records: self.records }
    }
}

/// What earlier processes left.
pub(super) struct Recovered {
    /// The segments that hold records, in order.
    pub(super) found: Vec<FoundSegment>,
    /// Behind the number of every segment that there ever was.
    pub(super) next_number: u32,
}

/// Finds the segments that hold records and removes those that hold none.
///
/// The last segment's directory stays even then, empty, so that numbers do not restart: an operator
/// who reads LSNs in two log lines can tell which came first.
pub(super) fn recover(segments: &Path, id: LogId) -> Result<Recovered, FileError> {
    // The process that made the last segment may have been killed before it synced its directory.
    sync_dir(segments).map_err(FileError::at("sync", segments))?;
    finish_removals(segments).map_err(FileError::at("list", segments))?;
    let mut found = Vec::new();
    let listed = list(segments).map_err(FileError::at("list", segments))?;
    let next_number = listed.last().map_or(1, |(number, _)| number + 1);
    for (number, dir) in listed {
        // A process that was killed leaves the space that it preallocated.
        if read_closed(&dir, number).is_none()
            && let Err(error) = preallocation::trim(&data_file(&dir))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %dir.display(), "cannot return preallocated space");
        }
        let disk_bytes = fs::metadata(data_file(&dir)).map_or(0, |meta| meta.len());
        let contents = examine(number, &dir, id).map_err(FileError::at("read", &dir))?;
        if let Contents::Records(Closed { writer, records }) = contents {
            found.push(FoundSegment { number, writer, records, disk_bytes });
            continue;
        }
        let is_last = number + 1 == next_number;
        let cleared = match contents {
            Contents::Unreadable => keep_unreadable(&dir, is_last),
            _ if is_last => empty(&dir),
            _ => fs::remove_dir_all(&dir),
        };
        // Whatever is wrong with it, the others are not to wait for it.
        if let Err(error) = cleared {
            tracing::error!(%error, path = %dir.display(), "cannot clear an empty segment away");
        }
    }
    // What was read may be in the page cache only, when the process that wrote it was killed
    // before it synced. It is about to be published, so it must be as durable as the rest.
    if let Some(last) = found.last() {
        let data = data_file(&segment_dir(segments, last.number));
        File::open(&data)
            .and_then(|file| file.sync_data())
            .map_err(FileError::at("sync", &data))?;
    }
    Ok(Recovered { found, next_number })
}

/// When the first readable record of the first segment was received: no record left to publish is
/// older. Only a hint for operators, so that errors are the reader's to report.
pub(super) fn oldest(segments: &Path, found: &[FoundSegment], id: LogId) -> Option<Timestamp> {
    let dir = segment_dir(segments, found.first()?.number);
    let file = File::open(data_file(&dir)).ok()?;
    let frame = Scanner::new(file, id).next().ok()??;
    let mut entries = Vec::new();
    frame.entries(frame.first(), &mut entries).ok()?;
    entries.first().map(|entry| entry.record.received_at)
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

/// Removes segments whose removal was cut short.
fn finish_removals(segments: &Path) -> io::Result<()> {
    for entry in fs::read_dir(segments)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == REMOVING)
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(%error, path = %path.display(), "cannot remove a published segment");
        }
    }
    Ok(())
}

/// What a segment's directory holds.
enum Contents {
    Records(Closed),
    Nothing,
    /// Data, of which no record can be read.
    Unreadable,
}

/// Keeps a segment of which no record can be read.
fn keep_unreadable(dir: &Path, is_last: bool) -> io::Result<()> {
    let kept = keep_damaged(dir)?;
    tracing::error!(
        path = %kept.display(),
        "no record of a segment can be read: its first commit was cut short, or it is damaged; it \
         is kept: see `livebridge wal damaged`"
    );
    if is_last { fs::create_dir(dir) } else { Ok(()) }
}

/// How many records the segment in `dir` has, damaged ones included, and whose.
fn examine(number: u32, dir: &Path, id: LogId) -> io::Result<Contents> {
    let data = data_file(dir);
    let closed = read_closed(dir, number);
    let file = match closed {
        Some(closed) if closed.records == 0 => return Ok(Contents::Nothing),
        Some(closed) if data.try_exists().unwrap_or(true) => return Ok(Contents::Records(closed)),
        _ => File::open(&data),
    };
    let file = match file {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            if let Some(Closed { records, .. }) = closed {
                metrics::damaged(records);
                tracing::error!(
                    records, path = %data.display(),
                    "a segment's file is missing; its records cannot be published, if they were not"
                );
            }
            return Ok(Contents::Nothing);
        }
        Err(cause) if is_unreadable(&cause) => return Ok(Contents::Unreadable),
        Err(cause) => return Err(cause),
    };
    let mut scanner = Scanner::new(file, id);
    let mut contents: Option<Closed> = None;
    while let Some(frame) = scanner.next()? {
        if frame.first().segment() != number {
            continue;
        }
        let records = frame.last().index();
        let contents = contents.get_or_insert(Closed { writer: frame.writer(), records });
        if frame.writer() == contents.writer {
            contents.records = contents.records.max(records);
        }
    }
    let unreadable = scanner.unreadable_bytes();
    match contents {
        None if unreadable > 0 || scanner.passed_over_damage() => Ok(Contents::Unreadable),
        None => Ok(Contents::Nothing),
        Some(closed) => {
            // Records behind the last readable one may be lost; their number is unknown.
            if unreadable > 0
                && let Err(error) = mark_damaged(dir)
            {
                tracing::error!(%error, path = %dir.display(), "cannot mark a damaged segment");
            }
            Ok(Contents::Records(closed))
        }
    }
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
