//! Secrets: compared in constant time, never printed, and masked in every text that leaves
//! livebridge.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use subtle::ConstantTimeEq;

/// What stands in place of a secret.
pub const HIDDEN: &str = "(hidden)";
/// Secrets that are remembered; each reload of a rotated secret adds one. Beyond this number, the
/// oldest is forgotten, which is out of use by then.
const REMEMBERED_MAX: usize = 4096;
/// A shorter secret is masked only where it stands as a word of its own: `k` must not mask a letter
/// of every word.
const ANYWHERE_MIN: usize = 4;

/// The secrets that the configuration has had since the start.
static REMEMBERED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A secret that proves something about the client that sends it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret's text; `None` when it is blank, which would prove nothing.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// Its text, to be sent to the server that asks for it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is the secret. The time taken reveals its length at most.
    #[must_use]
    pub fn is(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// From now on, [`redact`] masks `secret`, also as it stands in JSON and in quoted text.
pub fn remember(secret: &str) {
    let secret = secret.trim();
    // A flag or a small number is no secret, and would mask parts of harmless text.
    let trivial = secret.len() < ANYWHERE_MIN && secret.bytes().all(|b| b.is_ascii_digit());
    // `change-me` is the documentation's example, and is named when it is in use.
    if trivial || ["true", "false", "change-me", HIDDEN].contains(&secret) {
        return;
    }
    let quoted = format!("{secret:?}");
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    for form in [secret, quoted.trim_matches('"')] {
        if !remembered.iter().any(|known| known == form) {
            remembered.push(form.to_owned());
        }
    }
    let excess = remembered.len().saturating_sub(REMEMBERED_MAX);
    remembered.drain(..excess);
}

/// `text` with every remembered secret replaced by [`HIDDEN`].
///
/// Text that other libraries, brokers and the system produce may repeat any value that it was
/// given; it reaches operators through this function only.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ranges: Vec<(usize, usize)> = remembered
        .iter()
        .flat_map(|secret| {
            let found = text.match_indices(secret.as_str());
            let found = found.map(|(at, found)| (at, at + found.len()));
            found.filter(|&(from, to)| secret.len() >= ANYWHERE_MIN || is_word(text, from, to))
        })
        .collect();
    drop(remembered);
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    ranges.sort_unstable();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (from, to) in ranges {
        // Overlapping secrets become one mask: nothing of either remains.
        if from >= done {
            out.push_str(&text[done..from]);
            out.push_str(HIDDEN);
        }
        done = done.max(to);
    }
    out.push_str(&text[done..]);
    Cow::Owned(out)
}

fn is_word(text: &str, from: usize, to: usize) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == '-';
    !text[..from].chars().next_back().is_some_and(joins)
        && !text[to..].chars().next().is_some_and(joins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_of_a_remembered_secret_is_masked() {
        remember("masked-hunter2");
        remember("masked-hunter2-and-more");
        remember("masked\"quote");
        for (text, masked) in [
            ("nothing", "nothing"),
            ("masked-hunter2", "(hidden)"),
            ("xmasked-hunter2y masked-hunter2", "x(hidden)y (hidden)"),
            ("masked-hunter2-and-more", "(hidden)"),
            ("a masked\"quote b", "a (hidden) b"),
            ("{\"error\":\"masked\\\"quote\"}", "{\"error\":\"(hidden)\"}"),
            ("中masked-hunter2文", "中(hidden)文"),
        ] {
            assert_eq!(redact(text), masked);
        }
    }

    #[test]
    fn short_secrets_are_masked_as_words_only_and_flags_never() {
        remember("qz");
        remember("true");
        remember("12");
        assert_eq!(redact("qz is \"qz\", qzx is qz-x"), "(hidden) is \"(hidden)\", qzx is qz-x");
        assert_eq!(redact("true 12"), "true 12");
    }
}
