//! Failures from which the publisher recovers: an ended producer, brokers without a feature, a ledger
//! topic with a small size limit, a dead letter topic that cannot be written.

use std::fs;
use std::thread;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support;
use crate::support::bridge::Bridge;
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{self, Kafka};
use crate::support::mount::Mount;
use crate::support::wire::deliver;

const DRAIN: Duration = Duration::from_mins(1);
const DELIVERIES: [&str; 2] = ["exactly-once", "at-least-once"];

fn bridge(prefix: &str, brokers: &str, delivery: &str) -> Bridge {
    Bridge::new(prefix, brokers, prefix)
        .set("CALLBACK_UNSIGNED", "all")
        .set("KAFKA_DELIVERY", delivery)
}

/// Sends callbacks of one stream with these numbers; all must be acknowledged.
fn send(bridge: &Bridge, numbers: std::ops::Range<u32>, padding: usize) {
    let padding = "x".repeat(padding);
    let body = |number| {
        format!(
            r#"{{"event_type":1,"stream_id":"s","sequence":"{number}","stream_param":"{padding}"}}"#
        )
    };
    deliver(bridge.intake(), numbers.map(body));
}

/// Creates a backlog: kills `bridge`, lets it accept the callbacks of `send` while Kafka is
/// unreachable, and kills it again. The returned bridge has the address of Kafka.
fn with_backlog(bridge: Bridge, kafka: &Kafka, send: impl FnOnce(&Bridge)) -> Bridge {
    bridge.kill();
    let unreachable = bridge.set("KAFKA_BROKERS", kafka::UNREACHABLE);
    unreachable.start();
    send(&unreachable);
    unreachable.kill();
    unreachable.set("KAFKA_BROKERS", kafka.bootstrap())
}

/// Limits the record size in the topics `names` of `prefix`.
fn limit(kafka: &Kafka, prefix: &str, names: &[&str], bytes: &str) {
    for name in names {
        let topic = format!("{prefix}.{name}");
        kafka::configure_topic(kafka.bootstrap(), &topic, &[("max.message.bytes", bytes)]);
    }
}

/// The sequence numbers of the callbacks in `topic`, in its order.
fn sequences(test: &str, kafka: &Kafka, topic: &str) -> Option<Vec<u32>> {
    let read = consumer::read(kafka.bootstrap(), &[topic], Isolation::Committed);
    let sequence = |message: &consumer::Message| {
        let event: serde_json::Value = serde_json::from_slice(message.value()).unwrap();
        event["sequence"].as_str().unwrap().parse().unwrap()
    };
    Some(support::or_skip(test, read)?.iter().map(sequence).collect())
}

#[test]
fn a_producer_that_has_ended_is_replaced() {
    let mock = kafka::mock_cluster("ended", 1, 1);
    let brokers = mock.bootstrap_servers();
    let bridge = bridge("ended", &brokers, "at-least-once").set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    send(&bridge, 0..1, 0);
    bridge.drain(DRAIN);
    // As after a power cut of a broker that loses the producer's state.
    let lost = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
    mock.request_errors(RDKafkaApiKey::Produce, &lost);
    send(&bridge, 1..3, 0);
    bridge.drain(DRAIN);
    assert_eq!(kafka::size(&brokers, "ended.push"), 3);
    bridge.wait_for_log("the producer has ended");
}

#[test]
fn brokers_without_idempotent_producers_get_every_event_in_order() {
    let mock = kafka::mock_cluster("plain", 1, 1);
    mock.apiversion(RDKafkaApiKey::InitProducerId, None, None).unwrap();
    let brokers = mock.bootstrap_servers();
    let bridge = bridge("plain", &brokers, "at-least-once").set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    send(&bridge, 0..200, 0);
    bridge.drain(DRAIN);
    assert_eq!(kafka::size(&brokers, "plain.push"), 200);
    bridge.wait_for_log("no idempotent producers");
}

#[test]
fn a_ledger_topic_that_accepts_little_gets_smaller_records() {
    const CALLBACKS: u32 = 3000;
    let Some(kafka) = Kafka::shared_or_skip("small ledger") else { return };
    for delivery in DELIVERIES {
        let prefix = support::unique(&format!("small-{delivery}"));
        let first = bridge(&prefix, kafka.bootstrap(), delivery);
        first.start();
        send(&first, 0..1, 0);
        first.drain(DRAIN);
        limit(kafka, &prefix, &["ledger"], "10000");
        let back = with_backlog(first, kafka, |bridge| send(bridge, 1..CALLBACKS, 0));
        back.start();
        back.drain(DRAIN);
        let attempts = back.metric("livebridge_transactions_total").unwrap();
        assert!(attempts < 60.0, "{delivery}: {attempts} attempts");
        let topic = format!("{prefix}.push");
        let Some(numbers) = sequences("small ledger", kafka, &topic) else { return };
        assert_eq!(numbers, (0..CALLBACKS).collect::<Vec<_>>(), "{delivery}");
    }
}

#[test]
fn a_rejected_event_delays_the_others_and_neither_repeats_nor_reorders_them() {
    let Some(kafka) = Kafka::shared_or_skip("rejected") else { return };
    for delivery in DELIVERIES {
        let prefix = support::unique(&format!("rejected-{delivery}"));
        let first = bridge(&prefix, kafka.bootstrap(), delivery);
        first.start();
        send(&first, 0..1, 0);
        first.drain(DRAIN);
        limit(kafka, &prefix, &["push"], "20000");
        let back = with_backlog(first, kafka, |bridge| {
            for part in 0..5 {
                send(bridge, 1 + part * 100..100 + part * 100, 50);
                send(bridge, 100 + part * 100..101 + part * 100, 50_000);
            }
        });
        back.start();
        back.drain(DRAIN);
        assert_eq!(back.metric("livebridge_dead_letters_total"), Some(5.0), "{delivery}");
        let topic = format!("{prefix}.push");
        let Some(numbers) = sequences("rejected", kafka, &topic) else { return };
        let expected = (0..501).filter(|number| *number == 0 || number % 100 != 0);
        assert_eq!(numbers, expected.collect::<Vec<_>>(), "{delivery}");
    }
}

#[test]
fn a_quarantine_that_cannot_be_written_stops_publishing_and_not_the_intake() {
    let Some(kafka) = Kafka::shared_or_skip("blocked quarantine") else { return };
    let prefix = support::unique("blocked");
    let bridge = bridge(&prefix, kafka.bootstrap(), "exactly-once");
    bridge.start();
    send(&bridge, 0..1, 0);
    bridge.drain(DRAIN);
    limit(kafka, &prefix, &["push", "dead-letter"], "20000");
    let quarantine = bridge.wal().join("quarantine");
    fs::write(&quarantine, "in the way").unwrap();
    send(&bridge, 1..2, 100_000);
    let is_blocked = || bridge.metric("livebridge_quarantine_ok") == Some(0.0);
    bridge.wait_until("blocked", DRAIN, is_blocked);
    send(&bridge, 2..20, 0);
    bridge.assert_running();
    assert!(bridge.get("/status").contains("LivebridgeQuarantineNotWritable"));
    assert_eq!(bridge.metric("livebridge_published_total"), Some(1.0));
    fs::remove_file(&quarantine).unwrap();
    bridge.drain(DRAIN);
    assert_eq!(bridge.metric("livebridge_quarantine_ok"), Some(1.0));
    assert_eq!(bridge.metric("livebridge_published_total"), Some(19.0));
    assert_eq!(bridge.metric("livebridge_quarantined_total"), Some(1.0));
    assert!(bridge.stop().success());
}

/// Regression: the process ended, and every later one at its start.
#[test]
fn a_full_disk_and_a_rejected_record_stop_publishing_until_there_is_space() {
    let Some(kafka) = Kafka::shared_or_skip("full disk") else { return };
    let prefix = support::unique("full");
    let bridge =
        bridge(&prefix, kafka.bootstrap(), "exactly-once").set("WAL_MIN_FREE_BYTES", "64MiB");
    let Some(mount) = Mount::at("full disk", &bridge.wal(), "size=200m") else { return };
    bridge.start();
    send(&bridge, 0..1, 0);
    bridge.drain(DRAIN);
    limit(kafka, &prefix, &["push", "dead-letter"], "20000");
    let back = with_backlog(bridge, kafka, |bridge| {
        send(bridge, 1..2, 100_000);
        send(bridge, 2..20, 0);
    });
    let quarantine_ok = || back.metric("livebridge_quarantine_ok");
    for restart in 0..2 {
        let filler = mount.fill(0);
        back.spawn();
        back.wait_until("blocked", DRAIN, || {
            // At its start the log frees what it had reserved.
            filler.refill();
            quarantine_ok() == Some(0.0)
        });
        let body = r#"{"event_type":1,"stream_id":"s","sequence":"1000000"}"#;
        assert_eq!(back.post(body).unwrap().status, 503, "the intake answers");
        thread::sleep(Duration::from_secs(1));
        back.assert_running();
        back.wait_for_log("cannot store a record that Kafka rejects");
        back.wait_for_log("No space left on device");
        if restart == 0 {
            back.kill();
        }
        drop(filler);
    }
    back.wait_until("publishing again", DRAIN, || quarantine_ok() == Some(1.0));
    back.drain(DRAIN);
    assert_eq!(back.metric("livebridge_quarantined_total"), Some(1.0));
    // The segment that was prepared on the full disk may have failed for good (I6).
    assert!(back.stop().success(), "{}", back.last_lines());
    back.start();
    send(&back, 20..30, 0);
    back.drain(DRAIN);
    assert_eq!(quarantine_ok(), Some(1.0));
    let topic = format!("{prefix}.push");
    let Some(numbers) = sequences("full disk", kafka, &topic) else { return };
    assert_eq!(numbers, (0..30).filter(|number| *number != 1).collect::<Vec<_>>());
    assert!(back.stop().success());
}

/// As when a producer is killed and Kafka loses track of its transaction: consumers see nothing behind
/// it, and neither does the instance when it connects the next time.
#[test]
fn a_transaction_that_stays_open_in_the_ledger_is_reported_while_events_are_published() {
    let Some(kafka) = Kafka::shared_or_skip("open transaction") else { return };
    let bridge = bridge("hung", kafka.bootstrap(), "exactly-once");
    bridge.start();
    send(&bridge, 0..1, 0);
    bridge.drain(DRAIN);
    let hung: BaseProducer = kafka::client(kafka.bootstrap())
        .set("transactional.id", "another-producer")
        .set("transaction.timeout.ms", "900000")
        .create()
        .unwrap();
    hung.init_transactions(DRAIN).unwrap();
    hung.begin_transaction().unwrap();
    hung.send(BaseRecord::to("hung.ledger").key("foreign").payload("no commit").partition(0))
        .map_err(|(error, _)| error)
        .unwrap();
    hung.flush(DRAIN).unwrap();
    send(&bridge, 1..2, 0);
    bridge.drain(DRAIN);
    let is_reported = || bridge.log_text().contains("hides what is behind it");
    bridge.wait_until("reported", 2 * DRAIN, is_reported);
    send(&bridge, 2..3, 0);
    bridge.drain(DRAIN);
    hung.abort_transaction(DRAIN).unwrap();
}
