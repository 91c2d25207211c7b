//! The exactly-once protocol, model-checked: all interleavings of two instances, the broker and
//! faults, within limits. docs/protocol-model.md lists what is modelled and what is not.

#![expect(clippy::expect_used, reason = "a test that cannot continue has failed")]
#![expect(clippy::cast_possible_truncation, reason = "the model's numbers are small")]

mod decisions;
mod effects;
mod properties;
mod scenarios;
mod state;
mod steps;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::support::turn;
use properties::{COVERED, ONCE, ORDER, VISIBLE};
use steps::{Fault, Protocol};

/// Explores all of `protocol`: it has at least `states_min` states, all properties hold in each of
/// them, and every situation that the scenario must reach is reached.
fn holds(name: &str, protocol: Protocol, states_min: usize) {
    let checker = explore(name, protocol, HasDiscoveries::AnyFailures);
    checker.assert_properties();
    assert!(checker.unique_state_count() >= states_min, "the scenario {name} has shrunk");
}

/// The checker finds a state of `protocol` with `fault` in which `property` does not hold.
fn breaks(fault: Fault, property: &'static str, protocol: Protocol) {
    let protocol = Protocol { fault: Some(fault), reaches: &[], ..protocol };
    let wanted = HasDiscoveries::AnyOf([property].into());
    let name = format!("{fault:?}");
    let checker = explore(&name, protocol, wanted);
    let path = checker.discovery(property).expect("a counterexample");
    println!("  {property}: not after {:?}", path.into_actions());
}

fn explore(name: &str, protocol: Protocol, until: HasDiscoveries) -> impl Checker<Protocol> {
    let _turn = turn::beside_others();
    let started = Instant::now();
    let checker = protocol.checker().finish_when(until).spawn_bfs().join();
    let (unique, all) = (checker.unique_state_count(), checker.state_count());
    let (depth, elapsed) = (checker.max_depth(), started.elapsed());
    println!("{name}: {unique} states, {all} steps, depth {depth}, {elapsed:.1?}");
    checker
}

#[test]
fn two_instances_with_a_common_event_publish_it_once() {
    holds("two instances", scenarios::two_instances(), 400_000);
}

#[test]
fn failed_sends_and_a_lost_copy_of_the_progress_change_nothing() {
    holds("failed sends", scenarios::failed_sends(), 80_000);
}

#[test]
fn instances_with_one_name_fence_each_other_and_lose_nothing() {
    holds("namesakes", scenarios::namesakes(), 70_000);
}

#[test]
fn a_restored_copy_publishes_what_it_acknowledges() {
    holds("restored copy", scenarios::restored_copy(), 150_000);
    holds("restored copy, alone", scenarios::one_restored_copy(), 20_000);
}

#[test]
fn a_clone_publishes_beside_the_original() {
    holds("clone", scenarios::clone(), 40_000);
    holds("clone with the same name", scenarios::namesake_clone(), 100_000);
}

#[test]
fn retries_within_the_window_are_absorbed_while_older_ids_expire() {
    holds("expiry", scenarios::expiry(), 100_000);
    holds("outage", scenarios::outage(), 50_000);
}

#[test]
fn a_clock_that_is_set_forward_at_run_time_expires_nothing() {
    holds("clock jump", scenarios::clock_jump(), 30_000);
}

#[test]
fn progress_by_log_and_lsn_would_lose_events_of_copies() {
    breaks(Fault::ProgressByLog, COVERED, scenarios::one_restored_copy());
    breaks(Fault::ProgressByLog, VISIBLE, scenarios::one_restored_copy());
    breaks(Fault::ProgressByLog, VISIBLE, scenarios::clone());
}

#[test]
fn the_ledger_read_before_init_transactions_would_repeat_events() {
    breaks(Fault::LedgerReadBeforeInit, ONCE, scenarios::two_instances());
}

/// The wait for open transactions is sufficient alone: it resolves the transactions of the same
/// process.
#[test]
fn the_ledger_read_before_init_transactions_repeats_nothing_if_it_waits_for_open_transactions() {
    let fault = Some(Fault::SettledLedgerReadBeforeInit);
    let protocol = Protocol { fault, reaches: &[], ..scenarios::failed_sends() };
    holds("settled ledger read before init", protocol, 50_000);
}

#[test]
fn expiry_by_the_system_clock_would_repeat_events() {
    breaks(Fault::WallClockWindow, ONCE, scenarios::clock_jump());
    breaks(Fault::ExpiryIgnoresBacklog, ONCE, scenarios::outage());
}

#[test]
fn every_property_can_fail() {
    breaks(Fault::NoContentionCheck, ONCE, scenarios::two_instances());
    breaks(Fault::LostAnswerIsAbort, ONCE, scenarios::two_instances());
    breaks(Fault::ReleasedBeforeAnswer, COVERED, scenarios::two_instances());
    breaks(Fault::ReversedBatch, ORDER, scenarios::one_restored_copy());
}

/// Each scenario with one more of every fault and one more transaction.
#[test]
#[ignore = "takes many minutes and gigabytes: cargo test --release --test promise protocol_model:: -- --ignored --nocapture"]
fn larger_scenarios_hold() {
    for (name, protocol) in scenarios::all() {
        holds(name, protocol.enlarge(), 500_000);
    }
}
