//! livebridge as it is measured: with a production configuration except for ports and topics.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Fallible;
use super::bench::Bench;
use super::kafka;
use super::load::{self, Plan};
use super::request::KEY;
use super::server::{self, Server};
use crate::support::wire::exchange;

/// A running livebridge; it is stopped when the value is dropped.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) server: Server,
    admin: SocketAddr,
}

/// The Kafka that it publishes to.
#[derive(Clone, Debug)]
pub(crate) enum Brokers {
    /// A mock cluster, which has the topics and cannot create any.
    Mock(String),
    /// A real broker, on which the topics are created under this prefix.
    Real { bootstrap: String, prefix: String },
    /// An address without a listener.
    Away(String),
}

impl Brokers {
    /// A port that was free when it was bound and released.
    pub(crate) fn away() -> Fallible<Self> {
        Ok(Self::Away(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string()))
    }
}

/// What differs from one livebridge to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) listen: &'a str,
    pub(crate) instance: &'a str,
    pub(crate) delivery: &'a str,
    pub(crate) replication: usize,
    /// `compression.type` of its producers.
    pub(crate) compression: &'a str,
}

impl Default for Launch<'_> {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0",
            instance: "bench",
            delivery: "exactly-once",
            replication: 1,
            compression: "none",
        }
    }
}

impl Bridge {
    /// Starts it with its log and its files in `directory`.
    pub(crate) fn start(bench: &Bench, directory: &Path, brokers: &Brokers) -> Fallible<Self> {
        Self::start_as(bench, directory, brokers, &Launch::default())
    }

    /// The same, as `launch` says.
    pub(crate) fn start_as(
        bench: &Bench,
        directory: &Path,
        brokers: &Brokers,
        launch: &Launch<'_>,
    ) -> Fallible<Self> {
        Self::launch(bench, directory, brokers, launch, &[])
    }

    /// Starts it at `address` and returns the time from there to the first accepted callback.
    pub(crate) fn start_and_ask(
        bench: &Bench,
        directory: &Path,
        brokers: &Brokers,
        address: SocketAddr,
    ) -> Fallible<(Self, Duration)> {
        let (text, run) = (address.to_string(), bench.next_run().to_string());
        let launch = Launch { listen: &text, ..Launch::default() };
        let ask = ["--ask", &text, "--run", &run];
        let bridge = Self::launch(bench, directory, brokers, &launch, &ask)?;
        let took = bridge
            .server
            .ready_values
            .first()
            .ok_or("the child did not report how long it took")?;
        let took = Duration::from_micros(took.parse()?);
        Ok((bridge, took))
    }

    fn launch(
        bench: &Bench,
        directory: &Path,
        brokers: &Brokers,
        launch: &Launch<'_>,
        further: &[&str],
    ) -> Fallible<Self> {
        let (config, log) = (directory.join("livebridge.toml"), directory.join("livebridge.log"));
        fs::write(&config, configuration(&directory.join("data"), brokers, launch))?;
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

    /// The current values of metrics: of one series, or summed over the labels of a name.
    pub(crate) fn metrics<const N: usize>(&self, names: [&str; N]) -> Fallible<[f64; N]> {
        let answer = exchange(self.admin, "GET /metrics HTTP/1.1\r\nhost: bench\r\n\r\n");
        let text = answer.ok_or("the admin listener does not respond")?.body;
        let series = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse::<f64>().ok()?))
        };
        let series: Vec<(String, f64)> = text.lines().filter_map(series).collect();
        Ok(names.map(|name| {
            let is = |other: &str| other == name || other.split('{').next() == Some(name);
            let values = series.iter().filter(|(other, _)| is(other));
            values.map(|(_, value)| value).sum()
        }))
    }

    /// Waits until it reports `count` published events; returns when it did.
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

    /// Sends callbacks briefly, so that the measurement meets a server that has processed some and,
    /// once they are published, has a connection to Kafka. Returns how many were accepted.
    pub(crate) fn warm_up(&self, bench: &Bench) -> Fallible<u64> {
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

fn configuration(data: &Path, brokers: &Brokers, launch: &Launch<'_>) -> String {
    let Launch { listen, instance, delivery, replication, compression } = launch;
    let data = toml::Value::from(data.display().to_string());
    let (bootstrap, topics) = match brokers {
        Brokers::Mock(bootstrap) | Brokers::Away(bootstrap) => {
            (bootstrap, "create_topics = false\n".to_owned())
        }
        Brokers::Real { bootstrap, prefix } => {
            (bootstrap, format!("topic_prefix = \"{prefix}\"\n"))
        }
    };
    // Ten million records and those that a run adds do not fit the default.
    format!(
        "[http]\nlisten = \"{listen}\"\n\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\n\
         [callback]\nkeys = [\"{KEY}\"]\n\n\
         [wal]\ndir = {data}\nmax_bytes = \"100GiB\"\n\n\
         [kafka]\nbrokers = \"{bootstrap}\"\ninstance = \"{instance}\"\n\
         delivery = \"{delivery}\"\nreplication = {replication}\npartitions = {}\n{topics}\n\
         [kafka.client]\n\"compression.type\" = \"{compression}\"\n",
        kafka::PARTITIONS
    )
}
