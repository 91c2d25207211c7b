//! Records are read as far back as the API has them, although the oldest expire while others are
//! read.

use std::time::Duration;

use livebridge::event::Timestamp;
use livebridge::recover::{Finder, RecoverError, TimeRange};
use livebridge::tencent::CallbackRecord;

use crate::api::client_of;
use crate::support::tencent::{Record, Tencent};

const RECOVERABLE: Duration = Duration::from_hours(14 * 24);

fn hours_ago(now: Timestamp, hours: u64) -> Timestamp {
    now.before(Duration::from_hours(hours))
}

fn read(finder: &Finder<'_>, stream: &str) -> Result<Vec<String>, RecoverError> {
    let mut found = Vec::new();
    for day in finder.days() {
        finder.records(stream, day, true, |record: CallbackRecord| {
            found.push(record.request);
            Ok::<_, RecoverError>(())
        })?;
    }
    Ok(found)
}

#[test]
fn a_range_that_begins_before_the_oldest_record_is_read_from_there() {
    let tencent = Tencent::start();
    let client = client_of(&tencent);
    let now = Timestamp::now();
    for (text, hours) in [("too old", 337), ("oldest", 335), ("newest", 1)] {
        let record = Record::failed("a", 1, hours_ago(now, hours), text);
        tencent.state().records.push(record);
    }
    for (since, clock_ahead) in [
        (now.before(RECOVERABLE), 0),
        // Two days of the range are not available any more.
        (hours_ago(now, 14 * 24 + 50), 0),
        // By as much, the API's clock may differ.
        (now.before(RECOVERABLE), 290),
        (now.before(RECOVERABLE), -290),
    ] {
        tencent.state().clock_ahead = clock_ahead;
        let finder = Finder::new(&client, TimeRange { since, until: now });
        assert_eq!(read(&finder, "a").unwrap(), ["oldest", "newest"], "{clock_ahead}");
    }
    let too_old = TimeRange { since: hours_ago(now, 350), until: hours_ago(now, 340) };
    assert!(read(&Finder::new(&client, too_old), "a").unwrap().is_empty());
}

#[test]
fn the_second_in_which_the_range_ends_is_read() {
    let tencent = Tencent::start();
    let client = client_of(&tencent);
    let second = Timestamp::from_secs(hours_ago(Timestamp::now(), 2).as_millis() / 1000).unwrap();
    let at = |millis| second.after(Duration::from_millis(millis));
    tencent.state().records.push(Record::failed("a", 1, at(400), "within"));
    let range = TimeRange { since: hours_ago(second, 1), until: at(500) };
    assert_eq!(read(&Finder::new(&client, range), "a").unwrap(), ["within"]);
    // A time in the future is not asked for.
    let now = Timestamp::now();
    read(&Finder::new(&client, TimeRange { until: now, ..range }), "a").unwrap();
    let asked = tencent.state().calls.last().unwrap().1["EndTime"].as_str().unwrap().to_owned();
    assert!(Timestamp::parse(&asked).unwrap() <= Timestamp::now(), "{asked}");
}
