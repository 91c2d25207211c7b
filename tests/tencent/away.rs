//! A drill: livebridge is away for 20 minutes by its clock, Tencent gives up on the callbacks of that
//! time, and `livebridge recover --gap` finds the time and publishes them.

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::sample::Samples;

use super::recover::{assert_each_once, bridge, command, finish, percent_encoded, start};
use crate::support;
use crate::support::bridge::{Bridge, KEY};
use crate::support::kafka::{Kafka, TIME_LIMIT, UNREACHABLE};
use crate::support::shift::Shift;
use crate::support::tencent::{Record, Stream, Tencent};
use crate::support::wire::deliver;

const MINUTE: i64 = 60_000;
const TYPES: [i64; 4] = [0, 1, 100, 200];

fn ago(minutes: i64) -> Timestamp {
    Timestamp::from_millis(Timestamp::now().as_millis() - minutes * MINUTE)
}

/// A callback of an event that happened then.
fn callback(samples: &Samples, number: i64, time: Timestamp) -> String {
    let event_type = TYPES[usize::try_from(number).unwrap() % TYPES.len()];
    let mut event = samples.event(EventType(event_type));
    event.insert("stream_id".into(), format!("stream {}@x", number % 5).into());
    event.insert("event_time".into(), (time.as_millis() / 1000).into());
    samples.delivery(event, time)
}

fn gap_seconds(bridge: &Bridge) -> f64 {
    bridge.metric("livebridge_gap_not_recovered_seconds").unwrap()
}

fn wait_for_gap(bridge: &Bridge, what: &str, is_so: impl Fn(f64) -> bool) {
    bridge.wait_until(what, TIME_LIMIT, || is_so(gap_seconds(bridge)));
}

/// Starts the bridge and waits until it has written for the first time that it accepts callbacks: a
/// gap after that can be found.
fn start_accepting(bridge: &Bridge) {
    bridge.start();
    let is_written = || bridge.wal().join("last-accepting").exists();
    bridge.wait_until("writing the time for the first time", TIME_LIMIT, is_written);
}

/// Waits until the bridge has written that it accepts callbacks, after its clock was set: until then,
/// the time since is listed as another gap.
fn wait_for_note(bridge: &Bridge) {
    bridge.wait_until("writing the time", TIME_LIMIT, || gaps(bridge, "").lines().count() == 1);
}

/// What `livebridge wal gaps` prints, by the bridge's clock.
fn gaps(bridge: &Bridge, option: &str) -> String {
    let option = (!option.is_empty()).then_some(option);
    let arguments: Vec<&str> = ["wal", "gaps"].into_iter().chain(option).collect();
    let finished = bridge.run(&arguments);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}

fn has_finding(bridge: &Bridge) -> bool {
    bridge.get("/status").contains("LivebridgeGapNotRecovered")
}

#[test]
fn what_was_lost_in_twenty_minutes_of_absence_is_recovered_and_the_alert_ends() {
    let Some(kafka) = Kafka::shared_or_skip("away") else { return };
    let Some(shift) = Shift::new("away") else { return };
    let prefix = support::unique("away");
    let tencent = Tencent::start();
    let samples = Samples::new(CallbackKey::new(KEY));
    let mut bodies = Vec::new();
    let mut accept = |bridge: &Bridge, minutes: i64| {
        shift.set(-60 * minutes);
        let taken = [0, 1, 2].map(|number| callback(&samples, number, ago(minutes)));
        deliver(bridge.intake(), &taken);
        bodies.extend(taken);
    };
    shift.set(-60 * 60);
    let bridge = shift.apply(bridge(kafka, &prefix));
    start_accepting(&bridge);
    accept(&bridge, 60);
    bridge.drain(TIME_LIMIT);
    assert!(gap_seconds(&bridge) < 1.0, "a first start is no gap");
    assert!(bridge.stop().success());
    let stopped = ago(60);

    // Twenty minutes pass. Tencent tries each callback for 12 minutes.
    let started = ago(40);
    shift.set(-40 * 60);
    let bridge = start(bridge);
    wait_for_gap(&bridge, "showing the gap", |seconds| (1190.0..1800.0).contains(&seconds));
    assert!(has_finding(&bridge));
    assert_eq!(gaps(&bridge, "").lines().count(), 1);
    // The clock is set forward while it runs, which is no gap.
    for minutes in [40, 32, 24, 16, 8, 0] {
        accept(&bridge, minutes);
        bridge.drain(TIME_LIMIT);
    }
    {
        let mut state = tencent.state();
        for number in 0..5 {
            state.streams.push(Stream::running(format!("stream {number}@x"), ago(180)));
        }
        // Failed for good while it was away, and one long after, which `--gap` does not mean.
        let lost: Vec<i64> = (41..60).flat_map(|minutes| [minutes; 10]).collect();
        for (number, minutes) in (0..).zip(lost.iter().copied().chain([3])) {
            let body = callback(&samples, number, ago(minutes));
            let stream = format!("stream {}@x", number % 5);
            let event_type = TYPES[usize::try_from(number).unwrap() % 4];
            let request = percent_encoded(&body);
            state.records.push(Record::failed(stream, event_type, ago(minutes), request));
            bodies.extend((minutes > 3).then_some(body));
        }
    }
    wait_for_note(&bridge);
    // From two takings, because the ledger is read from a time before the first only.
    let arguments = ["--gap", "--since", "65m"];
    let (code, text) = finish(command(&bridge, &tencent, &arguments));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("190 failed callbacks of 5 streams"), "{text}");
    assert!(text.contains("would be recovered with --yes"), "{text}");
    assert!(gap_seconds(&bridge) > 0.0, "nothing is recovered yet");
    let (code, text) = finish(command(&bridge, &tencent, &[&arguments[..], &["--yes"]].concat()));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("190 events sent"), "{text}");
    assert!(text.contains("is recovered"), "{text}");
    assert_window(&text, stopped, started);
    wait_for_gap(&bridge, "showing that there is no gap", |seconds| seconds == 0.0);
    assert!(!has_finding(&bridge));
    assert_eq!(gaps(&bridge, ""), "no gap is recorded\n");
    bridge.drain(TIME_LIMIT);
    assert_each_once(kafka, &prefix, &bodies);
}

/// From 30 minutes before the bridge was stopped to 10 minutes after it was started again.
fn assert_window(text: &str, stopped: Timestamp, started: Timestamp) {
    let line = text.lines().find(|line| line.starts_with("events from ")).unwrap();
    let times: Vec<&str> = line.split(' ').collect();
    let minutes_since = |time: &str, reference: Timestamp| {
        (Timestamp::parse(time).unwrap().as_millis() - reference.as_millis()) / MINUTE
    };
    let [begin, end] = [minutes_since(times[2], stopped), minutes_since(times[4], started)];
    assert!((-33..-27).contains(&begin) && (7..13).contains(&end), "{begin}, {end}: {line}");
}

#[test]
fn a_gap_stays_until_a_recovery_covers_it_without_exceptions_or_an_operator_drops_it() {
    let Some(kafka) = Kafka::shared_or_skip("gap stays") else { return };
    let Some(shift) = Shift::new("gap stays") else { return };
    let prefix = support::unique("gap-stays");
    let tencent = Tencent::start();
    shift.set(-60 * 60);
    let bridge = shift.apply(bridge(kafka, &prefix));
    start_accepting(&bridge);
    // kill -9: the time that was written last counts.
    bridge.kill();
    shift.set(-40 * 60);
    let bridge = start(bridge);
    wait_for_gap(&bridge, "showing the gap", |seconds| (1190.0..1800.0).contains(&seconds));
    shift.set(0);
    wait_for_note(&bridge);
    for arguments in [
        &["--gap", "--yes", "--stream", "a"][..],
        &["--since", "50m", "--yes"],
        &["--since", "2h", "--until", "50m", "--yes"],
        &["--gap"],
        &["--gap", "--report"],
    ] {
        let (code, text) = finish(command(&bridge, &tencent, arguments));
        assert_eq!((code, text.contains("is recovered")), (Some(0), false), "{arguments:?} {text}");
        assert_eq!(gaps(&bridge, "--json").lines().count(), 1, "{arguments:?}");
    }
    tencent.state().streams.push(Stream::running("a", ago(180)));
    tencent.state().records.push(Record::failed("a", 1, ago(50), "not a callback"));
    let (code, text) = finish(command(&bridge, &tencent, &["--gap", "--yes"]));
    assert_eq!(code, Some(1), "a record is not decoded: {text}");
    assert_eq!(gaps(&bridge, "--json").lines().count(), 1);
    assert!(gap_seconds(&bridge) > 0.0);
    assert!(gaps(&bridge, "--drop").ends_with("dropped\n"));
    wait_for_gap(&bridge, "showing that there is no gap", |seconds| seconds == 0.0);
}

#[test]
fn a_time_in_which_everything_gets_503_is_a_gap_while_it_lasts() {
    let Some(shift) = Shift::new("rejecting") else { return };
    let bridge = Bridge::new("rejecting", UNREACHABLE, "rejecting");
    let bridge = shift.apply(bridge.set("WAL_MIN_FREE_BYTES", "0"));
    start_accepting(&bridge);
    assert!(bridge.stop().success());
    let bridge = bridge.set("WAL_MIN_FREE_BYTES", "1EiB");
    bridge.spawn();
    // The metrics of the log's space are 0 before the first check of it, too.
    bridge.wait_until("full", TIME_LIMIT, || bridge.is_ready() == Some(false));
    assert!(gap_seconds(&bridge) < 1.0);
    // Eleven minutes pass, by the monotonic clock.
    shift.pass(11 * 60);
    wait_for_gap(&bridge, "showing the gap while it lasts", |seconds| {
        (660.0..1200.0).contains(&seconds)
    });
    assert!(has_finding(&bridge));
    assert_eq!(gaps(&bridge, ""), "no gap is recorded\n", "the clock has not moved");
    // With room again.
    assert!(bridge.stop().success());
    shift.set(11 * 60);
    let bridge = bridge.set("WAL_MIN_FREE_BYTES", "0");
    bridge.start();
    wait_for_gap(&bridge, "showing the gap afterwards", |seconds| {
        (660.0..1200.0).contains(&seconds)
    });
    assert_eq!(gaps(&bridge, "").lines().count(), 1);
}
