//! Tencent Cloud's records of pushed streams, and of callbacks that were delivered or failed.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::callbacks::or_default;
use super::{Action, Client, TencentError};
use crate::event::Timestamp;

/// Entries of one query of [`Client::stream_events`] that can be reached, over all pages.
pub const STREAM_EVENTS_REACHABLE: u64 = 10_000;
/// The longest range of one query of [`Client::callback_records`].
pub const RECORDS_SPAN_MAX: Duration = Duration::from_hours(24);
/// Entries of a page; the API's limit for stream events. None is documented for callback records.
const PAGE: u64 = 100;
/// Beijing's time zone, which has no daylight saving time.
const BEIJING_AHEAD: Duration = Duration::from_hours(8);

/// `YYYY-MM-DDThh:mm:ssZ`, without fractions of a second.
#[must_use]
pub fn utc_time(time: Timestamp) -> String {
    let mut text = time.to_string();
    text.truncate("YYYY-MM-DDThh:mm:ss".len());
    text.push('Z');
    text
}

/// The time of an answer: `YYYY-MM-DDThh:mm:ssZ` in UTC, or `YYYY-MM-DD hh:mm:ss` in Beijing's time
/// zone.
fn parse_time(text: &str) -> Option<Timestamp> {
    if text.ends_with('Z') {
        Timestamp::parse(text)
    } else {
        Some(Timestamp::parse(&format!("{}Z", text.replace(' ', "T")))?.before(BEIJING_AHEAD))
    }
}

/// A page of an answer.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Its entries.
    pub entries: Vec<T>,
    /// Entries of all pages.
    pub total: u64,
    /// Whether more pages follow.
    pub has_more: bool,
}

/// A stream that was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamEvent {
    /// The app.
    #[serde(default, deserialize_with = "or_default")]
    pub app_name: String,
    /// The push domain.
    #[serde(default, deserialize_with = "or_default")]
    pub domain_name: String,
    /// The stream's name.
    pub stream_name: String,
    /// When it began.
    #[serde(default, deserialize_with = "time")]
    pub stream_start_time: Option<Timestamp>,
    /// When it ended; `None` while it is pushed.
    #[serde(default, deserialize_with = "time")]
    pub stream_end_time: Option<Timestamp>,
}

/// A record of a callback that Tencent Cloud sent, or failed to.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CallbackRecord {
    /// When the event happened.
    #[serde(default, deserialize_with = "time")]
    pub event_time: Option<Timestamp>,
    /// The type of the event.
    #[serde(default)]
    pub event_type: Option<i64>,
    /// What was sent, in a form that is not documented.
    #[serde(default, deserialize_with = "or_default")]
    pub request: String,
    /// What was answered.
    #[serde(default, deserialize_with = "or_default")]
    pub response: String,
    /// When it was answered.
    #[serde(default, deserialize_with = "time")]
    pub response_time: Option<Timestamp>,
    /// 0 when it was delivered.
    #[serde(default)]
    pub result_code: Option<i64>,
    /// The stream's name.
    #[serde(default, deserialize_with = "or_default")]
    pub stream_id: String,
}

/// Without `request` and `response`: they contain the parameters of the push, which may be secret.
impl std::fmt::Debug for CallbackRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackRecord")
            .field("event_time", &self.event_time)
            .field("event_type", &self.event_type)
            .field("result_code", &self.result_code)
            .field("stream_id", &self.stream_id)
            .finish_non_exhaustive()
    }
}

impl CallbackRecord {
    /// Whether the callback was delivered. A record without a result counts as not delivered: to
    /// recover it costs a duplicate that is absorbed, to leave it out could cost the event.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        self.result_code == Some(0)
    }
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.as_deref().and_then(parse_time))
}

impl Client {
    /// A page, counted from 1, of the streams whose push ended in a range of time, oldest first; at
    /// most 60 days ago.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn stream_events(
        &self,
        since: Timestamp,
        until: Timestamp,
        page: u64,
    ) -> Result<Page<StreamEvent>, TencentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            event_list: Vec<StreamEvent>,
            #[serde(default, deserialize_with = "or_default")]
            total_num: u64,
            #[serde(default, deserialize_with = "or_default")]
            total_page: u64,
        }
        let mut parameters = range(since, until, page);
        parameters.insert("IsAsc".to_owned(), 1.into());
        let answer: Answer = self.call(Action::DescribeLiveStreamEventList, &parameters)?;
        let has_more = page < answer.total_page && !answer.event_list.is_empty();
        Ok(Page { entries: answer.event_list, total: answer.total_num, has_more })
    }

    /// A page, counted from 1, of the records of a stream's callbacks in a range of time, of
    /// [`RECORDS_SPAN_MAX`] at most and at most 14 days ago. The API requires the stream's exact
    /// name.
    ///
    /// # Errors
    /// [`TencentError`]
    pub fn callback_records(
        &self,
        stream: &str,
        since: Timestamp,
        until: Timestamp,
        page: u64,
    ) -> Result<Page<CallbackRecord>, TencentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            data_info_list: Vec<CallbackRecord>,
            #[serde(default, deserialize_with = "or_default")]
            total_num: u64,
            #[serde(default, deserialize_with = "or_default")]
            total_page: u64,
        }
        let mut parameters = range(since, until, page);
        parameters.insert("StreamName".to_owned(), stream.into());
        let answer: Answer = self.call(Action::DescribeCallbackRecordsList, &parameters)?;
        let has_more = page < answer.total_page && !answer.data_info_list.is_empty();
        Ok(Page { entries: answer.data_info_list, total: answer.total_num, has_more })
    }
}

fn range(since: Timestamp, until: Timestamp, page: u64) -> Map<String, Value> {
    [
        ("StartTime", utc_time(since).into()),
        ("EndTime", utc_time(until).into()),
        ("PageNum", page.into()),
        ("PageSize", PAGE.into()),
    ]
    .into_iter()
    .map(|(member, value): (&str, Value)| (member.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_time_name_the_same_moment() {
        let moment = Timestamp::parse("2026-03-01T20:30:05Z").unwrap();
        assert_eq!(utc_time(moment), "2026-03-01T20:30:05Z");
        assert_eq!(parse_time("2026-03-01T20:30:05Z"), Some(moment));
        assert_eq!(parse_time("2026-03-02 04:30:05"), Some(moment));
        assert_eq!(parse_time(""), None);
        assert_eq!(parse_time("yesterday"), None);
    }
}
