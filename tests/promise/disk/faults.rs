//! The real binary on a disk whose n-th call fails, for many n: during startup, while it accepts
//! callbacks, and while it begins another segment.
//!
//! A few points of failure in every run; `LIVEBRIDGE_DISK_FAULTS=1000` for a thousand.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::kafka::UNREACHABLE;
use crate::support::log::{temp_dir, visit};
use crate::support::{preload, turn};

/// Callbacks per run and bytes per callback: together more than one segment.
const CALLBACKS: u64 = 100;
const BODY_BYTES: usize = 400_000;
/// Concurrent senders, and concurrent runs.
const SENDERS: usize = 4;
const RUNS: usize = 4;
/// Points of failure in a quick run.
const QUICK: u64 = 25;
/// `http.deadline`, and the additional time that a response may take on a busy machine.
const DEADLINE: &str = "10s";
const ANSWER: Duration = Duration::from_secs(30);
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Which call fails, the error, and the number of calls that fail from there on (0: all).
#[derive(Clone, Copy, Debug)]
struct Fault {
    at: u64,
    errno: i32,
    lasts: u64,
}

/// The library to preload; `None` without a C compiler.
pub(super) static SHIM: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| preload("a failing disk", "tests/promise/disk/fail.c"));

/// A livebridge without Kafka.
struct Bridge {
    process: Child,
    output: PathBuf,
    address: Option<SocketAddr>,
}

impl Bridge {
    /// Starts it in `dir` and waits until it accepts callbacks or has exited.
    fn start(dir: &Path, fault: Option<Fault>) -> Self {
        let output = dir.join(if fault.is_some() { "faulty.log" } else { "sound.log" });
        let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&output).unwrap()).envs([
            ("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:0"),
            ("LIVEBRIDGE_HTTP_MAX_BODY", "512KiB"),
            ("LIVEBRIDGE_HTTP_DEADLINE", DEADLINE),
            ("LIVEBRIDGE_ADMIN_LISTEN", "127.0.0.1:0"),
            ("LIVEBRIDGE_CALLBACK_UNSIGNED", "all"),
            ("LIVEBRIDGE_KAFKA_BROKERS", UNREACHABLE),
            ("LIVEBRIDGE_WAL_MIN_FREE_BYTES", "0"),
            ("LIVEBRIDGE_LOG_FORMAT", "text"),
        ]);
        command.env("LIVEBRIDGE_WAL_DIR", dir.join("wal"));
        if let Some(Fault { at, errno, lasts }) = fault {
            fs::write(dir.join("count"), [0; 8]).unwrap();
            command.env("LD_PRELOAD", SHIM.as_ref().expect("it was looked for"));
            command.env("FAIL_BELOW", dir.join("wal")).env("FAIL_COUNT", dir.join("count"));
            command.env("FAIL_AT", at.to_string()).env("FAIL_ERRNO", errno.to_string());
            command.env("FAIL_FOR", lasts.to_string());
        }
        let mut bridge = Self { process: command.spawn().unwrap(), output, address: None };
        let deadline = Instant::now() + Duration::from_secs(30);
        while bridge.address.is_none() && bridge.ended().is_none() {
            assert!(
                Instant::now() < deadline,
                "it neither starts nor exits: {}",
                bridge.log_text()
            );
            thread::sleep(Duration::from_millis(10));
            bridge.address = bridge.log_text().lines().find_map(|line| {
                let (_, address) = line.split_once("intake listening address=")?;
                address.trim().parse().ok()
            });
        }
        bridge
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Whether it has exited or has logged that it will.
    fn is_ending(&mut self) -> bool {
        self.ended().is_some() || self.log_text().contains("the log failed")
    }

    /// Sends a callback and returns whether it was answered 200; `None` without a response.
    fn send(address: SocketAddr, number: u64) -> Option<bool> {
        let mut body = format!(r#"{{"event_type":1,"sequence":"{number}","padding":""#);
        body.push_str(&"x".repeat(BODY_BYTES));
        body.push_str(r#""}"#);
        let started = Instant::now();
        let mut stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        let head = "POST /callback HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length:";
        let mut answer = String::new();
        let sent = write!(stream, "{head} {}\r\n\r\n{body}", body.len());
        let read = sent.and_then(|()| stream.read_to_string(&mut answer));
        assert!(started.elapsed() < ANSWER, "a callback got no response: {read:?}");
        let status = answer.split(' ').nth(1)?;
        assert!(["200", "503"].contains(&status), "{answer}");
        Some(status == "200")
    }

    /// Sends all callbacks from `first` on concurrently; returns those answered 200.
    fn load(address: SocketAddr, first: u64) -> BTreeSet<u64> {
        let next = AtomicU64::new(first);
        let acknowledged = Mutex::new(BTreeSet::new());
        thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= first + CALLBACKS {
                            break;
                        }
                        if Self::send(address, number) == Some(true) {
                            acknowledged.lock().unwrap().insert(number);
                        }
                    }
                });
            }
        });
        acknowledged.into_inner().unwrap()
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The callbacks in the log in `dir`.
fn logged(dir: &Path) -> BTreeSet<u64> {
    if !dir.join("wal/log").exists() {
        return BTreeSet::new();
    }
    let mut last = None;
    let number = |entry: livebridge::record::Entry| {
        assert!(last < Some(entry.lsn), "{} follows {last:?}", entry.lsn);
        last = Some(entry.lsn);
        let body = std::str::from_utf8(&entry.record.body).unwrap();
        let (_, rest) = body.split_once(r#""sequence":""#).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    };
    visit(&dir.join("wal")).into_iter().map(number).collect()
}

/// The result of a run with a fault.
struct Run {
    dir: TempDir,
    acknowledged: BTreeSet<u64>,
    /// The call that failed.
    call: Option<String>,
    /// Whether the bridge exited or was about to.
    ended: bool,
    calls: u64,
}

fn run(fault: Fault) -> Run {
    let dir = temp_dir();
    let mut bridge = Bridge::start(dir.path(), Some(fault));
    let acknowledged = bridge.address.map_or(BTreeSet::new(), |address| Bridge::load(address, 0));
    let rejected = CALLBACKS - acknowledged.len() as u64;
    let ends = bridge.log_text().lines().filter_map(failed_call).any(is_sync_of_data)
        || fault.lasts > 0 && rejected > CALLBACKS / 2;
    if ends && rejected > 0 {
        // The reason may not have been printed yet; without one, `check` fails.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !bridge.is_ending() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let output_text = bridge.log_text();
    let status = bridge.ended();
    if bridge.address.is_none() {
        let status = status.expect("it has ended");
        assert!(
            !status.success() && output_text.contains("livebridge: "),
            "{status}: {output_text}"
        );
    }
    // sled panics when it cannot close; the process must not exit because of that.
    assert!(!output_text.contains("thread panicked"), "{fault:?}: {output_text}");
    let ended = bridge.is_ending();
    bridge.kill();
    let call = output_text.lines().find_map(failed_call).map(str::to_owned);
    let calls = u64::from_ne_bytes(fs::read(dir.path().join("count")).unwrap().try_into().unwrap());
    Run { dir, acknowledged, call, ended, calls }
}

/// The call that the library reports to have failed.
fn failed_call(line: &str) -> Option<&str> {
    line.strip_prefix("FAULT ")
}

fn is_sync_of_data(call: &str) -> bool {
    call.starts_with("fdatasync ") && call.ends_with("/db")
}

fn check(fault: Fault) -> Run {
    let run = run(fault);
    let about = format!("{fault:?}, {:?}", run.call);
    let left = logged(run.dir.path());
    let lost: Vec<_> = run.acknowledged.difference(&left).collect();
    assert!(lost.is_empty(), "{about}: {lost:?} of {} are lost", run.acknowledged.len());
    if run.call.as_deref().is_some_and(is_sync_of_data) {
        assert!(run.acknowledged.len() as u64 != CALLBACKS, "{about}: all are acknowledged");
        assert!(
            run.ended,
            "{about}: the state of the disk is unknown, and the bridge keeps running"
        );
    }
    if run.call.is_none() || !run.ended {
        // As on a disk without faults, or with a fault that could be handled.
        let rejected = CALLBACKS - run.acknowledged.len() as u64;
        assert!(fault.lasts == 0 || rejected <= CALLBACKS / 2, "{about}: {rejected} rejected");
    }

    // On an intact disk it starts, has every acknowledged callback, and accepts more.
    let mut bridge = Bridge::start(run.dir.path(), None);
    let Some(address) = bridge.address else { panic!("{about}: {}", bridge.log_text()) };
    assert_eq!(Bridge::send(address, 1_000_000), Some(true), "{about}: {}", bridge.log_text());
    bridge.kill();
    let mut expected = left;
    expected.insert(1_000_000);
    assert_eq!(logged(run.dir.path()), expected, "{about}");
    run
}

#[test]
fn no_failing_system_call_loses_an_acknowledged_record() {
    let _turn = turn::beside_others();
    if SHIM.is_none() {
        return;
    }
    let sound = check(Fault { at: 0, errno: EIO, lasts: 1 });
    assert_eq!(sound.acknowledged.len() as u64, CALLBACKS);
    assert!(!sound.ended);
    let points = std::env::var("LIVEBRIDGE_DISK_FAULTS").ok().map(|text| text.parse().unwrap());
    let points: u64 = points.unwrap_or(QUICK);
    // Half of the faults during startup, which makes few of the calls, half during operation.
    let starting = 60;
    let place = |point: u64| {
        let (half, last) = (points / 2, sound.calls);
        if point < half {
            1 + point * starting / half
        } else {
            starting + (point - half) * (last - starting) / (points - half)
        }
    };
    let kinds = [(EIO, 1), (ENOSPC, 0), (ENOSPC, 3), (EIO, 0)];
    let faults: Vec<Fault> = (0..points)
        .map(|point| {
            let (errno, lasts) = kinds[usize::try_from(point).unwrap() % kinds.len()];
            Fault { at: place(point), errno, lasts }
        })
        .collect();
    let next = AtomicUsize::new(0);
    let hit = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..RUNS {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = check(*fault);
                    hit.fetch_add(usize::from(run.call.is_some()), Ordering::Relaxed);
                    println!(
                        "{fault:?} {} acknowledged, ended {}, {}",
                        run.acknowledged.len(),
                        run.ended,
                        run.call.unwrap_or_default()
                    );
                }
            });
        }
    });
    let hit = hit.into_inner();
    assert!(hit * 2 > faults.len(), "only {hit} of {} faults happened", faults.len());
}

#[test]
fn a_bridge_whose_log_failed_exits_and_reports_why() {
    let _turn = turn::beside_others();
    if SHIM.is_none() {
        return;
    }
    let dir = temp_dir();
    let mut bridge = Bridge::start(dir.path(), Some(Fault { at: 80, errno: EIO, lasts: 0 }));
    Bridge::load(bridge.address.expect("it starts"), 0);
    // During shutdown it tries to publish for a limited time, because Kafka is unreachable.
    let deadline = Instant::now() + Duration::from_secs(40);
    let status = loop {
        if let Some(status) = bridge.ended() {
            break status;
        }
        assert!(Instant::now() < deadline, "it ends: {}", bridge.log_text());
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status.code(), Some(1), "{}", bridge.log_text());
    let output_text = bridge.log_text();
    let last = output_text.lines().last().unwrap_or_default();
    assert!(last.starts_with("livebridge: the log failed: "), "{output_text}");
    assert!(last.contains("os error 5") || last.contains("Input/output error"), "{last}");
}
