//! The keys of the configuration, their defaults, and the checks of their values.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Value;

use super::access::{self, RawAccess, RawTls};
use super::{Config, ConfigError, Settings, values};
use crate::callback::{UnsignedPolicy, Verifier};
use crate::event::EventType;
use crate::kafka::{self, Delivery};
use crate::publisher::{self, Topics};
use crate::record::BODY_MAX;
use crate::{admin, intake, ledger, logging, wal};

/// The sections and their keys, in the order of the documentation. Serialized, the defaults are the
/// list of keys in [`super::keys`]. No `Debug`: there are secrets among the values.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    http: RawHttp,
    tls: RawTls,
    access: RawAccess,
    admin: RawAdmin,
    callback: RawCallback,
    wal: RawWal,
    kafka: RawKafka,
    dedup: RawDedup,
    log: RawLog,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawHttp {
    #[serde(deserialize_with = "listen")]
    listen: SocketAddr,
    path: String,
    max_body: Size,
    max_connections: usize,
    max_connections_per_address: usize,
    keep_alive: Span,
    deadline: Span,
    drain: Span,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawAdmin {
    #[serde(deserialize_with = "listen")]
    listen: SocketAddr,
    #[serde(deserialize_with = "access::word", serialize_with = "or_empty")]
    token: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawCallback {
    #[serde(deserialize_with = "secrets")]
    keys: Vec<String>,
    #[serde(serialize_with = "or_empty")]
    keys_file: Option<PathBuf>,
    expiry_leeway: Span,
    unsigned: Vec<TypeName>,
    omit: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawWal {
    dir: PathBuf,
    max_bytes: Size,
    min_free_bytes: Size,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawKafka {
    brokers: String,
    #[serde(serialize_with = "or_empty")]
    instance: Option<String>,
    topic_prefix: String,
    delivery: Delivery,
    create_topics: bool,
    partitions: i32,
    replication: i32,
    #[serde(deserialize_with = "settings")]
    client: BTreeMap<String, String>,
    topics: BTreeMap<String, String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawDedup {
    window: Span,
    max_ids: usize,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    level: String,
    format: logging::Format,
}

impl Default for RawHttp {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            path: "/callback".into(),
            max_body: Size(ByteSize::kib(256)),
            max_connections: 4096,
            max_connections_per_address: 1024,
            // Longer than the idle time of balancers, which is 60 s mostly: the end that closes an
            // idle connection must be the one that sends requests.
            keep_alive: Span(Duration::from_secs(75)),
            deadline: Span(Duration::from_secs(5)),
            drain: Span(Duration::ZERO),
        }
    }
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)), token: None }
    }
}

impl Default for RawCallback {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            keys_file: None,
            // Twelve retries span 16 min, and `t` may be that of the first try.
            expiry_leeway: Span(Duration::from_mins(20)),
            unsigned: Vec::new(),
            omit: Vec::new(),
        }
    }
}

impl Default for RawWal {
    fn default() -> Self {
        let (max_bytes, min_free_bytes) = (Size(ByteSize::gib(10)), Size(ByteSize::gib(1)));
        Self { dir: "data".into(), max_bytes, min_free_bytes }
    }
}

impl Default for RawKafka {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            instance: None,
            topic_prefix: "live".into(),
            delivery: Delivery::ExactlyOnce,
            create_topics: true,
            partitions: 6,
            replication: 1,
            client: BTreeMap::new(),
            topics: BTreeMap::new(),
        }
    }
}

impl Default for RawDedup {
    fn default() -> Self {
        // Retries come up to 16 min late; 3.6 million ids are about 80 MB.
        Self { window: Span(Duration::from_hours(1)), max_ids: 3_600_000 }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        Self { level: "info".into(), format: logging::Format::Auto }
    }
}

/// A duration as `"30s"` or `"20m"`.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Span(Duration);

impl From<Span> for String {
    fn from(Span(duration): Span) -> Self {
        humantime::format_duration(duration).to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map(Self)
            .map_err(|cause| format!("{text:?} is not a duration such as \"30s\" ({cause})"))
    }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = text(Value::deserialize(deserializer)?);
    text.and_then(|text| values::listen_address(&text)).ok_or_else(|| {
        D::Error::custom(
            "must be an address and a port, such as \"0.0.0.0:8080\", \"127.0.0.1:8080\", \"[::]:8080\" or \
             \":8080\"",
        )
    })
}

/// A size as `"10GiB"`, or a number of bytes.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Size(ByteSize);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string().replace(".0 ", ""))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let size = match &value {
            Value::String(text) => text.trim().parse().ok(),
            Value::Integer(bytes) => u64::try_from(*bytes).ok().map(ByteSize),
            _ => None,
        };
        size.map(Self).ok_or_else(|| {
            D::Error::custom(format!("{value} is not a size such as \"10GiB\" or \"500MB\""))
        })
    }
}

/// TOML has no value for a key that is not set, and would leave it out of the list of keys.
#[expect(clippy::ref_option, reason = "serde calls it so")]
pub(super) fn or_empty<T: Serialize, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str(""),
    }
}

/// An event type as a number or as text.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum TypeName {
    Code(i64),
    Name(String),
}

/// A list of texts. What stands there instead is not repeated: it may be a secret all the same.
fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = match Value::deserialize(deserializer)? {
        Value::Array(items) => items.into_iter().map(text).collect(),
        _ => None,
    };
    texts.ok_or_else(|| D::Error::custom("must be a list of texts such as [\"key\"]"))
}

fn text(value: Value) -> Option<String> {
    if let Value::String(text) = value { Some(text) } else { None }
}

/// Settings of librdkafka, which accepts all of them as text.
fn settings<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let text = |(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Integer(number) => Ok((name, number.to_string())),
        Value::Boolean(flag) => Ok((name, flag.to_string())),
        _ => Err(D::Error::custom(format!("{name} must be text, a whole number, true or false"))),
    };
    let Value::Table(table) = Value::deserialize(deserializer)? else {
        return Err(D::Error::custom("must be a table of librdkafka's settings"));
    };
    table.into_iter().map(text).collect()
}

/// Two segments: one is written, and one may still have to be published.
const WAL_BYTES_RECOMMENDED: ByteSize = ByteSize::mib(64);
/// From a callback to its last retry.
const RETRIES_SPAN: Duration = Duration::from_mins(16);

fn bad(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::value(key, problem)
}

impl Raw {
    pub(super) fn check(self) -> Result<Config, ConfigError> {
        if self.dedup.window.0 < Duration::from_secs(10) {
            let problem = "must be at least 10s; Tencent's retries come up to 16m late";
            return Err(bad("dedup.window", problem));
        }
        if self.dedup.max_ids < 1000 {
            return Err(bad("dedup.max_ids", "must be at least 1000"));
        }
        if values::collide(self.http.listen, self.admin.listen) {
            let problem = format!("must not have the port of http.listen, {}", self.http.listen);
            return Err(bad("admin.listen", problem));
        }
        if self.wal.dir.as_os_str().is_empty() {
            return Err(bad("wal.dir", "is empty; name the directory of the log"));
        }
        let mut notes = self.contradictions();
        let kafka = self.kafka;
        let files = self.callback.keys_file.iter().cloned().chain(self.tls.files()).collect();
        Ok(Config {
            http: self.http.check()?,
            omit: self.callback.omit.clone(),
            access: self.access.check(&self.tls)?,
            admin: admin::Config {
                listen: self.admin.listen,
                token: access::secret("admin.token", self.admin.token.as_deref())?,
            },
            verifier: self.callback.check(&mut notes)?,
            wal: wal::Config {
                dir: self.wal.dir,
                limits: wal::Limits {
                    max_bytes: self.wal.max_bytes.0.as_u64(),
                    min_free_bytes: self.wal.min_free_bytes.0.as_u64(),
                },
            },
            topics: Topics::new(&kafka.topic_prefix, &kafka.topics)
                .map_err(|problem| bad("kafka.topics", problem))?,
            kafka: kafka.check(&mut notes)?,
            dedup: ledger::Config { window: self.dedup.window.0, max_ids: self.dedup.max_ids },
            log: logging::Config::new(&self.log.level, self.log.format)
                .map_err(|problem| bad("log.level", problem))?,
            files,
            notes,
            settings: Settings::default(),
        })
    }
}

impl Raw {
    /// Notes about values that are valid and defeat each other.
    fn contradictions(&self) -> Vec<String> {
        let (window, leeway) = (self.dedup.window, self.callback.expiry_leeway);
        let notes = [
            (
                self.wal.max_bytes.0 < WAL_BYTES_RECOMMENDED,
                format!(
                    "wal.max_bytes: below {WAL_BYTES_RECOMMENDED}, two segments, callbacks get 503 \
                     now and then although Kafka accepts everything"
                ),
            ),
            (
                window.0 < RETRIES_SPAN,
                format!(
                    "dedup.window: Tencent's retries come up to {} late; those that come later than \
                     {} are published again",
                    String::from(Span(RETRIES_SPAN)),
                    String::from(window)
                ),
            ),
            (
                window.0 < leeway.0,
                format!(
                    "callback.expiry_leeway: of the retries that are accepted for {}, those that come \
                     later than dedup.window, {}, are published again",
                    String::from(leeway),
                    String::from(window)
                ),
            ),
        ];
        notes.into_iter().filter_map(|(applies, note)| applies.then_some(note)).collect()
    }
}

impl RawHttp {
    fn check(self) -> Result<intake::Config, ConfigError> {
        let max_body = usize::try_from(self.max_body.0.as_u64()).unwrap_or(usize::MAX);
        if !(1024..=BODY_MAX).contains(&max_body) {
            return Err(bad("http.max_body", format!("must be 1 KiB to {} KiB", BODY_MAX / 1024)));
        }
        let path = values::path(&self.path).map_err(|problem| bad("http.path", problem))?;
        if self.max_connections == 0 {
            return Err(bad("http.max_connections", "must be at least 1"));
        }
        if self.max_connections_per_address == 0 {
            let problem = "must be at least 1; the value of http.max_connections means no limit";
            return Err(bad("http.max_connections_per_address", problem));
        }
        let keep_alive = Duration::from_secs(1)..=Duration::from_hours(1);
        if !keep_alive.contains(&self.keep_alive.0) {
            return Err(bad("http.keep_alive", "must be 1s to 1h"));
        }
        if self.deadline.0.is_zero() || self.deadline.0 > Duration::from_secs(15) {
            let problem = "must be up to 15s: Tencent gives up a call after 20s";
            return Err(bad("http.deadline", problem));
        }
        if self.drain.0 > Duration::from_mins(10) {
            return Err(bad("http.drain", "must be up to 10m"));
        }
        Ok(intake::Config {
            listen: self.listen,
            path,
            max_body,
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            keep_alive: self.keep_alive.0,
            deadline: self.deadline.0,
            drain: self.drain.0,
        })
    }
}

impl RawCallback {
    fn check(self, notes: &mut Vec<String>) -> Result<Verifier, ConfigError> {
        let keys = super::secrets::read(&self.keys, self.keys_file.as_deref(), notes)?;
        let mut unsigned = UnsignedPolicy::Rejected;
        let mut types = Vec::new();
        for name in self.unsigned {
            let event_type = match name {
                TypeName::Code(code) => Ok(EventType(code)),
                TypeName::Name(name) if name == "all" => {
                    unsigned = UnsignedPolicy::All;
                    continue;
                }
                TypeName::Name(name) => EventType::parse(&name).ok_or(name),
            };
            let problem = |name| {
                format!(
                    "{name:?} is no event type; use numbers, names such as \"relay\", or \"all\""
                )
            };
            types.push(event_type.map_err(|name| bad("callback.unsigned", problem(name)))?);
        }
        if unsigned == UnsignedPolicy::Rejected && !types.is_empty() {
            unsigned = UnsignedPolicy::Types(types);
        }
        if keys.is_empty() && unsigned != UnsignedPolicy::All {
            let problem = "is empty: put in the CallbackKey of the callback template, or, if the \
                           template has none, set callback.unsigned = [\"all\"]";
            return Err(bad("callback.keys", problem));
        }
        Ok(Verifier { keys, leeway: self.expiry_leeway.0, unsigned })
    }
}

impl RawKafka {
    fn check(self, notes: &mut Vec<String>) -> Result<kafka::Config, ConfigError> {
        values::brokers(&self.brokers).map_err(|problem| bad("kafka.brokers", problem))?;
        if self.partitions < 1 {
            return Err(bad("kafka.partitions", "must be at least 1"));
        }
        if self.replication < 1 && self.replication != BROKER_DEFAULT {
            let problem = "must be at least 1, or -1 for the brokers' default";
            return Err(bad("kafka.replication", problem));
        }
        let instance = self.instance.unwrap_or_else(|| {
            let name = host_name();
            notes.extend(values::container_id(&name));
            name
        });
        if instance.trim().is_empty() {
            return Err(bad("kafka.instance", "is empty; give every instance its own name"));
        }
        if publisher::is_command(instance.as_bytes()) {
            let problem =
                format!("{instance:?} is a name as commands have it; leave out \".replay-\"");
            return Err(bad("kafka.instance", problem));
        }
        let config = kafka::Config {
            brokers: self.brokers,
            instance,
            delivery: self.delivery,
            create_topics: self.create_topics,
            partitions: self.partitions,
            replication: self.replication,
            client: self.client,
        };
        config.validate()?;
        notes.extend(config.warnings());
        Ok(config)
    }
}

/// The number of replicas that leaves it to the brokers, as in Kafka itself.
const BROKER_DEFAULT: i32 = -1;

/// The default of `kafka.instance`.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
