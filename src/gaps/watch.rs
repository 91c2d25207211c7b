//! Watches whether callbacks are accepted, and records gaps.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::write_last_accepting;
use super::{GAP_MIN, Gap, GapsError, RECOVERABLE, read_last_accepting, record, recorded, remove};
use crate::event::Timestamp;
use crate::log_limit::LogLimiter;
use crate::metrics;

/// How often acceptance is looked at. A recovery by another process is seen as late as that.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often the time is written: it is synced, and a gap may seem longer by as much after a crash.
const WRITE_INTERVAL: Duration = Duration::from_secs(30);

/// The thread that watches.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    /// Watches for the log in `dir`; `accepts` tells whether callbacks were accepted since it was
    /// called last, or would be now.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(
        dir: PathBuf,
        mut accepts: impl FnMut() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("gaps".into()).spawn(move || {
            let mut recorder = Recorder::new(dir, Timestamp::now());
            let mut looked = Instant::now();
            loop {
                let elapsed = looked.elapsed();
                looked += elapsed;
                recorder.look(accepts(), elapsed, Timestamp::now());
                match stopped.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            // What happens from now on is a gap.
            recorder.written = WRITE_INTERVAL;
            recorder.look(accepts(), looked.elapsed(), Timestamp::now());
        })?;
        Ok(Self { stop, thread })
    }

    /// Notes the time, when no more callbacks are accepted.
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
    /// Since when nothing was accepted. Not a difference of two times of the clock, which can be set.
    not_accepting: Duration,
    /// How long ago the time was written.
    written: Duration,
    /// A gap that could not be recorded yet.
    unrecorded: Option<Gap>,
}

impl Recorder {
    fn new(dir: PathBuf, now: Timestamp) -> Self {
        // A first start is no gap.
        let last = read_last_accepting(&dir);
        let not_accepting = last.map_or(Duration::ZERO, |last| now.since(last));
        Self { dir, not_accepting, written: WRITE_INTERVAL, unrecorded: None }
    }

    /// Looks, `elapsed` after the last time.
    fn look(&mut self, accepting: bool, elapsed: Duration, now: Timestamp) {
        static LIMIT: LogLimiter = LogLimiter::new();
        self.not_accepting += elapsed;
        self.written += elapsed;
        if accepting {
            let gap = Gap { begin: now.before(self.not_accepting), end: now };
            if gap.length() > GAP_MIN {
                tracing::warn!(
                    begin = %gap.begin,
                    end = %gap.end,
                    "no callback was accepted for longer than Tencent retries, so that events may be \
                     missing; `livebridge recover --gap --yes` publishes them"
                );
                // Only one that cannot be written is followed by another one.
                let begin = self.unrecorded.map_or(gap.begin, |earlier| earlier.begin);
                self.unrecorded = Some(Gap { begin, end: gap.end });
            }
            self.not_accepting = Duration::ZERO;
        }
        if let Err(error) = self.write(accepting, now)
            && let Some(suppressed) = LIMIT.permit()
        {
            tracing::warn!(
                %error, suppressed,
                "cannot note when callbacks were accepted; a later start may take this time for a gap"
            );
        }
        metrics::gap_not_recovered(self.not_recovered());
    }

    /// The gap first: without its file, the next start finds it by the time.
    fn write(&mut self, accepting: bool, now: Timestamp) -> Result<(), GapsError> {
        if let Some(gap) = self.unrecorded {
            record(&self.dir, gap)?;
            self.unrecorded = None;
            self.written = WRITE_INTERVAL;
        }
        if accepting && self.written >= WRITE_INTERVAL {
            write_last_accepting(&self.dir, now)?;
            self.written = Duration::ZERO;
        }
        let expired = remove(&self.dir, |gap| now.since(gap.end) > RECOVERABLE)?;
        for gap in expired {
            tracing::error!(
                begin = %gap.begin,
                end = %gap.end,
                "a gap was not recovered in time: Tencent Cloud has no records of it any more"
            );
        }
        Ok(())
    }

    /// The length of all gaps, with the one that lasts.
    fn not_recovered(&self) -> Duration {
        let known = recorded(&self.dir).unwrap_or_default();
        let lengths = known.into_iter().chain(self.unrecorded).map(Gap::length);
        let lasting = Some(self.not_accepting).filter(|length| *length > GAP_MIN);
        lengths.chain(lasting).sum()
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
        recorder.look(true, Duration::ZERO, at(0));
        recorder
    }

    #[test]
    fn a_first_start_and_a_short_stop_are_no_gap_and_a_long_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(&dir);
        assert_eq!(recorder.not_recovered(), Duration::ZERO);
        assert_eq!(recorded(dir.path()).unwrap(), []);
        let mut short = Recorder::new(dir.path().to_owned(), at(10));
        short.look(true, Duration::ZERO, at(10));
        assert_eq!(short.not_recovered(), Duration::ZERO);
        let mut long = Recorder::new(dir.path().to_owned(), at(30));
        long.look(false, Duration::ZERO, at(30));
        assert_eq!(long.not_recovered(), MINUTE * 20, "not accepting yet");
        assert_eq!(recorded(dir.path()).unwrap(), []);
        long.look(true, MINUTE, at(31));
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
        recorder.look(true, MINUTE, at(24 * 60));
        recorder.look(false, MINUTE, at(2));
        assert_eq!(recorder.not_recovered(), Duration::ZERO);
        for minute in 3..20 {
            recorder.look(false, MINUTE, at(minute));
        }
        assert_eq!(recorder.not_recovered(), MINUTE * 18, "while it lasts");
        recorder.look(true, MINUTE, at(20));
        assert_eq!(recorded(dir.path()).unwrap(), [gap(1, 20)]);
        for minute in 21..50 {
            recorder.look(minute % 10 == 0, MINUTE, at(minute));
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
            recorder.look(true, SECOND * 9, at(0).after(SECOND * seconds));
            assert!(!path.exists());
        }
        recorder.look(false, SECOND * 9, at(0).after(SECOND * 38));
        assert!(!path.exists());
        recorder.look(true, SECOND * 9, at(0).after(SECOND * 47));
        assert_eq!(read_last_accepting(dir.path()), Some(at(0).after(SECOND * 47)));
    }

    #[test]
    fn a_gap_that_cannot_be_written_counts_and_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        let gaps = dir.path().join(GAPS);
        fs::write(&gaps, "in the way").unwrap();
        recorder.look(true, MINUTE * 20, at(20));
        recorder.look(true, MINUTE, at(21));
        assert_eq!(recorder.not_recovered(), MINUTE * 20);
        assert_eq!(read_last_accepting(dir.path()), Some(at(0)), "for the next start to find it");
        fs::remove_file(&gaps).unwrap();
        recorder.look(true, MINUTE, at(22));
        assert_eq!(all(dir.path(), at(22)).unwrap(), [gap(0, 20)]);
        assert_eq!(recorder.not_recovered(), MINUTE * 20);
    }

    #[test]
    fn a_gap_of_which_there_are_no_records_any_more_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = recorder(&dir);
        recorder.look(true, MINUTE * 20, at(20));
        recorder.look(true, MINUTE, at(20 + 14 * 24 * 60));
        assert_eq!(recorder.not_recovered(), MINUTE * 20);
        recorder.look(true, MINUTE, at(21 + 14 * 24 * 60));
        assert_eq!(recorder.not_recovered(), Duration::ZERO);
    }
}
