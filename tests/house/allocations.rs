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
/// Requests of which a mean is taken.
const REQUESTS: u32 = 512;
/// Allocations of the intake for a whole request, in hundredths: some happen once in many requests.
const REQUEST_HUNDREDTHS: u64 = 306;

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
    whole.send(REQUESTS);
    let before = count::of_threads("intake-");
    whole.send(REQUESTS);
    let Allocations { count, .. } = count::of_threads("intake-") - before;
    let hundredths = count * 100 / u64::from(REQUESTS);
    assert!(count > 0, "the intake's threads were found");
    assert!(hundredths <= REQUEST_HUNDREDTHS, "{count} allocations of {REQUESTS} requests");
}
