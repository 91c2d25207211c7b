//! Sample callbacks of every event type, signed and each a new event: for `dev`, `send` and tests.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use crate::callback::CallbackKey;
use crate::event::{EventType, Timestamp};

/// One sample per type, after the published ones.
const SAMPLES: [(i64, &str); 18] = [
    (0, include_str!("samples/interrupt.json")),
    (1, include_str!("samples/push.json")),
    (100, include_str!("samples/record.json")),
    (200, include_str!("samples/screenshot.json")),
    (314, include_str!("samples/relay.json")),
    (315, include_str!("samples/audio-moderation.json")),
    (317, include_str!("samples/porn-detection.json")),
    (321, include_str!("samples/push-exception.json")),
    (328, include_str!("samples/monitor.json")),
    (332, include_str!("samples/record-status.json")),
    (338, include_str!("samples/subtitle.json")),
    (341, include_str!("samples/record-exception.json")),
    (343, include_str!("samples/quality.json")),
    (344, include_str!("samples/assessment-threshold.json")),
    (345, include_str!("samples/assessment-average.json")),
    (347, include_str!("samples/smart-erase.json")),
    (348, include_str!("samples/summary.json")),
    (349, include_str!("samples/highlight.json")),
];

/// Streams that samples are spread over.
const STREAMS: u64 = 8;
/// Tencent's `t` is the time of signing and this many seconds (protocol.md section 2).
const SIGNATURE_LIFETIME_SECONDS: i64 = 600;

/// The next event's number, in the whole process. It starts at the time in microseconds, so that
/// another process starts elsewhere.
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
    AtomicU64::new(u64::try_from(Timestamp::now().as_millis()).unwrap_or(0) * 1000)
});

/// Members that tell events apart.
const UNIQUE: [&str; 14] = [
    "average_score", "event_msg", "file_id", "img", "pic_full_url", "pic_url", "record_file_id",
    "score", "seq", "sequence", "session_id", "src_txt", "task_id", "title",
];
/// Members that hold a time, in seconds or, where the sample's is that large, in milliseconds.
const TIMES: [&str; 12] = [
    "begin_time", "create_time", "data_time", "end_time", "end_unix_time", "event_time",
    "occur_time", "screenshotTime", "sendTime", "start_time", "start_unix_time", "timestamp",
];

/// Makes callbacks; no two of one process are the same event.
#[derive(Debug)]
pub struct Samples {
    key: Option<CallbackKey>,
}

impl Samples {
    /// Callbacks signed with `key`, or unsigned.
    #[must_use]
    pub fn new(key: Option<CallbackKey>) -> Self {
        Self { key }
    }

    /// Every event type there is a sample of.
    pub fn types() -> impl Iterator<Item = EventType> + Clone {
        SAMPLES.iter().map(|&(code, _)| EventType(code))
    }

    /// A new event of `event_type`, unsigned; a push for a type without a sample.
    pub fn event(&self, event_type: EventType) -> Map<String, Value> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let found = SAMPLES.iter().find(|(code, _)| *code == event_type.0);
        let (_, text) = found.unwrap_or(&SAMPLES[1]);
        let mut event = match serde_json::from_str(text) {
            Ok(Value::Object(event)) => event,
            _ => Map::new(),
        };
        event.insert("event_type".into(), event_type.0.into());
        for (name, value) in &mut event {
            refresh(name, value, number);
        }
        event
    }

    /// `event` as the body of a delivery at `now`: with `t` and `sign`, if there is a key.
    #[must_use]
    pub fn delivery(&self, mut event: Map<String, Value>, now: Timestamp) -> String {
        if let Some(key) = &self.key {
            let t = now.as_millis() / 1000 + SIGNATURE_LIFETIME_SECONDS;
            event.insert("sign".into(), key.sign_hex(&t.to_string()).into());
            event.insert("t".into(), t.into());
        }
        Value::Object(event).to_string()
    }
}

/// A score from 0 to 100, which ten million consecutive numbers do not share.
fn score_of(number: u64) -> f64 {
    const DISTINCT: u64 = 10_000_000;
    u32::try_from(number % DISTINCT).map_or(0.0, f64::from) / 100_000.0
}

/// Gives the member `name` a value of event number `number`, of the same kind as before.
fn refresh(name: &str, value: &mut Value, number: u64) {
    let stream = || format!("stream-{}", number % STREAMS);
    let now = Timestamp::now().as_millis();
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                refresh(name, value, number);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refresh(name, item, number)),
        Value::String(text)
            if matches!(name, "stream_id" | "streamId" | "channel_id" | "channelId") =>
        {
            *text = stream();
        }
        Value::String(text) if TIMES.contains(&name) => *text = (now / 1000).to_string(),
        Value::Number(time) if TIMES.contains(&name) => {
            let millis = time.as_i64().is_some_and(|time| time > 1_000_000_000_000);
            *value = if millis { now.into() } else { (now / 1000).into() };
        }
        Value::String(text) if UNIQUE.contains(&name) => {
            if text.bytes().all(|b| b.is_ascii_digit()) {
                *text = number.to_string();
            } else {
                *text = format!("{text}-{number}");
            }
        }
        Value::Number(score) if UNIQUE.contains(&name) && score.is_f64() => {
            *value = score_of(number).into();
        }
        Value::Number(_) if UNIQUE.contains(&name) => *value = number.into(),
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_between_0_and_100_and_differ() {
        let samples = Samples::new(None);
        for (event_type, name) in [(343, "score"), (345, "average_score")] {
            let score = || samples.event(EventType(event_type))[name].as_f64().unwrap();
            let scores: Vec<f64> = (0..100).map(|_| score()).collect();
            assert!(scores.iter().all(|score| (0.0..100.0).contains(score)), "{scores:?}");
            let distinct: std::collections::BTreeSet<u64> =
                scores.iter().map(|score| score.to_bits()).collect();
            assert_eq!(distinct.len(), scores.len());
        }
    }
}
