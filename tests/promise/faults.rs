//! Faults of brokers, networks and other instances: each acknowledged callback is in Kafka once.
//!
//! A test run injects a few faults; `LIVEBRIDGE_FAULTS=all cargo test --release --test promise faults:: --
//! --nocapture` injects all.

use std::env;
use std::sync::{RwLockWriteGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use tokio::runtime::Runtime;

use crate::support::bridge::Bridge;
use crate::support::kafka::{self, Cluster, Setup, TIME_LIMIT};
use crate::support::load::{Acknowledged, Load, Plan, Verdict};
use crate::support::proxy::{Api, Network, Proxy, Stage, Trap};
use crate::support::random::Random;
use crate::support::rights::{self, Rule};
use crate::support::{self, turn};

const PREFIX: &str = "live";

/// Brokers behind proxies; fault tests run one at a time until the value is dropped.
struct Rig {
    random: Random,
    proxies: Vec<Proxy>,
    cluster: Cluster,
    runtime: Runtime,
    _turn: RwLockWriteGuard<'static, ()>,
}

impl Rig {
    fn start(test: &str, nodes: usize, setup: impl FnOnce(Setup) -> Setup) -> Option<Self> {
        let turn = turn::alone();
        let random = Random::new(test);
        let runtime = Runtime::new().expect("a runtime");
        let proxies: Vec<_> = (0..nodes).map(|_| Proxy::start(runtime.handle())).collect();
        let ports: Vec<_> = proxies.iter().map(Proxy::port).collect();
        let setup = setup(Setup::nodes(nodes).proxies(&ports));
        let cluster = Cluster::start_or_skip(test, &setup)?;
        for (node, proxy) in (1..).zip(&proxies) {
            proxy.set_upstream(cluster.behind(node));
        }
        Some(Self { random, proxies, cluster, runtime, _turn: turn })
    }

    /// A bridge that connects to the brokers through the proxies.
    fn bridge(&self, instance: &str) -> Bridge {
        let brokers: Vec<_> = self.proxies.iter().map(Proxy::address).collect();
        let replication = self.proxies.len().to_string();
        Bridge::new(instance, &brokers.join(","), PREFIX).set("KAFKA_REPLICATION", &replication)
    }

    fn any_node(&mut self) -> usize {
        self.random.index(self.proxies.len()) + 1
    }

    fn networks(&self, network: Network) {
        self.proxies.iter().for_each(|proxy| proxy.set_network(network));
    }

    fn load(&mut self, plan: Plan) -> Load {
        Load::start(self.runtime.handle(), plan, &mut self.random)
    }

    /// Starts `bridge` and a load of it, and waits until the bridge publishes.
    fn under_load(&mut self, bridge: &Bridge, plan: impl FnOnce(&mut Plan)) -> Load {
        bridge.start();
        let mut planned = Plan::new(bridge.intake());
        plan(&mut planned);
        let load = self.load(planned);
        wait_until_it_publishes(bridge, TIME_LIMIT);
        load
    }

    /// Ends the load, waits until `bridge` has published everything, and checks the result.
    fn conclude(&self, test: &str, load: Load, bridge: &Bridge) -> Option<Verdict> {
        let acknowledged = load.finish(TIME_LIMIT);
        bridge.drain(TIME_LIMIT);
        self.verdict(test, &acknowledged)
    }

    fn verdict(&self, test: &str, acknowledged: &Acknowledged) -> Option<Verdict> {
        let verdict = acknowledged.check(&self.cluster.bootstrap(), PREFIX);
        let verdict = support::or_skip(test, verdict)?;
        eprintln!("{test}: {verdict}");
        Some(verdict)
    }
}

/// Whether the long faults are requested.
fn everything() -> bool {
    env::var("LIVEBRIDGE_FAULTS").is_ok_and(|which| which == "all")
}

/// Waits until the bridge has published another record.
fn wait_until_it_publishes(bridge: &Bridge, within: Duration) -> Duration {
    let started = Instant::now();
    let published = || bridge.metric("livebridge_published_total").unwrap_or(0.0);
    let before = published();
    while published() <= before {
        bridge.assert_running();
        assert!(started.elapsed() < within, "nothing is published: {}", bridge.last_lines());
        thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

/// Another instance's open transaction hides records committed after it from `read_committed`
/// readers. A bridge that read its ledger only up to that point would publish events again.
#[test]
fn a_restart_behind_another_instances_open_transaction_publishes_nothing_twice() {
    let test = "open transaction";
    let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
    let (bridge, other) = (rig.bridge("steady"), rig.bridge("hanging"));
    let load = rig.under_load(&bridge, |_| ());
    let other_load = rig.under_load(&other, |_| ());

    let killer = other.killer();
    let hung = rig.proxies[0].set_trap(Trap {
        api: Api::EndTxn,
        nth: 2,
        stage: Stage::Before,
        client: Some("livebridge-hanging".into()),
        topic: None,
        spring: Box::new(move || killer.kill()),
    });
    hung.recv_timeout(TIME_LIMIT).unwrap();
    load.wait_for(500, TIME_LIMIT);
    bridge.kill();
    bridge.start();
    load.wait_for(500, TIME_LIMIT);
    // It waits, or, as in an earlier version, continues with its previous behaviour.
    let waits = || bridge.log_text().contains("waiting for Kafka to end an open transaction");
    let publishes = || bridge.metric("livebridge_published_total").unwrap_or(0.0) > 0.0;
    bridge.wait_until("waiting or publishing", TIME_LIMIT, || waits() || publishes());
    other.start();
    let acknowledged = load.finish(TIME_LIMIT);
    let others = other_load.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);
    other.drain(TIME_LIMIT);
    let Some(verdict) = rig.verdict(test, &acknowledged.and(others)) else { return };
    verdict.assert_clean();
}

/// The ledger topic, as consumers of an isolation level see it.
struct Ledger(BaseConsumer);

impl Ledger {
    fn new(rig: &Rig, isolation: &str) -> Self {
        let mut client = kafka::client(&rig.cluster.bootstrap());
        Self(client.set("isolation.level", isolation).create().expect("a client needs no broker"))
    }

    fn end(&self) -> i64 {
        self.0.fetch_watermarks("live.ledger", 0, TIME_LIMIT).expect("a broker that responds").1
    }

    /// Waits until something is added, such as a marker: the end of a transaction is answered before its
    /// markers are written. Returns the new end.
    fn wait_until_longer_than(&self, end: i64) -> i64 {
        support::wait_until(TIME_LIMIT, || self.end() > end, || "nothing is added to the ledger");
        self.end()
    }
}

/// As brokers before Kafka 3.6, which let a late request begin a transaction that nothing ends.
fn without_verification(setup: Setup) -> Setup {
    setup.property("transaction.partition.verification.enable", "false")
}

/// Holds back the next `Produce` request for `topic` until the returned sender is dropped.
fn hold_back(proxy: &Proxy, topic: &str) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let (arrived, is_held) = mpsc::channel();
    let spring = Box::new(move || {
        let _ = arrived.send(());
        let _ = released.recv_timeout(TIME_LIMIT);
    });
    let topic = Some(topic.to_owned());
    drop(proxy.set_trap(Trap {
        api: Api::Produce,
        nth: 1,
        stage: Stage::Late,
        client: None,
        topic,
        spring,
    }));
    (is_held, release)
}

/// A record is rejected while the ledger's record of the same transaction is still on its way. It
/// arrives after the transaction was given up, and must not become part of any other.
#[test]
fn a_request_that_arrives_after_its_transaction_was_given_up_changes_nothing() {
    let test = "late request";
    let Some(mut rig) = Rig::start(test, 1, without_verification) else { return };
    let bridge = rig.bridge("late");
    let load = rig.under_load(&bridge, |plan| plan.streams = 4);
    let limit = |bytes| {
        let settings = [("max.message.bytes", bytes)];
        kafka::configure_topic(&rig.cluster.bootstrap(), "live.push", &settings);
    };
    limit("100");
    let (is_held, release) = hold_back(&rig.proxies[0], "live.ledger");
    is_held.recv_timeout(TIME_LIMIT).expect("the ledger's record is sent");
    let ledger = Ledger::new(&rig, "read_uncommitted");
    let begin = ledger.end();
    // The next producer begins: now the transaction is given up.
    let spring = Box::new(move || {
        let marked = ledger.wait_until_longer_than(begin);
        drop(release);
        ledger.wait_until_longer_than(marked);
    });
    let begins = rig.proxies[0].set_trap(Trap {
        api: Api::InitProducerId,
        nth: 1,
        stage: Stage::Late,
        client: None,
        topic: None,
        spring,
    });
    begins.recv_timeout(TIME_LIMIT).expect("another producer takes over");
    limit("1048588");
    let acknowledged = load.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);
    assert!(!bridge.log_text().contains("hides a part of the ledger"), "{}", bridge.last_lines());
    let Some(verdict) = rig.verdict(test, &acknowledged) else { return };
    verdict.assert_clean();
}

#[test]
fn a_transaction_of_its_own_that_no_coordinator_knows_is_ended() {
    let test = "forgotten transaction";
    let Some(mut rig) = Rig::start(test, 1, without_verification) else { return };
    let bridge = rig.bridge("forgetful");
    let load = rig.under_load(&bridge, |_| ());
    let before = load.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);
    assert!(bridge.stop().success());

    // A predecessor that aborts while a request is on its way.
    let predecessor: BaseProducer = kafka::client(&rig.proxies[0].address())
        .set("transactional.id", "forgetful")
        .create()
        .expect("a client needs no broker");
    predecessor.init_transactions(TIME_LIMIT).unwrap();
    predecessor.begin_transaction().unwrap();
    let (is_held, release) = hold_back(&rig.proxies[0], "live.ledger");
    predecessor.send(BaseRecord::<(), _>::to("live.ledger").payload("late")).unwrap();
    is_held.recv_timeout(TIME_LIMIT).expect("the record is sent");
    predecessor.purge(PurgeConfig::default().queue().inflight());
    let is_purged = || {
        predecessor.poll(Duration::from_millis(10));
        predecessor.in_flight_count() == 0
    };
    support::wait_until(TIME_LIMIT, is_purged, || "the request is still in flight");
    let (committed, all) =
        (Ledger::new(&rig, "read_committed"), Ledger::new(&rig, "read_uncommitted"));
    let begin = all.end();
    predecessor.abort_transaction(TIME_LIMIT).unwrap();
    all.wait_until_longer_than(begin);
    drop(release);
    let is_open = || committed.end() != all.end();
    support::wait_until(TIME_LIMIT, is_open, || "the late record is rejected".to_owned());
    drop(predecessor);

    bridge.start();
    let load = rig.load(Plan::new(bridge.intake()));
    wait_until_it_publishes(&bridge, Duration::from_secs(30));
    let acknowledged = load.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);
    bridge.wait_for_log("hides a part of the ledger");
    let Some(verdict) = rig.verdict(test, &acknowledged.and(before)) else { return };
    verdict.assert_clean();
}

/// A topic's size limit applies to whole batches as well: small records in a batch over the limit
/// must not become dead letters.
#[test]
fn only_what_is_too_large_for_its_topic_becomes_a_dead_letter() {
    const LIMIT: usize = 20_000;
    let test = "too large";
    let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
    let bridge = rig.bridge("large");
    let load = rig.under_load(&bridge, |_| ());
    let before = load.finish(TIME_LIMIT);

    let limit = LIMIT.to_string();
    let settings = [("max.message.bytes", limit.as_str())];
    kafka::configure_topic(&rig.cluster.bootstrap(), "live.push", &settings);
    let mut plan = Plan::new(bridge.intake());
    plan.large = 30;
    plan.pace = Duration::from_millis(5);
    let load = rig.load(plan);
    load.wait_for(800, TIME_LIMIT);
    // Creates a backlog, so that a batch exceeds the broker's limit.
    rig.proxies[0].set_network(Network::Refusing);
    load.wait_for(1000, TIME_LIMIT);
    rig.proxies[0].set_network(Network::Good);
    let acknowledged = load.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);
    let Some(verdict) = rig.verdict(test, &acknowledged.and(before)) else { return };
    verdict.assert_clean();
    let [_, dead] = &verdict.lengths;
    assert!(dead.len() > 10, "{} dead letters", dead.len());
    let overhead = 2_000;
    let small = dead.iter().filter(|length| **length < LIMIT - overhead).count();
    assert_eq!(small, 0, "of {} dead letters, none fits the topic", dead.len());
}

#[test]
fn of_two_bridges_with_one_name_one_exits_and_reports_why() {
    let test = "namesakes";
    let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
    let bridges = [rig.bridge("namesake"), rig.bridge("namesake")];
    let mut plan = Plan::new(bridges[0].intake());
    plan.intakes.push(bridges[1].intake());
    plan.retry = Duration::from_secs(1);
    plan.resend_after = Duration::from_secs(1);
    bridges.iter().for_each(Bridge::start);
    let load = rig.load(plan);
    let started = Instant::now();
    let has_one_ended = || bridges.iter().any(Bridge::is_over);
    support::wait_until(TIME_LIMIT, has_one_ended, || "both go on".to_owned());
    eprintln!("{test}: one ended after {:?}", started.elapsed());
    let [first, second] = bridges;
    let (ended, survivor) = if first.is_over() { (first, second) } else { (second, first) };
    let status = ended.wait(Duration::from_secs(1));
    assert_eq!(status.code(), Some(1));
    assert!(ended.log_text().contains("another livebridge publishes"), "{}", ended.last_lines());
    wait_until_it_publishes(&survivor, TIME_LIMIT);
    load.wait_for(200, TIME_LIMIT);

    // With a name of its own, it publishes what it has acknowledged.
    let ended = ended.set("KAFKA_INSTANCE", "another");
    ended.start();
    let acknowledged = load.finish(TIME_LIMIT);
    survivor.drain(TIME_LIMIT);
    ended.drain(TIME_LIMIT);
    let Some(verdict) = rig.verdict(test, &acknowledged) else { return };
    verdict.assert_once();
}

#[test]
fn two_bridges_behind_a_load_balancer_absorb_each_others_retries() {
    let test = "two bridges";
    let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
    let bridges = [rig.bridge("left"), rig.bridge("right")];
    let mut plan = Plan::new(bridges[0].intake());
    plan.intakes.push(bridges[1].intake());
    plan.streams = 48;
    plan.resend = 25;
    (plan.retry, plan.resend_after) = (Duration::from_secs(1), Duration::from_secs(1));
    bridges.iter().for_each(Bridge::start);
    let load = rig.load(plan);
    for _ in 0..if everything() { 30 } else { 2 } {
        wait_until_it_publishes(&bridges[0], TIME_LIMIT);
        wait_until_it_publishes(&bridges[1], TIME_LIMIT);
        thread::sleep(rig.random.millis(100..1500));
        let unlucky = rig.random.index(2);
        bridges[unlucky].kill();
        bridges[unlucky].start();
    }
    // Both store the same events and publish them at the same time when Kafka is reachable again.
    rig.networks(Network::Refusing);
    thread::sleep(Duration::from_secs(4));
    rig.networks(Network::Good);
    wait_until_it_publishes(&bridges[0], TIME_LIMIT);
    wait_until_it_publishes(&bridges[1], TIME_LIMIT);
    load.wait_for(500, TIME_LIMIT);
    let acknowledged = load.finish(TIME_LIMIT);
    for bridge in &bridges {
        bridge.drain(TIME_LIMIT);
    }
    let absorbed: f64 =
        bridges.iter().filter_map(|bridge| bridge.metric("livebridge_duplicates_total")).sum();
    eprintln!("{test}: {absorbed} absorbed since the last starts");
    let Some(verdict) = rig.verdict(test, &acknowledged) else { return };
    verdict.assert_once();
}

/// The delivery modes by their configuration names.
const DELIVERIES: [&str; 2] = ["exactly-once", "at-least-once"];

/// A backlog stored while Kafka was unreachable is larger than a slow link can transmit within any
/// time-out.
#[test]
fn a_link_of_256_kbit_drains_a_backlog() {
    const RATE: u32 = 32_000;
    for delivery in DELIVERIES {
        let test = format!("slow link, {delivery}");
        let Some(mut rig) = Rig::start(&test, 1, |setup| setup) else { return };
        let bridge = rig.bridge("slow").set("KAFKA_DELIVERY", delivery);
        let load = rig.under_load(&bridge, |_| ());
        // Batches grow large before the link becomes slow.
        load.wait_for(1000, TIME_LIMIT);
        rig.networks(Network::Refusing);
        load.wait_for(500, TIME_LIMIT);
        let acknowledged = load.finish(TIME_LIMIT);
        rig.networks(Network::Limited(RATE));
        let started = Instant::now();
        bridge.drain(Duration::from_mins(4));
        eprintln!("{test}: drained in {:.0?}", started.elapsed());
        rig.networks(Network::Good);
        let Some(verdict) = rig.verdict(&test, &acknowledged) else { return };
        verdict.assert_clean();
    }
}

/// Without transactions, librdkafka sends again what Kafka has not answered, and the broker
/// recognises what it has.
#[test]
fn frozen_kafka_repeats_nothing_without_transactions() {
    let test = "frozen, at-least-once";
    // The long one is longer than every time-out of the producer.
    let pauses: &[u64] = if everything() { &[12, 70] } else { &[12] };
    for seconds in pauses {
        let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
        let bridge = rig.bridge("frozen").set("KAFKA_DELIVERY", "at-least-once");
        let load = rig.under_load(&bridge, |_| ());
        rig.cluster.pause(1);
        thread::sleep(Duration::from_secs(*seconds));
        rig.cluster.resume(1);
        wait_until_it_publishes(&bridge, TIME_LIMIT);
        load.wait_for(200, TIME_LIMIT);
        let Some(verdict) = rig.conclude(test, load, &bridge) else { return };
        verdict.assert_clean();
    }
}

// === A cluster of three ===

/// A fault of the cluster, and how it is ended.
type Fault = (&'static str, fn(&mut Rig));

const FEW: [Fault; 3] = [
    ("a broker is killed", |rig| {
        let node = rig.any_node();
        rig.cluster.kill(node);
        thread::sleep(Duration::from_secs(3));
        rig.cluster.start_again(node);
    }),
    ("a network drops packets silently", |rig| {
        let node = rig.any_node();
        rig.proxies[node - 1].set_network(Network::Silent);
        thread::sleep(Duration::from_secs(3));
        rig.proxies[node - 1].set_network(Network::Good);
    }),
    ("all connections are reset", |rig| {
        rig.networks(Network::Refusing);
        thread::sleep(Duration::from_millis(500));
        rig.networks(Network::Good);
    }),
];

const MANY: [Fault; 12] = [
    ("a broker is stopped", |rig| {
        let node = rig.any_node();
        rig.cluster.stop(node);
        thread::sleep(Duration::from_secs(5));
        rig.cluster.start_again(node);
    }),
    ("brokers are restarted one after another", |rig| {
        for node in 1..=3 {
            rig.cluster.restart(node);
            rig.cluster.wait_until_in_sync(node);
        }
    }),
    ("brokers are restarted one after another, without care", |rig| {
        (1..=3).for_each(|node| rig.cluster.restart(node));
    }),
    ("a broker is paused for 8 s", |rig| {
        let node = rig.any_node();
        rig.cluster.pause(node);
        thread::sleep(Duration::from_secs(8));
        rig.cluster.resume(node);
    }),
    ("a broker is paused for longer than a transaction may take", |rig| {
        let node = rig.any_node();
        rig.cluster.pause(node);
        thread::sleep(Duration::from_secs(45));
        rig.cluster.resume(node);
    }),
    ("all brokers are paused for longer than a transaction may take", |rig| {
        (1..=3).for_each(|node| rig.cluster.pause(node));
        thread::sleep(Duration::from_secs(45));
        (1..=3).for_each(|node| rig.cluster.resume(node));
    }),
    ("two of three brokers are killed: no quorum", |rig| {
        rig.cluster.kill(1);
        rig.cluster.kill(2);
        thread::sleep(Duration::from_secs(8));
        rig.cluster.launch(1);
        rig.cluster.start_again(2);
    }),
    ("all brokers are killed", |rig| {
        (1..=3).for_each(|node| rig.cluster.kill(node));
        thread::sleep(Duration::from_secs(3));
        (1..=2).for_each(|node| rig.cluster.launch(node));
        rig.cluster.start_again(3);
    }),
    ("too few replicas are in sync", |rig| {
        let bootstrap = rig.cluster.bootstrap();
        let topics = ["live.push", "live.record", "live.ledger"];
        let all = |settings: &[(&str, &str)]| {
            for topic in topics {
                kafka::configure_topic(&bootstrap, topic, settings);
            }
        };
        all(&[("min.insync.replicas", "3")]);
        let node = rig.any_node();
        rig.cluster.stop(node);
        thread::sleep(Duration::from_secs(40));
        all(&[("min.insync.replicas", "2")]);
        rig.cluster.start_again(node);
    }),
    ("the network takes 150 ms", |rig| {
        rig.networks(Network::Slow(Duration::from_millis(150)));
        thread::sleep(Duration::from_secs(10));
        rig.networks(Network::Good);
    }),
    ("the network takes 3 s", |rig| {
        rig.networks(Network::Slow(Duration::from_secs(3)));
        thread::sleep(Duration::from_secs(40));
        rig.networks(Network::Good);
    }),
    ("all networks are cut for longer than a transaction may take", |rig| {
        rig.networks(Network::Silent);
        thread::sleep(Duration::from_secs(45));
        rig.networks(Network::Good);
    }),
];

#[test]
fn any_fault_of_a_cluster_of_three_leaves_each_callback_once_and_in_order() {
    let test = "three brokers";
    let Some(mut rig) = Rig::start(test, 3, |setup| setup) else { return };
    let bridge = rig.bridge("three");
    let load = rig.under_load(&bridge, |_| ());
    let many: &[Fault] = if everything() { &MANY } else { &[] };
    for (what, fault) in FEW.iter().chain(many) {
        let published = bridge.metric("livebridge_published_total").unwrap_or(0.0);
        let started = Instant::now();
        fault(&mut rig);
        let lasted = started.elapsed();
        let published_since =
            bridge.metric("livebridge_published_total").unwrap_or(0.0) - published;
        let after = wait_until_it_publishes(&bridge, TIME_LIMIT);
        eprintln!(
            "{test}: {what}: {lasted:.1?}, {published_since} published; next after {after:.1?}"
        );
        for node in 1..=3 {
            rig.cluster.wait_until_in_sync(node);
        }
    }
    load.wait_for(200, TIME_LIMIT);
    let acknowledged = load.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);
    assert!(bridge.stop().success(), "{}", bridge.last_lines());
    for line in bridge.log_text().lines().filter(|line| line.contains("publish")) {
        eprintln!("  {line}");
    }
    let Some(verdict) = rig.verdict(test, &acknowledged) else { return };
    verdict.assert_clean();
}

// === Operators ===

#[test]
fn a_deleted_topic_is_recreated_and_receives_later_events() {
    let test = "deleted topic";
    let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
    let bridge = rig.bridge("deleted");
    let during = rig.under_load(&bridge, |_| ());
    during.wait_for(2000, TIME_LIMIT);
    kafka::delete_topic(&rig.cluster.bootstrap(), "live.push");
    let started = Instant::now();
    let is_recreated = |topic| {
        let line = format!("topic created topic={topic}\n");
        bridge.log_text().matches(&line).count() > 1
    };
    bridge.wait_until("recreating live.push", TIME_LIMIT, || is_recreated("live.push"));
    eprintln!("{test}: made again after {:?}", started.elapsed());
    // A topic that was deleted may have had any contents.
    let before = during.acknowledged();
    wait_until_it_publishes(&bridge, TIME_LIMIT);
    during.wait_for(500, TIME_LIMIT);
    let mut acknowledged = during.finish(TIME_LIMIT);
    bridge.drain(TIME_LIMIT);

    // The ledger topic is recreated as well, and nothing is lost. Until Kafka's metadata is known
    // to have changed, either topic may take half a minute.
    if everything() {
        let after = rig.load(Plan::new(bridge.intake()));
        after.wait_for(1000, TIME_LIMIT);
        kafka::delete_topic(&rig.cluster.bootstrap(), "live.ledger");
        bridge.wait_until("recreating live.ledger", TIME_LIMIT, || is_recreated("live.ledger"));
        wait_until_it_publishes(&bridge, TIME_LIMIT);
        after.wait_for(1000, TIME_LIMIT);
        acknowledged = acknowledged.and(after.finish(TIME_LIMIT));
        bridge.drain(TIME_LIMIT);
    }
    let Some(verdict) = rig.verdict(test, &acknowledged) else { return };
    // Only the contents of the deleted topic are lost.
    assert!(verdict.lost_of.keys().all(|topic| topic == "live.push"), "{:?}", verdict.lost_of);
    let wrong = [verdict.duplicates, verdict.disorder, verdict.conflicts, verdict.unknown];
    assert_eq!(wrong, [0; 4], "{verdict}");
    assert_eq!(verdict.landed + verdict.lost, verdict.acknowledged, "{verdict}");
    assert!(verdict.lost <= before, "{before}: {verdict}");
}

#[test]
fn records_are_published_once_write_permission_returns() {
    let test = "no rights";
    let with_rules = |setup: Setup| setup.user("bridge", "secret").authorizer();
    let Some(mut rig) = Rig::start(test, 1, with_rules) else { return };
    let bootstrap = rig.cluster.bootstrap();
    if support::or_skip(test, rights::allow_all(&bootstrap, "bridge")).is_none() {
        return;
    }
    let bridge = Bridge::new("rights", &rig.cluster.sasl(), PREFIX)
        .config(&rights::sasl_plaintext("bridge", "secret"));
    let load = rig.under_load(&bridge, |_| ());
    let denied =
        |kind, name, operation| Rule { kind, name, user: "bridge", operation, permission: "DENY" };
    let rules = [
        denied("TOPIC", "live.push", "WRITE"),
        denied("TOPIC", "live.ledger", "WRITE"),
        denied("TOPIC", "live.ledger", "READ"),
        denied("TRANSACTIONAL_ID", "rights", "WRITE"),
        denied("BROKER", "kafka-cluster", "IDEMPOTENT_WRITE"),
    ];
    let (count, pause) = if everything() { (rules.len(), 8) } else { (1, 3) };
    let pause = Duration::from_secs(pause);
    for rule in &rules[..count] {
        rule.add(&bootstrap).unwrap();
        // A running producer does not need the other permissions.
        if rule.operation == "WRITE" {
            let is_rejected = || bridge.metric("livebridge_kafka_up") == Some(0.0);
            bridge.wait_until("rejected by the brokers", TIME_LIMIT, is_rejected);
            if rule.kind == "TOPIC" {
                let says = format!("denies writing to topic {}; allow this user WRITE", rule.name);
                bridge.wait_for_error(&says, TIME_LIMIT);
            }
        }
        thread::sleep(pause);
        bridge.assert_running();
        rule.remove(&bootstrap).unwrap();
        let after = wait_until_it_publishes(&bridge, TIME_LIMIT);
        eprintln!("{test}: {rule:?}: resumes after {after:.1?}");
    }
    let Some(verdict) = rig.conclude(test, load, &bridge) else { return };
    verdict.assert_clean();
    assert_eq!(verdict.lengths[1].len(), 0, "a missing permission does not make a dead letter");
}
