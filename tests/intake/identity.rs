//! When two deliveries are the same event, and when they are distinct (I5).
//!
//! The fields of protocol.md section 5 are repeated here independently, so that an omission in the
//! code's table is found.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;

use livebridge::callback::{CallbackError, CallbackKey};
use livebridge::event::{EventId, EventType, Timestamp};
use livebridge::sample::Samples;
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::support::intake::record_of;
use crate::support::json::{Json, Style};

const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

fn id(body: &str) -> EventId {
    try_id(body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn try_id(body: &[u8]) -> Result<EventId, CallbackError> {
    Ok(record_of(body)?.id)
}

fn payload(name: &str) -> String {
    fs::read_to_string(format!("tests/payloads/{name}.json")).unwrap()
}

fn payload_id(name: &str) -> EventId {
    id(&payload(name))
}

/// The payload as a JSON value without its delivery-specific members, so that it can be modified.
fn event(name: &str) -> Value {
    let mut event: Value = serde_json::from_str(&payload(name)).unwrap();
    for member in ["t", "sign"] {
        event.as_object_mut().unwrap().remove(member);
    }
    event
}

/// `event` with another value of the same type at `pointer`.
fn varied(event: &Value, pointer: &str) -> Value {
    let mut event = event.clone();
    let value = event.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}"));
    *value = match value {
        Value::String(text) => format!("{text}x").into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => (number + 1).into(),
            None => (number.as_f64().unwrap() + 0.5).into(),
        },
        Value::Array(items) => {
            items.push("x".into());
            items.clone().into()
        }
        Value::Bool(flag) => (!*flag).into(),
        Value::Null | Value::Object(_) => panic!("{pointer} is nothing that can be varied"),
    };
    event
}

/// For each event type: a payload with all fields, the fields of the natural key, and other fields
/// that distinguish events.
#[rustfmt::skip]
const FIELDS: [(i64, &str, &[&str], &[&str]); 22] = [
    (1, "001_push_1", &["/appid", "/app", "/appname", "/stream_id", "/sequence", "/event_time"], &["/errcode", "/stream_param"]),
    (1, "005_push_1_legacy_update_time", &["/update_time", "/sequence"], &[]),
    (0, "002_interrupt_0", &["/appid", "/app", "/appname", "/stream_id", "/sequence", "/event_time"], &["/errcode", "/push_duration"]),
    (100, "012_record_100_hls_doc_2022", &["/appid", "/app", "/appname", "/stream_id", "/file_id"],
        &["/file_format", "/task_id", "/start_time", "/start_time_usec", "/end_time", "/end_time_usec", "/video_url", "/channel_id"]),
    (100, "013_record_100_real_2019_unsigned_no_app", &["/appid", "/stream_id", "/file_id"], &["/file_format", "/task_id", "/start_time", "/end_time"]),
    (200, "021_screenshot_200_task_id_2025", &["/app", "/appname", "/stream_id", "/create_time", "/pic_full_url", "/task_id"], &["/pic_url", "/width"]),
    (200, "022_screenshot_200_legacy_2016_no_full_url", &["/stream_id", "/create_time", "/pic_url"], &["/channel_id"]),
    (317, "024_porn_317_doc_2021_socre_int", &["/appid", "/app", "/appname", "/streamId", "/screenshotTime", "/img", "/type"], &["/socre", "/channelId"]),
    (317, "026_porn_317_score_array_libresults_null", &["/label", "/subLabel"], &["/score", "/suggestion"]),
    (314, "034_relay_314_vod_file_start", &["/appid", "/task_id", "/callback_event", "/event_time", "/stream_id", "/msg"], &["/to_url", "/source_urls"]),
    (315, "031_audio_315_unsigned", &["/appid", "/stream_id", "/task_id", "/seq", "/request_id"], &["/label", "/asr_text", "/data/asr_tmp_full_results/0/confidence"]),
    (321, "038_push_exception_321", &["/appid", "/domain", "/path", "/stream_id", "/sequence", "/data_time"], &["/abnormal_event/0/count", "/abnormal_event/0/detail/0/occur_time"]),
    (328, "044_monitor_328", &["/appid", "/stream_id", "/event_name", "/event_time", "/event_msg"], &["/bizid"]),
    (332, "039_record_status_332_ended", &["/appid", "/domain", "/appname", "/stream_id", "/session_id", "/seq", "/record_event", "/event_time"], &["/record_detail"]),
    (341, "042_record_exception_341", &["/appid", "/domain", "/path", "/stream_id", "/session_id", "/timestamp", "/file_format", "/exception/type", "/exception_level"],
        &["/exception/occurs", "/exception/desc"]),
    (343, "047_quality_343", &["/appid", "/domain", "/appname", "/stream_id", "/event_time", "/class", "/transcode_template_id", "/watermark_template_id", "/score"], &["/function"]),
    (344, "048_assessment_threshold_344", &["/appid", "/domain", "/appname", "/stream_id", "/event_time", "/class", "/transcode_template_id", "/frames", "/frames/0/score", "/frames/0/time"], &["/function"]),
    (345, "049_assessment_average_345", &["/appid", "/domain", "/appname", "/stream_id", "/event_time", "/class", "/transcode_template_id", "/frames", "/frames/0/score", "/frames/0/time"], &["/average_score", "/max_score"]),
    (338, "045_subtitle_338", &["/appid", "/task_id", "/stream_id", "/data/subtitle_tmp_res", "/data/subtitle_tmp_res/0/src_txt", "/data/subtitle_tmp_res/0/start_pts"], &["/channel_id"]),
    (347, "050_smart_erase_347", &["/task_id", "/stream_id", "/data/subtitle_tmp_res", "/data/subtitle_tmp_res/0/src_txt"], &["/channel_id"]),
    (348, "051_summary_348", &["/appid", "/domain", "/path", "/stream_id", "/begin_time", "/end_time"], &["/title", "/summary", "/key_words", "/key_points"]),
    (349, "052_highlight_349", &["/appid", "/domain", "/path", "/stream_id", "/items", "/items/0/begin_time", "/items/0/title", "/items/0/video_store_url"], &[]),
];

#[test]
fn every_known_type_is_in_the_table() {
    let listed: BTreeSet<i64> = FIELDS.iter().map(|(code, ..)| *code).collect();
    let known: BTreeSet<i64> = EventType::known().map(|(code, _)| code.0).collect();
    assert_eq!(listed, known);
}

#[test]
fn events_that_differ_in_a_field_of_the_natural_key_differ_in_it() {
    for (code, name, natural, _) in &FIELDS {
        let event = event(name);
        assert_eq!(event["event_type"], *code, "{name}");
        let original = id(&event.to_string());
        for pointer in *natural {
            let other = id(&varied(&event, pointer).to_string());
            assert_ne!(original.natural, other.natural, "{name}: {pointer}");
            assert_ne!(original.content, other.content, "{name}: {pointer}");
        }
    }
}

#[test]
fn events_that_differ_elsewhere_share_the_natural_key_and_are_distinct() {
    for (_, name, _, others) in &FIELDS {
        let event = event(name);
        let original = id(&event.to_string());
        for pointer in *others {
            let other = id(&varied(&event, pointer).to_string());
            assert_eq!(original.natural, other.natural, "{name}: {pointer}");
            assert_ne!(original.content, other.content, "{name}: {pointer}");
        }
    }
}

#[test]
fn every_two_variants_of_an_event_are_distinct() {
    for (_, name, natural, others) in &FIELDS {
        let event = event(name);
        let variants = natural.iter().chain(*others).map(|pointer| varied(&event, pointer));
        let variants: Vec<_> = variants.chain([event.clone()]).collect();
        let ids: HashSet<EventId> = variants.iter().map(|event| id(&event.to_string())).collect();
        assert_eq!(ids.len(), variants.len(), "{name}");
    }
}

#[test]
fn unknown_fields_distinguish_events() {
    // Including misprints of the documentation, because they may be sent in practice.
    for name in ["appId", "recordevent", "stead_state", "socre", "idc_id", "new in 2027"] {
        for (_, payload, ..) in &FIELDS {
            let mut event = event(payload);
            event[name] = 1.into();
            let one = id(&event.to_string());
            event[name] = 2.into();
            let two = id(&event.to_string());
            assert_ne!(one.content, two.content, "{payload}: {name}");
        }
    }
}

#[test]
fn events_that_differ_in_type_only_are_distinct() {
    let push = event("001_push_1");
    let mut seen = HashSet::new();
    for code in EventType::known().map(|(code, _)| code.0).chain([2, 999, -1]) {
        let mut event = push.clone();
        event["event_type"] = code.into();
        let EventId { natural, content } = id(&event.to_string());
        assert!(seen.insert(natural) && seen.insert(content), "{code}");
    }
    let mut nameless = push;
    nameless.as_object_mut().unwrap().remove("event_type");
    let EventId { natural, content } = id(&nameless.to_string());
    assert!(seen.insert(natural) && seen.insert(content), "no type is a type of its own");
}

#[test]
fn a_missing_field_differs_from_an_empty_or_null_one() {
    for (_, name, natural, others) in &FIELDS {
        for pointer in natural.iter().chain(*others) {
            let Some(field) = pointer.strip_prefix('/').filter(|rest| !rest.contains('/')) else {
                continue;
            };
            let mut event = event(name);
            let mut ids = vec![id(&event.to_string())];
            for value in [Value::Null, "".into(), "-".into(), "null".into()] {
                event[field] = value;
                ids.push(id(&event.to_string()));
            }
            event.as_object_mut().unwrap().remove(field);
            ids.push(id(&event.to_string()));
            let distinct: HashSet<EventId> = ids.iter().copied().collect();
            assert_eq!(distinct.len(), ids.len(), "{name}: {field}");
        }
    }
}

#[test]
fn the_natural_key_without_a_required_field_is_the_content() {
    for (name, field) in [
        ("001_push_1", "sequence"),
        ("001_push_1", "event_time"),
        ("012_record_100_hls_doc_2022", "file_id"),
        ("021_screenshot_200_task_id_2025", "create_time"),
        ("045_subtitle_338", "data"),
    ] {
        let mut event = event(name);
        event.as_object_mut().unwrap().remove(field);
        let pointer = if name.starts_with("045") { "/task_id" } else { "/stream_id" };
        let (one, two) = (id(&event.to_string()), id(&varied(&event, pointer).to_string()));
        assert!(one.natural != two.natural && one.content != two.content, "{name}: {field}");
        assert_ne!(one.natural, one.content, "{name}: natural and content IDs differ");
    }
}

#[test]
fn adjacent_field_values_are_delimited() {
    let push = |app: &str, appname: &str| {
        let mut event = event("001_push_1");
        event["app"] = app.into();
        event["appname"] = appname.into();
        id(&event.to_string())
    };
    assert_ne!(push("ab", "c").natural, push("a", "bc").natural);
    assert_ne!(push("a\"", "").natural, push("a", "\"").natural);
    let whole = |text: &str| id(text);
    assert_ne!(whole(r#"{"a":["b","c"]}"#), whole(r#"{"a":["bc"]}"#));
    assert_ne!(whole(r#"{"a":[["b"],"c"]}"#), whole(r#"{"a":[["b","c"]]}"#));
    assert_ne!(whole(r#"{"a":{"b":1},"c":2}"#), whole(r#"{"a":{"b":1,"c":2}}"#));
    assert_ne!(whole(r#"{"a":[]}"#), whole(r#"{"a":{}}"#));
    assert_ne!(whole(r#"{"a":"1"}"#), whole(r#"{"a":1}"#));
    assert_ne!(whole(r#"{"a":"null"}"#), whole(r#"{"a":null}"#));
    assert_ne!(whole(r#"{"a":null}"#), whole("{}"));
}

#[test]
fn payloads_labelled_retries_are_one_event() {
    let families: [&[&str]; 2] = [
        &[
            "002_interrupt_0", "073a_retry_first", "073b_retry_identical", "073c_retry_resigned",
            "077_key_order_differs",
        ],
        // One push, signed in every way that INDEX.md lists.
        &[
            "001_push_1", "007_push_1_no_key_no_sign_no_t", "061_t_as_string", "069_expired_t",
            "070_sign_upper_case", "075_pretty_printed_tabs_crlf",
        ],
    ];
    for family in families {
        let ids: HashSet<EventId> = family.iter().map(|name| payload_id(name)).collect();
        assert_eq!(ids.len(), 1, "{family:?}");
    }
}

#[test]
fn payloads_that_are_not_retries_are_all_distinct() {
    let retries = ["007", "061", "069", "070", "073a", "073b", "073c", "075", "077"];
    let mut seen = HashSet::new();
    for entry in fs::read_dir("tests/payloads").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(stem) = name.strip_suffix(".json") else { continue };
        let rejected = ["064", "065", "071", "072", "081"];
        if retries.iter().chain(&rejected).any(|prefix| stem.starts_with(prefix)) {
            continue;
        }
        assert!(seen.insert(payload_id(stem)), "{name}");
    }
    assert_eq!(seen.len(), 83 - 9 - 5 - 3, "all were compared");
}

#[test]
fn a_retry_with_a_new_signature_and_other_formatting_is_the_same_event() {
    for (code, name, ..) in &FIELDS {
        let mut event = event(name);
        let original = id(&event.to_string());
        for style in Style::ALL {
            assert_eq!(original, id(&Json::from(&event).write(style)), "{name} {style:?}");
        }
        let key = CallbackKey::new("callbackKey0123456789").unwrap();
        for t in [1_700_000_000_i64, 1_700_000_060] {
            event["t"] = t.into();
            event["sign"] = key.sign_hex(&t.to_string()).into();
            assert_eq!(original, id(&event.to_string()), "{name}");
            event["t"] = t.to_string().into();
            assert_eq!(original, id(&event.to_string()), "{name}");
        }
        // Retries of image moderation may also differ in the sending time.
        event["sendTime"] = 1.into();
        let sent = id(&event.to_string());
        event["sendTime"] = 2.into();
        assert_eq!(sent == id(&event.to_string()), *code == 317, "{name}");
    }
    let types: BTreeSet<_> = FIELDS.iter().map(|(code, ..)| code).collect();
    assert_eq!(types.len(), 18);
}

/// `event` signed at `t`.
fn delivered(event: &Value, t: i64) -> EventId {
    let mut event = event.clone();
    event["t"] = t.into();
    let key = CallbackKey::new("callbackKey0123456789").unwrap();
    event["sign"] = key.sign_hex(&t.to_string()).into();
    id(&event.to_string())
}

/// The number of distinct events among five deliveries of `event` that are signed a minute apart.
fn events_of_five_deliveries(event: &Value) -> usize {
    let ids: HashSet<EventId> =
        (0..5).map(|number| delivered(event, 1_703_732_078 + 60 * number)).collect();
    ids.len()
}

#[test]
fn events_without_time_or_number_that_differ_only_in_t_are_distinct() {
    let streamlive = event("082_streamlive_329_other_product");
    for code in [329, 330] {
        let mut event = streamlive.clone();
        event["event_type"] = code.into();
        assert_eq!(events_of_five_deliveries(&event), 5, "{code}");
        // The same `t` means the same delivery, repeated.
        assert_eq!(delivered(&event, 1_703_732_078), delivered(&event, 1_703_732_078));
        event["data"]["event_time"] = 1_703_732_000.into();
        assert_eq!(
            events_of_five_deliveries(&event),
            5,
            "{code}: the meaning of that time is not known"
        );
    }
    let bare = serde_json::json!({"stream_id": "a"});
    assert_eq!(events_of_five_deliveries(&bare), 5, "no type");
}

#[test]
fn retries_of_unknown_types_with_time_or_number_are_recognised_with_a_new_signature() {
    for (field, value, expected) in [
        ("event_time", Value::from(1_703_732_000), 1),
        ("event_time", "1703732000".into(), 1),
        ("update_time", 1_703_732_000.into(), 1),
        ("data_time", 1_703_732_000_123_i64.into(), 1),
        ("timestamp", 1_703_732_000.into(), 1),
        ("screenshotTime", 1_703_732_000.into(), 1),
        ("seq", 7.into(), 1),
        // Not a time, or a property that several events can share.
        ("event_time", 0.into(), 5),
        ("event_time", Value::Null, 5),
        ("event_time", "soon".into(), 5),
        ("create_time", 1_703_732_000.into(), 5),
        ("begin_time", 1_703_732_000.into(), 5),
        ("end_time", 1_703_732_000.into(), 5),
        ("sequence", "2210464508206756938".into(), 5),
        ("task_id", 7.into(), 5),
    ] {
        let mut event = serde_json::json!({"event_type": 999, "stream_id": "a"});
        event[field] = value;
        assert_eq!(events_of_five_deliveries(&event), expected, "{event}");
    }
}

#[test]
fn known_types_without_their_time_or_number_are_distinguished_by_t() {
    for (name, fields, expected) in [
        ("001_push_1", &["event_time"][..], 5),
        ("021_screenshot_200_task_id_2025", &["create_time"], 5),
        // The remaining `sendTime` belongs to the delivery, like `t`.
        ("024_porn_317_doc_2021_socre_int", &["screenshotTime"], 5),
        ("034_relay_314_vod_file_start", &["event_time", "msg"], 5),
        ("045_subtitle_338", &["data"], 5),
        ("050_smart_erase_347", &["data"], 5),
        ("052_highlight_349", &["items"], 5),
        // Numbered by `file_id` and `seq`.
        ("012_record_100_hls_doc_2022", &["start_time", "end_time"], 1),
        ("012_record_100_hls_doc_2022", &["start_time", "end_time", "file_id"], 5),
        ("031_audio_315_unsigned", &["data"], 1),
        ("031_audio_315_unsigned", &["data", "seq"], 5),
    ] {
        let mut event = event(name);
        for field in fields {
            event.as_object_mut().unwrap().remove(*field);
        }
        assert_eq!(events_of_five_deliveries(&event), expected, "{name} without {fields:?}");
    }
}

#[test]
fn known_types_are_not_dated_by_a_field_that_dates_unknown_types() {
    let mut event = event("001_push_1");
    event.as_object_mut().unwrap().remove("event_time");
    event["timestamp"] = 1_703_732_000.into();
    assert_eq!(events_of_five_deliveries(&event), 5);
}

#[test]
fn t_and_sign_below_the_top_level_belong_to_the_event() {
    assert_ne!(id(r#"{"data":{"t":1}}"#), id(r#"{"data":{"t":2}}"#));
    assert_ne!(id(r#"{"data":[{"sign":"a"}]}"#), id(r#"{"data":[{"sign":"b"}]}"#));
    assert_ne!(id(r#"{"T":1}"#), id(r#"{"T":2}"#));
}

#[test]
fn numbers_are_compared_by_their_text() {
    let numbers = [
        // Adjacent numbers that are equal as 64-bit floats or 64-bit integers.
        "9007199254740992",
        "9007199254740993",
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551617",
        "340282366920938463463374607431768211456",
        "44.15314104741461",
        "44.153141047414610",
        "44.1531410474146099",
        "1.0",
        "1",
        "1e0",
        "10e-1",
        "0",
        "-0",
        "0.0",
        "1e999",
        "1e1000",
    ];
    for template in [r#"{"a":N}"#, r#"{"event_type":1,"sequence":N}"#, r#"{"a":[{"b":[N]}]}"#] {
        let mut seen = HashSet::new();
        for number in numbers {
            assert!(seen.insert(id(&template.replace('N', number))), "{template} {number}");
        }
    }
}

#[test]
fn event_ids_are_the_same_as_in_every_earlier_version() {
    // A change here means that every event in a dedup window, or retried across an upgrade, is
    // published twice. The rules' version must then change as well, with an entry in the change
    // log. Payloads that are no callbacks have no id.
    let golden = include_str!("event_ids.txt").lines();
    let golden: BTreeMap<String, String> = golden
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, id)| (name.to_owned(), id.to_owned()))
        .collect();
    let mut ids = BTreeMap::new();
    for entry in fs::read_dir("tests/payloads").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let number = name.starts_with(|first: char| first.is_ascii_digit());
        if let Some(id) = number.then(|| try_id(&fs::read(path).unwrap()).ok()).flatten() {
            ids.insert(name, id.to_string());
        }
    }
    assert_eq!(ids, golden);
}

#[test]
fn samples_are_all_distinct_events() {
    // Two at once, as in `send --connections 2`: neither repeats the other's events.
    let makers = [Samples::new(None), Samples::new(None)];
    for event_type in Samples::types() {
        let mut seen = HashSet::new();
        for number in 0..200 {
            for samples in &makers {
                let event = samples.event(event_type);
                let id = id(&samples.delivery(event, NOW));
                assert!(seen.insert(id), "number {number} of {event_type:?}");
            }
        }
    }
}

/// Any JSON object without signature members.
fn any_object() -> impl Strategy<Value = Json> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?(e[0-9]{1,3})?",
    ];
    let leaf = prop_oneof![scalar.prop_map(Json::Scalar), ".{0,8}".prop_map(Json::Text)];
    let value = leaf.prop_recursive(4, 40, 6, |value| {
        let members = prop::collection::btree_map(".{0,6}", value.clone(), 0..6);
        prop_oneof![
            prop::collection::vec(value, 0..6).prop_map(Json::Array),
            members.prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    });
    prop::collection::btree_map("k.{0,6}", value, 1..8)
        .prop_map(|members| Json::Object(members.into_iter().collect()))
}

/// The form of an object that is equal for equal objects, of which the id is a digest: every part
/// with its kind and its length, members sorted by key.
fn canonical(json: &Json, out: &mut Vec<u8>) {
    let mut part = |kind: u8, length: usize, text: &str| {
        out.push(kind);
        out.extend((length as u64).to_be_bytes());
        out.extend(text.as_bytes());
    };
    match json {
        Json::Scalar(text) => part(b'#', text.len(), text),
        Json::Text(text) => part(b'"', text.len(), text),
        Json::Array(items) => {
            part(b'[', items.len(), "");
            for item in items {
                canonical(item, out);
            }
        }
        Json::Object(members) => {
            part(b'{', members.len(), "");
            let sorted: BTreeMap<_, _> = members.iter().map(|(key, value)| (key, value)).collect();
            for (key, value) in sorted {
                canonical(&Json::Text(key.clone()), out);
                canonical(value, out);
            }
        }
    }
}

proptest! {
    #[test]
    fn equivalent_json_texts_have_the_digest_of_their_canonical_form_as_event_id(object in any_object()) {
        let mut bytes = b"livebridge id 1none".to_vec();
        canonical(&object, &mut bytes);
        let hash = Sha256::digest(&bytes);
        let half = |at: usize| u64::from_be_bytes(hash[at..at + 8].try_into().unwrap());
        let expected = EventId { natural: half(8), content: half(0) };
        for style in Style::ALL {
            let text = object.write(style);
            prop_assert_eq!(id(&text), expected, "{}", text);
        }
    }

    #[test]
    fn changing_any_value_changes_the_event_id(
        object in any_object(),
        which in any::<prop::sample::Index>(),
        kind in 0..3,
    ) {
        let mut changed = object.clone();
        {
            let mut leaves = changed.leaves();
            prop_assume!(!leaves.is_empty());
            let at = which.index(leaves.len());
            let leaf = &mut *leaves[at];
            *leaf = match (&*leaf, kind) {
                (Json::Text(text), 0) => Json::Text(format!("{text} ")),
                (Json::Text(text), 1) => Json::Text(format!("\0{text}")),
                (Json::Text(_), _) => Json::Array(vec![leaf.clone()]),
                (Json::Scalar(text), 0) => Json::Text(text.clone()),
                (Json::Scalar(text), 1) if text != "true" => Json::Scalar("true".into()),
                (Json::Scalar(text), _) if text != "-1" => Json::Scalar("-1".into()),
                _ => Json::Object(vec![]),
            };
        }
        prop_assert_ne!(
            id(&object.write(Style::default())),
            id(&changed.write(Style::default()))
        );
    }
}
