//! What other instances have written to the ledger topic and may or may not have committed.
//!
//! Two instances can hold the same event: its answer got lost, so it was sent again, to the other.
//! Each writes its ledger record within its transaction before it commits, so one of the two stands
//! first in the topic. The other finds it there before it commits itself, and gives way.

use std::collections::{HashSet, VecDeque};

use crate::ledger::Commit;
use crate::record::EventId;

/// Ledger records by offset, of which it is not yet known whether they hold.
#[derive(Debug, Default)]
pub struct OpenCommits(VecDeque<(i64, Commit)>);

impl OpenCommits {
    /// Takes in a record of the topic, read whether or not it is committed.
    pub fn take(&mut self, offset: i64, bytes: &[u8]) {
        // What cannot be decoded is reported when it is read as committed.
        if let Ok(commit) = Commit::decode(bytes) {
            self.0.push_back((offset, commit));
        }
    }

    /// What is before this offset is decided, and the ledger knows of it.
    pub fn forget(&mut self, before: i64) {
        while self.0.front().is_some_and(|(offset, _)| *offset < before) {
            self.0.pop_front();
        }
    }

    /// Whether another publisher came first with an event of `own`, whose record is at `mine`.
    ///
    /// Publishers are told apart by their openings: two clones of a directory have one log id.
    #[must_use]
    pub fn is_contended(&self, own: &Commit, mine: i64) -> bool {
        let earlier = self.0.iter().take_while(|(offset, _)| *offset < mine);
        let mut others = earlier.filter(|(_, commit)| commit.publisher != own.publisher).peekable();
        if others.peek().is_none() {
            return false;
        }
        let ids: HashSet<EventId> = own.ids.iter().copied().collect();
        others.any(|(_, commit)| commit.ids.iter().any(|id| ids.contains(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Lsn, Timestamp};
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
            open_commits.take(offset, &commit(publisher, number).encode());
        }
        open_commits
    }

    #[test]
    fn who_comes_second_with_an_event_gives_way() {
        let open_commits = open_commits(&[(10, THEM, 7), (12, US, 7)]);
        assert!(open_commits.is_contended(&commit(US, 7), 12));
        assert!(!open_commits.is_contended(&commit(THEM, 7), 10));
    }

    #[test]
    fn other_events_own_records_and_what_is_settled_do_not_count() {
        let mut open_commits = open_commits(&[(10, THEM, 7), (12, US, 8), (14, US, 8)]);
        assert!(!open_commits.is_contended(&commit(US, 8), 14));
        open_commits.forget(11);
        assert!(!open_commits.is_contended(&commit(US, 7), 14));
    }
}
