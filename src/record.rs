//! What is logged: the record, its log sequence number, and how it becomes bytes.
//!
//! A record is everything the publisher needs of one callback, so that nothing after the log parses
//! JSON again.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::event::{EventId, EventType, Timestamp};

/// The largest body a record may carry, in bytes.
///
/// A frame with one such record stays well below the 1 MiB at which sled moves a value to a file
/// that it never syncs.
pub const BODY_MAX: usize = 512 * 1024;

/// The longest stream ID (Kafka key) a record may carry, in bytes. Tencent's own are far shorter.
pub const KEY_MAX: usize = 1024;

/// Log sequence number: a segment's number and the record's index within it.
///
/// Ordered as the records were acknowledged. Copies of a log give the same numbers to different
/// records: only together with the opening that wrote it an LSN names one record.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// Before every record.
    pub const ZERO: Self = Self(0);

    /// Record `index` of segment `segment`, both counted from 1.
    #[must_use]
    pub const fn new(segment: u32, index: u32) -> Self {
        Self(((segment as u64) << 32) | index as u64)
    }

    /// The segment's number.
    #[must_use]
    pub const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The record's index within the segment.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The LSN that its [`fmt::Display`] form spells.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, index) = text.split_once('.')?;
        Some(Self::new(segment.parse().ok()?, index.parse().ok()?))
    }

    /// The next LSN in the same segment.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The LSN before this one; no record has it if this is the first of its segment.
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

/// A record and its LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its log sequence number.
    pub lsn: Lsn,
    /// What was logged under it.
    pub record: Record,
}

/// Bytes that are not a record in a format that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter or longer than its own lengths say.
    #[error("a record's lengths do not add up")]
    Length,
    /// Written by a newer version.
    #[error("record format {0} is not known to this version")]
    Format(u8),
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
        header[26..34].copy_from_slice(&self.received_at.as_millis().to_be_bytes());
        header[34..42]
            .copy_from_slice(&self.occurred_at.map_or(0, Timestamp::as_millis).to_be_bytes());
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
            Some(&version) => return Err(DecodeError::Format(version)),
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
            received_at: Timestamp::from_millis(number(26)),
            occurred_at: (flags & HAS_TIME != 0).then(|| Timestamp::from_millis(number(34))),
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
