//! What is logged: the record, its place, its identity, and how they become bytes.
//!
//! A record is everything the publisher needs of one callback, so that nothing after the log parses
//! JSON again. This file imports no other module of livebridge.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

/// The largest body a record may carry, in bytes.
///
/// A chunk holding one such record stays, together with the small chunks that may share its tree,
/// well below the 1 MiB at which sled moves a value to a file that it never syncs.
pub const BODY_MAX: usize = 512 * 1024;

/// The longest stream ID (Kafka key) a record may carry, in bytes. Tencent's own are far shorter.
pub const KEY_MAX: usize = 1024;

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

/// The name of what has no type, or a type this release does not know.
pub const OTHER: &str = "other";

impl EventType {
    /// Every type this release knows, with its name.
    pub fn known() -> impl Iterator<Item = (Self, &'static str)> {
        NAMES.iter().map(|&(code, name)| (Self(code), name))
    }

    /// The type that a code or a known name spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let named = || NAMES.iter().find(|(_, name)| *name == text).map(|&(code, _)| code);
        text.parse().ok().or_else(named).map(Self)
    }

    /// The type's name; `None` for one this release does not know.
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
/// are published. Stable across retries, instances and releases.
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
}

impl EventId {
    /// The id that its [`fmt::Display`] form spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(Self::from_bytes(number.to_be_bytes()))
    }
}

/// 32 lower-case hex digits.
impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.natural, self.content)
    }
}

/// Log sequence number: a segment's number and the record's index within it.
///
/// Ordered as the records were acknowledged. Copies of a log give the same numbers to different
/// records: only together with the opening that wrote it an LSN names one record.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// Before every record.
    pub const ZERO: Self = Self(0);

    /// The place `index` of segment `segment`, both counted from 1.
    #[must_use]
    pub const fn new(segment: u32, index: u32) -> Self {
        Self(((segment as u64) << 32) | index as u64)
    }

    /// The segment's number.
    #[must_use]
    pub const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The place within the segment.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The place that its [`fmt::Display`] form spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, index) = text.split_once('.')?;
        Some(Self::new(segment.parse().ok()?, index.parse().ok()?))
    }

    /// The place after this one in the same segment.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The place before this one, which holds nothing when this is the first of its segment.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The number as stored.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The LSN that [`Lsn::as_u64`] gave.
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }
}

/// `segment.index`, the form that the command line takes.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.segment(), self.index())
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

/// One authentic callback, as logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The callback's `event_type`; `None` when it named none, which is never taken for 0.
    pub event_type: Option<EventType>,
    /// What makes a retry of it the same event.
    pub id: EventId,
    /// When livebridge received it.
    pub received_at: Timestamp,
    /// When the event happened, by the callback's own account.
    pub occurred_at: Option<Timestamp>,
    /// The Kafka key: the stream ID, or the task where there is no stream.
    pub key: Option<Bytes>,
    /// Whether `key` is the stream's ID.
    pub has_stream: bool,
    /// The body as received, byte for byte, less the members that the configuration omits.
    pub body: Bytes,
}

/// A record in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub lsn: Lsn,
    /// What was logged there.
    pub record: Record,
}

/// Bytes that are not a record of a version this release reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter or longer than its own lengths say.
    #[error("a record's lengths do not add up")]
    Length,
    /// Written by a newer release.
    #[error("record version {0} is not known to this release")]
    Version(u8),
}

/// First byte of an encoded record.
const VERSION: u8 = 1;
/// version, flags, event type, id, received, occurred, key length.
const HEADER_BYTES: usize = 1 + 1 + 8 + 16 + 8 + 8 + 2;
const HAS_TYPE: u8 = 1;
const HAS_TIME: u8 = 2;
const HAS_KEY: u8 = 4;
const HAS_STREAM: u8 = 8;

impl Record {
    /// Bytes that [`Record::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEADER_BYTES + self.short_key().map_or(0, <[u8]>::len) + self.body.len()
    }

    fn short_key(&self) -> Option<&[u8]> {
        self.key.as_deref().filter(|key| key.len() <= KEY_MAX)
    }

    /// Appends the record to `buffer`: a fixed header in big-endian, the key, the body.
    ///
    /// A key longer than [`KEY_MAX`] is not encoded; the code that makes records keeps that limit.
    pub fn encode(&self, buffer: &mut BytesMut) {
        let key = self.short_key();
        let mut flags = 0;
        for (present, flag) in [
            (self.event_type.is_some(), HAS_TYPE),
            (self.occurred_at.is_some(), HAS_TIME),
            (key.is_some(), HAS_KEY),
            (self.has_stream, HAS_STREAM),
        ] {
            flags |= if present { flag } else { 0 };
        }
        let key = key.unwrap_or_default();
        let mut header = [0; HEADER_BYTES];
        header[0] = VERSION;
        header[1] = flags;
        header[2..10].copy_from_slice(&self.event_type.map_or(0, |t| t.0).to_be_bytes());
        header[10..26].copy_from_slice(&self.id.to_bytes());
        header[26..34].copy_from_slice(&self.received_at.0.to_be_bytes());
        header[34..42].copy_from_slice(&self.occurred_at.map_or(0, |t| t.0).to_be_bytes());
        header[42..44].copy_from_slice(&u16::try_from(key.len()).unwrap_or(0).to_be_bytes());
        buffer.extend_from_slice(&header);
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(&self.body);
    }

    /// The record that [`Record::encode`] wrote; key and body share `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] when `bytes` are not exactly one record of a known version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) => return Err(DecodeError::Version(version)),
            None => return Err(DecodeError::Length),
        }
        if bytes.len() < HEADER_BYTES {
            return Err(DecodeError::Length);
        }
        let header = bytes.split_to(HEADER_BYTES);
        let flags = header[1];
        let number = |at: usize| i64::from_be_bytes(array(&header[at..at + 8]));
        let key_len = usize::from(u16::from_be_bytes([header[42], header[43]]));
        if bytes.len() < key_len || key_len > KEY_MAX {
            return Err(DecodeError::Length);
        }
        let key = bytes.split_to(key_len);
        Ok(Self {
            event_type: (flags & HAS_TYPE != 0).then(|| EventType(number(2))),
            id: EventId::from_bytes(array(&header[10..26])),
            received_at: Timestamp(number(26)),
            occurred_at: (flags & HAS_TIME != 0).then(|| Timestamp(number(34))),
            key: (flags & HAS_KEY != 0).then_some(key),
            has_stream: flags & HAS_STREAM != 0,
            body: bytes,
        })
    }
}

/// A slice whose length is known here, as an array.
fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(slice);
    out
}
