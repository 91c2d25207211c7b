//! Configuration reload at run time, by SIGHUP or file watching: an invalid configuration is
//! rejected as a whole, and no callback is rejected because of a reload.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use livebridge::callback::CallbackKey;
use livebridge::event::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::metrics::scrape;
use crate::support::process::{Running, livebridge};
use crate::support::tls;
use crate::support::tls::{Identity, VERSIONS};
use crate::support::wait_until;
use crate::support::wire::{PATIENCE, exchange, get, post};

/// A livebridge without Kafka, with its keys in a file.
struct TestBed {
    process: Running,
    intake: SocketAddr,
    admin: SocketAddr,
    dir: TempDir,
}

fn config(dir: &Path, more: &str) -> String {
    format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [wal]\ndir = \"{0}/log\"\nmin_free_bytes = 0\n\
         [kafka]\nbrokers = \"127.0.0.1:1\"\ninstance = \"reload-test\"\ncreate_topics = false\n\
         [callback]\nkeys_file = \"{0}/keys\"\n{more}",
        dir.display()
    )
}

impl TestBed {
    fn new(keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("keys"), keys).unwrap();
        let file = dir.path().join("livebridge.toml");
        fs::write(&file, config(dir.path(), "")).unwrap();
        let process =
            Running::start(&mut livebridge(&["serve", "--config", file.to_str().unwrap()]));
        let admin = process.address("admin listening");
        let intake = process.address("intake listening");
        Self { process, intake, admin, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, more: &str) {
        fs::write(self.path("livebridge.toml"), config(self.dir.path(), more)).unwrap();
    }

    fn order(&self) {
        self.process.signal(Signal::HUP);
    }

    /// The response status of a callback signed with `key`.
    fn send(&self, key: &str) -> u16 {
        exchange(self.intake, post("/callback", &Self::callback(key))).unwrap().status
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

    fn value(&self, series: &str) -> f64 {
        let all = scrape(self.admin);
        *all.get(series).unwrap_or_else(|| panic!("no {series} in {all:?}"))
    }

    /// Waits until `series` has the value `value`.
    #[track_caller]
    fn comes_to(&self, series: &str, value: f64) {
        let message = || format!("{series} = {}", self.value(series));
        wait_until(PATIENCE, || (self.value(series) - value).abs() < 1e-9, message);
    }
}

const APPLIED: &str = "livebridge_config_reloads_total{outcome=\"applied\"}";
const REFUSED: &str = "livebridge_config_reloads_total{outcome=\"rejected\"}";

fn accepted(name: &str) -> String {
    format!("livebridge_callback_key_accepted_total{{key=\"{name}\"}}")
}

/// A key that is added in the console before it is added here must not cause rejections.
#[test]
fn without_keys_signed_callbacks_are_accepted_and_counted_as_unverified() {
    let bed = TestBed::new("any aaaa\n");
    let keys = format!("keys_file = \"{}\"", bed.path("keys").display());
    let keyless = config(bed.dir.path(), "").replace(&keys, "unsigned = [\"all\"]");
    fs::write(bed.path("livebridge.toml"), keyless).unwrap();
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!((bed.send("cccc"), bed.send("dddd")), (200, 200));
    bed.comes_to(&accepted("(unverified)"), 2.0);
    let unsigned = r#"{"event_type":1,"stream_id":"s"}"#;
    assert_eq!(exchange(bed.intake, post("/callback", unsigned)).unwrap().status, 200);
    assert!((bed.value(&accepted("(unverified)")) - 2.0).abs() < 1e-9, "it carries no signature");
}

#[test]
fn keys_are_rotated_without_a_restart_and_usage_shows_when_to_remove_the_old_one() {
    let bed = TestBed::new("old aaaa\n");
    assert_eq!((bed.send("aaaa"), bed.send("bbbb")), (200, 401));

    fs::write(bed.path("keys"), "new bbbb\nold aaaa\n").unwrap();
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!((bed.send("aaaa"), bed.send("bbbb"), bed.send("bbbb")), (200, 200, 200));
    bed.comes_to(&accepted("old"), 2.0);
    bed.comes_to(&accepted("new"), 2.0);
    let last = bed.value("livebridge_callback_key_last_used_timestamp_seconds{key=\"new\"}");
    let now = Duration::from_millis(Timestamp::now().as_millis().try_into().unwrap());
    assert!((0.0..60.0).contains(&(now.as_secs_f64() - last)), "{last}");

    fs::write(bed.path("keys"), "new bbbb\n").unwrap();
    bed.order();
    bed.comes_to(APPLIED, 2.0);
    assert_eq!((bed.send("aaaa"), bed.send("bbbb")), (401, 200));
    // Lines of the log are written by a thread of their own.
    bed.process.stderr.wait_for(|line| line.contains("new, old").then_some(()));
    let output_text = bed.process.stderr.text();
    assert!(!output_text.contains("aaaa") && !output_text.contains("bbbb"), "{output_text}");
}

#[test]
fn the_key_of_the_documentation_causes_a_warning_at_every_start_and_reload() {
    let bed = TestBed::new("sample change-me\nown aaaa\n");
    let warnings = || {
        let output_text = bed.process.stderr.text();
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
        wait_until(PATIENCE, || warnings() == count, message);
    };
    come_to(1);
    fs::write(bed.path("keys"), "own aaaa\n").unwrap();
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!(warnings(), 1, "other keys cause no warning");
    fs::write(bed.path("keys"), "sample change-me\n").unwrap();
    bed.order();
    bed.comes_to(APPLIED, 2.0);
    come_to(2);
}

#[test]
fn omitted_members_apply_from_the_next_callback() {
    let bed = TestBed::new("old aaaa\n");
    assert_eq!(bed.send("aaaa"), 200);
    bed.configure("omit = [\"stream_id\"]\n");
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!(bed.send("aaaa"), 200);
    let mut bodies = Vec::new();
    livebridge::wal::visit(&bed.path("log"), |entry| {
        bodies.push(String::from_utf8(entry.record.body.to_vec()).unwrap());
        Ok::<_, livebridge::wal::OpenError>(())
    })
    .unwrap();
    let kept: Vec<bool> = bodies.iter().map(|body| body.contains("stream_id")).collect();
    assert_eq!(kept, [true, false]);
    assert!(!bed.process.stderr.text().contains("next start"), "nothing waits for a restart");
}

#[test]
fn a_changed_file_is_loaded_without_a_signal() {
    let bed = TestBed::new("old aaaa\n");
    // Kubernetes and careful operators replace a file atomically.
    fs::write(bed.path("keys.new"), "new bbbb\n").unwrap();
    fs::rename(bed.path("keys.new"), bed.path("keys")).unwrap();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!((bed.send("aaaa"), bed.send("bbbb")), (401, 200));
    // In place, in the configuration file itself.
    bed.configure("keys = [\"add cccc\"]\n");
    bed.comes_to(APPLIED, 2.0);
    assert_eq!((bed.send("bbbb"), bed.send("cccc")), (200, 200));
}

#[test]
fn an_invalid_one_changes_nothing_and_is_reported_until_it_is_fixed() {
    let bed = TestBed::new("ok aaaa\n");
    bed.comes_to("livebridge_config_ok", 1.0);
    let mut refused = 0.0;
    let mut wrong = |bed: &TestBed, says: &str| {
        bed.order();
        refused += 1.0;
        bed.comes_to(REFUSED, refused);
        bed.comes_to("livebridge_config_ok", 0.0);
        assert_eq!((bed.send("aaaa"), bed.send("bbbb")), (200, 401));
        bed.process.stderr.wait_for(|line| line.contains(says).then_some(()));
    };
    fs::write(bed.path("keys"), "name s3cret extra\n").unwrap();
    wrong(&bed, "/keys has more than a name and a key");
    fs::write(bed.path("keys"), "").unwrap();
    wrong(&bed, "callback.keys: is empty");
    fs::remove_file(bed.path("keys")).unwrap();
    wrong(&bed, "cannot read");
    fs::write(bed.path("keys"), "new bbbb\n").unwrap();
    bed.configure("keys = s3cret");
    wrong(&bed, "this is not TOML");
    bed.configure("no_such_key = 1");
    wrong(&bed, "no_such_key");

    bed.configure("");
    bed.order();
    bed.comes_to("livebridge_config_ok", 1.0);
    assert_eq!((bed.send("aaaa"), bed.send("bbbb")), (401, 200));
    assert!(!bed.process.stderr.text().contains("s3cret"));
}

#[test]
fn a_rejected_one_is_loaded_once_the_file_it_names_exists() {
    let bed = TestBed::new("old");
    let text = config(bed.dir.path(), "").replace("/keys\"", "/other-keys\"");
    fs::write(bed.path("livebridge.toml"), text).unwrap();
    bed.comes_to("livebridge_config_ok", 0.0);
    fs::write(bed.path("other-keys"), "new").unwrap();
    bed.comes_to("livebridge_config_ok", 1.0);
    assert_eq!((bed.send("new"), bed.send("old")), (200, 401));
}

#[test]
fn a_new_certificate_is_used_for_new_connections_and_an_invalid_one_never() {
    let bed = TestBed::new("aaaa");
    let expiry = "livebridge_tls_certificate_expiry_timestamp_seconds";
    bed.comes_to(expiry, 0.0);
    let taken = |wire: &mut tls::TlsWire| {
        let request = post("/callback", &TestBed::callback("aaaa"));
        assert_eq!(wire.exchange(request), Some(200));
    };
    let first = Identity::write(bed.dir.path(), 2100);
    bed.configure(&first.section());
    bed.order();
    bed.comes_to(expiry, 4_133_894_400.0);
    let mut open = first.connect(bed.intake, &VERSIONS, &[]).unwrap();
    taken(&mut open);

    // Without a signal, as after a certbot renewal.
    let second = Identity::write(bed.dir.path(), 2101);
    bed.comes_to(expiry, 4_165_430_400.0);
    assert!(first.connect(bed.intake, &VERSIONS, &[]).is_err(), "the first is no longer displayed");
    taken(&mut second.connect(bed.intake, &VERSIONS, &[]).unwrap());
    taken(&mut open);

    // A key that belongs to another.
    fs::write(bed.path("tls.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    bed.order();
    bed.comes_to("livebridge_config_ok", 0.0);
    bed.process.stderr.wait_for(|line| line.contains("cannot be used together").then_some(()));
    taken(&mut second.connect(bed.intake, &VERSIONS, &[]).unwrap());
    assert!(!bed.process.stderr.text().contains("PRIVATE"));
}

#[test]
fn the_shared_secret_and_the_networks_are_changed_without_a_restart() {
    let bed = TestBed::new("aaaa");
    bed.configure("[access]\nsecret = \"s3cret\"\n");
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!(bed.send("aaaa"), 403);
    let refused = "livebridge_callbacks_rejected_total{reason=\"secret\"}";
    bed.comes_to(refused, 1.0);
    bed.configure("[access]\nallow = [\"192.0.2.1\"]\n");
    bed.order();
    bed.comes_to(APPLIED, 2.0);
    assert_eq!(bed.send("aaaa"), 403);
    bed.comes_to("livebridge_callbacks_rejected_total{reason=\"address\"}", 1.0);
    bed.configure("");
    bed.order();
    bed.comes_to(APPLIED, 3.0);
    assert_eq!(bed.send("aaaa"), 200);
    assert!(!bed.process.stderr.text().contains("s3cret"));
}

#[test]
fn a_new_log_level_applies_without_a_restart() {
    let bed = TestBed::new("aaaa");
    bed.configure("[log]\nlevel = \"debug\"\n");
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    let _ = exchange(bed.intake, "no request\r\n\r\n");
    bed.process.stderr.wait_for(|line| line.contains("\"DEBUG\"").then_some(()));
}

#[test]
fn a_full_log_accepts_callbacks_again_when_its_limit_is_raised() {
    let bed = TestBed::new("aaaa");
    let file =
        config(bed.dir.path(), "").replace("min_free_bytes = 0", "min_free_bytes = \"1EiB\"");
    fs::write(bed.path("livebridge.toml"), &file).unwrap();
    bed.order();
    wait_until(PATIENCE, || bed.send("aaaa") == 503, || "callbacks are still accepted");
    bed.configure("");
    bed.order();
    wait_until(PATIENCE, || bed.send("aaaa") == 200, || "callbacks are still rejected");
    assert!(!bed.process.stderr.text().contains("next start"), "nothing waits for one");
}

#[test]
fn keys_that_need_a_restart_are_reported() {
    let bed = TestBed::new("aaaa");
    bed.configure("[dedup]\nwindow = \"2h\"\n");
    bed.order();
    bed.process
        .stderr
        .wait_for(|line| (line.contains("next start") && line.contains("\"dedup\"")).then_some(()));
    assert_eq!(bed.send("aaaa"), 200);
}

#[test]
fn the_printed_configuration_is_the_one_in_effect() {
    let bed = TestBed::new("aaaa");
    let shown = |key: &str| {
        let status = get(bed.admin, "/status").body;
        let status: Value = serde_json::from_str(&status).unwrap();
        status["config"][key]["value"].to_string()
    };
    let all = || ["callback.omit", "access.allow", "log.level", "wal.max_bytes"].map(shown);
    let waiting = || ["wal.dir", "log.format", "dedup.window", "http.max_body"].map(shown);
    assert_eq!(all(), ["[]", "[]", "\"info\"", "\"10GiB\""]);
    let before = waiting();
    let text = config(
        bed.dir.path(),
        "omit = [\"t\"]\n[access]\nallow = [\"127.0.0.0/8\"]\n[dedup]\nwindow = \"2h\"\n\
         [log]\nlevel = \"warn\"\nformat = \"text\"\n",
    );
    let text = text.replace("[http]", "[http]\nmax_body = \"9KiB\"");
    let text = text.replace("/log\"\n", "/another\"\nmax_bytes = \"5GiB\"\n");
    fs::write(bed.path("livebridge.toml"), text).unwrap();
    bed.order();
    bed.comes_to(APPLIED, 1.0);
    assert_eq!(all(), ["[\"t\"]", "[\"127.0.0.0/8\"]", "\"warn\"", "\"5GiB\""]);
    assert_eq!(waiting(), before, "these wait for the next start");
}

#[test]
fn callbacks_are_accepted_through_a_hundred_reloads() {
    let bed = TestBed::new("one aaaa");
    thread::scope(|scope| {
        let changing = scope.spawn(|| {
            for round in 0..100 {
                fs::write(bed.path("next"), format!("one aaaa\nr{round} second-{round}")).unwrap();
                fs::rename(bed.path("next"), bed.path("keys")).unwrap();
                bed.order();
                thread::sleep(Duration::from_millis(5));
            }
        });
        while !changing.is_finished() {
            assert_eq!(bed.send("aaaa"), 200);
        }
    });
    assert!(bed.value(APPLIED) >= 10.0);
    assert_eq!(bed.value(REFUSED).to_string(), "0");
}
