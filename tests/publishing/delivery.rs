//! End-to-end delivery, verified by an independent consumer: every published payload is in its
//! topic, unchanged, once. Runs against a real broker and the mock cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use livebridge::callback::CallbackKey;
use livebridge::event::Timestamp;
use livebridge::kafka::mock::MockKafka;
use livebridge::sample::Samples;
use livebridge::sender::{RetryPolicy, Sender};

use crate::support;
use crate::support::bridge::Bridge;
use crate::support::consumer::{self, Isolation, Message};
use crate::support::kafka::{self, Kafka};
use crate::support::wire::deliver;

/// The signing key of the payloads (payloads/INDEX.md).
const PAYLOADS_KEY: &str = "callbackKey0123456789";
/// The payloads that the bridge rejects, and the status of each.
const REJECTED: [(&str, u16); 6] = [
    ("064_bom", 400),
    ("065_duplicate_keys", 400),
    ("078_invalid_unquoted_value", 400),
    ("079_invalid_trailing_comma", 400),
    ("080_empty_body", 400),
    ("081_json_array_body", 400),
];
const DRAIN: Duration = Duration::from_mins(1);

/// The published payloads, by name.
fn payloads() -> BTreeMap<String, Vec<u8>> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/payloads"));
    let mut payloads = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "INDEX" {
            payloads.insert(name, fs::read(&path).unwrap());
        }
    }
    assert!(payloads.len() > 80, "the payloads were found");
    payloads
}

/// The topic of a body, by the table in docs/kafka.md.
fn topic_of(body: &[u8], prefix: &str) -> String {
    let event_type = match &event(body)["event_type"] {
        serde_json::Value::String(text) => text.parse().ok(),
        number => number.as_i64(),
    };
    let name = match event_type {
        Some(0) => "interrupt",
        Some(1) => "push",
        Some(100) => "record",
        Some(200) => "screenshot",
        Some(314) => "relay",
        Some(315) => "audio-moderation",
        Some(317) => "porn-detection",
        Some(321) => "push-exception",
        Some(328) => "monitor",
        Some(332) => "record-status",
        Some(338) => "subtitle",
        Some(341) => "record-exception",
        Some(343) => "quality",
        Some(344) => "assessment-threshold",
        Some(345) => "assessment-average",
        Some(347) => "smart-erase",
        Some(348) => "summary",
        Some(349) => "highlight",
        _ => "other",
    };
    format!("{prefix}.{name}")
}

fn bridge(instance: &str, brokers: &str, prefix: &str) -> Bridge {
    Bridge::new(instance, brokers, prefix)
        .set("CALLBACK_KEYS", PAYLOADS_KEY)
        // Accepts the payloads' signatures, which are years old.
        .set("CALLBACK_EXPIRY_LEEWAY", "36500days")
        .set("CALLBACK_UNSIGNED", "all")
}

/// Sends every payload twice and returns the bodies that must be in Kafka once.
fn send_payloads(bridge: &Bridge, prefix: &str) -> BTreeMap<String, (String, Vec<u8>)> {
    let rejected: BTreeMap<_, _> = REJECTED.into_iter().collect();
    let mut expected = BTreeMap::new();
    let mut told = Vec::new();
    for round in 0..2 {
        for (name, body) in payloads() {
            let answer = bridge.post(std::str::from_utf8(&body).unwrap()).unwrap();
            let (status, answer) = (answer.status, answer.body);
            let wanted = rejected.get(name.as_str()).copied().unwrap_or(200);
            assert_eq!(status, wanted, "{name}: {answer}");
            if wanted == 200 {
                assert_eq!(answer, r#"{"code":0}"#, "{name}");
            } else {
                let error: serde_json::Value = serde_json::from_str(&answer).unwrap();
                assert_eq!(error["code"], wanted, "{name}");
                assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
            }
            if round == 0 && wanted == 200 && !told.contains(&event(&body)) {
                told.push(event(&body));
                expected.insert(name.clone(), (topic_of(&body, prefix), body));
            }
        }
    }
    expected
}

/// A body without its delivery-specific members: equal for all retries of one event.
fn event(body: &[u8]) -> serde_json::Value {
    let mut event: serde_json::Value = serde_json::from_slice(body).unwrap();
    let members = event.as_object_mut().unwrap();
    members.remove("t");
    members.remove("sign");
    event
}

fn assert_delivered(expected: BTreeMap<String, (String, Vec<u8>)>, messages: &[Message]) {
    let mut left: Vec<&Message> = messages.iter().collect();
    for (name, (topic, body)) in expected {
        let at = left.iter().position(|message| message.value() == body);
        let message = left.swap_remove(at.unwrap_or_else(|| panic!("{name} is not in Kafka")));
        assert_eq!(message.topic, topic, "{name}");
        assert_message_tells_of(&name, message, &body);
    }
    let rest: Vec<_> =
        left.iter().map(|message| String::from_utf8_lossy(message.value())).collect();
    assert!(rest.is_empty(), "in Kafka more than once, or never sent: {rest:#?}");
}

fn assert_message_tells_of(name: &str, message: &Message, body: &[u8]) {
    let event: serde_json::Value = serde_json::from_slice(body).unwrap();
    let text = |field: &str| match &event[field] {
        serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let stream = text("stream_id").or_else(|| text("streamId"));
    let key = stream.clone().or_else(|| text("task_id"));
    assert_eq!(message.key(), key.as_deref(), "{name}");
    assert_eq!(message.header("ce_subject"), stream.as_deref(), "{name}");
    assert_eq!(message.header("ce_specversion"), Some("1.0"), "{name}");
    assert_eq!(message.header("content-type"), Some("application/json"), "{name}");
    assert_eq!(message.header("ce_source"), Some("urn:tencent-cloud:live"), "{name}");
    let id = message.header("ce_id").unwrap_or_default();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{name}: {id}");
    let kind = message.topic.rsplit('.').next().unwrap();
    let kind = format!("com.tencent.cloud.live.{kind}");
    assert_eq!(message.header("ce_type"), Some(kind.as_str()), "{name}");
    for header in ["ce_time", "livebridge-received-at"] {
        assert!(message.header(header).is_some_and(|time| time.ends_with('Z')), "{name} {header}");
    }
    assert!(message.header("livebridge-instance").is_some(), "{name}");
    if let Some(seconds) = event["event_time"].as_i64().filter(|t| (1..10_000_000_000).contains(t))
        && kind != "com.tencent.cloud.live.other"
    {
        // The payloads are years old: with their event time the broker would delete them at once.
        let received = message.header("livebridge-received-at").and_then(Timestamp::parse);
        let oldest = received.unwrap().before(Duration::from_hours(24)).as_millis();
        let range = oldest.max(seconds * 1000)..=Timestamp::now().as_millis();
        assert!(range.contains(&message.timestamp), "{name}: {} {range:?}", message.timestamp);
        let time = Timestamp::from_secs(seconds).unwrap().to_string();
        assert_eq!(message.header("ce_time"), Some(time.as_str()), "{name}");
    }
}

#[test]
fn every_payload_reaches_its_topic_on_a_real_broker_once_and_unchanged() {
    let Some(kafka) = Kafka::shared_or_skip("delivery") else { return };
    let prefix = support::unique("delivery");
    let bridge = bridge(&prefix, kafka.bootstrap(), &prefix);
    bridge.start();
    let expected = send_payloads(&bridge, &prefix);
    bridge.drain(DRAIN);
    let names = kafka::topics(&prefix);
    let read = consumer::read(kafka.bootstrap(), &names.all(), Isolation::Committed);
    let Some(messages) = support::or_skip("delivery", read) else { return };
    assert_delivered(expected, &messages);
    assert!(bridge.stop().success());
}

#[test]
fn every_payload_reaches_its_topic_on_the_mock_cluster_once_and_unchanged() {
    let prefix = "embedded";
    let names = kafka::topics(prefix);
    let kafka = MockKafka::start(&names.all(), 3, names.ledger()).unwrap();
    let bridge = bridge(prefix, &kafka.brokers(), prefix).set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    let expected = send_payloads(&bridge, prefix);
    bridge.drain(DRAIN);
    let read = consumer::read(&kafka.brokers(), &names.all(), Isolation::Committed);
    let Some(messages) = support::or_skip("embedded delivery", read) else { return };
    assert_delivered(expected, &messages);
    assert!(bridge.stop().success());
}

#[test]
fn without_transactions_every_payload_arrives_and_retries_are_absorbed_across_a_restart() {
    let Some(kafka) = Kafka::shared_or_skip("at least once") else { return };
    let prefix = support::unique("at-least-once");
    let bridge = bridge(&prefix, kafka.bootstrap(), &prefix).set("KAFKA_DELIVERY", "at-least-once");
    bridge.start();
    let expected = send_payloads(&bridge, &prefix);
    bridge.drain(DRAIN);
    // As with transactions, published events are known from the ledger topic.
    assert!(bridge.stop().success());
    bridge.start();
    assert_eq!(send_payloads(&bridge, &prefix).len(), expected.len());
    bridge.drain(DRAIN);
    let names = kafka::topics(&prefix);
    let read = consumer::read(kafka.bootstrap(), &names.all(), Isolation::Uncommitted);
    let Some(messages) = support::or_skip("at least once", read) else { return };
    assert_delivered(expected, &messages);
}

#[test]
fn without_transactions_the_ledger_lists_an_event_only_after_it_is_in_its_topic() {
    let (mock, names) = (kafka::mock_cluster("late", 2, 1), kafka::topics("late"));
    for topic in names.all().into_iter().chain([names.ledger()]) {
        let leader = if topic == names.ledger() { 2 } else { 1 };
        mock.partition_leader(topic, 0, Some(leader)).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let brokers = mock.bootstrap_servers();
    let count = |topic| kafka::size(&brokers, topic);
    let bridge = bridge("late", &brokers, "late")
        .set("KAFKA_DELIVERY", "at-least-once")
        .set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    let event =
        |number: u32| format!(r#"{{"event_type":1,"stream_id":"s","sequence":"{number}"}}"#);
    deliver(bridge.intake(), [&event(1)]);
    bridge.drain(DRAIN);
    assert_eq!((count("late.push"), count(names.ledger())), (1, 1));

    mock.broker_down(1).unwrap();
    deliver(bridge.intake(), [&event(2)]);
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(count(names.ledger()), 1, "the event cannot be published yet");
    }
    mock.broker_up(1).unwrap();
    bridge.drain(DRAIN);
    assert_eq!((count("late.push"), count(names.ledger())), (2, 2));
}

#[test]
fn a_retry_is_absorbed_after_a_restart_and_after_a_lost_disk() {
    let Some(kafka) = Kafka::shared_or_skip("retries") else { return };
    let prefix = support::unique("retries");
    let first = bridge(&prefix, kafka.bootstrap(), &prefix);
    first.start();
    let key = CallbackKey::new(PAYLOADS_KEY);
    let samples = Samples::new(key);
    let events: Vec<_> = Samples::types().map(|kind| samples.event(kind)).collect();
    let send = |bridge: &Bridge| {
        let bodies = events.iter().map(|event| samples.delivery(event.clone(), Timestamp::now()));
        deliver(bridge.intake(), bodies);
    };
    send(&first);
    first.drain(DRAIN);
    first.kill();
    first.start();
    send(&first);
    first.drain(DRAIN);
    // A new log on a new host: published events are known from Kafka alone.
    let second = bridge(&support::unique("retries-elsewhere"), kafka.bootstrap(), &prefix);
    second.start();
    send(&second);
    second.drain(DRAIN);
    let duplicates = second.metric("livebridge_duplicates_total");
    assert_eq!(duplicates.map(|count| format!("{count}")), Some(events.len().to_string()));
    let names = kafka::topics(&prefix);
    let read = consumer::read(kafka.bootstrap(), &names.all(), Isolation::Committed);
    let Some(messages) = support::or_skip("retries", read) else { return };
    assert_eq!(messages.len(), events.len());
}

#[test]
fn a_retry_that_waited_longer_than_the_window_is_still_absorbed() {
    let Some(kafka) = Kafka::shared_or_skip("window") else { return };
    let prefix = support::unique("window");
    let bridge = bridge(&prefix, kafka.bootstrap(), &prefix).set("DEDUP_WINDOW", "30s");
    bridge.start();
    let samples = Samples::new(CallbackKey::new(PAYLOADS_KEY));
    let event = samples.event(livebridge::event::EventType(1));
    let body = samples.delivery(event, Timestamp::now());
    deliver(bridge.intake(), [&body]);
    bridge.drain(DRAIN);
    // The publisher is stopped permanently here: later callbacks wait in the log.
    bridge.kill();
    let away = bridge.set("KAFKA_BROKERS", kafka::UNREACHABLE);
    away.start();
    deliver(away.intake(), [&body]);
    std::thread::sleep(Duration::from_secs(32));
    away.kill();
    let back = away.set("KAFKA_BROKERS", kafka.bootstrap());
    back.start();
    back.drain(DRAIN);
    let topic = format!("{prefix}.push");
    let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
    let Some(messages) = support::or_skip("window", read) else { return };
    assert_eq!(messages.len(), 1, "the retry was published again");
}

#[test]
fn records_that_even_the_dead_letter_topic_rejects_stay_on_disk_until_released() {
    let Some(kafka) = Kafka::shared_or_skip("quarantine") else { return };
    let prefix = support::unique("quarantine");
    let topics = [format!("{prefix}.push"), format!("{prefix}.dead-letter")];
    let bridge = bridge(&prefix, kafka.bootstrap(), &prefix);
    bridge.start();
    let samples = Samples::new(CallbackKey::new(PAYLOADS_KEY));
    let small = || {
        let event = samples.event(livebridge::event::EventType(1));
        samples.delivery(event, Timestamp::now())
    };
    deliver(bridge.intake(), [&small()]);
    bridge.drain(DRAIN);
    for topic in &topics {
        kafka::configure_topic(kafka.bootstrap(), topic, &[("max.message.bytes", "20000")]);
    }
    let mut event = samples.event(livebridge::event::EventType(1));
    event.insert("stream_param".into(), "x".repeat(100_000).into());
    let large = samples.delivery(event, Timestamp::now());
    deliver(bridge.intake(), [&large]);
    deliver(bridge.intake(), [&small()]);
    bridge.drain(DRAIN);
    assert_eq!(bridge.metric("livebridge_quarantined_total"), Some(1.0));
    assert_eq!(bridge.metric("livebridge_published_total"), Some(2.0));
    let status: serde_json::Value = serde_json::from_str(&bridge.get("/status")).unwrap();
    let recent = status["undelivered"]["recent"].as_array().unwrap();
    assert_eq!(recent.len(), 1, "the record is listed where it is: {recent:?}");
    assert_eq!(recent[0]["place"], "quarantine");

    let wal = |command: &str| {
        let finished = bridge.run(&["wal", command]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    };
    let held: serde_json::Value = serde_json::from_str(&wal("quarantine")).unwrap();
    assert_eq!(held["body"], large);
    assert!(held["reason"].as_str().unwrap().contains("MessageSizeTooLarge"), "{held}");
    for topic in &topics {
        kafka::configure_topic(kafka.bootstrap(), topic, &[]);
    }
    let in_use = bridge.run(&["wal", "release"]);
    assert_eq!(in_use.code, Some(1));
    assert!(in_use.stderr.contains("stop livebridge first"), "{in_use:?}");
    assert!(bridge.stop().success());
    assert_eq!(wal("release"), "1 record put back into the log\n");
    assert_eq!(wal("release"), "nothing is in quarantine\n");
    bridge.start();
    bridge.drain(DRAIN);
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let read = consumer::read(kafka.bootstrap(), &topics, Isolation::Committed);
    let Some(messages) = support::or_skip("quarantine", read) else { return };
    assert_eq!(messages.len(), 3, "each once, and no dead letter");
    let released = messages.iter().filter(|message| message.value() == large.as_bytes());
    assert_eq!(released.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_starts_late_receives_everything_in_order() {
    let Some(kafka) = Kafka::shared_or_skip("late") else { return };
    let prefix = support::unique("late");
    let away = bridge(&prefix, kafka::UNREACHABLE, &prefix);
    away.start();
    let mut sender = Sender::new(&format!("http://{}/callback", away.intake())).unwrap();
    let samples = Samples::new(CallbackKey::new(PAYLOADS_KEY));
    let policy = RetryPolicy { retries: 0, interval: Duration::ZERO };
    for number in 0..500 {
        let mut event = samples.event(livebridge::event::EventType(1));
        event.insert("stream_id".into(), "one".into());
        event.insert("number".into(), number.into());
        let body = samples.delivery(event, Timestamp::now());
        let outcome = sender.send(body.clone(), policy, || body.clone()).await;
        assert_eq!(outcome.status.map(|status| status.as_u16()), Some(200), "{outcome:?}");
    }
    assert!(away.stop().success(), "an unreachable Kafka must not fail the check");
    let back = away.set("KAFKA_BROKERS", kafka.bootstrap());
    back.start();
    back.drain(DRAIN);
    let topic = format!("{prefix}.push");
    let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
    let Some(messages) = support::or_skip("late", read) else { return };
    let numbers: Vec<_> = messages
        .iter()
        .map(|message| {
            let event: serde_json::Value = serde_json::from_slice(message.value()).unwrap();
            event["number"].as_i64().unwrap()
        })
        .collect();
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
}
