//! Commits of other instances in the ledger topic: what they published is absorbed, also while
//! transactions are undecided, and costs an instance no memory.

use std::time::Duration;

use livebridge::event::{EventId, Timestamp};
use livebridge::ledger::Commit;
use livebridge::record::Lsn;
use livebridge::wal::OpeningId;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::replay::body;
use crate::support;
use crate::support::bridge::Bridge;
use crate::support::intake::record_of;
use crate::support::kafka::{self, Kafka};
use crate::support::wire::deliver;

const WAIT: Duration = Duration::from_mins(2);
/// The ids of one commit: almost as many as the largest has.
const IDS: u64 = 30_000;

/// A ledger topic with an instance, and another instance that exists by its commits only.
struct Ledger {
    bridge: Bridge,
    topic: String,
    producer: BaseProducer,
}

impl Ledger {
    fn new(kafka: &Kafka, name: &str) -> Self {
        let prefix = support::unique(name);
        let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix);
        bridge.start();
        bridge.wait_until_connected(WAIT);
        let producer = kafka::client(kafka.bootstrap()).create().unwrap();
        Self { bridge, topic: format!("{prefix}.ledger"), producer }
    }

    /// Writes a commit with these ids.
    fn commit(&self, ids: impl Iterator<Item = EventId>) {
        let (publisher, writer) = (OpeningId::unique(), OpeningId::unique());
        let (first, last) = (Lsn::new(1, 1), Lsn::new(1, 1));
        let ids = ids.collect();
        let bytes =
            Commit { publisher, writer, first, last, newest: Timestamp::now(), ids }.encode();
        let record = BaseRecord::to(&self.topic).key("other").payload(&bytes).partition(0);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        self.producer.flush(WAIT).unwrap();
    }

    /// Publishes an event of the instance.
    fn publish(&self) {
        deliver(self.bridge.intake(), [body(1, 100)]);
        self.bridge.drain(WAIT);
    }

    fn resident_bytes(&self) -> f64 {
        self.bridge.metric("process_resident_memory_bytes").unwrap()
    }
}

fn ids(from: u64) -> impl Iterator<Item = EventId> {
    (from..from + IDS).map(|number| EventId { natural: number, content: number })
}

#[test]
fn an_event_of_a_commit_that_is_decided_during_a_wait_is_absorbed() {
    let Some(kafka) = Kafka::shared_or_skip("decided during a wait") else { return };
    let ledger = Ledger::new(kafka, "decided");
    let open: BaseProducer = kafka::client(kafka.bootstrap())
        .set("transactional.id", &ledger.topic)
        .set("transaction.timeout.ms", "900000")
        .create()
        .unwrap();
    open.init_transactions(WAIT).unwrap();
    open.begin_transaction().unwrap();
    let record = BaseRecord::to(&ledger.topic).key("open").payload("no commit").partition(0);
    open.send(record).map_err(|(error, _)| error).unwrap();
    open.flush(WAIT).unwrap();
    let retried = body(1, 100);
    ledger.commit([record_of(retried.as_bytes()).unwrap().id].into_iter());
    // As many ids as an instance keeps of undecided transactions.
    for number in 0..=1_000_000 / IDS {
        ledger.commit(ids(1_000_000_000 + number * IDS));
    }
    ledger.publish();
    deliver(ledger.bridge.intake(), [&retried]);
    std::thread::sleep(Duration::from_secs(2));
    open.abort_transaction(WAIT).unwrap();
    ledger.bridge.drain(WAIT);
    let metric = |name| ledger.bridge.metric(name);
    assert_eq!(metric("livebridge_published_total"), Some(1.0), "the other one is published");
    assert_eq!(metric("livebridge_duplicates_total"), Some(1.0));
}

#[test]
fn what_others_committed_is_not_read_again_within_a_transaction() {
    let Some(kafka) = Kafka::shared_or_skip("committed by others") else { return };
    let ledger = Ledger::new(kafka, "others");
    ledger.publish();
    ledger.commit(ids(0));
    ledger.publish();
    for _ in 0..300 {
        ledger.commit(ids(0));
    }
    ledger.commit(ids(IDS));
    let ids = f64::from(2 * u32::try_from(IDS).unwrap());
    let is_read = || ledger.bridge.metric("livebridge_dedup_ids").is_some_and(|known| known >= ids);
    ledger.bridge.wait_until("at the end of the ledger", WAIT, is_read);
    let before = ledger.resident_bytes();
    ledger.publish();
    let grown = (ledger.resident_bytes() - before) / 1e6;
    assert!(grown < 60.0, "{grown} MB for one event");
}
