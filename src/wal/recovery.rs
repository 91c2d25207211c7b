//! Recovery: finds what earlier processes left in the log's directory, and removes what holds nothing.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::dir::{self, REMOVING, SEGMENTS, data_file};
use super::frame::{Scanner, first_received, is_unreadable};
use super::progress::{Extent, Position};
use super::{LogId, OpenError, preallocation};
use crate::event::Timestamp;
use crate::metrics;
use crate::permission::FileError;
use crate::record::Lsn;

/// What earlier processes left.
pub(super) struct Recovered {
    /// Held as long as anything may be written or removed.
    pub(super) lock: File,
    pub(super) id: LogId,
    /// The segments that hold records, in order.
    pub(super) segments: Vec<FoundSegment>,
    /// Behind the number of every segment that there ever was.
    pub(super) next_number: u32,
    /// When the oldest record was received, as far as it is known.
    pub(super) oldest: Option<Timestamp>,
}

/// A segment found on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundSegment {
    pub(super) extent: Extent,
    pub(super) disk_bytes: u64,
}

impl FoundSegment {
    pub(super) fn last(&self) -> Position {
        let Extent { number, writer, records } = self.extent;
        Position { writer, lsn: Lsn::new(number, records) }
    }
}

/// Locks the log in `dir`, making it when there is none, and finds its segments.
pub(super) fn recover(dir: &Path) -> Result<Recovered, OpenError> {
    let segments_dir = dir.join(SEGMENTS);
    dir::create_dir_durably(&segments_dir).map_err(FileError::at("create", &segments_dir))?;
    let lock = dir::lock(dir)?;
    let id = match dir::read_identity(dir) {
        Err(OpenError::Missing(dir)) => {
            let listed = dir::list(&segments_dir);
            if !listed.map_err(FileError::at("list", &segments_dir))?.is_empty() {
                // A new identity would make every segment another log's.
                return Err(OpenError::Orphaned(dir));
            }
            dir::make_identity(&dir)?
        }
        found => found?,
    };
    let (segments, next_number) = find_segments(&segments_dir, id)?;
    // Only a hint for operators, so that errors are the reader's to report.
    let oldest = segments.first().and_then(|FoundSegment { extent, .. }| {
        let file = data_file(&dir::segment_dir(&segments_dir, extent.number));
        first_received(&file, id, extent.number).ok()?
    });
    Ok(Recovered { lock, id, segments, next_number, oldest })
}

/// Finds the segments that hold records and removes those that hold none. Returns the next segment's
/// number too.
///
/// The last segment's directory stays even then, empty, so that numbers do not restart: an operator
/// who reads LSNs in two log lines can tell which came first.
fn find_segments(segments: &Path, id: LogId) -> Result<(Vec<FoundSegment>, u32), FileError> {
    // The process that made the last segment may have been killed before it synced its directory.
    dir::sync_dir(segments).map_err(FileError::at("sync", segments))?;
    finish_removals(segments).map_err(FileError::at("list", segments))?;
    let mut found = Vec::new();
    let listed = dir::list(segments).map_err(FileError::at("list", segments))?;
    let next_number = listed.last().map_or(1, |(number, _)| number + 1);
    for (number, dir) in listed {
        // A process that was killed leaves the space that it preallocated.
        if dir::read_closed(&dir, number).is_none()
            && let Err(error) = preallocation::trim(&data_file(&dir))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %dir.display(), "cannot return preallocated space");
        }
        let disk_bytes = fs::metadata(data_file(&dir)).map_or(0, |meta| meta.len());
        let contents = examine(number, &dir, id).map_err(FileError::at("read", &dir))?;
        if let Contents::Records(extent) = contents {
            found.push(FoundSegment { extent, disk_bytes });
            continue;
        }
        let is_last = number + 1 == next_number;
        let (cleared, failure) = match contents {
            Contents::Unreadable => {
                (keep_unreadable(&dir, is_last), "cannot keep an unreadable segment")
            }
            _ if is_last => (dir::empty(&dir), "cannot empty a segment without records"),
            _ => (fs::remove_dir_all(&dir), "cannot remove a segment without records"),
        };
        // The records of the other segments must be published nevertheless.
        if let Err(error) = cleared {
            tracing::error!(%error, path = %dir.display(), "{failure}");
        }
    }
    // What was read may be in the page cache only, when the process that wrote it was killed
    // before it synced. It is about to be published, so it must be as durable as the rest.
    if let Some(last) = found.last() {
        let data = data_file(&dir::segment_dir(segments, last.extent.number));
        let synced = File::open(&data).and_then(|file| file.sync_data());
        synced.map_err(FileError::at("sync", &data))?;
    }
    Ok((found, next_number))
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
    Records(Extent),
    Nothing,
    /// Data, of which no record can be read.
    Unreadable,
}

/// Keeps a segment of which no record can be read.
fn keep_unreadable(dir: &Path, is_last: bool) -> io::Result<()> {
    let kept = dir::keep_damaged(dir, is_last)?;
    tracing::error!(
        path = %kept.display(),
        "no record of a segment can be read: its first commit was cut short, or it is damaged; it \
         is kept: see `livebridge wal damaged`"
    );
    Ok(())
}

/// How many records the segment in `dir` has, damaged ones included, and which opening wrote them.
fn examine(number: u32, dir: &Path, id: LogId) -> io::Result<Contents> {
    let data = data_file(dir);
    let closed = dir::read_closed(dir, number);
    let file = match closed {
        Some(extent) if extent.records == 0 => return Ok(Contents::Nothing),
        Some(extent) if data.try_exists().unwrap_or(true) => return Ok(Contents::Records(extent)),
        _ => File::open(&data),
    };
    let file = match file {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            if let Some(Extent { records, .. }) = closed {
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
    let mut found: Option<Extent> = None;
    while let Some(frame) = scanner.next()? {
        // A whole frame of another segment: of a file that was copied here, or of blocks used before.
        if frame.first().segment() != number {
            continue;
        }
        let records = frame.last().index();
        let extent = found.get_or_insert(Extent { number, writer: frame.writer(), records });
        if frame.writer() == extent.writer {
            extent.records = extent.records.max(records);
        }
    }
    let unreadable = scanner.unreadable_bytes();
    match found {
        None if unreadable > 0 || scanner.passed_over_damage() => Ok(Contents::Unreadable),
        None => Ok(Contents::Nothing),
        Some(extent) => {
            // Records behind the last readable one may be lost; their number is unknown.
            if unreadable > 0
                && let Err(error) = dir::mark_damaged(dir)
            {
                tracing::error!(%error, path = %dir.display(), "cannot mark a damaged segment");
            }
            Ok(Contents::Records(extent))
        }
    }
}
