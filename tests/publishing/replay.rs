//! `livebridge replay` sends dead letters and exports to Kafka again, and only what was requested.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::kafka::{Config, Delivery, ReadError, topic_reader};
use livebridge::sample::Samples;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation, Message};
use crate::support::kafka::{self, Cluster, Kafka, Setup};
use crate::support::process::Finished;
use crate::support::wire::deliver;
use crate::support::{self, temp_file};

const DRAIN: Duration = Duration::from_mins(1);

/// A signed callback of this type with a body of about `bytes` bytes.
pub(crate) fn body(event_type: i64, bytes: usize) -> String {
    let samples = Samples::new(CallbackKey::new(KEY));
    let mut event = samples.event(EventType(event_type));
    event.insert("padding".into(), "x".repeat(bytes).into());
    samples.delivery(event, Timestamp::now())
}

fn replay(bridge: &Bridge, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Finished { code, stdout, stderr } = bridge.run(&[&["replay"], arguments].concat());
    (code, stdout, stderr)
}

fn committed(test: &str, kafka: &Kafka, topics: &[&str]) -> Option<Vec<Message>> {
    support::or_skip(test, consumer::read(kafka.bootstrap(), topics, Isolation::Committed))
}

#[test]
fn dead_letters_reach_their_topic_once_after_it_is_fixed() {
    let Some(kafka) = Kafka::shared_or_skip("dead letters") else { return };
    let prefix = support::unique("replay");
    let (push, dead) = (format!("{prefix}.push"), format!("{prefix}.dead-letter"));
    let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix);
    bridge.start();
    deliver(bridge.intake(), [body(1, 10)]);
    bridge.drain(DRAIN);
    kafka::configure_topic(kafka.bootstrap(), &push, &[("max.message.bytes", "20000")]);
    let large = body(1, 100_000);
    deliver(bridge.intake(), [&large]);
    bridge.drain(DRAIN);
    assert_eq!(bridge.metric("livebridge_dead_letters_total"), Some(1.0));
    let log = bridge.log_text();
    assert!(!log.contains("sending fewer in one request"), "it was alone in its request: {log}");

    // Nothing is sent without confirmation.
    let (code, output_text, complaint) = replay(&bridge, &["--dead-letters"]);
    assert_eq!(code, Some(0), "{output_text}{complaint}");
    assert!(output_text.starts_with("1 record, 1 event selected\n"), "{output_text}");
    assert!(
        output_text.contains(&format!("  {push:<26} 1 to send, 0 already in the topic\n")),
        "{output_text}"
    );
    assert!(
        output_text.ends_with("Nothing was sent. Run it again with --yes to send.\n"),
        "{output_text}"
    );
    // Before the topic is fixed, the record is rejected, which is reported.
    let (code, _, complaint) = replay(&bridge, &["--dead-letters", "--yes"]);
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains(&format!("{push} rejects the event ")), "{complaint}");
    assert!(complaint.contains("max.message.bytes"), "{complaint}");

    kafka::configure_topic(kafka.bootstrap(), &push, &[]);
    for (arguments, says) in [
        (&["--until", "1h"][..], "0 records, 0 events selected\n"),
        (&["--event-type", "interrupt"], "0 records, 0 events selected\n"),
        (&["--since", "1h", "--event-type", "push"], "1 event sent\n"),
        // Now it is published.
        (&[], ", 1 already in the topic\n"),
    ] {
        let (code, output_text, _) =
            replay(&bridge, &[&["--dead-letters", "--yes"], arguments].concat());
        assert_eq!(code, Some(0), "{output_text}");
        assert!(output_text.ends_with(says), "{output_text}");
    }
    bridge.assert_running();
    // A later retry is absorbed, as after any other publication.
    deliver(bridge.intake(), [&large]);
    bridge.drain(DRAIN);
    assert!(bridge.stop().success(), "the bridge was not affected");

    let Some(messages) = committed("dead letters", kafka, &[&push, &dead]) else { return };
    assert_eq!(messages.len(), 3);
    let of = |topic: &str| {
        let mut found = messages.iter().filter(|m| m.topic == topic && m.value().len() > 50_000);
        let message = found.next().unwrap();
        assert!(found.next().is_none(), "once in {topic}");
        message
    };
    let (sent, letter) = (of(&push), of(&dead));
    assert_eq!(sent.value(), large.as_bytes());
    assert_eq!((sent.key(), sent.timestamp), (letter.key(), letter.timestamp));
    for header in ["ce_id", "ce_time", "ce_type", "ce_subject", "livebridge-received-at"] {
        assert!(sent.header(header).is_some(), "{header}");
        assert_eq!(sent.header(header), letter.header(header), "{header}");
    }
    assert_eq!(sent.header("livebridge-topic"), None);
    assert_eq!(sent.header("livebridge-reason"), None);
    assert!(sent.header("livebridge-replayed-at").unwrap().starts_with("20"));
}

#[test]
fn the_log_of_a_lost_host_is_replayed_by_another_one() {
    let Some(kafka) = Kafka::shared_or_skip("rescue") else { return };
    let prefix = support::unique("rescue");
    let other = Bridge::new(&support::unique("other"), kafka.bootstrap(), &prefix);
    other.start();
    let lost = Bridge::new(&support::unique("lost"), kafka.bootstrap(), &prefix);
    lost.start();
    let early = body(1, 10);
    deliver(lost.intake(), [&early]);
    lost.drain(DRAIN);
    lost.kill();
    let lost = lost.set("KAFKA_BROKERS", kafka::UNREACHABLE);
    lost.start();
    let late: Vec<String> = [1, 0, 100, 4711].iter().map(|kind| body(*kind, 10)).collect();
    for body in &late {
        deliver(lost.intake(), [body]);
    }
    lost.kill();

    // The export contains all records; the published one is skipped.
    let lines = lost.export();
    assert!(lines.lines().count() >= late.len(), "{lines}");
    // Every record twice: an export may be concatenated from several.
    let file = temp_file(format!("{lines}{lines}"));
    let file = file.path().to_str().unwrap();
    let (code, output_text, complaint) = replay(&other, &["--export", file, "--yes"]);
    assert_eq!(code, Some(0), "{output_text}{complaint}");
    assert!(output_text.ends_with("\n4 events sent\n"), "{output_text}");
    let (_, output_text, _) = replay(&other, &["--export", file, "--yes"]);
    assert!(
        !output_text.contains("sent\n"),
        "the second time there is nothing to do: {output_text}"
    );
    // A client sends it again to the remaining instance.
    deliver(other.intake(), [&late[0]]);
    other.drain(DRAIN);
    assert!(other.stop().success());

    let topics = ["push", "interrupt", "record", "other"].map(|name| format!("{prefix}.{name}"));
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let Some(messages) = committed("rescue", kafka, &topics) else { return };
    let mut found: Vec<&[u8]> = messages.iter().map(Message::value).collect();
    let mut expected: Vec<&[u8]> = late.iter().chain([&early]).map(String::as_bytes).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "each once");
}

#[test]
fn replay_goes_only_to_existing_topics_and_never_to_the_ledger() {
    let Some(kafka) = Kafka::shared_or_skip("another topic") else { return };
    let prefix = support::unique("elsewhere");
    let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix);
    bridge.start();
    deliver(bridge.intake(), [body(1, 10)]);
    bridge.drain(DRAIN);
    let file = temp_file(bridge.export());
    let file = file.path().to_str().unwrap();
    let (ledger, sandbox) = (format!("{prefix}.ledger"), format!("{prefix}.sandbox"));
    for (topic, says) in [(&ledger, "this is the ledger"), (&sandbox, "there is no such topic")] {
        let (code, _, complaint) = replay(&bridge, &["--export", file, "--to", topic, "--yes"]);
        assert_eq!(code, Some(64), "{complaint}");
        assert!(complaint.contains(says), "{complaint}");
    }
    kafka::create_topic(kafka.bootstrap(), &sandbox, 1, 1);
    for extra in [&["--yes"][..], &["--yes"], &["--again", "--yes"]] {
        let arguments = [&["--export", file, "--to", &sandbox], extra].concat();
        let (code, output_text, complaint) = replay(&bridge, &arguments);
        assert_eq!(code, Some(0), "{output_text}{complaint}");
    }
    let Some(messages) = committed("another topic", kafka, &[&sandbox]) else { return };
    assert_eq!(messages.len(), 2, "once, and once more as requested");

    fs::write(file, "{\"id\":\"x\"}\n").unwrap();
    let (code, _, complaint) = replay(&bridge, &["--export", file]);
    assert_eq!(code, Some(64));
    assert!(complaint.contains(&format!("{file}:1: not a line that")), "{complaint}");
}

#[test]
fn writes_to_one_partition_do_not_end_the_reading_of_another() {
    const QUIET: usize = 30_000;
    let Some(kafka) = Kafka::shared_or_skip("live traffic") else { return };
    let topic = support::unique("live");
    kafka::create_topic(kafka.bootstrap(), &topic, 2, 1);
    let producer: BaseProducer =
        kafka::client(kafka.bootstrap()).set("linger.ms", "1").create().unwrap();
    let put = |partition: i32, value: &[u8]| {
        let record = BaseRecord::<[u8], [u8]>::to(&topic).partition(partition).payload(value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    };
    for number in 0..QUIET {
        put(0, &[0; 1000]);
        if number % 1000 == 0 {
            producer.flush(DRAIN).unwrap();
        }
    }
    producer.flush(DRAIN).unwrap();
    let config = Config {
        brokers: kafka.bootstrap().to_owned(),
        instance: topic.clone(),
        delivery: Delivery::ExactlyOnce,
        create_topics: false,
        partitions: 2,
        replication: 1,
        client: std::iter::once(("fetch.message.max.bytes".into(), "100000".into())).collect(),
    };
    let done = AtomicBool::new(false);
    let mut seen = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                put(1, b"live");
                producer.poll(Duration::from_millis(2));
            }
        });
        let beginning = Timestamp::from_millis(0);
        let read = topic_reader::read_to_end(&config, &topic, beginning, |landed| {
            seen += usize::from(landed.partition == 0);
            Ok::<_, ReadError>(())
        });
        done.store(true, Ordering::Relaxed);
        read.unwrap();
    });
    assert_eq!(seen, QUIET);
}

#[test]
fn records_behind_an_open_transaction_are_not_sent_again() {
    let Some(kafka) = Kafka::shared_or_skip("open transaction") else { return };
    let prefix = support::unique("hidden");
    let push = format!("{prefix}.push");
    let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix);
    bridge.start();
    deliver(bridge.intake(), [body(1, 10)]);
    bridge.drain(DRAIN);
    let file = temp_file(bridge.export());
    let started = Instant::now();
    let (code, ..) = replay(&bridge, &["--export", file.path().to_str().unwrap()]);
    assert_eq!(code, Some(0));
    // By then, a replay waits for the transaction.
    let pause = Duration::from_secs(3).max(3 * started.elapsed());
    // A host opens a transaction and crashes. The transaction is open in one partition, and the
    // bridge's next event in that partition is behind it.
    let dead: BaseProducer = kafka::client(kafka.bootstrap())
        .set("transactional.id", format!("{prefix}.dead"))
        .create()
        .unwrap();
    dead.init_transactions(DRAIN).unwrap();
    dead.begin_transaction().unwrap();
    let metadata = dead.client().fetch_metadata(Some(&push), DRAIN).unwrap();
    for partition in metadata.topics()[0].partitions() {
        let record = BaseRecord::<[u8], [u8]>::to(&push).partition(partition.id()).payload(b"{}");
        dead.send(record).map_err(|(error, _)| error).unwrap();
    }
    dead.flush(DRAIN).unwrap();
    deliver(bridge.intake(), [body(1, 20)]);
    bridge.drain(DRAIN);

    let file = temp_file(bridge.export());
    let file = file.path().to_str().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(pause);
            dead.abort_transaction(DRAIN).unwrap();
        });
        let (code, output_text, complaint) = replay(&bridge, &["--export", file]);
        assert_eq!(code, Some(0), "{output_text}{complaint}");
        assert!(output_text.contains(&format!("  {push:<26} 0 to send, ")), "{output_text}");
    });
}

#[test]
fn check_reports_a_kafka_without_transactions_instead_of_hanging() {
    let setup = Setup::nodes(1).property("transaction.state.log.replication.factor", "3");
    let Some(cluster) = Cluster::start_or_skip("no transactions", &setup) else { return };
    let prefix = support::unique("unanswered");
    let bridge = Bridge::new(&prefix, &cluster.bootstrap(), &prefix);
    let checked = bridge.run(&["check"]);
    assert_eq!(checked.code, Some(69), "{checked:?}");
    assert!(checked.stdout.contains("__transaction_state"), "{checked:?}");
}
