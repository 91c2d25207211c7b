//! Wrong clocks: a clock that is set forward or back loses and repeats nothing, timestamps that Kafka
//! rejects are an outage and no record's fault, old events are kept for as long as new ones, and
//! what takes hours happens within seconds.

use std::thread;
use std::time::{Duration, Instant};

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::sample::Samples;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;

use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation, Message};
use crate::support::kafka::{self, Cluster, Kafka, Setup, TIME_LIMIT};
use crate::support::load::{Load, Plan};
use crate::support::process::{livebridge, run};
use crate::support::random::Random;
use crate::support::shift::Shift;
use crate::support::wire::deliver;
use crate::support::{self, turn};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const DELIVERIES: [&str; 2] = ["exactly-once", "at-least-once"];

/// A bridge that accepts signatures whatever its clock says.
fn bridge(brokers: &str, prefix: &str, delivery: &str) -> Bridge {
    Bridge::new(prefix, brokers, prefix)
        .set("KAFKA_DELIVERY", delivery)
        .set("CALLBACK_EXPIRY_LEEWAY", "36500days")
}

/// A callback whose event happened `ago` seconds ago by the unshifted clock.
fn callback(number: u32, ago: i64) -> String {
    let samples = Samples::new(CallbackKey::new(KEY));
    let mut event = samples.event(EventType(1));
    event.insert("stream_id".into(), "one".into());
    event.insert("sequence".into(), format!("{number}").into());
    event.insert("number".into(), number.into());
    event.insert("event_time".into(), (Timestamp::now().as_millis() / 1000 - ago).into());
    samples.delivery(event, Timestamp::now())
}

/// What consumers see in all topics of events and dead letters.
fn published(bootstrap: &str, prefix: &str) -> Vec<Message> {
    let topics = kafka::topics(prefix);
    consumer::read(bootstrap, &topics.all(), Isolation::Committed).unwrap()
}

fn numbers(messages: &[Message]) -> Vec<u64> {
    let number = |message: &Message| {
        let body: Value = serde_json::from_slice(message.value()).unwrap();
        body["number"].as_u64().unwrap()
    };
    messages.iter().map(number).collect()
}

/// Nothing was dead-lettered or quarantined, and the outage is reported with its cause.
fn assert_is_outage(bridge: &Bridge, topic: &str) {
    let says = format!("topic {topic} rejects a timestamp");
    // The log may have the same cause of an earlier outage: of two topics that reject one transaction,
    // either can be the first.
    bridge.wait_until("disconnected", TIME_LIMIT, || !bridge.is_connected());
    let is_logged = || bridge.log_text().contains(&says);
    bridge.wait_until("logging the cause", TIME_LIMIT, is_logged);
    let text = bridge.log_text();
    let line = text.lines().find(|line| line.contains(&says)).unwrap();
    for part in ["ERROR", "cannot publish to Kafka", "NTP", "message.timestamp.after.max.ms"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    for metric in ["livebridge_dead_letters_total", "livebridge_quarantined_total"] {
        assert_eq!(bridge.metric(metric), Some(0.0), "{metric}");
    }
    assert!(!bridge.is_connected(), "an outage shows in livebridge_kafka_up");
}

#[test]
fn a_topic_that_rejects_old_timestamps_delays_records_and_rejects_none() {
    let _turn = turn::beside_others();
    let Some(kafka) = Kafka::shared_or_skip("old timestamps") else { return };
    for delivery in DELIVERIES {
        let prefix = support::unique("strict");
        let topic = format!("{prefix}.push");
        let bridge = bridge(kafka.bootstrap(), &prefix, delivery);
        bridge.start();
        bridge.wait_until_connected(TIME_LIMIT);
        let strict = [("message.timestamp.before.max.ms", "3600000")];
        kafka::configure_topic(kafka.bootstrap(), &topic, &strict);
        deliver(bridge.intake(), [&callback(1, 0)]);
        bridge.drain(TIME_LIMIT);

        let since = Instant::now();
        for number in 2..=4 {
            deliver(bridge.intake(), [&callback(number, 2 * HOUR * i64::from(number % 2))]);
        }
        assert_is_outage(&bridge, &topic);
        deliver(bridge.intake(), [&callback(5, 0)]);
        // The pauses between attempts grow, and every attempt fails in the same way.
        thread::sleep(Duration::from_secs(3));
        assert_is_outage(&bridge, &topic);
        let log_text = bridge.log_text();
        let reported = log_text.find("rejects a timestamp").unwrap();
        assert!(!log_text[reported..].contains("publishing to Kafka again"), "it lasts");
        let most = 1 + since.elapsed().as_secs() / 60;
        let count = log_text.matches("rejects a timestamp").count() as u64;
        assert!((1..=most).contains(&count), "once a minute: {log_text}");
        if delivery == "exactly-once" {
            let mut check = livebridge(&["check"]);
            check.envs(bridge.environment()).env("LIVEBRIDGE_KAFKA_INSTANCE", "another");
            let found = run(&mut check);
            let text = found.stdout + &found.stderr;
            assert!(text.contains(&format!("topic {topic} rejects a timestamp")), "{text}");
        }

        kafka::configure_topic(kafka.bootstrap(), &topic, &[]);
        bridge.drain(TIME_LIMIT);
        assert!(bridge.is_connected());
        let is_logged = || bridge.log_text()[reported..].contains("publishing to Kafka again");
        bridge.wait_until("logging the end", TIME_LIMIT, is_logged);
        assert_eq!(bridge.metric("livebridge_dead_letters_total"), Some(0.0));
        let messages = published(kafka.bootstrap(), &prefix);
        assert_eq!(numbers(&messages), [1, 2, 3, 4, 5], "{delivery}");
        assert!(messages.iter().all(|message| message.topic == topic));
    }
}

#[test]
fn a_broker_clock_more_than_an_hour_behind_delays_records_and_rejects_none() {
    let _turn = turn::beside_others();
    let Some(kafka) = Kafka::shared_or_skip("a broker's clock") else { return };
    let Some(shift) = Shift::new("a broker's clock") else { return };
    for delivery in DELIVERIES {
        let prefix = support::unique("ahead");
        let bridge = shift.apply(bridge(kafka.bootstrap(), &prefix, delivery));
        bridge.start();
        bridge.wait_until_connected(TIME_LIMIT);
        deliver(bridge.intake(), [&callback(1, 0)]);
        bridge.drain(TIME_LIMIT);
        shift.set(2 * HOUR);
        deliver(bridge.intake(), [&callback(2, -2 * HOUR)]);
        assert_is_outage(&bridge, &format!("{prefix}.push"));
        deliver(bridge.intake(), [&callback(3, -2 * HOUR)]);
        shift.set(0);
        bridge.drain(TIME_LIMIT);
        assert!(bridge.is_connected());

        // The ledger record bears the time of receipt, whatever the event's time is.
        shift.set(2 * HOUR);
        deliver(bridge.intake(), [&callback(4, 0)]);
        assert_is_outage(&bridge, &format!("{prefix}.ledger"));
        shift.set(0);
        bridge.drain(TIME_LIMIT);
        let messages = published(kafka.bootstrap(), &prefix);
        assert_eq!(numbers(&messages), [1, 2, 3, 4], "{delivery}");
        assert_eq!(bridge.metric("livebridge_dead_letters_total"), Some(0.0));
    }
}

/// Brokers that accept every timestamp.
fn lenient() -> Setup {
    Setup::nodes(1).property("log.message.timestamp.after.max.ms", &i64::MAX.to_string())
}

#[test]
fn a_retry_is_absorbed_after_the_clock_was_set_at_run_time_and_before_a_restart() {
    let _turn = turn::beside_others();
    let Some(shift) = Shift::new("retries by other clocks") else { return };
    let Some(cluster) = Cluster::start_or_skip("retries by other clocks", &lenient()) else {
        return;
    };
    for delivery in DELIVERIES {
        for (to, back) in [(2 * HOUR, false), (-2 * HOUR, false), (3 * DAY, true), (-3 * DAY, true)]
        {
            let prefix = support::unique("retry");
            shift.set(0);
            let bridge = shift.apply(bridge(&cluster.bootstrap(), &prefix, delivery));
            bridge.start();
            let first = callback(1, 0);
            deliver(bridge.intake(), [&first]);
            bridge.drain(TIME_LIMIT);
            shift.set(to);
            deliver(bridge.intake(), [&first]);
            let (second, third) = (callback(2, 0), callback(3, 0));
            deliver(bridge.intake(), [&second]);
            bridge.drain(TIME_LIMIT);
            assert!(bridge.stop().success(), "{}", bridge.last_lines());

            // After a restart the ids come from the ledger topic.
            shift.set(if back { 0 } else { 2 * to });
            bridge.start();
            for body in [&first, &second, &third, &third, &first] {
                deliver(bridge.intake(), [body]);
            }
            bridge.drain(TIME_LIMIT);
            let messages = published(&cluster.bootstrap(), &prefix);
            assert_eq!(numbers(&messages), [1, 2, 3], "{delivery}, clock set by {to} s");
            bridge.kill();
        }
    }
}

#[test]
fn setting_the_clock_under_load_loses_and_repeats_nothing() {
    let _turn = turn::beside_others();
    let test = "clock under load";
    let Some(shift) = Shift::new(test) else { return };
    let Some(cluster) = Cluster::start_or_skip(test, &lenient()) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut random = Random::new(test);
    for delivery in DELIVERIES {
        let prefix = support::unique("load");
        shift.set(0);
        let bridge = shift.apply(bridge(&cluster.bootstrap(), &prefix, delivery));
        bridge.start();
        let load = Load::start(runtime.handle(), Plan::new(bridge.intake()), &mut random);
        for (step, to) in
            [2 * HOUR, -30 * MINUTE, -2 * HOUR, 0, 3 * DAY, -3 * DAY, 5].into_iter().enumerate()
        {
            load.wait_for(150, TIME_LIMIT);
            if step % 3 == 2 && delivery == "exactly-once" {
                bridge.kill();
                shift.set(to);
                bridge.start();
            } else {
                shift.set(to);
            }
            let published = || bridge.metric("livebridge_published_total").unwrap_or(0.0);
            let before = published();
            bridge.wait_until("publishing", TIME_LIMIT, || published() > before);
        }
        load.wait_for(150, TIME_LIMIT);
        let acknowledged = load.finish(TIME_LIMIT);
        bridge.drain(TIME_LIMIT);
        assert!(acknowledged.resent > 0, "retries were sent");
        let verdict = acknowledged.check(&cluster.bootstrap(), &prefix);
        let Some(verdict) = support::or_skip(test, verdict) else { return };
        eprintln!("{test}, {delivery}: {verdict}");
        verdict.assert_clean();
    }
}

/// Writes a record with the given timestamp.
fn write(bootstrap: &str, topic: &str, timestamp: Timestamp) {
    let producer: BaseProducer = kafka::client(bootstrap).create().unwrap();
    let record = BaseRecord::<str, str>::to(topic).payload("x").timestamp(timestamp.as_millis());
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(TIME_LIMIT).unwrap();
}

/// Waits until the retention of the broker has deleted everything from a topic of one partition.
fn wait_until_deleted(bootstrap: &str, topic: &str) {
    let consumer: BaseConsumer = kafka::client(bootstrap).create().unwrap();
    let range = || consumer.fetch_watermarks(topic, 0, TIME_LIMIT).unwrap();
    let is_empty = || range().0 == range().1;
    let message = || format!("retention has not deleted the offsets {:?}", range());
    support::wait_until(TIME_LIMIT, is_empty, message);
}

#[test]
fn an_event_of_last_week_survives_the_retention_that_deletes_a_record_with_its_time() {
    let _turn = turn::beside_others();
    let setup = Setup::nodes(1)
        .property("log.retention.check.interval.ms", "500")
        .property("log.initial.task.delay.ms", "500")
        .property("log.segment.delete.delay.ms", "100");
    let Some(cluster) = Cluster::start_or_skip("retention", &setup) else { return };
    let (bootstrap, prefix) = (cluster.bootstrap(), support::unique("week"));
    // A day of it may be used up when a record is published.
    let retention = [("retention.ms", "172800000"), ("segment.ms", "1000")];
    let control = format!("{prefix}.control");
    kafka::create_topic(&bootstrap, &control, 1, 1);
    kafka::configure_topic(&bootstrap, &control, &retention);
    let topics = kafka::topics(&prefix);
    for delivery in DELIVERIES {
        let bridge = bridge(&bootstrap, &prefix, delivery);
        bridge.start();
        bridge.wait_until_connected(TIME_LIMIT);
        for topic in topics.all() {
            kafka::configure_topic(&bootstrap, topic, &retention);
        }
        let number = if delivery == "exactly-once" { 1 } else { 2 };
        deliver(bridge.intake(), [&callback(number, 8 * DAY)]);
        bridge.drain(TIME_LIMIT);
        bridge.stop();
        // A record with the event's own time is deleted, twice, so that every partition has been
        // looked at since.
        for _ in 0..2 {
            write(&bootstrap, &control, Timestamp::now().before(Duration::from_hours(8 * 24)));
            wait_until_deleted(&bootstrap, &control);
        }
    }
    let messages = published(&bootstrap, &prefix);
    let mut found = numbers(&messages);
    found.sort_unstable();
    assert_eq!(found, [1, 2]);
    for message in &messages {
        let time = message.header("ce_time").and_then(Timestamp::parse).unwrap();
        let days = Timestamp::now().since(time).as_secs() / 86_400;
        assert_eq!(days, 8, "ce_time is the event's own time");
    }
}

/// Instances that publish every 90 minutes fence each other as rarely; none of them exits.
#[test]
fn two_instances_with_one_name_that_publish_seldom_are_named_as_the_cause() {
    const SAYS: &str = "probably another livebridge has the same kafka.instance";
    let _turn = turn::beside_others();
    let Some(kafka) = Kafka::shared_or_skip("slow namesakes") else { return };
    let Some(shift) = Shift::new("slow namesakes") else { return };
    let prefix = support::unique("seldom");
    let bridges = [(); 2].map(|()| shift.apply(bridge(kafka.bootstrap(), &prefix, "exactly-once")));
    let fenced = || -> f64 {
        bridges.iter().filter_map(|bridge| bridge.metric("livebridge_fenced_total")).sum()
    };
    // The one that starts first is fenced by the start of the other.
    for bridge in &bridges {
        bridge.start();
        bridge.wait_until_connected(TIME_LIMIT);
    }
    // Whichever is fenced for the third time within six hours reports it.
    for number in 0..7 {
        let bridge = &bridges[number as usize % 2];
        deliver(bridge.intake(), [&callback(number, 0)]);
        bridge.drain(TIME_LIMIT);
        bridges.iter().for_each(Bridge::assert_running);
        let named = bridges.iter().any(|bridge| bridge.log_text().contains(SAYS));
        assert_eq!(named, fenced() >= 5.0, "{} times fenced", fenced());
        shift.pass((i64::from(number) + 1) * 45 * MINUTE);
    }
    assert!(fenced() >= 7.0, "{} times fenced, not once by each callback", fenced());
    let text = bridges.each_ref().map(Bridge::log_text).concat();
    let line = text.lines().find(|line| line.contains(SAYS)).unwrap();
    assert!(line.contains("ERROR") && line.contains(&format!("instance={prefix:?}")), "{line}");
    let mut found = numbers(&published(kafka.bootstrap(), &prefix));
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2, 3, 4, 5, 6]);
}
