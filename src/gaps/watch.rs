//! Watches whether callbacks are accepted, and records gaps.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::write_last_accepting;
use super::{GAP_MIN, Gap, RECOVERABLE, read_last_accepting, record, recorded, remove};
use crate::event::Timestamp;
use crate::log_limit::LogLimiter;
use crate::metrics;
use crate::permission::FileError;

/// The interval between two checks of acceptance, and of recoveries by other processes.
const INTERVAL: Duration = Duration::from_secs(10);
/// The interval between two writes of the time, each with a sync. After a crash, a gap may seem
/// longer by as much.
const WRITE_INTERVAL: Duration = Duration::from_secs(30);
/// How long, by the monotonic clock, the wall clock must agree before a file is deleted because of
/// it: a wrong clock is noticed and corrected within a day.
const CLOCK_TRUSTED_AFTER: Duration = Duration::from_hours(24);

/// The thread that watches.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    /// Watches for the log in `dir`; `accepts` returns whether callbacks were accepted since its
    /// last call, or would be now.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(
        dir: PathBuf,
        mut accepts: impl FnMut() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        // Here, because on a busy machine the thread may run much later.
        let mut recorder = Recorder::new(dir, Timestamp::now());
        let mut checked = Instant::now();
        let thread = thread::Builder::new().name("gaps".into()).spawn(move || {
            loop {
                let elapsed = checked.elapsed();
                checked += elapsed;
                recorder.check(accepts(), elapsed, Timestamp::now());
                match stopped.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            // From now on it is a gap, so the time is written in any case.
            recorder.written = WRITE_INTERVAL;
            recorder.check(accepts(), checked.elapsed(), Timestamp::now());
        })?;
        Ok(Self { stop, thread })
    }

    /// Writes the time; called when no more callbacks are accepted.
    pub(crate) fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that watches for gaps panicked");
        }
    }
}

#[derive(Debug)]
struct Recorder {
    dir: PathBuf,
    /// How long nothing was accepted, by the monotonic clock: the wall clock can be set.
    not_accepting: Duration,
    /// How long ago the time was written.
    written: Duration,
    /// A gap that could not be recorded yet.
    unrecorded: Option<Gap>,
    /// The time that an earlier process wrote, while the clock is before it.
    ahead_of_clock: Option<AheadOfClock>,
    /// For how long each gap has been too old to be recovered, by the clock.
    too_old: BTreeMap<Gap, Duration>,
}

/// A time in `last-accepting` that is later than the clock of this process. Either this clock is
/// behind, and a gap shows when it is corrected, or the clock of the earlier process was ahead.
/// Until that is known, the time is not overwritten.
#[derive(Debug)]
struct AheadOfClock {
    last: Timestamp,
    /// How long this process has run.
    running: Duration,
    /// How long ago this process first accepted.
    accepting: Option<Duration>,
}

impl Recorder {
    fn new(dir: PathBuf, now: Timestamp) -> Self {
        // Before the first start there is no gap.
        let last = read_last_accepting(&dir);
        let ahead_of_clock = last.filter(|last| now < *last).map(|last| {
            tracing::warn!(
                %now, last_accepting = %last,
                "callbacks were last accepted at a time that is in the future: the clock is behind, or \
                 was ahead; a gap before this start is recorded when the clock is corrected"
            );
            AheadOfClock { last, running: Duration::ZERO, accepting: None }
        });
        Self {
            dir,
            not_accepting: last.map_or(Duration::ZERO, |last| now.since(last)),
            written: WRITE_INTERVAL,
            unrecorded: None,
            ahead_of_clock,
            too_old: BTreeMap::new(),
        }
    }

    /// Checks for a gap, `elapsed` after the last check, and writes the files.
    fn check(&mut self, accepting: bool, elapsed: Duration, now: Timestamp) {
        static LIMIT: LogLimiter = LogLimiter::new();
        self.not_accepting += elapsed;
        self.written += elapsed;
        self.compare_with_clock(accepting, elapsed, now);
        if accepting {
            self.add(Gap { begin: now.before(self.not_accepting), end: now });
            self.not_accepting = Duration::ZERO;
        }
        let written = self.write(accepting, now).and_then(|()| self.expire(elapsed, now));
        if let Err(error) = written
            && let Some(suppressed) = LIMIT.permit()
        {
            tracing::warn!(
                %error, suppressed,
                "cannot write last-accepting or gaps/; the next start may record this time as a gap"
            );
        }
        metrics::gap_not_recovered(self.not_recovered());
    }

    /// Finds the gap before this process once the clock has reached the time that an earlier
    /// process wrote. If that does not happen within a day, the earlier clock was ahead.
    fn compare_with_clock(&mut self, accepting: bool, elapsed: Duration, now: Timestamp) {
        let Some(ahead) = &mut self.ahead_of_clock else { return };
        ahead.running += elapsed;
        ahead.accepting = ahead.accepting.map(|since| since + elapsed);
        if now >= ahead.last {
            let (last, accepting) = (ahead.last, ahead.accepting);
            self.ahead_of_clock = None;
            if let Some(since) = accepting {
                self.add(Gap { begin: last, end: now.before(since) });
            } else {
                self.not_accepting = self.not_accepting.max(now.since(last));
            }
        } else if ahead.running >= CLOCK_TRUSTED_AFTER {
            self.ahead_of_clock = None;
        } else if accepting {
            ahead.accepting.get_or_insert(Duration::ZERO);
        }
    }

    /// Adds a gap to be recorded, if it was longer than Tencent's retries.
    fn add(&mut self, gap: Gap) {
        if gap.length() <= GAP_MIN {
            return;
        }
        tracing::warn!(
            begin = %gap.begin,
            end = %gap.end,
            "no callback was accepted for longer than Tencent retries, so that events may be \
             missing; `livebridge recover --gap --yes` publishes them"
        );
        // An earlier gap that could not be recorded is merged with this one.
        let earlier = self.unrecorded.unwrap_or(gap);
        let (begin, end) = (gap.begin.min(earlier.begin), gap.end.max(earlier.end));
        self.unrecorded = Some(Gap { begin, end });
    }

    /// Writes the gap first: if that fails, the old time remains, by which the next start finds it.
    fn write(&mut self, accepting: bool, now: Timestamp) -> Result<(), FileError> {
        if let Some(gap) = self.unrecorded {
            record(&self.dir, gap)?;
            self.unrecorded = None;
            self.written = WRITE_INTERVAL;
        }
        if accepting && self.ahead_of_clock.is_none() && self.written >= WRITE_INTERVAL {
            write_last_accepting(&self.dir, now)?;
            self.written = Duration::ZERO;
        }
        Ok(())
    }

    /// Removes gaps of which Tencent Cloud no longer has records, once the clock has agreed for a
    /// day: a clock that is set forward for a short time removes nothing.
    fn expire(&mut self, elapsed: Duration, now: Timestamp) -> Result<(), FileError> {
        let mut known = recorded(&self.dir)?;
        known.retain(|gap| now.since(gap.end) > RECOVERABLE);
        let before = std::mem::take(&mut self.too_old);
        let age = |gap| before.get(&gap).map_or(Duration::ZERO, |age| *age + elapsed);
        self.too_old = known.into_iter().map(|gap| (gap, age(gap))).collect();
        let is_expired =
            |gap| self.too_old.get(&gap).is_some_and(|age| *age >= CLOCK_TRUSTED_AFTER);
        for gap in remove(&self.dir, is_expired)? {
            tracing::error!(
                begin = %gap.begin,
                end = %gap.end,
                "a gap was not recovered in time: Tencent Cloud no longer has records of it"
            );
        }
        Ok(())
    }

    /// The length of all gaps, including the current one.
    fn not_recovered(&self) -> Duration {
        let known = recorded(&self.dir).unwrap_or_default();
        let lengths = known.into_iter().chain(self.unrecorded).map(Gap::length);
        let current = Some(self.not_accepting).filter(|length| *length > GAP_MIN);
        lengths.chain(current).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::gaps::{GAPS, LAST_ACCEPTING, all};

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_mins(1);

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + minute * 60_000)
    }

    fn gap(begin: i64, end: i64) -> Gap {
        Gap { begin: at(begin), end: at(end) }
    }

    /// A recorder that has accepted until minute 0.
    fn recorder(dir: &tempfile::TempDir) -> Recorder {
        let mut recorder = Recorder::new(dir.path().to_owned(), at(0));
        recorder.check(true, Duration::ZERO, at(0));
        recorder
    }

    #[test]
    fn a_first_start_and_a_short_stop_are_no_gap_and_a_long_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(&dir);
        assert_eq!(recorder.not_recovered(), Duration::ZERO);
        assert_eq!(recorded(dir.path()).unwrap(), []);
        let mut short = Recorder::new(dir.path().to_owned(), at(10));
        short.check(true, Duration::ZERO, at(10));
        assert_eq!(short.not_recovered(), Duration::ZERO);
        let mut long = Recorder::new(dir.path().to_owned(), at(30));
        long.check(false, Duration::ZERO, at(30));
        assert_eq!(long.not_recovered(), MINUTE * 20, "not accepting yet");
        assert_eq!(recorded(dir.path()).unwrap(), []);
        long.check(true, MINUTE, at(31));
        assert_eq!(long.not_recovered(), MINUTE * 21);
        assert_eq!(recorded(dir.path()).unwrap(), [gap(10, 31)]);
        let again = Recorder::new(dir.path().to_owned(), at(32));
        assert_eq!(again.not_recovered(), MINUTE * 21, "it survives a restart");
        remove(dir.path(), |_| true).unwrap();
        assert_eq!(again.not_recovered(), Duration::ZERO, "another process has recovered it");
    }

    #[test]
    fn a_time_of_rejections_is_a_gap_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        // The clock jumps forward by a day, and back.
        recorder.check(true, MINUTE, at(24 * 60));
        recorder.check(false, MINUTE, at(2));
        assert_eq!(recorder.not_recovered(), Duration::ZERO);
        for minute in 3..20 {
            recorder.check(false, MINUTE, at(minute));
        }
        assert_eq!(recorder.not_recovered(), MINUTE * 18, "while it lasts");
        recorder.check(true, MINUTE, at(20));
        assert_eq!(recorded(dir.path()).unwrap(), [gap(1, 20)]);
        for minute in 21..50 {
            recorder.check(minute % 10 == 0, MINUTE, at(minute));
        }
        assert_eq!(recorded(dir.path()).unwrap(), [gap(1, 20)], "ten minutes lose nothing");
    }

    #[test]
    fn the_time_is_written_twice_a_minute_while_callbacks_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        let path = dir.path().join(LAST_ACCEPTING);
        fs::remove_file(&path).unwrap();
        for seconds in [10, 20, 29] {
            recorder.check(true, SECOND * 9, at(0).after(SECOND * seconds));
            assert!(!path.exists());
        }
        recorder.check(false, SECOND * 9, at(0).after(SECOND * 38));
        assert!(!path.exists());
        recorder.check(true, SECOND * 9, at(0).after(SECOND * 47));
        assert_eq!(read_last_accepting(dir.path()), Some(at(0).after(SECOND * 47)));
    }

    #[test]
    fn a_gap_that_cannot_be_written_counts_and_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        let gaps = dir.path().join(GAPS);
        fs::write(&gaps, "in the way").unwrap();
        recorder.check(true, MINUTE * 20, at(20));
        recorder.check(true, MINUTE, at(21));
        assert_eq!(recorder.not_recovered(), MINUTE * 20);
        assert_eq!(read_last_accepting(dir.path()), Some(at(0)), "for the next start to find it");
        fs::remove_file(&gaps).unwrap();
        recorder.check(true, MINUTE, at(22));
        assert_eq!(all(dir.path(), at(22)).unwrap(), [gap(0, 20)]);
        assert_eq!(recorder.not_recovered(), MINUTE * 20);
    }

    const EXPIRED: i64 = 21 + 14 * 24 * 60;

    #[test]
    fn a_gap_is_removed_when_it_has_been_too_old_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        recorder.check(true, MINUTE * 20, at(20));
        recorder.check(true, MINUTE, at(EXPIRED - 1));
        assert_eq!(recorder.not_recovered(), MINUTE * 20);
        for minute in 0..24 * 60 {
            recorder.check(true, MINUTE, at(EXPIRED + minute));
            assert_eq!(recorder.not_recovered(), MINUTE * 20, "minute {minute}");
        }
        recorder.check(true, MINUTE, at(EXPIRED + 24 * 60));
        assert_eq!(recorder.not_recovered(), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_is_set_forward_and_back_removes_no_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        recorder.check(true, MINUTE * 20, at(20));
        for _ in 0..5 {
            recorder.check(true, SECOND * 10, at(EXPIRED + 24 * 60));
        }
        recorder.check(true, SECOND * 10, at(21));
        assert_eq!(recorded(dir.path()).unwrap(), [gap(0, 20)]);
        // What counts is one time without interruption.
        for day in 0..10 {
            recorder.check(true, MINUTE, at(EXPIRED + day));
            recorder.check(true, MINUTE * 9, at(EXPIRED + day));
            recorder.check(true, MINUTE, at(22));
        }
        assert_eq!(recorded(dir.path()).unwrap(), [gap(0, 20)]);
    }

    #[test]
    fn a_start_with_a_clock_that_is_behind_finds_the_gap_when_the_clock_is_corrected() {
        let dir = tempfile::tempdir().unwrap();
        recorder(&dir).check(true, MINUTE, at(100));
        let mut behind = Recorder::new(dir.path().to_owned(), at(50));
        behind.check(true, Duration::ZERO, at(50));
        behind.check(true, MINUTE, at(51));
        assert_eq!(read_last_accepting(dir.path()), Some(at(100)), "for the next start");
        let mut again = Recorder::new(dir.path().to_owned(), at(52));
        for minute in 0..=4 {
            again.check(true, if minute == 0 { Duration::ZERO } else { MINUTE }, at(52 + minute));
        }
        again.check(true, MINUTE, at(200));
        assert_eq!(recorded(dir.path()).unwrap(), [gap(100, 195)]);
        assert_eq!(read_last_accepting(dir.path()), Some(at(200)));

        remove(dir.path(), |_| true).unwrap();
        let mut rejecting = Recorder::new(dir.path().to_owned(), at(150));
        rejecting.check(false, Duration::ZERO, at(150));
        rejecting.check(false, MINUTE, at(230));
        assert_eq!(rejecting.not_recovered(), MINUTE * 30, "while it lasts");
        rejecting.check(true, MINUTE, at(231));
        assert_eq!(recorded(dir.path()).unwrap(), [gap(200, 231)]);
    }

    #[test]
    fn a_time_from_a_clock_that_was_ahead_is_no_gap_and_is_replaced_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        recorder(&dir).check(true, MINUTE, at(100));
        let mut right = Recorder::new(dir.path().to_owned(), at(80));
        for minute in 80..120 {
            right.check(true, if minute == 80 { Duration::ZERO } else { MINUTE }, at(minute));
        }
        assert_eq!(recorded(dir.path()).unwrap(), []);
        assert_eq!(read_last_accepting(dir.path()), Some(at(119)));

        write_last_accepting(dir.path(), at(1_000_000)).unwrap();
        let mut far = Recorder::new(dir.path().to_owned(), at(0));
        far.check(true, MINUTE, at(1));
        far.check(true, MINUTE * (24 * 60 - 2), at(24 * 60 - 1));
        assert_eq!(read_last_accepting(dir.path()), Some(at(1_000_000)));
        far.check(true, MINUTE, at(24 * 60));
        assert_eq!(read_last_accepting(dir.path()), Some(at(24 * 60)));
    }
}
