//! The log output: one line for each change of state, none for each callback, and each line
//! machine-readable.

use std::collections::BTreeSet;
use std::fs;
use std::io::PipeReader;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::kafka::mock_kafka;
use crate::support::kafka_gate::KafkaGate;
use crate::support::metrics::scrape;
use crate::support::process::{Running, livebridge, run};
use crate::support::wire::{PATIENCE, Wire, post};
use crate::support::{wait_until, wire};

struct TestBed {
    process: Running,
    intake: SocketAddr,
    admin: SocketAddr,
    dir: TempDir,
    kafka: String,
}

impl TestBed {
    fn new(kafka: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("livebridge.toml");
        fs::write(&path, Self::config(&dir, kafka, more)).unwrap();
        let process =
            Running::start(&mut livebridge(&["serve", "--config", path.to_str().unwrap()]));
        let intake = process.address("intake listening");
        let admin = process.address("admin listening");
        Self { process, intake, admin, dir, kafka: kafka.to_owned() }
    }

    fn config(dir: &TempDir, kafka: &str, more: &str) -> String {
        format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [callback]\nunsigned = [\"all\"]\n\
             [kafka]\nbrokers = \"{kafka}\"\ninstance = \"logs\"\ncreate_topics = false\n\
             [kafka.client]\n\"reconnect.backoff.max.ms\" = 200\n\
             [wal]\ndir = \"{}\"\n{more}\n",
            dir.path().join("log").display()
        )
    }

    fn reload(&self, more: &str) {
        let path = self.dir.path().join("livebridge.toml");
        fs::write(path, Self::config(&self.dir, &self.kafka, more)).unwrap();
        self.process.signal(Signal::HUP);
    }

    /// Every line so far.
    fn lines(&self) -> Vec<Value> {
        let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        self.process.stderr.text().lines().map(line).collect()
    }

    /// Level and message of every line with the target `about`.
    fn lines_about(&self, about: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let output_text =
            self.lines().into_iter().map(|line| (text(&line["level"]), text(&line["message"])));
        output_text.filter(|(_, message)| message.contains(about)).collect()
    }

    fn wait_until(&self, what: impl Fn(&Self) -> bool) {
        wait_until(3 * PATIENCE, || what(self), || self.process.stderr.text());
    }

    fn send(&self, count: usize) {
        let mut wire = Wire::connect(self.intake);
        for number in 0..count {
            wire.send(post("/callback", &format!(r#"{{"event_type":1,"n":{number}}}"#)));
            assert_eq!(wire.answer().unwrap().status, 200);
        }
    }
}

fn pair(first: (&str, &str), second: (&str, &str)) -> Vec<(String, String)> {
    [first, second].map(|(level, text)| (level.to_owned(), text.to_owned())).into()
}

#[test]
fn no_level_logs_a_line_per_callback() {
    let kafka = mock_kafka(1);
    let bed = TestBed::new(&kafka.brokers(), "min_free_bytes = 0\n[log]\nlevel = \"trace\"");
    bed.send(1);
    let published = |bed: &TestBed, count: f64| {
        let series = scrape(bed.admin);
        series["livebridge_published_total{event_type=\"push\"}"] >= count
    };
    bed.wait_until(|bed| published(bed, 1.0));
    let before = bed.lines().len();
    bed.send(500);
    bed.wait_until(|bed| published(bed, 500.0));
    let lines = bed.lines();
    assert!(lines.len() - before < 50, "{} lines: {:?}", lines.len() - before, lines.last());
    for line in &lines {
        for field in ["timestamp", "level", "message"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
    }
}

#[test]
fn low_disk_space_and_its_end_are_one_line_each() {
    let bed = TestBed::new("127.0.0.1:1", "min_free_bytes = 0");
    for round in 1..=2 {
        bed.reload("min_free_bytes = \"1EiB\"");
        bed.wait_until(|bed| bed.lines_about("rejected with 503").len() == round);
        // Several checks happen in this time.
        thread::sleep(Duration::from_millis(400));
        bed.reload("min_free_bytes = 0");
        bed.wait_until(|bed| bed.lines_about("accepts callbacks again").len() == round);
        thread::sleep(Duration::from_millis(400));
    }
    let low = bed.lines_about("rejected with 503");
    let fine = bed.lines_about("accepts callbacks again");
    assert_eq!((low.len(), fine.len()), (2, 2));
    assert!(low.iter().all(|(level, _)| level == "ERROR"));
    assert!(fine.iter().all(|(level, _)| level == "INFO"));
}

#[test]
fn a_kafka_outage_is_one_line_for_each_cause_and_its_end_is_one() {
    let kafka = mock_kafka(1);
    let gate = KafkaGate::to(kafka.brokers());
    let bed = TestBed::new(&gate.address.to_string(), "min_free_bytes = 0");
    let about = "to Kafka";
    bed.wait_until(|bed| bed.lines_about("cannot publish to Kafka").len() == 1);
    bed.send(20);
    thread::sleep(Duration::from_secs(2));
    gate.open();
    bed.wait_until(|bed| bed.lines_about("publishing to Kafka again").len() == 1);
    bed.send(20);
    bed.wait_until(|bed| scrape(bed.admin)["livebridge_wal_records"] == 0.0);
    let lost = "cannot publish to Kafka; callbacks are still accepted and stored, trying again";
    let lines = bed.lines();
    let causes: Vec<String> = lines
        .iter()
        .filter(|line| line["message"] == lost && line["level"] == "ERROR")
        .map(|line| line["cause"].as_str().unwrap().replace(|c: char| c.is_ascii_digit(), ""))
        .collect();
    // librdkafka can name another cause later, which is then logged too.
    assert_eq!(causes.iter().collect::<BTreeSet<_>>().len(), causes.len(), "{causes:?}");
    let mut outage_lines = bed.lines_about(about);
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
    let refused = run(version().env("LIVEBRIDGE_LOG_LEVEL", "inof"));
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.stderr.contains("\"inof\" is no level; use error, warn, info"), "{refused:?}");
    let mut dev = livebridge(&["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    dev.args(["--for", "100ms"]).env("LIVEBRIDGE_LOG_FORMAT", "text");
    let output_text = run(&mut dev);
    assert_eq!(output_text.code, Some(0), "{output_text:?}");
    let line = output_text.stderr.lines().find(|line| line.contains("intake listening")).unwrap();
    assert!(line.contains(" INFO intake listening address=127.0.0.1:"), "{line}");
}

/// A livebridge whose standard error is a pipe of 4 KiB. The test reads the listeners' addresses
/// from it, and then nothing more.
fn with_a_small_pipe(
    level: &str,
) -> (Child, BufReader<PipeReader>, SocketAddr, SocketAddr, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("livebridge.toml");
    let level = format!("min_free_bytes = 0\n[log]\nlevel = {level:?}");
    fs::write(&path, TestBed::config(&dir, "127.0.0.1:1", &level)).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut command = livebridge(&["serve", "--config", path.to_str().unwrap()]);
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
    let admin = address("admin listening");
    (child, reader, intake, admin, dir)
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
    let (mut child, mut reader, intake, _, _dir) =
        with_a_small_pipe("livebridge=debug,sled=trace,mio=trace");
    for number in 0..3000 {
        // Each on a separate connection that ends with garbage, which causes a line at debug level.
        let mut wire = Wire::connect(intake).patience(PATIENCE);
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
    wait_until(PATIENCE, has_ended, || "it waits for the reader of its log");
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
    let bed = TestBed::new("127.0.0.1:1", "min_free_bytes = 0");
    let ask = |request: String| wire::exchange(bed.intake, request).unwrap().status;
    assert_eq!(ask(post("/hook/a-secret-part", "{}")), 404);
    bed.wait_until(|bed| !bed.lines_about("requests were rejected").is_empty());
    (0..10).for_each(|_| assert_eq!(ask(post("/hook/a-secret-part", "{}")), 404));
    assert_eq!(ask(post("/callback", "{")), 400);
    assert_eq!(ask(post("/hook/a-secret-part", "{}")), 404);
    thread::sleep(Duration::from_secs(2));
    let first: Vec<Value> =
        bed.lines().into_iter().filter(|line| line["reasons"].is_string()).collect();
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
    bed.send(1);
    bed.process.signal(Signal::TERM);
    bed.wait_until(|bed| !bed.lines_about("stopped").is_empty());
    let lines = bed.lines();
    let last = lines.iter().rfind(|line| line["reasons"].is_string()).unwrap();
    assert_eq!(
        (&last["reasons"], &last["count"]),
        (&Value::from("malformed 1, path 11"), &12.into())
    );
    assert_eq!(last["level"], "INFO", "callbacks are accepted too");
    assert!(!bed.process.stderr.text().contains("a-secret-part"));
}
