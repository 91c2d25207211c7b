//! livebridge as it is measured: configured as in production but for ports and topics.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Fallible;
use super::bench::Bench;
use super::kafka;
use super::load::{self, Plan};
use super::request::KEY;
use super::server::{self, Server};

/// How long the admin listener may take to answer.
const ADMIN_MAX: Duration = Duration::from_secs(5);

/// A running livebridge; it ends with this value.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) server: Server,
    admin: SocketAddr,
}

/// Where it sends.
#[derive(Clone, Debug)]
pub(crate) enum Brokers {
    /// A mock cluster, which has the topics and cannot make any.
    Mock(String),
    /// A real broker, on which the topics are made under this prefix.
    Real { bootstrap: String, prefix: String },
    /// An address at which nobody listens.
    Away(String),
}

impl Brokers {
    /// Bound, and given back.
    pub(crate) fn away() -> Fallible<Self> {
        Ok(Self::Away(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string()))
    }
}

impl Bridge {
    /// Starts it with its log and its files in `directory`.
    pub(crate) fn start(bench: &Bench, directory: &Path, brokers: &Brokers) -> Fallible<Self> {
        Self::launch(bench, directory, brokers, "127.0.0.1:0", &[])
    }

    /// Starts it at `address` and says how long it took from there to the first callback accepted.
    pub(crate) fn start_and_ask(
        bench: &Bench,
        directory: &Path,
        brokers: &Brokers,
        address: SocketAddr,
    ) -> Fallible<(Self, Duration)> {
        let (text, run) = (address.to_string(), bench.next_run().to_string());
        let bridge =
            Self::launch(bench, directory, brokers, &text, &["--ask", &text, "--run", &run])?;
        let took = bridge.server.said.first().ok_or("the keeper did not say how long it took")?;
        let took = Duration::from_micros(took.parse()?);
        Ok((bridge, took))
    }

    fn launch(
        bench: &Bench,
        directory: &Path,
        brokers: &Brokers,
        listen: &str,
        further: &[&str],
    ) -> Fallible<Self> {
        let (config, log) = (directory.join("livebridge.toml"), directory.join("livebridge.log"));
        fs::write(&config, configuration(&directory.join("data"), brokers, listen))?;
        let mut arguments: Vec<OsString> =
            vec!["livebridge".into(), bench.livebridge().into(), config.into(), log.clone().into()];
        arguments.extend(further.iter().map(OsString::from));
        let server = Server::start(&arguments)?;
        let admin = server::address_in(&fs::read_to_string(log)?, "admin listening")
            .ok_or("livebridge does not say where its metrics are")?
            .parse()?;
        Ok(Self { server, admin })
    }

    pub(crate) fn address(&self) -> Fallible<SocketAddr> {
        Ok(self.server.address.parse()?)
    }

    /// The values of metrics at one moment, the values of their labels summed.
    pub(crate) fn metrics<const N: usize>(&self, names: [&str; N]) -> Fallible<[f64; N]> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(ADMIN_MAX))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let series = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.split('{').next()?.to_owned(), value.parse::<f64>().ok()?))
        };
        let series: Vec<(String, f64)> = answer.lines().filter_map(series).collect();
        Ok(names.map(|name| {
            let values = series.iter().filter(|(other, _)| other == name);
            values.map(|(_, value)| value).sum()
        }))
    }

    /// Waits until it says that it has published `count` events; returns when it did.
    pub(crate) fn wait_until_published(&self, count: u64, longest: Duration) -> Fallible<Instant> {
        let deadline = Instant::now() + longest;
        loop {
            let [published] = self.metrics(["livebridge_published_total"])?;
            if published >= super::stats::real(count) {
                return Ok(Instant::now());
            }
            if Instant::now() >= deadline {
                return Err(format!("of {count} events {published} were published in time").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends callbacks for a moment: what follows meets a server that has seen some, and, once they
    /// are published, one whose connection to Kafka stands. Returns how many were accepted.
    pub(crate) fn greet(&self, bench: &Bench) -> Fallible<u64> {
        let plan = Plan {
            duration: Duration::from_millis(20),
            ..Plan::closed(self.address()?, 1, bench.next_run())
        };
        let seen = load::run(&plan)?;
        match seen.accepted {
            0 => Err(format!("it accepts nothing: {:?}", seen.errors).into()),
            accepted => Ok(accepted),
        }
    }
}

fn configuration(data: &Path, brokers: &Brokers, listen: &str) -> String {
    let data = toml::Value::from(data.display().to_string());
    let (bootstrap, topics) = match brokers {
        Brokers::Mock(bootstrap) | Brokers::Away(bootstrap) => {
            (bootstrap, "create_topics = false\n".to_owned())
        }
        Brokers::Real { bootstrap, prefix } => {
            (bootstrap, format!("topic_prefix = \"{prefix}\"\n"))
        }
    };
    // Ten million records and what a run adds to them do not fit the default.
    format!(
        "[http]\nlisten = \"{listen}\"\n\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\n\
         [callback]\nkeys = [\"{KEY}\"]\n\n\
         [wal]\ndir = {data}\nmax_bytes = \"100GiB\"\n\n\
         [kafka]\nbrokers = \"{bootstrap}\"\ninstance = \"bench\"\npartitions = {}\n{topics}",
        kafka::PARTITIONS
    )
}
