//! The decision, and simulations of writer and senders: what rates of commits and which answers
//! come of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// Microseconds of simulated time.
type Micros = u64;

/// Who sends when.
enum Senders {
    /// Records arrive at these times, whatever is answered.
    Open(Vec<Micros>),
    /// Each sender sends this long after its last answer.
    Closed(Vec<Micros>),
}

#[derive(Debug)]
struct Simulated {
    commits: usize,
    waits: usize,
    seconds: f64,
    /// From arrival to answer, sorted.
    latencies: Vec<Micros>,
    answered_by_sender: Vec<usize>,
}

impl Simulated {
    fn commits_per_second(&self) -> f64 {
        f64::from(u32::try_from(self.commits).unwrap()) / self.seconds
    }

    fn p50(&self) -> Micros {
        self.latencies[self.latencies.len() / 2]
    }
}

/// Simulates `end` microseconds in which every commit takes `commit`; `delays` as the writer does,
/// or commits what is queued at once.
fn simulate(senders: &Senders, commit: Micros, end: Micros, delays: bool) -> Simulated {
    let origin = Instant::now();
    let at = |micros: Micros| origin + Duration::from_micros(micros);
    let mut delay = CommitDelay::new(origin);
    // Arrivals to come and their senders.
    let mut arrivals: BinaryHeap<Reverse<(Micros, usize)>> = match senders {
        Senders::Open(times) => times.iter().map(|time| Reverse((*time, 0))).collect(),
        Senders::Closed(thinking) => {
            (0..).zip(thinking).map(|(sender, time)| Reverse((*time, sender))).collect()
        }
    };
    let (mut queued, mut now) = (Vec::new(), 0);
    let mut simulated = Simulated {
        commits: 0,
        waits: 0,
        seconds: f64::from(u32::try_from(end).unwrap()) / 1e6,
        latencies: Vec::new(),
        answered_by_sender: vec![0; 64],
    };
    let admit =
        |arrivals: &mut BinaryHeap<Reverse<(Micros, usize)>>, queued: &mut Vec<_>, now: Micros| {
            while let Some(&Reverse(arrival)) = arrivals.peek().filter(|next| next.0.0 <= now) {
                arrivals.pop();
                queued.push(arrival);
            }
        };
    while now < end {
        admit(&mut arrivals, &mut queued, now);
        if queued.is_empty() {
            let Some(Reverse((next, _))) = arrivals.peek() else { break };
            now = *next;
            continue;
        }
        let wait = if delays { delay.next_wait(at(now), queued.len()) } else { None };
        if let Some(Wait { count, until }) = wait {
            simulated.waits += 1;
            let before = queued.len();
            let until = Micros::try_from((until - origin).as_micros()).unwrap();
            while queued.len() < count && now < until {
                now = arrivals.peek().map_or(until, |next| next.0.0.min(until));
                admit(&mut arrivals, &mut queued, now);
            }
            delay.record_wait(queued.len() - before);
        }
        delay.record_start(at(now), queued.len());
        now += commit;
        let group = std::mem::take(&mut queued);
        admit(&mut arrivals, &mut queued, now);
        delay.record_end(queued.len());
        simulated.commits += 1;
        for (arrived, sender) in group {
            simulated.latencies.push(now - arrived);
            simulated.answered_by_sender[sender] += 1;
            if let Senders::Closed(thinking) = senders {
                arrivals.push(Reverse((now + thinking[sender], sender)));
            }
        }
    }
    simulated.latencies.sort_unstable();
    simulated
}

/// Arrivals of a Poisson process.
fn poisson(rate: u32, end: Micros) -> Senders {
    let mut random = fastrand::Rng::with_seed(7);
    let mut time = 0.0;
    let times = std::iter::from_fn(|| {
        time -= (1.0 - random.f64()).ln() * 1e6 / f64::from(rate);
        let micros = Duration::from_secs_f64(time / 1e6).as_micros();
        Some(Micros::try_from(micros).unwrap())
    });
    Senders::Open(times.take_while(|time| *time < end).collect())
}

const END: Micros = 3_000_000;

#[test]
fn the_interval_follows_the_rate_between_its_limits() {
    assert_eq!(interval(f64::NAN), None, "nothing is known");
    assert_eq!(interval(400.0), None, "no other record is expected in time");
    assert_eq!(interval(500.0), Some(INTERVAL_MAX));
    let between = interval(2000.0).unwrap();
    assert!(INTERVAL_MIN < between && between < INTERVAL_MAX, "{between:?}");
    assert_eq!(interval(10_000.0), Some(INTERVAL_MIN));
    assert_eq!(interval(f64::INFINITY), Some(INTERVAL_MIN));
}

#[test]
fn independent_senders_share_commits() {
    for commit in [120, 300, 600] {
        for (rate, commits_max) in [(1000, 500.0), (2000, 650.0), (5000, 850.0), (20_000, 850.0)] {
            let simulated = simulate(&poisson(rate, END), commit, END, true);
            let commits = simulated.commits_per_second();
            assert!(commits <= commits_max, "{rate}/s, {commit} µs: {commits} commits/s");
            let p50 = simulated.p50();
            assert!(p50 < 2000, "{rate}/s, {commit} µs: answered after {p50} µs");
        }
    }
}

#[test]
fn a_lone_sender_never_waits() {
    for thinking in [10, 100, 1000, 10_000] {
        let simulated = simulate(&Senders::Closed(vec![thinking]), 300, END, true);
        assert_eq!(simulated.waits, 0);
        assert_eq!(simulated.latencies.last(), Some(&300));
    }
}

#[test]
fn rare_records_do_not_wait() {
    let simulated = simulate(&poisson(100, END), 300, END, true);
    let waits = simulated.waits * 50;
    assert!(waits < simulated.commits, "{simulated:?}");
}

#[test]
fn a_few_senders_that_wait_for_each_answer_are_not_slowed_down() {
    for count in [2, 3, 4, 8] {
        for thinking in [20, 100, 400] {
            let senders = Senders::Closed((0..count).map(|extra| thinking + extra).collect());
            let at_once = simulate(&senders, 300, END, false).latencies.len();
            let delayed = simulate(&senders, 300, END, true).latencies.len();
            assert!(delayed * 100 >= at_once * 95, "{count}, {thinking} µs: {delayed}, {at_once}");
        }
    }
}

#[test]
fn a_quick_sender_hardly_waits_for_a_slow_one() {
    let senders = Senders::Closed(vec![50, 8000]);
    let at_once = simulate(&senders, 300, END, false).answered_by_sender;
    let delayed = simulate(&senders, 300, END, true).answered_by_sender;
    assert!(delayed[0] * 100 >= at_once[0] * 85, "{delayed:?}, {at_once:?}");
}

#[test]
fn a_sender_that_is_left_alone_waits_no_more_after_some_groups() {
    let mut delay = CommitDelay::new(Instant::now());
    let mut now = Instant::now();
    let mut waits = Vec::new();
    for group in 0..200 {
        let several = group < 50;
        let queued = if several { 10 } else { 1 };
        now += Duration::from_micros(50);
        if let Some(wait) = delay.next_wait(now, queued) {
            now = wait.until;
            delay.record_wait(0);
            waits.push(group);
        }
        delay.record_start(now, queued);
        now += Duration::from_micros(300);
        delay.record_end(if several { 10 } else { 0 });
    }
    assert!(waits.iter().filter(|group| **group >= 50).count() <= 6, "{waits:?}");
    assert!(waits.iter().all(|group| *group < 50 + REMEMBERED), "{waits:?}");
}

#[test]
fn a_burst_after_idle_time_soon_shares_commits() {
    let mut times: Vec<Micros> = vec![0, 5_000_000];
    times.extend((0..5000).map(|index| 5_000_000 + index * 200));
    let simulated = simulate(&Senders::Open(times), 300, 6_000_000, true);
    assert!(simulated.commits < 900, "{} commits in a second", simulated.commits);
}
