//! How often the intake allocates for a callback, as exact numbers: one more is found here, long
//! before it shows as time.

#[path = "../../benches/parts/allocations.rs"]
mod count;
#[path = "../../benches/parts/path.rs"]
mod path;

use count::Allocations;
use path::{PARTS, Parts, Whole};

/// Allocations of each part, and their bytes. `benches/parts.rs` prints them.
const LIMITS: [(&str, u64, u64); 7] = [
    ("hash of the body", 0, 0),
    // The object's members.
    ("parse", 1, 960),
    ("parse, verify", 1, 960),
    ("parse, verify, record", 1, 960),
    ("the same of a nested one", 14, 6944),
    ("encode", 0, 0),
    ("decode", 0, 0),
];
/// Requests before those that are counted: they fill what is made once.
const REQUESTS_BEFORE: u32 = 512;
const ROUNDS: u32 = 64;
/// Requests of a round: few, because the intake also keeps up to ten callbacks a second for the status
/// page, which allocates. On a slow disk, too, some rounds are over between two of those.
const REQUESTS: u32 = 8;
/// Allocations of the intake for a whole request.
const REQUEST: u64 = 3;

#[test]
fn a_callbacks_parts_allocate_no_more_than_they_did() {
    let mut parts = Parts::new();
    let measured = PARTS.map(|(name, part)| {
        // The first run fills what is made once.
        part(&mut parts);
        let before = count::of_this_thread();
        part(&mut parts);
        let Allocations { count, bytes } = count::of_this_thread() - before;
        (name, count, bytes)
    });
    assert_eq!(measured, LIMITS, "allocations and bytes of each part");
}

#[test]
fn a_request_allocates_no_more_than_it_did() {
    livebridge::metrics::install().unwrap();
    let mut whole = Whole::new();
    whole.send(REQUESTS_BEFORE);
    let rounds = (0..ROUNDS).map(|_| {
        let before = count::of_threads("intake-");
        whole.send(REQUESTS);
        (count::of_threads("intake-") - before).count
    });
    let least = rounds.min().unwrap();
    assert_eq!(least, REQUEST * u64::from(REQUESTS), "allocations of {REQUESTS} requests");
}
