//! Distinguishes a second process with the same `kafka.instance` from a transaction that timed out:
//! Kafka fences the producer in both cases.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Fenced twice within this time, this instance shares its name with a running process: an
/// instance publishes, and so fences the other, as soon as it has something to publish.
const SAME_NAME_WITHIN: Duration = Duration::from_mins(1);
/// Two processes with little to publish fence each other less often: [`REPEATED_MIN`] fences within
/// this time are reported as probably caused by a second process.
const REPEATED_WITHIN: Duration = Duration::from_hours(6);
const REPEATED_MIN: usize = 3;

/// When this instance was fenced.
#[derive(Debug, Default)]
pub(super) struct Fences(VecDeque<Instant>);

/// What a fence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// It may have been a time-out.
    Single,
    /// It happened so often within hours that another process probably has this name.
    Repeated(usize),
    /// Another process has this name.
    SameName,
}

impl Fences {
    /// This instance was fenced at `now`. `late`: its transaction had been open for as long as Kafka
    /// allows, so that Kafka may have ended it.
    pub(super) fn record(&mut self, now: Instant, late: bool) -> Fence {
        self.0.retain(|fence| now.duration_since(*fence) < REPEATED_WITHIN);
        if late {
            return Fence::Single;
        }
        let again = self.0.back().is_some_and(|last| now.duration_since(*last) < SAME_NAME_WITHIN);
        self.0.push_back(now);
        match self.0.len() {
            _ if again => Fence::SameName,
            count if count >= REPEATED_MIN => Fence::Repeated(count),
            _ => Fence::Single,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fences(minutes: &[u64], late: bool) -> Vec<Fence> {
        let (mut fences, start) = (Fences::default(), Instant::now());
        let at = |minute: &u64| start + Duration::from_secs(minute * 60);
        minutes.iter().map(|minute| fences.record(at(minute), late)).collect()
    }

    #[test]
    fn two_fences_within_a_minute_mean_that_another_process_has_the_name() {
        assert_eq!(fences(&[0, 0], false), [Fence::Single, Fence::SameName]);
        assert_eq!(fences(&[0, 2], false), [Fence::Single, Fence::Single]);
    }

    #[test]
    fn both_limits_are_exact_to_the_minute() {
        let minute = SAME_NAME_WITHIN.as_secs() / 60;
        assert_eq!(fences(&[0, minute], false), [Fence::Single, Fence::Single]);
        let span = REPEATED_WITHIN.as_secs() / 60;
        let remembered = [Fence::Single, Fence::Single, Fence::Repeated(3)];
        assert_eq!(fences(&[0, 100, span - 1], false), remembered);
        assert_eq!(fences(&[0, 100, span], false), [Fence::Single; 3]);
    }

    #[test]
    fn fences_hours_apart_are_named_from_the_third_on() {
        let repeated = [Fence::Single, Fence::Single, Fence::Repeated(3), Fence::Repeated(4)];
        assert_eq!(fences(&[0, 90, 180, 270], false), repeated);
        assert_eq!(fences(&[0, 300, 600, 900], false), [Fence::Single; 4], "too rare to tell");
    }

    #[test]
    fn a_transaction_that_timed_out_is_no_sign_of_another_process() {
        assert_eq!(fences(&[0, 0, 1, 1, 2, 2], true), [Fence::Single; 6]);
    }
}
