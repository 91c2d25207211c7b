//! Configuration reload at run time, by SIGHUP or file watching: an invalid configuration is
//! rejected as a whole, and no callback is rejected because of a reload.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::Timestamp;
use serde_json::{Value, json};

use crate::support::configured_bridge::{ConfiguredBridge, RunningBridge};
use crate::support::kafka::UNREACHABLE;
use crate::support::tls::{self, Identity, VERSIONS};
use crate::support::wire::{exchange, get, post};
use crate::support::{TIME_LIMIT, wait_until};

/// A bridge without Kafka, with its keys in a file.
fn start(keys: &str) -> RunningBridge {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    fs::write(&file, keys).unwrap();
    let more = format!("callback.keys_file = \"{}\"\ncallback.unsigned = []", file.display());
    ConfiguredBridge::with_files(dir, UNREACHABLE, &more).serve()
}

/// The response status of a callback signed with `key`.
fn send(bridge: &RunningBridge, key: &str) -> u16 {
    bridge.post(&callback(key)).status
}

fn callback(key: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = (Timestamp::now().as_millis() / 1000).to_string();
    let body = json!({
        "event_type": 1, "stream_id": "s",
        "sequence": NEXT.fetch_add(1, Ordering::Relaxed).to_string(),
        "t": now, "sign": CallbackKey::new(key).unwrap().sign_hex(&now),
    });
    body.to_string()
}

const APPLIED: &str = "livebridge_config_reloads_total{outcome=\"applied\"}";
const REJECTED: &str = "livebridge_config_reloads_total{outcome=\"rejected\"}";

fn accepted(name: &str) -> String {
    format!("livebridge_callback_key_accepted_total{{key=\"{name}\"}}")
}

/// A key that is added in the console before it is added here must not cause rejections.
#[test]
fn without_keys_signed_callbacks_are_accepted_and_counted_as_unverified() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "callback.unsigned = []").serve();
    bridge.reload("callback.keys = []\ncallback.unsigned = [\"all\"]");
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!((send(&bridge, "cccc"), send(&bridge, "dddd")), (200, 200));
    bridge.wait_for_metric(&accepted("(unverified)"), 2.0);
    let unsigned = r#"{"event_type":1,"stream_id":"s"}"#;
    assert_eq!(bridge.post(unsigned).status, 200);
    assert!(
        (bridge.metric(&accepted("(unverified)")) - 2.0).abs() < 1e-9,
        "it carries no signature"
    );
}

#[test]
fn keys_are_rotated_without_a_restart_and_usage_shows_when_to_remove_the_old_one() {
    let bridge = start("old aaaa\n");
    assert_eq!((send(&bridge, "aaaa"), send(&bridge, "bbbb")), (200, 401));

    fs::write(bridge.path("keys"), "new bbbb\nold aaaa\n").unwrap();
    bridge.signal_reload();
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!(
        (send(&bridge, "aaaa"), send(&bridge, "bbbb"), send(&bridge, "bbbb")),
        (200, 200, 200)
    );
    bridge.wait_for_metric(&accepted("old"), 2.0);
    bridge.wait_for_metric(&accepted("new"), 2.0);
    let last = bridge.metric("livebridge_callback_key_last_used_timestamp_seconds{key=\"new\"}");
    let now = Duration::from_millis(Timestamp::now().as_millis().try_into().unwrap());
    assert!((0.0..60.0).contains(&(now.as_secs_f64() - last)), "{last}");

    fs::write(bridge.path("keys"), "new bbbb\n").unwrap();
    bridge.signal_reload();
    bridge.wait_for_metric(APPLIED, 2.0);
    assert_eq!((send(&bridge, "aaaa"), send(&bridge, "bbbb")), (401, 200));
    // Lines of the log are written by a thread of their own.
    bridge.process.stderr.wait_for_text("new, old");
    let output_text = bridge.process.stderr.text();
    assert!(!output_text.contains("aaaa") && !output_text.contains("bbbb"), "{output_text}");
}

#[test]
fn the_key_of_the_documentation_causes_a_warning_at_every_start_and_reload() {
    let bridge = start("sample change-me\nown aaaa\n");
    let warnings = || {
        let output_text = bridge.process.stderr.text();
        let lines = output_text
            .lines()
            .filter(|line| line.contains("change-me, the example of the documentation"));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        for line in &lines {
            assert!(line.contains("WARN") && line.contains("\"key\":\"sample\""), "{line}");
            assert!(line.contains("use the CallbackKey"), "{line}");
        }
        lines.len()
    };
    // Lines of the log are written by a thread of their own.
    let come_to = |count| {
        let message = || format!("{} warnings instead of {count}", warnings());
        wait_until(TIME_LIMIT, || warnings() == count, message);
    };
    come_to(1);
    fs::write(bridge.path("keys"), "own aaaa\n").unwrap();
    bridge.signal_reload();
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!(warnings(), 1, "other keys cause no warning");
    fs::write(bridge.path("keys"), "sample change-me\n").unwrap();
    bridge.signal_reload();
    bridge.wait_for_metric(APPLIED, 2.0);
    come_to(2);
}

#[test]
fn omitted_members_apply_from_the_next_callback() {
    let bridge = start("old aaaa\n");
    assert_eq!(send(&bridge, "aaaa"), 200);
    bridge.reload("callback.omit = [\"stream_id\"]");
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!(send(&bridge, "aaaa"), 200);
    let kept: Vec<bool> = bridge.stored().iter().map(|body| body.contains("stream_id")).collect();
    assert_eq!(kept, [true, false]);
    assert!(!bridge.process.stderr.text().contains("next start"), "nothing waits for a restart");
}

#[test]
fn a_changed_file_is_loaded_without_a_signal() {
    let bridge = start("old aaaa\n");
    // Kubernetes and careful operators replace a file atomically.
    fs::write(bridge.path("keys.new"), "new bbbb\n").unwrap();
    fs::rename(bridge.path("keys.new"), bridge.path("keys")).unwrap();
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!((send(&bridge, "aaaa"), send(&bridge, "bbbb")), (401, 200));
    // In place, in the configuration file itself.
    bridge.set("callback.keys = [\"add cccc\"]");
    bridge.wait_for_metric(APPLIED, 2.0);
    assert_eq!((send(&bridge, "bbbb"), send(&bridge, "cccc")), (200, 200));
}

#[test]
fn an_invalid_one_changes_nothing_and_is_reported_until_it_is_fixed() {
    let bridge = start("ok aaaa\n");
    bridge.wait_for_metric("livebridge_config_ok", 1.0);
    let mut rejected = 0.0;
    let mut wrong = |says: &str| {
        bridge.signal_reload();
        rejected += 1.0;
        bridge.wait_for_metric(REJECTED, rejected);
        bridge.wait_for_metric("livebridge_config_ok", 0.0);
        assert_eq!((send(&bridge, "aaaa"), send(&bridge, "bbbb")), (200, 401));
        bridge.process.stderr.wait_for_text(says);
    };
    fs::write(bridge.path("keys"), "name s3cret extra\n").unwrap();
    wrong("/keys has more than a name and a key");
    fs::write(bridge.path("keys"), "").unwrap();
    wrong("callback.keys: is empty");
    fs::remove_file(bridge.path("keys")).unwrap();
    wrong("cannot read");
    fs::write(bridge.path("keys"), "new bbbb\n").unwrap();
    fs::write(bridge.file(), "[callback]\nkeys = s3cret").unwrap();
    wrong("this is not TOML");
    bridge.set("callback.no_such_key = 1");
    wrong("no_such_key");

    bridge.reload("");
    bridge.wait_for_metric("livebridge_config_ok", 1.0);
    assert_eq!((send(&bridge, "aaaa"), send(&bridge, "bbbb")), (401, 200));
    assert!(!bridge.process.stderr.text().contains("s3cret"));
}

#[test]
fn a_rejected_one_is_loaded_once_the_file_it_names_exists() {
    let bridge = start("old");
    bridge.set(&format!("callback.keys_file = \"{}\"", bridge.path("other-keys").display()));
    bridge.wait_for_metric("livebridge_config_ok", 0.0);
    fs::write(bridge.path("other-keys"), "new").unwrap();
    bridge.wait_for_metric("livebridge_config_ok", 1.0);
    assert_eq!((send(&bridge, "new"), send(&bridge, "old")), (200, 401));
}

#[test]
fn a_new_certificate_is_used_for_new_connections_and_an_invalid_one_never() {
    let bridge = start("aaaa");
    let expiry = "livebridge_tls_certificate_expiry_timestamp_seconds";
    bridge.wait_for_metric(expiry, 0.0);
    let assert_accepted = |wire: &mut tls::TlsWire| {
        let request = post("/callback", &callback("aaaa"));
        assert_eq!(wire.exchange(request), Some(200));
    };
    let first = Identity::write(&bridge.path(""), 2100);
    bridge.reload(&first.section());
    bridge.wait_for_metric(expiry, 4_133_894_400.0);
    let mut open = first.connect(bridge.intake, &VERSIONS, &[]).unwrap();
    assert_accepted(&mut open);

    // Without a signal, as after a certbot renewal.
    let second = Identity::write(&bridge.path(""), 2101);
    bridge.wait_for_metric(expiry, 4_165_430_400.0);
    assert!(
        first.connect(bridge.intake, &VERSIONS, &[]).is_err(),
        "the first is no longer displayed"
    );
    assert_accepted(&mut second.connect(bridge.intake, &VERSIONS, &[]).unwrap());
    assert_accepted(&mut open);

    // A key that belongs to another.
    fs::write(bridge.path("tls.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    bridge.signal_reload();
    bridge.wait_for_metric("livebridge_config_ok", 0.0);
    bridge.process.stderr.wait_for_text("cannot be used together");
    assert_accepted(&mut second.connect(bridge.intake, &VERSIONS, &[]).unwrap());
    assert!(!bridge.process.stderr.text().contains("PRIVATE"));
}

#[test]
fn the_shared_secret_and_the_networks_are_changed_without_a_restart() {
    let bridge = start("aaaa");
    bridge.reload("access.secret = \"s3cret\"");
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!(send(&bridge, "aaaa"), 403);
    let rejected = "livebridge_callbacks_rejected_total{reason=\"secret\"}";
    bridge.wait_for_metric(rejected, 1.0);
    bridge.reload("access.allow = [\"192.0.2.1\"]");
    bridge.wait_for_metric(APPLIED, 2.0);
    assert_eq!(send(&bridge, "aaaa"), 403);
    bridge.wait_for_metric("livebridge_callbacks_rejected_total{reason=\"address\"}", 1.0);
    bridge.reload("");
    bridge.wait_for_metric(APPLIED, 3.0);
    assert_eq!(send(&bridge, "aaaa"), 200);
    assert!(!bridge.process.stderr.text().contains("s3cret"));
}

#[test]
fn a_new_log_level_applies_without_a_restart() {
    let bridge = start("aaaa");
    bridge.reload("log.level = \"debug\"");
    bridge.wait_for_metric(APPLIED, 1.0);
    let _ = exchange(bridge.intake, "no request\r\n\r\n");
    bridge.process.stderr.wait_for_text("\"DEBUG\"");
}

#[test]
fn a_full_log_accepts_callbacks_again_when_its_limit_is_raised() {
    let bridge = start("aaaa");
    bridge.reload("wal.min_free_bytes = \"1EiB\"");
    wait_until(TIME_LIMIT, || send(&bridge, "aaaa") == 503, || "callbacks are still accepted");
    bridge.reload("");
    wait_until(TIME_LIMIT, || send(&bridge, "aaaa") == 200, || "callbacks are still rejected");
    assert!(!bridge.process.stderr.text().contains("next start"), "nothing waits for one");
}

#[test]
fn keys_that_need_a_restart_are_reported() {
    let bridge = start("aaaa");
    bridge.reload("dedup.window = \"2h\"");
    bridge
        .process
        .stderr
        .wait_for(|line| (line.contains("next start") && line.contains("\"dedup\"")).then_some(()));
    assert_eq!(send(&bridge, "aaaa"), 200);
}

#[test]
fn the_printed_configuration_is_the_one_in_effect() {
    let bridge = start("aaaa");
    let shown = |key: &str| {
        let status = get(bridge.admin, "/status").body;
        let status: Value = serde_json::from_str(&status).unwrap();
        status["config"][key]["value"].to_string()
    };
    let all = || ["callback.omit", "access.allow", "log.level", "wal.max_bytes"].map(shown);
    let waiting = || ["wal.dir", "log.format", "dedup.window", "http.max_body"].map(shown);
    assert_eq!(all(), ["[]", "[]", "\"info\"", "\"1GiB\""]);
    let before = waiting();
    bridge.reload(&format!(
        "callback.omit = [\"t\"]\naccess.allow = [\"127.0.0.0/8\"]\nhttp.max_body = \"9KiB\"\n\
         dedup.window = \"2h\"\nlog.level = \"warn\"\nlog.format = \"text\"\n\
         wal.dir = \"{}\"\nwal.max_bytes = \"5GiB\"",
        bridge.path("another").display()
    ));
    bridge.wait_for_metric(APPLIED, 1.0);
    assert_eq!(all(), ["[\"t\"]", "[\"127.0.0.0/8\"]", "\"warn\"", "\"5GiB\""]);
    assert_eq!(waiting(), before, "these wait for the next start");
}

#[test]
fn callbacks_are_accepted_through_a_hundred_reloads() {
    let bridge = start("one aaaa");
    thread::scope(|scope| {
        let changing = scope.spawn(|| {
            // So many that some are loaded, also where a reload takes long.
            let started = Instant::now();
            for round in 0.. {
                if round >= 100 && bridge.metric(APPLIED) >= 10.0 {
                    break;
                }
                assert!(started.elapsed() < 6 * TIME_LIMIT, "{} reloads", bridge.metric(APPLIED));
                fs::write(bridge.path("next"), format!("one aaaa\nr{round} second-{round}"))
                    .unwrap();
                fs::rename(bridge.path("next"), bridge.path("keys")).unwrap();
                bridge.signal_reload();
                thread::sleep(Duration::from_millis(5));
            }
        });
        while !changing.is_finished() {
            assert_eq!(send(&bridge, "aaaa"), 200);
        }
    });
    assert_eq!(bridge.metric(REJECTED).to_string(), "0");
}
