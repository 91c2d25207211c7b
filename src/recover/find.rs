//! Finds the streams of a time range, and the records of their callbacks.

use std::collections::BTreeSet;
use std::time::Duration;

use super::RecoverError;
use crate::event::Timestamp;
use crate::gaps::RECOVERABLE;
use crate::tencent::{
    CallbackRecord, Client, RECORDS_SPAN_MAX, STREAM_EVENTS_REACHABLE, StreamEvent,
};

/// Streams are listed from this long before the range: one that is pushed throughout the range
/// began earlier. Streams that are pushed for longer must be named.
const LISTED_BEFORE: Duration = Duration::from_hours(7 * 24);
/// And this long after it, for those that end later.
const LISTED_AFTER: Duration = Duration::from_hours(24);
/// The file of a recording is reported after its stream has ended: minutes, or longer for a long
/// recording.
const REPORTED_AFTER_END: Duration = Duration::from_hours(6);
/// The API rejects a query that begins more than [`RECOVERABLE`] ago by its clock, which may be
/// ahead of this one by the 5 minutes that it tolerates in a signature. The rest is for requests
/// that are retried.
const OLDEST_MARGIN: Duration = Duration::from_mins(6);
const SECOND: Duration = Duration::from_secs(1);

/// A range of time, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// From here.
    pub since: Timestamp,
    /// To here.
    pub until: Timestamp,
}

impl TimeRange {
    /// Ranges that one query of callback records may have. They share the second at which they
    /// meet, because it is not documented whether the API compares fractions of it. Records of that
    /// second are found twice.
    pub fn days(self) -> impl Iterator<Item = Self> {
        let mut next = Some(self.since);
        std::iter::from_fn(move || {
            let since = next?;
            let until = since.after(RECORDS_SPAN_MAX).min(self.until);
            next = (until < self.until).then_some(until);
            Some(Self { since, until })
        })
    }

    /// Its two halves, which share a second; `None` when it is a second long or less.
    fn halves(self) -> Option<(Self, Self)> {
        let length = self.until.since(self.since);
        (length > SECOND).then(|| {
            let middle = self.since.after(Duration::from_secs(length.as_secs() / 2));
            (Self { since: self.since, until: middle }, Self { since: middle, until: self.until })
        })
    }
}

/// The earliest time whose records can be queried at `now`.
#[must_use]
pub fn oldest_available(now: Timestamp) -> Timestamp {
    now.before(RECOVERABLE).after(OLDEST_MARGIN)
}

/// Queries the API.
#[derive(Debug)]
pub struct Finder<'a> {
    client: &'a Client,
    /// The time of the events.
    range: TimeRange,
}

impl<'a> Finder<'a> {
    /// For the events of `range`. Its seconds are whole, because the API's times are, and include
    /// the one in which it ends, unless that is not over.
    #[must_use]
    pub fn new(client: &'a Client, range: TimeRange) -> Self {
        let second = |time: Timestamp| Timestamp::from_secs(time.as_millis().div_euclid(1000));
        let since = second(range.since).unwrap_or(range.since);
        let end = second(range.until.after(SECOND)).filter(|end| *end <= Timestamp::now());
        let until = end.or(second(range.until)).unwrap_or(range.until);
        Self { client, range: TimeRange { since, until } }
    }

    /// The names of the streams that may have had events in the range, each once.
    ///
    /// # Errors
    /// [`RecoverError`]
    pub fn streams(&self, now: Timestamp) -> Result<Vec<String>, RecoverError> {
        let TimeRange { since, until } = self.range;
        let until = until.after(LISTED_AFTER).min(now).max(since);
        let mut names = BTreeSet::new();
        let mut ranges = vec![TimeRange { since: since.before(LISTED_BEFORE), until }];
        while let Some(range) = ranges.pop() {
            let mut page = 1;
            loop {
                let listed = self.client.stream_events(range.since, range.until, page)?;
                if listed.total > STREAM_EVENTS_REACHABLE {
                    // The rest cannot be reached in a range of this length.
                    let halves = range.halves();
                    let (first, second) =
                        halves.ok_or(RecoverError::TooManyStreams(range.since))?;
                    ranges.extend([second, first]);
                    break;
                }
                let relevant = listed.entries.into_iter().filter(|stream| self.is_relevant(stream));
                names.extend(relevant.map(|stream| stream.stream_name));
                if !listed.has_more {
                    break;
                }
                page += 1;
            }
        }
        Ok(names.into_iter().collect())
    }

    fn is_relevant(&self, stream: &StreamEvent) -> bool {
        let started = stream.stream_start_time.is_none_or(|time| time <= self.range.until);
        let ended_before = |time: Timestamp| time.after(REPORTED_AFTER_END) < self.range.since;
        started && !stream.stream_end_time.is_some_and(ended_before)
    }

    /// The days of the range, oldest first. Each is to be read for all streams before the next, as
    /// the records of the oldest expire while the others are read.
    #[must_use]
    pub fn days(&self) -> Vec<TimeRange> {
        self.range.days().collect()
    }

    /// Calls `visit` for every record of `stream` in one of [`Finder::days`] that is available; with
    /// `failed_only`, for those of callbacks that were not delivered. The API's own filter selects
    /// one result code only.
    ///
    /// # Errors
    /// [`RecoverError`], or what `visit` returned.
    pub fn records<E: From<RecoverError>>(
        &self,
        stream: &str,
        TimeRange { since, until }: TimeRange,
        failed_only: bool,
        mut visit: impl FnMut(CallbackRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let since = since.max(oldest_available(Timestamp::now()));
        if since > until {
            return Ok(());
        }
        let mut page = 1;
        loop {
            let listed = self.client.callback_records(stream, since, until, page);
            let listed = listed.map_err(RecoverError::from)?;
            let is_wanted = |record: &CallbackRecord| !failed_only || !record.is_delivered();
            listed.entries.into_iter().filter(is_wanted).try_for_each(&mut visit)?;
            if !listed.has_more {
                return Ok(());
            }
            page += 1;
        }
    }
}

/// The names in a file, one a line; blank lines and lines that begin with `#` are ignored.
#[must_use]
pub fn streams_of_file(text: &str) -> Vec<String> {
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(since: i64, until: i64) -> TimeRange {
        let at = |secs| Timestamp::from_secs(1_800_000_000 + secs).unwrap();
        TimeRange { since: at(since), until: at(until) }
    }

    #[test]
    fn days_cover_the_range_without_a_gap_and_none_is_longer_than_a_day() {
        for length in [0, 1, 3600, 86_399, 86_400, 86_401, 3 * 86_400, 14 * 86_400 - 7] {
            let days: Vec<TimeRange> = range(0, length).days().collect();
            assert_eq!(days.first().unwrap().since, range(0, 0).since);
            assert_eq!(days.last().unwrap().until, range(0, length).until);
            for pair in days.windows(2) {
                assert_eq!(pair[0].until, pair[1].since);
            }
            assert!(days.iter().all(|day| day.until.since(day.since) <= RECORDS_SPAN_MAX));
        }
    }

    #[test]
    fn halves_cover_the_range_down_to_a_second() {
        assert_eq!(range(0, 1).halves(), None);
        assert_eq!(range(0, 2).halves(), Some((range(0, 1), range(1, 2))));
        assert_eq!(range(0, 9).halves(), Some((range(0, 4), range(4, 9))));
    }

    #[test]
    fn a_file_of_streams_has_one_name_a_line() {
        assert_eq!(streams_of_file("\u{feff}a\n\n# no\n b\r\nc@d "), ["a", " b", "c@d"]);
    }
}
