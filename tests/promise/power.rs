//! Power cuts: every callback answered 200 is on the disk, whatever unsynced data is lost.
//!
//! The real binary runs under a shim (`power/shim.c`) that records every change to its directory,
//! every sync and every response, in order. From the recording, directories are rebuilt as a power
//! cut at some point could leave them (`power/disk.rs`), and the binary must recover: every
//! callback acknowledged before the cut must be in the log, unchanged, or in Kafka.
//!
//! `cargo test` makes about forty cuts. More, with counts:
//! `LIVEBRIDGE_POWER_CUTS=600 cargo test --release --test promise power:: -- --nocapture`;
//! `LIVEBRIDGE_POWER_SEED` repeats the choice of cuts, but not the timing of a run.

mod cuts;
mod disk;
mod kafka;
mod load;
mod run;
mod site;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;

use crate::support::{preload, turn};
use cuts::{History, PowerCut, assert_complete, choose};
use disk::{Disk, STRICT};
use kafka::{Kafka, Seen};
use load::{Callback, Client, acknowledged};
use run::Run;
use site::{Bridge, LOG, Options, PLAIN, Site};
use trace::{Event, Trace};

const SHIM: &str = "tests/promise/power/shim.c";

/// Cuts per history in the quick run, which has two histories.
const QUICK: usize = 20;

/// Cuts per history in this run.
fn cuts_wanted() -> usize {
    let all = env::var("LIVEBRIDGE_POWER_CUTS").ok();
    all.map_or(QUICK, |all| all.parse::<usize>().expect("LIVEBRIDGE_POWER_CUTS is a number") / 2)
}

fn is_long() -> bool {
    cuts_wanted() > QUICK
}

fn seed() -> u64 {
    let given = env::var("LIVEBRIDGE_POWER_SEED").ok();
    given.map_or_else(
        || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
            now.as_secs() * 1000 + u64::from(now.subsec_millis())
        },
        |seed| seed.parse().expect("LIVEBRIDGE_POWER_SEED is a number"),
    )
}

/// Cuts a history and fails if anything was lost.
fn cut_and_conclude(test: &str, seed: u64, run: &Run, kafka: Option<&Seen>) {
    let trace = run.site.trace();
    assert_complete(&run.site, &trace);
    let acknowledged = acknowledged(&trace, &run.sent);
    let mut rng = Rng::with_seed(seed);
    let cuts = choose(&trace, cuts_wanted(), &mut rng);
    let history = History { trace: &trace, acknowledged: &acknowledged, kafka };
    let outcome = history.cut(&cuts, seed);
    println!(
        "{test}: {outcome}; {} callbacks acknowledged, {} segments written, {} removed, seed {seed}",
        acknowledged.len(),
        trace.segments_written(),
        trace.segments_removed(),
    );
    let some: Vec<&String> = outcome.failures.iter().take(10).collect();
    assert!(some.is_empty(), "seed {seed}: {some:#?}");
}

#[test]
fn no_power_cut_loses_an_acknowledged_callback() {
    let _turn = turn::beside_others();
    let test = "no_power_cut_loses_an_acknowledged_callback";
    let Some(shim) = preload(test, SHIM) else { return };
    let mut run = Run::new(Site::new(&shim));

    let bridge = run.start(PLAIN);
    // One commit at a time until the segment has its maximum number of commits.
    run.load(&bridge, 1, 2400, 200);
    run.load(&bridge, 8, 40, 3000);
    run.load_and_kill(bridge, 8, 300, 100);
    for _ in 0..if is_long() { 4 } else { 1 } {
        let bridge = run.start(PLAIN);
        run.load(&bridge, 3, 20, 500);
        run.stop_unpublished(bridge);
        let bridge = run.start(PLAIN);
        // Large callbacks until the segment has its maximum size.
        run.load(&bridge, 4, 60, 200_000);
        run.load_and_kill(bridge, 8, 300, 100);
    }
    let bridge = run.start(PLAIN);
    run.load(&bridge, 3, 20, 500);
    run.stop_unpublished(bridge);

    cut_and_conclude(test, seed(), &run, None);
}

#[test]
fn no_power_cut_loses_an_unpublished_record() {
    let _turn = turn::beside_others();
    let test = "no_power_cut_loses_an_unpublished_record";
    let Some(shim) = preload(test, SHIM) else { return };
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let kafka = Kafka::start();
    let brokers = kafka.brokers();
    let options = Options { brokers, snapshot: Some(kafka.snapshot), ..PLAIN };
    let mut run = Run::new(Site::new(&shim));

    for _ in 0..if is_long() { 4 } else { 1 } {
        let bridge = run.start(options);
        for _ in 0..6 {
            // A few megabytes at a time, because the mock cluster does not keep more.
            run.load(&bridge, 4, 10, 200_000);
            assert!(kafka.comes_to(|seen| seen.count() >= run.answered()), "published");
        }
        run.load(&bridge, 1, 2400, 200);
        run.load_and_kill(bridge, 8, 300, 100);
        // The process kills itself at about the time when it fills a segment, creates the next and
        // removes the last.
        for _ in 0..if is_long() { 4 } else { 1 } {
            let kill_at = Some(6900 + rng.u64(..400));
            let bridge = run.start(Options { kill_at, ..options });
            run.load_and_kill(bridge, 1, 200, usize::MAX);
        }
        let bridge = run.start(options);
        run.load(&bridge, 1, 2400, 200);
        run.stop(bridge);
        // Everything is published. Published segments found by a later start are removed,
        // repeatedly.
        for _ in 0..2 {
            let bridge = run.start(options);
            run.stop(bridge);
        }
        let bridge = run.start(options);
        run.load(&bridge, 3, 20, 500);
        run.load_and_kill(bridge, 8, 300, 100);
    }

    cut_and_conclude(test, seed, &run, Some(&kafka.seen()));

    // At the end of the trace Kafka has its state of that time, so that a bridge can continue with
    // it.
    let trace = run.site.trace();
    let mut disk = Disk::new(&trace);
    trace.events.iter().for_each(|traced| disk.apply(&traced.event));
    let left = site::temporary();
    disk.rebuild(STRICT, &mut Rng::with_seed(0), left.path());
    let bridge = Bridge::start(&left.path().join(LOG), brokers).expect("a start after the cut");
    let mut client = Client::connect(bridge.process(), bridge.address());
    let last = Callback { connection: u32::MAX, number: 0, bytes: 100 };
    client.send(last).expect("an answer after the cut");
    let acknowledged = acknowledged(&trace, &run.sent);
    let complete = kafka.comes_to(|seen| {
        seen.has(last) && acknowledged.iter().all(|(_, callback)| seen.has(*callback))
    });
    assert!(complete, "something that was acknowledged before or after the cut is not in Kafka");
    bridge.stop();
}

/// Verifies that the harness detects a missing sync.
#[test]
fn a_bridge_that_skips_syncs_is_detected() {
    let _turn = turn::beside_others();
    let test = "a_bridge_that_skips_syncs_is_detected";
    let Some(shim) = preload(test, SHIM) else { return };
    for what in ["fdatasync", "files", "directories"] {
        let mut run = Run::new(Site::new(&shim));
        let bridge = run.start(Options { swallow: Some(what), ..PLAIN });
        run.load(&bridge, 4, 20, 500);
        run.kill(bridge);
        let trace = run.site.trace();
        assert_complete(&run.site, &trace);
        let acknowledged = acknowledged(&trace, &run.sent);
        let cuts: Vec<PowerCut> =
            acknowledged.iter().step_by(8).map(|(index, _)| PowerCut::strict(index + 1)).collect();
        let history = History { trace: &trace, acknowledged: &acknowledged, kafka: None };
        let outcome = history.cut(&cuts, 0);
        println!("{test}, without {what}: {outcome}");
        let failures = outcome.failures;
        assert_eq!(failures.len(), cuts.len(), "without {what} nothing holds: {failures:#?}");
        let told = failures.iter().all(|failure| failure.contains("is lost"));
        // Without a readable identity it is not recognised as a log.
        assert!(told || what == "files", "{failures:#?}");
    }
}

#[test]
fn a_response_comes_after_fdatasync_of_its_data_and_every_new_file_and_directory_is_synced() {
    let _turn = turn::beside_others();
    let test =
        "a_response_comes_after_fdatasync_of_its_data_and_every_new_file_and_directory_is_synced";
    let Some(shim) = preload(test, SHIM) else { return };
    let mut run = Run::new(Site::new(&shim));
    let bridge = run.start(PLAIN);
    run.load(&bridge, 1, 10, 500);
    run.kill(bridge);
    let trace = run.site.trace();
    assert_complete(&run.site, &trace);
    let acknowledged = acknowledged(&trace, &run.sent);
    assert_eq!(acknowledged.len(), 10);

    let mut before = 0;
    for (response, callback) in &acknowledged {
        let events = &trace.events[before..*response];
        before = *response;
        let body = callback.body();
        let written = events.iter().position(|traced| match &traced.event {
            Event::Write { data, .. } => {
                memchr::memmem::find(trace.data(data), body.as_bytes()).is_some()
            }
            _ => false,
        });
        let written = written.expect("the callback is written before it is answered");
        let Event::Write { inode, .. } = events[written].event else { unreachable!() };
        let synced = events[written..].iter().any(|traced| traced.event == Event::Sync { inode });
        assert!(synced, "{callback} was answered before its file was synced");
    }
    assert_new_files_are_durable(&trace, acknowledged[0].0);
}

/// Every file and directory that was created before the event `first` and still exists was synced,
/// and so was its parent directory.
fn assert_new_files_are_durable(trace: &Trace, first: usize) {
    let mut names: BTreeMap<u64, (u64, String)> = BTreeMap::new();
    let mut unsynced: BTreeMap<u64, &str> = BTreeMap::new();
    let mut unnamed: BTreeMap<u64, u64> = BTreeMap::new();
    for traced in &trace.events[..first] {
        match &traced.event {
            Event::Create { parent, inode, name } | Event::Mkdir { parent, inode, name } => {
                names.insert(*inode, (*parent, name.clone()));
                unsynced.insert(*inode, "made");
                unnamed.insert(*inode, *parent);
            }
            Event::Write { inode, .. } | Event::Size { inode, .. } => {
                unsynced.insert(*inode, "written");
            }
            Event::Rename { from, to } => {
                let moved = names.iter().find(|(_, name)| *name == from);
                let inode = *moved.expect("a file that was made").0;
                names.insert(inode, to.clone());
                unnamed.insert(inode, to.0);
            }
            Event::Unlink { .. } | Event::Rmdir { .. } => panic!("a fresh start removes nothing"),
            Event::Sync { inode } => {
                unsynced.remove(inode);
                unnamed.retain(|_, parent| parent != inode);
            }
            Event::Start { .. } | Event::FlushRange { .. } | Event::Response { .. } => {}
        }
    }
    let path = |inode: &u64| {
        let mut path = Vec::new();
        let mut at = inode;
        while let Some((parent, name)) = names.get(at) {
            path.insert(0, name.as_str());
            at = parent;
        }
        path.join("/")
    };
    // The next segment is being created and used only once it is durable. The lock file is empty
    // and recreated by every process. The progress file is less accurate than the ledger in Kafka.
    // The time of the last acceptance is written every so often, beside the answers. Each of the three
    // is written under another name, synced and renamed.
    let may_wait = |path: &str| {
        let rest = path.strip_prefix(LOG).unwrap_or(path);
        let rest = rest.strip_suffix(".partial").unwrap_or(rest);
        matches!(rest, "/lock" | "/progress" | "/self-audit" | "/last-accepting")
            || rest.starts_with("/segments/0000000002")
    };
    let missing: Vec<String> = unsynced.keys().chain(unnamed.keys()).map(path).collect();
    let missing: Vec<_> = missing.iter().filter(|path| !may_wait(path)).collect();
    assert!(missing.is_empty(), "not durable at the first response: {missing:?}");
    let made: Vec<String> = names.keys().map(path).collect();
    for expected in ["", "/log", "/segments", "/segments/0000000001", "/segments/0000000001/db"] {
        assert!(made.contains(&format!("{LOG}{expected}")), "{expected} in {made:?}");
    }
}

/// A process that is killed between creating and syncing a file leaves the sync to the next, which
/// sees the file in the page cache and cannot know that it is not durable.
#[test]
fn a_kill_at_any_step_of_a_start_leaves_nothing_unsynced() {
    let _turn = turn::beside_others();
    let test = "a_kill_at_any_step_of_a_start_leaves_nothing_unsynced";
    let Some(shim) = preload(test, SHIM) else { return };
    let mut run = Run::new(Site::new(&shim));
    for _ in 0..2 {
        let bridge = run.start(PLAIN);
        run.load(&bridge, 1, 2, 300);
        run.kill(bridge);
    }
    let steps = changes_of_names(&run.site.trace());
    for step in steps {
        let mut run = Run::new(Site::new(&shim));
        for _ in 0..2 {
            let kill = Options { kill_at: Some(step), ..PLAIN };
            match run.site.start(kill) {
                // The intake listens before the first segment exists.
                Some(mut bridge) => {
                    bridge.wait(Duration::from_millis(300));
                    run.kill(bridge);
                }
                None => run.site.take_image(),
            }
            let bridge = run.start(PLAIN);
            run.load(&bridge, 1, 2, 300);
            run.kill(bridge);
        }
        let trace = run.site.trace();
        assert_complete(&run.site, &trace);
        let acknowledged = acknowledged(&trace, &run.sent);
        let mut cuts: Vec<PowerCut> =
            acknowledged.iter().map(|(index, _)| PowerCut::strict(index + 1)).collect();
        cuts.push(PowerCut::strict(trace.events.len()).and_start());
        let history = History { trace: &trace, acknowledged: &acknowledged, kafka: None };
        let outcome = history.cut(&cuts, 0);
        assert!(outcome.failures.is_empty(), "killed at step {step}: {:#?}", outcome.failures);
    }
}

/// The record counts at which a process had changed names and not yet synced them, before its first
/// response, with a new or an existing log.
fn changes_of_names(trace: &Trace) -> BTreeSet<u64> {
    let mut steps = BTreeSet::new();
    let mut records = 0;
    let mut answered = false;
    for traced in &trace.events {
        match &traced.event {
            Event::Start { .. } => (records, answered) = (1, false),
            Event::Response { .. } => answered = true,
            event => {
                records += 1;
                if event.changes_names() && !answered {
                    steps.insert(records);
                }
            }
        }
    }
    assert!(steps.len() > 10, "a start creates files and directories: {steps:?}");
    steps
}
