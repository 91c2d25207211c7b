//! Tools that the tests fetch once: created under a lock, and used by every later test process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The reason why a broker or the consumer is not available on this machine.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

impl Unavailable {
    pub(super) fn new(doing: &str, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{doing}: {error}"))
    }
}

/// The directory in the target directory for tools and for the data of running brokers.
pub(super) fn home() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("kafka")
}

/// The directory `name` as filled by `make`; recreated when `recipe` changes.
///
/// The recipe is written last, so an incomplete directory is not used.
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

/// The library for `LD_PRELOAD` that the C file at `source` is compiled to; `None`, with a message,
/// without a C compiler.
///
/// # Panics
/// When the source has an error.
pub(crate) fn preload(test: &str, source: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let recipe = fs::read_to_string(&source).expect("a readable source");
    let name = source.file_stem().expect("a file name").to_string_lossy();
    let made = prepared(&name, &recipe, |directory| {
        let mut compiler = Command::new("gcc");
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]);
        let output = compiler.arg(directory.join("library.so")).arg(&source).output();
        let output = output.map_err(|error| Unavailable::new("gcc cannot be started", &error))?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    });
    super::or_skip(test, made).map(|directory| directory.join("library.so"))
}

/// Runs a command to its end; the error contains its output.
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

/// The end of a log file, where the reason is.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
