//! Unit tests of the benchmark's components. They are here because a bench target without a harness
//! runs no tests.

#[path = "../../benches/whole/stats.rs"]
mod stats;
#[path = "../../benches/whole/table.rs"]
mod table;

use std::time::Duration;

use crate::request::{Answer, BODY_BYTES, Request, parse_answer, sequence, sign};
use stats::{median, mib, millis, real, slope};
use table::Table;

fn body_of(request: &[u8]) -> serde_json::Value {
    let text = std::str::from_utf8(request).expect("a request is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a request has a head");
    assert_eq!(body.len(), BODY_BYTES);
    assert!(head.contains(&format!("Content-Length: {BODY_BYTES}")));
    serde_json::from_str(body).expect("the body is JSON")
}

#[test]
fn requests_differ_only_in_their_sequence_number() {
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
    assert_eq!(request.sequence(), 1_003_000_511_000_001_000);
    assert_eq!(sequence(later.to_string().as_bytes()), Some(request.sequence()));
    first["sequence"].take();
    later["sequence"].take();
    assert_eq!(first, later);
}

#[test]
fn the_signature_is_the_documented_one() {
    assert_eq!(sign(1_703_732_078), "d21bd464b2a486de5fb76d035ee7d747");
}

#[test]
fn a_response_counts_only_when_it_is_complete() {
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

#[test]
fn the_median_does_not_depend_on_order() {
    assert!((median([9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    assert!((median([9.0, 1.0, 2.0, 4.0]) - 3.0).abs() < 1e-9);
    assert!(median([]).abs() < 1e-9);
    assert!((mib(3 << 20) - millis(Duration::from_millis(3))).abs() < 1e-9);
}

#[test]
fn growth_is_detected_through_noise_and_flat_series_have_none() {
    let noise = |at: u32| f64::from(at % 2) * 50.0;
    let growing: Vec<_> =
        (0..100).map(|at| (f64::from(at), 7.0 * f64::from(at) + noise(at))).collect();
    assert!((slope(&growing) - 7.0).abs() < 0.1, "{}", slope(&growing));
    let level: Vec<_> = (0..100).map(|at| (f64::from(at), 1e6 + noise(at))).collect();
    assert!(slope(&level).abs() < 0.1, "{}", slope(&level));
    assert!(slope(&[(1.0, real(5))]).abs() < 1e-9);
}

#[test]
fn table_columns_fit_their_contents() {
    let mut table = Table::new(["name", "n"]);
    table.row(["a long name".into(), "1".into()]);
    table.gap();
    table.row(["b".into(), "12345".into()]);
    assert_eq!(table.to_string(), "name             n\na long name      1\n\nb            12345\n");
}
