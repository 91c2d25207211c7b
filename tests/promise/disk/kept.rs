//! The real binary, a log that the publisher cannot read, and what an operator does about segments
//! that were damaged: the intake goes on, nothing readable is lost, and `livebridge wal damaged` lists,
//! exports and drops what is kept.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use livebridge::kafka::mock::MockKafka;
use serde_json::Value;

use super::faults::SHIM;
use crate::support::configured_bridge::{ConfiguredBridge, RunningBridge};
use crate::support::kafka::mock_kafka;
use crate::support::kafka_gate::KafkaGate;
use crate::support::log::{OpenLog, record, segment_dirs, temp_dir};
use crate::support::process::{Finished, livebridge, run};
use crate::support::wire::get;
use crate::support::{TIME_LIMIT, turn};

const EACCES: &str = "13";

/// A Kafka in memory, and a bridge that is not running, with a log of one closed segment with two
/// frames, of three records and of two.
fn with_log() -> (MockKafka, ConfiguredBridge) {
    let kafka = mock_kafka(1);
    let bridge = ConfiguredBridge::with_files(temp_dir(), &kafka.brokers(), "");
    let log = OpenLog::open(&bridge.wal()).unwrap();
    log.append_all((0..3).map(|number| record(number, 300)).collect());
    log.append_all((3..5).map(|number| record(number, 300)).collect());
    log.close().unwrap();
    (kafka, bridge)
}

/// The first segment's file.
fn data(bridge: &ConfiguredBridge) -> PathBuf {
    segment_dirs(&bridge.wal())[0].join("db")
}

/// Waits for this many events and returns their numbers, in the order of the topic.
fn published(running: &RunningBridge, count: usize) -> Vec<u64> {
    running.published("live.push").take(count).map(|record| number_in(&record.value)).collect()
}

/// The number in a body, which need not be complete JSON.
fn number_in(body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body);
    let digits = text.split("\"number\":").nth(1).unwrap();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap();
    digits[..end].parse().unwrap()
}

fn send(running: &RunningBridge, number: u64) {
    let body = format!(r#"{{"event_type":1,"stream_id":"new","sequence":"1","number":{number}}}"#);
    assert_eq!(running.post(&body).status, 200, "{}", running.process.stderr.text());
}

/// Reading and publishing may take longer where several tests of disks run.
fn wait_for_metric(running: &RunningBridge, series: &str, value: f64) {
    running.wait_for_metric_within(4 * TIME_LIMIT, series, value);
}

#[test]
fn a_log_that_the_publisher_cannot_read_does_not_stop_the_intake_and_is_published_later() {
    let _turn = turn::beside_others();
    let Some(shim) = SHIM.as_ref() else { return };
    let (kafka, bridge) = with_log();
    let fails = bridge.path("fails");
    // Kafka is out of reach until the log cannot be read any more.
    let gate = KafkaGate::to(kafka.brokers());
    let mut command = bridge.command(&["serve"]);
    command.env("LD_PRELOAD", shim).env("FAIL_READ", data(&bridge)).env("FAIL_LENGTH", "0");
    command.env("FAIL_WITH", EACCES).env("FAIL_WHILE", &fails);
    command.env("LIVEBRIDGE_KAFKA_BROKERS", gate.address.to_string());
    let mut running = bridge.start(&mut command);
    fs::write(&fails, "").unwrap();
    gate.open();
    wait_for_metric(&running, "livebridge_wal_read_ok", 0.0);
    for number in 10..20 {
        send(&running, number);
    }
    assert_eq!(get(running.admin, "/readyz").status, 200, "callbacks are accepted");
    assert!(get(running.admin, "/status").body.contains("LivebridgeLogNotReadable"));
    wait_for_metric(&running, "livebridge_wal_records", 15.0);
    let line = running.process.stderr.wait_for_text("cannot read the log");
    let line: Value = serde_json::from_str(&line).unwrap();
    let cause = line["cause"].as_str().unwrap();
    let data = data(&bridge).display().to_string();
    assert!(cause.contains(&data) && cause.contains("Permission denied"), "{line}");

    fs::remove_file(&fails).unwrap();
    let expected: Vec<u64> = (0..5).chain(10..20).collect();
    assert_eq!(published(&running, expected.len()), expected, "all of them, in order");
    wait_for_metric(&running, "livebridge_wal_read_ok", 1.0);
    running.process.stderr.wait_for_text("the log can be read again");
    running.process.stop();
    assert_eq!(damaged(&bridge.wal(), &[]).stdout, "no damaged segment is kept\n");
}

fn damaged(wal: &Path, arguments: &[&str]) -> Finished {
    let mut command = livebridge(&["wal", "damaged", "--dir", wal.to_str().unwrap()]);
    run(command.args(arguments))
}

#[test]
fn wal_damaged_lists_exports_and_drops_what_is_kept_also_beside_a_running_instance() {
    let _turn = turn::beside_others();
    let (_kafka, bridge) = with_log();
    let wal = bridge.wal();
    let data = data(&bridge);
    let bytes = fs::read(&data).unwrap();
    let at = bytes.windows(11).position(|run| run == b"{\"number\":1").unwrap();
    let file = OpenOptions::new().write(true).open(&data).unwrap();
    file.write_all_at(b"damage", at as u64).unwrap();

    let mut running = bridge.serve();
    send(&running, 10);
    assert_eq!(published(&running, 3), [3, 4, 10]);
    wait_for_metric(&running, "livebridge_wal_damaged_records_total", 3.0);
    wait_for_metric(&running, "livebridge_wal_damaged_segments", 1.0);

    let listed = damaged(&wal, &[]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let (name, rest) = listed.stdout.split_once("  ").unwrap();
    assert_eq!(name, "0000000001.damaged", "{listed:?}");
    assert!(rest.ends_with("  2 of 5 records readable\n"), "{listed:?}");
    let line: Value = serde_json::from_str(&damaged(&wal, &["--json"]).stdout).unwrap();
    let kept = wal.join("segments").join(name).join("db");
    assert_eq!(line["path"], kept.display().to_string());
    assert_eq!((&line["records"], &line["readable"]), (&5.into(), &2.into()));
    assert_eq!(line["bytes"], fs::metadata(&kept).unwrap().len());
    // The damaged bytes are as they were found, for tools that repair them.
    assert_eq!(&fs::read(&kept).unwrap()[at..at + 6], b"damage");

    let exported = damaged(&wal, &["--export", name]);
    assert_eq!(exported.code, Some(0), "{exported:?}");
    let lines: Vec<Value> =
        exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lsns: Vec<&str> = lines.iter().map(|line| line["lsn"].as_str().unwrap()).collect();
    assert_eq!(lsns, ["1.4", "1.5"]);

    let unknown = damaged(&wal, &["--drop", "0000000009.damaged"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("no such damaged segment: 0000000009.damaged"), "{unknown:?}");
    // Only damaged segments can be dropped.
    let intact = segment_dirs(&wal)[0].file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(damaged(&wal, &["--drop", &intact]).code, Some(1));
    assert!(wal.join("segments").join(&intact).exists());

    let dropped = damaged(&wal, &["--drop", name]);
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    assert_eq!(dropped.stdout, "0000000001.damaged is removed\n");
    assert!(!kept.parent().unwrap().exists());
    assert_eq!(damaged(&wal, &[]).stdout, "no damaged segment is kept\n");
    assert_eq!(damaged(&wal, &["--json"]).stdout, "");
    let all = damaged(&wal, &["--drop", "all"]);
    assert_eq!((all.code, all.stdout.as_str()), (Some(0), "no damaged segment is kept\n"));
    wait_for_metric(&running, "livebridge_wal_damaged_segments", 0.0);
    send(&running, 11);
    assert_eq!(published(&running, 4), [3, 4, 10, 11]);
    running.process.stop();
}
