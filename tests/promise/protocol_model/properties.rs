//! The properties of every state, and the situations that must be reached.

use stateright::Property;

use super::state::{Outcome, Phase, State, Written};
use super::steps::Protocol;

pub(crate) const ONCE: &str = "no event is visible twice";
pub(crate) const VISIBLE: &str = "every acknowledged event is visible in the end";
pub(crate) const COVERED: &str = "progress never covers an unpublished record";
pub(crate) const ORDER: &str = "a log's events are visible in the log's order";

type Condition = fn(&Protocol, &State) -> bool;

const ALWAYS: [(&str, Condition); 4] = [
    (ONCE, visible_once),
    (VISIBLE, visible_in_the_end),
    (COVERED, |_, state| !state.covered_unpublished),
    (ORDER, in_order),
];

const SOMETIMES: [(&str, Condition); 14] = [
    ("a contended transaction is aborted", |_, state| {
        state.processes.iter().any(|process| process.phase == Phase::Aborting)
    }),
    ("a commit's answer is lost, and it is committed", |_, state| {
        let lost = |phase| matches!(phase, Phase::Connect);
        let mut processes = state.processes.iter();
        processes.any(|p| lost(p.phase) && state.outcome(p) == Some(Outcome::Committed))
    }),
    ("a commit's answer is lost, and it is not committed", |_, state| {
        let lost = |phase| matches!(phase, Phase::Ready);
        let mut processes = state.processes.iter();
        processes.any(|p| lost(p.phase) && state.outcome(p) == Some(Outcome::Aborted))
    }),
    ("a process is killed while its commit is requested", |protocol, state| {
        let requested =
            |at: usize| state.coordinators[usize::from(protocol.processes[at].0)].commit_requested;
        let mut processes = state.processes.iter().enumerate();
        processes.any(|(at, process)| process.phase == Phase::Down && requested(at))
    }),
    ("the broker ends a transaction that is about to be committed", |protocol, state| {
        ended(state, |at| state.coordinators[usize::from(protocol.processes[at].0)].owner.is_none())
    }),
    ("a namesake fences a transaction that is about to be committed", |protocol, state| {
        ended(state, |at| {
            let owner = state.coordinators[usize::from(protocol.processes[at].0)].owner;
            owner.is_some_and(|owner| usize::from(owner) != at)
        })
    }),
    ("a failed transaction is sent again", |_, state| {
        state.processes.iter().any(|process| process.phase == Phase::Resend)
    }),
    ("a log of nothing but retries is released without a transaction", |_, state| {
        let mut processes = state.processes.iter().enumerate();
        processes.any(|(at, process)| {
            process.released > (0, 0)
                && !state.topic.iter().any(|written| usize::from(written.directory.0) == at)
        })
    }),
    ("a restored copy publishes", |_, state| {
        state.committed().any(|written| written.directory.1 > 0)
    }),
    ("the original was ahead of the restored copy", |_, state| {
        let copy = &state.directories[0];
        let ahead = |written: &Written| {
            written.directory.1 < copy.replaced
                && written.events.iter().any(|published| published.ordinal >= copy.appended)
        };
        state.committed().any(ahead)
    }),
    ("original and clone publish", |_, state| {
        let last = state.committed().last().map(|written| written.directory.0);
        last == Some(0) && state.committed().any(|written| written.directory.0 == 1)
    }),
    ("ledger records are deleted before a process reads them", |_, state| {
        let mut processes = state.processes.iter();
        state.low > 0 && processes.any(|process| process.next.is_none())
    }),
    ("the clock is ahead of the time", |_, state| state.skew > 0 && !state.topic.is_empty()),
    ("an event older than the window is published", |protocol, state| {
        let window = protocol.window.unwrap_or(u8::MAX);
        state.published().any(|published| published.at.saturating_add(window) < state.now)
    }),
];

/// The properties of a protocol. A wrong name in `reaches` would be ignored otherwise, so it
/// panics.
pub(crate) fn of(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut properties: Vec<_> =
        ALWAYS.iter().map(|(name, condition)| Property::always(name, *condition)).collect();
    for wanted in protocol.reaches {
        let found = SOMETIMES.iter().find(|(name, _)| name == wanted);
        let (name, condition) = found.unwrap_or_else(|| panic!("no situation is named {wanted:?}"));
        properties.push(Property::sometimes(name, *condition));
    }
    properties
}

/// A transaction that a process wants to end has already ended.
fn ended(state: &State, by: impl Fn(usize) -> bool) -> bool {
    let mut processes = state.processes.iter().enumerate();
    processes.any(|(at, process)| {
        let ending = matches!(process.phase, Phase::Committable | Phase::Committing);
        ending && state.outcome(process) == Some(Outcome::Aborted) && by(at)
    })
}

/// Two deliveries of one event within the window are published once.
fn visible_once(protocol: &Protocol, state: &State) -> bool {
    let published: Vec<_> = state.published().collect();
    published.iter().enumerate().all(|(at, one)| {
        published[..at].iter().all(|other| {
            let within = protocol.window.is_none_or(|window| one.at.abs_diff(other.at) < window);
            one.event != other.event || !within
        })
    })
}

/// When no automatic step is left, every delivered event is visible, and every log is released to
/// its end.
fn visible_in_the_end(protocol: &Protocol, state: &State) -> bool {
    if !protocol.steps(state).is_empty() {
        return true;
    }
    let scripts = protocol.processes.iter().zip(&state.delivered);
    let mut delivered = scripts.flat_map(|((_, events), count)| &events[..usize::from(*count)]);
    let is_drained = |at: usize| {
        let process = &state.processes[at];
        state.directories[at].unreleased(process.released).next().is_none()
    };
    delivered.all(|event| state.is_visible(*event) || state.forfeited & 1 << event != 0)
        && (0..state.processes.len()).all(is_drained)
}

fn in_order(_: &Protocol, state: &State) -> bool {
    (0..state.directories.len() as u8).all(|at| {
        (0..=state.directories[usize::from(at)].replaced).all(|replaced| {
            let of_it = |written: &&Written| written.directory == (at, replaced);
            let events = state.committed().filter(of_it).flat_map(|written| &written.events);
            events.map(|published| published.ordinal).is_sorted_by(|one, other| one < other)
        })
    })
}
