//! Replacing a running process under load: no client is rejected, neither when a service manager
//! holds the socket nor behind a load balancer that uses `/readyz`.

use std::collections::BTreeSet;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::kafka::mock::MockKafka;
use rustix::process::Signal;

use crate::support::configured_bridge::{ConfiguredBridge, RunningBridge};
use crate::support::intake::push;
use crate::support::kafka::{UNREACHABLE, mock_kafka, size};
use crate::support::process::{Running, run};
use crate::support::wire::{Answer, Wire, exchange, post};
use crate::support::{TIME_LIMIT, wait_until};

/// Clients close a kept connection after this time without a request, before the server may: it closes
/// one that is idle a second after it began to stop.
const KEPT_MAX: Duration = Duration::from_millis(500);

/// Senders that run until they are stopped and record every result other than 200.
struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    senders: Vec<thread::JoinHandle<(Vec<String>, Vec<String>)>>,
}

impl Load {
    /// Half of the senders use keep-alive connections, the others a new connection for each
    /// callback.
    fn start(address: SocketAddr, senders: usize) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let send = |number| {
            let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
            thread::spawn(move || send(address, number % 2 == 0, &stop, &accepted))
        };
        let senders = (0..senders).map(send).collect();
        Self { stop, accepted, senders }
    }

    /// Waits until `count` more callbacks are accepted.
    #[track_caller]
    fn wait_for(&self, count: usize) {
        let accepted = || self.accepted.load(Ordering::Relaxed);
        let enough = accepted() + count;
        wait_until(6 * TIME_LIMIT, || accepted() >= enough, || format!("only {}", accepted()));
    }

    /// The bodies that were accepted.
    #[track_caller]
    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut accepted = BTreeSet::new();
        for sender in self.senders {
            let (bodies, complaints) = sender.join().unwrap();
            assert!(complaints.is_empty(), "of {} callbacks: {complaints:?}", bodies.len());
            accepted.extend(bodies);
        }
        accepted
    }
}

fn send(
    address: SocketAddr,
    keeps: bool,
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> (Vec<String>, Vec<String>) {
    let (mut accepted, mut complaints) = (Vec::new(), Vec::new());
    let mut kept: Option<(Wire, Instant)> = None;
    while !stop.load(Ordering::Relaxed) {
        let body = push();
        let usable = kept.take().filter(|(_, since)| since.elapsed() < KEPT_MAX);
        // While the process is replaced, a connection waits in the socket's queue.
        let new = || Wire::connect(address).read_timeout(6 * TIME_LIMIT);
        let mut wire = usable.map_or_else(new, |(wire, _)| wire);
        wire.send(post("/callback", &body));
        match wire.answer() {
            Some(answer) if answer.status == 200 => {
                accepted.push(body);
                count.fetch_add(1, Ordering::Relaxed);
                kept = (keeps && !answer.closes()).then(|| (wire, Instant::now()));
            }
            other => complaints.push(format!("{body}: {other:?}")),
        }
        thread::sleep(Duration::from_millis(10));
    }
    (accepted, complaints)
}

/// Waits until everything that the bridges have stored is in Kafka, and asserts that this is each of
/// `accepted` once.
#[track_caller]
fn assert_each_once(kafka: &MockKafka, bridges: &[RunningBridge], accepted: &BTreeSet<String>) {
    for bridge in bridges {
        bridge.wait_for_metric_within(6 * TIME_LIMIT, "livebridge_wal_records", 0.0);
    }
    let count = usize::try_from(size(&kafka.brokers(), "live.push")).unwrap();
    let published = bridges[0].published("live.push").take(count);
    let found: BTreeSet<String> =
        published.map(|record| String::from_utf8(record.value).unwrap()).collect();
    assert!(found == *accepted, "{} of {} are published", found.len(), accepted.len());
    assert_eq!(count, accepted.len(), "each is published once");
}

/// `livebridge serve` as a service manager starts it; `redirection` sets descriptor 3.
fn with_descriptor(bridge: &ConfiguredBridge, redirection: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("exec \"$0\" serve --config \"$1\" {redirection}");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_livebridge")]).arg(bridge.file());
    command.env_clear().env("LISTEN_FDS", "1");
    command
}

/// Starts it with the socket that a service manager holds.
fn serve_on(socket: &TcpListener, bridge: &ConfiguredBridge) -> RunningBridge {
    let mut command = with_descriptor(bridge, "3<&0 </dev/null");
    bridge.start(command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))))
}

#[test]
fn an_upgrade_rejects_no_client_when_a_service_manager_holds_the_socket() {
    let kafka = mock_kafka(1);
    let bridge = ConfiguredBridge::new(&kafka.brokers(), "");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut serving = serve_on(&socket, &bridge);
    assert_eq!(serving.intake, address);

    let load = Load::start(address, 8);
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        load.wait_for(100);
        let ordered = Instant::now();
        serving.process.stop();
        serving = serve_on(&socket, &bridge);
        longest = longest.max(ordered.elapsed());
    }
    load.wait_for(100);
    let accepted = load.end();
    eprintln!("{} callbacks; the longest change took {longest:?}", accepted.len());
    // Every callback was accepted at the first attempt, so each is in Kafka once.
    assert_each_once(&kafka, &[serving], &accepted);
}

/// A load balancer that routes new connections to a server that is ready.
struct Balancer {
    address: SocketAddr,
    /// The address for callbacks and the address for health checks.
    servers: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>>,
    /// The addresses for callbacks of the servers that are ready.
    ready: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Balancer {
    /// The interval of health checks.
    const CHECK: Duration = Duration::from_millis(100);

    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(Vec::<(SocketAddr, SocketAddr)>::new()));
        let ready = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let (asked, found, of_balancer) =
            (Arc::clone(&servers), Arc::clone(&ready), Arc::clone(&ready));
        thread::spawn(move || {
            loop {
                let servers = asked.lock().unwrap().clone();
                let is_ready = |admin| health(admin).is_some_and(|answer| answer.status == 200);
                let servers = servers.into_iter().filter(|(_, admin)| is_ready(*admin));
                *found.lock().unwrap() = servers.map(|(intake, _)| intake).collect();
                thread::sleep(Self::CHECK);
            }
        });
        thread::spawn(move || {
            for (turn, from) in listener.incoming().map_while(Result::ok).enumerate() {
                let ready = ready.lock().unwrap().clone();
                // Without a ready server the connection is closed, which the senders record.
                let Some(server) = ready.get(turn % ready.len().max(1)) else { continue };
                let Ok(to) = TcpStream::connect(server) else { continue };
                for (mut from, mut to) in
                    [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)]
                {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, servers, ready: of_balancer }
    }

    /// Waits until it routes connections to every server.
    #[track_caller]
    fn wait_until_all_are_ready(&self) {
        let all: Vec<_> = self.servers.lock().unwrap().iter().map(|(intake, _)| *intake).collect();
        let are_ready = || *self.ready.lock().unwrap() == all;
        wait_until(6 * TIME_LIMIT, are_ready, || "a server is not ready");
    }
}

/// The response to a health check; `None` from a server that has stopped.
fn health(admin: SocketAddr) -> Option<Answer> {
    exchange(admin, "GET /readyz HTTP/1.1\r\nHost: t\r\n\r\n")
}

#[test]
fn a_rolling_restart_behind_a_load_balancer_rejects_no_client() {
    /// Many times the interval of health checks.
    const DRAIN: Duration = Duration::from_secs(3);
    let kafka = mock_kafka(1);
    let mut serving = ["one", "two"].map(|name| {
        let more = format!("http.drain = \"{}s\"\nkafka.instance = {name:?}", DRAIN.as_secs());
        ConfiguredBridge::new(&kafka.brokers(), &more).serve()
    });
    let balancer = Balancer::start();
    let addresses = |bridge: &RunningBridge| (bridge.intake, bridge.admin);
    *balancer.servers.lock().unwrap() = serving.iter().map(addresses).collect();
    balancer.wait_until_all_are_ready();

    let load = Load::start(balancer.address, 8);
    for (turn, bridge) in serving.iter_mut().enumerate() {
        load.wait_for(100);
        bridge.process.signal(Signal::TERM);
        let says = "not ready: stopping soon; callbacks are accepted until then\n";
        let is_not_ready = || health(bridge.admin).is_some_and(|answer| answer.body == says);
        wait_until(DRAIN, is_not_ready, || "it is ready while it stops");
        assert_eq!(bridge.process.wait(), Some(0));
        // By the other one.
        load.wait_for(100);
        *bridge = bridge.serve();
        balancer.servers.lock().unwrap()[turn] = addresses(bridge);
        balancer.wait_until_all_are_ready();
    }
    load.wait_for(100);
    let accepted = load.end();
    eprintln!("{} callbacks through two restarts", accepted.len());
    assert_each_once(&kafka, &serving, &accepted);
    for bridge in &serving {
        assert!(bridge.metric("livebridge_audit_accepted_total") > 0.0, "both had callbacks");
    }
}

#[test]
fn the_service_manager_receives_ready_reloading_and_stopping() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "");
    let path = bridge.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    let mut command = bridge.command(&["serve"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut serving = Running::start(&mut command);
    let told = || {
        let mut buffer = [0; 1000];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let next = || {
        let mut next = told();
        while next.trim() == "WATCHDOG=1" {
            next = told();
        }
        next
    };
    assert_eq!(next().trim(), "READY=1");
    // Only now are callbacks accepted.
    serving.address("intake listening");
    for _ in 0..3 {
        assert_eq!(told().trim(), "WATCHDOG=1");
    }
    serving.signal(Signal::HUP);
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(next().trim(), "READY=1");
    serving.signal(Signal::TERM);
    assert_eq!(next().trim(), "STOPPING=1");
    assert_eq!(serving.wait(), Some(0));
}

#[test]
fn a_descriptor_that_is_not_a_listening_socket_is_rejected() {
    let bridge = ConfiguredBridge::new(UNREACHABLE, "");
    let finished = run(&mut with_descriptor(&bridge, "3</dev/null"));
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(
        finished.stderr.contains("the socket that the service manager passed (LISTEN_FDS)"),
        "{finished:?}"
    );
}
