//! Frames are found whatever lies between them, wherever the read window ends, and whatever
//! happened to their neighbours.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::event::{EventId, EventType, Timestamp};

const LOG: LogId = LogId(uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF));
const WRITER: OpeningId = OpeningId::from_bytes([0xAB; 16]);
const OTHER_LOG: LogId = LogId(uuid::Uuid::from_u128(1));

fn record(number: u64, body: Vec<u8>) -> Record {
    Record {
        event_type: Some(EventType(1)),
        id: EventId { natural: number, content: number },
        received_at: Timestamp::from_millis(1_700_000_000_000),
        occurred_at: None,
        key: Some(Bytes::from_static(b"stream")),
        has_stream: true,
        body: Bytes::from(body),
    }
}

/// A frame's bytes: a record for each body, the first of them at `first`.
fn frame(log: LogId, first: Lsn, bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = Builder::new(log, WRITER);
    for (offset, body) in bodies.iter().enumerate() {
        builder.push(&record(first.as_u64() + offset as u64, body.clone()));
    }
    let mut bytes = Vec::new();
    builder
        .finish::<()>(first, |kept| {
            bytes.extend_from_slice(kept);
            Ok(Bytes::copy_from_slice(kept))
        })
        .unwrap();
    bytes
}

/// A frame of one record with a body of `body_len` letters.
fn small_frame(index: u32, body_len: usize) -> Vec<u8> {
    frame(LOG, Lsn::new(1, index), &[vec![b'x'; body_len]])
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// The first LSN of every frame that a scan of `file` finds.
fn firsts(scanner: &mut Scanner<impl ReadAt>) -> Vec<Lsn> {
    std::iter::from_fn(|| scanner.next().unwrap().map(|frame| frame.first())).collect()
}

/// The index of every frame of [`LOG`]'s segment 1 found in `bytes`.
fn scan(bytes: &[u8]) -> Vec<u32> {
    let mut scanner = Scanner::new(file_of(bytes), LOG);
    firsts(&mut scanner).into_iter().map(Lsn::index).collect()
}

/// What may lie between frames: anything, and above all what looks like the start of one.
fn any_gap() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 0..64),
        (0..=MAGIC.len()).prop_map(|cut| MAGIC[..cut].to_vec()),
        (0..=HEADER_BYTES).prop_map(|cut| small_frame(9, 10)[..cut].to_vec()),
        (0_usize..5000).prop_map(|zeros| vec![0; zeros]),
        // A frame of another log, and a claim to be a frame of any length.
        Just(frame(OTHER_LOG, Lsn::new(1, 5), &[b"not ours".to_vec()])),
        any::<[u8; HEADER_BYTES - 8]>().prop_map(|rest| [&MAGIC[..], &rest].concat()),
    ];
    vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

/// Bodies of a frame: mostly small ones, now and then some of the largest.
fn any_bodies() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let len = prop_oneof![4 => 0_usize..400, 1 => 0..=BODY_MAX];
    vec((len, any::<u8>()).prop_map(|(len, letter)| vec![letter; len]), 1..4).prop_map(|bodies| {
        // As the writer does: no record is added to a full frame.
        let mut size = 0;
        bodies.into_iter().take_while(|body| (size < FRAME_BYTES, size += body.len()).0).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_frame_is_found_whole_and_in_order(parts in vec((any_gap(), any_bodies()), 0..12)) {
        let (mut bytes, mut written) = (Vec::new(), Vec::new());
        let mut next = Lsn::new(1, 1);
        for (gap, bodies) in parts {
            bytes.extend(gap);
            bytes.extend(frame(LOG, next, &bodies));
            for body in bodies {
                written.push(Entry { lsn: next, record: record(next.as_u64(), body) });
                next = next.next();
            }
        }
        let mut scanner = Scanner::new(file_of(&bytes), LOG);
        let mut read = Vec::new();
        while let Some(frame) = scanner.next().unwrap() {
            frame.entries(frame.first(), &mut read).unwrap();
        }
        prop_assert!(read == written, "{} of {} records", read.len(), written.len());
    }

    #[test]
    fn a_growing_file_yields_each_frame_once(
        parts in vec((any_gap(), any_bodies()), 1..6),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let (mut bytes, mut written) = (Vec::new(), Vec::new());
        for (number, (gap, bodies)) in (1..).zip(parts) {
            bytes.extend(gap);
            bytes.extend(frame(LOG, Lsn::new(number, 1), &bodies));
            written.push(Lsn::new(number, 1));
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writing = OpenOptions::new().append(true).open(file.path()).unwrap();
        let mut scanner = Scanner::new(file.reopen().unwrap(), LOG);
        let (mut read, mut done, mut size) = (Vec::new(), 0, 0);
        for cut in cuts {
            writing.write_all(&bytes[size..cut]).unwrap();
            size = cut;
            // As the reader does: go back to where the last frame ended.
            scanner.seek(done);
            while let Some(frame) = scanner.next().unwrap() {
                read.push(frame.first());
                done = scanner.position();
            }
        }
        prop_assert_eq!(read, written);
    }

    #[test]
    fn any_bytes_are_scanned_without_a_panic(bytes in vec(any_gap(), 0..20)) {
        prop_assert_eq!(scan(&bytes.concat()), Vec::<u32>::new());
    }

    /// A checksum does not prove that the writer was sane.
    #[test]
    fn any_payload_is_taken_apart_without_a_panic(
        count in 1_u32..1000,
        payload in prop_oneof![
            vec(any::<u8>(), 0..300),
            vec(any::<u8>(), 0..300).prop_map(|rest| [&[0, 0, 0, 44, 1][..], &rest].concat()),
        ],
    ) {
        let frame = Frame { writer: WRITER, first: Lsn::new(1, 1), count, payload: Bytes::from(payload) };
        let mut entries = Vec::new();
        if frame.entries(Lsn::ZERO, &mut entries).is_ok() {
            prop_assert_eq!(entries.len(), count as usize);
        }
    }
}

#[test]
fn a_frame_is_found_at_every_split_of_the_read_window() {
    let frame_len = small_frame(1, 20).len();
    let slack = frame_len + 16;
    for shift in 0..2 * slack {
        let mut bytes = vec![0xFF; READ_BYTES - slack - 4 + shift];
        bytes.extend(small_frame(1, 20));
        bytes.extend(small_frame(2, 20));
        assert_eq!(scan(&bytes), [1, 2], "{} bytes before the first", bytes.len() - 2 * frame_len);
    }
}

#[test]
fn frames_larger_than_what_is_left_of_the_window_are_found() {
    for body_len in [READ_BYTES / 2 - 300, READ_BYTES / 2, BODY_MAX] {
        let body_len = body_len.min(BODY_MAX);
        let bytes: Vec<u8> = (1..=9).flat_map(|index| small_frame(index, body_len)).collect();
        assert_eq!(scan(&bytes), (1..=9).collect::<Vec<_>>(), "bodies of {body_len} bytes");
    }
}

#[test]
fn the_largest_frame_that_a_builder_makes_is_found() {
    let mut builder = Builder::new(LOG, WRITER);
    while builder.buffer.len() < FRAME_BYTES - 500 {
        builder.push(&record(1, vec![b'x'; 100]));
    }
    while !builder.is_full() {
        let left = FRAME_BYTES - builder.buffer.len();
        let mut largest = record(2, vec![b'x'; BODY_MAX]);
        largest.key = Some(Bytes::from(vec![b'k'; KEY_MAX]));
        if left <= 60 {
            builder.push(&largest);
        } else {
            builder.push(&record(1, Vec::new()));
        }
    }
    let mut bytes = Vec::new();
    let keep = |kept: &[u8]| {
        bytes.extend_from_slice(kept);
        Ok::<_, ()>(Bytes::copy_from_slice(kept))
    };
    builder.finish(Lsn::new(1, 1), keep).unwrap();
    assert!(bytes.len() > 250 * 1024 + BODY_MAX, "{} bytes are large", bytes.len());
    assert!(bytes.len() <= FRAME_BYTES_MAX, "{} bytes are no blob", bytes.len());
    assert_eq!(scan(&bytes), [1]);
}

#[test]
fn a_torn_frame_is_passed_over_and_hides_nothing() {
    let (one, two, three) = (small_frame(1, 30), small_frame(2, 30), small_frame(3, 30));
    for cut in 0..two.len() {
        assert_eq!(scan(&[&one[..], &two[..cut]].concat()), [1], "torn after {cut} bytes");
        let followed = [&one[..], &two[..cut], &three[..]].concat();
        assert_eq!(scan(&followed), [1, 3], "torn after {cut} bytes");
    }
}

#[test]
fn a_damaged_byte_costs_its_own_frame_and_no_other() {
    let frames: Vec<Vec<u8>> = (1..=4).map(|index| small_frame(index, 40)).collect();
    let gap = [0; 5];
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| [&gap[..], frame].concat()).collect();
    let stride = gap.len() + frames[0].len();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let hit = (at % stride >= gap.len()).then_some(at / stride + 1);
            let left: Vec<u32> = (1..=4).filter(|index| hit != Some(*index as usize)).collect();
            assert_eq!(scan(&damaged), left, "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn frames_of_another_log_are_not_taken_for_ours() {
    let theirs = frame(OTHER_LOG, Lsn::new(1, 2), &[b"{}".to_vec()]);
    let bytes = [small_frame(1, 10), theirs, small_frame(3, 10)].concat();
    assert_eq!(scan(&bytes), [1, 3]);
}

#[test]
fn a_body_that_spells_the_magic_in_text_does_no_harm() {
    let bodies = [
        br#"{"stream_id":"\u00ffLBWAL2\u00fe"}"#.to_vec(),
        "{\"stream_id\":\"\u{ff}LBWAL2\u{fe}\"}".into(),
        b"LBWAL2LBWAL2LBWAL2".to_vec(),
    ];
    for body in &bodies {
        std::str::from_utf8(body).expect("a body is text");
        assert!(Finder::new(&MAGIC).find(body).is_none(), "no text contains the magic");
    }
    let bytes = [frame(LOG, Lsn::new(1, 1), &bodies), small_frame(4, 10)].concat();
    assert_eq!(scan(&bytes), [1, 4]);
}

#[test]
fn a_whole_frame_within_a_body_is_part_of_the_body() {
    let inner = small_frame(7, 10);
    let bytes = [frame(LOG, Lsn::new(1, 1), &[inner]), small_frame(2, 10)].concat();
    assert_eq!(scan(&bytes), [1, 2]);
}

#[test]
fn a_frame_with_places_or_records_that_cannot_be_is_none_though_its_checksum_is_right() {
    // Found by fuzzing: the LSN of its last record overflowed.
    let sealed = |index: u32, count: u32| {
        let mut bytes = frame(LOG, Lsn::new(1, index), &[b"{}".to_vec()]);
        bytes[COUNT..PAYLOAD].copy_from_slice(&count.to_be_bytes());
        let crc = checksum(LOG, &bytes[OPENING..CHECKSUM], &bytes[HEADER_BYTES..]);
        bytes[CHECKSUM..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        [bytes, small_frame(7, 1)].concat()
    };
    assert_eq!(scan(&sealed(1, 1)), [1, 7]);
    assert_eq!(scan(&sealed(u32::MAX - 1, 1)), [u32::MAX - 1, 7]);
    for (index, count) in
        [(0, 1), (1, 0), (u32::MAX, 1), (1, u32::MAX), (u32::MAX - 5, 6), (1, 999), (1, 15)]
    {
        assert_eq!(scan(&sealed(index, count)), [7], "{count} from {index}");
    }
}

#[test]
fn damage_is_what_began_like_a_frame_and_was_none() {
    let whole = [small_frame(1, 10), vec![0; 100], small_frame(2, 10)].concat();
    for (bytes, is_damaged) in [(&whole[..], false), (&whole[..whole.len() - 1], true)] {
        let mut scanner = Scanner::new(file_of(bytes), LOG);
        firsts(&mut scanner);
        assert_eq!(scanner.passed_over_damage(), is_damaged);
    }
}

#[test]
fn frames_behind_the_limit_are_found_once_it_is_raised() {
    let (one, two) = (small_frame(1, 10), small_frame(2, 10));
    let mut scanner = Scanner::new(file_of(&[&one[..], &two].concat()), LOG);
    scanner.limit(one.len() as u64);
    assert_eq!(firsts(&mut scanner), [Lsn::new(1, 1)]);
    scanner.limit(u64::MAX);
    assert_eq!(firsts(&mut scanner), [Lsn::new(1, 2)]);
}

#[test]
fn files_without_frames_have_none() {
    assert_eq!(scan(&[]), Vec::<u32>::new());
    assert_eq!(scan(&vec![0; 3 * READ_BYTES + 1]), Vec::<u32>::new());
    assert_eq!(scan(&vec![0xFF; READ_BYTES + 1]), Vec::<u32>::new());
    assert_eq!(scan(&MAGIC.repeat(10_000)), Vec::<u32>::new());
    assert_eq!(scan(&MAGIC), Vec::<u32>::new());
}

#[test]
fn entries_start_where_they_are_wanted() {
    let bytes = frame(LOG, Lsn::new(3, 10), &[vec![b'a'], vec![b'b'], vec![b'c']]);
    let frame = Scanner::new(file_of(&bytes), LOG).next().unwrap().unwrap();
    assert_eq!((frame.first(), frame.last(), frame.count()), (Lsn::new(3, 10), Lsn::new(3, 12), 3));
    assert_eq!((frame.writer(), frame.len()), (WRITER, bytes.len()));
    for (from, wanted) in [(0, 3), (10, 3), (11, 2), (12, 1), (13, 0)] {
        let mut entries = Vec::new();
        frame.entries(Lsn::new(3, from), &mut entries).unwrap();
        assert_eq!(entries.len(), wanted, "from {from}");
        assert!(entries.iter().all(|entry| entry.lsn.index() >= from));
    }
}

/// Logs outlive the version that wrote them: these bytes may change only with the log's format.
#[test]
fn format_2_has_these_bytes() {
    let golden: &[&[u8]] = &[
        b"\xFFLBWAL2\xFE",
        &[0xAB; 16],
        &[0, 0, 0, 1, 0, 0, 0, 2],
        &[0, 0, 0, 1],
        &[0, 0, 0, 56],
        &[0, 0, 0, 0], // CRC, see below
        &[0, 0, 0, 52],
        &[1, 0b1101, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2],
        &[0, 0, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x00],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 6],
        b"stream{}",
    ];
    let mut golden = golden.concat();
    // CRC-32 (IEEE) of the log's id, the header between magic and CRC, and the payload.
    golden[40..44].copy_from_slice(&0x3D64_A051_u32.to_be_bytes());
    assert_eq!(frame(LOG, Lsn::new(1, 2), &[b"{}".to_vec()]), golden);
}

#[test]
fn a_builder_begins_anew_after_each_frame() {
    let mut builder = Builder::new(LOG, WRITER);
    for index in 1..=2 {
        builder.push(&record(1, Vec::new()));
        let keep = |kept: &[u8]| Ok::<_, ()>(Bytes::copy_from_slice(kept));
        let frame = builder.finish(Lsn::new(1, index), keep).unwrap();
        assert_eq!((frame.first(), frame.count()), (Lsn::new(1, index), 1));
    }
}

#[test]
fn only_errors_of_the_medium_mean_that_data_is_unreadable() {
    use rustix::io::Errno;
    for errno in [Errno::IO, Errno::BADMSG, Errno::NODATA] {
        assert!(is_unreadable(&errno.into()), "{errno}");
    }
    for errno in [Errno::NOMEM, Errno::MFILE, Errno::ACCESS, Errno::INTR] {
        assert!(!is_unreadable(&errno.into()), "{errno}");
    }
    assert!(!is_unreadable(&io::Error::other("not of the system")));
}

/// A file on a disk that returns `errors`, one for each of the first reads, and cannot read `lost`.
struct FailingDisk {
    bytes: Vec<u8>,
    errors: RefCell<Vec<rustix::io::Errno>>,
    lost: Range<u64>,
}

impl FailingDisk {
    fn scanner(bytes: &[u8], lost: Range<u64>) -> Scanner<Self> {
        let errors = RefCell::default();
        Scanner::new(Self { bytes: bytes.to_vec(), errors, lost }, LOG)
    }
}

impl ReadAt for FailingDisk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(errno) = self.errors.borrow_mut().pop() {
            return Err(errno.into());
        }
        if self.lost.contains(&offset) && !buffer.is_empty() {
            return Err(rustix::io::Errno::IO.into());
        }
        let end = if offset < self.lost.start { self.lost.start } else { u64::MAX };
        let end = self.bytes.len().min(usize::try_from(end).unwrap_or(usize::MAX));
        let left = self.bytes.get(usize::try_from(offset).unwrap()..end).unwrap_or_default();
        let read = left.len().min(buffer.len());
        buffer[..read].copy_from_slice(&left[..read]);
        Ok(read)
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

#[test]
fn unreadable_blocks_cost_the_frames_in_them_and_no_others() {
    let frames: Vec<Vec<u8>> = (1..=40).map(|index| small_frame(index, 1000)).collect();
    let (bytes, frame_len) = (frames.concat(), frames[0].len() as u64);
    let size = bytes.len() as u64;
    for lost in [
        0..1,
        0..BLOCK_BYTES,
        BLOCK_BYTES..BLOCK_BYTES + 1,
        // Reading fails from the middle of a block on.
        5000..5001,
        5000..2 * BLOCK_BYTES,
        2 * BLOCK_BYTES..5 * BLOCK_BYTES,
        size - 1..size,
        0..size,
    ] {
        let mut scanner = FailingDisk::scanner(&bytes, lost.clone());
        // What cannot be read ends with its block.
        let end = lost.end.next_multiple_of(BLOCK_BYTES).min(size);
        let hit = |index: u32| {
            let from = u64::from(index - 1) * frame_len;
            from < end && from + frame_len > lost.start
        };
        let left = (1..=40).filter(|index| !hit(*index));
        let left: Vec<_> =
            left.map(|index| (Lsn::new(1, index), u64::from(index) * frame_len)).collect();
        let found: Vec<_> = std::iter::from_fn(|| {
            scanner.next().unwrap().map(|frame| (frame.first(), scanner.position()))
        })
        .collect();
        assert_eq!(found, left, "{lost:?} cannot be read");
        assert_eq!(scanner.unreadable_bytes(), end - lost.start, "{lost:?}");
        scanner.seek(size);
        assert_eq!(scanner.unreadable_bytes(), 0);
    }
}

#[test]
fn an_unreadable_block_at_the_end_of_the_read_window_is_skipped_as_a_whole() {
    let block = READ_BYTES as u64..READ_BYTES as u64 + BLOCK_BYTES;
    let mut bytes = vec![0; READ_BYTES + 4096];
    bytes.extend(small_frame(1, 10));
    let mut scanner = FailingDisk::scanner(&bytes, block);
    // The first window ends five bytes into the block.
    scanner.seek(5);
    assert_eq!(firsts(&mut scanner), [Lsn::new(1, 1)]);
    assert_eq!(scanner.unreadable_bytes(), BLOCK_BYTES);
}

#[test]
fn nothing_behind_the_end_or_the_limit_is_unreadable() {
    let bytes = small_frame(1, 10);
    let end = bytes.len() as u64;
    let mut scanner = FailingDisk::scanner(&bytes, end..u64::MAX);
    assert_eq!(firsts(&mut scanner), [Lsn::new(1, 1)]);
    assert_eq!(scanner.unreadable_bytes(), 0);
    let mut limited = FailingDisk::scanner(&bytes, end - 1..end);
    limited.limit(end - 1);
    assert_eq!(firsts(&mut limited), []);
    assert_eq!(limited.unreadable_bytes(), 0);
}

#[test]
fn the_size_of_a_file_is_that_of_its_content() {
    assert_eq!(file_of(b"abc").size(), 3);
}

#[test]
fn an_interrupted_read_is_repeated_and_any_other_error_is_returned() {
    use rustix::io::Errno;
    let mut scanner = FailingDisk::scanner(&small_frame(1, 10), 0..0);
    scanner.file.errors = RefCell::new(vec![Errno::INTR, Errno::INTR]);
    assert_eq!(firsts(&mut scanner), [Lsn::new(1, 1)]);
    scanner.seek(0);
    scanner.file.errors = RefCell::new(vec![Errno::NOMEM]);
    assert_eq!(Errno::from_io_error(&scanner.next().unwrap_err()), Some(Errno::NOMEM));
    assert_eq!(firsts(&mut scanner), [Lsn::new(1, 1)], "once memory is there");
}
