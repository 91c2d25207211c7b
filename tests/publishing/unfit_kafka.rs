//! An unsuitable Kafka: `check` and the log name the cause and the key that fixes it, nothing is
//! lost, and nothing is written to a wrong topic.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use livebridge::event::Timestamp;
use livebridge::kafka::{Config, Delivery, LedgerReader};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::replay::body;
use crate::support;
use crate::support::bridge::Bridge;
use crate::support::kafka::{self, Cluster, Kafka, Setup, TIME_LIMIT};
use crate::support::rights::{self, Rule};
use crate::support::wire::deliver;

/// Starts `bridge` and waits until its log has an error with `says`; the bridge keeps running.
fn logs(bridge: &Bridge, says: &str) {
    bridge.start();
    bridge.wait_for_error(says, TIME_LIMIT);
    bridge.assert_running();
    assert!(!bridge.log_text().contains("Purge"), "{}", bridge.last_lines());
}

fn partitions(bootstrap: &str, topic: &str) -> usize {
    let consumer: BaseConsumer = kafka::client(bootstrap).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIME_LIMIT).unwrap();
    metadata.topics()[0].partitions().len()
}

#[test]
fn a_ledger_topic_with_several_partitions_is_rejected_and_callbacks_are_stored_meanwhile() {
    let Some(kafka) = Kafka::shared_or_skip("ledger partitions") else { return };
    for delivery in ["exactly-once", "at-least-once"] {
        let prefix = support::unique("partitioned");
        let ledger = format!("{prefix}.ledger");
        kafka::create_topic(kafka.bootstrap(), &ledger, 3, 1);
        let bridge =
            Bridge::new(&prefix, kafka.bootstrap(), &prefix).set("KAFKA_DELIVERY", delivery);
        let says = format!("the ledger topic {ledger} has 3 partitions and must have 1");
        let (code, text) = bridge.check();
        assert_eq!(code, 69, "{text}");
        assert!(text.contains("FAIL") && text.contains(&says), "{text}");
        logs(&bridge, &says);
        // The remedy that the message names.
        kafka::delete_topic(kafka.bootstrap(), &ledger);
        bridge.wait_until_connected(TIME_LIMIT);
        assert_eq!(partitions(kafka.bootstrap(), &ledger), 1);
    }
}

#[test]
fn automatic_topic_creation_creates_no_topic_for_livebridge() {
    let setup = Setup::nodes(1)
        .property("auto.create.topics.enable", "true")
        .property("num.partitions", "3");
    let Some(cluster) = Cluster::start_or_skip("auto creation", &setup) else { return };
    let bootstrap = cluster.bootstrap();
    let prefix = support::unique("auto");
    let bridge = Bridge::new(&prefix, &bootstrap, &prefix).set("KAFKA_REPLICATION", "-1");
    let (code, text) = bridge.check();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&format!("serve will create {prefix}.")), "{text}");
    assert!(
        text.contains("work; write permission can be tested only when the topics exist"),
        "{text}"
    );
    let forbidden = Bridge::new(&prefix, &bootstrap, &prefix).set("KAFKA_CREATE_TOPICS", "false");
    logs(&forbidden, "topics are missing");
    let consumer: BaseConsumer = kafka::client(&bootstrap).create().unwrap();
    let metadata = consumer.fetch_metadata(None, TIME_LIMIT).unwrap();
    let made: Vec<_> = metadata.topics().iter().filter(|t| t.name().starts_with(&prefix)).collect();
    assert!(made.is_empty(), "{} topics were created", made.len());
    drop(forbidden);
    // Without a setting, the brokers choose the number of replicas; the ledger has one partition.
    bridge.start();
    bridge.drain(TIME_LIMIT);
    bridge.wait_until_connected(TIME_LIMIT);
    assert_eq!(partitions(&bootstrap, &format!("{prefix}.ledger")), 1);
    let (code, text) = bridge.check();
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("21 topics can be written (tested with an aborted transaction)"),
        "{text}"
    );
}

#[test]
fn more_replicas_than_brokers_are_found_before_serve_needs_them() {
    let Some(kafka) = Kafka::shared_or_skip("replication") else { return };
    let prefix = support::unique("replicas");
    let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix).set("KAFKA_REPLICATION", "3");
    let says = "kafka.replication = 3, and Kafka has 1 brokers";
    let (code, text) = bridge.check();
    assert_eq!(code, 69, "{text}");
    assert!(text.contains(says), "{text}");
    logs(&bridge, says);
}

#[test]
fn the_last_record_of_a_ledger_without_transactions_is_read_after_the_switch_to_exactly_once() {
    let Some(kafka) = Kafka::shared_or_skip("switch") else { return };
    let topic = support::unique("switched.ledger");
    kafka::create_topic(kafka.bootstrap(), &topic, 1, 1);
    let plain: BaseProducer = kafka::client(kafka.bootstrap()).create().unwrap();
    let transactional: BaseProducer =
        kafka::client(kafka.bootstrap()).set("transactional.id", &topic).create().unwrap();
    transactional.init_transactions(TIME_LIMIT).unwrap();
    let send = |producer: &BaseProducer, value: &str| {
        let record = BaseRecord::<str, str>::to(&topic).partition(0).payload(value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(TIME_LIMIT).unwrap();
    };
    let config = Config {
        brokers: kafka.bootstrap().to_owned(),
        instance: topic.clone(),
        delivery: Delivery::ExactlyOnce,
        create_topics: false,
        partitions: 1,
        replication: 1,
        client: BTreeMap::new(),
    };
    let read = |reader: &mut LedgerReader| {
        let mut values = Vec::new();
        let visit = |bytes: &[u8]| values.push(String::from_utf8_lossy(bytes).into_owned());
        reader.read_to_end(&CancellationToken::new(), visit, || ()).unwrap();
        values
    };
    send(&plain, "1");
    send(&plain, "2");
    let mut reader = LedgerReader::open(&config, &topic, |(low, _), _| Ok(low)).unwrap();
    assert_eq!(read(&mut reader), ["1", "2"]);
    // Mixed records, as when only one of two instances has switched; aborted ones are not read.
    for (value, commits) in [("3", true), ("never", false)] {
        transactional.begin_transaction().unwrap();
        send(&transactional, value);
        let ended = if commits {
            transactional.commit_transaction(TIME_LIMIT)
        } else {
            transactional.abort_transaction(TIME_LIMIT)
        };
        ended.unwrap();
    }
    send(&plain, "4");
    send(&plain, "5");
    assert_eq!(read(&mut reader), ["3", "4", "5"]);
    assert_eq!(read(&mut reader), Vec::<String>::new());
    let mut another = LedgerReader::open(&config, &topic, |(low, _), _| Ok(low)).unwrap();
    assert_eq!(read(&mut another), ["1", "2", "3", "4", "5"]);
}

/// Writes a record in the format of a dead letter for each topic and length.
fn write_dead_letters(bootstrap: &str, dead: &str, letters: &[(&str, usize)]) {
    let producer: BaseProducer = kafka::client(bootstrap).create().unwrap();
    for (number, (to, bytes)) in letters.iter().enumerate() {
        let id = format!("{number:032x}");
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("ce_id", id.as_str()))
            .insert(header("ce_type", "com.tencent.live.push"))
            .insert(header("livebridge-received-at", "2026-11-28T00:00:00.000Z"))
            .insert(header("livebridge-topic", to))
            .insert(header("livebridge-reason", "a test"));
        let value = "x".repeat(*bytes);
        let record = BaseRecord::<str, str>::to(dead).payload(&value).headers(headers);
        producer.send(record.timestamp(Timestamp::now().as_millis())).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(TIME_LIMIT).unwrap();
}

#[test]
fn dead_letters_go_to_event_topics_only_and_a_rejected_one_does_not_block_the_others() {
    let Some(kafka) = Kafka::shared_or_skip("foreign dead letters") else { return };
    let prefix = support::unique("letters");
    let bridge = Bridge::new(&prefix, kafka.bootstrap(), &prefix);
    bridge.start();
    bridge.drain(TIME_LIMIT);
    let topic = |name: &str| format!("{prefix}.{name}");
    let (push, record, ledger, dead) =
        (topic("push"), topic("record"), topic("ledger"), topic("dead-letter"));
    let foreign = support::unique("foreign");
    kafka::create_topic(kafka.bootstrap(), &foreign, 1, 1);
    bridge.wait_until_connected(TIME_LIMIT);
    kafka::configure_topic(kafka.bootstrap(), &push, &[("max.message.bytes", "20000")]);
    write_dead_letters(
        kafka.bootstrap(),
        &dead,
        &[
            (&push, 10),
            (&ledger, 10),
            (&push, 100_000),
            (&dead, 10),
            (&record, 10),
            (&foreign, 10),
            (&push, 200_000),
            (&push, 30),
        ],
    );
    let before = support::consumer::read(
        kafka.bootstrap(),
        &[&ledger],
        support::consumer::Isolation::Committed,
    );
    let Some(before) = support::or_skip("foreign dead letters", before) else { return };

    let finished = bridge.run(&["replay", "--dead-letters", "--yes"]);
    let (output_text, complaint) = (finished.stdout, finished.stderr);
    assert_eq!(finished.code, Some(1), "{output_text}{complaint}");
    assert!(output_text.ends_with("3 events sent\n"), "{output_text}{complaint}");
    for topic in [&ledger, &dead, &foreign] {
        let line = format!("its topic {topic:?} is not in this configuration");
        assert_eq!(complaint.matches(&line).count(), 1, "{complaint}");
    }
    assert_eq!(complaint.matches(&format!("{push} rejects the event ")).count(), 2, "{complaint}");
    assert!(
        complaint.contains("2 events were rejected") && complaint.contains("max.message.bytes")
    );

    let isolation = support::consumer::Isolation::Committed;
    for (topic, values) in [(&push, vec![10, 30]), (&record, vec![10]), (&foreign, vec![])] {
        let found = support::consumer::read(kafka.bootstrap(), &[topic], isolation).unwrap();
        let mut found: Vec<usize> = found.iter().map(|message| message.value().len()).collect();
        found.sort_unstable();
        assert_eq!(found, values, "{topic}");
    }
    let after = support::consumer::read(kafka.bootstrap(), &[&ledger], isolation).unwrap();
    assert!(after.len() > before.len(), "the commits of the replay are in the ledger");
    assert!(
        after.iter().all(|message| !message.value().starts_with(b"xxxxxxxxxx")),
        "and no event is"
    );
}

#[test]
fn a_kafka_without_transactions_is_named_with_the_key_that_helps() {
    let cases = [
        // Brokers that do not support InitProducerId, or answer it with an error.
        (Some(RDKafkaApiKey::InitProducerId), RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR),
        (None, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION),
        (None, RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_REQUEST),
        (None, RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED),
        (None, RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
    ];
    for (unsupported, error) in cases {
        let cluster = kafka::mock_cluster("live", 1, 1);
        match unsupported {
            Some(api) => cluster.apiversion(api, Some(-1), Some(-1)).unwrap(),
            None => cluster.request_errors(RDKafkaApiKey::InitProducerId, &[error; 20]),
        }
        let bridge = Bridge::new("without", &cluster.bootstrap_servers(), "live");
        let started = Instant::now();
        let (code, text) = bridge.check();
        eprintln!("{error:?} {:?}: {text}", started.elapsed());
        assert_eq!(code, 69, "{text}");
        assert!(text.contains("set kafka.delivery = \"at-least-once\""), "{text}");
        assert!(!text.contains("Purge"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
        logs(&bridge, "set kafka.delivery = \\\"at-least-once\\\"".replace('\\', "").as_str());
    }
}

/// A certificate for 127.0.0.1 that is valid until the given year, and a PEM keystore with it and
/// its key.
fn certificate(dir: &Path, name: &str, until: i32) -> (String, String) {
    let mut parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = parameters.self_signed(&key).unwrap();
    let (certificate, store) = (dir.join(name), dir.join(format!("{name}.store")));
    fs::write(&certificate, made.pem()).unwrap();
    fs::write(&store, key.serialize_pem() + &made.pem()).unwrap();
    (certificate.display().to_string(), store.display().to_string())
}

/// A broker whose second listener requires TLS and authentication.
fn secured(store: &str) -> Setup {
    Setup::nodes(1)
        .user("bridge", "secret")
        .property(
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,PROXIED:PLAINTEXT",
        )
        .property("listener.name.sasl.ssl.keystore.type", "PEM")
        .property("listener.name.sasl.ssl.keystore.location", store)
}

/// Client settings for that listener, with a wrong password.
fn sasl_ssl(ca: &str, mechanism: &str) -> String {
    format!(
        "security.protocol = \"SASL_SSL\"\nssl.ca.location = \"{ca}\"\n\
         sasl.mechanisms = \"{mechanism}\"\nsasl.username = \"bridge\"\n\
         sasl.password = \"s3cret-of-bridge\"\n"
    )
}

#[test]
fn the_cause_of_a_failed_connection_to_kafka_is_named_with_the_key_that_helps() {
    let dir = TempDir::with_prefix_in("unfit", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (valid, valid_store) = certificate(dir.path(), "valid.pem", 2100);
    let (another, _) = certificate(dir.path(), "another.pem", 2100);
    let Some(cluster) = Cluster::start_or_skip("causes", &secured(&valid_store)) else { return };
    let (plain, tls) = (cluster.bootstrap(), cluster.sasl());
    let cases = [
        (
            "unresolvable",
            "no-such-host.invalid:9092",
            String::new(),
            "cannot be resolved",
            "check kafka.brokers",
        ),
        (
            "tls-to-plain",
            &plain,
            sasl_ssl(&valid, "PLAIN"),
            "does not use TLS",
            "security.protocol",
        ),
        (
            "plain-to-tls",
            &tls,
            String::new(),
            "closes the connection at the first request",
            "SASL_SSL",
        ),
        (
            "mechanism",
            &tls,
            sasl_ssl(&valid, "SCRAM-SHA-256"),
            "does not offer this SASL mechanism",
            "sasl.mechanisms",
        ),
        (
            "password",
            &tls,
            sasl_ssl(&valid, "PLAIN"),
            "Authentication with Kafka fails",
            "sasl.password",
        ),
        ("untrusted", &tls, sasl_ssl(&another, "PLAIN"), "is not trusted", "ssl.ca.location"),
    ];
    for (name, brokers, client, what, key) in cases {
        let bridge = Bridge::new(name, brokers, name).config(&format!("[kafka.client]\n{client}"));
        let started = Instant::now();
        let (code, text) = bridge.check();
        eprintln!("{name} {:?}: {text}", started.elapsed());
        assert_eq!(code, 69, "{name}: {text}");
        let line = text.lines().find(|line| line.starts_with("FAIL")).unwrap();
        assert!(line.contains(what) && line.contains(key), "{name}: {line}");
        assert!(!text.contains("s3cret") && !text.contains("Purge"), "{name}: {text}");
        logs(&bridge, what);
        assert!(!bridge.log_text().contains("s3cret"), "{}", bridge.last_lines());
    }
}

#[test]
fn an_expired_certificate_of_kafka_is_named() {
    let dir = TempDir::with_prefix_in("unfit", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (expired, store) = certificate(dir.path(), "expired.pem", 2001);
    let Some(cluster) = Cluster::start_or_skip("expired", &secured(&store)) else { return };
    let bridge = Bridge::new("expired", &cluster.sasl(), "expired");
    let client = sasl_ssl(&expired, "PLAIN");
    let (code, text) = bridge.config(&format!("[kafka.client]\n{client}")).check();
    assert_eq!(code, 69, "{text}");
    assert!(text.contains("has expired") && text.contains("set the clock here"), "{text}");
}

#[test]
fn replay_publishes_to_the_other_topics_when_one_is_denied_and_names_that_one() {
    let test = "denied topic";
    let setup = Setup::nodes(1).user("bridge", "secret").authorizer();
    let Some(cluster) = Cluster::start_or_skip(test, &setup) else { return };
    if support::or_skip(test, rights::allow_all(&cluster.bootstrap(), "bridge")).is_none() {
        return;
    }
    let prefix = "denied";
    let stored = Bridge::new("stored", kafka::UNREACHABLE, prefix);
    stored.start();
    deliver(stored.intake(), [body(1, 10), body(100, 10), body(1, 10), body(0, 10)]);
    stored.kill();
    let file = support::temp_file(stored.export());
    let bridge = Bridge::new("denied", &cluster.sasl(), prefix)
        .config(&rights::sasl_plaintext("bridge", "secret"));
    // Creates the topics.
    bridge.start();
    bridge.wait_until_connected(TIME_LIMIT);
    let (kind, user, permission) = ("TOPIC", "bridge", "DENY");
    let rule = Rule { kind, name: "denied.push", user, operation: "WRITE", permission };
    rule.add(&cluster.bootstrap()).unwrap();
    support::wait_until(TIME_LIMIT, || bridge.check().0 != 0, || "not denied".to_owned());
    let mut bridge = bridge;
    for (delivery, sent) in [("exactly-once", 2), ("at-least-once", 0)] {
        bridge = bridge.set("KAFKA_DELIVERY", delivery);
        let arguments = ["replay", "--export", file.path().to_str().unwrap(), "--yes"];
        let finished = bridge.run(&arguments);
        assert_eq!(finished.code, Some(1), "{delivery}: {finished:?}");
        assert!(finished.stdout.ends_with(&format!("{sent} events sent\n")), "{finished:?}");
        let says = "Kafka denies writing to topic denied.push; allow this user WRITE on it";
        assert_eq!(finished.stderr.matches(says).count(), 2, "{delivery}: {finished:?}");
    }
}

#[test]
fn commands_name_the_topic_without_permissions_at_once() {
    let setup = Setup::nodes(1).user("bridge", "secret").authorizer();
    let Some(cluster) = Cluster::start_or_skip("one right", &setup) else { return };
    let (bootstrap, prefix) = (cluster.bootstrap(), "rights");
    if support::or_skip("one right", rights::allow_all(&bootstrap, "bridge")).is_none() {
        return;
    }
    let bridge = Bridge::new("rights", &cluster.sasl(), prefix)
        .set("CALLBACK_UNSIGNED", "all")
        .config(&rights::sasl_plaintext("bridge", "secret"));
    bridge.start();
    deliver(bridge.intake(), [r#"{"event_type":1,"stream_id":"s","sequence":"1"}"#]);
    bridge.drain(TIME_LIMIT);
    bridge.stop();
    let deny = |name, operation| {
        let (kind, user, permission) = ("TOPIC", "bridge", "DENY");
        Rule { kind, name, user, operation, permission }.add(&bootstrap).unwrap();
    };
    deny("rights.push", "WRITE");
    let started = Instant::now();
    let text = loop {
        let (code, text) = bridge.check();
        if code != 0 || started.elapsed() > TIME_LIMIT {
            assert_eq!(code, 69, "{text}");
            break text;
        }
    };
    let line = text.lines().find(|line| line.starts_with("FAIL")).unwrap();
    assert!(line.contains("rights.push: ") && line.contains("allow this user WRITE"), "{line}");
    assert_eq!(line.matches("rights.").count(), 1, "only the topic at fault is named: {line}");
    assert!(!text.contains("Purge"), "{text}");

    let dead = "rights.dead-letter";
    for (topic, operation, command) in [
        ("rights.push", "READ", &["audit"][..]),
        (dead, "READ", &["replay", "--dead-letters"]),
        (dead, "DESCRIBE", &["replay", "--dead-letters"]),
    ] {
        deny(topic, operation);
        let started = Instant::now();
        let text = loop {
            let finished = bridge.run(command);
            if finished.code != Some(0) || started.elapsed() > TIME_LIMIT {
                break finished.stderr;
            }
        };
        let says = format!("cannot read topic {topic}: ");
        assert!(
            text.contains(&says) && text.contains("allow this user READ"),
            "{command:?}: {text}"
        );
        assert!(started.elapsed() < TIME_LIMIT, "{:?}", started.elapsed());
    }
}

#[test]
fn check_names_the_transactional_id_that_it_may_not_use() {
    let setup = Setup::nodes(1).user("bridge", "secret").authorizer();
    let Some(cluster) = Cluster::start_or_skip("literal right", &setup) else { return };
    let (bootstrap, user, permission) = (cluster.bootstrap(), "bridge", "ALLOW");
    for (kind, name, operation) in [
        ("BROKER", "kafka-cluster", "ALL"),
        ("TOPIC", "*", "ALL"),
        ("GROUP", "*", "ALL"),
        ("TRANSACTIONAL_ID", "literal", "WRITE"),
        ("TRANSACTIONAL_ID", "literal", "DESCRIBE"),
    ] {
        let rule = Rule { kind, name, user, operation, permission };
        if support::or_skip("literal right", rule.add(&bootstrap)).is_none() {
            return;
        }
    }
    let bridge = Bridge::new("literal", &cluster.sasl(), "literal")
        .config(&rights::sasl_plaintext("bridge", "secret"));
    bridge.start();
    bridge.wait_until_connected(TIME_LIMIT);
    bridge.stop();
    let (code, text) = bridge.check();
    assert_eq!(code, 69, "{text}");
    let advice = "allow this user WRITE and DESCRIBE on the transactional id \"literal.check\"";
    assert!(text.contains(advice), "{text}");
}
