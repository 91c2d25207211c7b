//! A source that cannot be read.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::kafka::Delivery;
use crate::ledger::{self, Ledger};
use crate::publisher::Topics;
use crate::publisher::source::Source;
use crate::record::Lsn;
use crate::wal::{OpeningId, Outcomes, Progress};

/// As when the process has no file descriptor left.
#[derive(Debug)]
struct Unreadable;

impl Source for Unreadable {
    fn opening(&self) -> OpeningId {
        OpeningId::default()
    }

    fn next(&mut self, _: usize, _: Duration) -> Result<Input, Box<dyn std::error::Error>> {
        Err("too many open files".into())
    }

    fn resume(&mut self, _: &Progress) -> Lsn {
        Lsn::ZERO
    }

    fn settle(&mut self, _: Lsn, _: Option<Timestamp>, _: Outcomes) {}
}

fn publisher() -> Publisher {
    let kafka = kafka::Config {
        brokers: "127.0.0.1:1".into(),
        instance: "test".into(),
        delivery: Delivery::ExactlyOnce,
        create_topics: false,
        partitions: 1,
        replication: 1,
        client: BTreeMap::new(),
    };
    let topics = Topics::new("live", &BTreeMap::new()).unwrap();
    let dedup = ledger::Config { window: Duration::from_hours(1), max_ids: 1000 };
    let ledger = Ledger::new(&[OpeningId::default()], dedup);
    // Cancelled, so that nothing waits.
    let give_up = CancellationToken::new();
    give_up.cancel();
    Publisher::with(Box::new(Unreadable), kafka, topics, ledger, None, give_up)
}

#[test]
fn records_that_cannot_be_read_are_not_taken_for_none_and_may_be_of_any_age() {
    let mut publisher = publisher();
    // Ids expire while there is nothing to publish, not while it is unknown what there is.
    assert!(matches!(publisher.next_work(), Work::Unreadable));
    // The ledger is read from its beginning: retries of its oldest events may be in the log.
    assert_eq!(publisher.read_oldest(), Timestamp::from_millis(0));
}
