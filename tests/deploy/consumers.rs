//! The consumers in `deploy/consumers/` use only the contract. They read every event type from a
//! real broker, and every record there matches the contract.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp, type_name};
use livebridge::sample::Samples;
use serde_json::{Value, json};

use crate::support::bridge::{Bridge, KEY};
use crate::support::kafka::{Kafka, TIME_LIMIT, jars};
use crate::support::process::Running;
use crate::support::{self, Unavailable, wait_until, wire};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The output of every consumer for an event: type, stream, value.
type Event = (String, String, Value);

/// Sends a callback of every type and one without a type, each twice.
fn send(bridge: &Bridge) -> Vec<Event> {
    let samples = Samples::new(CallbackKey::new(KEY));
    let mut sent = Vec::new();
    let types = Samples::types().chain([EventType(4242)]);
    let mut events: Vec<_> = types.map(|event_type| samples.event(event_type)).collect();
    events.push(json!({"text": "直播", "half": 0.5}).as_object().unwrap().clone());
    for event in events {
        // An event without a type has no time of its own: its signing time tells it apart, and only
        // an identical delivery is a retry.
        let resigned = if event.contains_key("event_type") { 1000 } else { 0 };
        let now = Timestamp::now();
        for (retry, seconds) in [(false, 0), (true, resigned)] {
            let t = now.after(Duration::from_millis(seconds));
            let body = samples.delivery(event.clone(), t);
            let answer = wire::exchange(bridge.intake(), wire::post("/callback", &body)).unwrap();
            assert_eq!(answer.status, 200, "{body}");
            if retry {
                continue;
            }
            let event: Value = serde_json::from_str(&body).unwrap();
            let code = event["event_type"].as_i64().map(EventType);
            let stream = event["stream_id"].as_str().or(event["streamId"].as_str());
            let ce_type = format!("com.tencent.cloud.live.{}", type_name(code));
            sent.push((ce_type, stream.unwrap_or_default().to_owned(), event));
        }
    }
    sent
}

/// The events that `consumer` prints, by ID, until it has printed as many as were sent.
fn printed(consumer: &mut Command, count: usize) -> BTreeMap<String, Event> {
    let consumer = Running::start(consumer);
    let has_printed_all = || consumer.stdout.text().lines().count() >= count;
    wait_until(TIME_LIMIT, has_printed_all, || consumer.stderr.text());
    // Waits for unexpected further output.
    thread::sleep(Duration::from_millis(500));
    let text = consumer.stdout.text();
    assert_eq!(text.lines().count(), count, "{text}");
    let event = |line: &str| {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let [id, ce_type, stream, value] = fields[..] else { panic!("{line}") };
        let value = serde_json::from_str(value).unwrap();
        (id.to_owned(), (ce_type.to_owned(), stream.to_owned(), value))
    };
    let events: BTreeMap<_, _> = text.lines().map(event).collect();
    assert_eq!(events.len(), count, "each ID is present once");
    events
}

fn java() -> Result<(), Unavailable> {
    let javac = Command::new("javac").arg("-version").output();
    javac.map(drop).map_err(|error| Unavailable(format!("javac, which Java needs: {error}")))
}

#[test]
fn consumers_written_from_the_contract_alone_read_every_event_once() {
    let test = "consumers_written_from_the_contract_alone_read_every_event_once";
    let Some(python) = support::or_skip(test, support::consumer::python()) else { return };
    let Some(kafka) = Kafka::start_or_skip(test) else { return };
    let bridge = Bridge::new("consumed", kafka.bootstrap(), "live").set("KAFKA_PARTITIONS", "1");
    bridge.start();
    let mut sent = send(&bridge);
    bridge.drain(TIME_LIMIT);
    sent.sort_by_key(|event| format!("{event:?}"));
    let sorted = |events: &BTreeMap<String, Event>| {
        let mut events: Vec<Event> = events.values().cloned().collect();
        events.sort_by_key(|event| format!("{event:?}"));
        events
    };

    let mut by_python = Command::new(python);
    by_python.arg(format!("{ROOT}/deploy/consumers/consumer.py")).arg(kafka.bootstrap());
    let by_python = printed(&mut by_python, sent.len());
    assert_eq!(sorted(&by_python), sent);

    if support::or_skip(test, java()).is_some() {
        let mut by_java = Command::new("java");
        by_java.arg("-cp").arg(format!("{}/*", jars().unwrap().display()));
        by_java.arg(format!("{ROOT}/deploy/consumers/Consumer.java"));
        by_java.arg(format!("{ROOT}/deploy/contract/asyncapi.json")).arg(kafka.bootstrap());
        assert_eq!(printed(&mut by_java, sent.len()), by_python);
    }

    let records = tempfile::tempdir().unwrap();
    let records = records.path().join("records");
    keeps_the_contract(python, &kafka, &records);
}

/// Reads all topics again and validates each record against its schemas.
fn keeps_the_contract(python: &Path, kafka: &Kafka, records: &Path) {
    let read = Command::new(python)
        .arg(format!("{ROOT}/tests/support/consume.py"))
        .args(["--bootstrap", kafka.bootstrap()])
        .args(Samples::types().map(|event_type| format!("live.{}", type_name(Some(event_type)))))
        .arg("live.other")
        .stdout(File::create(records).unwrap())
        .status();
    assert!(read.unwrap().success());
    let check = |records: &Path| {
        let mut check = Command::new(python);
        let output =
            check.arg(format!("{ROOT}/tests/deploy/contract/check.py")).arg(records).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(check(records), "19 topics\n");

    let text = fs::read_to_string(records).unwrap();
    fs::write(records, text.replacen("ce_id", "ce_ident", 1)).unwrap();
    assert!(check(records).contains("'ce_id' is a required property"), "it would be noticed");
}
