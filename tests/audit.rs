//! The self-audit, and `livebridge audit`: all is well when it is, and what is missing is missed.

mod support;
#[path = "support/wire.rs"]
mod wire;

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::bridge::Bridge;

/// Where no Kafka is: a port that nobody may listen on.
const NOWHERE: &str = "127.0.0.1:1";

/// Sends so many callbacks and expects each to be taken.
fn send(bridge: &Bridge, numbers: std::ops::Range<u32>) {
    let mut wire = wire::Wire::connect(bridge.intake());
    for number in numbers {
        let body = json!({"event_type": 1, "stream_id": "s", "sequence": number.to_string()});
        wire.send(wire::post("/callback", &body.to_string()));
        assert_eq!(wire.answer().map(|answer| answer.status), Some(200));
    }
}

/// Waits until a metric has a value.
fn wait_for(bridge: &Bridge, name: &str, value: f64) {
    let started = Instant::now();
    loop {
        let now = bridge.metric(name);
        if now == Some(value) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{name} is {now:?}, not {value}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn without_kafka(name: &str) -> Bridge {
    Bridge::new(name, NOWHERE, "live").set("CALLBACK_UNSIGNED", "all")
}

#[test]
fn kills_leave_the_account_whole() {
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
fn what_was_taken_from_the_log_between_two_processes_is_missed_ever_after() {
    let bridge = without_kafka("audit-taken");
    for life in 0..2 {
        bridge.start();
        send(&bridge, life * 30..life * 30 + 30);
        wait_for(&bridge, "livebridge_audit_pending_records", f64::from(life * 30 + 30));
        // Longer than the account takes to reach its file.
        thread::sleep(Duration::from_millis(250));
        bridge.kill();
    }
    let first = bridge.wal().join("segments").join("0000000001");
    fs::remove_dir_all(first).expect("a segment");
    for _ in 0..2 {
        bridge.start();
        wait_for(&bridge, "livebridge_audit_missing_records", 30.0);
        wait_for(&bridge, "livebridge_audit_accepted_total", 60.0);
        wait_for(&bridge, "livebridge_audit_pending_records", 30.0);
        bridge.kill();
    }
    assert!(bridge.said().contains("the self-audit is off"), "{}", bridge.said());
}

#[test]
fn a_log_that_was_cut_short_is_missed() {
    let bridge = without_kafka("audit-cut");
    bridge.start();
    send(&bridge, 0..200);
    wait_for(&bridge, "livebridge_audit_pending_records", 200.0);
    thread::sleep(Duration::from_millis(250));
    bridge.kill();
    let data = bridge.wal().join("segments").join("0000000001").join("db");
    let file = File::options().write(true).open(&data).expect("a segment's file");
    let end = file.metadata().expect("its length").len();
    // Of the records, some at the end: the file's tail is allocated and empty.
    let content = fs::read(&data).expect("its bytes");
    let used = content.iter().rposition(|byte| *byte != 0).expect("records") as u64;
    file.set_len(used * 3 / 4).expect("a writable file");
    file.set_len(end).expect("a writable file");
    bridge.start();
    let started = Instant::now();
    let missing = loop {
        let missing = bridge.metric("livebridge_audit_missing_records").expect("an answer");
        if missing != 0.0 {
            break missing;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "it is not missed");
        thread::sleep(Duration::from_millis(50));
    };
    assert!((1.0..200.0).contains(&missing), "{missing}");
    wait_for(&bridge, "livebridge_audit_pending_records", 200.0 - missing);
}
