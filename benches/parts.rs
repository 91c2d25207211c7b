//! Micro-benchmarks: the cost of each component that a callback passes through.
//!
//! ```text
//! cargo bench --bench parts
//! ```
//!
//! The callback is that of the macro-benchmark. `hash of the body` is the reference: one SHA-256
//! over the same bytes, the minimum for an ID computed by a digest.

#[path = "whole/request.rs"]
#[allow(dead_code, reason = "shared with the macro-benchmark, which uses the rest of it")]
mod request;

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use divan::counter::ItemsCount;
use divan::{Bencher, bench};
use livebridge::callback::{CallbackKey, Unsigned, Unverified, Verifier};
use livebridge::event::Timestamp;
use livebridge::record::Record;
use livebridge::wal;
use md5::Digest as _;
use request::{KEY, Request};

fn main() {
    divan::main();
}

/// The body of another push event; no two are equal.
fn body(request: &mut Request) -> Bytes {
    let bytes = request.next();
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
    Bytes::copy_from_slice(&bytes[head..])
}

fn verifier() -> Verifier {
    Verifier {
        keys: CallbackKey::new(KEY).into_iter().collect(),
        leeway: Duration::from_mins(20),
        unsigned: Unsigned::Refused,
    }
}

fn record(request: &mut Request) -> Record {
    let (body, now) = (body(request), Timestamp::now());
    let unverified = Unverified::parse(&body).expect("the body is JSON");
    let callback = unverified.verify(&verifier(), now).expect("the body is signed");
    callback.into_record(now, &[]).expect("the body is a push event")
}

#[bench(name = "hash of the body")]
fn hash(bencher: Bencher<'_, '_>) {
    let body = body(&mut Request::new("localhost", 0, 0));
    bencher.bench_local(|| sha2::Sha256::digest(black_box(&body)));
}

#[bench(name = "parse")]
fn parse(bencher: Bencher<'_, '_>) {
    let body = body(&mut Request::new("localhost", 0, 0));
    bencher.bench_local(|| Unverified::parse(black_box(&body)).is_ok());
}

#[bench(name = "parse and verify")]
fn verify(bencher: Bencher<'_, '_>) {
    let (body, verifier) = (body(&mut Request::new("localhost", 0, 0)), verifier());
    let now = Timestamp::now();
    bencher.bench_local(|| {
        let unverified = Unverified::parse(black_box(&body)).expect("the body is JSON");
        unverified.verify(&verifier, now).is_ok()
    });
}

#[bench(name = "identity and record")]
fn identity(bencher: Bencher<'_, '_>) {
    let (body, verifier) = (body(&mut Request::new("localhost", 0, 0)), verifier());
    let now = Timestamp::now();
    bencher
        .with_inputs(|| {
            let unverified = Unverified::parse(&body).expect("the body is JSON");
            unverified.verify(&verifier, now).expect("the body is signed")
        })
        .bench_local_values(|callback| callback.into_record(now, &[]));
}

#[bench(name = "encode")]
fn encode(bencher: Bencher<'_, '_>) {
    let record = record(&mut Request::new("localhost", 0, 0));
    let mut buffer = BytesMut::with_capacity(2 * record.encoded_len());
    bencher.bench_local(|| {
        buffer.clear();
        black_box(&record).encode(&mut buffer);
    });
}

#[bench(name = "decode")]
fn decode(bencher: Bencher<'_, '_>) {
    let record = record(&mut Request::new("localhost", 0, 0));
    let mut buffer = BytesMut::new();
    record.encode(&mut buffer);
    let bytes = buffer.freeze();
    bencher.bench_local(|| Record::decode(black_box(bytes.clone())).is_ok());
}

/// Whole commits: from a concurrent append of records until all of them are durable.
#[bench(name = "append, commit, sync", args = [1, 32, 256], sample_count = 50, sample_size = 20)]
fn commit(bencher: Bencher<'_, '_>, records: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config =
        wal::Config { dir: directory.path().into(), max_bytes: u64::MAX, min_free_bytes: 0 };
    let (appender, reader, log) = wal::open(&config).expect("a new log");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut request = Request::new("localhost", 0, 0);
    bencher
        .counter(ItemsCount::new(records))
        .with_inputs(|| (0..records).map(|_| record(&mut request)).collect::<Vec<_>>())
        .bench_local_values(|records| {
            runtime.block_on(async {
                let line = appender.handle();
                let mut appends = tokio::task::JoinSet::new();
                for record in records {
                    let line = line.clone();
                    appends.spawn(async move { line.append(record).await });
                }
                appends.join_all().await
            })
        });
    drop((appender, reader));
    log.close();
}
