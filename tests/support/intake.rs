//! An intake in this process in front of a real log, and requests to it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use livebridge::callback::{
    CallbackError, CallbackKey, UnsignedPolicy, UnverifiedCallback, Verifier,
};
use livebridge::event::{EventType, Timestamp};
use livebridge::intake::{Access, Config, Intake, IntakePolicy, Listener};
use livebridge::record::Record;
use livebridge::reloadable::Reloadable;
use livebridge::wal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::TIME_LIMIT;
use super::log::bodies;
use super::wire::{Answer, exchange, post};

pub(crate) const KEY: &str = "callbackKey0123456789";

/// An intake with its own log and without a publisher.
pub(crate) struct TestBed {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) intake: Option<Intake>,
    pub(crate) log: Option<wal::Log>,
    pub(crate) reader: Option<wal::Reader>,
    pub(crate) dir: TempDir,
    policy: Reloadable<IntakePolicy>,
}

fn policy(access: Access) -> IntakePolicy {
    let verifier = Verifier {
        keys: vec![CallbackKey::new(KEY).unwrap()],
        leeway: Duration::from_mins(20),
        unsigned: UnsignedPolicy::Types(vec![EventType(1)]),
    };
    IntakePolicy::new(verifier, access, Vec::new())
}

/// The record of a callback, with or without a signature.
pub(crate) fn record_of(body: &[u8]) -> Result<Record, CallbackError> {
    let verifier = Verifier {
        keys: vec![CallbackKey::new(KEY).unwrap()],
        leeway: Duration::from_hours(24 * 365 * 100),
        unsigned: UnsignedPolicy::All,
    };
    let (body, now) = (Bytes::copy_from_slice(body), Timestamp::now());
    UnverifiedCallback::parse(&body)?.verify(&verifier, now)?.into_record(now, &[])
}

impl TestBed {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config, &mut wal::Config)) -> Self {
        Self::behind(Access::default(), change)
    }

    /// An intake with the access rules `access`.
    pub(crate) fn behind(
        access: Access,
        change: impl FnOnce(&mut Config, &mut wal::Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.address().unwrap();
        let mut config = Config {
            listen: address,
            path: "/callback".into(),
            max_body: 2048,
            max_connections: 64,
            max_connections_per_address: usize::MAX,
            keep_alive: Duration::from_secs(75),
            deadline: Duration::from_secs(5),
            drain: Duration::ZERO,
        };
        let mut log_config = wal::Config { dir: dir.path().to_owned(), limits: wal::Limits::NONE };
        change(&mut config, &mut log_config);
        let policy = Reloadable::new(policy(access));
        let (appender, reader, log) = wal::open(&log_config).unwrap();
        let stop = CancellationToken::new();
        let intake =
            Intake::start(&listener, &config, &policy, &appender, log.probe(), &stop).unwrap();
        drop(appender);
        Self {
            address,
            stop,
            intake: Some(intake),
            log: Some(log),
            reader: Some(reader),
            dir,
            policy,
        }
    }

    /// Changes the access rules as a reload does.
    pub(crate) fn set_access(&self, access: Access) {
        self.policy.set(policy(access));
    }

    /// Bodies in the log, in order.
    pub(crate) fn stored(&self) -> Vec<String> {
        bodies(self.dir.path())
    }

    /// Bodies in the log once there are `count`, and a moment later: one that is stored twice shows.
    pub(crate) fn stored_after_a_while(&self, count: usize) -> Vec<String> {
        let started = Instant::now();
        while self.stored().len() < count && started.elapsed() < TIME_LIMIT {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(100));
        self.stored()
    }

    pub(crate) fn send(&self, request: impl AsRef<[u8]>) -> Answer {
        exchange(self.address, request).expect("an answer")
    }

    /// Checks that the intake serves other clients: a callback on a new connection is accepted.
    pub(crate) fn assert_accepts_callbacks(&self) {
        let body = push();
        assert_accepted(&self.send(post("/callback", &body)));
        assert_eq!(self.stored().last(), Some(&body));
    }
}

impl Drop for TestBed {
    fn drop(&mut self) {
        self.stop.cancel();
        self.reader = None;
        if let Some(intake) = self.intake.take() {
            intake.join();
        }
        if let Some(log) = self.log.take() {
            log.close();
        }
    }
}

/// A new callback's body.
pub(crate) fn push() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    json!({"event_type": 1, "stream_id": "s", "sequence": number.to_string()}).to_string()
}

/// A new callback's body of exactly `length` bytes.
pub(crate) fn push_of(length: usize) -> String {
    let body = push();
    body.replacen('}', &format!("{}}}", " ".repeat(length - body.len())), 1)
}

#[track_caller]
pub(crate) fn assert_accepted(answer: &Answer) {
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"code":0}"#), "{}", answer.head);
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

/// An error has a JSON body with the status and the reason.
#[track_caller]
pub(crate) fn assert_rejected(answer: &Answer, status: u16, says: &str) {
    assert_eq!(answer.status, status, "{}{}", answer.head, answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    assert_eq!(body["code"], status);
    assert!(body["message"].as_str().unwrap().contains(says), "{body}");
}
