//! The whole path on old versions of Apache Kafka: the oldest that is promised, with `ZooKeeper`, and the last one
//! before the version that all other tests use.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::support::bridge::{Bridge, KEY};
use crate::support::consumer::{self, Isolation};
use crate::support::kafka::{Guarded, client, free_port, jars_of};
use crate::support::{self, Unavailable, process};

/// For two JVMs without a class archive on two busy cores.
const START_MAX: Duration = Duration::from_secs(90);

/// A broker of another version, with its `ZooKeeper` or its own controller.
struct Broker {
    bootstrap: String,
    _processes: Vec<Guarded>,
    dir: tempfile::TempDir,
}

impl Broker {
    fn start(version: &str, has_zookeeper: bool) -> Result<Self, Unavailable> {
        let jars = jars_of(version)?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let [port, other] = std::array::from_fn(|_| free_port());
        let mut properties = format!(
            "listeners=PLAINTEXT://127.0.0.1:{port}{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             log.dirs={data}\nauto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=3\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=3\ngroup.initial.rebalance.delay.ms=0\n\
             log.cleaner.dedupe.buffer.size=16777216\n",
            controller = if has_zookeeper {
                String::new()
            } else {
                format!(",CONTROLLER://127.0.0.1:{other}")
            },
            data = dir.path().join("data").display(),
        );
        let mut processes = Vec::new();
        let config = dir.path().join("server.properties");
        if has_zookeeper {
            let zoo = dir.path().join("zoo.cfg");
            let data = dir.path().join("zookeeper");
            let text = format!(
                "dataDir={}\nclientPortAddress=127.0.0.1\nclientPort={other}\nadmin.enableServer=false\n",
                data.display()
            );
            fs::write(&zoo, text).unwrap();
            let class = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
            processes.push(Guarded::spawn(java(&jars, dir.path(), class).arg(&zoo)).unwrap());
            let _ = write!(properties, "broker.id=1\nzookeeper.connect=127.0.0.1:{other}\n");
            fs::write(&config, properties).unwrap();
        } else {
            let _ = write!(
                properties,
                "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n\
                 controller.quorum.voters=1@127.0.0.1:{other}\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
            );
            fs::write(&config, properties).unwrap();
            let mut format = java(&jars, dir.path(), "kafka.tools.StorageTool");
            format.args(["format", "-t", "bGl2ZWJyaWRnZS10ZXN0cw", "-c"]).arg(&config);
            assert!(format.status().unwrap().success(), "{}", log(dir.path()));
        }
        processes
            .push(Guarded::spawn(java(&jars, dir.path(), "kafka.Kafka").arg(&config)).unwrap());
        let broker = Self { bootstrap: format!("127.0.0.1:{port}"), _processes: processes, dir };
        broker.wait();
        Ok(broker)
    }

    fn wait(&self) {
        let consumer: BaseConsumer = client(&self.bootstrap).create().unwrap();
        let is_up = || {
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(1));
            metadata.is_ok_and(|metadata| metadata.brokers().len() == 1)
        };
        support::wait_until(START_MAX, is_up, || log(self.dir.path()));
    }
}

fn java(jars: &Path, dir: &Path, class: &str) -> Command {
    let output = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new("java");
    command.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
    command.arg("-cp").arg(format!("{}/*", jars.display())).arg(class).stdin(Stdio::null());
    command.stdout(output.try_clone().unwrap()).stderr(output);
    command
}

/// The last lines that the processes in `dir` printed.
fn log(dir: &Path) -> String {
    let text = fs::read_to_string(PathBuf::from(dir).join("log")).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Callbacks of every type in, a kill, and every event once out of Kafka.
fn assert_whole_path(version: &str, has_zookeeper: bool) {
    const COUNT: usize = 120;
    let test = format!("versions: Kafka {version}");
    let Some(broker) = support::or_skip(&test, Broker::start(version, has_zookeeper)) else {
        return;
    };
    let bridge = Bridge::new("versions", &broker.bootstrap, "old");
    bridge.start();
    let url = format!("http://{}/callback", bridge.intake());
    let send = || {
        let count = COUNT.to_string();
        let mut command = process::livebridge(&["send", "--url", &url, "--count", &count]);
        let sent = process::run(command.env("LIVEBRIDGE_SEND_KEY", KEY));
        assert!(sent.stdout.starts_with(&format!("{COUNT} × 200")), "{sent:?}");
    };
    send();
    bridge.kill();
    bridge.start();
    send();
    bridge.drain(Duration::from_mins(1));

    // `check` tries transactions with every topic.
    let checked = bridge.run(&["check"]);
    assert!(checked.stdout.contains("ok    transactions work; "), "{version}: {checked:?}");

    let fields = ["topic", "ce_id"];
    let read = consumer::read_fields(&broker.bootstrap, &["old.*"], Isolation::Committed, fields);
    let Some(read) = support::or_skip(&test, read) else { return };
    let events: Vec<_> = read.iter().filter(|[topic, _]| topic != "old.ledger").collect();
    let distinct: BTreeSet<_> = events.iter().map(|[_, id]| id).collect();
    assert_eq!((events.len(), distinct.len()), (2 * COUNT, 2 * COUNT), "{version}");
}

#[test]
fn the_whole_path_works_on_kafka_2_4_with_zookeeper() {
    assert_whole_path("2.4.1", true);
}

#[test]
fn the_whole_path_works_on_kafka_3_9() {
    assert_whole_path("3.9.1", false);
}
