//! The self-audit and `livebridge audit`: they report no difference on intact data, and report
//! missing and duplicate events.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::support::bridge::Bridge;
use crate::support::consumer::{self, Isolation, Message};
use crate::support::kafka::{self, Kafka, UNREACHABLE};
use crate::support::{self, wire};

/// Sends `count` callbacks and expects each to be accepted.
fn send(bridge: &Bridge, numbers: std::ops::Range<u32>) {
    let mut wire = wire::Wire::connect(bridge.intake());
    for number in numbers {
        let body = json!({"event_type": 1, "stream_id": "s", "sequence": number.to_string()});
        wire.send(wire::post("/callback", &body.to_string()));
        assert_eq!(wire.answer().map(|answer| answer.status), Some(200));
    }
}

/// Waits until a metric has the given value.
fn wait_for(bridge: &Bridge, name: &str, value: f64) {
    let what = format!("{name} = {value}");
    bridge.wait_until(&what, Duration::from_secs(20), || bridge.metric(name) == Some(value));
}

/// Waits until the totals with `accepted` callbacks are in their file: a killed process has no others.
fn wait_until_totals_are_written(bridge: &Bridge, accepted: u32) {
    let file = bridge.wal().join("self-audit");
    let line = format!("accepted {accepted:020}");
    let are_written = || fs::read_to_string(&file).is_ok_and(|text| text.contains(&line));
    bridge.wait_until("writing the totals", Duration::from_secs(20), are_written);
}

fn without_kafka(name: &str) -> Bridge {
    Bridge::new(name, UNREACHABLE, "live").set("CALLBACK_UNSIGNED", "all")
}

#[test]
fn kills_leave_the_self_audit_balanced() {
    let bridge = without_kafka("audit-kills");
    for life in 0..3 {
        bridge.start();
        send(&bridge, life * 40..life * 40 + 40);
        bridge.kill();
    }
    bridge.start();
    wait_for(&bridge, "livebridge_audit_accepted_total", 120.0);
    wait_for(&bridge, "livebridge_audit_pending_records", 120.0);
    wait_for(&bridge, "livebridge_audit_missing_records", 0.0);
}

#[test]
fn records_removed_from_the_log_between_two_processes_stay_reported_as_missing() {
    let bridge = without_kafka("audit-taken");
    for life in 0..2 {
        bridge.start();
        send(&bridge, life * 30..life * 30 + 30);
        wait_for(&bridge, "livebridge_audit_pending_records", f64::from(life * 30 + 30));
        wait_until_totals_are_written(&bridge, life * 30 + 30);
        bridge.kill();
    }
    let first = bridge.wal().join("segments").join("0000000001");
    fs::remove_dir_all(first).expect("a segment");
    for _ in 0..2 {
        bridge.start();
        wait_for(&bridge, "livebridge_audit_missing_records", 30.0);
        wait_for(&bridge, "livebridge_audit_accepted_total", 60.0);
        wait_for(&bridge, "livebridge_audit_pending_records", 30.0);
        bridge.wait_for_error("the self-audit is off", Duration::from_secs(20));
        bridge.kill();
    }
}

#[test]
fn records_of_a_truncated_log_are_reported_as_missing() {
    let bridge = without_kafka("audit-cut");
    bridge.start();
    send(&bridge, 0..200);
    wait_for(&bridge, "livebridge_audit_pending_records", 200.0);
    wait_until_totals_are_written(&bridge, 200);
    bridge.kill();
    let data = bridge.wal().join("segments").join("0000000001").join("db");
    let file = File::options().write(true).open(&data).expect("a segment's file");
    let end = file.metadata().expect("its length").len();
    // Cuts into the records; the end of the file is allocated and empty.
    let content = fs::read(&data).expect("its bytes");
    let used = content.iter().rposition(|byte| *byte != 0).expect("records") as u64;
    file.set_len(used * 3 / 4).expect("a writable file");
    file.set_len(end).expect("a writable file");
    bridge.start();
    let missing = || bridge.metric("livebridge_audit_missing_records").expect("an answer");
    bridge.wait_until("the loss is reported", Duration::from_secs(20), || missing() != 0.0);
    let missing = missing();
    assert!((1.0..200.0).contains(&missing), "{missing}");
    wait_for(&bridge, "livebridge_audit_pending_records", 200.0 - missing);
}

/// The output of `livebridge audit` and its exit code.
fn audit(bridge: &Bridge, arguments: &[&str]) -> (Option<i32>, Value) {
    let finished = bridge.run(&[&["audit", "--json"], arguments].concat());
    let report = serde_json::from_str(&finished.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}", finished.stderr));
    (finished.code, report)
}

/// A bridge that has published `count` events, and the events that a consumer reads.
fn published(test: &str, count: u32) -> Option<(Bridge, String, &'static Kafka, Vec<Message>)> {
    let kafka = Kafka::shared_or_skip(test)?;
    let prefix = support::unique("audit");
    let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix).set("CALLBACK_UNSIGNED", "all");
    bridge.start();
    send(&bridge, 0..count);
    send(&bridge, 0..5);
    bridge.drain(Duration::from_mins(1));
    let topic = format!("{prefix}.push");
    let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
    Some((bridge, topic, kafka, support::or_skip(test, read)?))
}

#[test]
fn events_removed_from_a_topic_are_reported_as_missing() {
    let Some((bridge, topic, kafka, messages)) = published("removed records", 40) else { return };
    let (code, report) = audit(&bridge, &[]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["topics"][&topic], 40, "{report:#}");
    assert_eq!(report["ledger"]["events"], 40);
    assert_eq!(report["ok"], true);

    // One stream is in one partition; the first seven of its records are deleted.
    let partition = messages[0].partition;
    let mut before = TopicPartitionList::new();
    let seventh = messages.iter().filter(|message| message.partition == partition).nth(6);
    let offset = Offset::Offset(seventh.expect("forty of one stream").offset + 1);
    before.add_partition_offset(&topic, partition, offset).expect("a partition");
    let admin = kafka::admin(kafka.bootstrap());
    kafka::respond(admin.delete_records(&before, &AdminOptions::new()));

    let (code, report) = audit(&bridge, &[]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["missing"]["count"], 7, "{report:#}");
    assert_eq!(report["truncated_partitions"][0]["topic"], *topic);
    let missing: Vec<&str> = report["missing"]["events"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|event| event["id"].as_str())
        .collect();
    for message in messages.iter().filter(|message| message.partition == partition).take(7) {
        let id = message.header("ce_id").expect("an event");
        assert!(missing.contains(&id), "{id} is not named in {missing:?}");
    }
    // No event was received before the audited interval.
    let (code, report) = audit(&bridge, &["--until", "1h"]);
    assert_eq!((code, &report["missing"]["count"]), (Some(0), &json!(0)), "{report:#}");
}

#[test]
fn duplicate_and_foreign_events_are_reported() {
    let Some((bridge, topic, kafka, messages)) = published("foreign records", 10) else { return };
    let producer: BaseProducer = kafka::client(kafka.bootstrap()).create().expect("a client");
    let put = |id: &str| {
        let mut headers = OwnedHeaders::new();
        let received = messages[0].header("livebridge-received-at").expect("an event");
        for (key, value) in [("ce_id", id), ("livebridge-received-at", received)] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let record = BaseRecord::<[u8], [u8]>::to(&topic).payload(b"{}").headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    };
    let (own, foreign) =
        (messages[3].header("ce_id").expect("an event"), "0123456789abcdef".repeat(2));
    put(own);
    put(&foreign);
    producer.flush(Duration::from_secs(30)).expect("a broker that responds");
    let (code, report) = audit(&bridge, &[]);
    assert_eq!(code, Some(1), "{report:#}");
    let only = |kind: &str| {
        assert_eq!(report[kind]["count"], 1, "{report:#}");
        report[kind]["events"][0]["id"].clone()
    };
    assert_eq!((only("duplicated"), only("unaccounted")), (json!(own), json!(foreign)));
    assert_eq!(report["missing"]["count"], 0);
}

#[test]
fn unpublished_records_are_pending_and_not_missing() {
    let Some((bridge, ..)) = published("pending records", 10) else { return };
    bridge.kill();
    // The same log with Kafka unreachable.
    let mut serve = Command::new(env!("CARGO_BIN_EXE_livebridge"));
    serve.arg("serve").envs(bridge.environment()).env("LIVEBRIDGE_KAFKA_BROKERS", UNREACHABLE);
    let mut away = serve.stderr(std::process::Stdio::null()).spawn().expect("the binary");
    bridge.wait_until_ready();
    send(&bridge, 100..130);
    let (code, report) = audit(&bridge, &[]);
    away.kill().and_then(|()| away.wait()).expect("a child");
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!((&report["log"]["pending"], &report["missing"]["count"]), (&json!(30), &json!(0)));
}
