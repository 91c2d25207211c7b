//! Replacing a running process under load: no client is rejected, neither when a service manager
//! holds the socket nor behind a load balancer that uses `/readyz`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use livebridge::config::Config;
use livebridge::kafka::topic_reader::TopicReader;
use rustix::process::Signal;
use serde_json::json;

use crate::support::kafka::mock_kafka;
use crate::support::process;
use crate::support::process::{Running, livebridge};
use crate::support::wait_until;
use crate::support::wire::{PATIENCE, Wire, get, post};

const BINARY: &str = env!("CARGO_BIN_EXE_livebridge");

/// A configuration file in `dir`; `name` distinguishes the instances of one test.
fn configure(dir: &Path, name: &str, kafka: &str, more: &str) -> String {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n{more}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [callback]\nkeys = [\"k\"]\nunsigned = [\"push\"]\n\
         [wal]\ndir = \"{}\"\nmin_free_bytes = 0\n\
         [kafka]\nbrokers = \"{kafka}\"\ninstance = \"{name}\"\ncreate_topics = false\n",
        dir.join(name).display()
    );
    let path = dir.join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Senders that run until they are stopped and record every result other than 200.
struct Load {
    stop: Arc<AtomicBool>,
    senders: Vec<thread::JoinHandle<(Vec<String>, Vec<String>)>>,
}

impl Load {
    /// Half of the senders use keep-alive connections, the others a new connection for each
    /// callback.
    fn start(address: SocketAddr, senders: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let send = |number| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || send(address, number % 2 == 0, &stop))
        };
        let senders = (0..senders).map(send).collect();
        Self { stop, senders }
    }

    /// The bodies that were accepted.
    #[track_caller]
    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut taken = BTreeSet::new();
        for sender in self.senders {
            let (bodies, complaints) = sender.join().unwrap();
            assert!(complaints.is_empty(), "of {} callbacks: {complaints:?}", bodies.len());
            taken.extend(bodies);
        }
        taken
    }
}

fn send(address: SocketAddr, keeps: bool, stop: &AtomicBool) -> (Vec<String>, Vec<String>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (mut taken, mut complaints) = (Vec::new(), Vec::new());
    let mut kept: Option<Wire> = None;
    while !stop.load(Ordering::Relaxed) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let body = json!({"event_type": 1, "stream_id": "s", "sequence": number}).to_string();
        let mut wire = kept.take().unwrap_or_else(|| Wire::connect(address));
        wire.send(post("/callback", &body));
        match wire.answer() {
            Some(answer) if answer.status == 200 => {
                taken.push(body);
                kept = (keeps && !answer.closes()).then_some(wire);
            }
            other => complaints.push(format!("{number}: {other:?}")),
        }
        thread::sleep(Duration::from_millis(2));
    }
    (taken, complaints)
}

/// Waits until every body in `taken` is in Kafka, and returns the number of records there.
fn wait_for_all(config: &str, taken: &BTreeSet<String>) -> usize {
    let config = Config::load(Some(Path::new(config))).unwrap();
    let follower = TopicReader::new(&config.kafka, &["live.push"]).unwrap();
    let (mut found, mut count) = (BTreeSet::new(), 0);
    let started = Instant::now();
    while !taken.is_subset(&found) {
        assert!(started.elapsed() < 3 * PATIENCE, "{} of {}", found.len(), taken.len());
        if let Some(landed) = follower.next(Duration::from_millis(100)).unwrap() {
            found.insert(String::from_utf8(landed.value).unwrap());
            count += 1;
        }
    }
    count
}

/// Starts it with the socket as descriptor 3, as a service manager does.
fn serve_on(socket: &TcpListener, config: &str) -> Running {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" serve --config \"$1\" 3<&0 </dev/null", BINARY, config]);
    command.env_clear().env("LISTEN_FDS", "1");
    Running::start(command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))))
}

#[test]
fn an_upgrade_rejects_no_client_when_a_service_manager_holds_the_socket() {
    let kafka = mock_kafka(1);
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), "one", &kafka.brokers(), "");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut serving = serve_on(&socket, &config);
    assert_eq!(serving.address("intake listening"), address);

    let load = Load::start(address, 8);
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(400));
        let ordered = Instant::now();
        serving.signal(Signal::TERM);
        assert_eq!(serving.wait(), Some(0), "{}", serving.stderr.text());
        serving = serve_on(&socket, &config);
        serving.address("intake listening");
        longest = longest.max(ordered.elapsed());
    }
    thread::sleep(Duration::from_millis(400));
    let taken = load.end();
    assert!(taken.len() > 300, "{}", taken.len());
    eprintln!("{} callbacks; the longest change took {longest:?}", taken.len());
    // Every callback was accepted at the first attempt, so each is in Kafka once.
    assert_eq!(wait_for_all(&config, &taken), taken.len());
}

/// A load balancer that routes new connections to a server that is ready.
struct Balancer {
    address: SocketAddr,
    /// The address for callbacks and the address for health checks.
    servers: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>>,
}

impl Balancer {
    /// The interval of health checks.
    const CHECK: Duration = Duration::from_millis(100);

    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(Vec::<(SocketAddr, SocketAddr)>::new()));
        let ready = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let (asked, found) = (Arc::clone(&servers), Arc::clone(&ready));
        thread::spawn(move || {
            loop {
                let servers = asked.lock().unwrap().clone();
                let is_ready = |admin: SocketAddr| {
                    TcpStream::connect(admin).is_ok() && get(admin, "/readyz").status == 200
                };
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
        Self { address, servers }
    }
}

#[test]
fn a_rolling_restart_behind_a_load_balancer_rejects_no_client() {
    let kafka = mock_kafka(1);
    let dir = tempfile::tempdir().unwrap();
    let configs = ["one", "two"]
        .map(|name| configure(dir.path(), name, &kafka.brokers(), "drain = \"500ms\""));
    let serve = |config: &str| {
        let serving = Running::start(&mut livebridge(&["serve", "--config", config]));
        let admin = serving.address("admin listening");
        let intake = serving.address("intake listening");
        (serving, (intake, admin))
    };
    let balancer = Balancer::start();
    let mut serving: Vec<_> = configs.iter().map(|config| serve(config)).collect();
    *balancer.servers.lock().unwrap() = serving.iter().map(|(_, server)| *server).collect();
    thread::sleep(3 * Balancer::CHECK);

    let load = Load::start(balancer.address, 8);
    for turn in 0..2 {
        thread::sleep(Duration::from_millis(300));
        let (process, (_, admin)) = &mut serving[turn];
        process.signal(Signal::TERM);
        let says = "not ready: stopping soon; callbacks are accepted until then\n";
        let is_not_ready = || get(*admin, "/readyz").body == says;
        wait_until(Duration::from_millis(400), is_not_ready, || "it is ready while it stops");
        assert_eq!(process.wait(), Some(0));
        serving[turn] = serve(&configs[turn]);
        balancer.servers.lock().unwrap()[turn] = serving[turn].1;
        thread::sleep(3 * Balancer::CHECK);
    }
    let taken = load.end();
    assert!(taken.len() > 300, "{}", taken.len());
    eprintln!("{} callbacks through two restarts", taken.len());
    assert_eq!(wait_for_all(&configs[0], &taken), taken.len());
}

#[test]
fn the_service_manager_receives_ready_reloading_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), "one", "127.0.0.1:1", "");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = livebridge(&["serve", "--config", &config]);
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
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), "one", "127.0.0.1:1", "");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" serve --config \"$1\" 3</dev/null", BINARY, &config]);
    let finished = process::run(command.env_clear().env("LISTEN_FDS", "1"));
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(
        finished.stderr.contains("the socket that the service manager passed (LISTEN_FDS)"),
        "{finished:?}"
    );
}
