//! Real Apache Kafka for the tests: brokers that can be stopped, killed, paused and restarted.
//!
//! A broker is a child `java` process. It ends when its value is dropped, and also when the test
//! process ends for any reason, because a guard process waits for the end of its pipe. Data is in
//! the target directory; the remains of a killed run are removed by the next.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, io};

use livebridge::kafka::mock::MockKafka;
use livebridge::publisher::Topics;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rustix::process::{Pid, Signal, kill_process};

use super::log::block_on;
use super::tools::{self, Unavailable};
use super::turn::BrokerPermit;

/// An address without Kafka: an unprivileged process cannot listen on this port.
pub const UNREACHABLE: &str = "127.0.0.1:1";

/// How long a test waits for what needs real brokers, even on a busy machine.
pub const TIME_LIMIT: Duration = Duration::from_mins(2);

/// Long enough for three JVMs that start at once on two busy cores.
const START_MAX: Duration = Duration::from_secs(90);

/// An orderly stop takes 0.25 s; a broker that waits for a quorum never stops.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Ports below the ephemeral range, so that no client's socket takes a stopped broker's port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

const CLUSTER_ID: &str = "bGl2ZWJyaWRnZS10ZXN0cw";
const POM: &str = include_str!("kafka/pom.xml");

/// JVM options for fast starts: 1.8 s instead of 2.3 s until a broker responds, and 0.9 s with the
/// class archive that [`installation`] creates.
const FAST_START: [&str; 3] = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
/// Those of Kafka's own start script.
const PRODUCTION: [&str; 6] = [
    "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
    "-Xshare:auto",
    // Else the time of compiler threads that ended could not be told from that of others.
    "-XX:-UseDynamicNumberOfCompilerThreads",
];

// === Kafka: a broker for clients ===

/// A broker that keeps running: the one that `KAFKA_BOOTSTRAP_SERVERS` names, or a new one.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    own: Option<Cluster>,
}

impl Kafka {
    /// Starts a broker, unless the environment names one.
    pub fn start() -> Result<Self, Unavailable> {
        if let Ok(bootstrap) = env::var("KAFKA_BOOTSTRAP_SERVERS") {
            return Ok(Self { bootstrap, own: None });
        }
        let own = Cluster::launch_all(&Setup::default(), None)?;
        Ok(Self { bootstrap: own.bootstrap(), own: Some(own) })
    }

    /// As [`Kafka::start`]; see [`super::or_skip`] for the case that none is available.
    pub fn start_or_skip(test: &str) -> Option<Self> {
        super::or_skip(test, Self::start())
    }

    /// The broker that the tests of this binary share, each with its own topics.
    ///
    /// Statics are not dropped: the guard ends this broker when the test process ends.
    pub fn shared_or_skip(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Result<Kafka, Unavailable>> = OnceLock::new();
        super::or_skip(test, SHARED.get_or_init(Self::start).as_ref().map_err(Clone::clone))
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }
}

/// Creates a topic and waits until it exists.
///
/// # Panics
/// When the brokers reject it.
pub fn create_topic(bootstrap: &str, topic: &str, partitions: i32, replication: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    let timeout = Some(Duration::from_secs(30));
    let options = AdminOptions::new().operation_timeout(timeout).request_timeout(timeout);
    for outcome in respond(admin(bootstrap).create_topics([&new], &options)) {
        outcome.expect("a topic that can be created");
    }
    // A broker learns of it a moment later than the controller.
    let consumer: BaseConsumer = client(bootstrap).create().expect("a consumer needs no broker");
    let is_listed = || {
        let topics = consumer.fetch_metadata(None, Duration::from_secs(10));
        topics.is_ok_and(|all| all.topics().iter().any(|known| known.name() == topic))
    };
    super::wait_until(Duration::from_secs(30), is_listed, || format!("{topic} is not listed"));
}

/// Deletes a topic.
///
/// # Panics
/// When the brokers reject it.
pub fn delete_topic(bootstrap: &str, topic: &str) {
    for outcome in respond(admin(bootstrap).delete_topics(&[topic], &AdminOptions::new())) {
        outcome.expect("a topic that can be deleted");
    }
}

/// Replaces a topic's settings; settings that are not named return to their defaults.
///
/// # Panics
/// When the brokers reject it.
pub fn configure_topic(bootstrap: &str, topic: &str, settings: &[(&str, &str)]) {
    let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in settings {
        config = config.set(name, value);
    }
    let admin = admin(bootstrap);
    for outcome in respond(admin.alter_configs([&config], &AdminOptions::new())) {
        outcome.expect("a setting that a topic can have");
    }
    // A broker applies them a moment after the controller has answered.
    let are_applied = || {
        let topic = [&ResourceSpecifier::Topic(topic)];
        let described = respond(admin.describe_configs(topic, &AdminOptions::new()));
        let value = |name| described[0].as_ref().ok()?.get(name)?.value.as_deref();
        settings.iter().all(|(name, wanted)| value(name) == Some(wanted))
    };
    super::wait_until(Duration::from_secs(30), are_applied, || format!("{topic}: {settings:?}"));
}

/// An administrative client.
pub fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    client(bootstrap).create().expect("an admin client needs no broker")
}

/// The response to an administrative request.
///
/// # Panics
/// Without a response.
pub fn respond<T>(request: impl Future<Output = KafkaResult<T>>) -> T {
    block_on(request).expect("brokers that respond")
}

/// The sum of the end offsets of `topic`: its records, and the markers of transactions.
pub fn size(bootstrap: &str, topic: &str) -> i64 {
    const TIMEOUT: Duration = Duration::from_secs(30);
    let client: BaseConsumer = client(bootstrap).create().expect("a client needs no broker");
    let found = client.fetch_metadata(Some(topic), TIMEOUT).expect("brokers that respond");
    let end = |partition| client.fetch_watermarks(topic, partition, TIMEOUT).expect("offsets").1;
    found.topics()[0].partitions().iter().map(|partition| end(partition.id())).sum()
}

/// The names of the topics of `prefix`.
pub fn topics(prefix: &str) -> Topics {
    Topics::new(prefix, &BTreeMap::new()).expect("a valid prefix")
}

/// The mock cluster of `livebridge` with the topics of the prefix `live`.
pub fn mock_kafka(partitions: i32) -> MockKafka {
    let topics = topics("live");
    MockKafka::start(&topics.all(), partitions, topics.ledger()).expect("it needs no other process")
}

/// A mock cluster with the topics of `prefix`, each on all of its nodes.
pub fn mock_cluster(
    prefix: &str,
    nodes: i32,
    partitions: i32,
) -> MockCluster<'static, DefaultProducerContext> {
    let mock = MockCluster::new(nodes).expect("it needs no other process");
    let topics = topics(prefix);
    let all = topics.all().into_iter().map(|topic| (topic, partitions));
    for (topic, partitions) in all.chain([(topics.ledger(), 1)]) {
        mock.create_topic(topic, partitions, nodes).expect("a valid name");
        // Its thread can miss a command that arrives just after the previous one.
        thread::sleep(Duration::from_millis(2));
    }
    mock
}

/// Client settings for a broker on this machine.
pub fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("broker.address.family", "v4")
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "200");
    config
}

// === Cluster: brokers to stop and restart ===

/// The options of a cluster; the default is one broker without access rules.
#[derive(Clone, Debug)]
pub struct Setup {
    nodes: usize,
    properties: Vec<(String, String)>,
    users: Vec<(String, String)>,
    proxies: Vec<u16>,
    jvm: &'static [&'static str],
}

impl Default for Setup {
    fn default() -> Self {
        Self::nodes(1)
    }
}

impl Setup {
    /// Brokers 1 to `nodes`, of which the first three are also the quorum.
    pub fn nodes(nodes: usize) -> Self {
        let (properties, users, proxies) = (Vec::new(), Vec::new(), Vec::new());
        Self { nodes, properties, users, proxies, jvm: &FAST_START }
    }

    /// The JVM options that brokers have in production, for measurements of what they cost.
    pub fn production_jvm(mut self) -> Self {
        self.jvm = &PRODUCTION;
        self
    }

    /// A line for every node's `server.properties`; it overrides earlier lines with its key.
    pub fn property(mut self, key: &str, value: &str) -> Self {
        self.properties.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A user of the `SASL_PLAINTEXT` listener with the mechanism PLAIN ([`Cluster::sasl`]).
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// A further listener ([`Cluster::behind`]) for proxies on these ports, one per node. It
    /// advertises the proxies' addresses, so that clients stay behind them.
    pub fn proxies(mut self, ports: &[u16]) -> Self {
        assert_eq!(ports.len(), self.nodes, "one proxy for each node");
        self.proxies = ports.to_vec();
        self
    }

    /// Enables access rules. The plain listener's users are not restricted; SASL users need rules
    /// for everything.
    pub fn authorizer(self) -> Self {
        self.property(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        )
        .property("super.users", "User:ANONYMOUS")
    }
}

/// Brokers whose ports and data persist across restarts.
///
/// Nodes count from 1, as Kafka's ids do.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    directory: PathBuf,
    _permit: Option<BrokerPermit>,
}

impl Cluster {
    /// Starts all nodes and waits until each knows all others.
    pub fn start(setup: &Setup) -> Result<Self, Unavailable> {
        Self::launch_all(setup, Some(BrokerPermit::wait(setup.nodes)))
    }

    fn launch_all(setup: &Setup, permit: Option<BrokerPermit>) -> Result<Self, Unavailable> {
        let installation = installation()?;
        let directory = fresh_directory()?;
        let mut cluster = Self { nodes: Vec::new(), directory, _permit: permit };
        cluster.nodes = lay_out(&cluster.directory, installation, setup)
            .map_err(|error| Unavailable::new("cannot write the brokers' files", &error))?;
        for node in &mut cluster.nodes {
            node.launch()?;
        }
        for node in &cluster.nodes {
            node.wait_until_it_knows(cluster.nodes.len());
        }
        Ok(cluster)
    }

    /// As [`Cluster::start`]; see [`super::or_skip`] for the case that none is available.
    pub fn start_or_skip(test: &str, setup: &Setup) -> Option<Self> {
        super::or_skip(test, Self::start(setup))
    }

    /// All nodes' addresses, whether they are running or not.
    pub fn bootstrap(&self) -> String {
        self.addresses(|ports| ports.plain)
    }

    /// The addresses of the listener with SASL authentication.
    pub fn sasl(&self) -> String {
        self.addresses(|ports| ports.sasl)
    }

    /// The process of a running node.
    pub fn pid(&self, node: usize) -> u32 {
        let process = self.nodes[node - 1].process.as_ref();
        let pid = process.map(|process| process.pid().as_raw_nonzero().get());
        pid.and_then(|pid| u32::try_from(pid).ok()).expect("a running node")
    }

    /// The bytes of a partition's files on the first node, for `partition` such as `topic-0`.
    pub fn bytes_of(&self, partition: &str) -> io::Result<u64> {
        let directory = self.nodes[0].directory.join("data").join(partition);
        let sizes = fs::read_dir(directory)?.map(|file| {
            let file = file?;
            let is_log = file.path().extension().is_some_and(|extension| extension == "log");
            Ok(if is_log { file.metadata()?.len() } else { 0 })
        });
        sizes.sum()
    }

    /// The address to which the proxy of `node` connects.
    pub fn behind(&self, node: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.nodes[node - 1].ports.proxied))
    }

    fn addresses(&self, port: fn(&Ports) -> u16) -> String {
        let addresses = self.nodes.iter().map(|node| format!("127.0.0.1:{}", port(&node.ports)));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Stops a node in order (SIGTERM): it transfers its leaderships first.
    pub fn stop(&mut self, node: usize) {
        self.node(node).stop();
    }

    /// Kills a node (SIGKILL).
    pub fn kill(&mut self, node: usize) {
        self.node(node).process = None;
    }

    /// Pauses a node (SIGSTOP): its connections stay open, and it does not respond.
    pub fn pause(&mut self, node: usize) {
        self.node(node).signal(Signal::STOP);
    }

    /// Resumes a paused node (SIGCONT).
    pub fn resume(&mut self, node: usize) {
        self.node(node).signal(Signal::CONT);
    }

    /// Restarts a stopped or killed node on its port and data, and waits until it is in sync.
    pub fn start_again(&mut self, node: usize) {
        self.launch(node);
        self.wait_until_in_sync(node);
    }

    /// As [`Cluster::start_again`], without waiting: for nodes that need one another to start.
    pub fn launch(&mut self, node: usize) {
        self.node(node).launch().unwrap_or_else(|missing| panic!("{missing}"));
    }

    /// Waits until a node responds and has caught up, so that another one can be stopped.
    pub fn wait_until_in_sync(&mut self, node: usize) {
        self.node(node).wait_until_it_knows(1);
    }

    /// Stops a node in order and restarts it: one step of a rolling restart.
    pub fn restart(&mut self, node: usize) {
        self.stop(node);
        self.start_again(node);
    }

    /// Whether a node that started left out the markers of a decided transaction, because it did not
    /// know yet which node leads the partition (docs/engine.md): what was committed stays hidden.
    pub fn has_skipped_markers(&self) -> bool {
        self.nodes.iter().any(|node| node.log_text().contains("hence can be skipped"))
    }

    fn node(&mut self, id: usize) -> &mut Node {
        &mut self.nodes[id - 1]
    }
}

impl Drop for Cluster {
    /// Kills the nodes; logs and data of a failed test are kept, and their path is printed.
    fn drop(&mut self) {
        self.nodes.clear();
        if thread::panicking() {
            eprintln!("the brokers' logs: {}", self.directory.display());
            return;
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

// === Node: one broker's files, ports and process ===

#[derive(Debug)]
struct Node {
    id: usize,
    directory: PathBuf,
    installation: PathBuf,
    jvm: &'static [&'static str],
    ports: Ports,
    process: Option<Guarded>,
}

#[derive(Debug)]
struct Ports {
    plain: u16,
    controller: u16,
    sasl: u16,
    proxied: u16,
}

impl Ports {
    fn free() -> Self {
        let [plain, controller, sasl, proxied] = std::array::from_fn(|_| free_port());
        Self { plain, controller, sasl, proxied }
    }
}

impl Node {
    fn launch(&mut self) -> Result<(), Unavailable> {
        assert!(self.process.is_none(), "node {} is running", self.id);
        let mut command = java(&self.installation, self.jvm, &self.directory)?;
        command.arg("kafka.Kafka").arg(self.directory.join("server.properties"));
        let process = Guarded::spawn(&mut command);
        self.process =
            Some(process.map_err(|error| Unavailable::new("java cannot be started", &error))?);
        Ok(())
    }

    /// Waits until the node responds to clients, knows `nodes` nodes, and is in sync for all of its
    /// replicas.
    fn wait_until_it_knows(&self, nodes: usize) {
        let deadline = Instant::now() + START_MAX;
        let address = (Ipv4Addr::LOCALHOST, self.ports.plain);
        while TcpStream::connect(address).is_err() {
            self.wait_a_little(deadline);
        }
        let client: BaseConsumer = client(&format!("127.0.0.1:{}", self.ports.plain))
            .create()
            .expect("a client needs no broker");
        while !client
            .fetch_metadata(None, Duration::from_secs(1))
            .is_ok_and(|metadata| self.is_settled(&metadata, nodes))
        {
            self.wait_a_little(deadline);
        }
    }

    fn is_settled(&self, metadata: &Metadata, nodes: usize) -> bool {
        let brokers = metadata.brokers();
        let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        let its_own = |ids: &[i32]| ids.iter().any(|id| self.is(*id));
        brokers.len() >= nodes
            && brokers.iter().any(|broker| self.is(broker.id()))
            && partitions.all(|p| !its_own(p.replicas()) || its_own(p.isr()))
    }

    fn is(&self, broker: i32) -> bool {
        usize::try_from(broker).is_ok_and(|id| id == self.id)
    }

    /// # Panics
    /// On a time-out. A Kafka that is available but does not start is an error, not a reason to
    /// skip a test.
    fn wait_a_little(&self, deadline: Instant) {
        thread::sleep(Duration::from_millis(10));
        let process = self.process.as_ref().expect("a node that was launched");
        let state = match process.is_over() {
            true => "ended",
            false if Instant::now() > deadline => "did not settle in time",
            false => return,
        };
        panic!("broker {} {state}: {}", self.id, tools::last_lines(&self.log_text()))
    }

    /// The log output of all its processes so far.
    fn log_text(&self) -> String {
        fs::read_to_string(self.directory.join("console.log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
        let process = self.process.take().expect("a signalled process exists");
        let deadline = Instant::now() + STOP_MAX;
        while !process.is_over() {
            if Instant::now() > deadline {
                eprintln!("broker {} does not stop within {STOP_MAX:?}: killed", self.id);
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref();
        let process = process.unwrap_or_else(|| panic!("node {} is not running", self.id));
        kill_process(process.pid(), signal).expect("a child that is not yet reaped");
    }
}

/// A process that ends when this value is dropped, or with the test process if that ends first.
#[derive(Debug)]
pub struct Guarded {
    process: Child,
    guard: Child,
}

impl Guarded {
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut process = command.spawn()?;
        // Reading fails when the pipe is closed without a line: the test process was killed. The
        // guard has its own process group, so that Ctrl-C at a terminal does not end it first.
        let guard = Command::new("sh")
            .args(["-c", "read -r line || kill -9 $0"])
            .arg(process.id().to_string())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match guard {
            Ok(guard) => Ok(Self { process, guard }),
            Err(error) => {
                process.kill()?;
                process.wait()?;
                Err(error)
            }
        }
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Whether it has ended. It is not reaped, so its PID stays reserved until the drop.
    pub(super) fn is_over(&self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid()), options).is_ok_and(|status| status.is_some())
    }
}

impl Guarded {
    /// Waits for its end, whatever the cause.
    pub(super) fn wait(mut self) -> io::Result<ExitStatus> {
        self.process.wait()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        use std::io::Write as _;
        drop(self.process.kill());
        // The guard must be dismissed before the PID can be reused by another process.
        if let Some(mut pipe) = self.guard.stdin.take() {
            drop(pipe.write_all(b"over\n"));
        }
        drop(self.guard.wait());
        drop(self.process.wait());
    }
}

// === Files and ports ===

fn lay_out(directory: &Path, installation: &Path, setup: &Setup) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for id in 1..=setup.nodes {
        let ports = Ports::free();
        nodes.push(Node {
            id,
            directory: directory.join(id.to_string()),
            installation: installation.to_owned(),
            jvm: setup.jvm,
            ports,
            process: None,
        });
    }
    for node in &nodes {
        let data = node.directory.join("data");
        copy_tree(&installation.join("formatted"), &data)?;
        // The formatted directory is shared by all nodes; only this file names the node.
        fs::write(data.join("meta.properties"), meta(node.id))?;
        fs::write(node.directory.join("server.properties"), properties(node, &nodes, setup))?;
    }
    Ok(nodes)
}

fn meta(id: usize) -> String {
    // 128 bits in URL-safe base 64, the format of Kafka's IDs. Only two bits of the last character
    // count, so the node-specific part comes first.
    let directory = format!("{id:03}bGl2ZWJyaWRnZS1kaXA");
    format!("version=1\ncluster.id={CLUSTER_ID}\nnode.id={id}\ndirectory.id={directory}\n")
}

/// The addresses on which a node listens, and those that it advertises.
fn listeners(node: &Node, quorum: &[Node], setup: &Setup) -> (String, String) {
    let mut advertised = format!("PLAINTEXT://127.0.0.1:{}", node.ports.plain);
    if !setup.users.is_empty() {
        let _ = write!(advertised, ",SASL://127.0.0.1:{}", node.ports.sasl);
    }
    let mut listeners = advertised.clone();
    if let Some(proxy) = setup.proxies.get(node.id - 1) {
        let _ = write!(listeners, ",PROXIED://127.0.0.1:{}", node.ports.proxied);
        let _ = write!(advertised, ",PROXIED://127.0.0.1:{proxy}");
    }
    if node.id <= quorum.len() {
        let _ = write!(listeners, ",CONTROLLER://127.0.0.1:{}", node.ports.controller);
    }
    (listeners, advertised)
}

fn properties(node: &Node, nodes: &[Node], setup: &Setup) -> String {
    let quorum = &nodes[..nodes.len().min(3)];
    let voters: Vec<_> = quorum
        .iter()
        .map(|node| format!("{}@127.0.0.1:{}", node.id, node.ports.controller))
        .collect();
    let roles = if node.id <= quorum.len() { "broker,controller" } else { "broker" };
    let replicas = quorum.len();
    let in_sync = replicas.div_ceil(2);
    let (listeners, advertised) = listeners(node, quorum, setup);
    let mut text = String::new();
    if !setup.users.is_empty() {
        text.push_str("listener.name.sasl.plain.sasl.jaas.config=");
        text.push_str("org.apache.kafka.common.security.plain.PlainLoginModule required");
        for (name, password) in &setup.users {
            let _ = write!(text, " user_{name}=\"{password}\"");
        }
        text.push_str(";\n");
    }
    let _ = write!(
        text,
        "\
process.roles={roles}
node.id={id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,PROXIED:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
log.dirs={data}
# Tests create the topics that they need, so that a missing one is noticed.
auto.create.topics.enable=false
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=3
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=3
group.initial.rebalance.delay.ms=0
# A node that is gone or paused is noticed soon.
broker.session.timeout.ms=2500
broker.heartbeat.interval.ms=400
controller.socket.timeout.ms=2000
replica.socket.timeout.ms=2000
replica.lag.time.max.ms=4000
controller.quorum.fetch.timeout.ms=1000
controller.quorum.election.timeout.ms=500
controller.quorum.election.backoff.max.ms=300
# Small, for two cores and many brokers.
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
",
        id = node.id,
        voters = voters.join(","),
        data = node.directory.join("data").display(),
    );
    for (key, value) in &setup.properties {
        let _ = writeln!(text, "{key}={value}");
    }
    text
}

/// A free port outside the range of ephemeral ports, which no other call returns while this process
/// runs: what listens there may start later, or stop and start again. Ports are reserved by locked
/// files, which the kernel unlocks when the process ends.
pub fn free_port() -> u16 {
    static RESERVED: Mutex<Vec<fs::File>> = Mutex::new(Vec::new());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
    fs::create_dir_all(&directory).expect("a writable directory");
    let width = u64::from(PORTS.end - PORTS.start);
    loop {
        let offset = RandomState::new().hash_one(()) % width;
        let port = PORTS.start + u16::try_from(offset).expect("below the width of a range of u16");
        let lock =
            fs::File::create(directory.join(port.to_string())).expect("a writable directory");
        if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            RESERVED.lock().expect("no panic under the lock").push(lock);
            return port;
        }
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), copy)?;
        }
    }
    Ok(())
}

/// A new directory for a cluster of this process; directories of ended processes are removed.
fn fresh_directory() -> Result<PathBuf, Unavailable> {
    let runs = tools::home().join("run");
    let storage = |error: io::Error| Unavailable::new("no directory for the brokers", &error);
    fs::create_dir_all(&runs).map_err(storage)?;
    for entry in fs::read_dir(&runs).map_err(storage)?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').nth(1)?.parse().ok());
        let is_gone = owner.and_then(Pid::from_raw).is_some_and(|owner| {
            rustix::process::test_kill_process(owner) == Err(rustix::io::Errno::SRCH)
        });
        if is_gone {
            // Another process may be removing it at the same time.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    let directory = runs.join(super::unique("run"));
    fs::create_dir(&directory).map_err(storage)?;
    Ok(directory)
}

// === The installation: jars, a formatted directory, a class archive ===

/// The directory of Kafka's jars, including its Java client.
pub fn jars() -> Result<PathBuf, Unavailable> {
    installation().map(|installation| installation.join("jars"))
}

/// The jars of another version of Kafka, with those of `ZooKeeper` where it needs them; created once per target
/// directory.
pub fn jars_of(version: &str) -> Result<PathBuf, Unavailable> {
    let pom = POM.replace(
        &format!("<version>{}</version>", version_of_pom()),
        &format!("<version>{version}</version>"),
    );
    let made = tools::prepared(&format!("kafka-{version}"), &pom, |directory| {
        let storage = |error: io::Error| Unavailable::new("cannot prepare the brokers", &error);
        fs::write(directory.join("pom.xml"), &pom).map_err(storage)?;
        let mut maven = Command::new("mvn");
        maven.args(["-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=jars"]);
        tools::run(maven.current_dir(directory)).map(drop)
    })?;
    Ok(made.join("jars"))
}

/// The version of the brokers of all other tests.
fn version_of_pom() -> &'static str {
    let (_, rest) = POM.split_once("<artifactId>kafka_2.13</artifactId>").expect("Kafka");
    let (_, rest) = rest.split_once("<version>").expect("its version");
    rest.split('<').next().expect("the end of the version")
}

/// Kafka's jars and the files for fast starts, created once per target directory.
fn installation() -> Result<&'static Path, Unavailable> {
    static INSTALLATION: OnceLock<Result<PathBuf, Unavailable>> = OnceLock::new();
    let installation = INSTALLATION.get_or_init(|| {
        let version = java_version()?;
        tools::prepared("installation", &format!("{version}\n{POM}"), install)
    });
    installation.as_deref().map_err(Clone::clone)
}

fn java_version() -> Result<String, Unavailable> {
    let output = tools::run(Command::new("java").arg("-version"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let major = text.split('"').nth(1).and_then(|version| version.split('.').next()?.parse().ok());
    match major {
        Some(17_u32..) => Ok(text),
        _ => Err(Unavailable(format!("Kafka 4 needs Java 17 or later, here is {text}"))),
    }
}

fn install(directory: &Path) -> Result<(), Unavailable> {
    let storage = |error: io::Error| Unavailable::new("cannot prepare the brokers", &error);
    fs::write(directory.join("pom.xml"), POM).map_err(storage)?;
    let mut maven = Command::new("mvn");
    maven.args(["-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=jars"]);
    tools::run(maven.current_dir(directory))?;

    let mut node = Node {
        id: 1,
        directory: directory.join("first"),
        installation: directory.to_owned(),
        jvm: &FAST_START,
        ports: Ports::free(),
        process: None,
    };
    fs::create_dir_all(&node.directory).map_err(storage)?;
    let config = node.directory.join("server.properties");
    let text = properties(&node, std::slice::from_ref(&node), &Setup::default());
    fs::write(&config, text).map_err(storage)?;
    let mut format = java(directory, &FAST_START, &node.directory)?;
    format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(&config);
    tools::run(format.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    copy_tree(&node.directory.join("data"), &directory.join("formatted")).map_err(storage)?;

    // One run of a broker is recorded: later starts load its classes from an archive. Without the
    // archive everything works and starts in twice the time, so a failure here is ignored.
    let mut recorded = java(directory, &FAST_START, &node.directory)?;
    recorded.arg(format!("-XX:ArchiveClassesAtExit={}", directory.join("classes.jsa").display()));
    recorded.arg("kafka.Kafka").arg(&config);
    node.process = Some(Guarded::spawn(&mut recorded).map_err(storage)?);
    node.wait_until_it_knows(1);
    node.stop();
    fs::remove_dir_all(&node.directory).map_err(storage)
}

/// A JVM with Kafka's classes, whose output is written to files in `logs`.
fn java(installation: &Path, jvm: &[&str], logs: &Path) -> Result<Command, Unavailable> {
    let storage = |error: io::Error| Unavailable::new("cannot write the broker's log", &error);
    let mut console = fs::OpenOptions::new();
    let console = console.create(true).append(true).open(logs.join("console.log"));
    let console = console.map_err(storage)?;
    let archive = installation.join("classes.jsa");
    let mut command = Command::new("java");
    command.args(jvm);
    // The archive was written by a JVM with these options.
    if jvm == FAST_START && archive.exists() {
        command.arg(format!("-XX:SharedArchiveFile={}", archive.display()));
    }
    command
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .arg("-Dorg.slf4j.simpleLogger.showDateTime=true")
        // For `Cluster::has_skipped_markers`.
        .arg(
            "-Dorg.slf4j.simpleLogger.log.kafka.coordinator.transaction.\
             TransactionMarkerChannelManager=info",
        )
        .arg("-cp")
        .arg(format!("{}/*", installation.join("jars").display()))
        .stdin(Stdio::null())
        .stdout(console.try_clone().map_err(storage)?)
        .stderr(console);
    Ok(command)
}
