//! Callback contents are sent to Kafka and stored nowhere else; omitted fields are not stored at
//! all.

use std::fs;

use livebridge::callback::CallbackKey;
use livebridge::event::Timestamp;

use crate::support::configured_bridge::ConfiguredBridge;
use crate::support::files;
use crate::support::intake::KEY;
use crate::support::kafka::mock_kafka;

/// A marker in every part of every callback here.
const SECRET: &str = "a-secret-of-the-stream";

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Runs a bridge that omits `omit`, sends it valid and invalid callbacks, and returns the published
/// record's body, the contents of the log's files, and its output.
fn run(omit: &[&str], callbacks: &[(String, u16)]) -> (String, Vec<u8>, String) {
    let kafka = mock_kafka(1);
    let more = format!("callback.omit = {omit:?}\ncallback.unsigned = []");
    let mut serving = ConfiguredBridge::new(&kafka.brokers(), &more).serve();
    for (body, status) in callbacks {
        assert_eq!(serving.post(body).status, *status, "{body}");
    }
    let published = serving.published("live.record").next().unwrap();
    assert_eq!(published.key.as_deref(), Some(SECRET.as_bytes()), "the key needs no body");
    let contents = files(&serving.wal()).iter().flat_map(|path| fs::read(path).unwrap()).collect();
    serving.process.stop();
    serving.process.stderr.wait_for_text("\"stopped\"");
    (String::from_utf8(published.value).unwrap(), contents, serving.process.stderr.text())
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
    for omit in [&[][..], &["stream_param", "sign", "t"]] {
        let (body_in_kafka, files, output_text) = run(omit, &callbacks);
        if omit.is_empty() {
            assert_eq!(body_in_kafka, body);
            assert!(has(&files, "txSecret") && has(&files, &sign), "the log has what was received");
        } else {
            assert_eq!(body_in_kafka, format!("{event}}}"));
            assert!(has(&files, SECRET), "the rest is in the log");
            assert!(!has(&files, "txSecret") && !has(&files, &sign), "the log never had them");
        }
        for suppressed in [SECRET, "txSecret", &sign, KEY] {
            assert!(!output_text.contains(suppressed), "{suppressed} is in:\n{output_text}");
        }
        assert!(output_text.contains("stopped"), "{output_text}");
    }
}
