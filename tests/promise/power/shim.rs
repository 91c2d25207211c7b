//! Builds the shim once per test run, with the system's C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs, process};

use crate::support::skip;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/promise/power/shim.c");

/// The shared library; `None`, with a message, without `gcc`.
///
/// # Panics
/// Instead of skipping, when `LIVEBRIDGE_REQUIRE_KAFKA` is `1`, as in CI.
pub(crate) fn library(test: &str) -> Option<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(build) {
        Ok(path) => Some(path),
        Err(missing) => {
            skip::skip(test, missing);
            None
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = target.join("power-shim.so");
    // Another run may be using it, so it is replaced atomically.
    let built = target.join(format!("power-shim-{}.so", process::id()));
    let output = Command::new("gcc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&built)
        .arg(SOURCE)
        .output()
        .map_err(|cause| format!("gcc cannot be run: {cause}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&built, &library).expect("a file can be renamed");
    Ok(library)
}
