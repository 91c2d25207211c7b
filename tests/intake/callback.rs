//! Which bodies are accepted as callbacks, which are rejected and why, and which fields are
//! extracted (I2).
//!
//! `tests/payloads/INDEX.md` lists the source and the peculiarities of each payload.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use bytes::Bytes;
use livebridge::callback::{
    CallbackError, CallbackKey, UnsignedPolicy, UnverifiedCallback, Verifier,
};
use livebridge::event::{EventType, Timestamp};
use livebridge::record::{KEY_MAX, Record};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::kafka::topics;

const KEY: &str = "callbackKey0123456789";
/// The current time of the tests: 2026-01-01, later than every payload.
const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);
const MINUTES_20: Duration = Duration::from_mins(20);
const CENTURY: Duration = Duration::from_hours(24 * 365 * 100);

fn key(secret: &str) -> CallbackKey {
    CallbackKey::new(secret).unwrap()
}

fn verifier(unsigned: UnsignedPolicy) -> Verifier {
    Verifier { keys: vec![key(KEY)], leeway: CENTURY, unsigned }
}

/// As configured by default.
fn timely(unsigned: UnsignedPolicy) -> Verifier {
    Verifier { leeway: MINUTES_20, ..verifier(unsigned) }
}

fn take(body: &[u8], verifier: &Verifier, now: Timestamp) -> Result<Record, CallbackError> {
    let body = Bytes::copy_from_slice(body);
    UnverifiedCallback::parse(&body)?.verify(verifier, now)?.into_record(now, &[])
}

fn take_any(body: &[u8]) -> Result<Record, CallbackError> {
    take(body, &verifier(UnsignedPolicy::All), NOW)
}

fn rejection(body: &[u8], verifier: &Verifier) -> &'static str {
    take(body, verifier, NOW).expect_err("a rejection").reason()
}

/// `object` with `t` and its signature.
fn signed(mut object: Value, secret: &str, t: i64) -> Vec<u8> {
    object["t"] = t.into();
    object["sign"] = key(secret).sign_hex(&t.to_string()).into();
    object.to_string().into_bytes()
}

fn payload(name: &str) -> Vec<u8> {
    fs::read(format!("tests/payloads/{name}")).unwrap()
}

/// The expected result for a payload.
enum Expect {
    /// Signed: accepted under every policy.
    Signed(Taken),
    /// Unsigned: accepted only where the policy allows it.
    Unsigned(Taken),
    /// The signature is invalid for this reason: accepted only where no signature is required.
    Unverified(&'static str, Taken),
    /// Rejected under every policy, for this reason.
    Rejected(&'static str),
}
use Expect::{Rejected, Signed, Unsigned as Bare, Unverified as Doubtful};

/// Topic, key, whether the key is the stream ID, and the event's time in milliseconds.
struct Taken(&'static str, Option<&'static str>, bool, Option<i64>);

/// An event of a stream, with a time in seconds.
const fn at(topic: &'static str, stream: &'static str, secs: i64) -> Taken {
    Taken(topic, Some(stream), true, Some(secs * 1000))
}

/// An event of a stream, with a time in milliseconds.
const fn at_ms(topic: &'static str, stream: &'static str, millis: i64) -> Taken {
    Taken(topic, Some(stream), true, Some(millis))
}

/// An event of a stream, without a recognised time.
const fn timeless(topic: &'static str, stream: &'static str) -> Taken {
    Taken(topic, Some(stream), true, None)
}

#[rustfmt::skip]
const EXPECTED: [(&str, Expect); 83] = [
    ("001_push_1.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("002_interrupt_0.json", Signed(at("live.interrupt", "test_stream", 1_703_731_606))),
    ("003_push_1_real_2020_errmsg_empty.json", Signed(at("live.push", "1400410245_10002", 1_598_429_581))),
    ("004_interrupt_0_real_2018_channel_id_differs.json", Signed(at("live.interrupt", "25650_5bff354d5b757c2325d79a8b9b279c0f", 1_534_929_358))),
    ("005_push_1_legacy_update_time.json", Signed(at("live.push", "3954_legacy", 1_471_256_100))),
    ("006_interrupt_0_legacy_2016.json", Signed(at("live.interrupt", "3954_ea88f7495ba711e6a2cba4dcbef5e35a", 1_471_256_200))),
    ("007_push_1_no_key_no_sign_no_t.json", Bare(at("live.push", "test_stream", 1_703_731_478))),
    ("008_interrupt_0_push_duration_number.json", Signed(at("live.interrupt", "test_stream", 1_703_731_606))),
    ("009_interrupt_0_old_push_replaced_errcode21.json", Signed(at("live.interrupt", "test_stream", 1_703_731_700))),
    ("010_push_1_replacing_push_same_second.json", Signed(at("live.push", "test_stream", 1_703_731_700))),
    ("011_push_1_same_second_other_sequence.json", Signed(at("live.push", "test_stream", 1_703_731_700))),
    ("012_record_100_hls_doc_2022.json", Signed(at_ms("live.record", "stream_test", 1_642_089_598_618))),
    ("013_record_100_real_2019_unsigned_no_app.json", Bare(at_ms("live.record", "aa", 1_562_658_284_453))),
    ("014_record_100_real_2025_hls_cos_unsigned.json", Bare(at_ms("live.record", "119", 1_743_484_153_809))),
    ("015_record_100_real_2020_mp4.json", Signed(at_ms("live.record", "1400410245_10002", 1_598_454_291_655))),
    ("016a_record_100_same_segment_flv.json", Signed(at_ms("live.record", "test_stream", 1_703_731_606_480))),
    ("016b_record_100_same_segment_mp4.json", Signed(at_ms("live.record", "test_stream", 1_703_731_606_480))),
    ("016c_record_100_same_segment_hls.json", Signed(at_ms("live.record", "test_stream", 1_703_731_606_480))),
    ("017_record_100_api_task_no_stream_param.json", Signed(at_ms("live.record", "test_stream", 1_703_731_606_480))),
    ("018_record_100_legacy_2017_stream_param_pipe.json", Signed(at("live.record", "2519_2500647", 1_496_220_894))),
    ("019_record_100_legacy_2016_file_size_string.json", Signed(at("live.record", "3891_@v_tls#3pfnm5fw35qt", 1_471_256_054))),
    ("020_screenshot_200_doc_2021.json", Signed(at("live.screenshot", "your_streamid", 1_622_599_925))),
    ("021_screenshot_200_task_id_2025.json", Signed(at("live.screenshot", "your_streamid", 1_622_599_925))),
    ("022_screenshot_200_legacy_2016_no_full_url.json", Signed(at("live.screenshot", "2016090090936", 1_473_645_788))),
    ("023a_screenshot_200_same_second_template.json", Signed(at("live.screenshot", "your_streamid", 1_622_599_925))),
    ("023b_screenshot_200_same_second_other_size.json", Signed(at("live.screenshot", "your_streamid", 1_622_599_925))),
    ("024_porn_317_doc_2021_socre_int.json", Signed(at("live.porn-detection", "teststream", 1_610_640_000))),
    ("025_porn_317_doc_2025_socre_array.json", Signed(at("live.porn-detection", "teststream", 1_610_640_000))),
    ("026_porn_317_score_array_libresults_null.json", Signed(at("live.porn-detection", "teststream", 1_610_640_000))),
    // Without an event type the type is not inferred; the event goes to the topic for unknown
    // types.
    ("027_porn_317_legacy_2019_no_event_type_no_sign.json", Bare(timeless("live.other", "teststream"))),
    ("028_porn_317_all_legacy_scores.json", Signed(at("live.porn-detection", "teststream", 1_610_640_000))),
    ("029_porn_317_two_labels_same_img_a.json", Signed(at("live.porn-detection", "teststream", 1_615_859_820))),
    ("030_porn_317_two_labels_same_second_b.json", Signed(at("live.porn-detection", "teststream", 1_615_859_820))),
    ("031_audio_315_unsigned.json", Bare(at("live.audio-moderation", "audio01", 1_685_929_588))),
    ("032_audio_315_signed_null_results.json", Signed(at("live.audio-moderation", "audio01", 1_685_929_588))),
    ("033_relay_314_task_start.json", Bare(at("live.relay", "testvod", 1_712_893_433))),
    ("034_relay_314_vod_file_start.json", Bare(at("live.relay", "testvod", 1_712_893_435))),
    ("035_relay_314_vod_file_finish.json", Bare(at("live.relay", "testvod", 1_712_908_355))),
    ("036_relay_314_task_exit_no_ids.json", Bare(Taken("live.relay", None, false, Some(1_712_910_000_000)))),
    ("037_relay_314_task_alarm.json", Bare(at("live.relay", "testvod", 1_712_893_500))),
    ("038_push_exception_321.json", Signed(at_ms("live.push-exception", "teststream", 1_670_588_074_971))),
    ("039_record_status_332_ended.json", Signed(at("live.record-status", "2991615887188599295", 1_700_207_929))),
    ("040a_record_status_332_paused_same_second.json", Signed(at("live.record-status", "2991615887188599295", 1_700_207_929))),
    ("040b_record_status_332_resumed_same_second.json", Signed(at("live.record-status", "2991615887188599295", 1_700_207_929))),
    ("040c_record_status_332_other_session_same_second.json", Signed(at("live.record-status", "2991615887188599295", 1_700_207_929))),
    ("041_record_status_332_record_detail_overescaped.json", Signed(at("live.record-status", "2991615887188599295", 1_700_207_929))),
    ("042_record_exception_341.json", Signed(at("live.record-exception", "test_stream_35b4a6e6d4261", 1_739_934_527))),
    ("043_record_exception_341_same_second_other_type.json", Signed(at("live.record-exception", "test_stream_35b4a6e6d4261", 1_739_934_527))),
    ("044_monitor_328.json", Bare(at_ms("live.monitor", "monitor_stream_1", 1_712_893_433_123))),
    ("045_subtitle_338.json", Signed(at("live.subtitle", "teststream", 1_750_402_591))),
    ("046_subtitle_338_not_steady_same_start.json", Signed(at("live.subtitle", "teststream", 1_750_402_591))),
    ("047_quality_343.json", Signed(at("live.quality", "test", 1_747_818_881))),
    ("048_assessment_threshold_344.json", Signed(at("live.assessment-threshold", "livestream1", 1_752_130_787))),
    ("049_assessment_average_345.json", Signed(at("live.assessment-average", "livestream1", 1_752_130_787))),
    ("050_smart_erase_347.json", Signed(at("live.smart-erase", "teststream", 1_750_402_597))),
    ("051_summary_348.json", Signed(at("live.summary", "test1820", 1_761_212_541))),
    ("052_highlight_349.json", Signed(at("live.highlight", "test1820", 1_761_128_834))),
    ("060_unknown_event_type_999.json", Signed(timeless("live.other", "test_stream"))),
    ("061_t_as_string.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("062_event_type_as_string.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("063_event_type_missing.json", Signed(timeless("live.other", "test_stream"))),
    ("064_bom.json", Rejected("malformed")),
    ("065_duplicate_keys.json", Rejected("duplicate_key")),
    ("066_sequence_as_big_number.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("067_number_above_u64.json", Signed(at_ms("live.record", "stream_test", 1_642_089_598_618))),
    ("068_stream_param_unicode_escapes.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("069_expired_t.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("070_sign_upper_case.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("071_sign_wrong.json", Doubtful("bad_signature", at("live.push", "test_stream", 1_703_731_478))),
    ("072_t_without_sign.json", Doubtful("unsigned", at("live.push", "test_stream", 1_703_731_478))),
    ("073a_retry_first.json", Signed(at("live.interrupt", "test_stream", 1_703_731_606))),
    ("073b_retry_identical.json", Signed(at("live.interrupt", "test_stream", 1_703_731_606))),
    ("073c_retry_resigned.json", Signed(at("live.interrupt", "test_stream", 1_703_731_606))),
    ("074_null_fields.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("075_pretty_printed_tabs_crlf.json", Signed(at("live.push", "test_stream", 1_703_731_478))),
    ("076_stream_id_leading_space.json", Signed(at("live.push", " test_stream", 1_703_731_478))),
    ("077_key_order_differs.json", Signed(at("live.interrupt", "test_stream", 1_703_731_606))),
    ("078_invalid_unquoted_value.txt", Rejected("malformed")),
    ("079_invalid_trailing_comma.txt", Rejected("malformed")),
    ("080_empty_body.txt", Rejected("malformed")),
    ("081_json_array_body.json", Rejected("not_an_object")),
    ("082_streamlive_329_other_product.json", Signed(Taken("live.other", None, false, None))),
    ("083_porn_317_large_15k.json", Signed(at("live.porn-detection", "teststream", 1_610_640_000))),
];

#[test]
fn every_payload_has_its_expectation() {
    let files: BTreeSet<String> = fs::read_dir("tests/payloads")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "INDEX.md")
        .collect();
    let expected: BTreeSet<String> = EXPECTED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, expected);
}

#[test]
fn every_payload_is_accepted_or_rejected_as_documented() {
    let topics = topics("live");
    for (name, expect) in &EXPECTED {
        let body = payload(name);
        let strict = take(&body, &verifier(UnsignedPolicy::Rejected), NOW);
        let lenient = take_any(&body);
        let wanted = match expect {
            Rejected(reason) => {
                assert_eq!(strict.expect_err(name).reason(), *reason, "{name}");
                assert_eq!(lenient.expect_err(name).reason(), *reason, "{name}");
                continue;
            }
            Bare(wanted) => {
                assert_eq!(strict.expect_err(name).reason(), "unsigned", "{name}");
                wanted
            }
            Doubtful(reason, wanted) => {
                assert_eq!(strict.expect_err(name).reason(), *reason, "{name}");
                wanted
            }
            Signed(wanted) => {
                assert_eq!(&strict.expect(name), lenient.as_ref().expect(name), "{name}");
                wanted
            }
        };
        let record = lenient.expect(name);
        let Taken(topic, key, has_stream, occurred_at) = wanted;
        assert_eq!(topics.of(record.event_type), *topic, "{name}");
        assert_eq!(record.key.as_deref(), key.map(str::as_bytes), "{name}");
        assert_eq!(record.has_stream, *has_stream, "{name}");
        assert_eq!(record.occurred_at.map(Timestamp::as_millis), *occurred_at, "{name}");
        assert_eq!(record.received_at, NOW, "{name}");
        assert_eq!(record.body, body, "{name}: the body is kept byte for byte");
    }
}

mod event_type {
    use super::*;

    fn of(event_type: &str) -> Result<Option<EventType>, &'static str> {
        let body = format!(r#"{{"event_type":{event_type},"stream_id":"a"}}"#);
        take_any(body.as_bytes()).map(|record| record.event_type).map_err(|error| error.reason())
    }

    #[test]
    fn may_be_a_number_or_a_string_of_digits() {
        for (text, code) in [("0", 0), ("1", 1), ("\"0\"", 0), ("\"317\"", 317), ("-7", -7)] {
            assert_eq!(of(text), Ok(Some(EventType(code))), "{text}");
        }
    }

    #[test]
    fn missing_or_null_is_none_and_never_an_interruption() {
        assert_eq!(of("null"), Ok(None));
        let record = take_any(br#"{"stream_id":"a"}"#).unwrap();
        assert_eq!(record.event_type, None);
    }

    #[test]
    fn of_another_json_type_is_rejected() {
        let odd = [
            "true", "false", "1.0", "1e2", "0.0", "\"\"", "\"push\"", "\" 1\"", "\"1.0\"", "[]",
            "[1]", "{}", "99999999999999999999",
        ];
        for text in odd {
            assert_eq!(of(text), Err("wrong_type"), "{text}");
        }
    }
}

mod signature {
    use super::*;

    const T: i64 = 1_767_225_600;

    fn push() -> Value {
        json!({"event_type": 1, "stream_id": "a"})
    }

    #[test]
    fn is_md5_of_key_and_t_in_lower_case_hex() {
        // Computed independently of this crate: `printf %s callbackKey01234567891703732078 |
        // md5sum`.
        let published: Value = serde_json::from_slice(&payload("001_push_1.json")).unwrap();
        let t = published["t"].to_string();
        assert_eq!(published["sign"], json!(key(KEY).sign_hex(&t)));
        assert_eq!(key(KEY).sign_hex("1703732078"), "d21bd464b2a486de5fb76d035ee7d747");
    }

    #[test]
    fn of_any_configured_key_is_accepted() {
        let keys = vec![key("old"), key("new")];
        let two = Verifier { keys, ..timely(UnsignedPolicy::Rejected) };
        for (place, secret) in ["old", "new"].into_iter().enumerate() {
            let body = Bytes::from(signed(push(), secret, T));
            let callback = UnverifiedCallback::parse(&body).unwrap().verify(&two, NOW).unwrap();
            assert_eq!(callback.key(), Some(place), "{secret}");
        }
        assert_eq!(rejection(&signed(push(), "older", T), &two), "bad_signature");
        assert_eq!(rejection(&signed(push(), "OLD", T), &two), "bad_signature");
    }

    #[test]
    fn without_any_key_matches_nothing() {
        let none = Verifier { keys: vec![], leeway: CENTURY, unsigned: UnsignedPolicy::Rejected };
        assert_eq!(rejection(&signed(push(), KEY, T), &none), "bad_signature");
    }

    #[test]
    fn that_is_not_a_digest_is_rejected() {
        let strict = verifier(UnsignedPolicy::Rejected);
        let right = key(KEY).sign_hex(&T.to_string());
        let mut odd = vec![
            json!(""),
            json!(right[1..]),
            json!(format!("0{right}")),
            json!(format!(" {right}")),
            json!(format!("+{}", &right[1..])),
            json!("z".repeat(32)),
            json!("é".repeat(16)),
            json!(5),
            json!(true),
            json!([right]),
            json!({ "sign": right }),
        ];
        // One wrong digit at any position.
        odd.extend((0..32).map(|place| {
            let mut wrong = right.clone().into_bytes();
            wrong[place] = if wrong[place] == b'0' { b'1' } else { b'0' };
            json!(String::from_utf8(wrong).unwrap())
        }));
        for sign in odd {
            let mut body = push();
            body["t"] = T.into();
            body["sign"] = sign.clone();
            assert_eq!(rejection(body.to_string().as_bytes(), &strict), "bad_signature", "{sign}");
        }
    }

    #[test]
    fn of_a_t_in_a_string_covers_its_exact_text() {
        let strict = verifier(UnsignedPolicy::Rejected);
        for text in ["1767225600", "01767225600", "+1767225600"] {
            let mut body = push();
            body["t"] = text.into();
            body["sign"] = key(KEY).sign_hex(text).into();
            assert!(take(body.to_string().as_bytes(), &strict, NOW).is_ok(), "{text}");
            body["sign"] = key(KEY).sign_hex("1767225601").into();
            assert_eq!(rejection(body.to_string().as_bytes(), &strict), "bad_signature", "{text}");
        }
    }

    #[test]
    fn over_a_t_that_is_not_a_time_is_rejected_even_if_it_matches() {
        let strict = verifier(UnsignedPolicy::Rejected);
        for text in ["", "soon", "1.5", "1e9", "9223372036854775807", "99999999999999999999"] {
            let mut body = push();
            body["t"] = text.into();
            body["sign"] = key(KEY).sign_hex(text).into();
            assert_eq!(rejection(body.to_string().as_bytes(), &strict), "wrong_type", "{text}");
        }
        for value in ["1.5", "1767225600.0", "1e9", "true", "[]", "{}"] {
            let sign = key(KEY).sign_hex(value);
            let body = format!(r#"{{"t":{value},"sign":"{sign}"}}"#);
            assert_eq!(rejection(body.as_bytes(), &strict), "wrong_type", "{value}");
        }
    }

    #[test]
    fn expires_only_after_the_leeway() {
        let strict = timely(UnsignedPolicy::Rejected);
        let body = signed(push(), KEY, T);
        let at = |millis: i64| {
            take(&body, &strict, Timestamp::from_millis(T * 1000 + millis))
                .map_err(|error| (error.reason(), error.to_string()))
        };
        assert!(at(-1_000_000_000).is_ok(), "signed by a clock ahead of ours");
        assert!(at(0).is_ok());
        assert!(at(1_200_000).is_ok(), "exactly at the leeway");
        let (reason, message) = at(1_200_001).unwrap_err();
        assert_eq!(reason, "expired");
        assert!(message.contains("1200s ago"), "{message}");
        let (_, message) = at(1_201_000).unwrap_err();
        assert!(message.contains("1201s ago"), "{message}");

        let none = Verifier { leeway: Duration::ZERO, ..strict };
        assert!(take(&body, &none, Timestamp::from_millis(T * 1000)).is_ok());
        let late = take(&body, &none, Timestamp::from_millis(T * 1000 + 1));
        assert_eq!(late.unwrap_err().reason(), "expired");
    }

    #[test]
    fn expired_is_reported_differently_from_wrong() {
        let strict = timely(UnsignedPolicy::Rejected);
        assert_eq!(rejection(&payload("069_expired_t.json"), &strict), "expired");
        assert_eq!(rejection(&signed(push(), "other", 1), &strict), "bad_signature");
        // The largest and smallest times do not overflow.
        assert_eq!(rejection(&signed(push(), KEY, i64::MIN / 1000), &strict), "expired");
        assert!(take(&signed(push(), KEY, i64::MAX / 1000), &strict, NOW).is_ok());
    }

    #[test]
    fn is_required_unless_the_event_type_is_exempt() {
        let push = push().to_string();
        let relay = json!({"event_type": 314, "msg": "{}"}).to_string();
        let nameless = json!({"stream_id": "a"}).to_string();
        let unknown = json!({"event_type": 999}).to_string();
        let taken = |policy: &UnsignedPolicy| {
            [&push, &relay, &nameless, &unknown]
                .map(|body| take(body.as_bytes(), &verifier(policy.clone()), NOW).is_ok())
        };
        assert_eq!(taken(&UnsignedPolicy::Rejected), [false; 4]);
        assert_eq!(taken(&UnsignedPolicy::Types(vec![])), [false; 4]);
        assert_eq!(
            taken(&UnsignedPolicy::Types(vec![EventType(314)])),
            [false, true, false, false]
        );
        let two = UnsignedPolicy::Types(vec![EventType(1), EventType(999)]);
        assert_eq!(taken(&two), [true, false, false, true]);
        assert_eq!(taken(&UnsignedPolicy::All), [true; 4]);
    }

    #[test]
    fn without_t_or_sign_counts_as_missing() {
        for body in [
            json!({"t": T}),
            json!({"sign": key(KEY).sign_hex(&T.to_string())}),
            json!({"t": null, "sign": "x"}),
            json!({"t": T, "sign": null}),
            json!({"t": null, "sign": null}),
        ] {
            let body = body.to_string();
            let strict = verifier(UnsignedPolicy::Rejected);
            assert_eq!(rejection(body.as_bytes(), &strict), "unsigned", "{body}");
            assert!(take_any(body.as_bytes()).is_ok(), "{body}");
        }
    }

    /// The reason why `body` counts as unverified; `None` if it is verified or has no signature.
    fn unverified(body: &[u8], verifier: &Verifier) -> Option<&'static str> {
        let body = Bytes::copy_from_slice(body);
        let callback = UnverifiedCallback::parse(&body).unwrap().verify(verifier, NOW).unwrap();
        let reason = callback.unverified().map(CallbackError::reason);
        assert!(
            reason.is_none() || callback.key().is_none(),
            "a verified callback has no such reason"
        );
        reason
    }

    /// `callback.unsigned = ["all"]` without keys, after an operator has added a key in the
    /// console.
    #[test]
    fn without_keys_and_all_unsigned_signed_callbacks_are_accepted_and_reported() {
        let all = Verifier { keys: vec![], leeway: MINUTES_20, unsigned: UnsignedPolicy::All };
        for (event_type, _) in EventType::known() {
            let event = json!({"event_type": event_type.0, "stream_id": "a"});
            assert_eq!(unverified(event.to_string().as_bytes(), &all), None, "{event}");
            let resigned = signed(event, "added in the console", T);
            assert_eq!(unverified(&resigned, &all), Some("bad_signature"), "{event_type:?}");
        }
    }

    #[test]
    fn that_is_wrong_rejects_no_callback_of_an_exempt_type() {
        let t = T.to_string();
        let right = key(KEY).sign_hex(&t);
        let cases = [
            (json!({"t": T, "sign": right}), None),
            (json!({}), None),
            (json!({"t": T, "sign": key("other").sign_hex(&t)}), Some("bad_signature")),
            (json!({"t": T, "sign": "no digest"}), Some("bad_signature")),
            (json!({"t": T, "sign": ["x"]}), Some("bad_signature")),
            (json!({"t": "soon", "sign": key(KEY).sign_hex("soon")}), Some("wrong_type")),
            (json!({"t": [T], "sign": right}), Some("wrong_type")),
            (json!({"t": 1, "sign": key(KEY).sign_hex("1")}), Some("expired")),
            (json!({"t": T}), Some("unsigned")),
            (json!({"sign": right}), Some("unsigned")),
        ];
        let relays = UnsignedPolicy::Types(vec![EventType(314)]);
        for (mut event, expected) in cases {
            for policy in [UnsignedPolicy::All, relays.clone()] {
                event["event_type"] = 314.into();
                let (body, policy) = (event.to_string(), timely(policy));
                assert_eq!(unverified(body.as_bytes(), &policy), expected, "{event}");
            }
            // A type that requires a signature is still rejected.
            event["event_type"] = 1.into();
            let outcome = take(event.to_string().as_bytes(), &timely(relays.clone()), NOW);
            let reason = outcome.err().map(|error| error.reason());
            let is_bare = event.get("t").is_none() && event.get("sign").is_none();
            assert_eq!(reason, expected.or(is_bare.then_some("unsigned")), "{event}");
        }
    }

    #[test]
    fn below_the_top_level_is_ignored() {
        let t = T.to_string();
        let inner = json!({"data": {"t": T, "sign": key(KEY).sign_hex(&t)}}).to_string();
        assert_eq!(rejection(inner.as_bytes(), &verifier(UnsignedPolicy::Rejected)), "unsigned");
    }

    #[test]
    fn keys_are_never_printed() {
        let secret = "s3cretCallbackKey";
        let key = key(secret);
        let verifier = Verifier { keys: vec![key.clone()], ..verifier(UnsignedPolicy::Rejected) };
        for shown in [
            format!("{key:?}"),
            format!("{key:#?}"),
            format!("{verifier:?}"),
            format!("{verifier:#?}"),
            rejection_text(&verifier),
        ] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        assert_eq!(format!("{:?}", key.named("new")), "CallbackKey(new, ..)");
    }

    fn rejection_text(verifier: &Verifier) -> String {
        let error = take(&signed(push(), "other", T), verifier, NOW).unwrap_err();
        format!("{error} {error:?}")
    }

    #[test]
    fn that_is_missing_wrong_or_expired_fails_authentication_and_nothing_else_does() {
        let strict = timely(UnsignedPolicy::Rejected);
        let fails = |body: &[u8]| take(body, &strict, NOW).unwrap_err().is_authentication();
        let unsigned = push().to_string();
        for body in [unsigned.as_bytes(), &signed(push(), "other", T), &signed(push(), KEY, 1)] {
            assert!(fails(body), "{}", String::from_utf8_lossy(body));
        }
        for body in ["{", "[]", r#"{"a":1,"a":1}"#, r#"{"event_type":[]}"#] {
            assert!(!fails(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn keys_have_a_name_and_are_the_same_if_their_secrets_are() {
        let (old, new) = (key("secret").named("old"), key("secret").named("new"));
        assert_eq!((old.name(), old.reveal()), ("old", "secret"));
        assert!(old.has_same_secret(&new));
        assert!(!old.has_same_secret(&key("other").named("old")));
    }

    #[test]
    fn only_the_key_in_the_documentation_is_an_example() {
        assert!(key("change-me").is_example());
        assert!(!key("changed").is_example());
    }

    #[test]
    fn keys_are_trimmed_and_blank_keys_are_rejected() {
        for blank in ["", " ", "\t\r\n"] {
            assert!(CallbackKey::new(blank).is_none(), "{blank:?}");
        }
        assert_eq!(key(" abc\r\n").sign("1"), key("abc").sign("1"));
    }
}

mod body {
    use super::*;

    fn reason(body: &[u8]) -> Result<(), &'static str> {
        take_any(body).map(|_| ()).map_err(|error| error.reason())
    }

    #[test]
    fn that_is_not_json_is_malformed() {
        let odd: [&[u8]; 13] = [
            b"", b" \n", b"{", b"{}{}", b"{} x", br#"{"a":1,}"#, br#"{"a":01}"#, br#"{"a":.5}"#,
            br#"{"a":NaN}"#, br"{'a':1}", b"{\"a\":\"\n\"}", b"{\"a\":\"\0\"}", br#"{"a":"\x41"}"#,
        ];
        for body in odd {
            assert_eq!(reason(body), Err("malformed"), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn that_is_not_utf_8_is_malformed_at_any_position() {
        let bodies: [&[u8]; 4] = [
            b"\xff{}", b"{\"\xff\":1}", b"{\"a\":\"\xc3\x28\"}",
            b"{\"a\":[{\"b\":\"\xed\xa0\x80\"}]}",
        ];
        for body in bodies {
            assert_eq!(reason(body), Err("malformed"));
        }
        let utf_16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(reason(&utf_16), Err("malformed"));
    }

    #[test]
    fn that_is_json_but_not_an_object_is_reported_as_such() {
        for body in ["[]", "[{}]", "null", "true", "0", "\"{}\"", " [1] "] {
            assert_eq!(reason(body.as_bytes()), Err("not_an_object"), "{body}");
        }
        let cut = take_any(b"[1").unwrap_err();
        assert_eq!(cut.reason(), "malformed");
        assert!(cut.to_string().contains("expected an object"), "{cut}");
    }

    #[test]
    fn that_is_an_empty_object_is_an_event_without_a_type() {
        let record = take_any(b"{}").unwrap();
        assert_eq!((record.event_type, record.key, record.has_stream), (None, None, false));
    }

    #[test]
    fn with_a_duplicate_key_is_rejected_at_any_depth() {
        for body in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"a":3}"#,
            r#"{"event_type":1,"event_type":0}"#,
            r#"{"stream_id":"a","stream\u005fid":"b"}"#,
            r#"{"x":{"a":1,"a":2}}"#,
            r#"{"x":[0,[{"y":{"a":1,"a":1}}]]}"#,
            r#"{"event_type":341,"exception":{"type":1,"type":2}}"#,
            r#"{"sign":{"a":1,"a":2},"":0}"#,
        ] {
            assert_eq!(reason(body.as_bytes()), Err("duplicate_key"), "{body}");
        }
        assert_eq!(reason(br#"{"a":{"a":1},"b":[{"a":1},{"a":1}]}"#), Ok(()));
        let long = "k".repeat(100_000);
        let error = take_any(format!(r#"{{"{long}":1,"{long}":1}}"#).as_bytes()).unwrap_err();
        assert!(error.to_string().len() < 200, "the message does not echo the body");
    }

    #[test]
    fn is_parsed_up_to_the_depth_limit() {
        let arrays = |levels| format!(r#"{{"a":{}0{}}}"#, "[".repeat(levels), "]".repeat(levels));
        let objects =
            |levels| format!(r#"{{"a":{}0{}}}"#, r#"{"a":"#.repeat(levels), "}".repeat(levels));
        for nested in [&arrays as &dyn Fn(usize) -> String, &objects] {
            assert_eq!(reason(nested(30).as_bytes()), Ok(()), "31 levels and a number in them");
            assert_eq!(reason(nested(31).as_bytes()), Err("too_deep"));
            // The deepest nesting that the largest body allows must not overflow the stack.
            assert_eq!(reason(nested(80_000).as_bytes()), Err("too_deep"));
        }
        let unclosed = "[".repeat(500_000);
        assert_eq!(reason(unclosed.as_bytes()), Err("malformed"));
        assert_eq!(reason(format!(r#"{{"a":{unclosed}"#).as_bytes()), Err("malformed"));
    }

    #[test]
    fn with_a_lone_surrogate_is_accepted() {
        // Truncating text by UTF-16 units produces lone surrogates, and JSON's grammar allows them.
        // Rejecting the callback would lose the event.
        let cut = br#"{"event_type":348,"stream_id":"a","title":"cut here \ud83d"}"#;
        let record = take_any(cut).expect("half a pair in a value");
        assert_eq!(record.body, &cut[..]);
        let other = take_any(br#"{"event_type":348,"stream_id":"a","title":"cut here \ud83c"}"#);
        assert_ne!(record.id, other.unwrap().id);
        let key = take_any(br#"{"stream_id":"\ud83d"}"#).unwrap();
        assert_eq!((key.key, key.has_stream), (None, false), "not a text that can be a key");
    }
}

mod record {
    use super::*;

    fn of(object: &Value) -> Record {
        take_any(object.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn has_the_stream_as_key_else_the_task_else_none() {
        let key = |object: &Value| {
            let record = of(object);
            (record.key.map(|key| String::from_utf8(key.to_vec()).unwrap()), record.has_stream)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(key(&json!({"stream_id": "s", "streamId": "c"})), (some("s"), true));
        assert_eq!(key(&json!({"streamId": "c", "task_id": "t"})), (some("c"), true));
        assert_eq!(key(&json!({"stream_id": "", "streamId": "c"})), (some("c"), true));
        assert_eq!(key(&json!({"stream_id": null, "task_id": "t"})), (some("t"), false));
        assert_eq!(key(&json!({"stream_id": [], "task_id": 5})), (some("5"), false));
        assert_eq!(key(&json!({"stream_id": 119})), (some("119"), true));
        assert_eq!(key(&json!({"stream_id": true, "streamId": false})), (None, false));
        assert_eq!(key(&json!({"channel_id": "c"})), (None, false));
    }

    #[test]
    fn has_no_key_when_the_stream_id_exceeds_the_limit() {
        let long = "x".repeat(KEY_MAX);
        let record = of(&json!({"stream_id": long}));
        assert_eq!(record.key.as_deref(), Some(long.as_bytes()));
        let record = of(&json!({"stream_id": format!("{long}x"), "task_id": "t"}));
        assert_eq!((record.key, record.has_stream), (None, false));
    }

    #[test]
    fn has_the_time_of_the_most_specific_field() {
        let millis = |object: Value| of(&object).occurred_at.map(Timestamp::as_millis);
        assert_eq!(millis(json!({"event_type": 1, "event_time": 5, "update_time": 6})), Some(5000));
        for unusable in [json!(0), json!(-1), json!("x"), json!(1.5), json!([]), json!(null)] {
            let push = json!({"event_type": 1, "event_time": unusable, "update_time": 6});
            assert_eq!(millis(push.clone()), Some(6000), "{push}");
        }
        assert_eq!(millis(json!({"event_type": 314, "event_time": "7"})), Some(7000));
        assert_eq!(
            millis(json!({"event_type": 321, "data_time": 1_670_588_074_971_i64})),
            Some(1_670_588_074_971)
        );
        let detail =
            json!({"event_type": 321, "abnormal_event": [{"detail": [{"occur_time": 9}]}]});
        assert_eq!(millis(detail), Some(9));
        let frames = json!({"event_type": 344, "frames": [{"time": 1_752_130_787_123_i64}]});
        assert_eq!(millis(frames), Some(1_752_130_787_123));
        assert_eq!(millis(json!({"event_type": 349, "items": []})), None);
        assert_eq!(millis(json!({"event_type": 349, "items": [null]})), None);
        assert_eq!(millis(json!({"event_type": 349, "items": {"0": {"end_time": 8}}})), Some(8000));
        assert_eq!(millis(json!({"event_type": 999, "event_time": 5})), None);
    }

    #[test]
    fn of_a_recording_has_a_time_with_fractions_of_a_second() {
        let millis = |usec: Value| {
            of(&json!({"event_type": 100, "end_time": 5, "end_time_usec": usec})).occurred_at
        };
        assert_eq!(millis(json!(618_577)), Some(Timestamp::from_millis(5618)));
        assert_eq!(millis(json!("999999")), Some(Timestamp::from_millis(5999)));
        for no_part in [json!(1_000_000), json!(-1), json!("x"), json!(null), json!({})] {
            assert_eq!(millis(no_part.clone()), Some(Timestamp::from_millis(5000)), "{no_part}");
        }
        let started = json!({"event_type": 100, "start_time": 4, "start_time_usec": 7000});
        assert_eq!(of(&started).occurred_at, Some(Timestamp::from_millis(4007)));
    }

    #[test]
    fn of_a_relay_has_the_time_in_its_message() {
        let time = |msg: Value| of(&json!({"event_type": 314, "msg": msg})).occurred_at;
        let at = |millis| Some(Timestamp::from_millis(millis));
        assert_eq!(time(json!(r#"{"task_exit_time":8,"task_start_time":7}"#)), at(8));
        assert_eq!(time(json!(r#"{"task_start_time":"7"}"#)), at(7));
        // The documentation's own sample has 0 there; a value that is not an object is passed on
        // unchanged.
        for none in [
            json!(r#"{"task_start_time":0}"#),
            json!("{\"task_exit_time\":"),
            json!(r#"{"task_exit_time":8,"task_exit_time":9}"#),
            json!("[]"),
            json!(""),
            json!({"task_exit_time": 8}),
            json!(null),
        ] {
            assert_eq!(time(none.clone()), None, "{none}");
        }
        let both = json!({"event_type": 314, "event_time": "6", "msg": r#"{"task_exit_time":8}"#});
        assert_eq!(of(&both).occurred_at, at(6000));
    }

    #[test]
    fn has_the_signing_time_where_the_type_has_no_event_time() {
        const T: i64 = 1_767_225_600;
        let time = |event: Value| take_any(&signed(event, KEY, T)).unwrap().occurred_at;
        let signing = Timestamp::from_secs(T - 600);
        for event_type in [315, 338, 347] {
            assert_eq!(time(json!({"event_type": event_type, "data": null})), signing);
            assert_eq!(of(&json!({"event_type": event_type})).occurred_at, None, "unsigned");
        }
        for event_type in [1, 314, 321, 349, 999] {
            assert_eq!(time(json!({"event_type": event_type})), None, "{event_type}");
        }
    }

    #[test]
    fn has_only_times_that_rfc_3339_can_express() {
        // Milliseconds in place of seconds: RFC 3339 cannot express the year 55959.
        for time in [1_703_731_606_000_i64, 253_402_300_800, i64::MAX, i64::MAX / 1000] {
            let record = of(&json!({"event_type": 1, "stream_id": "a", "event_time": time}));
            assert_eq!(record.occurred_at, None, "{time}");
        }
        let last = of(&json!({"event_type": 1, "event_time": 253_402_300_799_i64})).occurred_at;
        assert_eq!(last.unwrap().to_string(), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn survives_encoding_and_decoding() {
        for (name, expect) in &EXPECTED {
            if matches!(expect, Rejected(_)) {
                continue;
            }
            let record = take_any(&payload(name)).unwrap();
            let mut bytes = bytes::BytesMut::new();
            record.encode(&mut bytes);
            assert_eq!(Record::decode(bytes.freeze()).as_ref(), Ok(&record), "{name}");
        }
    }
}

mod omitting {
    use super::*;

    fn of(body: &[u8], names: &[&str]) -> Record {
        let body = Bytes::copy_from_slice(body);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let parsed = UnverifiedCallback::parse(&body).unwrap();
        parsed
            .verify(&verifier(UnsignedPolicy::All), NOW)
            .unwrap()
            .into_record(NOW, &names)
            .unwrap()
    }

    fn text(body: &str, names: &[&str]) -> String {
        String::from_utf8(of(body.as_bytes(), names).body.to_vec()).unwrap()
    }

    #[test]
    fn keeps_all_other_bytes() {
        let odd = " {\t\"b\" : 1 ,\r\n\"a\":\"{,}\" , \"c\":[ 1,{\"a\":2} ]\n}\n";
        assert_eq!(text(odd, &["a"]), " {\t\"b\" : 1 , \"c\":[ 1,{\"a\":2} ]\n}\n");
        assert_eq!(text(odd, &["b"]), " {\r\n\"a\":\"{,}\" , \"c\":[ 1,{\"a\":2} ]\n}\n");
        assert_eq!(text(odd, &["c"]), " {\t\"b\" : 1 ,\r\n\"a\":\"{,}\"\n}\n");
        assert_eq!(text(odd, &["a", "b"]), " { \"c\":[ 1,{\"a\":2} ]\n}\n");
        assert_eq!(text(odd, &["c", "b", "a"]), " {\n}\n");
        assert_eq!(text(odd, &["d", ""]), odd);
        assert_eq!(text(odd, &[]), odd);
        assert_eq!(text("{}", &["a"]), "{}");
        assert_eq!(text(r#"{"\u0061":"\u0061","b":null}"#, &["a"]), r#"{"b":null}"#);
        assert_eq!(text(r#"{"b":null,"a":1}"#, &["b"]), r#"{"a":1}"#);
    }

    #[test]
    fn changes_the_body_only_and_never_the_event_id() {
        for (name, expect) in &EXPECTED {
            if matches!(expect, Rejected(_)) {
                continue;
            }
            let body = payload(name);
            let whole = of(&body, &[]);
            let members: Value = serde_json::from_slice(&body).unwrap();
            let members = members.as_object().unwrap();
            let mut every: Vec<Vec<&str>> = members.keys().map(|key| vec![&**key]).collect();
            every.push(vec!["stream_param", "sign", "t"]);
            every.push(members.keys().map(|key| &**key).collect());
            for omitted in every {
                let record = of(&body, &omitted);
                let mut left = members.clone();
                left.retain(|key, _| !omitted.contains(&&**key));
                let kept: Value = serde_json::from_slice(&record.body).unwrap();
                assert_eq!(kept, Value::Object(left), "{name} without {omitted:?}");
                assert_eq!(Record { body: whole.body.clone(), ..record }, whole, "{name}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = take_any(&body);
    }

    #[test]
    fn no_json_like_text_panics(
        body in r#"(\{|\}|\[|\]|,|:|"|\\|\\u|d8|null|true|[0-9]{1,2}|-|\.|e|"event_type":|"data":|"items":|é| ){0,40}"#
    ) {
        let _ = take_any(format!("{{{body}}}").as_bytes());
        let _ = take_any(body.as_bytes());
    }

    #[test]
    fn no_mutated_payload_panics(
        which in 0..EXPECTED.len(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut body = payload(EXPECTED[which].0);
        if !body.is_empty() {
            let place = place.index(body.len());
            body[place] = byte;
            if cut {
                body.truncate(place);
            }
        }
        if let Ok(record) = take_any(&body) {
            let _ = record.occurred_at.map(|time| time.to_string());
        }
    }
}
