//! Streams of which the API lists only a part for a long time are found in shorter times.

use std::collections::BTreeSet;
use std::time::Duration;

use livebridge::event::Timestamp;
use livebridge::recover::{Finder, RecoverError, TimeRange};

use crate::api::client_of;
use crate::support::tencent::{Stream, Tencent};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;

fn stream(name: String, started: i64, ended: Option<i64>) -> Stream {
    Stream { ended, ..Stream::running(name, Timestamp::from_millis(started)) }
}

fn hours_before(now: Timestamp, since: u64, until: u64) -> TimeRange {
    let ago = |hours| now.before(Duration::from_hours(hours));
    TimeRange { since: ago(since), until: ago(until) }
}

#[test]
fn more_streams_than_one_query_shows_are_all_found() {
    let tencent = Tencent::start();
    let client = client_of(&tencent);
    let now = Timestamp::now();
    let (mut wanted, mut streams) = (BTreeSet::new(), Vec::new());
    for number in 0..12_000 {
        // Most within one hour: the range must be halved several times.
        let started = now.as_millis() - 180 * MINUTE + number * 300;
        let name = format!("within-{number}");
        wanted.insert(name.clone());
        streams.push(stream(name, started, (number % 3 > 0).then_some(started + MINUTE)));
    }
    for number in 0..3_000 {
        let started = now.as_millis() - 5 * 24 * 60 * MINUTE + number * SECOND;
        streams.push(stream(format!("days-before-{number}"), started, Some(started + MINUTE)));
    }
    tencent.state().streams = streams;
    let found = Finder::new(&client, hours_before(now, 4, 1)).streams(now).unwrap();
    let found: BTreeSet<String> = found.into_iter().collect();
    assert_eq!(found.difference(&wanted).next(), None, "streams that had ended long before");
    assert_eq!(wanted.difference(&found).count(), 0, "{} were found", found.len());
}

#[test]
fn more_streams_in_one_second_than_the_api_shows_are_an_error_that_says_what_to_do() {
    let tencent = Tencent::start();
    let client = client_of(&tencent);
    let now = Timestamp::now();
    let at = now.as_millis() / SECOND * SECOND - 120 * MINUTE;
    let streams = (0..10_001).map(|number| stream(format!("one-{number}"), at, None));
    tencent.state().streams = streams.collect();
    let error = Finder::new(&client, hours_before(now, 4, 1)).streams(now).unwrap_err();
    assert!(matches!(error, RecoverError::TooManyStreams(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("--streams-file"), "{text}");
    let named = text.split([' ', ',']).find_map(Timestamp::parse).unwrap();
    assert!((at - SECOND..=at).contains(&named.as_millis()), "{text}");
}
