//! The encoding of records: every record survives a round trip, no bytes cause a panic, and the
//! format does not change.

use bytes::{Bytes, BytesMut};
use livebridge::event::{EventId, EventType, Timestamp};
use livebridge::record::{BODY_MAX, DecodeError, KEY_MAX, Lsn, Record};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn encode(record: &Record) -> Bytes {
    let mut buffer = BytesMut::from(&b"before"[..]);
    record.encode(&mut buffer);
    assert_eq!(buffer.len(), 6 + record.encoded_len(), "encoded_len equals the encoded length");
    buffer.freeze().slice(6..)
}

fn any_record() -> impl Strategy<Value = Record> {
    let facts = (option::of(any::<i64>()), any::<(u64, u64)>(), any::<i64>());
    let rest = (
        option::of(any::<i64>()),
        option::of(vec(any::<u8>(), 0..=KEY_MAX)),
        any::<bool>(),
        vec(any::<u8>(), 0..4096),
    );
    (facts, rest).prop_map(
        |((code, (natural, content), received), (occurred, key, stream, body))| Record {
            event_type: code.map(EventType),
            id: EventId { natural, content },
            received_at: Timestamp::from_millis(received),
            occurred_at: occurred.map(Timestamp::from_millis),
            key: key.map(Bytes::from),
            has_stream: stream,
            body: Bytes::from(body),
        },
    )
}

fn plain() -> Record {
    Record {
        event_type: Some(EventType(100)),
        id: EventId { natural: 0x0102_0304_0506_0708, content: 0x090A_0B0C_0D0E_0F10 },
        received_at: Timestamp::from_millis(1_700_000_000_123),
        occurred_at: Some(Timestamp::from_millis(1_700_000_000_000)),
        key: Some(Bytes::from_static(b"stream")),
        has_stream: true,
        body: Bytes::from_static(b"{\"a\":1}"),
    }
}

proptest! {
    #[test]
    fn every_record_survives_encoding_and_decoding(record in any_record()) {
        prop_assert_eq!(Record::decode(encode(&record)), Ok(record));
    }

    #[test]
    fn any_bytes_are_decoded_or_rejected_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Record::decode(Bytes::from(bytes));
    }

    #[test]
    fn a_record_truncated_within_header_or_key_is_rejected(record in any_record(), cut in any::<prop::sample::Index>()) {
        let whole = encode(&record);
        let head = whole.len() - record.body.len();
        let cut = whole.slice(..cut.index(head));
        prop_assert_eq!(Record::decode(cut), Err(DecodeError::Length));
    }

    #[test]
    fn an_event_id_survives_encoding_and_decoding(natural: u64, content: u64) {
        let id = EventId { natural, content };
        prop_assert_eq!(EventId::from_bytes(id.to_bytes()), id);
    }

    #[test]
    fn lsns_are_ordered_by_segment_and_then_by_index(a: (u32, u32), b: (u32, u32)) {
        let (left, right) = (Lsn::new(a.0, a.1), Lsn::new(b.0, b.1));
        prop_assert_eq!(left.cmp(&right), a.cmp(&b));
        prop_assert_eq!((left.segment(), left.index()), a);
        prop_assert_eq!(Lsn::from_u64(left.as_u64()), left);
    }

    /// Regression: a callback's time can be any number. Years beyond 9999 caused a panic in the
    /// publisher's thread at every start.
    #[test]
    fn every_time_can_be_formatted(millis: i64) {
        let text = Timestamp::from_millis(millis).to_string();
        prop_assert_eq!(text.len(), "1970-01-01T00:00:00.000Z".len(), "{}", text);
    }
}

#[test]
fn times_outside_rfc_3339_become_the_nearest_valid_time() {
    let text = |millis| Timestamp::from_millis(millis).to_string();
    assert_eq!(text(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
    assert_eq!(text(253_402_300_800_000), "9999-12-31T23:59:59.999Z");
    assert_eq!(text(i64::MAX), "9999-12-31T23:59:59.999Z");
    assert_eq!(text(-1), "1970-01-01T00:00:00.000Z");
    assert_eq!(text(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
}

/// Logs outlive releases: these bytes may change only together with the version.
#[test]
fn version_1_has_these_bytes() {
    let golden: &[&[u8]] = &[
        &[1, 0b1111],
        &[0, 0, 0, 0, 0, 0, 0, 100],
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        &[0, 0, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x7B],
        &[0, 0, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x00],
        &[0, 6],
        b"stream",
        b"{\"a\":1}",
    ];
    assert_eq!(encode(&plain()), golden.concat());
    assert_eq!(Record::decode(Bytes::from(golden.concat())), Ok(plain()));
}

#[test]
fn version_1_encodes_absent_fields_as_zeros_and_flags() {
    let record = Record {
        event_type: None,
        occurred_at: None,
        key: None,
        has_stream: false,
        body: Bytes::new(),
        ..plain()
    };
    let mut golden = vec![1, 0];
    golden.extend([0; 8]);
    golden.extend(1..=16);
    golden.extend([0, 0, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x7B]);
    golden.extend([0; 8 + 2]);
    assert_eq!(encode(&record), golden);
    assert_eq!(Record::decode(Bytes::from(golden)), Ok(record));
}

#[test]
fn no_type_and_type_0_are_distinct() {
    let none = Record { event_type: None, ..plain() };
    let zero = Record { event_type: Some(EventType(0)), ..plain() };
    assert_eq!(Record::decode(encode(&none)).unwrap().event_type, None);
    assert_eq!(Record::decode(encode(&zero)).unwrap().event_type, Some(EventType(0)));
}

#[test]
fn every_other_version_is_rejected_by_its_number() {
    let mut bytes = encode(&plain()).to_vec();
    for version in (0..=u8::MAX).filter(|version| *version != 1) {
        bytes[0] = version;
        let rejected = Record::decode(Bytes::from(bytes.clone()));
        assert_eq!(rejected, Err(DecodeError::Format(version)));
    }
}

#[test]
fn the_largest_record_survives_encoding_and_decoding() {
    let record = Record {
        key: Some(Bytes::from(vec![0xFF; KEY_MAX])),
        body: Bytes::from(vec![0xFE; BODY_MAX]),
        ..plain()
    };
    assert_eq!(Record::decode(encode(&record)), Ok(record));
}

/// Regression: `encoded_len` counted the key that `encode` omits; the frame's lengths were then
/// wrong and none of its records could be read.
#[test]
fn a_key_over_the_limit_is_omitted_and_not_counted() {
    let record = Record { key: Some(Bytes::from(vec![b'k'; KEY_MAX + 1])), ..plain() };
    let decoded = Record::decode(encode(&record)).unwrap();
    assert_eq!(decoded, Record { key: None, ..plain() });
}
