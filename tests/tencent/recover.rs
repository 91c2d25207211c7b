//! `livebridge recover` against a fake of the API and a real broker: each failed callback that can be
//! decoded is in Kafka once, whatever runs beside it, and the others are listed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::sample::Samples;

use crate::support;
use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{self, Kafka};
use crate::support::tencent::{Record, SECRET_ID, SECRET_KEY, Stream, Tencent};
use crate::support::wire::deliver;

const DRAIN: Duration = Duration::from_mins(1);
const TYPES: [i64; 4] = [0, 1, 100, 200];

/// What is in the fake's records.
struct Lost {
    /// Bodies that can be decoded.
    bodies: Vec<String>,
    undecoded: usize,
}

pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => encoded.push('+'),
            byte if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            byte => write!(encoded, "%{byte:02x}").unwrap(),
        }
    }
    encoded
}

/// Fills the fake with `streams` streams and `records` failed callbacks, of which every fiftieth cannot
/// be decoded; each has several records, as a callback that is tried again has.
fn fill(tencent: &Tencent, streams: usize, records: usize) -> Lost {
    let samples = Samples::new(CallbackKey::new(KEY));
    let now = Timestamp::now();
    let ago = |minutes| now.before(Duration::from_mins(minutes));
    let mut state = tencent.state();
    for number in 0..streams {
        let running = Stream::running(format!("stream {number}@x"), ago(90));
        let ended = (number % 2 == 0).then(|| ago(50).as_millis());
        state.streams.push(Stream { ended, ..running });
    }
    let mut lost = Lost { bodies: Vec::new(), undecoded: 0 };
    for number in 0..records {
        let (stream, event_type) = (format!("stream {}@x", number % streams), TYPES[number % 4]);
        let mut event = samples.event(EventType(event_type));
        event.insert("stream_id".into(), stream.as_str().into());
        event.insert("note".into(), "100% {sure} + \"quoted\" 中".into());
        // Signed three hours ago: expired for a callback, and not for a record of one.
        let body = samples.delivery(event, Timestamp::now().before(Duration::from_hours(3)));
        let plain = match number % 3 {
            0 => body.clone(),
            1 => format!("POST /callback HTTP/1.1\r\nserver: {{x}}\r\n\r\n{body}"),
            _ => format!("opensso  server=10.12.1.1: {body}"),
        };
        let mut request = if number % 2 == 0 { percent_encoded(&plain) } else { plain };
        if number % 50 == 49 {
            request.truncate(request.len() - 10);
            while !request.is_char_boundary(request.len()) {
                request.pop();
            }
            lost.undecoded += 1;
        } else {
            lost.bodies.push(body);
        }
        let failed = Record::failed(stream, event_type, ago(60), request);
        state.records.push(Record { response: "status+code%3A503".to_owned(), ..failed });
    }
    lost
}

pub(super) fn command(bridge: &Bridge, tencent: &Tencent, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
    command.args(["recover", "--endpoint", &tencent.endpoint()]).args(arguments);
    // In a container there is no other directory that can be written.
    command.env("TMPDIR", "/nonexistent");
    command.arg("--undecoded").arg(bridge.wal().join("undecoded.jsonl"));
    command.envs(bridge.environment());
    command.env("TENCENTCLOUD_SECRET_ID", SECRET_ID).env("TENCENTCLOUD_SECRET_KEY", SECRET_KEY);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its exit code and output.
pub(super) fn finish(recover: Child) -> (Option<i32>, String) {
    let output = recover.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text + &String::from_utf8(output.stderr).unwrap())
}

pub(super) fn bridge(kafka: &Kafka, prefix: &str) -> Bridge {
    Bridge::new(prefix, kafka.bootstrap(), prefix).set("CALLBACK_EXPIRY_LEEWAY", "24h")
}

pub(super) fn ready_bridge(kafka: &Kafka, prefix: &str) -> Bridge {
    start(bridge(kafka, prefix))
}

/// Starts it and waits until it publishes.
pub(super) fn start(bridge: Bridge) -> Bridge {
    bridge.start();
    bridge.wait_until_connected(DRAIN);
    bridge
}

/// Each of `bodies` is in a topic once, and nothing else; returns how many were recovered.
pub(super) fn assert_each_once(kafka: &Kafka, prefix: &str, bodies: &[String]) -> Option<usize> {
    let topics = ["interrupt", "push", "record", "screenshot"].map(|t| format!("{prefix}.{t}"));
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let read = consumer::read(kafka.bootstrap(), &topics, Isolation::Committed);
    let found = support::or_skip("recover", read)?;
    consumer::assert_each_once(found.iter().map(consumer::Message::value), bodies);
    for message in &found {
        let stream = message.header("ce_subject").unwrap();
        assert!(message.key() == Some(stream) && stream.ends_with("@x"), "{stream}");
    }
    Some(found.iter().filter(|m| m.header("livebridge-recovered-at").is_some()).count())
}

#[test]
fn five_thousand_failed_callbacks_of_two_thousand_streams_are_each_in_kafka_once() {
    let Some(kafka) = Kafka::shared_or_skip("recover") else { return };
    let prefix = support::unique("recover");
    let (bridge, tencent) = (ready_bridge(kafka, &prefix), Tencent::start());
    let lost = fill(&tencent, 2000, 5000);
    // Some are in Kafka already.
    deliver(bridge.intake(), lost.bodies.iter().take(500));
    bridge.drain(DRAIN);
    let recover = command(&bridge, &tencent, &["--since", "2h", "--yes"]);
    // The bridge takes some of the same events at the same time: their retries come after all.
    let are_read = || tencent.count("DescribeCallbackRecordsList") >= 2000;
    support::wait_until(5 * DRAIN, are_read, || "the records are not read");
    deliver(bridge.intake(), lost.bodies.iter().skip(2000).take(1500));
    let (code, text) = finish(recover);
    assert_eq!(code, Some(1), "some cannot be decoded: {text}");
    assert!(text.contains("5000 failed callbacks of 2000 streams"), "{text}");
    assert!(text.contains(&format!("{} records were not decoded", lost.undecoded)), "{text}");
    bridge.drain(DRAIN);
    bridge.assert_running();
    let file = std::fs::read_to_string(bridge.wal().join("undecoded.jsonl")).unwrap();
    assert_eq!(file.lines().count(), lost.undecoded);
    let first: serde_json::Value = serde_json::from_str(file.lines().next().unwrap()).unwrap();
    for member in ["stream", "event_type", "event_time", "reason", "request"] {
        assert!(!first[member].is_null(), "{member}: {first}");
    }
    let Some(recovered) = assert_each_once(kafka, &prefix, &lost.bodies) else { return };
    assert!(recovered >= 2000, "{recovered}");
}

#[test]
fn a_dry_run_sends_nothing_and_a_second_run_or_one_after_a_kill_nothing_twice() {
    let Some(kafka) = Kafka::shared_or_skip("recover again") else { return };
    let prefix = support::unique("recover-again");
    let (bridge, tencent) = (ready_bridge(kafka, &prefix), Tencent::start());
    let lost = fill(&tencent, 50, 4000);
    let (_, text) = finish(command(&bridge, &tencent, &["--since", "2h"]));
    assert!(text.contains("Nothing was sent. Run it again with --yes to send."), "{text}");
    let mut killed = command(&bridge, &tencent, &["--since", "2h", "--yes"]);
    let topic = format!("{prefix}.push");
    let is_published = || kafka::size(kafka.bootstrap(), &topic) > 0;
    support::wait_until(DRAIN, is_published, || "nothing is published".to_owned());
    killed.kill().unwrap();
    killed.wait().unwrap();
    let both = [0, 1].map(|_| command(&bridge, &tencent, &["--since", "2h", "--yes"]));
    for recover in both {
        let (code, text) = finish(recover);
        assert_eq!(code, Some(1), "some cannot be decoded: {text}");
        assert!(text.contains("were not decoded"), "{text}");
    }
    let (_, text) = finish(command(&bridge, &tencent, &["--since", "2h", "--yes"]));
    assert!(!text.contains("events sent") && !text.contains(" 1 to send"), "{text}");
    assert_each_once(kafka, &prefix, &lost.bodies);
}

#[test]
fn the_report_tells_what_was_delivered_failed_recovered_and_lost() {
    let Some(kafka) = Kafka::shared_or_skip("report") else { return };
    let prefix = support::unique("report");
    let (bridge, tencent) = (ready_bridge(kafka, &prefix), Tencent::start());
    let lost = fill(&tencent, 4, 40);
    {
        let mut state = tencent.state();
        // The first 20 were delivered, by Tencent Cloud's account.
        state.records.iter_mut().take(20).for_each(|record| record.result = 0);
    }
    // In Kafka: 15 of those, 10 that failed, and 5 of which there is no record.
    deliver(bridge.intake(), lost.bodies.iter().take(15).chain(lost.bodies.iter().skip(30)));
    let samples = Samples::new(CallbackKey::new(KEY));
    let others: Vec<String> =
        (0..5).map(|_| samples.delivery(samples.event(EventType(1)), Timestamp::now())).collect();
    deliver(bridge.intake(), others.iter());
    bridge.drain(DRAIN);
    let arguments = ["--since", "2h", "--report", "--json"];
    let output = command(&bridge, &tencent, &arguments).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let counts = BTreeMap::from([
        ("delivered", report["delivered"].clone()),
        ("recovered", report["recovered"].clone()),
        ("missing", report["delivered_and_missing"]["count"].clone()),
        ("lost", report["lost"]["count"].clone()),
        ("only", report["only_in_kafka"]["count"].clone()),
    ]);
    let expected =
        [("delivered", 15), ("lost", 10), ("missing", 5), ("only", 5), ("recovered", 10)];
    for (name, count) in expected {
        assert_eq!(counts[name], count, "{name}: {report}");
    }
}

#[test]
fn the_gap_is_found_and_what_cannot_work_is_said_before_anything_is_asked() {
    let Some(kafka) = Kafka::shared_or_skip("gap") else { return };
    let prefix = support::unique("gap");
    let (bridge, tencent) = (ready_bridge(kafka, &prefix), Tencent::start());
    let lost = fill(&tencent, 3, 12);
    // The documented permissions suffice.
    let policy = include_str!("../../docs/recover.md");
    let actions = policy.split("\"live:").skip(1).filter_map(|rest| rest.split('"').next());
    tencent.state().permitted = Some(actions.collect());
    let names = bridge.wal().join("streams");
    std::fs::write(&names, "stream 2@x\n").unwrap();
    let arguments = ["--since", "2h", "--yes", "--streams-file", names.to_str().unwrap()];
    let (code, text) = finish(command(&bridge, &tencent, &arguments));
    assert_eq!((code, text.contains("\n4 events sent")), (Some(0), true), "{text}");
    assert_eq!(tencent.count("DescribeLiveStreamEventList"), 0, "the streams are named");
    let (code, text) = finish(command(&bridge, &tencent, &["--gap", "--yes"]));
    assert_eq!((code, text.contains("\n8 events sent")), (Some(0), true), "{text}");
    assert_each_once(kafka, &prefix, &lost.bodies);
    for (arguments, says) in [
        (&["--since", "15d"][..], "14 days"),
        (&["--since", "1h", "--until", "2h"], "--since must be before --until"),
        (&["--since", "1h", "--streams-file", "/no/such/file"], "--streams-file"),
    ] {
        let (code, text) = finish(command(&bridge, &tencent, arguments));
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn with_at_least_once_a_second_run_and_one_beside_a_bridge_send_nothing_twice() {
    let Some(kafka) = Kafka::shared_or_skip("recover at least once") else { return };
    let prefix = support::unique("recover-at-least-once");
    let bridge = start(bridge(kafka, &prefix).set("KAFKA_DELIVERY", "at-least-once"));
    let tencent = Tencent::start();
    let lost = fill(&tencent, 20, 400);
    deliver(bridge.intake(), lost.bodies.iter().take(100));
    bridge.drain(DRAIN);
    let (code, text) = finish(command(&bridge, &tencent, &["--since", "2h", "--yes"]));
    assert_eq!(code, Some(1), "some cannot be decoded: {text}");
    assert!(text.contains(&format!("{} events sent", lost.bodies.len() - 100)), "{text}");
    // The retries of what was recovered, once the bridge knows of that from the ledger.
    let events = f64::from(u32::try_from(lost.bodies.len()).unwrap());
    let knows_all = || bridge.metric("livebridge_dedup_ids").is_some_and(|ids| ids >= events);
    bridge.wait_until("aware of the recovered events", DRAIN, knows_all);
    deliver(bridge.intake(), lost.bodies.iter().skip(100).take(100));
    bridge.drain(DRAIN);
    let (_, text) = finish(command(&bridge, &tencent, &["--since", "2h", "--yes"]));
    assert!(!text.contains("events sent"), "{text}");
    bridge.assert_running();
    let recovered = assert_each_once(kafka, &prefix, &lost.bodies);
    assert!(recovered.is_none_or(|recovered| recovered == lost.bodies.len() - 100));
}

#[test]
fn a_recovered_event_is_as_if_it_had_come_in_time_but_for_a_header() {
    let Some(kafka) = Kafka::shared_or_skip("as in time") else { return };
    let prefixes = ["in-time", "late"].map(support::unique);
    let [in_time, late] = prefixes.each_ref().map(|prefix| ready_bridge(kafka, prefix));
    let tencent = Tencent::start();
    let lost = fill(&tencent, 4, 48);
    // A sample happens within this second. Received before it happened, its record would have the time
    // of receipt, which differs.
    std::thread::sleep(Duration::from_secs(1));
    deliver(in_time.intake(), &lost.bodies);
    in_time.drain(DRAIN);
    let (code, text) = finish(command(&late, &tencent, &["--since", "2h", "--yes"]));
    assert_eq!(code, Some(i32::from(lost.undecoded > 0)), "{text}");
    for topic in ["interrupt", "push", "record", "screenshot"] {
        let of = |prefix: &str| {
            let topic = format!("{prefix}.{topic}");
            let read = consumer::read(kafka.bootstrap(), &[&topic], Isolation::Committed);
            let mut found = support::or_skip("as in time", read)?;
            found.sort_by(|a, b| a.value().cmp(b.value()));
            Some(found)
        };
        let (Some(expected), Some(found)) = (of(&prefixes[0]), of(&prefixes[1])) else { return };
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.value(), expected.value());
            assert_eq!(found.key(), expected.key());
            assert_eq!(found.timestamp, expected.timestamp);
            for name in ["ce_id", "ce_type", "ce_source", "ce_subject", "ce_time", "content-type"] {
                assert_eq!(found.header(name), expected.header(name), "{name}");
                assert!(found.header(name).is_some(), "{name}");
            }
            assert!(found.header("livebridge-recovered-at").is_some());
            assert!(expected.header("livebridge-recovered-at").is_none());
        }
    }
}
