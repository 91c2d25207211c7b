//! Whatever brokers, networks and neighbours do: each acknowledged callback is in Kafka once.
//!
//! A few faults in every test run; all of them with
//! `LIVEBRIDGE_FAULTS=all cargo test --release --test faults -- --nocapture`.

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use support::bridge::Bridge;
use support::kafka::{Cluster, Setup};
use support::load::{Acknowledged, Load, Plan, Verdict};
use support::proxy::{Api, Proxy, Stage, Trap};
use support::random::Random;
use tokio::runtime::Runtime;

const PREFIX: &str = "live";

/// Brokers behind proxies, on a machine that is ours alone until it is dropped.
struct Rig {
    random: Random,
    proxies: Vec<Proxy>,
    cluster: Cluster,
    runtime: Runtime,
    _turn: MutexGuard<'static, ()>,
}

impl Rig {
    fn start(test: &str, nodes: usize, setup: impl FnOnce(Setup) -> Setup) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// A bridge that reaches the brokers through the proxies.
    fn bridge(&self, instance: &str) -> Bridge {
        let brokers: Vec<_> = self.proxies.iter().map(Proxy::address).collect();
        let replication = self.proxies.len().to_string();
        Bridge::new(instance, &brokers.join(","), PREFIX).set("KAFKA_REPLICATION", &replication)
    }

    fn load(&mut self, plan: Plan) -> Load {
        Load::start(self.runtime.handle(), plan, &mut self.random)
    }

    fn verdict(&self, test: &str, acknowledged: &Acknowledged) -> Option<Verdict> {
        let verdict = acknowledged.check(&self.cluster.bootstrap(), PREFIX);
        let verdict = support::or_skip(test, verdict)?;
        eprintln!("{test}: {verdict}");
        Some(verdict)
    }
}

/// Waits until the bridge has published something more.
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

/// Another instance's open transaction keeps from `read_committed` readers what was committed
/// behind it. A bridge that read its ledger only so far would publish again what it had published.
#[test]
fn a_restart_behind_another_instances_open_transaction_publishes_nothing_twice() {
    let test = "open transaction";
    let Some(mut rig) = Rig::start(test, 1, |setup| setup) else { return };
    let (bridge, other) = (rig.bridge("steady"), rig.bridge("hanging"));
    bridge.start();
    other.start();
    let load = rig.load(Plan::new(bridge.intake()));
    let other_load = rig.load(Plan::new(other.intake()));
    wait_until_it_publishes(&bridge, Duration::from_secs(20));
    wait_until_it_publishes(&other, Duration::from_secs(20));

    let killer = other.killer();
    let hung = rig.proxies[0].set_trap(Trap {
        api: Api::EndTxn,
        nth: 2,
        stage: Stage::Before,
        client: Some("livebridge-hanging".into()),
        spring: Box::new(move || killer.kill()),
    });
    hung.recv_timeout(Duration::from_secs(10)).unwrap();
    load.wait_for(500, Duration::from_secs(20));
    bridge.kill();
    bridge.start();
    load.wait_for(500, Duration::from_secs(20));
    // It waits, or, as it once did, goes on with what it did before.
    let started = Instant::now();
    let waits = || bridge.said().contains("waiting for Kafka to end a transaction");
    let publishes = || bridge.metric("livebridge_published_total").unwrap_or(0.0) > 0.0;
    while !waits() && !publishes() {
        assert!(started.elapsed() < Duration::from_secs(20), "{}", bridge.last_lines());
        thread::sleep(Duration::from_millis(50));
    }
    other.start();
    let acknowledged = load.finish(Duration::from_secs(20));
    let others = other_load.finish(Duration::from_secs(20));
    bridge.drain(Duration::from_mins(1));
    other.drain(Duration::from_mins(1));
    let Some(verdict) = rig.verdict(test, &acknowledged.and(others)) else { return };
    verdict.assert_clean();
}
