//! The parts of the benchmark that its figures stand on; a bench target without a harness runs no
//! tests of its own.

#[path = "../benches/whole/histogram.rs"]
mod histogram;
#[path = "../benches/whole/request.rs"]
mod request;
#[path = "../benches/whole/stats.rs"]
mod stats;
#[path = "../benches/whole/svg.rs"]
mod svg;
#[path = "../benches/whole/table.rs"]
mod table;

use std::time::Duration;

use histogram::{BUCKETS, Histogram, SUB, bucket, upper_edge};
use request::{Answer, BODY_BYTES, Request, parse_answer, sequence, sign};
use stats::{median, mib, millis, real, slope};
use svg::{Across, Chart, Row, Scale, Series, linear_ticks, log_ticks, picture, short};
use table::Table;

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

#[test]
fn the_middle_of_figures_is_theirs_in_any_order() {
    assert!((median([9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    assert!((median([9.0, 1.0, 2.0, 4.0]) - 3.0).abs() < 1e-9);
    assert!(median([]).abs() < 1e-9);
    assert!((mib(3 << 20) - millis(Duration::from_millis(3))).abs() < 1e-9);
}

#[test]
fn growth_is_seen_through_noise_and_a_level_course_has_none() {
    let noise = |at: u32| f64::from(at % 2) * 50.0;
    let growing: Vec<_> =
        (0..100).map(|at| (f64::from(at), 7.0 * f64::from(at) + noise(at))).collect();
    assert!((slope(&growing) - 7.0).abs() < 0.1, "{}", slope(&growing));
    let level: Vec<_> = (0..100).map(|at| (f64::from(at), 1e6 + noise(at))).collect();
    assert!(slope(&level).abs() < 0.1, "{}", slope(&level));
    assert!(slope(&[(1.0, real(5))]).abs() < 1e-9);
}

#[test]
fn axes_have_few_round_numbers_that_reach_around_all_values() {
    for highest in [0.3, 1.0, 7.0, 99.0, 100.0, 101.0, 148_600.0, 3e6] {
        let ticks = linear_ticks(highest);
        assert!((3..=7).contains(&ticks.len()), "{highest}: {ticks:?}");
        assert!(ticks[0].abs() < 1e-9 && ticks[ticks.len() - 1] >= highest, "{highest}: {ticks:?}");
    }
    for (lowest, highest) in [(0.2, 20.0), (0.01, 150.0), (1.0, 1.0), (4.0, 6.0)] {
        let ticks = log_ticks(lowest, highest);
        assert!((2..=9).contains(&ticks.len()), "{lowest} {highest}: {ticks:?}");
        assert!(ticks[0] <= lowest * 1.001 && ticks[ticks.len() - 1] >= highest, "{ticks:?}");
    }
    let said = [0.0, 0.05, 2.5, 9_000.0, 20_000.0, 150_000.0, 1_500_000.0].map(short);
    assert_eq!(said, ["0", "0.05", "2.5", "9000", "20k", "150k", "1.5M"]);
}

#[test]
fn every_point_of_a_chart_lies_within_the_picture_and_words_are_escaped() {
    let chart = |across, scale| Chart {
        title: "rate & latency",
        below: "x",
        across,
        scale,
        series: vec![Series { class: 0, points: vec![(0.0, 0.02), (1.0, 99.0), (2.0, 3.0)] }],
        shade: Some((0.5, 1.5, "away")),
    };
    let words = Across::Words(["1", "8", "64"].map(str::to_owned).into());
    let charts = vec![chart(words, Scale::Log), chart(Across::To(2.0), Scale::Linear)];
    let row = Row { title: "a < b".into(), legend: vec![(0, "a")], charts };
    let svg = picture("title", &[row.clone(), row]);
    assert!(svg.contains("a &lt; b") && svg.contains("rate &amp; latency"));
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    let size = svg.split("viewBox=\"0 0 ").nth(1).and_then(|rest| rest.split('"').next());
    let (width, height) = size.and_then(|size| size.split_once(' ')).expect("a size");
    let limits: [f64; 2] = [width, height].map(|text| text.parse().expect("a number"));
    let paths =
        svg.split(" d=\"M").skip(1).filter(|path| !path.contains('H') || path.contains('L'));
    let mut points = 0;
    for path in paths {
        for point in path.split('"').next().unwrap_or_default().split('L') {
            let numbers = point.split(' ').zip(limits);
            for (number, limit) in numbers {
                let number: f64 = number.parse().expect("a number");
                assert!((0.0..=limit).contains(&number), "{point}");
            }
            points += 1;
        }
    }
    assert_eq!(points, 3 * 4);
}

#[test]
fn a_table_is_as_wide_as_what_is_in_it() {
    let mut table = Table::new(["name", "n"]);
    table.row(["a long name".into(), "1".into()]);
    table.gap();
    table.row(["b".into(), "12345".into()]);
    assert_eq!(table.to_string(), "name             n\na long name      1\n\nb            12345\n");
}
