//! Times without received callbacks, according to the ledger: each record of a transaction has the
//! time at which the newest of its callbacks was received, by any instance.

use std::time::Duration;

use super::{RecoverError, TimeRange};
use crate::event::Timestamp;
use crate::gaps::{GAP_MIN, Gap, RECOVERABLE};
use crate::kafka;
use crate::kafka::topic_reader::{read_to_end, wait_until_decided};
use crate::ledger::Commit;
use crate::publisher::is_command;

/// The events of a gap can be older than its beginning: a callback was tried for up to 16 minutes,
/// and that of a recording comes minutes after its end.
const MARGIN_BEFORE: Duration = Duration::from_mins(30);
/// Events can also be later than the end of the gap, by as much as clocks differ, or until all
/// senders are back.
const MARGIN_AFTER: Duration = Duration::from_mins(10);

/// The times after `since` in which no instance received a callback for longer than Tencent's
/// retries last. A time without events looks the same, so a gap is not necessarily a loss.
///
/// # Errors
/// [`RecoverError::Kafka`]
pub fn find_gaps(
    kafka: &kafka::Config,
    ledger: &str,
    since: Timestamp,
    now: Timestamp,
) -> Result<Vec<Gap>, RecoverError> {
    let mut received = Vec::new();
    wait_until_decided(kafka, &[ledger])?;
    read_to_end(kafka, ledger, since, |consumed| {
        // Transactions of commands do not show when callbacks were received.
        let command = consumed.key.as_deref().is_some_and(is_command);
        if let (false, Ok(commit)) = (command, Commit::decode(&consumed.value)) {
            received.push(commit.newest);
        }
        Ok::<_, RecoverError>(())
    })?;
    Ok(gaps_of(received, since, now))
}

fn gaps_of(mut received: Vec<Timestamp>, since: Timestamp, now: Timestamp) -> Vec<Gap> {
    received.retain(|time| (since..=now).contains(time));
    received.extend([since, now]);
    received.sort_unstable();
    let pairs = received.windows(2).map(|pair| Gap { begin: pair[0], end: pair[1] });
    pairs.filter(|gap| gap.length() > GAP_MIN).collect()
}

/// The time from the first of `gaps` to the last, widened by a margin; `None` when there is none.
#[must_use]
pub fn range_of(gaps: &[Gap], now: Timestamp) -> Option<TimeRange> {
    let begin = gaps.iter().map(|gap| gap.begin).min()?;
    let end = gaps.iter().map(|gap| gap.end).max()?;
    Some(TimeRange { since: begin.before(MARGIN_BEFORE), until: end.after(MARGIN_AFTER).min(now) })
}

/// The recorded `gaps` that end in the future: the clock was ahead when they were recorded.
#[must_use]
pub fn gaps_ahead(mut gaps: Vec<Gap>, now: Timestamp) -> Vec<Gap> {
    gaps.retain(|gap| gap.end > now);
    gaps
}

/// Whether a recovery of `range` that began at `now` includes the part of `gap` of which Tencent
/// has records. One of `ahead`, the [`gaps_ahead`] when it began, ends then. Any other that ends
/// later was recorded meanwhile, and its end was not queried.
#[must_use]
pub fn covers(range: TimeRange, gap: Gap, ahead: &[Gap], now: Timestamp) -> bool {
    let earliest = now.before(RECOVERABLE);
    let end = if ahead.contains(&gap) { now } else { gap.end };
    range.since <= gap.begin.max(earliest) && earliest < end && end <= range.until
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_covered_as_far_as_it_can_be_recovered_and_is_not_in_the_future() {
        let now = at(60);
        let range = TimeRange { since: at(0), until: now };
        let gap = |begin, end| Gap { begin: at(begin), end: at(end) };
        let ahead = gaps_ahead(vec![gap(0, 60), gap(10, 600)], now);
        let covered = |begin, end| covers(range, gap(begin, end), &ahead, now);
        assert!(covered(0, 60) && covered(10, 600), "ends within the range, or later than now");
        assert!(!covered(-1, 50), "began before the range");
        let earliest = TimeRange { since: now.before(RECOVERABLE), until: now };
        let old = gap(-1_000_000, 50);
        assert!(covers(earliest, old, &[], now), "nothing earlier can be recovered");
        assert!(!covers(TimeRange { until: at(40), ..earliest }, old, &[], now));
    }

    #[test]
    fn a_gap_that_ended_after_the_recovery_began_or_is_too_old_is_not_covered() {
        let now = at(60);
        let range = TimeRange { since: at(0), until: now };
        let gap = |begin, end| Gap { begin: at(begin), end: at(end) };
        for later in [gap(0, 65), gap(70, 90)] {
            assert!(!covers(range, later, &[gap(0, 600)], now), "{later:?}");
        }
        let earliest = TimeRange { since: now.before(RECOVERABLE), until: now };
        let too_old = gap(-1_000_000, -900_000);
        assert!(!covers(earliest, too_old, &[], now), "no record of it was there to be read");
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + minute * 60_000)
    }

    fn gap(received: &[i64], since: i64, now: i64) -> Option<(i64, i64)> {
        let received = received.iter().copied().map(at).collect();
        let minute = |time: Timestamp| (time.as_millis() - at(0).as_millis()) / 60_000;
        let found = range_of(&gaps_of(received, at(since), at(now)), at(now))?;
        Some((minute(found.since), minute(found.until)))
    }

    #[test]
    fn the_range_reaches_from_the_first_gap_to_the_last_with_a_margin() {
        let steady: Vec<i64> = (0..600).collect();
        assert_eq!(gap(&steady, 0, 600), None);
        let away: Vec<i64> = (0..300).chain(320..600).collect();
        assert_eq!(gap(&away, 0, 600), Some((269, 330)));
        let twice: Vec<i64> = (0..100).chain(111..300).chain(320..600).collect();
        assert_eq!(gap(&twice, 0, 600), Some((69, 330)));
        assert_eq!(gap(&twice, 105, 600), Some((269, 330)), "the first began before `since`");
        let short: Vec<i64> = (0..300).chain(309..600).collect();
        assert_eq!(gap(&short, 0, 600), None, "nine minutes lose nothing");
    }

    #[test]
    fn a_gap_that_lasts_ends_now_and_one_without_any_callback_begins_at_since() {
        let steady: Vec<i64> = (0..600).collect();
        assert_eq!(gap(&steady, 0, 620), Some((569, 620)));
        assert_eq!(gap(&[], 0, 60), Some((-30, 60)));
        let late: Vec<i64> = (30..60).collect();
        assert_eq!(gap(&late, 0, 60), Some((-30, 40)));
    }
}
