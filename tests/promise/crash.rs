//! kill -9 of the real binary at any moment, in both delivery modes: nothing acknowledged is lost or
//! reordered, and exactly-once repeats nothing.
//!
//! A few kills of each mode in every test run; the campaign, with as many kills of each mode, is
//! `LIVEBRIDGE_KILLS=300 cargo test --release --test promise crash:: -- --nocapture`.

#![expect(clippy::float_cmp, reason = "only whole numbers are compared")]

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::support::bridge::Bridge;
use crate::support::kafka::{Cluster, Setup};
use crate::support::load::{Load, Plan};
use crate::support::proxy::{Api, Proxy, Stage, Trap};
use crate::support::random::Random;
use crate::support::{self, turn};

/// The delivery modes, by the name in the configuration.
const EXACTLY_ONCE: &str = "exactly-once";
const AT_LEAST_ONCE: &str = "at-least-once";
/// The requests for which a trap can be set; a repeated entry is more likely to be chosen.
const APIS: [Api; 12] = [
    Api::Produce,
    Api::Produce,
    Api::Produce,
    Api::AddPartitionsToTxn,
    Api::EndTxn,
    Api::EndTxn,
    Api::EndTxn,
    Api::InitProducerId,
    Api::ListOffsets,
    Api::Fetch,
    Api::Fetch,
    Api::Metadata,
];
/// The same without transactions.
const APIS_WITHOUT_TRANSACTIONS: [Api; 10] = [
    Api::Produce,
    Api::Produce,
    Api::Produce,
    Api::Produce,
    Api::Produce,
    Api::InitProducerId,
    Api::ListOffsets,
    Api::Fetch,
    Api::Fetch,
    Api::Metadata,
];
/// The requests that occur when a bridge starts, or only then.
const AT_START: [Api; 4] = [Api::InitProducerId, Api::ListOffsets, Api::Fetch, Api::Metadata];
const STAGES: [Stage; 4] = [Stage::Before, Stage::Sent, Stage::Answered, Stage::Arrived];
/// The time-out for a trap; after that the kill happens without it.
const TRAP: Duration = Duration::from_secs(2);
/// In the campaign, rounds of kills with Kafka and without Kafka alternate.
const ROUND: (u32, u32) = (12, 3);

#[test]
fn kill_at_any_moment_loses_and_repeats_nothing_exactly_once() {
    run_campaign(EXACTLY_ONCE);
}

#[test]
fn kill_at_any_moment_loses_nothing_at_least_once() {
    run_campaign(AT_LEAST_ONCE);
}

fn run_campaign(delivery: &'static str) {
    // A second broker, bridge and load at the same time would only change the timing of both.
    let _turn = turn::alone();
    let Some((mut campaign, _runtime)) = Campaign::start(delivery) else { return };
    let kills = env::var("LIVEBRIDGE_KILLS").ok();
    match kills.map(|kills| kills.parse::<u32>().expect("LIVEBRIDGE_KILLS is a number")) {
        None => campaign.round_of_each_kind(),
        Some(kills) => {
            while campaign.killed() < kills {
                campaign.round(ROUND.0, ROUND.1);
                let acknowledged = campaign.load.acknowledged();
                eprintln!("{delivery}: {} kills, {acknowledged}", campaign.killed());
            }
        }
    }
    campaign.finish();
}

/// A bridge that reaches the broker through a proxy, and the counts of what was done to it.
struct Campaign {
    delivery: &'static str,
    random: Random,
    proxy: Proxy,
    cluster: Cluster,
    bridge: Bridge,
    load: Load,
    kafka_is_up: bool,
    kills: BTreeMap<String, u32>,
    started: Instant,
}

impl Campaign {
    fn start(delivery: &'static str) -> Option<(Self, Runtime)> {
        let test = &format!("crash, {delivery}");
        let mut random = Random::new(test);
        let runtime = Runtime::new().expect("a runtime");
        let proxy = Proxy::start(runtime.handle());
        let setup = Setup::default().proxies(&[proxy.port()]);
        let cluster = Cluster::start_or_skip(test, &setup)?;
        proxy.set_upstream(cluster.behind(1));
        let bridge =
            Bridge::new("crash", &proxy.address(), "crash").set("KAFKA_DELIVERY", delivery);
        bridge.start();
        let load = Load::start(runtime.handle(), Plan::new(bridge.intake()), &mut random);
        let publishes =
            || bridge.metric("livebridge_published_total").is_some_and(|count| count > 0.0);
        bridge.wait_until("publishing", Duration::from_mins(2), publishes);
        let (kills, started) = (BTreeMap::new(), Instant::now());
        let kafka_is_up = true;
        let campaign =
            Self { delivery, random, proxy, cluster, bridge, load, kafka_is_up, kills, started };
        Some((campaign, runtime))
    }

    fn killed(&self) -> u32 {
        self.kills.values().sum()
    }

    /// A small number of kills of different kinds: during and after the commit, which is `EndTxn` with
    /// transactions and the ledger's `Produce` without them, and at other requests.
    fn round_of_each_kind(&mut self) {
        let commit = if self.delivery == EXACTLY_ONCE { Api::EndTxn } else { Api::Produce };
        for (api, nth, stage) in [
            (commit, 3, Stage::Sent),
            (commit, 2, Stage::Answered),
            (commit, 2, Stage::Arrived),
            (Api::Produce, 4, Stage::Answered),
            (Api::InitProducerId, 1, Stage::Sent),
            (Api::Fetch, 2, Stage::Answered),
        ] {
            self.kill_in_a_trap(api, nth, stage);
            self.bridge.spawn();
        }
        self.kill_while_starting();
        self.bridge.spawn();
        self.round(1, 4);
    }

    /// Kills with Kafka reachable, makes Kafka unreachable, kills, and makes Kafka reachable again.
    fn round(&mut self, with: u32, without: u32) {
        let before = self.killed();
        while self.killed() < before + with {
            self.kill();
        }
        if self.random.percent(50) {
            self.cluster.stop(1);
        } else {
            self.cluster.kill(1);
        }
        self.kafka_is_up = false;
        let before = self.killed();
        while self.killed() < before + without {
            self.kill();
        }
        self.cluster.start_again(1);
        self.kafka_is_up = true;
    }

    /// Kills the bridge at a random moment and restarts it.
    fn kill(&mut self) {
        match self.random.within(0..100) {
            0..25 => self.kill_at_work(),
            25..45 => self.kill_while_starting(),
            _ if self.kafka_is_up => {
                let apis: &[Api] =
                    if self.delivery == EXACTLY_ONCE { &APIS } else { &APIS_WITHOUT_TRANSACTIONS };
                let (api, stage) = (self.random.pick(apis), self.random.pick(&STAGES));
                let most = if AT_START.contains(&api) { 3 } else { 6 };
                let nth = u32::try_from(self.random.within(1..most)).expect("a small number");
                self.kill_in_a_trap(api, nth, stage);
            }
            _ => self.kill_at_work(),
        }
        self.bridge.spawn();
    }

    fn count(&mut self, how: &str) {
        let kafka = if self.kafka_is_up { "" } else { ", without Kafka" };
        *self.kills.entry(format!("{how}{kafka}")).or_default() += 1;
    }

    fn kill_at_work(&mut self) {
        self.bridge.wait_until_ready();
        thread::sleep(self.random.millis(10..1200));
        self.bridge.kill();
        self.count("at work");
    }

    fn kill_while_starting(&mut self) {
        self.bridge.wait_until_ready();
        self.bridge.kill();
        self.count("at work");
        for _ in 0..self.random.within(1..3) {
            self.bridge.spawn();
            thread::sleep(self.random.millis(5..300));
            self.bridge.kill();
            self.count("while starting");
        }
    }

    /// Kills while a request to the broker is in flight.
    fn kill_in_a_trap(&mut self, api: Api, nth: u32, stage: Stage) {
        let at_start = AT_START.contains(&api) || self.random.percent(25);
        self.bridge.wait_until_ready();
        if at_start {
            self.bridge.kill();
            self.count("at work");
            self.bridge.spawn();
        }
        let killer = self.bridge.killer();
        let client = Some("livebridge-crash".to_owned());
        let spring = Box::new(move || killer.kill());
        let done = self.proxy.set_trap(Trap { api, nth, stage, client, topic: None, spring });
        if done.recv_timeout(TRAP).is_ok() {
            self.count(&format!("{api:?} {stage:?}"));
        } else {
            self.proxy.disarm();
            self.bridge.killer().kill();
            self.count("at work");
        }
    }

    /// Waits until everything is delivered, and verifies it.
    fn finish(self) {
        self.bridge.wait_until_ready();
        // Whether the bridge really ran in the mode that is tested.
        let commit = Trap {
            api: Api::EndTxn,
            nth: 1,
            stage: Stage::Arrived,
            client: None,
            topic: None,
            spring: Box::new(|| ()),
        };
        let committed = self.proxy.set_trap(commit);
        self.load.wait_for(200, Duration::from_mins(1));
        let (kills, lasted) = (self.killed(), self.started.elapsed());
        let acknowledged = self.load.finish(Duration::from_mins(1));
        let finished = Instant::now();
        self.bridge.drain(Duration::from_mins(2));
        let drained = finished.elapsed();
        let has_transactions = committed.try_recv().is_ok();
        assert_eq!(has_transactions, self.delivery == EXACTLY_ONCE, "EndTxn was seen or not");
        let account = |name| self.bridge.metric(name).expect("an answer");
        let missing = account("livebridge_audit_missing_records");
        let accepted = account("livebridge_audit_accepted_total");
        let settled = account("livebridge_audit_settled_total");
        let audit = self.bridge.run(&["audit", "--since", "2h"]);
        let audit_text = audit.stdout + &audit.stderr;
        let status = self.bridge.stop();
        assert!(status.success(), "{status}: {}", self.bridge.last_lines());
        eprintln!("{kills} kills in {lasted:?}, drained {drained:?} after the last callback");
        for (how, count) in &self.kills {
            eprintln!("  {count:4} {how}");
        }
        eprint!("the self-audit has {accepted} records, {missing} missing\n{audit_text}");
        let verdict = acknowledged.check(&self.cluster.bootstrap(), "crash");
        let Some(verdict) = support::or_skip("crash", verdict) else { return };
        eprintln!("{}: {verdict}", self.delivery);
        assert_eq!(missing, 0.0, "the self-audit");
        assert_eq!(accepted, settled, "nothing is pending");
        let has_skipped_markers = self.cluster.has_skipped_markers();
        if has_skipped_markers {
            eprintln!("Kafka left out the markers of a transaction: its events may be there twice");
        } else {
            assert_eq!(audit.code, Some(0), "the audit: {audit_text}");
        }
        if self.delivery == EXACTLY_ONCE && !has_skipped_markers {
            verdict.assert_clean();
        } else {
            verdict.assert_at_least_once();
        }
    }
}
