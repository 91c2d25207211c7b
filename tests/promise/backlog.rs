//! A long outage of Kafka: callbacks accumulate, the bridge is restarted with the backlog, Kafka
//! becomes reachable, and each callback is delivered once. The test prints memory, disk usage and
//! durations.
//!
//! By default 20,000 callbacks. A long outage with ten million callbacks (about 8 GB of disk):
//!
//! ```text
//! LIVEBRIDGE_BACKLOG=10000000 cargo test --release --test promise backlog:: -- --nocapture
//! ```

use std::collections::HashSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::Timestamp;

use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{Kafka, UNREACHABLE};
use crate::support::wire::deliver;
use crate::support::{self, turn};

const QUICK: u64 = 20_000;
const CONNECTIONS: u64 = 64;
/// The memory limit, in MiB: about twice what ten million callbacks take (docs/benchmarks.md).
const RSS_MAX_MIB: u64 = 300;
/// Disk space of a few segments of 32 MiB.
const DISK_LEFT_MAX: u64 = 5 * 32 * 1024 * 1024;
/// From the start to the first answer; a build without optimization takes several times as long.
const START_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 2 });
/// The minimum number of callbacks drained per second.
const DRAIN_RATE_MIN: u64 = 1_000;

/// The highest memory use of a process, including its restarts.
struct Watch {
    pid: Arc<AtomicU64>,
    highest_kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    fn start() -> Self {
        let (pid, highest_kib, stop) =
            <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let thread = thread::spawn({
            let (pid, highest_kib, stop) = (pid.clone(), highest_kib.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let path = format!("/proc/{}/status", pid.load(Ordering::Relaxed));
                    let status = fs::read_to_string(path).unwrap_or_default();
                    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
                    highest_kib.fetch_max(kib.unwrap_or(0), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(50));
                }
            }
        });
        Self { pid, highest_kib, stop, thread: Some(thread) }
    }

    fn process(&self, bridge: &Bridge) {
        self.pid.store(bridge.pid(), Ordering::Relaxed);
    }

    fn highest_mib(&self) -> u64 {
        self.highest_kib.load(Ordering::Relaxed) / 1024
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Sends callbacks with these numbers; every callback must be acknowledged.
fn send(intake: SocketAddr, numbers: impl Iterator<Item = u64>) {
    // Kafka's retention uses the event's time: old events would be deleted during the test.
    let now = Timestamp::now().as_millis() / 1000;
    let t = (now + 24 * 3600).to_string();
    let sign = CallbackKey::new(KEY).unwrap().sign_hex(&t);
    let filler = "x".repeat(350);
    let body = |number| {
        format!(
            r#"{{"app":"push.example.com","appid":12345678,"appname":"live","errcode":0,"errmsg":"ok","event_time":{now},"event_type":1,"node":"192.0.2.37","sequence":"{number}","stream_id":"stream-{}","stream_param":"{filler}","user_ip":"198.51.100.1","sign":"{sign}","t":{t}}}"#,
            number % 1000
        )
    };
    deliver(intake, numbers.map(body));
}

fn disk_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        bytes += match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        };
    }
    bytes
}

#[test]
fn a_backlog_is_delivered_once_within_memory_and_disk_limits() {
    // The test measures times, memory and disk space.
    let _turn = turn::alone();
    let Some(kafka) = Kafka::start_or_skip("backlog") else { return };
    let count = std::env::var("LIVEBRIDGE_BACKLOG").map_or(QUICK, |text| text.parse().unwrap());
    let prefix = support::unique("backlog");
    let watch = Watch::start();

    let away = Bridge::new(&prefix, UNREACHABLE, &prefix)
        .set("WAL_MAX_BYTES", "50GiB")
        .set("DEDUP_MAX_IDS", "3600000");
    away.start();
    watch.process(&away);
    let started = Instant::now();
    let intake = away.intake();
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let numbers = (connection..count).step_by(usize::try_from(CONNECTIONS).unwrap());
            scope.spawn(move || send(intake, numbers));
        }
    });
    let filled = started.elapsed();
    let disk_full = disk_bytes(&away.wal());
    away.kill();

    let started = Instant::now();
    let back = away.set("KAFKA_BROKERS", kafka.bootstrap());
    back.spawn();
    watch.process(&back);
    let first_answer = loop {
        if TcpStream::connect(intake).is_ok() {
            send(intake, count..=count);
            break started.elapsed();
        }
        thread::sleep(Duration::from_millis(2));
    };
    let started = Instant::now();
    back.drain(Duration::from_secs(60 + count / DRAIN_RATE_MIN));
    let drained = started.elapsed();
    let highest_mib = watch.highest_mib();
    assert!(back.stop().success());
    let disk_left = disk_bytes(&back.wal());

    println!(
        "{count} callbacks: stored in {filled:.1?}, {} MiB of disk; first answer {first_answer:.0?} \
         after the start; drained in {drained:.1?} to {} MiB; at most {highest_mib} MiB of memory",
        disk_full >> 20,
        disk_left >> 20,
    );
    assert!(first_answer < START_MAX, "{first_answer:?}");
    assert!(highest_mib < RSS_MAX_MIB, "{highest_mib} MiB");
    assert!(disk_left < DISK_LEFT_MAX, "{disk_left} bytes are left on disk");
    let topic = format!("{prefix}.push");
    let read = consumer::read_fields(kafka.bootstrap(), &[&topic], Isolation::Committed, ["ce_id"]);
    let Some(messages) = support::or_skip("backlog", read) else { return };
    let ids: HashSet<u128> =
        messages.iter().map(|[id]| u128::from_str_radix(id, 16).unwrap()).collect();
    let sent = usize::try_from(count).unwrap() + 1;
    assert_eq!((messages.len(), ids.len()), (sent, sent), "in Kafka, and distinct");
}
