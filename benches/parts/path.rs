//! The parts of a callback's path through the intake, and the whole of it.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use livebridge::callback::{Callback, CallbackKey, UnsignedPolicy, UnverifiedCallback, Verifier};
use livebridge::event::Timestamp;
use livebridge::record::Record;
use sha2::Digest as _;

use crate::request::{Answer, KEY, Request, parse_answer};
use crate::support::intake::TestBed;

/// A part, by its name.
pub(crate) type Part = (&'static str, fn(&mut Parts));

/// Each part. The names say what one contains of those before it.
pub(crate) const PARTS: [Part; 7] = [
    // The reference: the least that an id computed by a digest costs.
    ("hash of the body", |parts| {
        black_box(sha2::Sha256::digest(black_box(&parts.body)));
    }),
    ("parse", |parts| {
        black_box(UnverifiedCallback::parse(black_box(&parts.body)).is_ok());
    }),
    ("parse, verify", |parts| {
        black_box(parts.verified());
    }),
    ("parse, verify, record", |parts| {
        black_box(parts.record());
    }),
    // A callback with objects in arrays in objects: subtitles.
    ("the same of a nested one", |parts| {
        black_box(record(black_box(&parts.nested), &parts.verifier, parts.now));
    }),
    ("encode", |parts| {
        parts.buffer.clear();
        black_box(&parts.record).encode(&mut parts.buffer);
    }),
    ("decode", |parts| {
        black_box(Record::decode(black_box(parts.encoded.clone())).is_ok());
    }),
];

/// What the parts need, made once.
#[derive(Debug)]
pub(crate) struct Parts {
    body: Bytes,
    nested: Bytes,
    verifier: Verifier,
    now: Timestamp,
    record: Record,
    encoded: Bytes,
    buffer: BytesMut,
}

impl Parts {
    /// The callback is that of the macro-benchmark.
    pub(crate) fn new() -> Self {
        let mut request = Request::new("localhost", 0, 0);
        let bytes = request.next();
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
        let body = Bytes::copy_from_slice(&bytes[head..]);
        let verifier = Verifier {
            keys: CallbackKey::new(KEY).into_iter().collect(),
            // The nested one is an example of the documents, signed long ago.
            leeway: Duration::from_hours(24 * 365 * 100),
            unsigned: UnsignedPolicy::Rejected,
        };
        let nested =
            Bytes::from_static(include_bytes!("../../tests/payloads/045_subtitle_338.json"));
        let now = Timestamp::now();
        let record = record(&body, &verifier, now);
        let mut buffer = BytesMut::with_capacity(2 * record.encoded_len());
        record.encode(&mut buffer);
        let encoded = Bytes::copy_from_slice(&buffer);
        Self { body, nested, verifier, now, record, encoded, buffer }
    }

    fn verified(&self) -> Callback<'_> {
        verified(black_box(&self.body), &self.verifier, self.now)
    }

    fn record(&self) -> Record {
        record(black_box(&self.body), &self.verifier, self.now)
    }
}

fn verified<'a>(body: &'a Bytes, verifier: &Verifier, now: Timestamp) -> Callback<'a> {
    let unverified = UnverifiedCallback::parse(body).expect("the body is JSON");
    unverified.verify(verifier, now).expect("the body is signed")
}

fn record(body: &Bytes, verifier: &Verifier, now: Timestamp) -> Record {
    verified(body, verifier, now).into_record(now, &[]).expect("the body is a push event")
}

/// An intake with a log, and a client with one connection. The intake's threads are called
/// `intake-…`, the log's writer `wal-writer`.
pub(crate) struct Whole {
    // Closed before the intake stops.
    stream: TcpStream,
    request: Request,
    _bed: TestBed,
}

impl Whole {
    pub(crate) fn new() -> Self {
        let bed = TestBed::new();
        let stream = TcpStream::connect(bed.address).expect("the intake listens");
        stream.set_nodelay(true).expect("a TCP option");
        let request = Request::new(&bed.address.to_string(), 0, 0);
        Self { stream, request, _bed: bed }
    }

    /// Sends this many callbacks one after another, each when the one before is answered 200.
    pub(crate) fn send(&mut self, callbacks: u32) {
        let mut answer = [0; 1024];
        for _ in 0..callbacks {
            self.stream.write_all(self.request.next()).expect("the intake reads");
            let mut length = 0;
            while parse_answer(&answer[..length]) == Answer::Incomplete {
                let read = self.stream.read(&mut answer[length..]).expect("the intake answers");
                assert_ne!(read, 0, "the intake closed the connection");
                length += read;
            }
            assert_eq!(parse_answer(&answer[..length]), Answer::Complete { status: 200 });
        }
    }
}
