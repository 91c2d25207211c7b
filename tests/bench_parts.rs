//! The parts of the benchmark that its figures stand on; a bench target without a harness runs no
//! tests of its own.

#[path = "../benches/intake/histogram.rs"]
mod histogram;
#[path = "../benches/intake/request.rs"]
mod request;

use std::time::Duration;

use histogram::{BUCKETS, Histogram, SUB, bucket, upper_edge};
use request::{Answer, BODY_BYTES, Request, parse_answer, sign};

#[test]
fn every_value_lies_in_its_bucket_and_the_bucket_is_narrow() {
    let mut values: Vec<u64> = (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) + 1]).collect();
    values.extend([0, 127, 128, 255, 256, 257, 511, 512, 123_456_789, u64::MAX - 1, u64::MAX]);
    for value in values {
        let index = bucket(value);
        assert!(index < BUCKETS, "{value}");
        let edge = upper_edge(index);
        assert!(edge >= value, "{value} above its bucket's edge {edge}");
        assert!(edge - value <= value / SUB, "{value} is {} below {edge}", edge - value);
        assert!(index == 0 || upper_edge(index - 1) < value, "{value} fits one bucket lower");
    }
}

#[test]
fn quantiles_of_a_known_series_are_exact_within_a_bucket() {
    let mut histogram = Histogram::new();
    for micros in 1..=10_000 {
        histogram.record(Duration::from_micros(micros));
    }
    assert_eq!(histogram.max(), Duration::from_millis(10));
    for (per_mille, micros) in [(500, 5_000), (990, 9_900), (999, 9_990), (1000, 10_000)] {
        let answer = histogram.quantile(per_mille);
        let exact = Duration::from_micros(micros);
        assert!(answer >= exact && answer <= exact + exact / 100, "{per_mille}: {answer:?}");
    }
}

#[test]
fn a_merge_is_the_same_as_recording_everything_in_one() {
    let (mut all, mut left, mut right) = (Histogram::new(), Histogram::new(), Histogram::new());
    for nanos in (0..5_000_000).step_by(777) {
        let latency = Duration::from_nanos(nanos);
        all.record(latency);
        if nanos % 2 == 0 { left.record(latency) } else { right.record(latency) }
    }
    left.merge(&right);
    assert_eq!(left, all);
}

#[test]
fn an_empty_histogram_answers_zero() {
    assert_eq!(Histogram::new().quantile(990), Duration::ZERO);
}

fn body_of(request: &[u8]) -> serde_json::Value {
    let text = std::str::from_utf8(request).expect("a request is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a request has a head");
    assert_eq!(body.len(), BODY_BYTES);
    assert!(head.contains(&format!("Content-Length: {BODY_BYTES}")));
    serde_json::from_str(body).expect("the body is JSON")
}

#[test]
fn every_request_is_the_same_callback_with_another_sequence() {
    let mut request = Request::new("127.0.0.1:1", 3, 511);
    let mut first = body_of(request.next());
    assert_eq!(first["sequence"], "1003000511000000001");
    assert_eq!(first["event_type"], 1);
    assert_eq!(first["stream_id"], "bench_000511");
    for _ in 2..1000 {
        request.next();
    }
    let mut later = body_of(request.next());
    assert_eq!(later["sequence"], "1003000511000001000");
    first["sequence"].take();
    later["sequence"].take();
    assert_eq!(first, later);
}

#[test]
fn the_signature_is_the_documented_one() {
    assert_eq!(sign(1_703_732_078), "d21bd464b2a486de5fb76d035ee7d747");
}

#[test]
fn an_answer_counts_only_when_it_is_all_there() {
    let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\ndate: now\r\n\r\n{\"code\":0}";
    for cut in 0..whole.len() {
        assert_eq!(parse_answer(&whole[..cut]), Answer::Incomplete, "{cut}");
    }
    assert_eq!(parse_answer(whole), Answer::Complete { status: 200 });
    let busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(parse_answer(busy), Answer::Complete { status: 503 });
    assert_eq!(parse_answer(b"HTTP/1.1 200 OK\r\n\r\n"), Answer::Malformed);
    assert_eq!(parse_answer(b"SMTP\r\ncontent-length: 0\r\n\r\n"), Answer::Malformed);
}
