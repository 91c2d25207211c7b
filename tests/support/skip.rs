//! Skipped tests, reported in one place: `cargo test` shows nothing that a passing test prints.
//!
//! Each skip is noted in a file of the `cargo test` that runs the test; `tests/zz_skipped.rs`, the
//! last to run, prints them.

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};

/// Reports that `test` cannot run here because `missing` is not available.
///
/// # Panics
/// When `LIVEBRIDGE_REQUIRE_KAFKA` is set, as in CI: then every test has to run.
pub(crate) fn skip(test: &str, missing: &dyn std::fmt::Display) {
    let required = env::var_os("LIVEBRIDGE_REQUIRE_KAFKA").is_some();
    assert!(!required, "{test} needs what LIVEBRIDGE_REQUIRE_KAFKA promises: {missing}");
    eprintln!("SKIPPED {test}: {missing}");
    let reason = missing.to_string().replace('\n', " ");
    let noted = File::options().create(true).append(true).open(notes());
    noted.and_then(|mut file| writeln!(file, "{test}: {reason}")).expect("a skip can be noted");
}

/// Removes and returns the tests skipped so far in this `cargo test`.
pub(crate) fn take_skipped() -> Vec<String> {
    let text = fs::read_to_string(notes()).unwrap_or_default();
    let _ = fs::remove_file(notes());
    text.lines().map(str::to_owned).collect()
}

/// All test binaries have the same parent, the `cargo test` that runs them.
fn notes() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("skipped-{}", parent_id()))
}
