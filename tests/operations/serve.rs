//! `livebridge serve` as a process: signals, exit codes, a full or locked log, and the pages and
//! metrics for operators.
//!
//! Three tests wait for time-outs of up to 30 seconds and are ignored by default:
//! `cargo test --test operations serve:: -- --ignored`.

#![expect(clippy::float_cmp, reason = "only whole numbers are compared")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use rustix::process::Signal;
use serde_json::json;

use crate::support::configured_bridge::{ConfiguredBridge, RunningBridge};
use crate::support::intake::{KEY, push};
use crate::support::kafka::{UNREACHABLE, mock_kafka};
use crate::support::kafka_gate::KafkaGate;
use crate::support::metrics::{moved, scrape};
use crate::support::process::run;
use crate::support::tls::Identity;
use crate::support::wire::{Wire, exchange, get, post};
use crate::support::{TIME_LIMIT, metrics, wait_until, wire};

const CLOSED: &str = "livebridge_http_connections_closed_total";
const REJECTED: &str = "livebridge_callbacks_rejected_total";

fn with_reason(counter: &str, reason: &str) -> String {
    format!("{counter}{{reason=\"{reason}\"}}")
}

/// A running bridge without Kafka.
fn without_kafka(more: &str) -> RunningBridge {
    ConfiguredBridge::new(UNREACHABLE, more).serve()
}

#[test]
fn with_a_token_the_status_needs_the_token() {
    let serving = without_kafka("admin.token = \"s3cret\"");
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
    let serving = without_kafka("");
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
    let serving = without_kafka("http.max_body = \"2KiB\"");
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
    let callbacks = |series: &str| series.starts_with("livebridge_callbacks_");
    for (reason, request, status) in requests {
        let before = scrape(serving.admin);
        let answer = exchange(serving.intake, request).unwrap();
        assert_eq!(answer.status, status, "{reason}");
        let mut moved = moved(&before, &scrape(serving.admin));
        moved.retain(|series, _| callbacks(series));
        assert_eq!(moved, [(with_reason(REJECTED, reason), 1.0)].into(), "{reason}");
    }

    let before = scrape(serving.admin);
    let mut wire = Wire::connect(serving.intake);
    wire.send("POST /callback HTTP/1.1\r\nContent-Length: 5\r\n\r\n{");
    wire.finish();
    assert_eq!(wire.answer().unwrap().status, 408);
    let mut moved_now = moved(&before, &scrape(serving.admin));
    moved_now.retain(|series, _| callbacks(series));
    assert_eq!(moved_now, [(with_reason(REJECTED, "body_incomplete"), 1.0)].into());

    let before = scrape(serving.admin);
    assert_eq!(serving.post(&push()).status, 200);
    let mut moved_now = moved(&before, &scrape(serving.admin));
    moved_now
        .retain(|series, _| callbacks(series) || series == "livebridge_acknowledge_seconds_count");
    let accepted = "livebridge_callbacks_accepted_total{event_type=\"push\"}".to_owned();
    let expected = [(accepted, 1.0), ("livebridge_acknowledge_seconds_count".to_owned(), 1.0)];
    assert_eq!(moved_now, expected.into());

    let proxied = "[access]\nallow = [\"192.0.2.0/24\"]\ntrusted_proxies = [\"127.0.0.1\"]";
    for (reason, more) in [("secret", "[access]\nsecret = \"word\""), ("address", proxied)] {
        let serving = without_kafka(more);
        let before = scrape(serving.admin);
        assert_eq!(serving.post(&push()).status, 403, "{reason}");
        let mut moved = moved(&before, &scrape(serving.admin));
        moved.retain(|series, _| callbacks(series));
        assert_eq!(moved, [(with_reason(REJECTED, reason), 1.0)].into(), "{reason}");
    }
}

/// Waits until connections were closed for a reason.
fn wait_for_end(serving: &RunningBridge, reason: &str) {
    let series = with_reason(CLOSED, reason);
    let message = || format!("{series}: {:?}", scrape(serving.admin));
    wait_until(TIME_LIMIT, || serving.metric(&series) >= 1.0, message);
}

#[test]
fn every_closed_connection_is_counted_under_its_reason_only() {
    let large = format!("POST /callback HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    let forged = post("/callback", "{}").repeat(16);
    let proxied = "[access]\ntrusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true";
    let certificate = tempfile::tempdir().unwrap();
    let tls = Identity::write(certificate.path(), 2100).section();
    for (reason, more, request) in [
        ("header_malformed", "", "nonsense\r\n\r\n"),
        ("header_too_large", "", &large),
        ("too_many_rejections", "", &forged),
        ("proxy_header", proxied, "POST / HTTP/1.1\r\n\r\n"),
        ("tls", &tls, "POST / HTTP/1.1\r\n\r\n"),
        ("per_address_limit", "http.max_connections_per_address = 1", "POST"),
        ("evicted", "http.max_connections = 1", "POST"),
    ] {
        let serving = without_kafka(more);
        let before = scrape(serving.admin);
        let mut wires: Vec<Wire> = (0..2).map(|_| Wire::connect(serving.intake)).collect();
        for wire in &mut wires {
            wire.send(request);
        }
        wait_for_end(&serving, reason);
        let mut moved = moved(&before, &scrape(serving.admin));
        moved.retain(|series, _| series.starts_with(CLOSED));
        assert_eq!(moved.into_keys().collect::<Vec<_>>(), [with_reason(CLOSED, reason)]);
    }
}

#[test]
#[ignore = "takes 10 s: the time-out of handshakes"]
fn a_missing_handshake_times_out_and_is_counted() {
    let certificate = tempfile::tempdir().unwrap();
    let serving = without_kafka(&Identity::write(certificate.path(), 2100).section());
    let mut silent = Wire::connect(serving.intake).read_timeout(Duration::from_secs(20));
    let started = Instant::now();
    assert!(silent.is_closed());
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    wait_for_end(&serving, "handshake_timeout");
}

#[test]
#[ignore = "takes 30 s: time-outs of connections that send or read nothing"]
fn connections_that_send_or_read_nothing_time_out_and_are_counted() {
    let serving = without_kafka("");
    let mut silent = Wire::connect(serving.intake).read_timeout(Duration::from_secs(20));
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
    wait_for_end(&serving, "idle_timeout");
    wait_for_end(&serving, "header_timeout");
    assert!(silent.is_closed());
}

#[test]
#[ignore = "takes 30 s: the time-out of those who send nothing, or do not read"]
fn admin_connections_that_send_or_read_nothing_time_out_and_are_counted() {
    let serving = without_kafka("");
    let mut silent = Wire::connect(serving.admin);
    let mut deaf = Wire::connect(serving.admin);
    // The responses to these requests fill every buffer.
    deaf.try_send("GET /metrics HTTP/1.1\r\nHost: l\r\n\r\n".repeat(1000));
    let mut reader = Wire::connect(serving.admin);
    let closed = with_reason("livebridge_admin_connections_closed_total", "idle_timeout");
    let started = Instant::now();
    loop {
        // A client that sends requests and reads responses is not closed.
        reader.send("GET /metrics HTTP/1.1\r\nHost: l\r\n\r\n");
        if metrics::parse(&reader.answer().unwrap().body)[&closed] >= 2.0 {
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
    let serving = without_kafka("");
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
        let name = with_reason(REJECTED, reason);
        assert_eq!(series.get(&name), Some(&0.0), "{name}");
    }
}

#[test]
fn every_admin_page_answers_get() {
    let serving = without_kafka("");
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
    let serving = without_kafka("");
    let wait_for = |count| serving.wait_for_metric("livebridge_http_connections", count);
    wait_for(0.0);
    let wires: Vec<Wire> = (0..3).map(|_| Wire::connect(serving.intake)).collect();
    wait_for(3.0);
    drop(wires);
    wait_for(0.0);
}

#[test]
fn a_stop_under_load_answers_and_publishes_every_accepted_callback_and_exits_0() {
    let kafka = mock_kafka(1);
    let mut serving = ConfiguredBridge::new(&kafka.brokers(), "").serve();
    let address = serving.intake;
    let count = Arc::new(AtomicUsize::new(0));
    let send = |_| {
        let count = Arc::clone(&count);
        thread::spawn(move || send_until_closed(address, &count))
    };
    let senders: Vec<_> = (0..8).map(send).collect();
    let are_many = || count.load(Ordering::Relaxed) > 50;
    wait_until(6 * TIME_LIMIT, are_many, || "few callbacks are accepted");
    serving.process.signal(Signal::TERM);
    let accepted: BTreeSet<String> =
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
    let is_closed = || TcpStream::connect(address).is_err();
    wait_until(TIME_LIMIT, is_closed, || "new connections are still accepted");
    assert_eq!(serving.process.wait(), Some(0));

    let mut kept: BTreeSet<String> = serving.stored().into_iter().collect();
    let mut published = serving.published("live.push");
    while !accepted.is_subset(&kept) {
        kept.insert(String::from_utf8(published.next().unwrap().value).unwrap());
    }
}

/// Sends callbacks until the intake closes the connection; returns the accepted ones.
fn send_until_closed(address: SocketAddr, count: &AtomicUsize) -> Vec<String> {
    let mut accepted = Vec::new();
    let mut wire = Wire::connect(address);
    loop {
        let body = push();
        wire.send(post("/callback", &body));
        let Some(answer) = wire.answer() else { return accepted };
        assert_eq!(answer.status, 200, "no error while stopping: {answer:?}");
        accepted.push(body);
        count.fetch_add(1, Ordering::Relaxed);
        if answer.closes() {
            return accepted;
        }
    }
}

#[test]
fn a_stop_with_nothing_left_to_publish_does_not_wait_for_kafka() {
    // Regression: this took up to 18 s, or for ever when a call of librdkafka did not return.
    let mut serving = without_kafka("");
    let started = Instant::now();
    serving.process.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_stop_without_kafka_keeps_unpublished_records_for_the_next_start() {
    // It does not wait for 2 s, as with a reachable Kafka. A busy machine may need several attempts.
    let is_fast = (0..5).any(|_| {
        let mut serving = without_kafka("");
        for _ in 0..3 {
            assert_eq!(serving.post(&push()).status, 200);
        }
        let started = Instant::now();
        serving.process.stop();
        let elapsed = started.elapsed();
        assert_eq!(serving.stored().len(), 3);
        assert_eq!(serving.serve().metric("livebridge_wal_records"), 3.0);
        elapsed < Duration::from_millis(1500)
    });
    assert!(is_fast);
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut serving = without_kafka("http.drain = \"1m\"");
    assert_eq!(serving.post(&push()).status, 200);
    serving.process.signal(Signal::INT);
    serving.process.stderr.wait_for_text("\"stopping soon");
    let started = Instant::now();
    serving.process.signal(Signal::INT);
    assert_eq!(serving.process.wait(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    serving.process.stderr.wait_for_text("second signal");
    assert_eq!(serving.stored().len(), 1);
}

#[test]
fn a_second_process_on_the_same_log_does_not_start() {
    let serving = without_kafka("");
    let second = run(&mut serving.command(&["serve"]));
    assert_eq!(second.code, Some(1));
    let last = second.stderr.lines().last().unwrap();
    assert!(last.starts_with("livebridge: the log in "), "{last}");
    assert!(last.contains("is in use by another process"), "{last}");
    assert!(last.contains("wal.dir"), "{last}");
    assert_eq!(serving.post(&push()).status, 200);
}

#[test]
fn a_port_in_use_is_reported_with_its_key() {
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    for (variable, key) in
        [("LIVEBRIDGE_HTTP_LISTEN", "http.listen"), ("LIVEBRIDGE_ADMIN_LISTEN", "admin.listen")]
    {
        let bridge = ConfiguredBridge::new(UNREACHABLE, "");
        let finished = run(bridge.command(&["serve"]).env(variable, &address));
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
        let more = format!("wal.max_bytes = {max_bytes:?}");
        let serving = ConfiguredBridge::new(&gate.address.to_string(), &more).serve();
        let mut accepted = 0;
        let started = Instant::now();
        let answer = loop {
            let body = push().replace('}', &format!("{}}}", " ".repeat(1500)));
            let answer = serving.post(&body);
            if answer.status != 200 {
                break answer;
            }
            accepted += 1;
            assert!(started.elapsed() < TIME_LIMIT);
        };
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("10"));
        assert!(answer.body.contains("wal.max_bytes"), "{}", answer.body);
        let ready = get(serving.admin, "/readyz");
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("wal.max_bytes"), "{}", ready.body);
        assert_eq!(get(serving.admin, "/healthz").status, 200, "live, so it must not be restarted");
        let series = scrape(serving.admin);
        assert!(series[&with_reason(REJECTED, "log_full")] >= 1.0);
        assert_eq!(series["livebridge_kafka_up"], 0.0);
        assert_eq!(serving.stored().len(), accepted);

        gate.open();
        // A client that uses /readyz would send nothing while the log is full.
        let is_ready = || get(serving.admin, "/readyz").status == 200;
        wait_until(3 * TIME_LIMIT, is_ready, || serving.process.stderr.text());
        assert_eq!(serving.post(&push()).status, 200);
        let expected = f64::from(u32::try_from(accepted + 1).unwrap());
        serving.wait_for_metric("livebridge_published_total{event_type=\"push\"}", expected);
        assert_eq!(serving.metric("livebridge_kafka_up"), 1.0);
    }
}

/// The numbers of rejections and failed handshakes.
fn complaints(admin: SocketAddr) -> metrics::Series {
    let mut series = scrape(admin);
    series.retain(|name, value| {
        let counted = name.starts_with(CLOSED) || name.starts_with("livebridge_callbacks_rejected");
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
        let serving = without_kafka(more);
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
    let bridge = ConfiguredBridge::new(UNREACHABLE, "");
    // The limits of typical containers; the hard limit applies.
    for (soft, hard, expected) in [(1024, 1024, 832.0), (256, 1100, 908.0)] {
        // The soft limit first, because it must not exceed the hard one.
        let limits = format!("ulimit -Sn {soft} && ulimit -Hn {hard}");
        let limited = |arguments: &str| {
            let mut command = Command::new("bash");
            let script = format!("{limits} && exec \"$0\" {arguments} --config \"$1\"");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_livebridge")]).arg(bridge.file());
            command
        };
        let serving = bridge.start(&mut limited("serve"));
        let lowered = serving.process.stderr.wait_for(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["max_connections"].as_f64()
        });
        assert_eq!(lowered, expected);
        let mut silent: Vec<TcpStream> =
            (0..1210).map(|_| TcpStream::connect(serving.intake).unwrap()).collect();
        for _ in 0..5 {
            let started = Instant::now();
            assert_eq!(serving.post(&push()).status, 200);
            let elapsed = started.elapsed();
            // Without eviction, the first silent connection would end after 15 s.
            assert!(elapsed < Duration::from_secs(9), "{limits}: {elapsed:?}");
            silent.push(TcpStream::connect(serving.intake).unwrap());
        }
        assert!(serving.metric(&with_reason(CLOSED, "evicted")) > 0.0);
        assert!(serving.metric("process_open_fds") < 1024.0);
        let found = run(&mut limited("check --offline"));
        let note = format!("http.max_connections = 4096 is lowered to {expected}");
        assert!(found.stdout.contains(&note), "{found:?}");
    }
}
