//! The tests' brokers and their witness: what the other tests take for granted about them.

mod support;

use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use support::consumer::{self, Isolation};
use support::kafka::{self, Cluster, Kafka, Setup};

const TIMEOUT: Duration = Duration::from_secs(30);

fn transactional_producer(bootstrap: &str) -> BaseProducer {
    let id = support::unique("broker-test");
    let producer: BaseProducer =
        kafka::client(bootstrap).set("transactional.id", id).create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer
}

fn send(producer: &BaseProducer, topic: &str, values: &[&str]) {
    for value in values {
        producer.send(BaseRecord::<str, str>::to(topic).key("stream").payload(value)).unwrap();
    }
}

fn values(bootstrap: &str, topic: &str, isolation: Isolation) -> Option<Vec<String>> {
    let read = consumer::read(bootstrap, &[topic], isolation);
    let messages = support::or_skip("reading", read)?;
    Some(messages.iter().map(|m| String::from_utf8(m.value().to_vec()).unwrap()).collect())
}

#[test]
fn a_committed_transaction_is_seen_and_an_aborted_one_is_not() {
    let Some(kafka) = Kafka::shared_or_skip("transactions") else { return };
    let topic = support::unique("transactions");
    kafka::create_topic(kafka.bootstrap(), &topic, 1, 1);
    let producer = transactional_producer(kafka.bootstrap());
    for (outcome, value) in [("commit", "first"), ("abort", "never"), ("commit", "second")] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, &[value]);
        producer.flush(TIMEOUT).unwrap();
        match outcome {
            "commit" => producer.commit_transaction(TIMEOUT).unwrap(),
            _ => producer.abort_transaction(TIMEOUT).unwrap(),
        }
    }
    producer.begin_transaction().unwrap();
    send(&producer, &topic, &["undecided"]);
    producer.flush(TIMEOUT).unwrap();

    let Some(committed) = values(kafka.bootstrap(), &topic, Isolation::Committed) else { return };
    assert_eq!(committed, ["first", "second"]);
    let Some(all) = values(kafka.bootstrap(), &topic, Isolation::Uncommitted) else { return };
    assert_eq!(all, ["first", "never", "second", "undecided"]);
    producer.abort_transaction(TIMEOUT).unwrap();
}

#[test]
fn the_witness_reports_every_byte() {
    use rdkafka::message::{Header, OwnedHeaders};

    let Some(kafka) = Kafka::shared_or_skip("witness") else { return };
    let stem = support::unique("witness");
    let topic = format!("{stem}.push");
    kafka::create_topic(kafka.bootstrap(), &topic, 1, 1);
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let producer: BaseProducer = kafka::client(kafka.bootstrap()).create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_id", value: Some("first") })
        .insert(Header { key: "city", value: Some("深圳") });
    let record = BaseRecord::to(&topic).key("直播").payload(&every_byte);
    producer.send(record.timestamp(1_700_000_000_123).headers(headers)).unwrap();
    producer.flush(TIMEOUT).unwrap();

    let all = [format!("{stem}.*")];
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let read = consumer::read(kafka.bootstrap(), &all, Isolation::Committed);
    let Some(messages) = support::or_skip("witness", read) else { return };
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!((message.topic.as_str(), message.partition, message.offset), (&*topic, 0, 0));
    assert_eq!(message.timestamp, 1_700_000_000_123);
    assert_eq!(message.key(), Some("直播"));
    assert_eq!(message.value(), every_byte);
    assert_eq!(message.headers().collect::<Vec<_>>(), ["ce_id", "city"]);
    assert_eq!(message.header("city"), Some("深圳"));
    assert_eq!(message.header("country"), None);

    let fields = ["key", "ce_id", "offset", "country"];
    let read = consumer::read_fields(kafka.bootstrap(), &all, Isolation::Committed, fields);
    let Some(messages) = support::or_skip("witness", read) else { return };
    assert_eq!(messages, [["直播", "first", "0", ""]]);
}

#[test]
fn a_broker_that_was_stopped_killed_or_paused_has_its_data_when_it_is_back() {
    let Some(mut cluster) = Cluster::start_or_skip("restarts", Setup::default()) else { return };
    let bootstrap = cluster.bootstrap();
    kafka::create_topic(&bootstrap, "restarts", 1, 1);
    let producer = transactional_producer(&bootstrap);
    let mut sent = Vec::new();
    for (value, trouble) in [
        ("stopped", Cluster::stop as fn(&mut Cluster, usize)),
        ("killed", Cluster::kill),
        ("paused", Cluster::pause),
    ] {
        producer.begin_transaction().unwrap();
        send(&producer, "restarts", &[value]);
        producer.flush(TIMEOUT).unwrap();
        producer.commit_transaction(TIMEOUT).unwrap();
        sent.push(value);
        trouble(&mut cluster, 1);
        match value {
            "paused" => cluster.resume(1),
            _ => cluster.start_again(1),
        }
    }
    let Some(read) = values(&bootstrap, "restarts", Isolation::Committed) else { return };
    assert_eq!(read, sent);
}

#[test]
fn a_cluster_of_three_does_without_any_one() {
    let Some(mut cluster) = Cluster::start_or_skip("cluster", Setup::nodes(3)) else { return };
    let bootstrap = cluster.bootstrap();
    kafka::create_topic(&bootstrap, "cluster", 3, 3);
    let producer = transactional_producer(&bootstrap);
    for node in 1..=3 {
        cluster.kill(node);
        producer.begin_transaction().unwrap();
        send(&producer, "cluster", &["kept"; 10]);
        producer.flush(TIMEOUT).unwrap();
        producer.commit_transaction(TIMEOUT).unwrap();
        cluster.start_again(node);
    }
    let Some(read) = values(&bootstrap, "cluster", Isolation::Committed) else { return };
    assert_eq!(read.len(), 30);
}

#[test]
fn a_user_without_rights_is_refused() {
    let setup = Setup::default().user("bridge", "secret").authorizer();
    let Some(cluster) = Cluster::start_or_skip("users", setup) else { return };
    kafka::create_topic(&cluster.bootstrap(), "users", 1, 1);
    let producer: BaseProducer = kafka::client(&cluster.sasl())
        .set("security.protocol", "SASL_PLAINTEXT")
        .set("sasl.mechanisms", "PLAIN")
        .set("sasl.username", "bridge")
        .set("sasl.password", "secret")
        .create()
        .unwrap();
    let metadata = producer.client().fetch_metadata(Some("users"), TIMEOUT).unwrap();
    let [topic] = metadata.topics() else { panic!("one topic was asked for") };
    let refused = topic.error().map(rdkafka::error::RDKafkaErrorCode::from);
    assert_eq!(refused, Some(rdkafka::error::RDKafkaErrorCode::TopicAuthorizationFailed));
}
