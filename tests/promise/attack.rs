//! Attacks on the intake while well-behaved senders run: their callbacks are accepted within a
//! second, and every callback that was answered 200 is in the log.
//!
//! Attackers use many addresses in 127.0.0.0/8, so that the limit per address does not stop them,
//! except in the test of that limit. Each attack lasts 2 s, or `LIVEBRIDGE_ATTACK_SECONDS`.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::Timestamp;
use serde_json::json;
use socket2::Socket;

use crate::support::configured_bridge::{ConfiguredBridge, RunningBridge};
use crate::support::intake::KEY;
use crate::support::kafka::UNREACHABLE;
use crate::support::metrics::{moved, scrape};
use crate::support::wire::{Wire, connect_from, post};
use crate::support::{TIME_LIMIT, metrics, skip, turn};

/// The intake's connection limit; attackers open more connections.
const CONNECTIONS: usize = 256;
/// The limit per address in most tests.
const FEW: usize = 64;
/// Connections that all attackers together hold open.
const HELD: usize = CONNECTIONS * 3 / 2;
/// Concurrent attackers.
const ATTACKERS: usize = 4;
/// Concurrent well-behaved senders, and the pause of each between two callbacks.
const SENDERS: usize = 3;
const PACE: Duration = Duration::from_millis(10);
/// The limit for the 99th percentile of response times of well-behaved senders.
const P99_MAX: Duration = Duration::from_secs(1);

fn duration() -> Duration {
    let seconds = env::var("LIVEBRIDGE_ATTACK_SECONDS").ok();
    seconds.map_or(Duration::from_secs(2), |text| Duration::from_secs(text.parse().unwrap()))
}

/// The address of the well-behaved senders; no attacker uses it.
const SENDERS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

/// A bridge without Kafka that accepts `per_address` connections per address.
fn start(per_address: usize) -> RunningBridge {
    let more = format!(
        "callback.unsigned = []\nhttp.max_connections = {CONNECTIONS}\n\
         http.max_connections_per_address = {per_address}"
    );
    ConfiguredBridge::new(UNREACHABLE, &more).serve()
}

/// A body signed with `key`.
fn callback(key: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    let now = (Timestamp::now().as_millis() / 1000).to_string();
    let sign = CallbackKey::new(key).unwrap().sign_hex(&now);
    let body = json!({
        "event_type": 1, "stream_id": "s", "sequence": number, "t": now, "sign": sign,
        "padding": "x".repeat(400),
    });
    body.to_string()
}

/// A connection from a new loopback address; `None` if it cannot be opened within a second.
fn connect(to: SocketAddr, from: Ipv4Addr) -> Option<TcpStream> {
    let second = Duration::from_secs(1);
    let stream = connect_from(from, to).ok()?;
    stream.set_read_timeout(Some(second)).unwrap();
    stream.set_write_timeout(Some(second)).unwrap();
    Some(stream)
}

/// A new address for each call; the first is the start of a separate range for each attacker.
fn any_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    Ipv4Addr::from_bits(0x7f01_0000 + NEXT.fetch_add(1, Ordering::Relaxed) % 0xf_ffff)
}

/// How often an attack is made, at most, until the response times are within their limit: another
/// process on the machine can exceed it, and rarely does each time.
const ATTEMPTS: usize = 3;
/// What all well-behaved senders together send in an attack, at least.
const CALLBACKS_MIN: usize = 100;

/// The results of one well-behaved sender.
#[derive(Default)]
struct Seen {
    accepted: Vec<String>,
    elapsed: Vec<Duration>,
    tries: usize,
}

/// Sends until `over` is set. Every second callback uses a new connection, as Tencent does; the
/// others use a keep-alive connection. After a disconnect the callback is sent again, and its
/// response time includes the retry.
fn send_well(intake: SocketAddr, over: &AtomicBool, accepted: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let mut kept: Option<Wire> = None;
    while !over.load(Ordering::Relaxed) {
        let body = callback(KEY);
        let started = Instant::now();
        let alone = seen.accepted.len() % 2 == 0;
        let status = loop {
            seen.tries += 1;
            // A full backlog costs a second.
            let new = || connect(intake, SENDERS_ADDRESS).map(Wire::over);
            if let Some(mut wire) = kept.take().filter(|_| !alone).or_else(new) {
                wire.send(post("/callback", &body));
                if let Some(answer) = wire.answer() {
                    kept = Some(wire).filter(|_| !alone && !answer.closes());
                    break answer.status;
                }
            }
            assert!(started.elapsed() < TIME_LIMIT, "no answer");
        };
        assert_eq!(status, 200, "a good callback");
        seen.elapsed.push(started.elapsed());
        seen.accepted.push(body);
        accepted.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PACE);
    }
    seen
}

/// Runs `attack` repeatedly on several threads while well-behaved senders run, then checks the
/// senders' results. Returns the changes of the metrics during the attack.
fn under(
    name: &str,
    per_address: usize,
    attack: impl Fn(SocketAddr, &AtomicBool) + Sync,
) -> metrics::Series {
    // The tests measure response times.
    let _turn = turn::alone();
    let mut slowest = Vec::new();
    while slowest.len() < ATTEMPTS {
        let (p99, moved) = attempt(name, per_address, &attack);
        if p99 < P99_MAX {
            return moved;
        }
        slowest.push(p99);
    }
    panic!("{name}: p99 {slowest:?}");
}

/// One attack: the 99th percentile of the senders' response times, and the changes of the metrics.
fn attempt(
    name: &str,
    per_address: usize,
    attack: &(impl Fn(SocketAddr, &AtomicBool) + Sync),
) -> (Duration, metrics::Series) {
    let target = start(per_address);
    let before = scrape(target.admin);
    let over = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let all = thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    attack(target.intake, &over);
                }
            });
        }
        thread::sleep(Duration::from_millis(300));
        let senders: Vec<_> =
            (0..SENDERS).map(|_| scope.spawn(|| send_well(target.intake, &over, &sent))).collect();
        thread::sleep(duration());
        // A sender that fails ends its thread; the others go on.
        let started = Instant::now();
        while sent.load(Ordering::Relaxed) < CALLBACKS_MIN && started.elapsed() < 6 * TIME_LIMIT {
            thread::sleep(PACE);
        }
        over.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().unwrap()).collect::<Vec<_>>()
    });
    let mut elapsed: Vec<Duration> = all.iter().flat_map(|seen| seen.elapsed.clone()).collect();
    elapsed.sort_unstable();
    let p99 = elapsed[elapsed.len() * 99 / 100];
    let p50 = elapsed[elapsed.len() / 2];
    let tries: usize = all.iter().map(|seen| seen.tries).sum();
    let moved = moved(&before, &scrape(target.admin));
    let mut output_text = String::new();
    for (series, change) in moved.iter().filter(|(series, _)| series.contains("reason=")) {
        let reason = series.split('"').nth(1).unwrap();
        write!(output_text, ", {reason} {change}").unwrap();
    }
    let count = elapsed.len();
    eprintln!("{name}: {count} accepted, p50 {p50:.1?}, p99 {p99:.1?}, {tries} tries{output_text}");
    let accepted: BTreeSet<String> = all.into_iter().flat_map(|seen| seen.accepted).collect();
    assert!(accepted.len() >= CALLBACKS_MIN, "{name}: {} accepted", accepted.len());
    let stored: BTreeSet<String> = target.stored().into_iter().collect();
    assert_eq!(stored, accepted, "{name}: exactly the accepted callbacks are stored");
    (p99, moved)
}

fn count(moved: &metrics::Series, name: &str, reason: &str) -> f64 {
    moved.get(&format!("{name}{{reason=\"{reason}\"}}")).copied().unwrap_or(0.0)
}

const ENDED: &str = "livebridge_http_connections_closed_total";
const REJECTED: &str = "livebridge_callbacks_rejected_total";

/// Opens more connections than the limit, sends `start` on each, and `more` repeatedly.
fn hold(intake: SocketAddr, over: &AtomicBool, start: &[u8], more: &[u8]) {
    let mut held: Vec<TcpStream> = Vec::new();
    while held.len() < HELD / ATTACKERS && !over.load(Ordering::Relaxed) {
        let Some(mut stream) = connect(intake, any_address()) else { break };
        if stream.write_all(start).is_ok() {
            held.push(stream);
        }
    }
    while !held.is_empty() && !over.load(Ordering::Relaxed) {
        held.retain_mut(|stream| !more.is_empty() && stream.write_all(more).is_ok());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_flood_of_bad_signatures_delays_no_other_client() {
    let moved = under("bad signatures", FEW, |intake, over| {
        let Some(mut stream) = connect(intake, any_address()) else { return };
        let request = post("/callback", &callback("another"));
        let mut answer = [0; 4096];
        while !over.load(Ordering::Relaxed) && stream.write_all(request.as_bytes()).is_ok() {
            let Ok(1..) = stream.read(&mut answer) else { return };
            // Without this pause, attackers, intake and kernel compete for two cores, and syncs are
            // delayed.
            thread::sleep(Duration::from_micros(100));
        }
    });
    assert!(count(&moved, REJECTED, "bad_signature") > 100.0, "{moved:?}");
}

#[test]
fn bodies_that_are_costly_to_parse_delay_no_other_client() {
    let large = format!("{{\"a\":{}", "[1,".repeat(80_000));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let wide =
        format!("{{{}}}", (0..15_000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
    let moved = under("costly bodies", FEW, |intake, over| {
        for body in [&large, &deep, &wide] {
            let Some(mut stream) = connect(intake, any_address()) else { continue };
            let _ = stream.write_all(post("/callback", body).as_bytes());
            let _ = stream.read(&mut [0; 4096]);
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
    });
    assert!(count(&moved, REJECTED, "malformed") > 1.0, "{moved:?}");
    assert!(count(&moved, REJECTED, "unsigned") > 1.0, "the depth is looked at when it is signed");
}

#[test]
fn silent_connections_are_evicted_for_active_clients() {
    let moved = under("silent connections", FEW, |intake, over| {
        let opened = Instant::now();
        let held = (0..HELD / ATTACKERS).filter_map(|_| connect(intake, any_address()));
        let held: Vec<TcpStream> = held.collect();
        while opened.elapsed() < Duration::from_secs(1) && !over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        drop(held);
    });
    assert!(count(&moved, ENDED, "evicted") > 10.0, "{moved:?}");
}

#[test]
fn connections_with_slow_headers_are_evicted_for_active_clients() {
    let moved = under("slow headers", FEW, |intake, over| {
        hold(intake, over, b"POST /callback HTTP/1.1\r\nHost: t\r\n", b"X-a: b\r\n");
    });
    assert!(count(&moved, ENDED, "evicted") > 10.0, "{moved:?}");
}

#[test]
fn connections_with_slow_bodies_are_evicted_for_active_clients() {
    let moved = under("slow bodies", FEW, |intake, over| {
        let head = b"POST /callback HTTP/1.1\r\nHost: t\r\nContent-Length: 200000\r\n\r\n{";
        hold(intake, over, head, b" ");
    });
    assert!(count(&moved, ENDED, "evicted") > 10.0, "{moved:?}");
}

#[test]
fn connections_that_read_no_responses_are_evicted_for_active_clients() {
    let many = post("/callback", "{}").repeat(200);
    let moved = under("unread answers", FEW, |intake, over| {
        hold(intake, over, many.as_bytes(), many.as_bytes());
    });
    assert!(count(&moved, REJECTED, "unsigned") > 10.0, "{moved:?}");
}

#[test]
fn one_address_gets_at_most_its_connection_limit() {
    let moved = under("one address", FEW, |intake, over| {
        let from = Ipv4Addr::new(127, 0, 0, 2);
        let held: Vec<_> = (0..CONNECTIONS).filter_map(|_| connect(intake, from)).collect();
        thread::sleep(Duration::from_millis(if over.load(Ordering::Relaxed) { 0 } else { 200 }));
        drop(held);
    });
    assert!(count(&moved, ENDED, "per_address_limit") > 10.0, "{moved:?}");
}

#[test]
fn connections_that_are_opened_and_reset_delay_no_other_client() {
    under("resets", FEW, |intake, _| {
        let Some(mut stream) = connect(intake, any_address()) else { return };
        let request = post("/callback", &callback("another"));
        let part = 1 + usize::try_from(any_address().to_bits()).unwrap() % (request.len() - 1);
        let _ = stream.write_all(&request.as_bytes()[..part]);
        // SO_LINGER 0 closes the connection with a reset and discards unsent data.
        let _ = Socket::from(stream).set_linger(Some(Duration::ZERO));
        thread::sleep(Duration::from_millis(1));
    });
}

#[test]
fn malformed_and_smuggled_requests_affect_no_other_client() {
    let pipelined = post("/callback", "{}").repeat(50);
    let requests: [&[u8]; 8] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"POST /callback HTTP/1.1\r\nHost: t\r\nConnection: Upgrade, HTTP2-Settings\r\n\
          Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /callback HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
          0\r\n\r\nGPOST / HTTP/1.1\r\n\r\n",
        b"POST /callback HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n\
          0\r\n\r\n",
        b"POST /callback HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /callback HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"POST /callback HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ];
    let moved = under("nonsense", FEW, |intake, over| {
        for request in requests.into_iter().chain([pipelined.as_bytes()]) {
            let Some(mut stream) = connect(intake, any_address()) else { continue };
            let _ = stream.write_all(request);
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let _ = stream.read(&mut [0; 4096]);
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
    });
    assert!(count(&moved, ENDED, "header_malformed") > 10.0, "{moved:?}");
}

#[test]
fn slowhttptest_does_not_make_the_service_unavailable() {
    if let Err(error) = Command::new("slowhttptest").arg("-h").stdout(Stdio::null()).status() {
        return skip::skip("attacks of slowhttptest", &format_args!("slowhttptest: {error}"));
    }
    let seconds = duration().as_secs().to_string();
    for (name, mode) in [
        ("slow headers", &["-H"][..]),
        ("slow bodies", &["-B", "-s", "8192"]),
        ("ranges", &["-R"]),
        ("slow reading", &["-X", "-k", "100"]),
    ] {
        let runs = AtomicU32::new(0);
        under(&format!("slowhttptest, {name}"), CONNECTIONS, |intake, over| {
            // Running all attack types once is one run.
            if runs.fetch_add(1, Ordering::Relaxed) > 0 {
                return thread::sleep(Duration::from_millis(50));
            }
            let url = format!("http://{intake}/callback");
            let mut command = Command::new("slowhttptest");
            command.args(mode).args(["-u", &url, "-c", "380", "-r", "380", "-i", "1"]);
            command.args(["-x", "24", "-p", "1", "-v", "0", "-l", &seconds]);
            let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            while !over.load(Ordering::Relaxed) && run.try_wait().unwrap().is_none() {
                thread::sleep(Duration::from_millis(50));
            }
            let _ = run.kill();
            run.wait().unwrap();
        });
    }
}
