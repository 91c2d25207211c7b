//! `livebridge serve` as a process: signals, exit codes, a full or locked log, and the pages and
//! metrics for operators.
//!
//! Three tests wait for time-outs of up to 30 seconds and are ignored by default:
//! `cargo test --test operations serve:: -- --ignored`.

#![expect(clippy::float_cmp, reason = "only whole numbers are compared")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::config::Config;
use livebridge::event::{EventType, Timestamp};
use livebridge::kafka::topic_reader::TopicReader;
use livebridge::wal::{self, OpenError};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::support::kafka::mock_kafka;
use crate::support::kafka_gate::KafkaGate;
use crate::support::metrics::{moved, scrape};
use crate::support::process::{Running, livebridge, run};
use crate::support::tls::Identity;
use crate::support::wire::{PATIENCE, Wire, exchange, get, post};
use crate::support::{metrics, wait_until, wire};

const KEY: &str = "callbackKey0123456789";
/// An address without Kafka: an unprivileged process cannot listen on this port.
const UNREACHABLE: &str = "127.0.0.1:1";

/// A configuration file in its own directory, with the log beside it.
struct Home(TempDir);

impl Home {
    fn new(brokers: &str, more: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let config = format!(
            r#"
            [http]
            listen = "127.0.0.1:0"
            max_body = "2KiB"
            [admin]
            listen = "127.0.0.1:0"
            [callback]
            keys = ["{KEY}"]
            unsigned = ["push"]
            [kafka]
            brokers = "{brokers}"
            instance = "serve-test"
            create_topics = false
            [wal]
            dir = "{}"
            min_free_bytes = 0
            {more}
            "#,
            home.log().display()
        );
        fs::write(home.config(), config).unwrap();
        home
    }

    fn config(&self) -> String {
        self.0.path().join("livebridge.toml").to_str().unwrap().to_owned()
    }

    fn log(&self) -> std::path::PathBuf {
        self.0.path().join("log")
    }

    fn serve(&self) -> Serving {
        let process = Running::start(&mut livebridge(&["serve", "--config", &self.config()]));
        let admin = process.address("admin listening");
        let intake = process.address("intake listening");
        Serving { process, intake, admin }
    }
}

struct Serving {
    process: Running,
    intake: SocketAddr,
    admin: SocketAddr,
}

/// A new callback's body.
fn push() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    json!({"event_type": 1, "stream_id": "s", "sequence": number.to_string()}).to_string()
}

fn stored(dir: &Path) -> BTreeSet<String> {
    let mut bodies = BTreeSet::new();
    wal::visit(dir, |entry| {
        bodies.insert(String::from_utf8(entry.record.body.to_vec()).unwrap());
        Ok::<_, OpenError>(())
    })
    .unwrap();
    bodies
}

#[test]
fn with_a_token_the_status_needs_the_token() {
    let home = Home::new(UNREACHABLE, "");
    let config = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), config.replace("[admin]", "[admin]\ntoken = \"s3cret\"")).unwrap();
    let serving = home.serve();
    let ask = |path: &str, line: &str| {
        // Under any host name, because the token authenticates the client.
        let request = format!("GET {path} HTTP/1.1\r\nHost: any.example\r\n{line}\r\n");
        exchange(serving.admin, request).unwrap()
    };
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(path, "").status, 200, "{path}: orchestrators have no token");
    }
    assert_eq!(ask("/", "").status, 200, "the page itself contains no data");
    for path in ["/metrics", "/status", "/nothing"] {
        for line in [
            "", "Authorization: Bearer\r\n", "Authorization: Bearer s3cre\r\n",
            "Authorization: Basic s3cret\r\n", "Authorization: s3cret\r\n",
        ] {
            let answer = ask(path, line);
            assert_eq!(answer.status, 401, "{path} {line:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    for line in ["Authorization: Bearer s3cret\r\n", "authorization: bearer s3cret\r\n"] {
        assert!(ask("/metrics", line).body.contains("livebridge_build_info"), "{line:?}");
    }
    assert_eq!(ask("/status", "Authorization: Bearer s3cret\r\n").status, 200);
    assert_eq!(ask("/nothing", "Authorization: Bearer s3cret\r\n").status, 404);
    assert!(!serving.process.stderr.text().contains("s3cret"));
}

#[test]
fn without_a_token_the_status_answers_only_ip_addresses_and_names_without_dots() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let ask = |path: &str, hosts: &[&str]| {
        let lines =
            hosts.iter().fold(String::new(), |lines, host| lines + "Host: " + host + "\r\n");
        exchange(serving.admin, format!("GET {path} HTTP/1.1\r\n{lines}\r\n")).unwrap()
    };
    for path in ["/", "/status"] {
        for host in
            ["127.0.0.1:9464", "10.1.2.3", "[::1]:9464", "[fe80::1]", "localhost:1", "livebridge"]
        {
            assert_eq!(ask(path, &[host]).status, 200, "{path} {host}");
        }
        assert_eq!(ask(path, &[]).status, 200, "{path}: browsers always send Host");
        for host in [
            "rebound.example", "rebound.example:9464", "127.0.0.1.rebound.example",
            "localhost.rebound.example:9464", "127.0.0.1@rebound.example", "rebound.",
            "127.0.0.1:9464, rebound.example", "\u{fc}.example", "",
        ] {
            let answer = ask(path, &[host]);
            assert_eq!(answer.status, 421, "{path} {host}");
            assert!(answer.body.contains("set admin.token"), "{}", answer.body);
            assert!(!answer.body.contains("<html"), "{path} {host}");
            assert_eq!(ask(path, &["localhost", host]).status, 421, "{path} localhost, {host}");
        }
        assert!(ask(path, &["rebound.example:1"]).body.contains("not rebound.example:1 ("));
    }
    // Prometheus and Kubernetes use any host name.
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(path, &["livebridge-0.livebridge.live.svc:9464"]).status, 200, "{path}");
    }
}

#[test]
fn every_rejection_increments_only_its_own_counter() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let key = CallbackKey::new(KEY).unwrap();
    let now = Timestamp::now().as_millis() / 1000;
    let expired = (now - 3600).to_string();
    let expired = json!({"t": expired, "sign": key.sign_hex(&expired)}).to_string();
    let wrong = json!({"t": now, "sign": "0".repeat(32)}).to_string();
    let deep = format!(r#"{{"event_type":1,"a":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    let post = |body: &str| post("/callback", body);
    let requests = [
        ("method", "GET /callback HTTP/1.1\r\n\r\n".to_owned(), 405),
        ("path", wire::post("/", &push()), 404),
        ("not_found", "GET / HTTP/1.1\r\n\r\n".to_owned(), 404),
        ("content_encoding", post("").replace("Host", "Content-Encoding: gzip\r\nHost"), 415),
        ("too_large", post(&" ".repeat(2049)), 413),
        ("malformed", post("{"), 400),
        ("not_an_object", post("[]"), 400),
        ("duplicate_key", post(r#"{"a":1,"a":1}"#), 400),
        ("too_deep", post(&deep), 400),
        ("wrong_type", post(r#"{"event_type":[]}"#), 400),
        ("unsigned", post(r#"{"event_type":0}"#), 401),
        ("bad_signature", post(&wrong), 401),
        ("expired", post(&expired), 401),
    ];
    let refused =
        |reason: &str| format!("livebridge_callbacks_rejected_total{{reason=\"{reason}\"}}");
    let callbacks = |series: &str| series.starts_with("livebridge_callbacks_");
    for (reason, request, status) in requests {
        let before = scrape(serving.admin);
        let answer = exchange(serving.intake, request).unwrap();
        assert_eq!(answer.status, status, "{reason}");
        let mut moved = moved(&before, &scrape(serving.admin));
        moved.retain(|series, _| callbacks(series));
        assert_eq!(moved, [(refused(reason), 1.0)].into(), "{reason}");
    }

    let before = scrape(serving.admin);
    let mut wire = Wire::connect(serving.intake);
    wire.send("POST /callback HTTP/1.1\r\nContent-Length: 5\r\n\r\n{");
    wire.finish();
    assert_eq!(wire.answer().unwrap().status, 408);
    let mut moved_now = moved(&before, &scrape(serving.admin));
    moved_now.retain(|series, _| callbacks(series));
    assert_eq!(moved_now, [(refused("body_incomplete"), 1.0)].into());

    let before = scrape(serving.admin);
    assert_eq!(exchange(serving.intake, post(&push())).unwrap().status, 200);
    let mut moved_now = moved(&before, &scrape(serving.admin));
    moved_now
        .retain(|series, _| callbacks(series) || series == "livebridge_acknowledge_seconds_count");
    let accepted = "livebridge_callbacks_accepted_total{event_type=\"push\"}".to_owned();
    let expected = [(accepted, 1.0), ("livebridge_acknowledge_seconds_count".to_owned(), 1.0)];
    assert_eq!(moved_now, expected.into());

    let proxied = "[access]\nallow = [\"192.0.2.0/24\"]\ntrusted_proxies = [\"127.0.0.1\"]";
    for (reason, more) in [("secret", "[access]\nsecret = \"word\""), ("address", proxied)] {
        let home = Home::new(UNREACHABLE, more);
        let serving = home.serve();
        let before = scrape(serving.admin);
        assert_eq!(exchange(serving.intake, post(&push())).unwrap().status, 403, "{reason}");
        let mut moved = moved(&before, &scrape(serving.admin));
        moved.retain(|series, _| callbacks(series));
        assert_eq!(moved, [(refused(reason), 1.0)].into(), "{reason}");
    }
}

const ENDED: &str = "livebridge_http_connections_closed_total";

fn reason(counter: &str, reason: &str) -> String {
    format!("{counter}{{reason=\"{reason}\"}}")
}

/// Waits until `count` connections were closed for a reason.
fn wait_for_ends(admin: SocketAddr, counter: &str, because: &str, count: f64, patience: Duration) {
    let message = || format!("{because}: {:?}", scrape(admin));
    wait_until(patience, || scrape(admin)[&reason(counter, because)] >= count, message);
}

#[test]
fn every_closed_connection_is_counted_under_its_reason_only() {
    let large = format!("POST /callback HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    let forged = post("/callback", "{}").repeat(16);
    let proxied = "[access]\ntrusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true";
    let certificate = tempfile::tempdir().unwrap();
    let tls = Identity::write(certificate.path(), 2100).section();
    for (because, http, more, request) in [
        ("header_malformed", "", "", "nonsense\r\n\r\n"),
        ("header_too_large", "", "", &large),
        ("too_many_rejections", "", "", &forged),
        ("proxy_header", "", proxied, "POST / HTTP/1.1\r\n\r\n"),
        ("tls", "", &tls, "POST / HTTP/1.1\r\n\r\n"),
        ("per_address_limit", "max_connections_per_address = 1", "", "POST"),
        ("evicted", "max_connections = 1", "", "POST"),
    ] {
        let home = Home::new(UNREACHABLE, more);
        let config = fs::read_to_string(home.config()).unwrap();
        fs::write(home.config(), config.replace("[http]", &format!("[http]\n{http}"))).unwrap();
        let serving = home.serve();
        let before = scrape(serving.admin);
        let mut wires: Vec<Wire> = (0..2).map(|_| Wire::connect(serving.intake)).collect();
        for wire in &mut wires {
            wire.send(request);
        }
        wait_for_ends(serving.admin, ENDED, because, 1.0, PATIENCE);
        let mut moved = moved(&before, &scrape(serving.admin));
        moved.retain(|series, _| series.starts_with(ENDED));
        assert_eq!(moved.into_keys().collect::<Vec<_>>(), [reason(ENDED, because)]);
    }
}

#[test]
#[ignore = "takes 10 s: the time-out of handshakes"]
fn a_missing_handshake_times_out_and_is_counted() {
    let certificate = tempfile::tempdir().unwrap();
    let home = Home::new(UNREACHABLE, &Identity::write(certificate.path(), 2100).section());
    let serving = home.serve();
    let mut silent = Wire::connect(serving.intake).patience(Duration::from_secs(20));
    let started = Instant::now();
    assert!(silent.is_closed());
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    wait_for_ends(serving.admin, ENDED, "handshake_timeout", 1.0, PATIENCE);
}

#[test]
#[ignore = "takes 30 s: time-outs of connections that send or read nothing"]
fn connections_that_send_or_read_nothing_time_out_and_are_counted() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let mut silent = Wire::connect(serving.intake).patience(Duration::from_secs(20));
    let mut forger = Wire::connect(serving.intake);
    let started = Instant::now();
    let mut sent = 0;
    while forger.try_send(post("/callback", "{}")) {
        sent += 1;
        // Few enough in a row to keep the connection open.
        thread::sleep(Duration::from_secs(3));
        assert!(started.elapsed() < Duration::from_secs(40), "not closed");
    }
    assert!((9..16).contains(&sent), "{sent}");
    wait_for_ends(serving.admin, ENDED, "idle_timeout", 1.0, PATIENCE);
    wait_for_ends(serving.admin, ENDED, "header_timeout", 1.0, PATIENCE);
    assert!(silent.is_closed());
}

#[test]
#[ignore = "takes 30 s: the time-out of those who send nothing, or do not read"]
fn admin_connections_that_send_or_read_nothing_time_out_and_are_counted() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let mut silent = Wire::connect(serving.admin);
    let mut deaf = Wire::connect(serving.admin);
    // The responses to these requests fill every buffer.
    deaf.try_send("GET /metrics HTTP/1.1\r\nHost: l\r\n\r\n".repeat(1000));
    let mut reader = Wire::connect(serving.admin);
    let ended = reason("livebridge_admin_connections_closed_total", "idle_timeout");
    let started = Instant::now();
    loop {
        // A client that sends requests and reads responses is not closed.
        reader.send("GET /metrics HTTP/1.1\r\nHost: l\r\n\r\n");
        if metrics::parse(&reader.answer().unwrap().body)[&ended] >= 2.0 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(40), "not closed");
        thread::sleep(Duration::from_secs(1));
    }
    assert!(started.elapsed() > Duration::from_secs(28), "{:?}", started.elapsed());
    assert!(silent.is_closed());
}

#[test]
fn every_series_has_the_prefix_and_those_of_known_labels_exist_from_the_start() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let answer = get(serving.admin, "/metrics");
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let series = metrics::parse(&answer.body);
    for name in series.keys() {
        assert!(name.starts_with("livebridge_") || name.starts_with("process_"), "{name}");
        assert!(!name.contains("quantile="), "summaries cannot be added up: {name}");
    }
    let names = EventType::known().map(|(_, name)| name).chain(["other"]);
    for name in names {
        for counter in ["callbacks_accepted", "published"] {
            let series_name = format!("livebridge_{counter}_total{{event_type=\"{name}\"}}");
            assert_eq!(series.get(&series_name), Some(&0.0), "{series_name}");
        }
    }
    for reason in
        ["deadline", "overloaded", "busy", "log_full", "disk_full", "log_failed", "expired"]
    {
        let name = format!("livebridge_callbacks_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(series.get(&name), Some(&0.0), "{name}");
    }
}

#[test]
fn every_admin_page_answers_get() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    for (path, text) in [("/healthz", "alive\n"), ("/readyz", "ready\n")] {
        let answer = get(serving.admin, path);
        assert_eq!((answer.status, answer.body.as_str()), (200, text));
    }
    assert_eq!(get(serving.admin, "/readyz?verbose").status, 200);
    let page = get(serving.admin, "/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(page.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!get(serving.admin, "/").body.contains(nonce), "a nonce is used once");
    for elsewhere in ["http://", "https://", "//"] {
        let named = page.body.matches(&format!("=\"{elsewhere}")).count();
        assert_eq!(named, 0, "the page names another host");
    }
    assert_eq!(get(serving.admin, "/status").header("content-type"), Some("application/json"));
    assert_eq!(get(serving.admin, "/callback").status, 404);
    let posted = exchange(serving.admin, post("/healthz", "")).unwrap();
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(exchange(serving.admin, post("/callback", &push())).unwrap().status, 404);
    // The intake serves only the health checks.
    for path in ["/", "/status", "/metrics"] {
        assert_eq!(get(serving.intake, path).status, 404);
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(serving.intake, path).status, 200);
    }
}

#[test]
fn open_connections_are_counted_up_and_down() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let wait_for = |count: f64| {
        let connections = || scrape(serving.admin)["livebridge_http_connections"];
        wait_until(PATIENCE, || connections() == count, || format!("never {count}"));
    };
    wait_for(0.0);
    let wires: Vec<Wire> = (0..3).map(|_| Wire::connect(serving.intake)).collect();
    wait_for(3.0);
    drop(wires);
    wait_for(0.0);
}

#[test]
fn a_stop_under_load_answers_and_publishes_every_accepted_callback_and_exits_0() {
    let kafka = mock_kafka(1);
    let home = Home::new(&kafka.brokers(), "");
    let mut serving = home.serve();
    let address = serving.intake;
    let senders: Vec<_> =
        (0..8).map(|_| thread::spawn(move || send_until_closed(address))).collect();
    thread::sleep(Duration::from_millis(500));
    serving.process.signal(Signal::TERM);
    let taken: BTreeSet<String> =
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
    assert!(taken.len() > 50, "{} were accepted", taken.len());
    let is_closed = || TcpStream::connect(address).is_err();
    wait_until(PATIENCE, is_closed, || "new connections are still accepted");
    assert_eq!(serving.process.wait(), Some(0));

    let config = Config::load(Some(Path::new(&home.config()))).unwrap();
    let follower = TopicReader::new(&config.kafka, &["live.push"]).unwrap();
    let mut kept = stored(&home.log());
    let started = Instant::now();
    while !taken.is_subset(&kept) {
        assert!(started.elapsed() < PATIENCE, "{} accepted, {} kept", taken.len(), kept.len());
        if let Some(landed) = follower.next(Duration::from_millis(100)).unwrap() {
            kept.insert(String::from_utf8(landed.value).unwrap());
        }
    }
}

/// Sends callbacks until the intake closes the connection; returns the accepted ones.
fn send_until_closed(address: SocketAddr) -> Vec<String> {
    let mut taken = Vec::new();
    let mut wire = Wire::connect(address);
    loop {
        let body = push();
        wire.send(post("/callback", &body));
        let Some(answer) = wire.answer() else { return taken };
        assert_eq!(answer.status, 200, "no error while stopping: {answer:?}");
        taken.push(body);
        if answer.closes() {
            return taken;
        }
    }
}

#[test]
fn a_stop_with_nothing_left_to_publish_does_not_wait_for_kafka() {
    // Regression: this took up to 18 s, or for ever when a call of librdkafka did not return.
    let home = Home::new(UNREACHABLE, "");
    let mut serving = home.serve();
    let started = Instant::now();
    serving.process.signal(Signal::TERM);
    assert_eq!(serving.process.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[test]
fn a_stop_without_kafka_keeps_unpublished_records_for_the_next_start() {
    let home = Home::new(UNREACHABLE, "");
    let mut serving = home.serve();
    for _ in 0..3 {
        assert_eq!(exchange(serving.intake, post("/callback", &push())).unwrap().status, 200);
    }
    let started = Instant::now();
    serving.process.signal(Signal::TERM);
    assert_eq!(serving.process.wait(), Some(0));
    // Callbacks wait during the drain, and there is nothing to drain.
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(stored(&home.log()).len(), 3);
    let next = home.serve();
    assert_eq!(scrape(next.admin)["livebridge_wal_records"].to_string(), "3");
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let home = Home::new(UNREACHABLE, "");
    let config = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), config.replace("[http]", "[http]\ndrain = \"1m\"")).unwrap();
    let mut serving = home.serve();
    assert_eq!(exchange(serving.intake, post("/callback", &push())).unwrap().status, 200);
    serving.process.signal(Signal::INT);
    serving.process.stderr.wait_for(|line| line.contains("\"stopping soon").then_some(()));
    let started = Instant::now();
    serving.process.signal(Signal::INT);
    assert_eq!(serving.process.wait(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(serving.process.stderr.text().contains("second signal"));
    assert_eq!(stored(&home.log()).len(), 1);
}

#[test]
fn a_second_process_on_the_same_log_refuses_to_start() {
    let home = Home::new(UNREACHABLE, "");
    let serving = home.serve();
    let second = run(&mut livebridge(&["serve", "--config", &home.config()]));
    assert_eq!(second.code, Some(1));
    let last = second.stderr.lines().last().unwrap();
    assert!(last.starts_with("livebridge: the log in "), "{last}");
    assert!(last.contains("is in use by another process"), "{last}");
    assert!(last.contains("wal.dir"), "{last}");
    assert_eq!(exchange(serving.intake, post("/callback", &push())).unwrap().status, 200);
}

#[test]
fn a_port_in_use_is_reported_with_its_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (variable, key) in
        [("LIVEBRIDGE_HTTP_LISTEN", "http.listen"), ("LIVEBRIDGE_ADMIN_LISTEN", "admin.listen")]
    {
        let home = Home::new(UNREACHABLE, "");
        let mut command = livebridge(&["serve", "--config", &home.config()]);
        let finished = run(command.env(variable, &address));
        assert_eq!(finished.code, Some(1));
        let last = finished.stderr.lines().last().unwrap();
        assert!(last.contains(key) && last.contains(&address), "{last}");
    }
}

#[test]
fn a_full_log_rejects_until_kafka_is_back_and_then_accepts_again() {
    for max_bytes in ["1B", "64KiB"] {
        let kafka = mock_kafka(1);
        let gate = KafkaGate::to(kafka.brokers());
        let home = Home::new(&gate.address.to_string(), &format!("max_bytes = {max_bytes:?}"));
        let serving = home.serve();
        let mut taken = 0;
        let started = Instant::now();
        let answer = loop {
            let body = push().replace('}', &format!("{}}}", " ".repeat(1500)));
            let answer = exchange(serving.intake, post("/callback", &body)).unwrap();
            if answer.status != 200 {
                break answer;
            }
            taken += 1;
            assert!(started.elapsed() < PATIENCE);
        };
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("10"));
        assert!(answer.body.contains("wal.max_bytes"), "{}", answer.body);
        let ready = get(serving.admin, "/readyz");
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("wal.max_bytes"), "{}", ready.body);
        assert_eq!(get(serving.admin, "/healthz").status, 200, "live, so it must not be restarted");
        let series = scrape(serving.admin);
        assert!(series["livebridge_callbacks_rejected_total{reason=\"log_full\"}"] >= 1.0);
        assert_eq!(series["livebridge_kafka_up"], 0.0);
        assert_eq!(stored(&home.log()).len(), taken);

        gate.open();
        // A client that uses /readyz would send nothing while the log is full.
        let is_ready = || get(serving.admin, "/readyz").status == 200;
        wait_until(3 * PATIENCE, is_ready, || serving.process.stderr.text());
        assert_eq!(exchange(serving.intake, post("/callback", &push())).unwrap().status, 200);
        let published = || scrape(serving.admin)["livebridge_published_total{event_type=\"push\"}"];
        let expected = f64::from(u32::try_from(taken + 1).unwrap());
        let message = || format!("{} of {expected} are published", published());
        wait_until(PATIENCE, || published() == expected, message);
        assert_eq!(scrape(serving.admin)["livebridge_kafka_up"], 1.0);
    }
}

/// The numbers of rejections and failed handshakes.
fn complaints(admin: SocketAddr) -> metrics::Series {
    let mut series = scrape(admin);
    series.retain(|name, value| {
        let counted = name.starts_with(ENDED) || name.starts_with("livebridge_callbacks_rejected");
        counted && *value != 0.0
    });
    series
}

#[test]
fn load_balancer_probes_are_neither_rejections_nor_failed_handshakes() {
    let proxied = "[access]\nallow = [\"192.0.2.0/24\"]\ntrusted_proxies = [\"127.0.0.1\"]";
    let proxy_protocol = format!("{proxied}\nproxy_protocol = true");
    let certificate = tempfile::tempdir().unwrap();
    let tls = Identity::write(certificate.path(), 2100).section();
    let by_tls = format!("{proxy_protocol}\n{tls}");
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for more in ["", proxied, &proxy_protocol, &tls, &by_tls] {
        let home = Home::new(UNREACHABLE, more);
        let serving = home.serve();
        for start in [&b""[..], local] {
            for reset in [false, true] {
                if !start.is_empty() && !more.contains("proxy_protocol") {
                    continue;
                }
                let mut stream = TcpStream::connect(serving.intake).unwrap();
                std::io::Write::write_all(&mut stream, start).unwrap();
                thread::sleep(Duration::from_millis(50));
                if reset {
                    let socket = socket2::Socket::from(stream);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
        }
        if !more.contains("[tls]") {
            for request in ["GET /readyz", "HEAD /healthz", "HEAD /", "GET /callback"] {
                if (request.ends_with('/') || request.ends_with("callback")) && more.is_empty() {
                    // Without a trusted proxy, any client can send such a request.
                    continue;
                }
                let start = if more.contains("proxy_protocol") { &local[..] } else { b"" };
                let mut wire = Wire::connect(serving.intake);
                let request = format!("{request} HTTP/1.1\r\nConnection: close\r\n\r\n");
                wire.send([start, request.as_bytes()].concat());
                let mut answer = String::new();
                std::io::Read::read_to_string(&mut wire.into_stream(), &mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 "), "{more} {request}");
            }
        }
        // The admin listener treats the header in the same way.
        for start in [&local[..], b"PROXY UNKNOWN\r\n", b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\n"] {
            let mut wire = Wire::connect(serving.admin);
            wire.send(&start[..5]);
            thread::sleep(Duration::from_millis(30));
            wire.send([&start[5..], b"GET /readyz HTTP/1.1\r\nHost: l\r\n\r\n"].concat());
            assert_eq!(wire.answer().unwrap().status, 200, "{}", start.escape_ascii());
        }
        thread::sleep(Duration::from_millis(100));
        assert_eq!(complaints(serving.admin), metrics::Series::new(), "{more}");
    }
}

#[test]
fn callbacks_are_accepted_at_once_at_a_low_file_descriptor_limit() {
    // This process needs some descriptors itself.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let mut more = limit;
    more.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, more).unwrap();
    let home = Home::new(UNREACHABLE, "");
    // The limits of typical containers; the hard limit applies.
    for (soft, hard, expected) in [(1024, 1024, 832.0), (256, 1100, 908.0)] {
        let mut command = std::process::Command::new("bash");
        let limits = format!("ulimit -Sn {soft} && ulimit -Hn {hard}");
        let limited = format!("{limits} && exec \"$0\" serve --config \"$1\"");
        // The soft limit first, because it must not exceed the hard one.
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_livebridge"), &home.config()]);
        let process = Running::start(&mut command);
        let admin = process.address("admin listening");
        let intake = process.address("intake listening");
        let lowered = process.stderr.wait_for(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["max_connections"].as_f64()
        });
        assert_eq!(lowered, expected);
        let mut silent: Vec<TcpStream> =
            (0..1210).map(|_| TcpStream::connect(intake).unwrap()).collect();
        for _ in 0..5 {
            let started = Instant::now();
            assert_eq!(exchange(intake, post("/callback", &push())).unwrap().status, 200);
            let elapsed = started.elapsed();
            assert!(elapsed < Duration::from_secs(3), "{limits}: {elapsed:?}");
            silent.push(TcpStream::connect(intake).unwrap());
        }
        assert!(scrape(admin)[&reason(ENDED, "evicted")] > 0.0);
        assert!(scrape(admin)["process_open_fds"] < 1024.0);
        let check = format!("{limits} && exec \"$0\" check --offline --config \"$1\"");
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &check, env!("CARGO_BIN_EXE_livebridge"), &home.config()]);
        let found = run(&mut command);
        let note = format!("http.max_connections = 4096 is lowered to {expected}");
        assert!(found.stdout.contains(&note), "{found:?}");
    }
}
