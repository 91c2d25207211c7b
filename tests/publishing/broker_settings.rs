//! Settings of brokers with which livebridge has to publish all the same, brokers that are slow, and
//! brokers that restart while there is nothing to publish.

use std::thread;
use std::time::{Duration, Instant};

use livebridge::kafka::{Config, Delivery, LedgerReader};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::replay::body;
use crate::support;
use crate::support::bridge::Bridge;
use crate::support::kafka::{self, Cluster, Setup};
use crate::support::proxy::{Network, Proxy};
use crate::support::wire::deliver;

const WAIT: Duration = Duration::from_mins(2);

/// A broker behind a proxy whose network can be made slow.
struct ProxiedKafka {
    cluster: Cluster,
    proxy: Proxy,
    _runtime: Runtime,
}

impl ProxiedKafka {
    fn start(test: &str, set_up: impl FnOnce(Setup) -> Setup) -> Option<Self> {
        let runtime = Runtime::new().unwrap();
        let proxy = Proxy::start(runtime.handle());
        let setup = set_up(Setup::nodes(1).proxies(&[proxy.port()]));
        let cluster = Cluster::start_or_skip(test, &setup)?;
        proxy.set_upstream(cluster.behind(1));
        Some(Self { cluster, proxy, _runtime: runtime })
    }

    /// A bridge that publishes.
    fn bridge(&self, name: &str) -> Bridge {
        let prefix = support::unique(name);
        let bridge = Bridge::new(&prefix, &self.proxy.address(), &prefix);
        bridge.start();
        bridge.wait_until_connected(WAIT);
        bridge
    }

    fn config(&self) -> Config {
        Config {
            brokers: self.proxy.address(),
            instance: "slow".to_owned(),
            delivery: Delivery::ExactlyOnce,
            create_topics: false,
            partitions: 1,
            replication: 1,
            client: [("statistics.interval.ms".to_owned(), "1000".to_owned())].into(),
        }
    }
}

/// A record that is too slow for the time-outs raises them, and the brokers reject that.
#[test]
fn brokers_that_reject_a_raised_transaction_time_out_do_not_stop_publishing() {
    let setup = |setup: Setup| setup.property("transaction.max.timeout.ms", "30000");
    let Some(kafka) = ProxiedKafka::start("timeouts", setup) else { return };
    let (proxy, bridge) = (&kafka.proxy, kafka.bridge("timeouts"));
    // 240 kB take 40 s, and a message times out after 25 s.
    proxy.set_network(Network::Limited(6000));
    deliver(bridge.intake(), [body(1, 240_000)]);
    bridge.wait_until("timed out", WAIT, || bridge.log_text().contains("MessageTimedOut"));
    proxy.set_network(Network::Good);
    let rejected = || bridge.log_text().contains("Transaction timeout is larger");
    bridge.wait_until("rejected by the broker", WAIT, rejected);
    bridge.drain(WAIT);
    let published = bridge.metric("livebridge_published_total");
    assert_eq!(published, Some(1.0), "{}", bridge.last_lines());
}

/// Each answer takes 1.5 s, and a transaction three of them, whatever its size.
#[test]
fn a_slow_broker_gets_large_batches() {
    let Some(kafka) = ProxiedKafka::start("slow broker", |setup| setup) else { return };
    let bridge = kafka.bridge("slow");
    kafka.proxy.set_network(Network::Slow(Duration::from_millis(750)));
    deliver(bridge.intake(), (0..1000).map(|_| body(1, 700)));
    bridge.drain(WAIT);
    let transactions = bridge.metric("livebridge_transactions_total").unwrap();
    assert!(transactions < 20.0, "{transactions} transactions: {}", bridge.last_lines());
}

#[test]
fn an_idle_bridge_shows_that_a_restarted_broker_is_back() {
    let Some(mut cluster) = Cluster::start_or_skip("idle", &Setup::nodes(1)) else { return };
    let bridges = ["exactly-once", "at-least-once"].map(|delivery| {
        let prefix = support::unique("idle");
        let bridge = Bridge::new(&prefix, &cluster.bootstrap(), &prefix);
        bridge.set("KAFKA_DELIVERY", delivery)
    });
    let callback = body(1, 100);
    for bridge in &bridges {
        bridge.start();
        deliver(bridge.intake(), [&callback]);
        bridge.drain(WAIT);
    }
    cluster.stop(1);
    let is_down = |bridge: &Bridge| bridge.metric("livebridge_kafka_up") == Some(0.0);
    for bridge in &bridges {
        bridge.wait_until("disconnected", WAIT, || is_down(bridge));
        deliver(bridge.intake(), [&callback]);
        let absorbed = || bridge.metric("livebridge_duplicates_total") == Some(1.0);
        bridge.wait_until("absorbing a retry", WAIT, || {
            assert!(is_down(bridge), "Kafka was not asked about the retry");
            absorbed()
        });
        for _ in 0..20 {
            assert!(is_down(bridge), "Kafka was not asked about the retry");
            thread::sleep(Duration::from_millis(50));
        }
    }
    cluster.start_again(1);
    for bridge in &bridges {
        bridge.wait_until("connected again without a callback", WAIT, || bridge.is_connected());
        let sent = bridge.metric("livebridge_published_total");
        assert_eq!(sent, Some(1.0), "nothing more is published");
    }
}

#[test]
fn the_ledger_is_read_and_its_lag_measured_over_a_network_that_takes_two_seconds() {
    let Some(kafka) = ProxiedKafka::start("slow ledger", |setup| setup) else { return };
    let (ProxiedKafka { cluster, proxy, .. }, config) = (&kafka, kafka.config());
    kafka::create_topic(&cluster.bootstrap(), "ledger", 1, 1);
    let mut reader = LedgerReader::open(&config, "ledger", |(low, _), _| Ok(low)).unwrap();
    // A request and its answer.
    proxy.set_network(Network::Slow(Duration::from_secs(1)));
    let slow_since = Instant::now();
    while slow_since.elapsed() < Duration::from_secs(5) {
        reader.read_arrived(|_| panic!("there is nothing to read"));
        thread::sleep(Duration::from_millis(10));
    }
    let producer: BaseProducer = kafka::client(&cluster.bootstrap()).create().unwrap();
    producer.send(BaseRecord::<(), _>::to("ledger").payload("record")).unwrap();
    producer.flush(WAIT).unwrap();
    let mut records = 0;
    let is_read = || {
        reader.read_arrived(|_| records += 1);
        records == 1
    };
    support::wait_until(Duration::from_secs(40), is_read, || "nothing is read".to_owned());
}

#[test]
fn metadata_and_the_ledger_are_received_over_a_network_that_takes_more_than_two_seconds() {
    let Some(kafka) = ProxiedKafka::start("slow metadata", |setup| setup) else { return };
    let (ProxiedKafka { cluster, proxy, .. }, config) = (&kafka, kafka.config());
    kafka::create_topic(&cluster.bootstrap(), "ledger", 1, 1);
    proxy.set_network(Network::Slow(Duration::from_millis(1050)));
    let missing = config.missing_topics(["ledger", "nowhere"].into_iter());
    assert_eq!(missing.map_err(|error| error.to_string()), Ok(vec!["nowhere".to_owned()]));
    let mut reader = LedgerReader::open(&config, "ledger", |(low, _), _| Ok(low)).unwrap();
    reader.read_to_end(&CancellationToken::new(), |_| (), || ()).unwrap();
}

/// The value of `cleanup.policy`.
fn policy(bootstrap: &str, topic: &str) -> String {
    let (admin, topics) = (kafka::admin(bootstrap), [ResourceSpecifier::Topic(topic)]);
    let mut described = kafka::respond(admin.describe_configs(&topics, &AdminOptions::new()));
    let settings = described.pop().unwrap().unwrap();
    settings.get("cleanup.policy").unwrap().value.clone().unwrap()
}

#[test]
fn topics_are_not_compacted_by_default_of_the_brokers_and_check_reports_those_that_are() {
    let setup = Setup::nodes(1).property("log.cleanup.policy", "compact");
    let Some(cluster) = Cluster::start_or_skip("compacted", &setup) else { return };
    let bootstrap = cluster.bootstrap();
    let prefix = support::unique("compacted");
    let [ledger, push] = ["ledger", "push"].map(|name| format!("{prefix}.{name}"));
    let bridge = Bridge::new(&prefix, &bootstrap, &prefix);
    bridge.start();
    bridge.wait_until_connected(WAIT);
    for topic in [&ledger, &push] {
        assert_eq!(policy(&bootstrap, topic), "delete", "{topic}");
    }
    let (code, text) = bridge.check();
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("cleanup.policy"), "{text}");

    kafka::configure_topic(&bootstrap, &push, &[("cleanup.policy", "compact")]);
    let (code, text) = bridge.check();
    assert_eq!(code, 69, "{text}");
    assert!(text.contains(&format!("note  cleanup.policy {push} has compact: ")), "{text}");
    assert!(!text.contains("FAIL  cleanup.policy"), "{text}");
    kafka::configure_topic(&bootstrap, &push, &[("cleanup.policy", "delete")]);

    kafka::configure_topic(&bootstrap, &ledger, &[("cleanup.policy", "compact,delete")]);
    let (code, text) = bridge.check();
    assert_eq!(code, 69, "{text}");
    let says = format!(
        "FAIL  cleanup.policy the ledger topic {ledger} has cleanup.policy=compact,delete: "
    );
    assert!(text.contains(&says), "{text}");

    // The remedy that the message names.
    kafka::configure_topic(&bootstrap, &ledger, &[("cleanup.policy", "delete")]);
    let (code, text) = bridge.check();
    assert_eq!(code, 0, "{text}");
}
