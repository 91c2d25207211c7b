//! Log directories that are copied, restored, emptied and cloned, with the real binary and a real
//! broker: every acknowledged callback is in Kafka once, and the self-audit reports none missing.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::sample::Samples;

use crate::support;
use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{Kafka, UNREACHABLE};

/// Restarts by a service manager after a directory was restored: enough to pass the segment numbers
/// that the original reached.
const STARTS: u32 = 8;
const DRAIN: Duration = Duration::from_mins(1);

/// The callbacks that the bridges of one test acknowledged.
struct Site {
    kafka: &'static Kafka,
    prefix: String,
    acknowledged: Vec<String>,
    next: u32,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        let kafka = Kafka::shared_or_skip(test)?;
        let prefix = support::unique("restore");
        Some(Self { kafka, prefix, acknowledged: Vec::new(), next: 0 })
    }

    fn bridge(&self) -> Bridge {
        let instance = support::unique("instance");
        Bridge::new(&instance, self.kafka.bootstrap(), &self.prefix)
    }

    /// Sends `count` callbacks and stores those that are acknowledged.
    fn send(&mut self, bridge: &Bridge, count: u32) {
        let samples = Samples::new(CallbackKey::new(KEY));
        for number in self.next..self.next + count {
            let mut event = samples.event(EventType(1));
            event.insert("sequence".into(), number.to_string().into());
            let body = samples.delivery(event, Timestamp::now());
            if bridge.post(&body).is_some_and(|answer| answer.status == 200) {
                self.acknowledged.push(body);
            }
        }
        self.next += count;
    }

    /// One process, from its start until it is killed or exits.
    fn life(&mut self, bridge: &Bridge, count: u32) {
        bridge.spawn();
        let is_settled = || bridge.is_over() || TcpStream::connect(bridge.intake()).is_ok();
        support::wait_until(Duration::from_secs(20), is_settled, || bridge.last_lines());
        self.send(bridge, count);
        bridge.killer().kill();
    }

    /// One process that publishes everything.
    fn run_and_publish(&mut self, bridge: &Bridge, count: u32) {
        bridge.start();
        let before = self.acknowledged.len();
        self.send(bridge, count);
        assert_eq!(self.acknowledged.len() - before, count as usize, "all are accepted");
        bridge.drain(DRAIN);
        assert!(bridge.stop().success());
    }

    /// Every acknowledged callback is published once, and no bridge's audit reports a difference.
    fn check(&self, test: &str, bridges: &[&Bridge]) {
        for bridge in bridges {
            bridge.drain(DRAIN);
            assert_eq!(bridge.metric("livebridge_audit_missing_records"), Some(0.0));
        }
        let topic = format!("{}.push", self.prefix);
        let read = consumer::read(self.kafka.bootstrap(), &[&topic], Isolation::Committed);
        let Some(messages) = support::or_skip(test, read) else { return };
        let mut times = BTreeMap::<&[u8], u32>::new();
        for message in &messages {
            *times.entry(message.value()).or_default() += 1;
        }
        let sent = self.acknowledged.len();
        assert!(sent > 0, "callbacks were acknowledged");
        let lost = self.acknowledged.iter().filter(|body| !times.contains_key(body.as_bytes()));
        assert_eq!(lost.count(), 0, "of {sent} acknowledged callbacks are lost");
        let twice = times.values().filter(|times| **times > 1).count();
        assert_eq!(twice, 0, "of {sent} callbacks are present more than once");
        eprintln!("{test}: {sent} acknowledged, {} published", times.len());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The original continues after the copy was made, so that the ledger is ahead of the copy; then
/// the copy replaces it.
fn restore(test: &str, unreachable_starts: u32, while_running: bool) {
    let Some(mut site) = Site::new(test) else { return };
    let brokers = site.kafka.bootstrap();
    let mut bridge = site.bridge();
    let saved = tempfile::tempdir().unwrap();
    if while_running {
        bridge.start();
        site.send(&bridge, 10);
        bridge.drain(DRAIN);
        copy(&bridge.wal(), saved.path());
        site.send(&bridge, 100);
        bridge.drain(DRAIN);
        assert!(bridge.stop().success());
    } else {
        site.run_and_publish(&bridge, 10);
        // The copy has a backlog, which the original publishes.
        bridge = bridge.set("KAFKA_BROKERS", UNREACHABLE);
        site.life(&bridge, 10);
        copy(&bridge.wal(), saved.path());
        bridge = bridge.set("KAFKA_BROKERS", brokers);
    }
    for _ in 0..5 {
        site.run_and_publish(&bridge, 40);
    }
    fs::remove_dir_all(bridge.wal()).unwrap();
    copy(saved.path(), &bridge.wal());
    for start in 0..STARTS {
        let brokers = if start < unreachable_starts { UNREACHABLE } else { brokers };
        bridge = bridge.set("KAFKA_BROKERS", brokers);
        site.life(&bridge, 10);
    }
    bridge.start();
    site.send(&bridge, 10);
    site.check(test, &[&bridge]);
    assert!(bridge.stop().success());
}

/// Regression: of 410 acknowledged callbacks 80 were skipped as published, and the audit did not
/// report them.
#[test]
fn a_restored_copy_loses_nothing_that_it_acknowledges() {
    restore("restore", 0, false);
}

#[test]
fn a_restored_copy_loses_nothing_when_kafka_is_unreachable_at_its_first_starts() {
    restore("restore without Kafka", 5, false);
}

#[test]
fn a_restored_copy_of_a_running_log_loses_nothing_that_it_acknowledges() {
    restore("restore of a running log", 2, true);
}

#[test]
fn a_log_whose_segments_were_removed_loses_nothing_that_it_acknowledges_afterwards() {
    let test = "removed segments";
    let Some(mut site) = Site::new(test) else { return };
    let brokers = site.kafka.bootstrap();
    let mut bridge = site.bridge();
    for _ in 0..4 {
        site.run_and_publish(&bridge, 20);
    }
    let segments = bridge.wal().join("segments");
    fs::remove_dir_all(&segments).unwrap();
    fs::create_dir(&segments).unwrap();
    for start in 0..STARTS {
        bridge = bridge.set("KAFKA_BROKERS", if start < 3 { UNREACHABLE } else { brokers });
        site.life(&bridge, 10);
    }
    bridge.start();
    site.send(&bridge, 10);
    site.check(test, &[&bridge]);
    assert!(bridge.stop().success());
}

/// Both have the same log ID and the same backlog, and distinct instance names.
#[test]
fn a_clone_beside_its_original_loses_nothing() {
    let test = "clone";
    let Some(mut site) = Site::new(test) else { return };
    let brokers = site.kafka.bootstrap();
    let (mut one, two) = (site.bridge(), site.bridge());
    site.run_and_publish(&one, 10);
    one = one.set("KAFKA_BROKERS", UNREACHABLE);
    site.life(&one, 50);
    one = one.set("KAFKA_BROKERS", brokers);
    copy(&one.wal(), &two.wal());
    one.start();
    two.start();
    for _ in 0..5 {
        site.send(&one, 20);
        site.send(&two, 7);
    }
    site.check(test, &[&one, &two]);
    for _ in 0..3 {
        two.kill();
        two.start();
        site.send(&two, 5);
        site.send(&one, 15);
    }
    site.check(test, &[&one, &two]);
    assert!(one.stop().success() && two.stop().success());
}
