//! Commands on damaged, wrong or changing input: they report what they leave out, and exit with an
//! error.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::configured_bridge::ConfiguredBridge;
use crate::support::kafka::{UNREACHABLE, mock_kafka};
use crate::support::kafka_gate::KafkaGate;
use crate::support::log::{OpenLog, record, segment_dirs};
use crate::support::mount::Mount;
use crate::support::process::{Finished, Running, livebridge, run};
use crate::support::tls::Identity;
use crate::support::{TIME_LIMIT, files, skip, wait_until, wire};

fn wal(dir: &Path, arguments: &[&str]) -> Finished {
    run(livebridge(&["wal"]).args(arguments).env("LIVEBRIDGE_WAL_DIR", dir))
}

/// A stopped log with `count` records, each in a frame of its own.
fn make_log(dir: &Path, count: u64) {
    let log = OpenLog::open(dir).unwrap();
    for number in 0..count {
        log.append_all(vec![record(number, 300)]);
    }
    log.close().unwrap();
}

/// A quarantined record of the log in `dir`.
fn quarantine_record(dir: &Path) {
    let mut bytes = BytesMut::new();
    record(7, 0).encode(&mut bytes);
    fs::create_dir(dir.join("quarantine")).unwrap();
    fs::write(dir.join("quarantine/held.record"), &bytes).unwrap();
}

#[test]
fn export_and_status_report_records_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    make_log(dir.path(), 20);
    let data = segment_dirs(dir.path())[0].join("db");
    let mut bytes = fs::read(&data).unwrap();
    let tenth = memchr::memmem::find(&bytes, b"{\"number\":9}").unwrap();
    bytes[tenth] ^= 1;
    fs::write(&data, bytes).unwrap();

    let reason = format!("1 records of {} cannot be read", data.display());
    for options in [&[][..], &["--unpublished"], &["--from", "1.10", "--to", "1.10"]] {
        let exported = wal(dir.path(), &[&["export"], options].concat());
        assert_eq!(exported.code, Some(1), "{exported:?}");
        assert!(exported.stderr.contains(&reason), "{exported:?}");
        assert_eq!(exported.stdout.lines().count(), if options.len() == 4 { 0 } else { 19 });
    }
    for options in [["--from", "1.11"], ["--to", "1.9"]] {
        let exported = wal(dir.path(), &[&["export"], &options[..]].concat());
        assert_eq!((exported.code, exported.stderr.as_str()), (Some(0), ""), "{options:?}");
    }
    let status = wal(dir.path(), &["status"]).stdout;
    assert!(status.contains("\n  unreadable 1 more wait"), "{status}");
    let status: Value =
        serde_json::from_str(&wal(dir.path(), &["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["unpublished"], &status["unreadable"]), (&19.into(), &1.into()));
}

#[test]
fn check_reports_records_at_the_end_of_the_log_that_cannot_be_read() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "");
    make_log(&bridge.wal(), 5);
    // The others are spare ones without records.
    let mut segments = segment_dirs(&bridge.wal()).into_iter();
    let data = segments.next().unwrap().join("db");
    segments.for_each(|spare| fs::remove_dir_all(spare).unwrap());
    let checked = run(&mut bridge.command(&["check", "--offline"]));
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let mut bytes = fs::read(&data).unwrap();
    let third = memchr::memmem::find(&bytes, b"{\"number\":2}").unwrap();
    bytes[third] ^= 1;
    fs::write(&data, bytes).unwrap();
    let checked = run(&mut bridge.command(&["check", "--offline"]));
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains("FAIL  log          records at its end"), "{checked:?}");
}

#[test]
fn a_directory_without_a_log_is_not_taken_for_an_empty_log() {
    let home = tempfile::tempdir().unwrap();
    for dir in [home.path().join("missing"), home.path().to_owned()] {
        for command in
            [&["gaps"][..], &["gaps", "--drop"], &["quarantine"], &["release"], &["damaged"]]
        {
            let finished = wal(&dir, command);
            assert_eq!(finished.code, Some(1), "{command:?}: {finished:?}");
            let reason = format!("livebridge: there is no log in {}\n", dir.display());
            assert_eq!((finished.stdout.as_str(), finished.stderr), ("", reason), "{command:?}");
        }
    }
}

#[test]
fn release_by_another_user_than_the_logs_is_rejected() {
    const OTHER: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return skip::skip("release by root", &"changing owners needs root");
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("log");
    make_log(&dir, 1);
    quarantine_record(&dir);
    let own = home.path().join("own");
    assert!(Command::new("cp").arg("-a").args([&dir, &own]).status().unwrap().success());
    assert_eq!(wal(&own, &["release"]).stdout, "1 record put back into the log\n");
    let change = Command::new("chown").args(["-R", "65534"]).arg(&dir).status();
    assert!(change.unwrap().success());
    let before = files(&dir);
    let released = wal(&dir, &["release"]);
    assert_eq!(released.code, Some(64), "{released:?}");
    assert!(released.stderr.contains("setpriv --reuid=65534"), "{released:?}");
    assert_eq!(files(&dir), before);
    let of_root: Vec<_> =
        before.into_iter().filter(|path| fs::metadata(path).unwrap().uid() != OTHER).collect();
    assert!(of_root.is_empty(), "{of_root:?}");
    // The owner of the directory does not matter: that of a mounted volume is often root.
    chown(&own, Some(OTHER), None).unwrap();
    assert_eq!(wal(&own, &["release"]).stdout, "nothing is in quarantine\n");
}

#[test]
fn replay_of_a_pipe_is_rejected() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "");
    let mut command = bridge.command(&["replay", "--yes", "--export=/dev/stdin"]);
    let replayed = run(command.stdin(Stdio::piped()));
    assert_eq!(replayed.code, Some(64), "{replayed:?}");
    assert!(replayed.stderr.contains("is not a regular file"), "{replayed:?}");
    let replayed =
        run(bridge.command(&["replay", "--yes"]).arg("--export").arg(bridge.path("none")));
    assert_eq!(replayed.code, Some(64), "{replayed:?}");
    let says = format!("cannot read --export {}: ", bridge.path("none").display());
    assert!(replayed.stderr.contains(&says), "{replayed:?}");
}

#[test]
fn replay_fails_when_the_export_changes_while_it_is_read() {
    let kafka = mock_kafka(1);
    let gate = KafkaGate::to(kafka.brokers());
    let bridge = ConfiguredBridge::new(&gate.address.to_string(), "");
    make_log(&bridge.wal(), 5);
    let export = bridge.path("export.jsonl");
    fs::write(&export, wal(&bridge.wal(), &["export"]).stdout).unwrap();
    let mut replay =
        Running::start(bridge.command(&["replay", "--yes"]).arg("--export").arg(&export));
    // The events are counted before the command connects to Kafka, and sent afterwards.
    wait_until(TIME_LIMIT, || gate.connections() > 0, || replay.stderr.text());
    File::create(&export).unwrap();
    gate.open();
    assert_eq!(replay.wait(), Some(1), "{}{}", replay.stdout.text(), replay.stderr.text());
    let text = replay.stdout.text();
    assert!(
        text.contains("5 records, 5 events selected") && text.contains("0 events sent"),
        "{text}"
    );
    let text = replay.stderr.text();
    assert!(text.contains("only 0 of 5 events were found a second time"), "{text}");
}

#[test]
fn check_reports_certificates_that_have_expired() {
    let home = tempfile::tempdir().unwrap();
    let kafka = mock_kafka(1);
    for (year, code, says) in [
        (2100, 0, "ok    certificate  tls.certificate expires on 2100-12-31"),
        (2020, 1, "FAIL  certificate  tls.certificate expired on 2020-12-31"),
    ] {
        let identity = Identity::write(home.path(), year);
        let bridge = ConfiguredBridge::new(&kafka.brokers(), &identity.section());
        let checked = run(&mut bridge.command(&["check"]));
        assert_eq!(checked.code, Some(code), "{checked:?}");
        assert!(checked.stdout.contains(says), "{checked:?}");
    }
    // Callbacks are accepted without Kafka.
    let client = format!(
        "kafka.client.\"ssl.certificate.location\" = {:?}",
        Identity::write(home.path(), 2020).certificate
    );
    let checked = run(&mut ConfiguredBridge::new(&kafka.brokers(), &client).command(&["check"]));
    assert_eq!(checked.code, Some(69), "{checked:?}");
    let says = "FAIL  Kafka        ssl.certificate.location expired on 2020-12-31";
    assert!(checked.stdout.contains(says), "{checked:?}");
}

#[test]
fn the_status_page_reports_an_expired_certificate() {
    let home = tempfile::tempdir().unwrap();
    let identity = Identity::write(home.path(), 2020);
    let bridge = ConfiguredBridge::new(UNREACHABLE, &identity.section()).serve();
    let found = findings(&wire::get(bridge.admin, "/status").body);
    let expiry = |level: &str| (level.to_owned(), "LivebridgeCertificateExpiry".to_owned());
    assert!(
        found.iter().any(|(finding, title)| {
            *finding == expiry("critical") && title.contains("has expired")
        }),
        "{found:?}"
    );
    assert!(!found.iter().any(|(finding, _)| *finding == expiry("warning")), "{found:?}");
}

/// Level, alert and title of each finding.
fn findings(status: &str) -> Vec<((String, String), String)> {
    let status: Value = serde_json::from_str(status).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = status["health"]["findings"].as_array().unwrap().iter();
    findings.map(|f| ((text(&f["level"]), text(&f["alert"])), text(&f["title"]))).collect()
}

#[test]
fn the_status_page_of_a_draining_instance_says_that_callbacks_are_accepted() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "http.drain = \"1m\"").serve();
    bridge.process.signal(Signal::TERM);
    let ready = || wire::get(bridge.admin, "/readyz").status;
    wait_until(TIME_LIMIT, || ready() == 503, || "it does not drain");
    assert_eq!(bridge.post(r#"{"event_type":1,"stream_id":"a"}"#).status, 200);
    let status = wire::get(bridge.admin, "/status").body;
    let found = findings(&status);
    assert!(!status.contains("are rejected"), "{found:?}");
    assert!(found.iter().all(|((level, _), _)| level == "warning"), "{found:?}");
    assert!(found.iter().any(|(_, title)| title.starts_with("It stops soon")), "{found:?}");
}

#[test]
fn check_leaves_no_file_on_a_full_disk() {
    let Some(mount) = Mount::new("check on a full disk", "size=64k") else { return };
    let _filler = mount.fill(0);
    let bridge = ConfiguredBridge::new(UNREACHABLE, &format!("wal.dir = {:?}", mount.path()));
    let checked = run(&mut bridge.command(&["check", "--offline"]));
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains("FAIL  directory    cannot write"), "{checked:?}");
    assert_eq!(files(mount.path()), [mount.path().join("filler")]);
}

#[test]
fn send_of_a_file_without_callbacks_sends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/callback", listener.local_addr().unwrap());
    let home = tempfile::tempdir().unwrap();
    for text in ["", "\n \n"] {
        let file = home.path().join("callbacks.jsonl");
        fs::write(&file, text).unwrap();
        let options = ["send", "--url", &url, "--count", "2", "--retries", "0", "--file"];
        let mut sending = Running::start(livebridge(&options).arg(&file));
        assert_eq!(sending.wait(), Some(64), "{}", sending.stderr.text());
        sending.stderr.wait_for_text("--file contain no callbacks");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "no connection was made");

    let bridge = ConfiguredBridge::new(UNREACHABLE, "").serve();
    let file = bridge.path("callbacks.jsonl");
    fs::write(&file, "{\"event_type\":1}\n\n{\"event_type\":1,\"n\":2}\n\n").unwrap();
    let url = format!("http://{}/callback", bridge.intake);
    let sent = run(livebridge(&["send", "--retries", "0", "--url", &url, "--file"]).arg(&file));
    assert_eq!(sent.code, Some(0), "{sent:?}");
    assert!(sent.stdout.starts_with("2 × 200\n"), "{sent:?}");
}

#[test]
fn ready_accepts_the_addresses_that_serve_accepts() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "").serve();
    let padded = format!(" {}\n", bridge.admin);
    let mut command = livebridge(&["ready"]);
    let ready = run(command.env("LIVEBRIDGE_ADMIN_LISTEN", padded));
    assert_eq!(ready.code, Some(0), "{ready:?}");
}

#[test]
fn a_reload_reports_all_that_it_does_not_apply_and_new_notes() {
    const WAITS: &str = "applied at the next start";
    let bridge = ConfiguredBridge::new(UNREACHABLE, "log.format = \"json\"").serve();
    let line = |section: &str| {
        bridge.process.stderr.wait_for(|line| {
            let waits =
                line.contains(WAITS) && line.contains(&format!("\"sections\":\"{section}\""));
            waits.then(|| line.to_owned())
        });
    };
    for (change, section) in [
        ("log.format = \"text\"", "log"),
        ("admin.token = \"another\"", "admin"),
        ("kafka.client.\"sasl.password\" = \"another\"", "kafka"),
        ("kafka.topics.push = \"another\"", "kafka"),
    ] {
        bridge.reload(change);
        line(section);
    }
    // What waits is reported again at the next reload.
    bridge.reload("log.format = \"text\"\nkafka.topics.push = \"another\"");
    line("kafka, log");
    bridge.reload("dedup.window = \"10s\"");
    bridge.process.stderr.wait_for_text("those that come later than 10s are published again");
    bridge.reload("");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!bridge.process.stderr.text().contains("\"another\""));
}
