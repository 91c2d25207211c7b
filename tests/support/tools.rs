//! Tools the tests fetch once and keep: made under a lock, used by every test process after that.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Why a broker or the consumer cannot be had on this machine.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

impl Unavailable {
    pub(super) fn new(doing: &str, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{doing}: {error}"))
    }
}

/// The target directory's corner for tools and for the data of running brokers.
pub(super) fn home() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("kafka")
}

/// The directory `name` as `make` fills it; made again when `recipe` is no longer what it was.
///
/// The recipe is written last, so a directory left half done is not taken for a tool.
pub(super) fn prepared(
    name: &str,
    recipe: &str,
    make: impl FnOnce(&Path) -> Result<(), Unavailable>,
) -> Result<PathBuf, Unavailable> {
    let directory = home().join(name);
    let done = directory.join("recipe");
    let storage = |error: io::Error| Unavailable::new("cannot prepare the tests' tools", &error);
    let is_done = || fs::read_to_string(&done).is_ok_and(|made| made == recipe);
    if is_done() {
        return Ok(directory);
    }
    fs::create_dir_all(home()).map_err(storage)?;
    let lock = File::create(home().join(format!("{name}.lock"))).map_err(storage)?;
    lock.lock().map_err(storage)?;
    if !is_done() {
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage(error)),
            _ => fs::create_dir(&directory).map_err(storage)?,
        }
        make(&directory)?;
        fs::write(&done, recipe).map_err(storage)?;
    }
    Ok(directory)
}

/// Runs a command to its end; a failure carries what it printed.
pub(super) fn run(command: &mut Command) -> Result<Output, Unavailable> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Unavailable::new(&format!("{name} cannot be started"), &error))?;
    if output.status.success() {
        return Ok(output);
    }
    let printed = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    Err(Unavailable(format!(
        "{name} failed ({}): {}",
        output.status,
        last_lines(&String::from_utf8_lossy(&printed))
    )))
}

/// The end of a log, where the reason is.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
