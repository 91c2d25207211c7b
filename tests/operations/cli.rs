//! The command line as users run it: dev, send, check, wal.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::kafka::mock::MockKafka;
use livebridge::wal::LogId;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::configured_bridge::ConfiguredBridge;
use crate::support::intake::KEY;
use crate::support::kafka::{UNREACHABLE, mock_kafka, topics};
use crate::support::log::segment_dirs;
use crate::support::process::{Finished, Running, livebridge, run};
use crate::support::tls::Identity;
use crate::support::{TIME_LIMIT, log, metrics, wait_until, wire};

/// A configuration without Kafka.
fn without_kafka(more: &str) -> ConfiguredBridge {
    ConfiguredBridge::new(UNREACHABLE, more)
}

/// The output of `send` after `count` callbacks were answered 200.
fn all_accepted(count: u32) -> String {
    format!("{count} × 200\n")
}

mod dev {
    use super::*;

    /// A `dev` process with its own temporary directory.
    fn start(arguments: &[&str]) -> (Running, TempDir) {
        let temporary = tempfile::tempdir().unwrap();
        let listen = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut command = livebridge(&[&listen, arguments].concat());
        (Running::start(command.env("TMPDIR", temporary.path())), temporary)
    }

    #[test]
    fn prints_an_event_of_every_topic_and_a_working_curl_command() {
        let (mut dev, temporary) = start(&["--samples", "50"]);
        let curl = dev.stdout.wait_for(|line| {
            line.trim_start().starts_with("curl ").then(|| line.trim().to_owned())
        });
        let answer = Command::new("sh").args(["-c", &format!("{curl} -s")]).output().unwrap();
        assert!(answer.status.success(), "{answer:?}");
        assert_eq!(String::from_utf8(answer.stdout).unwrap(), "{\"code\":0}");
        dev.stdout.wait_for(|line| {
            (line.starts_with("live.push ") && line.contains("key=my-stream")).then_some(())
        });
        for (_, name) in EventType::known() {
            let topic = format!("live.{name} ");
            dev.stdout.wait_for(|line| line.starts_with(&topic).then_some(()));
        }

        // Every fourth sample is sent twice, and no event is delivered twice.
        let admin = dev.address("admin listening");
        let absorbed = metrics::scrape(admin)["livebridge_duplicates_total"];
        assert!(absorbed >= 1.0, "{absorbed}");
        dev.signal(Signal::INT);
        assert_eq!(dev.wait(), Some(0), "{}", dev.stderr.text());
        let text = dev.stdout.text();
        let events: Vec<&str> = text.lines().filter(|line| line.contains(" id=")).collect();
        let places: BTreeSet<String> = events
            .iter()
            .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(places.len(), events.len(), "each was printed once");
        let last = text.lines().last().unwrap();
        assert_eq!(last, format!("{} events were published.", events.len()));
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
        assert!(left.is_empty(), "no file remains: {left:?}");
    }

    #[test]
    fn stops_after_the_given_duration() {
        let started = Instant::now();
        let (mut dev, _temporary) = start(&["--for", "1s"]);
        assert_eq!(dev.wait(), Some(0), "{}", dev.stderr.text());
        assert!(started.elapsed() >= Duration::from_secs(1));
        let text = dev.stdout.text();
        assert!(text.contains("start with --samples 2"), "{text}");
        assert_eq!(text.lines().last(), Some("0 events were published."));
    }

    #[test]
    fn keeps_the_log_in_the_given_directory_and_ignores_environment_settings() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("kept");
        let (mut dev, _temporary) = start(&["--for", "500ms", "--dir", log.to_str().unwrap()]);
        assert_eq!(dev.wait(), Some(0), "{}", dev.stderr.text());
        assert!(log.is_dir());
        assert!(dev.stdout.text().contains("(key \"dev-callback-key\")"));
    }

    #[test]
    fn reads_keys_from_a_file_and_prints_none_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        fs::write(&keys, "tencent s3cret-key\n").unwrap();
        let (dev, _temporary) = start(&["--keys-file", keys.to_str().unwrap(), "--samples", "20"]);
        dev.stdout.wait_for(|line| line.starts_with("live.").then_some(()));
        let url = format!("http://{}/callback", dev.address("intake listening"));
        let mut send = livebridge(&["send", "--url", &url, "--retries", "0"]);
        let (theirs, ours) = ("s3cret-key", "dev-callback-key");
        assert_eq!(run(send.env("LIVEBRIDGE_SEND_KEY", theirs)).code, Some(0));
        assert_eq!(run(send.env("LIVEBRIDGE_SEND_KEY", ours)).code, Some(1));
        assert!(!dev.stdout.text().contains(theirs) && !dev.stderr.text().contains(theirs));
    }

    #[test]
    fn accepts_what_send_sends() {
        let (dev, _temporary) = start(&[]);
        let url = format!("http://{}/callback", dev.address("intake listening"));
        let admin = dev.address("admin listening");
        let send_with = |arguments: &[&str]| -> Finished {
            let mut command = livebridge(&[&["send", "--url", &url], arguments].concat());
            run(command.env("LIVEBRIDGE_SEND_KEY", "dev-callback-key"))
        };

        // All types in turn, without a pause, on several connections.
        let sent = send_with(&["--count", "360", "--connections", "4"]);
        assert_eq!(sent.code, Some(0), "{sent:?}");
        assert!(sent.stdout.starts_with(&all_accepted(360)), "{sent:?}");
        assert!(sent.stdout.contains("360 callbacks in "), "{sent:?}");
        assert!(sent.stdout.contains(" 0 needed more than one attempt"), "{sent:?}");
        let series = metrics::scrape(admin);
        for (_, name) in EventType::known() {
            let taken =
                &series[&format!("livebridge_callbacks_accepted_total{{event_type=\"{name}\"}}")];
            assert_eq!(taken.to_string(), "20", "{name}");
        }

        // Each event is sent several times: every copy is accepted, one is delivered.
        let sent = send_with(&["--event-type", "push", "--count", "5", "--repeat", "3"]);
        assert_eq!((sent.code, sent.stdout.lines().next()), (Some(0), Some("15 × 200")));
        let counts = || {
            let series = metrics::scrape(admin);
            let published = series["livebridge_published_total{event_type=\"push\"}"];
            (published.to_string(), series["livebridge_duplicates_total"].to_string())
        };
        let expected = ("25".to_owned(), "10".to_owned());
        wait_until(TIME_LIMIT, || counts() == expected, || format!("{:?}", counts()));

        // Selected by number, at a fixed rate.
        let started = Instant::now();
        let sent = send_with(&["--event-type", "100", "--count", "11", "--rate", "20"]);
        assert!(sent.stdout.starts_with(&all_accepted(11)), "{sent:?}");
        assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());

        // A closed connection without a response also causes a retry.
        let sent = send_with(&["--count", "0"]);
        assert_eq!(
            (sent.code, sent.stdout.starts_with("0 callbacks")),
            (Some(0), true),
            "{sent:?}"
        );

        // A rejection is printed with its status and reason.
        let mut command = livebridge(&["send", "--url", &url, "--count", "2", "--retries", "0"]);
        let rejected = run(command.env("LIVEBRIDGE_SEND_KEY", "another"));
        assert_eq!(rejected.code, Some(1));
        let first = rejected.stdout.lines().next().unwrap();
        assert!(first.starts_with("2 × 401 {\"code\":401,"), "{first}");
        let mut command = livebridge(&["send", "--url", &url, "--retries", "0"]);
        let unsigned = run(&mut command);
        assert_eq!(unsigned.code, Some(1));
        assert!(unsigned.stdout.contains("no signature"), "{unsigned:?}");
        let keyed = run(command.env("LIVEBRIDGE_SEND_KEY", "dev-callback-key"));
        assert_eq!(keyed.code, Some(0), "{keyed:?}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        fs::write(&file, "dev-callback-key\n").unwrap();
        let keyed = send_with(&["--key-file", file.to_str().unwrap()]);
        assert_eq!(keyed.code, Some(0), "{keyed:?}");
    }
}

mod send {
    use super::*;

    /// A server that answers each request with the next of `answers` and stores the bodies.
    fn server(answers: &'static [&'static str]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/somewhere?a=b", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let mut length = 0;
                let mut line = String::new();
                loop {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                kept.lock().unwrap().push(String::from_utf8(body).unwrap());
                let mut stream = reader.into_inner();
                let _ = write!(stream, "{answer}Connection: close\r\n\r\n");
            }
        });
        (url, bodies)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n";

    #[test]
    fn retries_until_the_response_is_exactly_200() {
        let (url, bodies) = server(&[
            "HTTP/1.1 500 No\r\nContent-Length: 0\r\n",
            "HTTP/1.1 204 Not what Tencent takes\r\n",
            "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n",
            OK,
        ]);
        let mut command = livebridge(&[
            "send", "--url", &url, "--event-type", "push", "--retry-interval", "1100ms",
        ]);
        let sent = run(command.env("LIVEBRIDGE_SEND_KEY", "k"));
        assert_eq!(sent.code, Some(0), "{sent:?}");
        assert!(sent.stdout.starts_with(&all_accepted(1)), "{sent:?}");
        assert!(sent.stdout.contains(" 1 needed more than one attempt"), "{sent:?}");
        let tries: Vec<Value> =
            bodies.lock().unwrap().iter().map(|body| serde_json::from_str(body).unwrap()).collect();
        assert_eq!(tries.len(), 4);
        assert_ne!(tries[0]["t"], tries[3]["t"], "signed anew");
        assert_ne!(tries[0]["sign"], tries[3]["sign"]);
        assert_eq!(tries[0]["sequence"], tries[3]["sequence"], "and the same event");
    }

    #[test]
    fn gives_up_after_the_last_attempt_and_fails() {
        let (url, bodies) = server(&["HTTP/1.1 503 Full\r\nContent-Length: 0\r\n"; 3]);
        let sent = run(&mut livebridge(&[
            "send", "--url", &url, "--retries", "2", "--retry-interval", "1ms",
        ]));
        assert_eq!(sent.code, Some(1), "{sent:?}");
        assert!(sent.stdout.starts_with("1 × 503"), "{sent:?}");
        assert_eq!(bodies.lock().unwrap().len(), 3);
    }

    #[test]
    fn sends_files_unchanged_and_jsonl_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let (one, many) = (dir.path().join("one.json"), dir.path().join("many.jsonl"));
        fs::write(&one, "{ \"a\" : 1.50 }\r\n").unwrap();
        fs::write(&many, "{\"b\":1}\n{\"b\":2}\n").unwrap();
        let (url, bodies) = server(&[OK; 6]);
        let sent = run(&mut livebridge(&[
            "send",
            "--url",
            &url,
            "--count",
            "2",
            "--file",
            one.to_str().unwrap(),
            many.to_str().unwrap(),
        ]));
        assert_eq!(sent.code, Some(0), "{sent:?}");
        let three = ["{ \"a\" : 1.50 }\r\n", "{\"b\":1}", "{\"b\":2}"];
        assert_eq!(*bodies.lock().unwrap(), [three, three].concat());
    }

    #[test]
    fn speaks_https_and_verifies_the_certificate() {
        let bridge = without_kafka("");
        let identity = Identity::write(&bridge.path(""), 2100);
        bridge.set(&identity.section());
        let serving = bridge.serve();
        let url = format!("https://localhost:{}/callback", serving.intake.port());
        let another = tempfile::tempdir().unwrap();
        for (trusted, code, says) in [
            (&identity, 0, "1 × 200"),
            (&Identity::write(another.path(), 2100), 1, "1 × cannot connect: invalid peer cert"),
        ] {
            let mut command = livebridge(&["send", "--retries", "0", "--url", &url]);
            command.env("LIVEBRIDGE_SEND_KEY", KEY).env("SSL_CERT_FILE", &trusted.certificate);
            let sent = run(&mut command);
            assert_eq!(sent.code, Some(code), "{sent:?}");
            assert!(sent.stdout.starts_with(says), "{sent:?}");
        }
    }

    #[test]
    fn rejects_invalid_arguments_with_the_reason() {
        for (arguments, code, says) in [
            (&["--url", "ftp://127.0.0.1/"][..], 64, "not a URL"),
            (&["--url", "127.0.0.1:8080"], 64, "not a URL"),
            (&["--event-type", "pull"], 64, "\"pull\""),
            (&["--key", "k"], 64, "--key-file"),
            (&["--key-file", "/nowhere/key"], 64, "/nowhere/key"),
            (&["--key-file", "/dev/null"], 64, "the callback key is empty"),
            (&["--file", "/nowhere/body.json"], 64, "/nowhere/body.json"),
            (&["--rate", "-5"], 64, "--rate"),
            (&["--rate", "NaN"], 64, "--rate"),
            (&["--rate", "1e-300"], 64, "--rate"),
        ] {
            let sent = run(&mut livebridge(&[&["send"], arguments].concat()));
            assert_eq!(sent.code, Some(code), "{arguments:?}: {sent:?}");
            assert!(sent.stderr.contains(says), "{arguments:?}: {sent:?}");
        }
        let url = format!("http://{UNREACHABLE}/");
        let sent = run(&mut livebridge(&["send", "--url", &url, "--retries", "0"]));
        assert_eq!(sent.code, Some(1));
        assert!(sent.stdout.starts_with("1 × cannot connect"), "{sent:?}");
        assert!(sent.stdout.contains("\n1 callback in "), "{sent:?}");
    }
}

mod check {
    use super::*;

    #[test]
    fn passes_on_a_working_setup_and_leaves_no_traces() {
        let kafka = mock_kafka(1);
        let bridge = ConfiguredBridge::new(&kafka.brokers(), "kafka.create_topics = true");
        let mut check = bridge.command(&["check"]);
        // A setting of producers, about which librdkafka warns in consumers and admin clients.
        check.env("LIVEBRIDGE_KAFKA_CLIENT_COMPRESSION_TYPE", "lz4");
        let checked = run(&mut check);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        assert!(!checked.stderr.contains("log.file"), "{checked:?}");
        for what in [
            "config", "directory", "disk", "log", "addresses", "clock", "keys", "Kafka", "topics",
            "transactions",
        ] {
            let line = checked.stdout.lines().find(|line| line[6..].starts_with(what));
            assert!(line.is_some_and(|line| line.starts_with("ok ")), "{what}: {checked:?}");
        }
        assert!(checked.stdout.ends_with("11 checks, 0 failed\n"), "{checked:?}");
        assert!(
            !bridge.wal().exists(),
            "no directory is created either, because root would own it"
        );
    }

    #[test]
    fn explains_a_directory_of_another_user() {
        let dir = tempfile::tempdir().unwrap();
        // Where any user may run it.
        let program = dir.path().join("livebridge");
        let original = env!("CARGO_BIN_EXE_livebridge");
        fs::hard_link(original, &program)
            .or_else(|_| fs::copy(original, &program).map(drop))
            .unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, Permissions::from_mode(0o555)).unwrap();
        let keys = dir.path().join("keys");
        fs::write(&keys, "k").unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let user = if owner == 0 { 65532 } else { owner };
        let run_as_user = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).env_clear().env("LIVEBRIDGE_WAL_DIR", volume.join("log"));
            command.env("LIVEBRIDGE_CALLBACK_KEYS_FILE", &keys).uid(user).current_dir("/");
            run(command.env("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:0"))
        };
        let whose = |path: &Path, mode: &str| {
            format!("{} belongs to uid {owner}, gid {owner} with mode {mode}: ", path.display())
        };
        let [serve, check] = [&["serve"][..], &["check", "--offline"]].map(run_as_user);
        assert_eq!((serve.code, check.code), (Some(1), Some(1)), "{serve:?} {check:?}");
        for text in [&serve.stderr, &check.stdout] {
            assert!(text.contains("Permission denied"), "{text}");
            assert!(text.contains(&format!("runs as uid {user}, ")), "{text}");
            assert!(text.contains(&whose(&volume, "0555")), "{text}");
            assert!(text.contains(&format!("chown -R {user}:")), "{text}");
        }
        fs::set_permissions(&keys, Permissions::from_mode(0o200)).unwrap();
        let serve = run_as_user(&["serve"]);
        assert_eq!(serve.code, Some(64), "{serve:?}");
        assert!(serve.stderr.contains(&whose(&keys, "0200")), "{serve:?}");
    }

    #[test]
    fn finds_addresses_and_directories_with_which_serve_exits() {
        let bridge = without_kafka("");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("http.listen = \"{}\"", taken.local_addr().unwrap());
        for (more, code, says) in [
            ("http.listen = \"127.0.0.1:9\"\nadmin.listen = \":9\"", 64, "the port of http.listen"),
            ("wal.dir = \"\"", 64, "wal.dir"),
            ("http.listen = \"203.0.113.5:8080\"", 1, "this machine does not have the address"),
            (&taken, 0, "is in use: by a running instance, or"),
        ] {
            bridge.set(more);
            let checked = run(&mut bridge.command(&["check", "--offline"]));
            assert_eq!(checked.code, Some(code), "{more}: {checked:?}");
            assert!((checked.stdout + &checked.stderr).contains(says), "{more}");
        }
    }

    #[test]
    fn reports_missing_topics_that_it_may_not_create() {
        let topics = topics("live");
        let some: Vec<&str> =
            topics.all().into_iter().filter(|name| *name != "live.push").collect();
        let kafka = MockKafka::start(&some, 1, topics.ledger()).unwrap();
        let bridge = ConfiguredBridge::new(&kafka.brokers(), "");
        let checked = run(&mut bridge.command(&["check"]));
        assert_eq!(checked.code, Some(69), "{checked:?}");
        assert!(checked.stdout.contains("FAIL  topics"), "{checked:?}");
        assert!(
            checked.stdout.contains("live.push; create them or set kafka.create_topics = true")
        );
    }

    #[test]
    fn says_what_to_do_when_kafka_is_unreachable() {
        let bridge = without_kafka("");
        let checked = run(&mut bridge.command(&["check"]));
        assert_eq!(checked.code, Some(69), "callbacks would be accepted: {checked:?}");
        let offline = run(&mut bridge.command(&["check", "--offline"]));
        assert_eq!(offline.code, Some(0), "{offline:?}");
        assert!(!offline.stdout.contains("Kafka"), "{offline:?}");
        let line = checked.stdout.lines().find(|line| line.starts_with("FAIL")).unwrap();
        assert!(line.contains("Kafka does not answer"), "{line}");
        assert!(line.contains("check kafka.brokers and the network"), "{line}");
        assert!(checked.stdout.ends_with(" 1 failed\n"), "{checked:?}");
    }

    #[test]
    fn warns_about_the_key_of_the_documentation() {
        let bridge = without_kafka("");
        let mut command = bridge.command(&["check", "--offline"]);
        let checked = run(command.env("LIVEBRIDGE_CALLBACK_KEYS", "a-real-key,change-me"));
        assert_eq!(checked.code, Some(1), "{checked:?}");
        let line = checked.stdout.lines().find(|line| line.starts_with("FAIL")).unwrap();
        assert!(line.contains("keys") && line.contains("key-2 is change-me"), "{line}");
    }

    #[test]
    fn warns_about_world_readable_secret_files() {
        let bridge = without_kafka("");
        let tls = Identity::write(&bridge.path(""), 2100).section();
        fs::write(bridge.path("keys"), "a-key").unwrap();
        let keys_file = format!("callback.keys_file = \"{}\"", bridge.path("keys").display());
        bridge.set(&format!("callback.keys = [\"k\"]\n{keys_file}\n{tls}"));
        let secret = ["keys", "livebridge.toml", "tls.key"];
        let set_modes = |files: &[&str], mode: u32| {
            for file in files {
                fs::set_permissions(bridge.path(file), Permissions::from_mode(mode)).unwrap();
            }
        };
        let notes = || {
            let checked = run(&mut bridge.command(&["check", "--offline"]));
            assert_eq!(checked.code, Some(0), "harmless without other users: {checked:?}");
            let lines = checked.stdout.lines().filter(|line| line.starts_with("note  files "));
            let mut lines: Vec<String> = lines.map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        set_modes(&["tls.crt"], 0o644);
        set_modes(&secret, 0o640);
        assert_eq!(notes(), [""; 0], "group access is allowed, and certificates are public");
        set_modes(&secret, 0o604);
        let keys = ["callback.keys_file", "callback.keys", "tls.private_key"];
        for ((line, file), key) in notes().iter().zip(secret).zip(keys) {
            let path = bridge.path(file).display().to_string();
            assert!(line.contains(&format!("read {path}, which contains {key}; ")), "{line}");
            assert!(line.ends_with(&format!("chmod o-r {path}")), "{line}");
        }
        assert_eq!(notes().len(), secret.len());
        // The file then contains no key itself.
        bridge.set(&format!("{keys_file}\n{tls}"));
        assert_eq!(notes().len(), secret.len() - 1);
    }

    #[test]
    fn says_what_to_do_about_an_unwritable_directory() {
        let kafka = mock_kafka(1);
        let bridge = ConfiguredBridge::new(&kafka.brokers(), "");
        fs::write(bridge.wal(), "a file where the directory belongs").unwrap();
        let checked = run(&mut bridge.command(&["check"]));
        assert_eq!(checked.code, Some(1));
        let line = checked.stdout.lines().find(|line| line.contains("directory")).unwrap();
        assert!(line.starts_with("FAIL") && line.ends_with("set wal.dir"), "{line}");
    }
}

mod a_setting_that_librdkafka_rejects {
    use super::*;

    /// Invalid settings in `[kafka.client]`, and the message for each.
    const FAULTS: [(&str, &str); 4] = [
        ("sasl.passwrod = \"hunter2-s3cret\"", "did you mean sasl.password?"),
        ("\"sasl.jaas.config\" = \"password='hunter2-s3cret'\"", "sasl.username and sasl.password"),
        (
            "security.protocol = \"ssl\"\nssl.ca.location = \"/nowhere/ca.pem\"\n\
             ssl.key.password = \"hunter2-s3cret\"",
            "/nowhere/ca.pem",
        ),
        ("security.protocol = \"ssl\"\nssl.ca.pem = \"hunter2-s3cret\"", "ssl.ca.pem"),
    ];

    #[test]
    fn fails_every_command_with_exit_code_64_and_its_value_is_never_printed() {
        for (fault, says) in FAULTS {
            let bridge = without_kafka(&format!("[kafka.client]\n{fault}"));
            for arguments in [&["serve"][..], &["check"], &["check", "--offline"], &["config"]] {
                let finished = run(bridge.command(arguments).env("LIVEBRIDGE_LOG_LEVEL", "trace"));
                assert_eq!(finished.code, Some(64), "{arguments:?}: {finished:?}");
                assert!(finished.stderr.contains(says), "{arguments:?}: {finished:?}");
                for text in [&finished.stdout, &finished.stderr] {
                    assert!(!text.contains("hunter2"), "{arguments:?}: {text}");
                }
            }
            assert!(!bridge.wal().exists(), "serve did not start");
        }
    }

    #[test]
    fn does_not_mask_common_words_that_are_values_of_unknown_settings() {
        let client = "[kafka.client]\nno.such.setting = \"kafka\"\nother.setting = 8080\n\
                      third.setting = \"hunter2-s3cret\"\n";
        let bridge = without_kafka(client);
        for arguments in [&["check"][..], &["check", "--offline"], &["serve"], &["config"]] {
            let finished = run(&mut bridge.command(arguments));
            assert_eq!(finished.code, Some(64), "{arguments:?}: {finished:?}");
            let text = [finished.stdout, finished.stderr].concat();
            assert!(text.contains("kafka.client: librdkafka has no setting"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn at_run_time_is_an_outage_and_does_not_stop_the_intake() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Identity::write(dir.path(), 2100).certificate;
        let client = format!(
            "[kafka.client]\nsecurity.protocol = \"ssl\"\nssl.ca.location = \"{}\"\n\
             ssl.key.password = \"hunter2-s3cret\"\n",
            authority.display()
        );
        let mut serving = without_kafka(&client).serve();
        let cause = |text: &str| {
            serving.process.stderr.wait_for(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                let cause = line["cause"].as_str().filter(|cause| cause.contains(text))?;
                Some((line["level"].clone(), line["message"].clone(), cause.to_owned()))
            })
        };
        cause("Kafka does not answer");
        // As when a volume with the file is unmounted.
        fs::remove_file(&authority).unwrap();
        let (level, message, found) = cause("kafka.client: librdkafka rejects the settings");
        assert_eq!(level, "ERROR");
        assert!(message.as_str().unwrap().contains("callbacks are still accepted"), "{message}");
        assert!(found.contains("ssl.ca.location"), "{found}");
        let body = r#"{"event_type":1,"stream_id":"a"}"#;
        for _ in 0..3 {
            assert_eq!(serving.post(body).status, 200);
        }
        assert_eq!(wire::get(serving.admin, "/readyz").status, 200);
        serving.process.stop();
        let lines = serving.process.stderr.text();
        assert!(!lines.contains("hunter2"), "{lines}");
    }

    #[test]
    fn is_rejected_by_a_running_instance_which_keeps_serving() {
        let mut serving = without_kafka("").serve();
        for (fault, says) in FAULTS {
            serving.reload(&format!("[kafka.client]\n{fault}"));
            serving.process.stderr.wait_for(|line| {
                (line.contains("new configuration rejected") && line.contains(says)).then_some(())
            });
        }
        let body = r#"{"event_type":1,"stream_id":"a"}"#;
        assert_eq!(serving.post(body).status, 200);
        serving.process.stop();
        let lines = serving.process.stderr.text();
        assert!(!lines.contains("hunter2"), "{lines}");
    }
}

mod wal {
    use super::*;

    #[test]
    fn can_be_read_while_serve_writes_it() {
        let serving = without_kafka("").serve();
        let dir = serving.wal();
        let wal =
            |command: &str| run(&mut livebridge(&["wal", command, "--dir", dir.to_str().unwrap()]));

        let status = wal("status");
        assert_eq!(status.code, Some(0), "{status:?}");
        let mut lines = status.stdout.lines();
        let log = lines.next().unwrap().strip_prefix("log          ").unwrap();
        assert!(LogId::parse(log).is_some(), "{status:?}");
        assert_eq!(lines.next(), Some("records      0, of which 0 wait for Kafka"));
        assert!(lines.next().unwrap().starts_with("on disk  "), "{status:?}");
        assert_eq!(lines.next(), Some("quarantined  0"));
        assert_eq!(wal("export").stdout, "");

        let bodies = [
            r#"{"event_type":1,"stream_id":"一","event_time":1703731478,"n":1.50}"#,
            r#"{"event_type":1,"stream_id":null}"#,
            r#"{"event_type":"1", "stream_id":"a"}"#,
        ];
        for body in bodies {
            assert_eq!(serving.post(body).status, 200);
        }
        let exported = wal("export");
        assert_eq!(exported.code, Some(0), "{exported:?}");
        let lines: Vec<Value> =
            exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| &line["body"]).collect::<Vec<_>>(), bodies);
        let names: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
        let expected =
            ["body", "event_type", "has_stream", "id", "key", "lsn", "occurred_at", "received_at"];
        assert_eq!(names, expected);
        assert_eq!(lines[0]["event_type"], 1);
        assert_eq!(lines[0]["key"], "一");
        assert_eq!(lines[0]["occurred_at"], "2023-12-28T02:44:38.000Z");
        assert_eq!((&lines[1]["key"], &lines[1]["occurred_at"]), (&Value::Null, &Value::Null));
        for (number, line) in lines.iter().enumerate() {
            let lsn = line["lsn"].as_str().unwrap();
            assert!(lsn.ends_with(&format!(".{}", number + 1)), "{lsn}");
            assert_eq!(line["id"].as_str().unwrap().len(), 32);
        }
        let status = wal("status");
        let mut lines = status.stdout.lines().skip(1);
        assert_eq!(lines.next(), Some("records      3, of which 3 wait for Kafka"));
        assert_eq!(lines.next(), Some("  push                 3"));
        assert!(lines.next().unwrap().starts_with("received     20"), "{status:?}");
        assert!(lines.next().unwrap().starts_with("on disk  "), "{status:?}");
        assert_eq!(lines.next(), Some("quarantined  0"));

        // The directory can also be set by the variable that serve reads.
        let mut command = livebridge(&["wal", "status"]);
        let by_variable = run(command.env("LIVEBRIDGE_WAL_DIR", &dir));
        assert_eq!(by_variable.stdout, status.stdout);
        // And by the file and the default of an image, as for serve.
        let file = serving.path("wal.toml");
        fs::write(&file, format!("[wal]\ndir = {:?}\n", dir.to_str().unwrap())).unwrap();
        let by_file = run(livebridge(&["wal", "status", "--config"]).arg(&file));
        assert_eq!(by_file.stdout, status.stdout, "{by_file:?}");
        let mut command = livebridge(&["wal", "status"]);
        let by_default = run(command.env("LIVEBRIDGE_DEFAULT_WAL_DIR", &dir));
        assert_eq!(by_default.stdout, status.stdout);
        // serve is not affected.
        assert_eq!(serving.post(bodies[0]).status, 200);
    }

    fn wal(dir: &Path, arguments: &[&str]) -> Finished {
        let mut command = livebridge(&["wal"]);
        run(command.args(arguments).env("LIVEBRIDGE_WAL_DIR", dir))
    }

    fn json(dir: &Path, arguments: &[&str]) -> Value {
        let finished = wal(dir, arguments);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"))
    }

    /// A stopped bridge whose log has a push, an interrupt and a push.
    fn stopped() -> ConfiguredBridge {
        let bridge = without_kafka("");
        let mut serving = bridge.serve();
        for (number, event_type) in [1, 0, 1].into_iter().enumerate() {
            let t = Timestamp::now().as_millis() / 1000 + 1000;
            let sign = CallbackKey::new(KEY).unwrap().sign_hex(&t.to_string());
            let body = serde_json::json!(
                {"event_type": event_type, "stream_id": "s", "n": number, "t": t, "sign": sign}
            );
            assert_eq!(serving.post(&body.to_string()).status, 200);
        }
        // The spare segment is created beside the first callbacks.
        let has_spare = || segment_dirs(&bridge.wal()).len() == 2;
        wait_until(TIME_LIMIT, has_spare, || "there is no spare segment");
        serving.process.stop();
        bridge
    }

    #[test]
    fn is_printed_as_json_for_programs() {
        let bridge = stopped();
        let dir = bridge.wal();
        let status = json(&dir, &["status", "--json"]);
        assert_eq!(status["records"], 3);
        assert_eq!(status["unpublished"], 3);
        assert_eq!(status["by_event_type"], serde_json::json!({"push": 2, "interrupt": 1}));
        assert_eq!(status["quarantined"], 0);
        // One line per segment; the second is the spare segment.
        let lines = wal(&dir, &["list", "--json"]).stdout;
        let segment: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(segment["records"], 3);
        assert_eq!(segment["first_received"], status["received"][0]);
        let list = wal(&dir, &["list"]).stdout;
        let line = list.lines().nth(1).unwrap();
        assert!(line.starts_with("1 ") && line.contains(" 3 "), "{list}");
        let verified = json(&dir, &["verify", "--json"]);
        assert_eq!(verified, serde_json::json!({"records": 3, "missing": 0, "problems": []}));
    }

    #[test]
    fn can_be_exported_in_part() {
        let bridge = stopped();
        let dir = bridge.wal();
        let numbers = |arguments: &[&str]| -> Vec<u64> {
            let exported = wal(&dir, &[&["export"], arguments].concat());
            assert_eq!(exported.code, Some(0), "{exported:?}");
            let number = |line: &str| {
                let line: Value = serde_json::from_str(line).unwrap();
                let body: Value = serde_json::from_str(line["body"].as_str().unwrap()).unwrap();
                body["n"].as_u64().unwrap()
            };
            exported.stdout.lines().map(number).collect()
        };
        assert_eq!(numbers(&[]), [0, 1, 2]);
        assert_eq!(numbers(&["--from", "1.2"]), [1, 2]);
        assert_eq!(numbers(&["--from", "1.2", "--to", "1.2"]), [1]);
        assert_eq!(numbers(&["--event-type", "push"]), [0, 2]);
        assert_eq!(numbers(&["--event-type", "0", "--event-type", "relay"]), [1]);
        assert_eq!(numbers(&["--since", "1h", "--until", "2100-01-01T00:00:00Z"]), [0, 1, 2]);
        assert_eq!(numbers(&["--until", "1h"]), [0; 0]);
        assert_eq!(numbers(&["--since", "2100-01-01T00:00:00Z"]), [0; 0]);
        assert_eq!(numbers(&["--unpublished"]), [0, 1, 2]);
        for (option, wrong, says) in [
            ("--from", "twelve", "is no LSN such as 12.7"),
            ("--since", "yesterday", "nor a duration such as 2h"),
            ("--event-type", "pull", "the known ones are interrupt, push, "),
        ] {
            let rejected = wal(&dir, &["export", option, wrong]);
            assert_eq!(rejected.code, Some(64), "{rejected:?}");
            assert!(rejected.stderr.contains(says), "{rejected:?}");
        }
    }

    #[test]
    fn a_damaged_quarantined_record_is_named_and_the_others_are_released() {
        let bridge = stopped();
        let dir = bridge.wal();
        let quarantine = dir.join("quarantine");
        fs::create_dir(&quarantine).unwrap();
        let mut bytes = BytesMut::new();
        log::record(7, 0).encode(&mut bytes);
        fs::write(quarantine.join("good.record"), &bytes).unwrap();
        let damaged = quarantine.join("damaged.record");
        fs::write(&damaged, vec![0; bytes.len()]).unwrap();
        let names_it = |finished: &Finished| {
            assert_eq!(finished.code, Some(1), "{finished:?}");
            let line = format!("the quarantined record in {} cannot be read", damaged.display());
            assert!(finished.stderr.contains(&line), "{finished:?}");
        };

        let listed = wal(&dir, &["quarantine"]);
        names_it(&listed);
        assert_eq!(listed.stdout.lines().count(), 1, "{listed:?}");
        let status = json(&dir, &["status", "--json"]);
        assert_eq!((&status["quarantined"], &status["quarantine_damaged"]), (&1.into(), &1.into()));
        let released = wal(&dir, &["release"]);
        names_it(&released);
        assert_eq!(released.stdout, "1 record put back into the log\n");
        assert_eq!(json(&dir, &["status", "--json"])["records"], 4);
        assert!(damaged.exists());
        names_it(&wal(&dir, &["release"]));
        fs::remove_file(&damaged).unwrap();
        assert_eq!(wal(&dir, &["release"]).stdout, "nothing is in quarantine\n");
    }

    #[test]
    fn that_has_lost_a_record_fails_verification() {
        let bridge = stopped();
        let dir = bridge.wal();
        let before = wal(&dir, &["verify"]);
        assert_eq!(before.stdout, "3 records in 2 segments, 0 missing\n");
        let nothing = "no damaged segment is kept\n";
        assert_eq!(wal(&dir, &["damaged", "--drop", "all"]).stdout, nothing);
        assert_eq!(wal(&dir, &["damaged", "--export", "all"]).stderr, nothing);
        let data = dir.join("segments/0000000001/db");
        let mut bytes = fs::read(&data).unwrap();
        let second = bytes.windows(5).position(|run| run == b"\"n\":1").unwrap();
        bytes[second] ^= 1;
        fs::write(&data, bytes).unwrap();
        let verified = wal(&dir, &["verify"]);
        assert_eq!(verified.code, Some(1), "{verified:?}");
        assert!(verified.stdout.contains(": 1 records are damaged"), "{verified:?}");
        assert!(verified.stdout.ends_with("\n2 records in 2 segments, 1 missing\n"));
        assert_eq!(json(&dir, &["verify", "--json"])["missing"], 1);
    }

    #[test]
    fn shows_progress_on_a_terminal_only() {
        let bridge = stopped();
        let dir = bridge.wal();
        let plain = wal(&dir, &["verify"]);
        assert_eq!(plain.stderr, "");
        let verify = format!("{} wal verify", env!("CARGO_BIN_EXE_livebridge"));
        let mut script = Command::new("script");
        script.args(["-qec", &verify, "/dev/null"]).env("LIVEBRIDGE_WAL_DIR", &dir);
        let Ok(output) = script.env("TERM", "xterm").stdin(Stdio::null()).output() else {
            return crate::support::skip::skip(
                "output on a terminal", &"script(1) is not installed",
            );
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("reading") && text.contains("0 missing"), "{text:?}");
    }

    #[test]
    fn that_does_not_exist_is_reported_and_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = dir.path().join("nothing");
        for command in ["export", "status", "list", "verify"] {
            let finished =
                run(&mut livebridge(&["wal", command, "--dir", nothing.to_str().unwrap()]));
            assert_eq!(finished.code, Some(1));
            let expected = format!("livebridge: there is no log in {}\n", nothing.display());
            assert_eq!(finished.stderr, expected);
        }
        assert!(!nothing.exists());
        fs::create_dir(&nothing).unwrap();
        fs::write(nothing.join("log"), "livebridge log, format 99, id x\n").unwrap();
        let finished = run(&mut livebridge(&["wal", "status", "--dir", nothing.to_str().unwrap()]));
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains("format"), "{finished:?}");
        assert!(LogId::parse("x").is_none());
    }

    #[test]
    fn export_ends_without_an_error_when_its_reader_closes_the_pipe() {
        let serving = without_kafka("").serve();
        let large = format!(r#"{{"event_type":1,"a":"{}"}}"#, "x".repeat(200_000));
        for _ in 0..3 {
            assert_eq!(serving.post(&large).status, 200);
        }
        let dir = serving.wal();
        let mut command = livebridge(&["wal", "export", "--dir", dir.to_str().unwrap()]);
        let mut export = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        export.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = export.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

#[test]
fn a_reader_that_closes_its_pipe_changes_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, code) in [
        (&["check", "--offline"][..], 0),
        (&["ready", "--admin", "127.0.0.1:1"], 1),
        (&["send", "--url", &format!("http://{UNREACHABLE}/"), "--retries", "0"], 1),
    ] {
        let mut command = livebridge(arguments);
        command.env("LIVEBRIDGE_CALLBACK_KEYS", "k").env("LIVEBRIDGE_SEND_KEY", "k");
        command.env("LIVEBRIDGE_WAL_DIR", dir.path().join("log"));
        let (reader, writer) = std::io::pipe().unwrap();
        let (error_reader, error_writer) = std::io::pipe().unwrap();
        drop((reader, error_reader));
        let status = command.stdout(writer).stderr(error_writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

mod ready {
    use super::*;

    #[test]
    fn reports_whether_callbacks_are_accepted() {
        let mut serving = without_kafka("").serve();
        let admin = serving.admin.to_string();
        let ready = run(&mut livebridge(&["ready", "--admin", &admin]));
        assert_eq!((ready.code, ready.stdout.as_str()), (Some(0), "ready\n"));
        // With the listen address of a container configuration: the unspecified address means this
        // host.
        let port = admin.rsplit(':').next().unwrap();
        let mut command = livebridge(&["ready"]);
        command.env("LIVEBRIDGE_ADMIN_LISTEN", format!("0.0.0.0:{port}"));
        assert_eq!(run(&mut command).code, Some(0));
        serving.process.stop();
        let gone = run(&mut command);
        assert_eq!(gone.code, Some(1), "{gone:?}");
        assert!(gone.stdout.starts_with("no answer from 127.0.0.1:"), "{gone:?}");
    }

    #[test]
    fn reports_why_they_are_not() {
        let serving = without_kafka("wal.min_free_bytes = \"1EiB\"").serve();
        let admin = serving.admin.to_string();
        serving.process.stderr.wait_for_text("are rejected with 503");
        let ready = run(&mut livebridge(&["ready", "--admin", &admin]));
        assert_eq!(ready.code, Some(1), "{ready:?}");
        assert_eq!(
            ready.stdout,
            "not ready: the disk has less than wal.min_free_bytes free, or no space for a segment\n"
        );
    }
}

mod generated {
    use super::*;

    const COMMANDS: [&str; 12] = [
        "serve", "dev", "check", "ready", "config", "send", "wal", "replay", "recover", "audit",
        "completions", "man",
    ];

    #[test]
    fn completion_scripts_are_valid_in_their_shells() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = run(&mut livebridge(&["completions", shell]));
            assert_eq!(script.code, Some(0), "{script:?}");
            for command in COMMANDS {
                assert!(script.stdout.contains(command), "{shell}: {command}");
            }
            if let "bash" | "zsh" | "fish" = shell {
                let file = tempfile::NamedTempFile::new().unwrap();
                fs::write(file.path(), &script.stdout).unwrap();
                match Command::new(shell).arg("-n").arg(file.path()).output() {
                    Ok(output) => assert!(output.status.success(), "{output:?}"),
                    Err(_) => crate::support::skip::skip(
                        "shell completions",
                        &format_args!("{shell} is not installed"),
                    ),
                }
            }
        }
    }

    #[test]
    fn manual_pages_are_written_for_every_command() {
        let dir = tempfile::tempdir().unwrap();
        let written = run(&mut livebridge(&["man", dir.path().to_str().unwrap()]));
        assert_eq!(written.code, Some(0), "{written:?}");
        for command in COMMANDS {
            let page = dir.path().join(format!("livebridge-{command}.1"));
            let page = fs::read_to_string(&page).unwrap_or_else(|_| panic!("{command}"));
            assert!(page.contains(".TH livebridge-"), "{page}");
        }
        let nested = fs::read_to_string(dir.path().join("livebridge-wal-export.1")).unwrap();
        assert!(nested.contains("rescued.jsonl"), "the examples are in it");
        let own = run(&mut livebridge(&["man"]));
        assert!(own.stdout.contains(".TH livebridge 1"), "{own:?}");
        let nowhere = run(&mut livebridge(&["man", "/nowhere/man1"]));
        assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
        assert!(
            nowhere.stderr.contains("cannot write the manual pages: /nowhere/man1: "),
            "{nowhere:?}"
        );
    }
}

#[test]
fn every_documented_option_exists() {
    let pages = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let others = ["README.md", "deploy/livebridge.toml"].map(PathBuf::from);
    let mut texts: Vec<String> =
        pages.chain(others).map(|path| fs::read_to_string(path).unwrap()).collect();
    for command in
        ["serve", "dev", "check", "ready", "config", "send", "wal", "replay", "recover", "audit"]
    {
        texts.push(run(&mut livebridge(&[command, "--help"])).stdout);
    }
    for command in ["setup", "status", "remove", "rotate-key"] {
        texts.push(run(&mut livebridge(&["tencent", command, "--help"])).stdout);
    }
    let is_name = |word: &&str| {
        word.starts_with(char::is_alphabetic) && word.chars().all(|c| c.is_alphabetic() || c == '-')
    };
    let mut options = BTreeSet::new();
    for text in &texts {
        // A namespace of Kubernetes has the same name.
        for told in text.replace("-n livebridge ", "-n ").split("livebridge ").skip(1) {
            // A command ends at the end of its line, at a closing quote, or at a pipe.
            let told = told.split(['\n', '`', '|', '>', '&', ';']).next().unwrap();
            let words: Vec<&str> = told.split_whitespace().collect();
            let has_steps = words.first().is_some_and(|word| ["wal", "tencent"].contains(word));
            let steps = if has_steps { 2 } else { 1 };
            let command: Vec<&str> =
                words.iter().copied().take_while(is_name).take(steps).collect();
            if command.is_empty() {
                // The name of a container, service or user, in a command of another program.
                continue;
            }
            for option in words.iter().filter_map(|word| word.strip_prefix("--")) {
                let end = option.find(|c: char| !c.is_alphabetic() && c != '-');
                options
                    .insert((command.join(" "), option[..end.unwrap_or(option.len())].to_owned()));
            }
        }
    }
    assert!(options.len() >= 20, "{options:?}");
    for (command, option) in options {
        let words: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = run(&mut livebridge(&words));
        assert_eq!(help.code, Some(0), "{command}: {help:?}");
        let option_lines = help.stdout.lines().filter(|line| line.trim_start().starts_with('-'));
        let mut known = option_lines.flat_map(|line| line.split_whitespace().take(2));
        let there = known.any(|word| word == format!("--{option}"));
        assert!(there, "livebridge {command} has no --{option}");
    }
}

#[test]
fn every_command_has_a_help_text() {
    let help = run(&mut livebridge(&["--help"]));
    assert_eq!(help.code, Some(0));
    for command in [
        "serve", "dev", "check", "ready", "config", "send", "wal", "replay", "recover", "audit",
        "tencent",
    ] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{help:?}");
        let own = run(&mut livebridge(&[command, "--help"]));
        assert_eq!(own.code, Some(0), "{own:?}");
        assert!(own.stdout.contains("Examples:\n") || command == "ready", "{own:?}");
        let long = own.stdout.lines().find(|line| line.chars().count() > 100);
        assert_eq!(long, None, "not wrapped in {command}");
    }
    let mut command = livebridge(&["send", "--help"]);
    let send = run(command.env("LIVEBRIDGE_SEND_KEY", "s3cret"));
    assert!(!send.stdout.contains("s3cret"), "{send:?}");
    let none = run(&mut livebridge(&[]));
    assert_eq!(none.code, Some(64));
    assert!(none.stderr.contains("Usage"), "{none:?}");
    let version = run(&mut livebridge(&["--version"]));
    assert_eq!(version.stdout, concat!("livebridge ", env!("CARGO_PKG_VERSION"), "\n"));
}
