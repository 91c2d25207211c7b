//! The checks of `fuzz/` on stable Rust: every input of the corpora, and several thousand random
//! mutations of them. `LIVEBRIDGE_SEED` repeats a run; docs/testing.md has the command for
//! coverage-guided fuzzing.

#[path = "../../fuzz/checks.rs"]
#[allow(unreachable_pub, reason = "fuzz/ is another crate there")]
mod checks;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::random::Random;
use crate::support::turn;

/// Tokens for mutations that random bytes would rarely produce.
const WORDS: [&[u8]; 29] = [
    b"{", b"}", b"[", b"]", b",", b":", b"\"", b"\\", b"\\u0000", b"\\ud83d", b"null", b"-0",
    b"1e999", b"18446744073709551616", b"\"event_type\":", b"\"t\":", b"\"sign\":", b"\r\n",
    b"\r\n\r\n", b"POST /callback HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
    b"0\r\n\r\n", b"\xFFLBWAL2\xFE", b"\xFF\xFF\xFF\xFF", b"\0",
];

/// Whether any thread panicked: tokio catches panics of its tasks. Other tests' threads, which are
/// named after their test, do not count.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            let test = thread.name().filter(|name| name.contains("::"));
            if test.is_none_or(|test| test.starts_with("fuzz::")) {
                PANICKED.store(true, Ordering::SeqCst);
            }
            hook(info);
        }));
    });
}

/// The files in these directories.
fn inputs(directories: &[&str]) -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for directory in directories {
        let mut paths: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        inputs.extend(paths.into_iter().map(|path| fs::read(path).unwrap()));
    }
    assert!(inputs.len() >= 5, "{directories:?} have the corpus");
    inputs
}

/// A randomly chosen seed with some mutations.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    /// Longer inputs are slow and reach no additional code.
    const LONGEST: usize = 64 * 1024;
    let mut input = seeds[random.index(seeds.len())].clone();
    for _ in 0..random.within(1..6) {
        let from = random.index(input.len() + 1);
        let to = (from + random.index(32)).min(input.len());
        match random.index(8) {
            0 if from < input.len() => input[from] ^= 1 << random.index(8),
            1 if from < input.len() => input[from] = u8::try_from(random.index(256)).unwrap(),
            2 => drop(input.drain(from..to)),
            3 => input.truncate(from),
            4 => {
                let part = input[from..to].to_vec();
                let at = random.index(input.len() + 1);
                input.splice(at..at, part);
            }
            5 => {
                let other = &seeds[random.index(seeds.len())];
                let at = random.index(other.len() + 1);
                input.truncate(from);
                input.extend_from_slice(&other[at..]);
            }
            _ => drop(input.splice(from..from, random.pick(&WORDS).iter().copied())),
        }
    }
    input.truncate(LONGEST);
    input
}

/// Runs `check` on every input in `directories` and on `changes` mutated inputs.
fn run(name: &str, check: fn(&[u8]), directories: &[&str], changes: usize) {
    watch_panics();
    let mut random = Random::new(name);
    let seeds = inputs(directories);
    let checked = |input: &[u8]| {
        let ended = catch_unwind(AssertUnwindSafe(|| check(input)));
        let held = ended.is_ok() && !PANICKED.load(Ordering::SeqCst);
        assert!(held, "{name} fails with b\"{}\"", input.escape_ascii());
    };
    for input in &seeds {
        checked(input);
    }
    for _ in 0..changes {
        checked(&changed(&seeds, &mut random));
    }
}

#[test]
fn no_input_makes_a_parser_panic_or_hang() {
    let _turn = turn::beside_others();
    // One at a time, so that a panic can be attributed to its check.
    run("callback", checks::callback, &["fuzz/corpus/callback", "tests/payloads"], 40_000);
    run("signature", checks::signature, &["fuzz/corpus/signature"], 40_000);
    run("record", checks::record, &["fuzz/corpus/record"], 40_000);
    run("frame", checks::frame, &["fuzz/corpus/frame"], 20_000);
    run("config", checks::config, &["fuzz/corpus/config"], 10_000);
    run("ledger", checks::ledger, &["fuzz/corpus/ledger"], 40_000);
    run("intake", checks::intake, &["fuzz/corpus/intake"], 5_000);
}
