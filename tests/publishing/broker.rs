//! Tests of the test brokers and of the independent consumer, on which the other tests rely.

use std::env;
use std::io::{self, BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::support;
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{self, Cluster, Kafka, Setup};

/// For three brokers on two busy cores.
const TIMEOUT: Duration = Duration::from_mins(2);

/// Text that is not ASCII: "live" and "Shenzhen".
const KEY: &str = "\u{76f4}\u{64ad}";
const CITY: &str = "\u{6df1}\u{5733}";

fn transactional_producer(bootstrap: &str) -> KafkaResult<BaseProducer> {
    // A paused broker does not respond; by default a client waits a minute before it reconnects.
    let producer: BaseProducer = kafka::client(bootstrap)
        .set("transactional.id", support::unique("broker-test"))
        .set("socket.timeout.ms", "2000")
        .create()?;
    producer.init_transactions(TIMEOUT)?;
    Ok(producer)
}

/// Sends a record in a transaction and waits until it is delivered.
fn send(producer: &BaseProducer, topic: &str, values: &[&str]) -> KafkaResult<()> {
    producer.begin_transaction()?;
    for value in values {
        let record = BaseRecord::<str, str>::to(topic).key(value).payload(value);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(TIMEOUT)
}

fn commit(producer: &BaseProducer, topic: &str, values: &[&str]) -> KafkaResult<()> {
    send(producer, topic, values)?;
    producer.commit_transaction(TIMEOUT)
}

fn values(bootstrap: &str, topic: &str, isolation: Isolation) -> Option<Vec<String>> {
    let read = consumer::read(bootstrap, &[topic], isolation);
    let messages = support::or_skip("reading", read)?;
    Some(messages.iter().map(|m| String::from_utf8_lossy(m.value()).into_owned()).collect())
}

#[test]
fn committed_transactions_are_visible_and_aborted_ones_are_not() {
    let Some(kafka) = Kafka::shared_or_skip("transactions") else { return };
    let topic = support::unique("transactions");
    kafka::create_topic(kafka.bootstrap(), &topic, 1, 1);
    let producer = transactional_producer(kafka.bootstrap()).unwrap();
    commit(&producer, &topic, &["first"]).unwrap();
    send(&producer, &topic, &["never"]).unwrap();
    producer.abort_transaction(TIMEOUT).unwrap();
    commit(&producer, &topic, &["second"]).unwrap();
    send(&producer, &topic, &["undecided"]).unwrap();

    let Some(committed) = values(kafka.bootstrap(), &topic, Isolation::Committed) else { return };
    assert_eq!(committed, ["first", "second"]);
    let Some(all) = values(kafka.bootstrap(), &topic, Isolation::Uncommitted) else { return };
    assert_eq!(all, ["first", "never", "second", "undecided"]);
    producer.abort_transaction(TIMEOUT).unwrap();
}

#[test]
fn the_independent_consumer_reports_every_byte() {
    use rdkafka::message::{Header, OwnedHeaders};

    let Some(kafka) = Kafka::shared_or_skip("witness") else { return };
    let stem = support::unique("witness");
    let topic = format!("{stem}.push");
    kafka::create_topic(kafka.bootstrap(), &topic, 1, 1);
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let producer: BaseProducer = kafka::client(kafka.bootstrap()).create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_id", value: Some("first") })
        .insert(Header { key: "city", value: Some(CITY) });
    let record = BaseRecord::to(&topic).key(KEY).payload(&every_byte);
    producer.send(record.timestamp(1_700_000_000_123).headers(headers)).unwrap();
    producer.flush(TIMEOUT).unwrap();

    let all = format!("{stem}.*");
    let read = consumer::read(kafka.bootstrap(), &[&all], Isolation::Committed);
    let Some(messages) = support::or_skip("witness", read) else { return };
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!((message.topic.as_str(), message.partition, message.offset), (&*topic, 0, 0));
    assert_eq!(message.timestamp, 1_700_000_000_123);
    assert_eq!(message.key(), Some(KEY));
    assert_eq!(message.value(), every_byte);
    assert_eq!(message.headers().collect::<Vec<_>>(), ["ce_id", "city"]);
    assert_eq!(message.header("city"), Some(CITY));
    assert_eq!(message.header("country"), None);

    let fields = ["key", "ce_id", "offset", "country"];
    let read = consumer::read_fields(kafka.bootstrap(), &[&all], Isolation::Committed, fields);
    let Some(messages) = support::or_skip("witness", read) else { return };
    assert_eq!(messages, [[KEY, "first", "0", ""]]);
}

#[test]
fn a_broker_keeps_its_data_when_stopped_killed_or_paused() {
    let Some(mut cluster) = Cluster::start_or_skip("restarts", &Setup::default()) else { return };
    let bootstrap = cluster.bootstrap();
    kafka::create_topic(&bootstrap, "restarts", 1, 1);
    let producer = transactional_producer(&bootstrap).unwrap();
    let mut sent = Vec::new();
    for (value, trouble) in [
        ("stopped", Cluster::stop as fn(&mut Cluster, usize)),
        ("killed", Cluster::kill),
        ("paused", Cluster::pause),
    ] {
        commit(&producer, "restarts", &[value]).unwrap();
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
fn a_cluster_of_three_tolerates_the_loss_of_any_broker() {
    let Some(mut cluster) = Cluster::start_or_skip("cluster", &Setup::nodes(3)) else { return };
    let bootstrap = cluster.bootstrap();
    kafka::create_topic(&bootstrap, "cluster", 3, 3);
    let producer = transactional_producer(&bootstrap).unwrap();
    let before = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let after = ["i", "j", "k", "l", "m", "n", "o", "p"];
    cluster.kill(1);
    commit(&producer, "cluster", &before).unwrap();
    cluster.start_again(1);
    cluster.pause(2);
    commit(&producer, "cluster", &after).unwrap();
    cluster.resume(2);
    let Some(mut read) = values(&bootstrap, "cluster", Isolation::Committed) else { return };
    read.sort();
    assert_eq!(read, [before, after].concat());
}

#[test]
fn a_user_without_rights_is_rejected() {
    let setup = Setup::default().user("bridge", "secret").authorizer();
    let Some(cluster) = Cluster::start_or_skip("users", &setup) else { return };
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
    let rejected = topic.error().map(RDKafkaErrorCode::from);
    assert_eq!(rejected, Some(RDKafkaErrorCode::TopicAuthorizationFailed));
}

#[test]
fn a_broker_is_killed_with_its_test_process() {
    if Cluster::start_or_skip("orphans", &Setup::default()).is_none() {
        return;
    }
    let mut holder = Command::new(env::current_exe().unwrap())
        .args(["--exact", "broker::holds_a_broker_until_it_is_killed", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.strip_prefix("broker at ")?.to_owned())).unwrap();
    TcpStream::connect(&address).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let is_gone = || TcpStream::connect(&address).is_err();
    support::wait_until(TIMEOUT, is_gone, || format!("the broker at {address} is still running"));
}

#[test]
#[ignore = "the other half of a_broker_is_killed_with_its_test_process"]
fn holds_a_broker_until_it_is_killed() {
    let cluster = Cluster::start(&Setup::default()).unwrap();
    println!("\nbroker at {}", cluster.bootstrap());
    io::stdin().read_line(&mut String::new()).unwrap();
}
