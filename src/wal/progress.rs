//! Progress: how far the records of each writing opening are published, and how far a directory's
//! records are released by it.

use std::collections::HashMap;

use super::checkpoint::{Checkpoint, Overwritten};
use super::opening::OpeningId;
use crate::record::Lsn;

/// How far the records of each writing opening are published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress(HashMap<OpeningId, Lsn>);

impl Progress {
    /// All records that `writer` wrote, up to `last`, are published. Progress never goes back.
    pub fn advance(&mut self, writer: OpeningId, last: Lsn) {
        let known = self.0.entry(writer).or_insert(Lsn::ZERO);
        *known = last.max(*known);
    }

    /// The last published record of `writer`; [`Lsn::ZERO`] when there is none.
    #[must_use]
    pub fn of(&self, writer: OpeningId) -> Lsn {
        self.0.get(&writer).copied().unwrap_or(Lsn::ZERO)
    }

    /// Whether the record that `writer` wrote at `lsn` is published.
    #[must_use]
    pub fn covers(&self, writer: OpeningId, lsn: Lsn) -> bool {
        lsn <= self.of(writer)
    }
}

/// A position in one directory: everything up to it in the directory's order is released. By
/// default before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The opening that wrote the record there.
    pub writer: OpeningId,
    /// The record.
    pub lsn: Lsn,
}

/// The records of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The segment's number.
    pub number: u32,
    /// The opening that wrote it.
    pub writer: OpeningId,
    /// The last record's index.
    pub records: u32,
}

/// The last record of a directory that is released when `progress` is published: its segments, in
/// order, count as long as each is covered to its end by its writer's progress.
#[must_use]
pub fn released_through(segments: impl Iterator<Item = Extent>, progress: &Progress) -> Lsn {
    let mut released = Lsn::ZERO;
    for Extent { number, writer, records } in segments {
        let through = progress.of(writer);
        let last = Lsn::new(number, records);
        if through >= last {
            released = last;
            continue;
        }
        if through.segment() == number {
            released = through;
        }
        break;
    }
    released
}

/// The last record of a directory up to `position`, which a file in it names.
///
/// The position's own segment settles the order of all before it. When that segment is gone, or
/// another opening wrote the one of this number, then only segments of the same writer are known
/// to come before it.
#[must_use]
pub fn resolve(segments: impl Iterator<Item = Extent> + Clone, position: Position) -> Lsn {
    let Position { writer, lsn } = position;
    let is_there = |extent: Extent| extent.number == lsn.segment() && extent.writer == writer;
    if segments.clone().any(is_there) {
        return lsn;
    }
    let mut progress = Progress::default();
    progress.advance(writer, lsn);
    released_through(segments, &progress)
}

/// How far the log was released: a copy of the progress in the ledger.
///
/// It is used when Kafka is unreachable at the start, and when the ledger topic has expired its
/// records. It is never synced: an older copy means that the ledger is ahead.
impl Checkpoint for Position {
    const NAME: &'static str = "progress";
    const CHECKSUM: &'static str = " ";

    fn text(&self) -> String {
        let Self { writer, lsn } = self;
        format!("{writer} {:010}.{:010}", lsn.segment(), lsn.index())
    }

    fn parse(file: &str) -> Option<Self> {
        let (writer, rest) = file.split_once(' ')?;
        let (lsn, _) = rest.split_once(' ')?;
        Some(Self { writer: OpeningId::parse(writer)?, lsn: Lsn::parse(lsn)? })
    }
}

impl Overwritten for Position {
    const CONTENT: &'static str = "a copy of the progress";
    const MISLEADS_WHEN_OLD: bool = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(number: u8) -> OpeningId {
        OpeningId::from_bytes([number; 16])
    }

    fn extent(number: u32, writer: u8, records: u32) -> Extent {
        Extent { number, writer: opening(writer), records }
    }

    #[test]
    fn progress_of_one_writer_covers_no_record_of_another() {
        let segments = [extent(1, 1, 10), extent(2, 2, 5), extent(3, 2, 5)];
        let released_through = |progress: &[(u8, Lsn)]| {
            let mut all = Progress::default();
            for (writer, lsn) in progress {
                all.advance(opening(*writer), *lsn);
            }
            super::released_through(segments.into_iter(), &all)
        };
        assert_eq!(released_through(&[]), Lsn::ZERO);
        assert_eq!(released_through(&[(1, Lsn::new(1, 7))]), Lsn::new(1, 7));
        assert_eq!(released_through(&[(1, Lsn::new(9, 7))]), Lsn::new(1, 10));
        assert_eq!(released_through(&[(2, Lsn::new(9, 7))]), Lsn::ZERO);
        assert_eq!(released_through(&[(1, Lsn::new(1, 10)), (2, Lsn::new(3, 2))]), Lsn::new(3, 2));
    }

    #[test]
    fn a_position_counts_where_its_opening_wrote() {
        let segments = [extent(1, 1, 10), extent(2, 2, 5)];
        let resolve = |writer, lsn| {
            super::resolve(segments.into_iter(), Position { writer: opening(writer), lsn })
        };
        assert_eq!(resolve(2, Lsn::new(2, 3)), Lsn::new(2, 3), "and all before it");
        assert_eq!(resolve(3, Lsn::new(2, 3)), Lsn::ZERO, "the number was given again");
        assert_eq!(resolve(1, Lsn::new(7, 3)), Lsn::new(1, 10), "its segment is removed");
        assert_eq!(resolve(3, Lsn::new(7, 3)), Lsn::ZERO);
    }
}
