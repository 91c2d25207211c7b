//! The log output: one line for each change of state, none for each callback, and each line
//! machine-readable.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::configured_bridge::{ConfiguredBridge, RunningBridge};
use crate::support::kafka::{UNREACHABLE, mock_kafka};
use crate::support::kafka_gate::KafkaGate;
use crate::support::process::{livebridge, run};
use crate::support::wire::{self, Wire, deliver, post};
use crate::support::{TIME_LIMIT, wait_until};

const SETTINGS: &str = "
    callback.unsigned = [\"all\"]
    kafka.client.\"reconnect.backoff.max.ms\" = 200
";

fn start(brokers: &str, more: &str) -> RunningBridge {
    ConfiguredBridge::new(brokers, &format!("{SETTINGS}{more}")).serve()
}

/// Every line so far.
fn lines(bridge: &RunningBridge) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    bridge.process.stderr.text().lines().map(line).collect()
}

/// Level and message of every line with `about` in its message.
fn lines_about(bridge: &RunningBridge, about: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = lines(bridge).into_iter().map(|line| (text(&line["level"]), text(&line["message"])));
    all.filter(|(_, message)| message.contains(about)).collect()
}

/// Waits until at least `count` lines have `about` in their message.
fn wait_for_lines(bridge: &RunningBridge, about: &str, count: usize) {
    let are_there = || lines_about(bridge, about).len() >= count;
    wait_until(3 * TIME_LIMIT, are_there, || bridge.process.stderr.text());
}

fn send(bridge: &RunningBridge, count: usize) {
    let body = |number| format!(r#"{{"event_type":1,"n":{number}}}"#);
    deliver(bridge.intake, (0..count).map(body));
}

fn pair(first: (&str, &str), second: (&str, &str)) -> Vec<(String, String)> {
    [first, second].map(|(level, text)| (level.to_owned(), text.to_owned())).into()
}

#[test]
fn no_level_logs_a_line_per_callback() {
    let kafka = mock_kafka(1);
    let bridge = start(&kafka.brokers(), "log.level = \"trace\"");
    send(&bridge, 1);
    let wait_for_published = |count: f64| {
        let series = "livebridge_published_total{event_type=\"push\"}";
        wait_until(
            3 * TIME_LIMIT,
            || bridge.metric(series) >= count,
            || bridge.process.stderr.text(),
        );
    };
    wait_for_published(1.0);
    let before = lines(&bridge).len();
    send(&bridge, 500);
    wait_for_published(500.0);
    let lines = lines(&bridge);
    // Some lines come every so often.
    assert!(lines.len() - before < 250, "{} lines: {:?}", lines.len() - before, lines.last());
    for line in &lines {
        for field in ["timestamp", "level", "message"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
        assert!(line.get("elapsed_ms").is_none_or(Value::is_number), "{line}");
    }
}

#[test]
fn low_disk_space_and_its_end_are_one_line_each() {
    let bridge = start(UNREACHABLE, "");
    for round in 1..=2 {
        bridge.reload("wal.min_free_bytes = \"1EiB\"");
        wait_for_lines(&bridge, "rejected with 503", round);
        // Several checks happen in this time.
        thread::sleep(Duration::from_millis(400));
        bridge.reload("");
        wait_for_lines(&bridge, "accepts callbacks again", round);
        thread::sleep(Duration::from_millis(400));
    }
    let low = lines_about(&bridge, "rejected with 503");
    let fine = lines_about(&bridge, "accepts callbacks again");
    assert_eq!((low.len(), fine.len()), (2, 2));
    assert!(low.iter().all(|(level, _)| level == "ERROR"));
    assert!(fine.iter().all(|(level, _)| level == "INFO"));
}

#[test]
fn a_kafka_outage_is_one_line_for_each_cause_and_its_end_is_one() {
    let kafka = mock_kafka(1);
    let gate = KafkaGate::to(kafka.brokers());
    let bridge = start(&gate.address.to_string(), "");
    let about = "to Kafka";
    wait_for_lines(&bridge, "cannot publish to Kafka", 1);
    send(&bridge, 20);
    thread::sleep(Duration::from_secs(2));
    gate.open();
    wait_for_lines(&bridge, "publishing to Kafka again", 1);
    send(&bridge, 20);
    bridge.wait_for_metric_within(3 * TIME_LIMIT, "livebridge_wal_records", 0.0);
    let lost = "cannot publish to Kafka; callbacks are still accepted and stored, trying again";
    let lines = lines(&bridge);
    let causes: Vec<String> = lines
        .iter()
        .filter(|line| line["message"] == lost && line["level"] == "ERROR")
        .map(|line| line["cause"].as_str().unwrap().replace(|c: char| c.is_ascii_digit(), ""))
        .collect();
    // librdkafka can name another cause later, which is then logged too.
    assert_eq!(causes.iter().collect::<BTreeSet<_>>().len(), causes.len(), "{causes:?}");
    let mut outage_lines = lines_about(&bridge, about);
    outage_lines.retain(|(_, message)| !message.contains("ledger"));
    outage_lines.dedup();
    assert_eq!(outage_lines, pair(("ERROR", lost), ("INFO", "publishing to Kafka again")));
}

#[test]
fn text_format_is_for_people_and_an_unknown_level_is_rejected() {
    let version = || {
        let mut command = livebridge(&["config"]);
        command.env("LIVEBRIDGE_CALLBACK_KEYS", "k");
        command
    };
    assert_eq!(run(&mut version()).code, Some(0));
    let rejected = run(version().env("LIVEBRIDGE_LOG_LEVEL", "inof"));
    assert_eq!(rejected.code, Some(64), "{rejected:?}");
    assert!(
        rejected.stderr.contains("\"inof\" is no level; use error, warn, info"),
        "{rejected:?}"
    );
    let mut dev = livebridge(&["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    dev.args(["--for", "100ms"]).env("LIVEBRIDGE_LOG_FORMAT", "text");
    let output_text = run(&mut dev);
    assert_eq!(output_text.code, Some(0), "{output_text:?}");
    let line = output_text.stderr.lines().find(|line| line.contains("intake listening")).unwrap();
    assert!(line.contains(" INFO intake listening address=127.0.0.1:"), "{line}");
}

/// A livebridge whose standard error is a pipe of 8 KiB. The test reads the intake's address from
/// it, and then nothing more.
fn with_a_small_pipe(level: &str) -> (Child, BufReader<PipeReader>, SocketAddr, ConfiguredBridge) {
    let bridge = ConfiguredBridge::new(UNREACHABLE, &format!("{SETTINGS}log.level = {level:?}"));
    let (reader, writer) = std::io::pipe().unwrap();
    // Two pages, because lines that were read can still occupy most of one.
    rustix::pipe::fcntl_setpipe_size(&writer, 8192).unwrap();
    let mut command = bridge.command(&["serve"]);
    command.stdout(Stdio::null()).stderr(writer).env("LIVEBRIDGE_LOG_FORMAT", "json");
    let child = Child(command.spawn().unwrap());
    drop(command);
    let mut reader = BufReader::with_capacity(1, reader);
    let mut address = |message: &str| loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "it ended");
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["message"] == message {
            break line["address"].as_str().unwrap().parse::<SocketAddr>().unwrap();
        }
    };
    let intake = address("intake listening");
    address("admin listening");
    (child, reader, intake, bridge)
}

/// A process that is killed when the value is dropped.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_unread_log_pipe_blocks_neither_callbacks_nor_shutdown() {
    let (mut child, mut reader, intake, _bridge) =
        with_a_small_pipe("livebridge=debug,sled=trace,mio=trace");
    for number in 0..3000 {
        // Each on a separate connection that ends with garbage, which causes a line at debug level.
        let mut wire = Wire::connect(intake);
        wire.send(post("/callback", &format!(r#"{{"event_type":1,"n":{number}}}"#)));
        let answer = wire.answer().unwrap_or_else(|| panic!("no answer to callback {number}"));
        assert_eq!(answer.status, 200);
        wire.send("nonsense\r\n\r\n");
    }
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let mut status = None;
    let has_ended = || {
        status = child.0.try_wait().unwrap();
        status.is_some()
    };
    wait_until(TIME_LIMIT, has_ended, || "it waits for the reader of its log");
    assert_eq!(status.unwrap().code(), Some(0));
    // The output consists of complete lines of JSON, except for the last one, which may be
    // truncated.
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    // The pipe was full: a line that does not fit into what is left of it, a long one, waits.
    assert!(rest.len() > 1000 && !rest.contains(r#""stopped""#), "{} bytes", rest.len());
    let mut lines: Vec<&str> = rest.lines().collect();
    lines.pop();
    assert!(lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn rejections_are_summarised_in_a_line_with_counts_by_reason_and_an_example() {
    let bridge = start(UNREACHABLE, "");
    let ask = |request: String| wire::exchange(bridge.intake, request).unwrap().status;
    assert_eq!(ask(post("/hook/a-secret-part", "{}")), 404);
    wait_for_lines(&bridge, "requests were rejected", 1);
    (0..10).for_each(|_| assert_eq!(ask(post("/hook/a-secret-part", "{}")), 404));
    assert_eq!(ask(post("/callback", "{")), 400);
    assert_eq!(ask(post("/hook/a-secret-part", "{}")), 404);
    thread::sleep(Duration::from_secs(2));
    let first: Vec<Value> =
        lines(&bridge).into_iter().filter(|line| line["reasons"].is_string()).collect();
    assert_eq!(first.len(), 1, "one a minute");
    assert_eq!(first[0]["level"], "WARN", "nothing was accepted");
    for (field, value) in [
        ("reason", "path"),
        ("reasons", "path 1"),
        ("method", "POST"),
        ("path", "/hook/…"),
        ("address", "127.0.0.1"),
    ] {
        assert_eq!(first[0][field], value, "{first:?}");
    }
    send(&bridge, 1);
    bridge.process.signal(Signal::TERM);
    wait_for_lines(&bridge, "stopped", 1);
    let lines = lines(&bridge);
    let last = lines.iter().rfind(|line| line["reasons"].is_string()).unwrap();
    assert_eq!(
        (&last["reasons"], &last["count"]),
        (&Value::from("malformed 1, path 11"), &12.into())
    );
    assert_eq!(last["level"], "INFO", "callbacks are accepted too");
    assert!(!bridge.process.stderr.text().contains("a-secret-part"));
}
