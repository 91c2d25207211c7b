//! `livebridge dev`: livebridge and an in-memory Kafka in one process, to try it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::bridge::Bridge;
use crate::callback::CallbackKey;
use crate::config::Config;
use crate::event::Timestamp;
use crate::kafka::mock::MockKafka;
use crate::kafka::topic_reader::{ConsumedRecord, TopicReader};
use crate::metrics;
use crate::publisher::Topics;
use crate::sample::Samples;
use crate::sender::{RetryPolicy, Sender};
use clap::Args;

use super::{CliError, block_on, parse_rate, stop_signal};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The address at which to accept callbacks.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The address at which to serve the status page, /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    admin: SocketAddr,
    /// Send this many sample callbacks a second, of every event type; every fourth is sent twice,
    /// as a retry would be.
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = parse_rate,
          allow_negative_numbers = true)]
    samples: f64,
    /// Stop after this time, such as 10s.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Keep the log in this directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A file with callback keys, one a line, to accept Tencent's callbacks; it replaces
    /// dev-callback-key.
    #[arg(long, value_name = "FILE")]
    keys_file: Option<PathBuf>,
}

/// The callback key without --keys-file.
const KEY: &str = "dev-callback-key";
/// Partitions of each topic of the in-memory Kafka.
const PARTITIONS: i32 = 2;
/// Characters of a body that are printed: the line must fit a wide terminal.
const BODY_SHOWN: usize = 100;

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let (mut config, temporary) = config(options)?;
    let key = config.verifier.keys.first().cloned();
    let topics = config.topics.clone();
    let kafka = MockKafka::start(&topics.all(), PARTITIONS, topics.ledger())
        .map_err(CliError::other("start the in-memory Kafka"))?;
    config.kafka.brokers = kafka.brokers();
    let reader = TopicReader::new(&config.kafka, &topics.all())
        .map_err(CliError::other("read from the in-memory Kafka"))?;
    let exporter = metrics::install().map_err(CliError::other("install metrics"))?;
    let stopping = Arc::new(AtomicBool::new(false));

    let outcome = block_on(async {
        let signal = stop_signal()?;
        let dir = config.wal.dir.clone();
        let bridge = Bridge::start(config, exporter).await?;
        let url = format!("http://{}/callback", bridge.intake_address);
        print_introduction(options, &url, &kafka, &topics, &bridge, &dir, key.clone());
        let printer = thread::spawn({
            let stopping = Arc::clone(&stopping);
            move || print(&reader, &stopping)
        });
        if options.samples > 0.0 {
            tokio::spawn(send_samples(url, key, options.samples));
        }
        let time = options.time;
        let stop = async move {
            let time = async {
                match time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = signal => {}
                () = time => {}
            }
        };
        let end = bridge.run_until(stop).await;
        stopping.store(true, Ordering::Relaxed);
        let count = tokio::task::spawn_blocking(move || printer.join()).await;
        let count = count.ok().and_then(Result::ok).unwrap_or(0);
        print_out!("{count} events were published.");
        end.map_err(CliError::from)
    });
    if let Some(dir) = temporary {
        // A failure leaves the directory behind, which does no harm.
        let _ = std::fs::remove_dir_all(dir);
    }
    outcome
}

/// The configuration, and the directory to remove afterwards.
fn config(options: &Options) -> Result<(Config, Option<PathBuf>), CliError> {
    let temporary = options
        .dir
        .is_none()
        .then(|| std::env::temp_dir().join(format!("livebridge-dev-{}", std::process::id())));
    let dir = temporary.clone().or_else(|| options.dir.clone()).unwrap_or_default();
    let keys = options.keys_file.as_ref().map_or_else(
        || ("LIVEBRIDGE_CALLBACK_KEYS", KEY.to_owned()),
        |file| ("LIVEBRIDGE_CALLBACK_KEYS_FILE", file.to_string_lossy().into_owned()),
    );
    let variables = [
        ("LIVEBRIDGE_HTTP_LISTEN", options.listen.to_string()),
        ("LIVEBRIDGE_ADMIN_LISTEN", options.admin.to_string()),
        keys,
        ("LIVEBRIDGE_WAL_DIR", dir.to_string_lossy().into_owned()),
        ("LIVEBRIDGE_WAL_MIN_FREE_BYTES", "256MiB".to_owned()),
        ("LIVEBRIDGE_KAFKA_INSTANCE", "dev".to_owned()),
        ("LIVEBRIDGE_KAFKA_CREATE_TOPICS", "false".to_owned()),
    ];
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value));
    Ok((Config::from_parts(toml::Table::new(), variables)?, temporary))
}

fn print_introduction(
    options: &Options,
    url: &str,
    kafka: &MockKafka,
    topics: &Topics,
    bridge: &Bridge,
    dir: &std::path::Path,
    key: Option<CallbackKey>,
) {
    let known = options
        .keys_file
        .as_ref()
        .map_or_else(|| format!("key {KEY:?}"), |file| format!("keys in {}", file.display()));
    print_out!("callbacks  {url}   ({known})");
    print_out!("Kafka      {}   (in memory, for any Kafka client)", kafka.brokers());
    print_out!("topics     {} and {} more", topics.of(None), topics.all().len() - 1);
    print_out!("status     http://{}/", bridge.admin_address);
    print_out!("log        {}", dir.display());
    let samples = Samples::new(key);
    let push = serde_json::json!({
        "event_type": 1, "app": "push.example.com", "appname": "live", "stream_id": "my-stream",
        "sequence": "1", "event_time": Timestamp::now().as_millis() / 1000,
    });
    let event = push.as_object().cloned().unwrap_or_default();
    print_out!("\nSend one (its signature is valid for 30 minutes):\n");
    print_out!("  curl -d '{}' {url}\n", samples.delivery(event, Timestamp::now()));
    if options.samples <= 0.0 {
        print_out!("Or start with --samples 2 for two sample callbacks a second.\n");
    }
}

/// Prints records until `stopping`; returns how many.
fn print(reader: &TopicReader, stopping: &AtomicBool) -> u64 {
    const WAIT: Duration = Duration::from_millis(200);
    let mut count = 0;
    loop {
        match reader.next(WAIT) {
            Ok(Some(record)) => {
                count += 1;
                print_out!("{}", line(&record));
            }
            Ok(None) if stopping.load(Ordering::Relaxed) => return count,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "cannot read from the in-memory Kafka"),
        }
    }
}

fn line(record: &ConsumedRecord) -> String {
    let header = |name: &str| {
        let found = record.headers.iter().find(|(key, _)| key == name);
        found.map_or("-", |(_, value)| value.as_str())
    };
    let key = record.key.as_deref().map_or("-".into(), String::from_utf8_lossy);
    let body: String = String::from_utf8_lossy(&record.value).chars().take(BODY_SHOWN).collect();
    let position = format!("{}/{}", record.partition, record.offset);
    format!(
        "{:<26} {position:<6} key={key:<10} {} id={} {body}…",
        record.topic,
        header("ce_time"),
        header("ce_id")
    )
}

async fn send_samples(url: String, key: Option<CallbackKey>, rate: f64) {
    let policy = RetryPolicy { retries: 3, interval: Duration::from_secs(1) };
    let Ok(mut sender) = Sender::new(&url) else { return };
    let samples = Samples::new(key);
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate.min(1000.0)));
    for (count, event_type) in Samples::types().cycle().enumerate() {
        pace.tick().await;
        let event = samples.event(event_type);
        let deliver = || samples.delivery(event.clone(), Timestamp::now());
        let tries = if count % 4 == 3 { 2 } else { 1 };
        for _ in 0..tries {
            let outcome = sender.send(deliver(), policy, deliver).await;
            if outcome.status.is_none_or(|status| status != 200) {
                tracing::warn!(?outcome, "a sample was not accepted");
            }
        }
    }
}
