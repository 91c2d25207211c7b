//! `livebridge recover` removes the recorded gaps whose whole time it has read, and no others.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use livebridge::callback::CallbackKey;
use livebridge::event::{EventType, Timestamp};
use livebridge::sample::Samples;

use super::recover::{assert_each_once, command, finish, ready_bridge};
use crate::support;
use crate::support::bridge::KEY;
use crate::support::kafka::Kafka;
use crate::support::tencent::{Record, Stream, Tencent};

const TIME_LIMIT: Duration = Duration::from_mins(1);

fn minutes_ago(minutes: u64) -> Timestamp {
    Timestamp::now().before(Duration::from_mins(minutes))
}

#[test]
fn a_gap_that_ends_while_it_is_recovered_stays_recorded() {
    let Some(kafka) = Kafka::shared_or_skip("gap ends") else { return };
    let prefix = support::unique("gap-ends");
    let (bridge, tencent) = (ready_bridge(kafka, &prefix), Tencent::start());
    assert!(bridge.stop().success());
    fs::write(bridge.wal().join("last-accepting"), minutes_ago(40).to_string()).unwrap();
    let gaps = || bridge.run(&["wal", "gaps"]).stdout;
    for removes in [false, true] {
        // Without its state, the fake cannot answer.
        let state = tencent.state();
        let mut recover =
            command(&bridge, &tencent, &["--since", "2h", "--timeout", "60s", "--yes"]);
        let mut lines = BufReader::new(recover.stderr.take().unwrap()).lines();
        let begun = lines.any(|line| line.unwrap().starts_with("events from"));
        assert!(begun, "it has chosen the time");
        if !removes {
            bridge.start();
            let is_recorded = || gaps().lines().count() == 1 && !gaps().contains("no gap");
            bridge.wait_until("recording the gap", TIME_LIMIT, is_recorded);
        }
        drop(state);
        let output = recover.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert_eq!(text.contains("is recovered"), removes, "{text}");
        assert_eq!(text.contains("stays recorded"), !removes, "{text}");
        assert_eq!(gaps().contains("no gap"), removes, "{}", gaps());
    }
}

#[test]
fn a_gap_of_which_a_part_is_older_than_the_records_is_recovered_from_the_oldest_record() {
    let Some(kafka) = Kafka::shared_or_skip("old gap") else { return };
    let prefix = support::unique("old-gap");
    let (bridge, tencent) = (ready_bridge(kafka, &prefix), Tencent::start());
    let day = 24 * 60;
    fs::create_dir_all(bridge.wal().join("gaps")).unwrap();
    for (begin, end) in [(14 * day + 120, 14 * day - 120), (14 * day + 300, 14 * day + 200)] {
        let name = format!("{}-{}", minutes_ago(begin).as_millis(), minutes_ago(end).as_millis());
        fs::write(bridge.wal().join("gaps").join(name), "").unwrap();
    }
    let at = minutes_ago(14 * day - 90);
    let mut event = Samples::new(CallbackKey::new(KEY)).event(EventType(1));
    event.insert("stream_id".into(), "a@x".into());
    let body = Samples::new(CallbackKey::new(KEY)).delivery(event, at);
    for stream in ["a@x", "b@x"] {
        tencent.state().streams.push(Stream::running(stream, minutes_ago(14 * day)));
    }
    tencent.state().records.push(Record::failed("a@x", 1, at, body.clone()));
    let since = format!("{}m", 14 * day);
    let arguments = ["--since", &since, "--until", "13d", "--yes"];
    for arguments in [&["--gap", "--yes"][..], &arguments, &["--gap", "--since", "20d", "--yes"]] {
        let (code, text) = finish(command(&bridge, &tencent, arguments));
        assert_eq!(code, Some(0), "{arguments:?} {text}");
        let is_recovered = text.matches("is recovered").count();
        assert_eq!(is_recovered, usize::from(arguments == ["--gap", "--yes"]), "{text}");
        assert!(text.contains("could not all be read"), "{text}");
        let calls = std::mem::take(&mut tencent.state().calls);
        let queries = calls.iter().filter(|(action, _)| action == "DescribeCallbackRecordsList");
        let starts: Vec<_> = queries.map(|(_, query)| query["StartTime"].as_str()).collect();
        assert!(starts.len() > 1 && starts.is_sorted(), "the oldest expire first: {starts:?}");
    }
    bridge.drain(TIME_LIMIT);
    assert_each_once(kafka, &prefix, &[body]);
    let left = bridge.run(&["wal", "gaps"]).stdout;
    assert!(
        left.lines().count() == 1 && !left.contains("no gap"),
        "what could not be read stays: {left}"
    );
}
