//! `deploy/contract/` matches livebridge's behaviour: topics, headers, values, responses.
//!
//! The documents and samples are checked by `tests/deploy/contract/check.py`, the running server by
//! schemathesis, both in the tests' Python.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use livebridge::event::EventType;
use serde_json::{Value, json};

use crate::support;
use crate::support::configured_bridge::ConfiguredBridge;
use crate::support::intake::record_of;
use crate::support::kafka::{UNREACHABLE, topics};

const CONTRACT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/contract");

fn document(path: &str) -> Value {
    let text = fs::read_to_string(format!("{CONTRACT}/{path}")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every channel with its single message.
fn channels(asyncapi: &Value) -> Vec<(&Value, &Value)> {
    let channels = asyncapi["channels"].as_object().unwrap();
    let message = |channel: &Value| {
        let messages = channel["messages"].as_object().unwrap();
        assert_eq!(messages.len(), 1, "{channel}");
        let reference = messages.values().next().unwrap()["$ref"].as_str().unwrap().to_owned();
        asyncapi.pointer(reference.trim_start_matches('#')).unwrap()
    };
    channels.values().map(|channel| (channel, message(channel))).collect()
}

#[test]
fn the_topics_of_the_contract_are_those_of_the_code() {
    let asyncapi = document("asyncapi.json");
    let listed: Vec<&str> = channels(&asyncapi)
        .iter()
        .map(|(channel, _)| channel["address"].as_str().unwrap())
        .collect();
    let unique: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(unique.len(), listed.len(), "each once");
    assert_eq!(unique, topics("live").all().into_iter().collect());
}

#[test]
fn every_event_type_has_its_channel_message_and_schema() {
    let asyncapi = document("asyncapi.json");
    let messages: BTreeMap<&str, &Value> = channels(&asyncapi)
        .into_iter()
        .map(|(channel, message)| (channel["address"].as_str().unwrap(), message))
        .collect();
    let mut schemas: BTreeSet<String> = ["common.json".to_owned()].into();
    let named = EventType::known().map(|(code, name)| (Some(code), name));
    for (code, name) in named.chain([(None, "other")]) {
        let message = messages[topics("live").of(code)];
        let file = format!("{name}.json");
        assert_eq!(message["payload"]["schema"]["$ref"], format!("schemas/{file}"), "{name}");
        let ce_type = &message["headers"]["allOf"][1]["properties"]["ce_type"]["const"];
        assert_eq!(*ce_type, format!("com.tencent.cloud.live.{name}"));
        if let Some(EventType(code)) = code {
            let schema = document(&format!("schemas/{file}"));
            let spellings = &schema["properties"]["event_type"]["enum"];
            assert_eq!(*spellings, json!([code, code.to_string()]), "{name}");
        }
        schemas.insert(file);
    }
    let files = fs::read_dir(format!("{CONTRACT}/schemas")).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), schemas);
}

#[test]
fn the_examples_have_the_headers_derived_from_their_values() {
    let asyncapi = document("asyncapi.json");
    let mut examples = 0;
    for (channel, message) in channels(&asyncapi) {
        let Some(example) = message["examples"].get(0) else {
            assert_eq!(channel["address"], topics("live").dead_letter());
            continue;
        };
        examples += 1;
        let record = record_of(example["payload"].to_string().as_bytes()).unwrap();
        let name = livebridge::event::type_name(record.event_type);
        let occurred_at = record.occurred_at.map(|time| time.to_string());
        let received_at = example["headers"]["livebridge-received-at"].as_str().map(str::to_owned);
        let mut headers = json!({
            "ce_specversion": "1.0",
            "ce_id": record.id.to_string(),
            "ce_source": "urn:tencent-cloud:live",
            "ce_type": format!("com.tencent.cloud.live.{name}"),
            "ce_time": occurred_at.or_else(|| received_at.clone()),
            "content-type": "application/json",
            "livebridge-received-at": received_at,
            "livebridge-instance": "livebridge-1",
        });
        if let Some(stream) = record.key.filter(|_| record.has_stream) {
            headers["ce_subject"] = String::from_utf8(stream.to_vec()).unwrap().into();
        }
        assert_eq!(example["headers"], headers, "{}: {headers:#}", channel["address"]);
    }
    assert_eq!(examples, topics("live").all().len() - 1);
}

#[test]
fn every_interruption_code_has_one_meaning() {
    let schema = document("schemas/interrupt.json");
    let errcode = &schema["properties"]["errcode"];
    assert!(errcode["description"].as_str().unwrap().contains("267/31083"), "the source is named");
    let meanings = errcode["anyOf"][0]["oneOf"].as_array().unwrap();
    let codes: Vec<i64> = meanings.iter().map(|code| code["const"].as_i64().unwrap()).collect();
    assert_eq!(codes, (0..=39).collect::<Vec<_>>());
    assert!(
        meanings.iter().all(|code| code["title"].as_str().is_some_and(|title| !title.is_empty()))
    );
}

#[test]
fn documents_and_samples_are_valid_and_corrupted_ones_are_not() {
    let test = "documents_and_samples_are_valid_and_corrupted_ones_are_not";
    let Some(python) = support::or_skip(test, support::consumer::python()) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/deploy/contract/check.py");
    let output = Command::new(python).arg(script).output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output_text}{}", String::from_utf8_lossy(&output.stderr));
    let counted =
        output_text.lines().last().unwrap().split(' ').filter_map(|word| word.parse().ok());
    let counted: Vec<u32> = counted.collect();
    assert!(counted[0] >= 114 && counted[1] >= 1700, "{output_text}");
}

#[test]
fn the_running_server_responds_as_the_contract_says() {
    let test = "the_running_server_responds_as_the_contract_says";
    let Some(python) = support::or_skip(test, support::consumer::python()) else { return };
    // The example was signed in 2023.
    let more = "callback.expiry_leeway = \"100years\"\ncallback.unsigned = [\"all\"]";
    let bridge = ConfiguredBridge::new(UNREACHABLE, more).serve();
    for (tag, address, operations) in [("intake", bridge.intake, 2), ("admin", bridge.admin, 10)] {
        let mut schemathesis = Command::new(python.with_file_name("st"));
        let hooks = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/deploy/contract/hooks.py");
        schemathesis.env("SCHEMATHESIS_HOOKS", hooks);
        schemathesis
            .current_dir(bridge.path(""))
            .arg("run")
            .arg(format!("{CONTRACT}/openapi.json"));
        schemathesis.args(["--url", &format!("http://{address}")]);
        schemathesis.args(["--include-tag", tag, "--phases", "examples,coverage,fuzzing"]);
        schemathesis.args(["--max-examples", "100", "--seed", "20261124", "--no-color"]);
        let output = schemathesis.output().unwrap();
        let output_text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output_text}");
        assert!(output_text.contains(&format!("Tested: {operations}")), "{output_text}");
    }
}
