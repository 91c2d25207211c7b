//! The load balancers of `deploy/` in front of two instances, one of which has a full disk: nginx with TLS,
//! `HAProxy` and Envoy, as in docs/balancers.md.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use livebridge::intake::{Access, Networks};

use crate::support::intake::{TestBed, push, push_of};
use crate::support::kafka::free_port;
use crate::support::process::Running;
use crate::support::tls::Identity;
use crate::support::wire::{Answer, Wire, connect_from, post, post_chunked};
use crate::support::{self, Unavailable, tls, wait_until};

/// For Envoy on a busy machine, and its health checks.
const START_MAX: Duration = Duration::from_mins(1);

/// Clients inside and outside of `access.allow`. The proxies are at 127.0.0.1.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A connection from `client` to the load balancer on `port`.
fn connect(client: Ipv4Addr, port: u16) -> TcpStream {
    connect_from(client, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap()
}

/// Sends `request` on a new connection from `client`.
fn exchange(client: Ipv4Addr, port: u16, request: impl AsRef<[u8]>) -> Option<Answer> {
    let mut wire = Wire::over(connect(client, port));
    wire.send(request);
    wire.answer()
}

/// Two instances behind proxies at 127.0.0.1: one with a full disk, and one that is well.
struct Instances {
    full: TestBed,
    well: TestBed,
}

impl Instances {
    fn start() -> Self {
        let access = || Access {
            allow: Networks::parse(["127.0.0.2"].into_iter()).unwrap(),
            trusted_proxies: Networks::parse(["127.0.0.1"].into_iter()).unwrap(),
            ..Access::default()
        };
        Self {
            full: TestBed::behind(access(), |_, log| log.limits.min_free_bytes = u64::MAX),
            well: TestBed::behind(access(), |_, _| {}),
        }
    }

    /// The instances' addresses as they stand in nginx.conf and haproxy.cfg.
    fn addresses(&self) -> [(&'static str, String); 2] {
        let [full, well] = [&self.full, &self.well].map(|bed| bed.address.to_string());
        [("10.0.0.1:8080", full), ("10.0.0.2:8080", well)]
    }
}

/// A file of `deploy/` with replacements, each of which it must contain.
fn configure(file: &str, replacements: &[(&str, String)], dir: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = fs::read_to_string(root.join("deploy").join(file)).unwrap();
    for (from, to) in replacements {
        assert!(text.contains(from), "{file} has no {from}");
        text = text.replace(from, to);
    }
    let path = dir.join(file);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn available(command: &str, argument: &str) -> Result<(), Unavailable> {
    let output = Command::new(command).arg(argument).output();
    output.map(drop).map_err(|cause| Unavailable(format!("{command} cannot be started: {cause}")))
}

/// Starts a load balancer and waits until it listens.
fn start(command: &mut Command, port: u16) -> Running {
    let running = Running::start(command);
    let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    wait_until(START_MAX, listens, || running.stderr.text());
    running
}

/// Waits until a callback arrives: before its first health checks a balancer may have no instance.
fn wait_until_accepted(port: u16) {
    let answer = || exchange(ALLOWED, port, post("/callback", &push()));
    let is_accepted = || answer().is_some_and(|answer| answer.status == 200);
    wait_until(START_MAX, is_accepted, || format!("no callback is accepted: {:?}", answer()));
}

/// What has to work through a load balancer on `port` without TLS.
fn assert_forwards_callbacks(instances: &Instances, port: u16) {
    wait_until_accepted(port);

    // The full instance answers 503 to half of them at first; the other one takes them over.
    let before = instances.well.stored().len();
    let bodies: Vec<String> = (0..20).map(|_| push()).collect();
    let mut wire = Wire::over(connect(ALLOWED, port));
    for body in &bodies {
        wire.send(post("/callback", body));
        let answer = wire.answer().expect("a connection that is kept open");
        assert_eq!((answer.status, &*answer.body), (200, r#"{"code":0}"#));
    }
    assert_eq!(instances.well.stored()[before..], bodies);
    assert_eq!(instances.full.stored().len(), 0);

    // livebridge sees the client's address.
    let answer = exchange(OTHER, port, post("/callback", &push())).unwrap();
    assert_eq!(answer.status, 403, "{answer:?}");
    // A client cannot claim another one.
    let claimed = "Host: t\r\nX-Forwarded-For: 127.0.0.2\r\n";
    let request = post("/callback", &push()).replacen("Host: t\r\n", claimed, 1);
    let answer = exchange(OTHER, port, request).unwrap();
    assert_eq!(answer.status, 403, "{answer:?}");

    let answer = exchange(ALLOWED, port, post_chunked("/callback", &push(), 16)).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    // Beyond the instances' http.max_body.
    let answer = exchange(ALLOWED, port, post("/callback", &push_of(4000))).unwrap();
    assert_eq!(answer.status, 413, "{answer:?}");

    let (head, body) = (post("/callback", &push()), push());
    let head = head.split("\r\n\r\n").next().unwrap();
    let length = format!("Content-Length: {}\r\nExpect: 100-continue", body.len());
    let (start, _) = head.split_once("Content-Length").unwrap();
    let mut wire = Wire::over(connect(ALLOWED, port));
    wire.send(format!("{start}{length}\r\n\r\n"));
    assert!(wire.skip_head(), "100 Continue");
    wire.send(&body);
    assert_eq!(wire.answer().unwrap().status, 200);
    assert_eq!(instances.well.stored().last(), Some(&body));
}

#[test]
fn haproxy_forwards_callbacks_to_the_instance_that_accepts_them() {
    if support::or_skip("balancers: haproxy", available("haproxy", "-v")).is_none() {
        return;
    }
    let (instances, dir, port) = (Instances::start(), tempfile::tempdir().unwrap(), free_port());
    let replacements =
        [&instances.addresses()[..], &[("bind :80\n", format!("bind 0.0.0.0:{port}\n"))]].concat();
    let file = configure("haproxy.cfg", &replacements, dir.path());
    let _haproxy = start(Command::new("haproxy").args(["-db", "-f", &file]), port);
    assert_forwards_callbacks(&instances, port);
}

#[test]
fn envoy_forwards_callbacks_to_the_instance_that_accepts_them() {
    let test = "balancers: envoy";
    let Some(python) = support::or_skip(test, support::consumer::python()) else { return };
    let (instances, dir, port) = (Instances::start(), tempfile::tempdir().unwrap(), free_port());
    let endpoint = |bed: &TestBed| format!("127.0.0.1, port_value: {}", bed.address.port());
    let file = configure(
        "envoy.yaml",
        &[
            ("port_value: 80 }", format!("port_value: {port} }}")),
            ("10.0.0.1, port_value: 8080", endpoint(&instances.full)),
            ("10.0.0.2, port_value: 8080", endpoint(&instances.well)),
        ],
        dir.path(),
    );
    let mut envoy = Command::new(python.with_file_name("envoy"));
    envoy.args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warn", "-c", &file]);
    let _envoy = start(&mut envoy, port);
    assert_forwards_callbacks(&instances, port);
}

#[test]
fn nginx_forwards_callbacks_to_the_instance_that_accepts_them() {
    if support::or_skip("balancers: nginx", available("nginx", "-v")).is_none() {
        return;
    }
    let (instances, dir, port) = (Instances::start(), tempfile::tempdir().unwrap(), free_port());
    let secure = free_port();
    let identity = Identity::write(dir.path(), 2100);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    // The same server without TLS on another port, for the checks that all balancers have in common.
    let listen = format!("listen 0.0.0.0:{secure} ssl;\n        listen 0.0.0.0:{port};");
    let replacements = [
        &instances.addresses()[..],
        &[
            ("listen 443 ssl;", listen),
            ("/etc/nginx/tls.crt", path(&identity.certificate)),
            ("/etc/nginx/tls.key", path(&identity.key)),
        ],
    ]
    .concat();
    let file = configure("nginx.conf", &replacements, dir.path());
    let mut nginx = Command::new("nginx");
    let globals = format!("daemon off; master_process off; pid {}/pid;", dir.path().display());
    nginx.args(["-p", dir.path().to_str().unwrap(), "-e", "stderr", "-g", &globals, "-c", &file]);
    let _nginx = start(&mut nginx, port);
    assert_forwards_callbacks(&instances, port);

    let stream = connect(ALLOWED, secure);
    let mut session = identity.handshake(stream, &tls::VERSIONS, &["http/1.1"]).unwrap();
    for _ in 0..3 {
        assert_eq!(session.exchange(post("/callback", &push())), Some(200));
    }
}

/// The number that follows `before` in a file.
fn number(text: &str, before: &str) -> u64 {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before}"));
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Otherwise an instance that hangs leaves no time for the other one.
#[test]
fn all_tries_of_a_balancer_end_before_tencent_gives_up() {
    const TENCENT_SECONDS: u64 = 20;
    let deadline = number(include_str!("../../deploy/livebridge.toml"), "deadline = \"");
    let nginx = include_str!("../../deploy/nginx.conf");
    let haproxy = include_str!("../../deploy/haproxy.cfg");
    let envoy = include_str!("../../deploy/envoy.yaml");
    for (tries, connect, answer) in [
        (
            number(nginx, "proxy_next_upstream_tries "),
            number(nginx, "proxy_connect_timeout "),
            number(nginx, "proxy_read_timeout "),
        ),
        (
            1 + number(haproxy, "retries "),
            number(haproxy, "timeout connect "),
            number(haproxy, "timeout server "),
        ),
        // Envoy's time of a try includes the connection.
        (1 + number(envoy, "num_retries: "), 0, number(envoy, "per_try_timeout: ")),
    ] {
        assert!(tries > 1 && answer > deadline, "{tries} tries of {answer} s");
        assert!(tries * (connect + answer) < TENCENT_SECONDS, "{tries} × ({connect} + {answer}) s");
    }
    let (_, whole) = envoy.split_once("# Of both tries together").unwrap();
    assert!(number(whole, " timeout: ") < TENCENT_SECONDS, "the whole request");
}

/// The balancer sends requests, so it must be the one that closes idle connections.
#[test]
fn balancers_close_idle_connections_before_livebridge_does() {
    let toml = include_str!("../../deploy/livebridge.toml");
    let keep_alive = number(toml, "keep_alive = \"");
    for (text, before) in [
        (include_str!("../../deploy/nginx.conf"), "keepalive_timeout "),
        (include_str!("../../deploy/envoy.yaml"), "idle_timeout: "),
    ] {
        assert!(number(text, before) < keep_alive, "{before}");
    }
}
