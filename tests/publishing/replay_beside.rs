//! `livebridge replay` publishes as one more instance: beside a bridge, twice at once, killed and run
//! again, and on brokers without idempotent producers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use livebridge::callback::{CallbackKey, UnsignedPolicy, UnverifiedCallback, Verifier};
use livebridge::event::{EventType, Timestamp};
use livebridge::publisher::Exported;
use livebridge::sample::Samples;
use rdkafka::types::RDKafkaApiKey;

use crate::replay::body;
use crate::support;
use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{self, Kafka};
use crate::support::wire::deliver;

const DRAIN: Duration = Duration::from_mins(1);

/// Signed push callbacks, all different, with bodies of about `bytes` bytes.
fn bodies(count: usize, bytes: usize) -> Vec<String> {
    (0..count).map(|_| body(1, bytes)).collect()
}

/// An export of a log with these callbacks.
fn export(dir: &Path, bodies: &[String]) -> PathBuf {
    let keys = CallbackKey::new(KEY).into_iter().collect();
    let verifier =
        Verifier { keys, leeway: Duration::from_hours(1), unsigned: UnsignedPolicy::default() };
    let line = |body: &String| {
        let body = Bytes::from(body.clone());
        let now = Timestamp::now();
        let callback = UnverifiedCallback::parse(&body).unwrap().verify(&verifier, now).unwrap();
        let record = callback.into_record(now, &[]).unwrap();
        serde_json::to_string(&Exported::of(&record)).unwrap() + "\n"
    };
    let path = dir.join("export.jsonl");
    fs::write(&path, bodies.iter().map(line).collect::<String>()).unwrap();
    path
}

fn replay(bridge: &Bridge, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
    command.arg("replay").args(arguments).envs(bridge.environment()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its output, after it has succeeded.
fn succeed(replay: Child) -> String {
    let output = replay.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{complaint}");
    text
}

/// Every one of `bodies` is in `topic` once, and nothing else.
fn assert_each_once(bootstrap: &str, topic: &str, bodies: &[String]) -> bool {
    let read = consumer::read_fields(bootstrap, &[topic], Isolation::Committed, ["value"]);
    let Some(found) = support::or_skip("replay", read) else { return false };
    consumer::assert_each_once(found.iter().map(|[value]| value.as_bytes()), bodies);
    true
}

fn wait_until_some_are_published(kafka: &Kafka, topic: &str) {
    let are_there = || kafka::size(kafka.bootstrap(), topic) >= 100;
    support::wait_until(DRAIN, are_there, || "nothing is published".to_owned());
}

/// A running bridge whose topics exist.
fn ready_bridge(kafka: &Kafka, prefix: &str) -> Bridge {
    let bridge = Bridge::new(prefix, kafka.bootstrap(), prefix);
    bridge.start();
    bridge.wait_until_connected(DRAIN);
    bridge
}

#[test]
fn an_event_older_than_a_day_is_found_in_its_topic() {
    let Some(kafka) = Kafka::shared_or_skip("old event") else { return };
    let prefix = support::unique("old");
    let bridge = ready_bridge(kafka, &prefix);
    let samples = Samples::new(CallbackKey::new(KEY));
    let mut event = samples.event(EventType(1));
    let three_days_ago = Timestamp::now().before(Duration::from_hours(72)).as_millis() / 1000;
    event.insert("event_time".into(), three_days_ago.into());
    let body = samples.delivery(event, Timestamp::now());
    deliver(bridge.intake(), [&body]);
    bridge.drain(DRAIN);
    let file = export(&bridge.wal(), std::slice::from_ref(&body));
    let text = succeed(replay(&bridge, &["--export", file.to_str().unwrap(), "--yes"]));
    assert!(text.contains("0 to send, 1 already in the topic"), "{text}");
    assert_each_once(kafka.bootstrap(), &format!("{prefix}.push"), &[body]);
}

#[test]
fn beside_a_bridge_that_takes_the_same_events_nothing_is_published_twice() {
    let Some(kafka) = Kafka::shared_or_skip("beside a bridge") else { return };
    let prefix = support::unique("beside");
    let bridge = ready_bridge(kafka, &prefix);
    let bodies = bodies(6000, 1000);
    let file = export(&bridge.wal(), &bodies);
    std::thread::scope(|scope| {
        // From the other end, so that both publish the events in the middle at about one time.
        scope.spawn(|| {
            let reversed: Vec<String> = bodies.iter().rev().cloned().collect();
            deliver(bridge.intake(), &reversed);
        });
        succeed(replay(&bridge, &["--export", file.to_str().unwrap(), "--yes"]));
    });
    bridge.drain(DRAIN);
    bridge.assert_running();
    assert_each_once(kafka.bootstrap(), &format!("{prefix}.push"), &bodies);
}

#[test]
fn three_replays_at_once_publish_each_event_once() {
    let Some(kafka) = Kafka::shared_or_skip("at once") else { return };
    let prefix = support::unique("at-once");
    let bridge = ready_bridge(kafka, &prefix);
    let bodies = bodies(3000, 300);
    let file = export(&bridge.wal(), &bodies);
    let arguments = ["--export", file.to_str().unwrap(), "--yes"];
    let replays: Vec<Child> = (0..3).map(|_| replay(&bridge, &arguments)).collect();
    for replay in replays {
        succeed(replay);
    }
    assert_each_once(kafka.bootstrap(), &format!("{prefix}.push"), &bodies);
}

#[test]
fn a_replay_that_is_killed_and_run_again_publishes_each_event_once() {
    let Some(kafka) = Kafka::shared_or_skip("killed") else { return };
    // Of few events, a replay may have published all before a busy machine kills it.
    let is_killed_in_the_middle =
        [6000, 30_000].into_iter().any(|count| kill_and_run_again(kafka, count));
    assert!(is_killed_in_the_middle, "the replays had ended before they were killed");
}

/// Whether the replay of `count` events was killed before it had published all.
fn kill_and_run_again(kafka: &Kafka, count: usize) -> bool {
    let prefix = support::unique("killed");
    let bridge = ready_bridge(kafka, &prefix);
    let topic = format!("{prefix}.push");
    let bodies = bodies(count, 2000);
    let file = export(&bridge.wal(), &bodies);
    let arguments = ["--export", file.to_str().unwrap(), "--yes"];
    let mut killed = replay(&bridge, &arguments);
    wait_until_some_are_published(kafka, &topic);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let text = succeed(replay(&bridge, &arguments));
    assert_each_once(kafka.bootstrap(), &topic, &bodies);
    text.lines().any(|line| line.ends_with(" events sent") && line != "0 events sent")
}

#[test]
fn of_two_replays_to_one_other_topic_the_first_is_ended() {
    let Some(kafka) = Kafka::shared_or_skip("other topic") else { return };
    let prefix = support::unique("to-other");
    let bridge = ready_bridge(kafka, &prefix);
    let target = format!("{prefix}.sandbox");
    kafka::create_topic(kafka.bootstrap(), &target, 1, 1);
    let bodies = bodies(6000, 2000);
    let file = export(&bridge.wal(), &bodies);
    let arguments = ["--export", file.to_str().unwrap(), "--to", &target, "--yes"];
    let mut first = replay(&bridge, &arguments);
    wait_until_some_are_published(kafka, &target);
    succeed(replay(&bridge, &arguments));
    let has_ended = || first.try_wait().unwrap().is_some();
    support::wait_until(DRAIN, has_ended, || "the first one does not end".to_owned());
    let first = first.wait_with_output().unwrap();
    let complaint = String::from_utf8(first.stderr).unwrap();
    assert!(
        first.status.success() || complaint.contains("another replay with --to"),
        "{complaint}"
    );
    assert_each_once(kafka.bootstrap(), &target, &bodies);
}

#[test]
fn brokers_without_idempotent_producers_get_every_event_of_a_replay() {
    let mock = kafka::mock_cluster("plain", 1, 1);
    mock.apiversion(RDKafkaApiKey::InitProducerId, None, None).unwrap();
    let brokers = mock.bootstrap_servers();
    let bridge = Bridge::new("plain", &brokers, "plain")
        .set("KAFKA_DELIVERY", "at-least-once")
        .set("KAFKA_CREATE_TOPICS", "false");
    let dir = tempfile::tempdir().unwrap();
    let bodies = bodies(500, 100);
    let file = export(dir.path(), &bodies);
    let text = succeed(replay(&bridge, &["--export", file.to_str().unwrap(), "--yes"]));
    assert!(text.contains("500 events sent"), "{text}");
    assert_eq!(kafka::size(&brokers, "plain.push"), 500);
}
