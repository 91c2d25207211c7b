//! A word that proves something about whoever says it. It is compared in constant time and never
//! printed.

use std::fmt;

use subtle::ConstantTimeEq;

/// A secret word.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes the word; `None` when it is blank, which would prove nothing.
    #[must_use]
    pub fn new(word: &str) -> Option<Self> {
        let word = word.trim();
        (!word.is_empty()).then(|| Self(word.to_owned()))
    }

    /// Whether `said` is the word. The time taken tells its length at most.
    #[must_use]
    pub fn is(&self, said: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(said).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
