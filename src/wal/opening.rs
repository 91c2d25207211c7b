//! Openings: the identity of one process's use of a log, and the lineage of openings of a directory.
//!
//! A log directory can be copied, restored and cloned, and its copies then number their records
//! alike. So an LSN means something only together with the opening that wrote it: no two processes
//! share one, whatever happens to their directories.

use std::fmt;

use uuid::Uuid;

use super::checkpoint::Checkpoint;

const HEADING: &str = "livebridge openings 1";
/// Openings that a lineage keeps; of an older one's commits only the event ids count. It holds more
/// starts than a service manager makes in a day of restarts every 30 s.
const LINEAGE_MAX: usize = 4096;

/// The identity of one opening of a log, and so of one process that writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpeningId(Uuid);

impl OpeningId {
    /// A new identity, which no other opening has.
    #[must_use]
    pub fn unique() -> Self {
        Self(Uuid::new_v4())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The id that its [`fmt::Display`] form spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

/// The nil UUID, which no opening has.
impl Default for OpeningId {
    fn default() -> Self {
        Self(Uuid::nil())
    }
}

impl fmt::Display for OpeningId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The openings that a directory has had, oldest first, the current one last.
///
/// Only what one of them committed counts as progress there. A copy of the directory shares the
/// openings from before it was made, and none from after. Without the file, events are known by their
/// ids only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lineage(pub(super) Vec<OpeningId>);

impl Lineage {
    /// Adds `opening`, and forgets the oldest beyond [`LINEAGE_MAX`].
    pub(super) fn push(&mut self, opening: OpeningId) {
        let excess = (self.0.len() + 1).saturating_sub(LINEAGE_MAX);
        self.0.drain(..excess);
        self.0.push(opening);
    }
}

impl Checkpoint for Lineage {
    const NAME: &'static str = "openings";
    const CHECKSUM: &'static str = "checksum ";

    fn text(&self) -> String {
        let lines = self.0.iter().map(|opening| format!("{opening}\n"));
        format!("{HEADING}\n{}", lines.collect::<String>())
    }

    fn parse(file: &str) -> Option<Self> {
        Some(Self(file.lines().skip(1).map_while(OpeningId::parse).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_keeps_the_newest_openings() {
        let mut lineage = Lineage::default();
        for _ in 0..LINEAGE_MAX + 10 {
            lineage.push(OpeningId::unique());
        }
        assert_eq!(lineage.0.len(), LINEAGE_MAX);
        let before = lineage.clone();
        let newest = OpeningId::unique();
        lineage.push(newest);
        assert_eq!(lineage.0[..LINEAGE_MAX - 1], before.0[1..]);
        assert_eq!(lineage.0.last(), Some(&newest));
    }
}
