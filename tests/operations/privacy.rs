//! Callback contents are sent to Kafka and stored nowhere else; omitted fields are not stored at
//! all.

use std::fs;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::config::Config;
use livebridge::event::Timestamp;
use livebridge::kafka::topic_reader::{ConsumedRecord, TopicReader};
use rustix::process::Signal;

use crate::support::files;
use crate::support::kafka::mock_kafka;
use crate::support::process::{Running, livebridge};
use crate::support::wire::{PATIENCE, exchange, post};

const KEY: &str = "callbackKey0123456789";
/// A marker in every part of every callback here.
const SECRET: &str = "a-secret-of-the-stream";

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

fn next(follower: &TopicReader) -> ConsumedRecord {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "nothing was published");
        if let Some(landed) = follower.next(Duration::from_millis(100)).unwrap() {
            return landed;
        }
    }
}

/// Runs a bridge that omits `omit`, sends it valid and invalid callbacks, and returns the published
/// records, the contents of its files, and its output.
fn life(omit: &str, callbacks: &[(String, u16)]) -> (String, Vec<u8>, String) {
    let kafka = mock_kafka(1);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let variables = [
        ("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:0".to_owned()),
        ("LIVEBRIDGE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("LIVEBRIDGE_CALLBACK_KEYS", KEY.to_owned()),
        ("LIVEBRIDGE_CALLBACK_OMIT", omit.to_owned()),
        ("LIVEBRIDGE_WAL_DIR", log.to_str().unwrap().to_owned()),
        ("LIVEBRIDGE_WAL_MIN_FREE_BYTES", "0".to_owned()),
        ("LIVEBRIDGE_KAFKA_BROKERS", kafka.brokers()),
        ("LIVEBRIDGE_KAFKA_CREATE_TOPICS", "false".to_owned()),
    ];
    let mut command = livebridge(&["serve"]);
    command.envs(variables.clone()).env("LIVEBRIDGE_LOG_LEVEL", "info");
    let mut process = Running::start(&mut command);
    let intake = process.address("intake listening");
    for (body, status) in callbacks {
        assert_eq!(exchange(intake, post("/callback", body)).unwrap().status, *status, "{body}");
    }
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value));
    let config = Config::from_parts(toml::Table::new(), variables).unwrap();
    let landed = next(&TopicReader::new(&config.kafka, &["live.record"]).unwrap());
    assert_eq!(landed.key.as_deref(), Some(SECRET.as_bytes()), "the key needs no body");
    let contents = files(&log).iter().flat_map(|path| fs::read(path).unwrap()).collect();
    process.signal(Signal::TERM);
    assert_eq!(process.wait(), Some(0));
    (String::from_utf8(landed.value).unwrap(), contents, process.stderr.text())
}

#[test]
fn no_log_line_contains_a_body_and_omitted_fields_appear_nowhere() {
    let t = (Timestamp::now().as_millis() / 1000 + 600).to_string();
    let sign = CallbackKey::new(KEY).unwrap().sign_hex(&t);
    let event = format!(r#"{{"event_type":100,"stream_id":"{SECRET}","file_id":"1""#);
    let body = format!(r#"{event},"stream_param":"txSecret={SECRET}","t":{t},"sign":"{sign}"}}"#);
    let callbacks = [
        (body.clone(), 200),
        (body.clone(), 200),
        (body.replace(":100", ":[]"), 400),
        (body.replace(&sign, &"0".repeat(32)), 401),
        (format!(r#"{{"{SECRET}":1,"{SECRET}":2}}"#), 400),
        (format!(r#"{{"event_type":1,"stream_id":{SECRET}"#), 400),
        (format!(r#"["{SECRET}"]"#), 400),
    ];
    for omit in ["", "stream_param,sign,t"] {
        let (landed, files, output_text) = life(omit, &callbacks);
        if omit.is_empty() {
            assert_eq!(landed, body);
            assert!(has(&files, "txSecret") && has(&files, &sign), "the log has what was received");
        } else {
            assert_eq!(landed, format!("{event}}}"));
            assert!(has(&files, SECRET), "the rest is in the log");
            assert!(!has(&files, "txSecret") && !has(&files, &sign), "the log never had them");
        }
        for suppressed in [SECRET, "txSecret", &sign, KEY] {
            assert!(!output_text.contains(suppressed), "{suppressed} is in:\n{output_text}");
        }
        assert!(output_text.contains("stopped"), "{output_text}");
    }
}
