//! The self-audit: every record that was ever accepted is published, absorbed, dead-lettered,
//! quarantined, damaged, or still in the log. What is missing from that sum was lost by a bug or
//! with removed files, and is exposed (`livebridge_audit_missing_records`).
//!
//! It compares two independent counts: the records that the log stored and released, by their
//! LSNs, and what the publisher reports about each. A file carries the totals from process to
//! process, so that a start detects what was removed in between. The file may be older than the
//! segments beside it, and is used only if its checksum is right.

use super::checkpoint::{Checkpoint, Overwritten};
use super::opening::{OpeningId, Position, Progress};
use crate::event::Timestamp;
use crate::record::Lsn;

const HEADING: &str = "livebridge self-audit 2";

/// What became of records, by the publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// In their topics.
    pub published: u64,
    /// Retries of what is.
    pub absorbed: u64,
    /// In the dead-letter topic.
    pub dead_lettered: u64,
    /// In quarantine.
    pub quarantined: u64,
}

/// Who released records.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReleasedBy {
    /// The publisher, which reports what became of them.
    Publisher(Outcomes),
    /// The ledger, which covers them; what became of each is unknown.
    Ledger,
}

/// The totals, in records, since they began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// When they began: with the log, unless the file was lost since.
    pub since: Timestamp,
    /// Durable.
    pub accepted: u64,
    /// Durable and not released.
    pub pending: u64,
    /// Released by the publisher.
    pub outcomes: Outcomes,
    /// Released by what the ledger says of a transaction whose end no process saw.
    pub by_ledger: u64,
    /// Passed over because they could not be read.
    pub damaged: u64,
}

impl Audit {
    /// Accepted records whose outcome is unknown. Negative: more outcomes than accepted records.
    #[must_use]
    pub fn missing(&self) -> i64 {
        let Outcomes { published, absorbed, dead_lettered, quarantined } = self.outcomes;
        let done = published + absorbed + dead_lettered + quarantined;
        let known = done + self.by_ledger + self.damaged + self.pending;
        self.accepted.wrapping_sub(known).cast_signed()
    }
}

/// What the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AuditTotals {
    pub(super) since: Timestamp,
    pub(super) accepted: u64,
    /// The last of them.
    pub(super) through: Position,
    /// Released by the log, or found to be missing at a start.
    released: u64,
    /// The last that was released.
    pub(super) done: Position,
    outcomes: Outcomes,
    by_ledger: u64,
    damaged: u64,
}

/// Records that a start expected behind [`AuditTotals::done`] and did not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MissingRecords {
    records: u64,
    /// The last of them.
    last: Position,
}

impl AuditTotals {
    pub(super) fn new(since: Timestamp) -> Self {
        Self {
            since,
            accepted: 0,
            through: Position::default(),
            released: 0,
            done: Position::default(),
            outcomes: Outcomes::default(),
            by_ledger: 0,
            damaged: 0,
        }
    }

    /// Reconciles the totals with what a start found: `expected` records that they counted as
    /// accepted and not as released, and `further` ones that they did not count.
    ///
    /// Returns the records that they counted and the start did not find. They are missing, unless
    /// the ledger knows of them.
    pub(super) fn reconcile(&mut self, expected: u64, further: u64) -> Option<MissingRecords> {
        let missing = self.accepted.saturating_sub(self.released).saturating_sub(expected);
        self.released += missing;
        self.accepted = self.accepted.max(self.released + expected) + further;
        (missing > 0).then_some(MissingRecords { records: missing, last: self.through })
    }

    /// Counts `missing` as published when the ledger says so: a copy of a log whose segments were
    /// copied before its totals lacks records that the original has published.
    ///
    /// Returns what is still missing.
    pub(super) fn find_missing(
        &mut self,
        missing: MissingRecords,
        progress: &Progress,
    ) -> Option<MissingRecords> {
        if !progress.covers(missing.last.writer, missing.last.lsn) {
            return Some(missing);
        }
        self.by_ledger += missing.records;
        None
    }

    /// `records` more became durable.
    pub(super) fn accept(&mut self, records: u64, through: Position) {
        self.accepted += records;
        self.through = through;
    }

    /// The log releases `records`, of which `damaged` were unreadable.
    pub(super) fn release(
        &mut self,
        records: u64,
        through: Option<Position>,
        released_by: ReleasedBy,
        damaged: u64,
    ) {
        self.released += records;
        self.done = through.unwrap_or(self.done);
        // Damage that an earlier process released may be met again.
        let damaged = damaged.min(records);
        self.damaged += damaged;
        match released_by {
            ReleasedBy::Publisher(more) => {
                let outcomes = &mut self.outcomes;
                outcomes.published += more.published;
                outcomes.absorbed += more.absorbed;
                outcomes.dead_lettered += more.dead_lettered;
                outcomes.quarantined += more.quarantined;
            }
            ReleasedBy::Ledger => self.by_ledger += records - damaged,
        }
    }

    pub(super) fn audit(&self, pending: u64) -> Audit {
        let Self { since, accepted, outcomes, by_ledger, damaged, .. } = *self;
        Audit { since, accepted, pending, outcomes, by_ledger, damaged }
    }
}

impl Checkpoint for AuditTotals {
    const NAME: &'static str = "self-audit";
    const CHECKSUM: &'static str = "checksum ";

    fn text(&self) -> String {
        let Outcomes { published, absorbed, dead_lettered, quarantined } = self.outcomes;
        let position = |Position { writer, lsn }: Position| {
            format!("{:010}.{:010} {writer}", lsn.segment(), lsn.index())
        };
        format!(
            "{HEADING}\n\
             since {:020}\naccepted {:020}\nthrough {}\nreleased {:020}\ndone {}\n\
             published {published:020}\nabsorbed {absorbed:020}\n\
             dead_lettered {dead_lettered:020}\nquarantined {quarantined:020}\n\
             by_ledger {:020}\ndamaged {:020}\n",
            self.since.as_millis(),
            self.accepted,
            position(self.through),
            self.released,
            position(self.done),
            self.by_ledger,
            self.damaged,
        )
    }

    fn parse(file: &str) -> Option<Self> {
        let value =
            |name: &str| file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let number = |name| value(name)?.parse::<u64>().ok();
        let position = |name| {
            let (lsn, writer) = value(name)?.split_once(' ')?;
            Some(Position { writer: OpeningId::parse(writer)?, lsn: Lsn::parse(lsn)? })
        };
        Some(Self {
            since: Timestamp::from_millis(value("since")?.parse().ok()?),
            accepted: number("accepted")?,
            through: position("through")?,
            released: number("released")?,
            done: position("done")?,
            outcomes: Outcomes {
                published: number("published")?,
                absorbed: number("absorbed")?,
                dead_lettered: number("dead_lettered")?,
                quarantined: number("quarantined")?,
            },
            by_ledger: number("by_ledger")?,
            damaged: number("damaged")?,
        })
    }
}

/// Synced before segments are removed: an older copy would report their records as missing.
impl Overwritten for AuditTotals {
    const CONTENT: &'static str = "the totals of the self-audit";
    const MISLEADS_WHEN_OLD: bool = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: Lsn) -> Position {
        Position { writer: OpeningId::from_bytes([9; 16]), lsn }
    }

    fn totals() -> AuditTotals {
        let mut totals = AuditTotals::new(Timestamp::from_millis(1_700_000_000_000));
        totals.accept(10, at(Lsn::new(1, 10)));
        let outcomes = Outcomes { published: 3, absorbed: 1, dead_lettered: 1, quarantined: 1 };
        totals.release(7, Some(at(Lsn::new(1, 7))), ReleasedBy::Publisher(outcomes), 1);
        totals
    }

    #[test]
    fn outcomes_add_up_and_a_record_without_one_is_missing() {
        let mut totals = totals();
        assert_eq!(totals.audit(3).missing(), 0);
        totals.release(1, None, ReleasedBy::Ledger, 0);
        assert_eq!(totals.audit(2).missing(), 0);
        totals.release(1, None, ReleasedBy::Publisher(Outcomes::default()), 0);
        assert_eq!(totals.audit(1).missing(), 1, "released without an outcome");
        let twice = Outcomes { published: 3, ..Outcomes::default() };
        totals.release(1, None, ReleasedBy::Publisher(twice), 0);
        assert_eq!(totals.audit(0).missing(), -1);
    }

    #[test]
    fn a_start_counts_new_records_and_reports_missing_ones() {
        let mut whole = totals();
        assert_eq!(whole.reconcile(3, 5), None);
        assert_eq!((whole.audit(8).missing(), whole.accepted), (0, 15));
        let mut short = totals();
        let missing = short.reconcile(1, 0).unwrap();
        assert_eq!(short.audit(1).missing(), 2);
        assert_eq!(short.reconcile(1, 0), None, "missing once");
        assert_eq!(short.audit(1).missing(), 2);

        let mut progress = Progress::default();
        progress.advance(OpeningId::unique(), Lsn::new(9, 9));
        progress.advance(at(Lsn::ZERO).writer, Lsn::new(1, 9));
        assert_eq!(
            short.find_missing(missing, &progress),
            Some(missing),
            "one of them is unpublished"
        );
        assert_eq!(short.audit(1).missing(), 2);
        progress.advance(at(Lsn::ZERO).writer, Lsn::new(1, 10));
        assert_eq!(short.find_missing(missing, &progress), None);
        assert_eq!(short.audit(1).missing(), 0);
    }
}
