//! The load: keep-alive connections, each with one request in flight, in a closed or an open loop.
//!
//! Closed: a connection sends its next callback when the last is answered, so the server determines
//! the rate. Open: callbacks are due at a fixed rate that does not depend on the server, any free
//! connection sends the next due one, and its latency counts from its due time. A stalling server
//! is thus charged for every callback that had to wait, not for one request per connection.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Fallible;
use super::histogram::Histogram;
use super::process;
use super::request::{self, Answer, Request, parse_answer};

/// How long responses (and overdue requests of the open loop) are awaited after the end.
const GRACE: Duration = Duration::from_secs(10);

/// The pacer's shortest sleep: shorter ones use a whole core and are not more accurate than the
/// timer slack.
const PACER_TICK: Duration = Duration::from_micros(50);

/// One load to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) connections: u32,
    pub(crate) threads: u32,
    /// Runs before the measured time and counts only in `accepted`.
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    /// Callbacks per second of the open loop; `None` is the closed loop.
    pub(crate) rate: Option<u32>,
    /// Makes the events distinct from those of other loads against the same server.
    pub(crate) run: u32,
    /// When the events happened, in seconds: a load with the same `run` and time repeats them.
    pub(crate) time: u64,
    /// Callbacks of each connection, at most.
    pub(crate) each_max: u64,
    /// Whether [`Seen::sent`] is to be kept.
    pub(crate) trace: bool,
}

impl Plan {
    /// A closed loop on one thread without a warm-up; the caller sets the duration.
    pub(crate) fn closed(address: SocketAddr, connections: u32, run: u32) -> Self {
        Self {
            address,
            connections,
            threads: 1,
            warm_up: Duration::ZERO,
            duration: Duration::ZERO,
            rate: None,
            run,
            time: request::seconds_now(),
            each_max: u64::MAX,
            trace: false,
        }
    }
}

/// The results of a load.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Callbacks answered 200, including the warm-up.
    pub(crate) accepted: u64,
    /// Callbacks answered 200 within the measured time.
    pub(crate) measured: u64,
    pub(crate) latency: Histogram,
    /// When each accepted callback of the measured time was due or sent, by its sequence number;
    /// empty unless requested.
    pub(crate) sent: Vec<(u64, Instant)>,
    /// Everything that was not a 200, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Callbacks of the open loop that were due and not sent because no connection was free.
    pub(crate) unsent: u64,
    /// CPU time of the load's own threads.
    pub(crate) cpu: Duration,
    /// From the first callback to the last response.
    pub(crate) elapsed: Duration,
}

impl Seen {
    fn new() -> Self {
        Self {
            accepted: 0,
            measured: 0,
            latency: Histogram::new(),
            sent: Vec::new(),
            errors: BTreeMap::new(),
            unsent: 0,
            cpu: Duration::ZERO,
            elapsed: Duration::ZERO,
        }
    }

    fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.measured += other.measured;
        self.latency.merge(&other.latency);
        self.sent.extend(other.sent);
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
        self.unsent += other.unsent;
        self.cpu += other.cpu;
    }

    fn fail(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }
}

/// The points in time of a load.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    measure: Instant,
    end: Instant,
}

impl Clock {
    fn start(plan: &Plan) -> Self {
        let start = Instant::now();
        let measure = start + plan.warm_up;
        Self { start, measure, end: measure + plan.duration }
    }

    fn measures(&self, at: Instant) -> bool {
        at >= self.measure && at < self.end
    }
}

/// Runs a load to its end.
///
/// # Errors
/// When the connections cannot be opened. Later failures are counted in [`Seen::errors`].
pub(crate) fn run(plan: &Plan) -> Fallible<Seen> {
    let mut shares: Vec<Vec<(u32, std::net::TcpStream)>> = Vec::new();
    shares.resize_with(plan.threads.clamp(1, plan.connections) as usize, Vec::new);
    let threads = shares.len();
    for (slot, connection) in (0..plan.connections).enumerate() {
        let stream = std::net::TcpStream::connect(plan.address)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        shares[slot % threads].push((connection, stream));
    }
    let clock = Clock::start(plan);
    let schedule = plan.rate.map(|rate| Arc::new(Schedule::new(rate, clock.start)));
    let pacer = schedule.clone().map(|schedule| {
        let waiting = plan.connections as usize;
        thread::spawn(move || schedule.pace(clock.end, waiting))
    });
    let load: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let (plan, schedule) = (plan.clone(), schedule.clone());
            thread::spawn(move || run_share(&plan, clock, schedule.as_ref(), share))
        })
        .collect();
    let mut seen = Seen::new();
    for thread in load {
        seen.merge(thread.join().map_err(|_| "a load thread panicked")??);
    }
    seen.elapsed = clock.start.elapsed();
    if let (Some(schedule), Some(pacer)) = (schedule, pacer) {
        seen.cpu += pacer.join().map_err(|_| "the pacer panicked")?;
        seen.unsent = schedule.unsent();
    }
    Ok(seen)
}

/// One thread's connections on their own runtime.
fn run_share(
    plan: &Plan,
    clock: Clock,
    schedule: Option<&Arc<Schedule>>,
    share: Vec<(u32, std::net::TcpStream)>,
) -> io::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = Arc::new(Mutex::new(Seen::new()));
    runtime.block_on(async {
        let mut callers = JoinSet::new();
        for (connection, stream) in share {
            let caller = Caller {
                connection: Connection {
                    stream: TcpStream::from_std(stream)?,
                    answer: Vec::with_capacity(1024),
                },
                request: Request::of(&plan.address.to_string(), plan.run, connection, plan.time),
                address: plan.address,
                clock,
                schedule: schedule.cloned(),
                each_max: plan.each_max,
                trace: plan.trace,
                seen: Arc::clone(&seen),
            };
            callers.spawn(caller.run());
        }
        callers.join_all().await;
        io::Result::Ok(())
    })?;
    let mut seen = Arc::into_inner(seen)
        .and_then(|seen| seen.into_inner().ok())
        .ok_or_else(|| io::Error::other("a connection still counts"))?;
    seen.cpu = process::thread_cpu_time()?;
    Ok(seen)
}

/// Due times of the open loop, shared by all connections.
#[derive(Debug)]
struct Schedule {
    rate: u64,
    start: Instant,
    /// One permit per due callback.
    due: Semaphore,
    /// Callbacks sent so far; the number is also the index in the schedule.
    taken: AtomicU64,
    /// The total number of callbacks, known at the end of the time.
    total: AtomicU64,
}

impl Schedule {
    fn new(rate: u32, start: Instant) -> Self {
        Self {
            rate: u64::from(rate.max(1)),
            start,
            due: Semaphore::new(0),
            taken: AtomicU64::new(0),
            total: AtomicU64::new(u64::MAX),
        }
    }

    /// Releases callbacks as they become due; at the end one more permit per connection, so that
    /// each stops. Returns the CPU time that this took.
    fn pace(&self, end: Instant, connections: usize) -> Duration {
        let mut released = 0;
        loop {
            let now = Instant::now().min(end);
            let elapsed = now.saturating_duration_since(self.start).as_nanos();
            let due = elapsed * u128::from(self.rate) / 1_000_000_000;
            let due = u64::try_from(due).unwrap_or(u64::MAX);
            self.due.add_permits(usize::try_from(due - released).unwrap_or(0));
            released = due;
            if now == end {
                break;
            }
            let next = self.due_at(released + 1);
            thread::sleep(next.saturating_duration_since(now).max(PACER_TICK));
        }
        self.total.store(released, Ordering::Release);
        self.due.add_permits(connections);
        process::thread_cpu_time().unwrap_or_default()
    }

    /// The due time of the callback with index `place` (from 1).
    fn due_at(&self, place: u64) -> Instant {
        let nanos = u128::from(place) * 1_000_000_000 / u128::from(self.rate);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Waits for a due callback and returns its due time; `None` at the end of the time.
    async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let place = self.taken.fetch_add(1, Ordering::AcqRel) + 1;
        (place <= self.total.load(Ordering::Acquire)).then(|| self.due_at(place))
    }

    fn unsent(&self) -> u64 {
        let total = self.total.load(Ordering::Acquire);
        total.saturating_sub(self.taken.load(Ordering::Acquire))
    }
}

/// One connection and its requests.
struct Caller {
    connection: Connection,
    request: Request,
    address: SocketAddr,
    clock: Clock,
    schedule: Option<Arc<Schedule>>,
    each_max: u64,
    trace: bool,
    seen: Arc<Mutex<Seen>>,
}

impl Caller {
    async fn run(mut self) {
        let deadline = (self.clock.end + GRACE).into();
        if tokio::time::timeout_at(deadline, self.call_until_end()).await.is_err() {
            self.count(|seen| seen.fail("no answer in time".into()));
        }
    }

    async fn call_until_end(&mut self) {
        let mut last_answer = Instant::now();
        for number in 0..self.each_max {
            // On a busy machine a connection may begin late; each sends at least one.
            let is_first = number == 0;
            let from = match &self.schedule {
                None if is_first || last_answer < self.clock.end => last_answer,
                None => return,
                Some(schedule) => match schedule.next().await {
                    Some(due) => due,
                    None => return,
                },
            };
            let outcome = self.connection.exchange(self.request.next()).await;
            last_answer = Instant::now();
            match outcome {
                Ok(200) => self.count_accepted(from, last_answer),
                Ok(status) => self.fail(format!("status {status}")).await,
                Err(cause) => self.fail(cause.to_string()).await,
            }
        }
    }

    /// The rate counts responses that arrive in the measured time, and so do the closed loop's
    /// latencies. The open loop's latencies are those of the callbacks due in that time, however
    /// late the response.
    fn count_accepted(&self, from: Instant, answered: Instant) {
        let clock = self.clock;
        let stamp = if self.schedule.is_some() { from } else { answered };
        let sent = (self.trace && clock.measures(stamp)).then(|| (self.request.sequence(), from));
        self.count(|seen| {
            seen.sent.extend(sent);
            seen.accepted += 1;
            seen.measured += u64::from(clock.measures(answered));
            if clock.measures(stamp) {
                seen.latency.record(answered.saturating_duration_since(from));
            }
        });
    }

    /// Counts the error and continues on a new connection, because the old one may contain the rest
    /// of a response or be closed.
    async fn fail(&mut self, what: String) {
        self.count(|seen| seen.fail(what));
        match TcpStream::connect(self.address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                self.connection.stream = stream;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }

    fn count(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    /// Sends a request and reads its response; returns the status.
    async fn exchange(&mut self, mut request: &[u8]) -> io::Result<u16> {
        while !request.is_empty() {
            let stream = &mut self.stream;
            let written = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, request)).await?;
            request = &request[written..];
        }
        self.answer.clear();
        loop {
            // Not `try_read`: after a short read, `poll_read` knows that the socket is drained and
            // saves the second system call per response.
            let mut chunk = [0; 1024];
            let mut chunk = ReadBuf::new(&mut chunk);
            let stream = &mut self.stream;
            poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut chunk)).await?;
            if chunk.filled().is_empty() {
                return Err(io::Error::other("connection closed before the answer"));
            }
            self.answer.extend_from_slice(chunk.filled());
            match parse_answer(&self.answer) {
                Answer::Incomplete => {}
                Answer::Complete { status } => return Ok(status),
                Answer::Malformed => return Err(io::Error::other("malformed answer")),
            }
        }
    }
}
