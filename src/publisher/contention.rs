//! Commits of other instances in the ledger topic whose transactions are still undecided.
//!
//! Two instances can hold the same event: the answer to its sender was lost, and the retry reached
//! the other instance. Each writes its ledger record within its transaction before it commits, so
//! one of the two records is first in the topic. The other instance reads it there before it
//! commits, and aborts its own transaction.

use std::collections::{HashSet, VecDeque};

use crate::event::EventId;
use crate::ledger::Commit;
use crate::wal::OpeningId;

/// At this number of ids (16 MB), the publisher waits until the transactions are decided. They
/// accumulate behind a transaction that Kafka does not end.
const IDS_MAX: usize = 1_000_000;

/// Ledger records whose transactions are not known to be committed or aborted.
#[derive(Debug, Default)]
pub struct OpenCommits {
    /// The offset of each, and the ids in it.
    commits: VecDeque<(i64, Vec<EventId>)>,
    /// The number of all these ids.
    ids: usize,
    /// The offset of the last commit that was not kept because there were too many ids.
    omitted: Option<i64>,
}

impl OpenCommits {
    /// Adds a record of the topic, read whether or not it is committed, unless `own` published it.
    pub fn record(&mut self, own: OpeningId, offset: i64, bytes: &[u8]) {
        // An instance that is alone for long would otherwise decode all its own records here.
        if Commit::is_published_by(bytes, own) {
            return;
        }
        if self.is_full() {
            self.omitted = Some(offset);
            return;
        }
        // What cannot be decoded is reported when it is read as committed.
        if let Ok(commit) = Commit::decode(bytes) {
            self.ids += commit.ids.len();
            self.commits.push_back((offset, commit.ids));
        }
    }

    /// Drops what is before this offset: it is decided, and the ledger has applied it.
    pub fn forget(&mut self, before: i64) {
        while let Some((_, ids)) = self.commits.pop_front_if(|(offset, _)| *offset < before) {
            self.ids -= ids.len();
        }
        self.omitted = self.omitted.filter(|offset| *offset >= before);
    }

    /// Whether the undecided transactions have too many ids, and have to end before the next one.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ids >= IDS_MAX
    }

    /// Whether another publisher came first with an event of `own`, whose record is at `mine`, or
    /// may have, because not all commits before it were kept.
    ///
    /// Publishers are distinguished by their openings: two clones of a directory have one log id.
    #[must_use]
    pub fn is_contended(&self, own: &Commit, mine: i64) -> bool {
        if self.omitted.is_some_and(|offset| offset < mine) {
            return true;
        }
        let mut earlier = self.commits.iter().take_while(|(offset, _)| *offset < mine).peekable();
        if earlier.peek().is_none() {
            return false;
        }
        let ids: HashSet<EventId> = own.ids.iter().copied().collect();
        earlier.any(|(_, others)| others.iter().any(|id| ids.contains(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;
    use crate::record::Lsn;
    use crate::wal::OpeningId;

    const US: OpeningId = OpeningId::from_bytes([1; 16]);
    const THEM: OpeningId = OpeningId::from_bytes([2; 16]);

    fn commit(publisher: OpeningId, number: u64) -> Commit {
        let ids = vec![EventId { natural: number, content: number }];
        let (first, last) = (Lsn::new(1, 1), Lsn::new(1, 1));
        // Clones of a directory publish records of one writer.
        let writer = OpeningId::from_bytes([3; 16]);
        Commit { publisher, writer, first, last, newest: Timestamp::from_millis(0), ids }
    }

    fn open_commits(written: &[(i64, OpeningId, u64)]) -> OpenCommits {
        let mut open_commits = OpenCommits::default();
        for &(offset, publisher, number) in written {
            open_commits.record(US, offset, &commit(publisher, number).encode());
        }
        open_commits
    }

    #[test]
    fn the_later_of_two_commits_with_one_event_is_contended() {
        let open_commits = open_commits(&[(10, THEM, 7), (12, US, 7)]);
        assert!(open_commits.is_contended(&commit(US, 7), 12));
        assert!(!open_commits.is_contended(&commit(THEM, 7), 10));
    }

    #[test]
    fn ids_of_undecided_commits_are_limited() {
        let mut open_commits = OpenCommits::default();
        let ids = (0..1000).map(|number| EventId { natural: number, content: 0 }).collect();
        let thousand = Commit { ids, ..commit(THEM, 0) }.encode();
        for offset in 0..1000 {
            assert!(!open_commits.is_full(), "{offset}");
            open_commits.record(US, offset, &thousand);
        }
        assert!(open_commits.is_full());
        let other = commit(US, 7_000_000);
        assert!(!open_commits.is_contended(&other, 1001));
        open_commits.record(US, 1000, &thousand);
        assert!(open_commits.is_contended(&other, 1001), "what is not kept may have its event");
        assert!(!open_commits.is_contended(&other, 1000));
        open_commits.forget(1);
        assert!(!open_commits.is_full(), "one of them is decided");
        assert!(open_commits.is_contended(&other, 1001), "another is still undecided");
        open_commits.forget(1001);
        assert!(!open_commits.is_contended(&other, 1002));
    }

    #[test]
    fn other_events_own_commits_and_decided_commits_do_not_contend() {
        let mut open_commits = open_commits(&[(10, THEM, 7), (12, US, 8), (14, US, 8)]);
        assert!(!open_commits.is_contended(&commit(US, 8), 14));
        open_commits.forget(10);
        assert!(open_commits.is_contended(&commit(US, 7), 14), "10 is not before 10");
        open_commits.forget(11);
        assert!(!open_commits.is_contended(&commit(US, 7), 14));
    }
}
