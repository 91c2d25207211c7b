//! Where in the ledger topic a new reader begins, so that it finds the ids of one dedup window.
//!
//! Records are found by their timestamps, which come from the system clock. A clock that was set
//! forward by more than the window would hide every record from before the jump, and a retry would
//! be published twice. The window is therefore counted in spans that contain records: a jump leaves
//! a gap without records, and gaps do not count. Neither do idle times; the reader then finds ids
//! that are older than the window, which does no harm.

use std::time::Duration;

use crate::event::Timestamp;

/// The number of spans in which the window is counted; a jump of the clock is noticed when it exceeds one.
const SPANS: u32 = 8;
/// Look-ups by time for one start. Eight find a window without a gap, and a gap of a year takes
/// about thirty more; each is one request to Kafka.
const LOOKUPS_MAX: u32 = 128;

/// The offset from which on records matter when the oldest record to publish was received at
/// `oldest`. The topic holds the offsets from `low` to before `high`; `offset_at` returns the first
/// offset with a timestamp at a time or later, or `None`.
///
/// # Errors
/// Those of `offset_at`.
pub fn first_offset<E>(
    window: Duration,
    oldest: Timestamp,
    (low, high): (i64, i64),
    mut offset_at: impl FnMut(Timestamp) -> Result<Option<i64>, E>,
) -> Result<i64, E> {
    let span = (window / SPANS).max(Duration::from_millis(1));
    let mut find = |time| Ok(offset_at(time)?.map_or(high, |offset| offset.clamp(low, high)));
    let (mut time, mut offset) = (oldest, find(oldest)?);
    let (mut width, mut narrowing, mut spans_left) = (span, false, SPANS);
    for _ in 0..LOOKUPS_MAX {
        if spans_left == 0 || offset == low || time.as_millis() <= 0 {
            break;
        }
        let earlier = time.before(width);
        let found = find(earlier)?;
        if found >= offset {
            // A gap: cross it in steps that double.
            if width == span && !narrowing {
                // The spans at both ends of a gap hold records in a part of them only.
                spans_left += 2;
            }
            time = earlier;
            width = if narrowing { (width / 2).max(span) } else { width * 2 };
        } else if width > span {
            // Its other end is within this step: find it by halving.
            narrowing = true;
            width = (width / 2).max(span);
        } else {
            (time, offset, narrowing) = (earlier, found, false);
            spans_left -= 1;
        }
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_hours(1);

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + minutes * 60_000)
    }

    /// The first offset for records at these `minutes`, and the number of look-ups.
    fn start(minutes: &[i64], oldest: i64) -> (i64, u32) {
        let high = i64::try_from(minutes.len()).unwrap();
        let mut lookups = 0;
        let offset = first_offset(WINDOW, at(oldest), (0, high), |time| {
            lookups += 1;
            let found = (0..).zip(minutes).find(|(_, minute)| at(**minute) >= time);
            Ok::<_, std::convert::Infallible>(found.map(|(offset, _)| offset))
        });
        (offset.unwrap(), lookups)
    }

    #[test]
    fn without_gaps_the_reader_begins_one_window_before_the_oldest_record() {
        let steady: Vec<i64> = (0..600).collect();
        assert_eq!(start(&steady, 599), (539, 9));
        assert_eq!(start(&steady, 300), (240, 9));
        assert_eq!(start(&steady[..30], 29).0, 0, "all there is");
        assert_eq!(start(&[], 0), (0, 1));
    }

    #[test]
    fn a_jump_of_the_clock_hides_no_record_of_the_window() {
        for jump in [30, 61, 24 * 60, 400 * 24 * 60] {
            // Ten minutes of records, the clock set forward, ten more; or the restart comes first.
            for after in [10, 1, 0] {
                let before = 0..600;
                let later = 600 + jump..600 + jump + after;
                let minutes: Vec<i64> = before.chain(later).collect();
                let (offset, lookups) = start(&minutes, 600 + jump + after);
                let wanted = 600 - (60 - after);
                assert!(offset <= wanted + 1, "jump {jump}, {after} after: {offset} > {wanted}");
                assert!(offset >= wanted - 31, "jump {jump}, {after} after: {offset}");
                assert!(lookups <= 44, "{lookups} look-ups");
            }
        }
    }

    #[test]
    fn a_clock_set_back_hides_no_record() {
        let minutes: Vec<i64> = (0..600).collect();
        assert_eq!(start(&minutes, 500).0, 440);
        assert_eq!(start(&minutes, -500).0, 0, "every record is newer than the clock");
    }

    #[test]
    fn sparse_records_are_each_found() {
        let minutes: Vec<i64> = (0..100).map(|hour| hour * 60).collect();
        let (offset, lookups) = start(&minutes, 99 * 60 + 30);
        assert!(offset <= 98, "{offset}");
        assert!(lookups <= LOOKUPS_MAX + 1, "{lookups}");
    }
}
