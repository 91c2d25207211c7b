//! What becomes of the entries of a batch.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::event::EventType;
use crate::ledger;
use crate::publisher::Exported;
use crate::record::Record;

const OWN: OpeningId = OpeningId::from_bytes([1; 16]);
const OTHER: OpeningId = OpeningId::from_bytes([2; 16]);

fn entry(number: u32, event: u64) -> Entry {
    let received_at = Timestamp::from_millis(i64::from(number));
    let record = Record {
        id: EventId { natural: event, content: event },
        event_type: Some(EventType(1)),
        received_at,
        occurred_at: None,
        key: None,
        has_stream: false,
        body: Bytes::from_static(b"{}"),
    };
    Entry { lsn: Lsn::new(1, number), record }
}

/// Entries 1, 2, 3, … with these events.
fn batch(events: &[u64]) -> Batch {
    let entries = (1..).zip(events).map(|(number, event)| entry(number, *event)).collect();
    Batch::new(Entries { writer: OWN, entries })
}

fn empty_ledger() -> Ledger {
    let config = ledger::Config { window: Duration::from_hours(1), max_ids: 1000 };
    Ledger::new(&[OWN], config)
}

fn kafka() -> kafka::Config {
    kafka::Config {
        brokers: String::new(),
        instance: "test".into(),
        delivery: kafka::Delivery::AtLeastOnce,
        create_topics: true,
        partitions: 1,
        replication: 1,
        client: std::collections::BTreeMap::new(),
    }
}

/// Index and topic of what is sent.
fn sent(batch: &Batch) -> Vec<(usize, String)> {
    let topics = Topics::new("t", &std::collections::BTreeMap::new()).unwrap();
    let kafka = kafka();
    batch.messages(&topics, &kafka).map(|m| (m.index, m.topic.to_owned())).collect()
}

fn push(index: usize) -> (usize, String) {
    (index, "t.push".into())
}

fn events(commit: &Commit) -> Vec<u64> {
    commit.ids.iter().map(|id| id.natural).collect()
}

#[test]
fn retries_of_the_ledgers_events_and_of_each_other_are_absorbed() {
    let mut ledger = empty_ledger();
    let mut published = batch(&[7]);
    published.deduplicate(&ledger);
    let commit = published.to_commit(OTHER).unwrap();
    ledger.apply(&commit, std::time::Instant::now());
    let mut batch = batch(&[5, 7, 5, 6]);
    batch.deduplicate(&ledger);
    assert_eq!(sent(&batch), [push(0), push(3)]);
    let commit = batch.to_commit(OWN).unwrap();
    assert_eq!(events(&commit), [5, 6]);
    assert_eq!((commit.first, commit.last), (Lsn::new(1, 1), Lsn::new(1, 4)));
    assert_eq!(batch.pending(), 2);
}

#[test]
fn a_batch_of_retries_needs_no_ledger_record() {
    let mut ledger = empty_ledger();
    let mut other = batch(&[7]);
    other.deduplicate(&ledger);
    ledger.apply(&other.to_commit(OTHER).unwrap(), std::time::Instant::now());
    let mut batch = batch(&[7, 7]);
    batch.deduplicate(&ledger);
    assert_eq!(batch.to_commit(OWN), None);
    assert_eq!(batch.record_outcomes().absorbed, 2);
}

#[test]
fn delivered_messages_are_not_sent_again_and_stay_in_the_ledger_record() {
    let mut batch = batch(&[1, 2, 3, 4]);
    batch.deduplicate(&empty_ledger());
    batch.mark_delivered(&[0, 2]);
    batch.deduplicate(&empty_ledger());
    assert_eq!(sent(&batch), [push(1), push(3)]);
    assert_eq!(events(&batch.to_commit(OWN).unwrap()), [1, 2, 3, 4]);
}

#[test]
fn a_delivered_event_that_another_instance_published_too_is_not_absorbed() {
    let mut ledger = empty_ledger();
    let mut batch = batch(&[1]);
    batch.deduplicate(&ledger);
    batch.mark_delivered(&[0]);
    ledger.apply(&batch.to_commit(OTHER).unwrap(), std::time::Instant::now());
    batch.deduplicate(&ledger);
    assert_eq!(batch.record_outcomes().published, 1, "it is in Kafka, twice");
}

#[test]
fn a_rejected_record_goes_to_the_dead_letters_and_then_to_the_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let mut quarantine = Quarantine::new(dir.path().join("quarantine"));
    let mut batch = batch(&[1, 2]);
    batch.deduplicate(&empty_ledger());
    assert!(batch.reject(1, &"too large"));
    batch.deduplicate(&empty_ledger());
    assert_eq!(sent(&batch), [push(0), (1, "t.dead-letter".into())]);
    assert!(batch.reject(1, &"too large"));
    batch.store(&mut quarantine).unwrap();
    batch.deduplicate(&empty_ledger());
    assert_eq!(sent(&batch), [push(0)]);
    let commit = batch.to_commit(OWN).unwrap();
    assert_eq!(events(&commit), [1], "once released, it is no retry");
    assert_eq!(commit.last, Lsn::new(1, 2));
    assert!(!batch.reject(1, &"too large"), "it is not sent any more");
    let outcomes = batch.record_outcomes();
    assert_eq!((outcomes.published, outcomes.quarantined), (1, 1));
}

#[test]
fn a_split_keeps_what_is_known_of_each_entry() {
    let mut limits = BatchLimits::default();
    while limits.on_ledger_rejected(4) && limits.ids() > 2 {}
    let mut batch = batch(&[1, 2, 3, 4]);
    batch.deduplicate(&empty_ledger());
    batch.mark_delivered(&[3]);
    batch.reject(2, &"too large");
    let rest = batch.split(&limits).unwrap();
    assert_eq!((batch.len(), rest.len()), (2, 2));
    assert_eq!(sent(&rest), [(0, "t.dead-letter".into())], "the other one is delivered");
    assert_eq!(events(&batch.to_commit(OWN).unwrap()), [1, 2]);
}

#[test]
fn only_an_event_with_the_natural_key_of_another_is_marked_as_a_conflict() {
    let mut ledger = empty_ledger();
    let mut published = batch(&[7]);
    published.deduplicate(&ledger);
    ledger.apply(&published.to_commit(OTHER).unwrap(), std::time::Instant::now());
    let mut batch = batch(&[7, 8]);
    batch.items[0].entry.record.id.content = 9;
    batch.deduplicate(&ledger);
    let dispositions: Vec<_> = batch.items.iter().map(|item| item.disposition.clone()).collect();
    let publish = |conflict| Disposition::Publish { conflict };
    assert_eq!(dispositions, [publish(true), publish(false)]);
    assert_eq!((published.conflicts(), batch.conflicts()), (0, 1));
}

#[test]
fn a_batch_keeps_the_entries_that_are_wanted_and_knows_its_size() {
    let mut batch = batch(&[1, 2, 3]);
    let one = entry(1, 1).record.encoded_len();
    assert!(one > 1);
    assert_eq!((batch.len(), batch.bytes(), batch.is_empty()), (3, 3 * one, false));
    batch.retain(|lsn| lsn > Lsn::new(1, 1));
    let left: Vec<Lsn> = batch.entries().map(|entry| entry.lsn).collect();
    assert_eq!(left, [Lsn::new(1, 2), Lsn::new(1, 3)]);
    assert_eq!(batch.bytes(), 2 * one);
    batch.retain(|_| false);
    assert_eq!((batch.len(), batch.bytes(), batch.is_empty()), (0, 0, true));
}

#[test]
fn what_became_of_each_entry_is_counted() {
    let mut batch = batch(&[1, 1, 2, 3, 4, 5, 6]);
    batch.deduplicate(&empty_ledger());
    for (index, times) in [(2, 1), (3, 1), (4, 2), (5, 2)] {
        for _ in 0..times {
            batch.reject(index, &"a reason");
        }
    }
    let Outcomes { published, absorbed, dead_lettered, quarantined } = batch.record_outcomes();
    assert_eq!((published, absorbed, dead_lettered, quarantined), (2, 1, 2, 2));
}

/// The events 1, 2, 3, … of a command, one for each of these event types.
fn of_events(types: &[i64]) -> Batch {
    let topics = Topics::new("t", &std::collections::BTreeMap::new()).unwrap();
    let event = |number: u32, event_type: i64| {
        let mut record = entry(number, number.into()).record;
        record.event_type = Some(EventType(event_type));
        let line = serde_json::to_string(&Exported::of(&record)).unwrap();
        (Lsn::new(1, number), Event::of_line(&line, &topics, "test", Timestamp::now()).unwrap())
    };
    Batch::of_events(OWN, (1..).zip(types).map(|(number, event_type)| event(number, *event_type)))
}

fn reject_events(batch: &mut Batch, is_rejected: impl Fn(usize, &Event) -> bool) -> Vec<u64> {
    let reason = |index, event: &Event| is_rejected(index, event).then(|| "a reason".to_owned());
    batch.reject_events(reason).into_iter().map(|event| event.id.natural).collect()
}

#[test]
fn a_rejected_event_of_a_command_leaves_the_batch_and_becomes_no_dead_letter() {
    let mut batch = of_events(&[1, 1, 1]);
    assert_eq!(reject_events(&mut batch, |index, _| index == 1), [2]);
    batch.deduplicate(&empty_ledger());
    assert_eq!(sent(&batch), [push(0), push(1)]);
    assert_eq!(events(&batch.to_commit(OWN).unwrap()), [1, 3]);
    assert_eq!(reject_events(&mut batch, |_, _| true), [1, 3]);
    assert_eq!(batch.to_commit(OWN), None);
}

#[test]
fn only_events_of_a_command_that_are_still_to_be_sent_are_rejected() {
    let mut batch = of_events(&[1, 0, 1, 1]);
    batch.mark_delivered(&[3]);
    let is_push = |_, event: &Event| event.topic == "t.push";
    assert_eq!(reject_events(&mut batch, is_push), [1, 3], "2 has another topic, 4 is delivered");
    assert_eq!(sent(&batch), [(0, "t.interrupt".to_owned())]);
    assert_eq!(reject_events(&mut batch, is_push), [] as [u64; 0]);
    let mut own = self::batch(&[1]);
    assert_eq!(reject_events(&mut own, |_, _| true), [] as [u64; 0], "it is a record of the log");
}
