//! The log's account of itself: every record that was ever accepted is published, absorbed, set
//! aside, damaged, or still here. What is missing from that sum is an error of ours, or of whoever
//! took files away, and is shown (`livebridge_audit_missing_records`).
//!
//! Two that do not know each other are compared: how many records the log has taken and let go, by
//! their numbers, and what the publisher says it did with each. A copy on disk carries the account
//! from process to process, so that a start finds out what was taken away between two of them. The
//! copy may be old, never too new, and is only believed whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::LogId;
use crate::record::{Lsn, Timestamp};

const NAME: &str = "account";
const HEADING: &str = "livebridge account 1";

/// What became of records that the publisher dealt with.
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

/// Why records are done with.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReleasedBy {
    /// The publisher says what became of them.
    Publisher(Outcomes),
    /// The ledger says that they are done with; what became of each, it does not say.
    Ledger,
}

/// The account, in records, from the moment that it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// When it began: with the log, unless the copy was lost since.
    pub since: Timestamp,
    /// Durable.
    pub accepted: u64,
    /// Durable and not done with.
    pub pending: u64,
    /// Done with, by the publisher.
    pub outcomes: Outcomes,
    /// Done with, by what the ledger says of a transaction whose end nobody saw.
    pub by_ledger: u64,
    /// Passed over because they could not be read.
    pub damaged: u64,
}

impl Audit {
    /// Records of which nobody knows what became of them. More than were accepted, when negative.
    #[must_use]
    pub fn missing(&self) -> i64 {
        let Outcomes { published, absorbed, dead_lettered, quarantined } = self.outcomes;
        let done = published + absorbed + dead_lettered + quarantined;
        let known = done + self.by_ledger + self.damaged + self.pending;
        self.accepted.wrapping_sub(known).cast_signed()
    }
}

/// What the account is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AuditTotals {
    pub(super) since: Timestamp,
    pub(super) accepted: u64,
    /// The last of them.
    pub(super) through: Lsn,
    /// Let go by the log, and found to be gone at a start.
    released: u64,
    /// The last that was let go.
    pub(super) done: Lsn,
    outcomes: Outcomes,
    by_ledger: u64,
    damaged: u64,
}

impl AuditTotals {
    pub(super) fn new(since: Timestamp) -> Self {
        Self {
            since,
            accepted: 0,
            through: Lsn::ZERO,
            released: 0,
            done: Lsn::ZERO,
            outcomes: Outcomes::default(),
            by_ledger: 0,
            damaged: 0,
        }
    }

    /// Goes on in a new process, which found so many records behind [`Self::done`], up to
    /// [`Self::through`] and further on.
    ///
    /// Those further on became durable after the copy was made. Those that are not there any more
    /// are nowhere.
    pub(super) fn go_on(&mut self, up_to: u64, further: u64) {
        let gone = self.accepted.saturating_sub(self.released).saturating_sub(up_to);
        self.released += gone;
        self.accepted = self.accepted.max(self.released + up_to) + further;
    }

    /// So many more became durable.
    pub(super) fn accept(&mut self, records: u64, through: Lsn) {
        self.accepted += records;
        self.through = through;
    }

    /// The log lets go of so many records, of which so many were damaged.
    pub(super) fn release(
        &mut self,
        records: u64,
        through: Lsn,
        released_by: ReleasedBy,
        damaged: u64,
    ) {
        self.released += records;
        self.done = through.max(self.done);
        // Damage that an earlier process let go may be met again.
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

    /// Always of the same length, so that one overwrites the one before it whole, and shorter than
    /// what a disk writes at once.
    fn line(&self, log: LogId) -> String {
        let Outcomes { published, absorbed, dead_lettered, quarantined } = self.outcomes;
        let position = |lsn: Lsn| format!("{:010}.{:010}", lsn.segment(), lsn.index());
        let text = format!(
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
        );
        let checksum = crc32fast::hash(format!("{log} {text}").as_bytes());
        format!("{text}checksum {checksum:08x}\n")
    }

    fn parse(text: &str, log: LogId) -> Option<Self> {
        let released_by =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let number = |name| released_by(name)?.parse::<u64>().ok();
        let totals = Self {
            since: Timestamp::from_millis(released_by("since")?.parse().ok()?),
            accepted: number("accepted")?,
            through: Lsn::parse(released_by("through")?)?,
            released: number("released")?,
            done: Lsn::parse(released_by("done")?)?,
            outcomes: Outcomes {
                published: number("published")?,
                absorbed: number("absorbed")?,
                dead_lettered: number("dead_lettered")?,
                quarantined: number("quarantined")?,
            },
            by_ledger: number("by_ledger")?,
            damaged: number("damaged")?,
        };
        (totals.line(log) == text).then_some(totals)
    }
}

/// The copy on disk.
#[derive(Debug)]
pub(super) struct TotalsFile {
    log: LogId,
    path: PathBuf,
    saved: Option<AuditTotals>,
    /// `None` when it cannot be written: then it is done without.
    file: Option<File>,
}

impl TotalsFile {
    /// With what the last process left; `None` when that is nothing, or torn.
    ///
    /// If it names a segment that is yet to be made, segments were taken away, and numbers are given
    /// again: its places are none then, and must not become some when the segment has been made.
    pub(super) fn open(dir: &Path, log: LogId, first_new: u32) -> (Self, Option<AuditTotals>) {
        let path = dir.join(NAME);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut found = AuditTotals::parse(&text, log);
        let restarted = found.is_some_and(|totals| totals.done.segment() >= first_new);
        if restarted && let Some(totals) = &mut found {
            totals.through = Lsn::ZERO;
            totals.done = Lsn::ZERO;
        }
        if found.is_none() && !text.is_empty() {
            tracing::warn!(
                path = %path.display(),
                "the log's account of itself cannot be read; a new one begins"
            );
        }
        let truncate = found.is_none() || restarted;
        let file = File::options().create(true).write(true).truncate(truncate).open(&path);
        let file = match file {
            Ok(file) if restarted => file.sync_all().map(|()| file),
            file => file,
        };
        if let Err(error) = &file {
            tracing::warn!(%error, path = %path.display(), "cannot keep a copy of the account");
        }
        (Self { log, path, saved: found.filter(|_| !truncate), file: file.ok() }, found)
    }

    /// Not synced: a kill does not undo it, and after a power cut an older one does.
    pub(super) fn save(&mut self, totals: &AuditTotals) {
        if self.saved.as_ref() == Some(totals) {
            return;
        }
        self.saved = Some(*totals);
        let line = totals.line(self.log);
        self.write(|file| file.write_all_at(line.as_bytes(), 0));
    }

    /// Before records are removed: an older copy would miss them.
    pub(super) fn save_durably(&mut self, totals: &AuditTotals) {
        self.save(totals);
        self.write(File::sync_data);
    }

    fn write(&mut self, work: impl FnOnce(&File) -> io::Result<()>) {
        let Some(file) = &self.file else { return };
        if let Err(error) = work(file) {
            tracing::warn!(
                %error, path = %self.path.display(), "cannot keep a copy of the account any more"
            );
            // What it says now is not true any more.
            let _ = fs::remove_file(&self.path);
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId::from_bytes([7; 16]);

    fn totals() -> AuditTotals {
        let mut totals = AuditTotals::new(Timestamp::from_millis(1_700_000_000_000));
        totals.accept(10, Lsn::new(1, 10));
        let outcomes = Outcomes { published: 3, absorbed: 1, dead_lettered: 1, quarantined: 1 };
        totals.release(7, Lsn::new(1, 7), ReleasedBy::Publisher(outcomes), 1);
        totals
    }

    #[test]
    fn what_became_of_each_record_adds_up_and_what_does_not_is_missing() {
        let mut totals = totals();
        assert_eq!(totals.audit(3).missing(), 0);
        totals.release(1, Lsn::new(1, 8), ReleasedBy::Ledger, 0);
        assert_eq!(totals.audit(2).missing(), 0);
        totals.release(1, Lsn::new(1, 9), ReleasedBy::Publisher(Outcomes::default()), 0);
        assert_eq!(totals.audit(1).missing(), 1, "let go without a released_by");
        let twice = Outcomes { published: 3, ..Outcomes::default() };
        totals.release(1, Lsn::new(1, 10), ReleasedBy::Publisher(twice), 0);
        assert_eq!(totals.audit(0).missing(), -1);
    }

    #[test]
    fn a_start_finds_what_is_gone_and_takes_in_what_is_new() {
        let mut whole = totals();
        whole.go_on(3, 5);
        assert_eq!((whole.audit(8).missing(), whole.accepted), (0, 15));
        let mut short = totals();
        short.go_on(1, 0);
        assert_eq!(short.audit(1).missing(), 2);
        short.go_on(1, 0);
        assert_eq!(short.audit(1).missing(), 2, "gone once, and not found to be gone again");
    }

    #[test]
    fn the_copy_is_believed_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (mut copy, found) = TotalsFile::open(dir.path(), LOG, u32::MAX);
        assert_eq!(found, None);
        let totals = totals();
        copy.save(&totals);
        assert_eq!(TotalsFile::open(dir.path(), LOG, u32::MAX).1, Some(totals));
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert!(text.len() <= 512, "{} bytes", text.len());
        for at in 0..text.len() {
            assert_eq!(AuditTotals::parse(&text[..at], LOG), None, "{at} bytes");
            let mut torn = text.clone().into_bytes();
            torn[at] ^= 1;
            assert_eq!(
                AuditTotals::parse(&String::from_utf8(torn).unwrap(), LOG),
                None,
                "byte {at}"
            );
        }
        assert_eq!(AuditTotals::parse(&text, LogId::from_bytes([8; 16])), None, "another log's");
    }
}
