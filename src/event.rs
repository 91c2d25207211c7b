//! What an event is: its type, its identity, and the times that it carries.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From seconds since the Unix epoch; `None` beyond the representable range.
    #[must_use]
    pub const fn from_secs(secs: i64) -> Option<Self> {
        match secs.checked_mul(1000) {
            Some(millis) => Some(Self(millis)),
            None => None,
        }
    }

    /// The system clock's time.
    #[must_use]
    pub fn now() -> Self {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
    }

    /// The moment that an RFC 3339 text names, such as its [`fmt::Display`] form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let time = humantime::parse_rfc3339_weak(text).ok()?;
        let millis = time.duration_since(UNIX_EPOCH).ok()?.as_millis();
        i64::try_from(millis).ok().map(Self)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The moment `span` earlier.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The moment `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// RFC 3339 in UTC with milliseconds, as CloudEvents' `time` wants it. A callback's own time can be
/// any number: what lies outside 1970 to 9999 becomes the nearest moment within.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The last millisecond of the year 9999.
        const LAST: u64 = 253_402_300_799_999;
        let since_epoch = Duration::from_millis(u64::try_from(self.0).unwrap_or(0).min(LAST));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).fmt(f)
    }
}

/// A callback's `event_type`. The set is open: Tencent adds types without notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(pub i64);

/// The event types of the protocol and the name of each, which is its topic and its metrics label.
/// Sorted by code, for the binary search in [`EventType::name`].
const NAMES: [(i64, &str); 18] = [
    (0, "interrupt"),
    (1, "push"),
    (100, "record"),
    (200, "screenshot"),
    (314, "relay"),
    (315, "audio-moderation"),
    (317, "porn-detection"),
    (321, "push-exception"),
    (328, "monitor"),
    (332, "record-status"),
    (338, "subtitle"),
    (341, "record-exception"),
    (343, "quality"),
    (344, "assessment-threshold"),
    (345, "assessment-average"),
    (347, "smart-erase"),
    (348, "summary"),
    (349, "highlight"),
];

/// The name of what has no type, or a type this version does not know.
pub const OTHER: &str = "other";

impl EventType {
    /// Every type this version knows, with its name.
    pub fn known() -> impl Iterator<Item = (Self, &'static str)> {
        NAMES.iter().map(|&(code, name)| (Self(code), name))
    }

    /// The type that a code or a known name spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let named = || NAMES.iter().find(|(_, name)| *name == text).map(|&(code, _)| code);
        text.parse().ok().or_else(named).map(Self)
    }

    /// The type's name; `None` for one this version does not know.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.binary_search_by_key(&self.0, |&(code, _)| code).ok().map(|at| NAMES[at].1)
    }
}

/// The name of a type that may be absent or unknown: [`OTHER`] then.
#[must_use]
pub fn type_name(event_type: Option<EventType>) -> &'static str {
    event_type.and_then(EventType::name).unwrap_or(OTHER)
}

/// What makes two deliveries the same event: digests of the natural key and of the content.
///
/// Equal in both parts: a retry. Equal natural key, other content: not provably a retry, so both
/// are published. Stable across retries, instances and versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// Digest of the fields that tell events of this type apart.
    pub natural: u64,
    /// Digest of the whole object without what belongs to the delivery.
    pub content: u64,
}

impl EventId {
    /// The id as 16 bytes, natural part first, big-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        ((u128::from(self.natural) << 64) | u128::from(self.content)).to_be_bytes()
    }

    /// The id that [`EventId::to_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [n0, n1, n2, n3, n4, n5, n6, n7, c0, c1, c2, c3, c4, c5, c6, c7] = bytes;
        Self {
            natural: u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
            content: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        }
    }

    /// The id that its [`fmt::Display`] form spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hex_bytes(text).map(Self::from_bytes)
    }
}

/// The 16 bytes that 32 hex digits of either case spell.
pub(crate) fn hex_bytes(text: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// 32 lower-case hex digits.
impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.natural, self.content)
    }
}
