//! Parses callback keys: `NAME KEY`, where the name is shorter than the key, or the key alone.

use std::fs;
use std::path::Path;

use super::{ConfigError, values};
use crate::callback::CallbackKey;
use crate::permission;
use crate::secret;

/// The longest name of a key.
const NAME_MAX: usize = 32;

/// The keys of the list `written`, then those of `file`, one a line. A key without a name is named
/// by its position.
pub(super) fn read(
    written: &[String],
    file: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<Vec<CallbackKey>, ConfigError> {
    let mut keys: Vec<CallbackKey> = Vec::new();
    let entry = |number| format!("entry {number}");
    add(&mut keys, "callback.keys", entry, written.iter().map(String::as_str), notes)?;
    if let Some(path) = file {
        let text = fs::read_to_string(path).map_err(|cause| {
            ConfigError::value(
                FILE,
                format!(
                    "cannot read {}: {cause}{}",
                    path.display(),
                    permission::advice(path, &cause)
                ),
            )
        })?;
        let line = |number| format!("line {number} of {}", path.display());
        // Some editors begin a file with a byte order mark, which would be part of the first key.
        let text = text.trim_start_matches('\u{feff}');
        for secret in text.lines().filter_map(|line| line.split_whitespace().last()) {
            secret::remember(secret);
        }
        add(&mut keys, FILE, line, text.lines(), notes)?;
    }
    Ok(keys)
}

const FILE: &str = "callback.keys_file";

/// No message repeats a part of an entry: any part may be a secret.
fn add<'a>(
    keys: &mut Vec<CallbackKey>,
    source: &'static str,
    called: impl Fn(usize) -> String,
    written: impl Iterator<Item = &'a str>,
    notes: &mut Vec<String>,
) -> Result<(), ConfigError> {
    for (number, text) in (1..).zip(written) {
        let bad =
            |problem: &str| ConfigError::value(source, format!("{} {problem}", called(number)));
        let position = format!("key-{}", keys.len() + 1);
        let words: Vec<&str> = text.split_whitespace().collect();
        let (name, secret) = match words[..] {
            [] => continue,
            [secret] => (&*position, secret),
            // Names are shown, so a swapped name and key must be detected: a key is longer than its
            // name.
            [name, secret] if name.len() >= secret.len() => {
                return Err(bad(
                    "has a name that is not shorter than its key; write the name first, then the \
                     key, and choose a short name",
                ));
            }
            [name, secret] => (name, secret),
            _ => return Err(bad("has more than a name and a key, in this order")),
        };
        let of_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.len() > NAME_MAX || !name.bytes().all(of_name) {
            return Err(bad(
                "has a name that is not made of up to 32 letters, digits, dots and dashes; the name \
                 comes before the key",
            ));
        }
        let Some(key) = CallbackKey::new(secret) else { continue };
        if let Some(problem) = values::key_problem(secret) {
            notes.push(format!("{source}: {} {problem}", called(number)));
        }
        if keys.iter().any(|other| other.name() == name) {
            return Err(bad("has the name of one before it"));
        }
        if keys.iter().any(|other| other.has_same_secret(&key)) {
            return Err(bad("is the same key as one before it"));
        }
        keys.push(key.named(name));
    }
    Ok(())
}
