//! Failures from which the publisher recovers: an ended producer, brokers without a feature, a ledger
//! topic with a small size limit, a dead letter topic that cannot be written.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use livebridge::publisher::Topics;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support;
use crate::support::bridge::Bridge;
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{self, Kafka};
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

/// A Kafka in memory with the topics of `prefix`.
fn mock(prefix: &str) -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
    /// The mock's thread can miss a command that arrives just after the previous one.
    const PAUSE: Duration = Duration::from_millis(2);
    let mock = MockCluster::new(1).unwrap();
    let names = Topics::new(prefix, &BTreeMap::new()).unwrap();
    for topic in names.all().into_iter().chain([names.ledger()]) {
        thread::sleep(PAUSE);
        mock.create_topic(topic, 1, 1).unwrap();
    }
    thread::sleep(PAUSE);
    mock
}

fn count(brokers: &str, topic: &str) -> i64 {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    client.fetch_watermarks(topic, 0, Duration::from_secs(10)).unwrap().1
}

#[test]
fn a_producer_that_has_ended_is_replaced() {
    let mock = mock("ended");
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
    assert_eq!(count(&brokers, "ended.push"), 3);
    assert!(bridge.log_text().contains("the producer has ended"), "{}", bridge.last_lines());
}

#[test]
fn brokers_without_idempotent_producers_get_every_event_in_order() {
    let mock = mock("plain");
    mock.apiversion(RDKafkaApiKey::InitProducerId, None, None).unwrap();
    let brokers = mock.bootstrap_servers();
    let bridge = bridge("plain", &brokers, "at-least-once").set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    send(&bridge, 0..200, 0);
    bridge.drain(DRAIN);
    assert_eq!(count(&brokers, "plain.push"), 200);
    assert!(bridge.log_text().contains("no idempotent producers"), "{}", bridge.last_lines());
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
        first.kill();
        let ledger = format!("{prefix}.ledger");
        kafka::configure_topic(kafka.bootstrap(), &ledger, &[("max.message.bytes", "10000")]);
        let away = first.set("KAFKA_BROKERS", "127.0.0.1:1");
        away.start();
        send(&away, 1..CALLBACKS, 0);
        away.kill();
        let back = away.set("KAFKA_BROKERS", kafka.bootstrap());
        back.start();
        back.drain(DRAIN);
        let attempts = back.metric("livebridge_transactions_total").unwrap();
        assert!(attempts < 60.0, "{delivery}: {attempts} attempts");
        let topic = format!("{prefix}.push");
        let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
        let Some(messages) = support::or_skip("small ledger", read) else { return };
        let sequence = |message: &consumer::Message| {
            let event: serde_json::Value = serde_json::from_slice(message.value()).unwrap();
            event["sequence"].as_str().unwrap().parse::<u32>().unwrap()
        };
        let numbers: Vec<u32> = messages.iter().map(sequence).collect();
        assert_eq!(numbers, (0..CALLBACKS).collect::<Vec<_>>(), "{delivery}");
    }
}

#[test]
fn a_rejected_event_delays_the_others_and_neither_repeats_nor_reorders_them() {
    let Some(kafka) = Kafka::shared_or_skip("rejected") else { return };
    for delivery in DELIVERIES {
        let prefix = support::unique(&format!("rejected-{delivery}"));
        let topic = format!("{prefix}.push");
        let first = bridge(&prefix, kafka.bootstrap(), delivery);
        first.start();
        send(&first, 0..1, 0);
        first.drain(DRAIN);
        first.kill();
        kafka::configure_topic(kafka.bootstrap(), &topic, &[("max.message.bytes", "20000")]);
        let away = first.set("KAFKA_BROKERS", "127.0.0.1:1");
        away.start();
        for part in 0..5 {
            send(&away, 1 + part * 100..100 + part * 100, 50);
            send(&away, 100 + part * 100..101 + part * 100, 50_000);
        }
        away.kill();
        let back = away.set("KAFKA_BROKERS", kafka.bootstrap());
        back.start();
        back.drain(DRAIN);
        assert_eq!(back.metric("livebridge_dead_letters_total"), Some(5.0), "{delivery}");
        let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
        let Some(messages) = support::or_skip("rejected", read) else { return };
        let sequence = |message: &consumer::Message| {
            let event: serde_json::Value = serde_json::from_slice(message.value()).unwrap();
            event["sequence"].as_str().unwrap().parse::<u32>().unwrap()
        };
        let numbers: Vec<u32> = messages.iter().map(sequence).collect();
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
    for topic in ["push", "dead-letter"] {
        let topic = format!("{prefix}.{topic}");
        kafka::configure_topic(kafka.bootstrap(), &topic, &[("max.message.bytes", "20000")]);
    }
    let quarantine = bridge.wal().join("quarantine");
    fs::write(&quarantine, "in the way").unwrap();
    send(&bridge, 1..2, 100_000);
    let started = Instant::now();
    while bridge.metric("livebridge_quarantine_ok") != Some(0.0) {
        bridge.assert_running();
        assert!(started.elapsed() < DRAIN, "{}", bridge.last_lines());
        thread::sleep(Duration::from_millis(50));
    }
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

/// A file system in memory at `path`; it is unmounted with this value.
struct Mount<'p>(&'p Path);

impl<'p> Mount<'p> {
    /// `None`, with a message, where mounting is not permitted.
    fn new(path: &'p Path, options: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path);
        if mount.output().is_ok_and(|done| done.status.success()) {
            return Some(Self(path));
        }
        support::skip::skip("a full disk with a rejected record", &"mounting needs root");
        None
    }

    /// Fills what is left, to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
        for size in [65_536, 4096, 1] {
            while file.write_all(&vec![0x55; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still use it.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Regression: the process ended, and every later one at its start.
#[test]
fn a_full_disk_and_a_rejected_record_stop_publishing_until_there_is_space() {
    let Some(kafka) = Kafka::shared_or_skip("full disk") else { return };
    let prefix = support::unique("full");
    let bridge =
        bridge(&prefix, kafka.bootstrap(), "exactly-once").set("WAL_MIN_FREE_BYTES", "64MiB");
    let wal = bridge.wal();
    let Some(mount) = Mount::new(&wal, "size=200m") else { return };
    bridge.start();
    send(&bridge, 0..1, 0);
    bridge.drain(DRAIN);
    for topic in ["push", "dead-letter"] {
        let topic = format!("{prefix}.{topic}");
        kafka::configure_topic(kafka.bootstrap(), &topic, &[("max.message.bytes", "20000")]);
    }
    bridge.kill();
    let away = bridge.set("KAFKA_BROKERS", "127.0.0.1:1");
    away.start();
    send(&away, 1..2, 100_000);
    send(&away, 2..20, 0);
    away.kill();
    let back = away.set("KAFKA_BROKERS", kafka.bootstrap());
    for restart in 0..2 {
        let filler = mount.fill();
        back.spawn();
        let started = Instant::now();
        while back.metric("livebridge_quarantine_ok") != Some(0.0) {
            back.assert_running();
            assert!(started.elapsed() < DRAIN, "{}", back.last_lines());
            thread::sleep(Duration::from_millis(50));
            // At its start the log gives back what it had reserved.
            mount.fill();
        }
        let body = r#"{"event_type":1,"stream_id":"s","sequence":"1000000"}"#;
        assert_eq!(back.post(body).unwrap().status, 503, "the intake answers");
        thread::sleep(Duration::from_secs(1));
        back.assert_running();
        let text = back.log_text();
        assert!(text.contains("cannot store a record that Kafka rejects"), "{text}");
        assert!(text.contains("No space left on device"), "{text}");
        if restart == 0 {
            back.kill();
        }
        fs::remove_file(filler).unwrap();
    }
    let started = Instant::now();
    while back.metric("livebridge_quarantine_ok") != Some(1.0) {
        back.assert_running();
        assert!(started.elapsed() < DRAIN, "{}", back.last_lines());
        thread::sleep(Duration::from_millis(50));
    }
    back.drain(DRAIN);
    assert_eq!(back.metric("livebridge_quarantined_total"), Some(1.0));
    // The segment that was prepared on the full disk may have failed for good (I6).
    assert!(back.stop().success(), "{}", back.last_lines());
    back.start();
    send(&back, 20..30, 0);
    back.drain(DRAIN);
    assert_eq!(back.metric("livebridge_quarantine_ok"), Some(1.0));
    let topic = format!("{prefix}.push");
    let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
    let Some(messages) = support::or_skip("full disk", read) else { return };
    let sequence = |message: &consumer::Message| {
        let event: serde_json::Value = serde_json::from_slice(message.value()).unwrap();
        event["sequence"].as_str().unwrap().parse::<u32>().unwrap()
    };
    let numbers: Vec<u32> = messages.iter().map(sequence).collect();
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
    let started = Instant::now();
    while !bridge.log_text().lines().any(|line| line.contains("hides what is behind it")) {
        assert!(started.elapsed() < 2 * DRAIN, "{}", bridge.last_lines());
        thread::sleep(Duration::from_millis(200));
    }
    send(&bridge, 2..3, 0);
    bridge.drain(DRAIN);
    hung.abort_transaction(DRAIN).unwrap();
}
