//! The self-audit: every record that was ever accepted is published, absorbed, dead-lettered,
//! quarantined, damaged, or still in the log. What is missing from that sum was lost by a bug or
//! with removed files, and is exposed (`livebridge_audit_missing_records`).
//!
//! It compares two independent counts: the records that the log stored and released, by their
//! LSNs, and what the publisher reports about each. A file carries the totals from process to
//! process, so that a start detects what was removed in between. The file may be older than the
//! segments beside it, and is used only if its checksum is right.

use super::checkpoint::{Checkpoint, Overwritten};
use super::opening::OpeningId;
use super::progress::{Position, Progress};
use crate::event::Timestamp;
use crate::record::Lsn;

const HEADING: &str = "livebridge self-audit 2";

/// What the publisher did with records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Records in their topics.
    pub published: u64,
    /// Retries of published events.
    pub absorbed: u64,
    /// In the dead-letter topic.
    pub dead_lettered: u64,
    /// In quarantine.
    pub quarantined: u64,
}

/// What released records.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReleasedBy {
    /// The publisher, which reports the outcomes.
    Publisher(Outcomes),
    /// The ledger, which covers them; the outcome of each is unknown.
    Ledger,
}

/// Where the accepted records are, in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditBalance {
    /// When the counts began: with the log, unless their file was lost since.
    pub since: Timestamp,
    /// Records that became durable.
    pub accepted: u64,
    /// Records that are not released.
    pub pending: u64,
    /// Released by the publisher.
    pub outcomes: Outcomes,
    /// Released by the ledger record of a transaction whose end no process saw.
    pub by_ledger: u64,
    /// Passed over because they could not be read.
    pub damaged: u64,
}

impl AuditBalance {
    /// Accepted records whose outcome is unknown. Negative: more outcomes than accepted records.
    #[must_use]
    pub fn missing(&self) -> i64 {
        let Outcomes { published, absorbed, dead_lettered, quarantined } = self.outcomes;
        let settled = published + absorbed + dead_lettered + quarantined;
        let known = settled + self.by_ledger + self.damaged + self.pending;
        self.accepted.wrapping_sub(known).cast_signed()
    }
}

/// The counts that a file carries from process to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AuditTotals {
    since: Timestamp,
    accepted: u64,
    /// The last accepted record.
    pub(super) accepted_through: Position,
    /// Released by the log, or found to be missing at a start.
    released: u64,
    /// The last released record.
    pub(super) released_through: Position,
    outcomes: Outcomes,
    by_ledger: u64,
    damaged: u64,
}

impl AuditTotals {
    pub(super) fn new(since: Timestamp) -> Self {
        Self {
            since,
            accepted: 0,
            accepted_through: Position::default(),
            released: 0,
            released_through: Position::default(),
            outcomes: Outcomes::default(),
            by_ledger: 0,
            damaged: 0,
        }
    }

    /// No two fields are equal.
    #[cfg(test)]
    pub(super) fn of_distinct_counts() -> Self {
        let at = |number| Position {
            writer: OpeningId::from_bytes([9; 16]),
            lsn: Lsn::new(number, 10 + number),
        };
        Self {
            since: Timestamp::from_millis(1),
            accepted: 2,
            accepted_through: at(3),
            released: 4,
            released_through: at(5),
            outcomes: Outcomes { published: 6, absorbed: 7, dead_lettered: 8, quarantined: 9 },
            by_ledger: 10,
            damaged: 11,
        }
    }
}

/// The self-audit of an open log.
#[derive(Debug)]
pub(super) struct SelfAudit {
    totals: AuditTotals,
    /// Records that were counted as accepted, and that the start did not find: how many, and the last.
    missing: Option<(u64, Position)>,
}

impl SelfAudit {
    /// Reconciles the totals with what a start found: `expected` records that they counted as
    /// accepted and not as released, and `further` ones that they did not count.
    ///
    /// Records that they counted and the start did not find are missing, unless the ledger has them.
    pub(super) fn new(mut totals: AuditTotals, expected: u64, further: u64) -> Self {
        let missing = totals.accepted.saturating_sub(totals.released).saturating_sub(expected);
        totals.released += missing;
        totals.accepted = totals.accepted.max(totals.released + expected) + further;
        let missing = (missing > 0).then_some((missing, totals.accepted_through));
        Self { totals, missing }
    }

    /// Sets the last accepted and the last released record.
    pub(super) fn set_positions(&mut self, accepted: Position, released: Position) {
        self.totals.accepted_through = accepted;
        self.totals.released_through = released;
    }

    /// Counts missing records as published when the ledger lists them: a copy of a log whose segments
    /// were copied before its totals lacks records that the original has published.
    pub(super) fn apply_progress(&mut self, progress: &Progress) {
        let is_covered = |last: Position| progress.covers(last.writer, last.lsn);
        if let Some((records, _)) = self.missing.take_if(|(_, last)| is_covered(*last)) {
            self.totals.by_ledger += records;
        }
    }

    /// `records` more became durable.
    pub(super) fn accept(&mut self, records: u64, through: Position) {
        self.totals.accepted += records;
        self.totals.accepted_through = through;
    }

    /// The log releases `records`, of which `damaged` were unreadable.
    pub(super) fn release(
        &mut self,
        records: u64,
        through: Option<Position>,
        released_by: ReleasedBy,
        damaged: u64,
    ) {
        let totals = &mut self.totals;
        totals.released += records;
        totals.released_through = through.unwrap_or(totals.released_through);
        // Damage that an earlier process released may be met again.
        let damaged = damaged.min(records);
        totals.damaged += damaged;
        match released_by {
            ReleasedBy::Publisher(more) => {
                totals.outcomes.published += more.published;
                totals.outcomes.absorbed += more.absorbed;
                totals.outcomes.dead_lettered += more.dead_lettered;
                totals.outcomes.quarantined += more.quarantined;
            }
            ReleasedBy::Ledger => totals.by_ledger += records - damaged,
        }
    }

    pub(super) fn totals(&self) -> AuditTotals {
        self.totals
    }

    /// With the `pending` records, which are not released.
    pub(super) fn balance(&self, pending: u64) -> AuditBalance {
        let AuditTotals { since, accepted, outcomes, by_ledger, damaged, .. } = self.totals;
        AuditBalance { since, accepted, pending, outcomes, by_ledger, damaged }
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
            position(self.accepted_through),
            self.released,
            position(self.released_through),
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
            accepted_through: position("through")?,
            released: number("released")?,
            released_through: position("done")?,
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

    fn audit() -> SelfAudit {
        let since = Timestamp::from_millis(1_700_000_000_000);
        let mut audit = SelfAudit::new(AuditTotals::new(since), 0, 0);
        audit.accept(10, at(Lsn::new(1, 10)));
        let outcomes = Outcomes { published: 3, absorbed: 1, dead_lettered: 1, quarantined: 1 };
        audit.release(7, Some(at(Lsn::new(1, 7))), ReleasedBy::Publisher(outcomes), 1);
        audit
    }

    #[test]
    fn outcomes_add_up_and_a_record_without_one_is_missing() {
        let mut audit = audit();
        assert_eq!(audit.balance(3).missing(), 0);
        audit.release(1, None, ReleasedBy::Ledger, 0);
        assert_eq!(audit.balance(2).missing(), 0);
        audit.release(1, None, ReleasedBy::Publisher(Outcomes::default()), 0);
        assert_eq!(audit.balance(1).missing(), 1, "released without an outcome");
        let twice = Outcomes { published: 3, ..Outcomes::default() };
        audit.release(1, None, ReleasedBy::Publisher(twice), 0);
        assert_eq!(audit.balance(0).missing(), -1);
    }

    #[test]
    fn a_start_counts_new_records_and_reports_missing_ones() {
        let whole = SelfAudit::new(audit().totals(), 3, 5);
        assert_eq!((whole.balance(8).missing(), whole.totals.accepted), (0, 15));
        let mut short = SelfAudit::new(audit().totals(), 1, 0);
        assert_eq!(short.balance(1).missing(), 2);
        let again = SelfAudit::new(short.totals(), 1, 0);
        assert_eq!((again.missing, again.balance(1).missing()), (None, 2), "missing once");

        let mut progress = Progress::default();
        progress.advance(OpeningId::unique(), Lsn::new(9, 9));
        progress.advance(at(Lsn::ZERO).writer, Lsn::new(1, 9));
        short.apply_progress(&progress);
        assert_eq!(short.balance(1).missing(), 2, "one of them is unpublished");
        progress.advance(at(Lsn::ZERO).writer, Lsn::new(1, 10));
        short.apply_progress(&progress);
        assert_eq!(short.balance(1).missing(), 0);
        short.apply_progress(&progress);
        assert_eq!(short.balance(1).missing(), 0, "counted once");
    }
}
