//! Reads a log from outside. Nothing is locked or changed, so that it is safe beside a running
//! instance.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::dir::{self, SEGMENTS};
use super::frame::{Scanner, first_frame, first_received, is_unreadable};
use super::opening::Lineage;
use super::progress::{self, Extent};
use super::{LogId, OpenError, OpeningId, checkpoint};
use crate::event::Timestamp;
use crate::permission::FileError;
use crate::record::{Entry, Lsn};

/// A log as it was found.
#[derive(Clone, Debug)]
pub struct LogView {
    /// The log's identity.
    pub id: LogId,
    /// The openings of this directory, oldest first: their commits in the ledger are its progress.
    pub lineage: Vec<OpeningId>,
    /// Everything up to here is released, by the log's own files; the ledger may be ahead.
    pub released: Lsn,
    /// Its segments, in order.
    pub segments: Vec<SegmentView>,
    /// Segments that are kept because some of their records could not be published.
    pub damaged: Vec<SegmentView>,
}

/// A segment as it was found.
#[derive(Clone, Debug)]
pub struct SegmentView {
    /// The number in the LSNs of its records.
    pub number: u32,
    /// The file with its records.
    pub path: PathBuf,
    /// Bytes of that file.
    pub bytes: u64,
    /// The opening that wrote it; `None` when it has no readable record.
    pub writer: Option<OpeningId>,
    /// How many records were put into it, when it is closed.
    pub closed: Option<u32>,
}

/// What reading a segment found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentContents {
    /// The last record's index; 0 when there is none.
    pub last: u32,
    /// Records that should be there and are not, released ones left out.
    pub missing: u32,
    /// All LSNs that should be there and are not, released ones included: of each run the first, and
    /// the one behind the last.
    pub unreadable: Vec<(Lsn, Lsn)>,
    /// Whether something began like records and was none: a write that was cut short, or one that
    /// is just going on.
    pub torn: bool,
}

impl LogView {
    /// Looks at the log in `dir`, which costs no more than listing its segments.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let id = dir::read_identity(dir)?;
        let segments = dir.join(SEGMENTS);
        let listed = dir::list(&segments).map_err(FileError::at("read", &segments))?;
        let damaged = dir::list_damaged(&segments).map_err(FileError::at("read", &segments))?;
        let view = |(number, dir): (u32, PathBuf)| SegmentView::open(id, number, &dir);
        let segments: Vec<_> = listed.into_iter().filter_map(view).collect();
        let damaged = damaged.into_iter().filter_map(view).collect();
        let extents =
            segments.iter().filter_map(|&SegmentView { number, writer, closed, .. }| {
                // The open segment is the last one, of which a position covers a part at most.
                Some(Extent { number, writer: writer?, records: closed.unwrap_or(u32::MAX) })
            });
        let released = checkpoint::read(dir, id)
            .map_or(Lsn::ZERO, |position| progress::resolve(extents, position));
        let Lineage(lineage) = checkpoint::read(dir, id).unwrap_or_default();
        Ok(Self { id, lineage, released, segments, damaged })
    }

    /// When the first record of `segment` was received; `None` when there is none.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn oldest(&self, segment: &SegmentView) -> Result<Option<Timestamp>, OpenError> {
        match first_received(&segment.path, self.id, segment.number) {
            // Removed since it was listed, or damaged.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound || is_unreadable(&cause) => {
                Ok(None)
            }
            oldest => Ok(oldest.map_err(FileError::at("read", &segment.path))?),
        }
    }

    /// Calls `visit` for every record of `segment`, in order.
    ///
    /// # Errors
    /// [`OpenError`], or what `visit` returned.
    pub fn read<E: From<OpenError>>(
        &self,
        segment: &SegmentView,
        mut visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<SegmentContents, E> {
        let &SegmentView { number, ref path, writer, closed, .. } = segment;
        let failed = |cause| OpenError::from(FileError::at("read", path)(cause));
        let file = match File::open(path) {
            // Published and removed since it was listed.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Ok(SegmentContents::default());
            }
            Err(cause) if is_unreadable(&cause) => {
                let end = Lsn::new(number, closed.unwrap_or(0)).next();
                return Ok(self.contents(0, vec![(Lsn::new(number, 1), end)], true));
            }
            file => file.map_err(failed)?,
        };
        let mut scanner = Scanner::new(file, self.id);
        let mut next = Lsn::new(number, 1);
        let mut unreadable = Vec::new();
        let mut entries = Vec::new();
        let (mut position, mut read_again) = (0, false);
        while let Some(frame) = scanner.next().map_err(failed)? {
            let is_ours = frame.first().segment() == number && Some(frame.writer()) == writer;
            if !is_ours || frame.last() < next {
                continue;
            }
            // Read while it was being written? Then it is there when it is read again.
            if frame.first() > next && !read_again {
                scanner.seek(position);
                read_again = true;
                continue;
            }
            (position, read_again) = (scanner.position(), false);
            unreadable.push((next, frame.first()));
            frame
                .entries(next, &mut entries)
                .map_err(|cause| failed(io::Error::new(io::ErrorKind::InvalidData, cause)))?;
            next = frame.last().next();
            entries.drain(..).try_for_each(&mut visit)?;
        }
        let last = next.index() - 1;
        unreadable.push((next, Lsn::new(number, closed.unwrap_or(last)).next()));
        // It may have been removed while it was read, and is then no more than empty.
        if !path.exists() {
            unreadable.clear();
        }
        let torn = scanner.passed_over_damage() || scanner.unreadable_bytes() > 0;
        Ok(self.contents(last, unreadable, torn))
    }

    fn contents(&self, last: u32, mut unreadable: Vec<(Lsn, Lsn)>, torn: bool) -> SegmentContents {
        unreadable.retain(|(first, end)| first < end);
        let missing = unreadable.iter().map(|&(first, end)| self.unreleased(first, end)).sum();
        SegmentContents { last, missing, unreadable, torn }
    }

    /// How many LSNs of one segment from `from` to before `to` are not released.
    fn unreleased(&self, from: Lsn, to: Lsn) -> u32 {
        let from = from.max(self.released.next());
        if from.segment() == to.segment() { to.index().saturating_sub(from.index()) } else { 0 }
    }
}

impl SegmentContents {
    /// How many of the LSNs from `from` to `to` are unreadable.
    #[must_use]
    pub fn unreadable_between(&self, from: Lsn, to: Lsn) -> u64 {
        let within = self.unreadable.iter().map(|&(first, end)| {
            // Both ends of a run are in one segment.
            let (first, end) =
                (first.max(from).as_u64(), end.as_u64().min(to.as_u64().saturating_add(1)));
            end.saturating_sub(first)
        });
        within.sum()
    }
}

impl SegmentView {
    /// `None` without a file: it holds nothing, or was removed since.
    fn open(log: LogId, number: u32, dir: &Path) -> Option<Self> {
        let path = dir::data_file(dir);
        let bytes = fs::metadata(&path).ok()?.len();
        let closed = dir::read_closed(dir, number);
        let writer = match closed {
            Some(closed) => Some(closed.writer),
            // A file that cannot be read is in the view, so that reading it reports the error.
            None => first_frame(&path, log, number).ok().flatten().map(|frame| frame.writer()),
        };
        Some(Self { number, path, bytes, writer, closed: closed.map(|closed| closed.records) })
    }

    /// The name of its directory.
    #[must_use]
    pub fn name(&self) -> &str {
        let dir = self.path.parent().and_then(Path::file_name);
        dir.and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// Calls `visit` for every entry of the log in `dir`, in order.
///
/// # Errors
/// [`OpenError`], or what `visit` returned.
pub fn visit<E: From<OpenError>>(
    dir: &Path,
    mut visit: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let view = LogView::open(dir)?;
    view.segments.iter().try_for_each(|segment| view.read(segment, &mut visit).map(|_| ()))
}
