//! `[kafka.client]`: the settings of librdkafka that may be given, their bounds, and the values
//! that may be shown.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use Rule::{Among, Between, Reserved, Warned};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::setup_error::text;
use crate::permission;
use crate::secret::redact;

/// How a setting on which a promise depends is treated.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// livebridge sets it.
    Reserved,
    /// Rejected below the first or above the second number.
    Between(i64, i64),
    /// Rejected unless it is one of these.
    Among(&'static [&'static str]),
    /// Accepted; `check` and a log line state the consequence. The text is the value that is warned
    /// about, in librdkafka's own spelling; empty for any.
    Warned(&'static str),
}

/// Every setting on which a promise depends, by all its names, and why it has its rule.
#[rustfmt::skip]
const RULES: &[(&[&str], Rule, &str)] = &[
    (&["acks", "request.required.acks"], Reserved, "200 promises that all replicas in sync get the record"),
    (&["bootstrap.servers", "metadata.broker.list"], Reserved, "kafka.brokers is the key for it"),
    (&["message.timeout.ms", "delivery.timeout.ms"], Reserved, "a message must fail before its transaction times out"),
    (&["enable.idempotence"], Reserved, "kafka.delivery is the key for it"),
    (&["enable.gapless.guarantee"], Reserved, "one failed message would end the producer for good"),
    (&["max.in.flight", "max.in.flight.requests.per.connection"], Reserved, "the order within a stream depends on it"),
    (&["retries", "message.send.max.retries"], Reserved, "the order within a stream and the repeats depend on it"),
    (&["queuing.strategy"], Reserved, "last in, first out would reverse a stream"),
    (&["delivery.report.only.error"], Reserved, "the publisher waits for the report of every message"),
    (&["transactional.id"], Reserved, "kafka.instance is the key for it"),
    (&["transaction.timeout.ms"], Reserved, "it limits how long a dead instance delays consumers"),
    (&["isolation.level"], Reserved, "the ledger must not contain what was aborted"),
    (&["enable.partition.eof"], Reserved, "readers find the end of a topic by it"),
    (&["auto.offset.reset"], Reserved, "a reader that jumped to the end would forget published events"),
    (&["group.id", "group.instance.id"], Reserved, "livebridge's readers belong to no group"),
    (&["enable.auto.commit", "auto.commit.enable"], Reserved, "livebridge's readers commit no offsets"),
    (&["allow.auto.create.topics"], Reserved, "a topic that a broker creates by itself has the broker's partitions, and the ledger needs one"),
    (&["enabled_events", "log.queue"], Reserved, "livebridge receives librdkafka's events in its own way"),
    (&["internal.termination.signal"], Reserved, "signals belong to livebridge"),
    (&["plugin.library.paths"], Reserved, "foreign code in the process could change any other setting"),
    (&["test.mock.num.brokers", "test.mock.broker.rtt"], Reserved, "librdkafka would publish into its own memory"),
    (&["partitioner"], Among(&["murmur2_random", "murmur2", "consistent_random", "consistent", "fnv1a_random", "fnv1a"]), "the events of a stream stay in order only if its key chooses the partition"),
    (&["message.max.bytes"], Between(1_000_000, 1_000_000_000), "a body of 512 KiB and a ledger record must fit"),
    (&["queue.buffering.max.kbytes"], Between(16_384, 2_147_483_647), "a batch of 8 MiB must fit, or it waits for ever"),
    (&["queue.buffering.max.messages"], Between(1000, 2_147_483_647), "a queue below 1,000 messages makes every batch wait for itself"),
    (&["batch.size"], Between(1024, 2_147_483_647), "smaller requests send each event alone"),
    (&["linger.ms", "queue.buffering.max.ms"], Between(0, 500), "every transaction waits for as long, because a batch is sent as a whole"),
    (&["request.timeout.ms"], Between(1000, 25_000), "below 1 s replicas have no time to answer, above 25 s the message has failed before"),
    (&["socket.timeout.ms"], Between(1000, 25_000), "below 1 s no loaded broker answers in time, above 25 s the message has failed before"),
    (&["retry.backoff.ms", "retry.backoff.max.ms"], Between(1, 5000), "a message that waits for its retry fails after 25 s"),
    (&["reconnect.backoff.ms", "reconnect.backoff.max.ms"], Between(0, 60_000), "a broker that is back is found within a minute"),
    (&["topic.metadata.refresh.interval.ms"], Between(-1, 3_600_000), "-1 or up to an hour, as librdkafka has it"),
    (&["statistics.interval.ms"], Between(1000, 60_000), "livebridge_kafka_up of an idle bridge and the metrics about Kafka are as old as this"),
    (&["topic.blacklist"], Warned(""), "topics that it names look as if they did not exist, and are not published to"),
    (&["enable.ssl.certificate.verification"], Warned("false"), "anyone on the network path can pose as Kafka"),
    (&["ssl.endpoint.identification.algorithm"], Warned("none"), "any holder of a certificate from the same authority can pose as Kafka"),
    (&["enable.sasl.oauthbearer.unsecure.jwt"], Warned("true"), "the token is not signed and proves nothing"),
    (&["debug"], Warned(""), "librdkafka writes many log lines, at log.level = \"debug\""),
];

/// Further settings whose value may be shown; that of any other setting is hidden.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "api.version.fallback.ms", "api.version.request", "api.version.request.timeout.ms",
    "auto.commit.interval.ms", "batch.num.messages", "broker.address.family", "broker.address.ttl",
    "broker.version.fallback", "check.crcs", "client.dns.lookup", "client.id", "client.rack",
    "compression.codec", "compression.level", "compression.type", "connections.max.idle.ms",
    "consume.callback.max.messages", "coordinator.query.interval.ms", "enable.auto.offset.store",
    "enable.metrics.push", "enable.random.seed", "fetch.error.backoff.ms", "fetch.max.bytes",
    "fetch.message.max.bytes", "fetch.min.bytes", "fetch.queue.backoff.ms", "fetch.wait.max.ms",
    "group.protocol", "heartbeat.interval.ms", "https.ca.location", "log.connection.close",
    "log.thread.name", "log_level", "max.partition.fetch.bytes", "max.poll.interval.ms",
    "message.copy.max.bytes", "metadata.max.age.ms", "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy", "partition.assignment.strategy",
    "queue.buffering.backpressure.threshold", "queued.max.messages.kbytes", "queued.min.messages",
    "receive.message.max.bytes", "sasl.kerberos.keytab", "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal", "sasl.kerberos.service.name", "sasl.mechanism", "sasl.mechanisms",
    "sasl.oauthbearer.client.id", "sasl.oauthbearer.grant.type", "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope", "sasl.username", "security.protocol", "session.timeout.ms",
    "socket.connection.setup.timeout.ms", "socket.keepalive.enable", "socket.max.fails",
    "socket.nagle.disable", "socket.receive.buffer.bytes", "socket.send.buffer.bytes",
    "ssl.ca.location", "ssl.certificate.location", "ssl.cipher.suites", "ssl.crl.location",
    "ssl.curves.list", "ssl.key.location", "ssl.keystore.location", "ssl.sigalgs.list",
    "sticky.partitioning.linger.ms", "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.interval.ms", "topic.metadata.refresh.sparse",
];

/// Settings with two names: what librdkafka calls an alias, and what that stands for. Without those
/// that livebridge sets, and those of OIDC, which this build does not have.
const ALIASES: &[(&str, &str)] = &[
    ("compression.type", "compression.codec"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("sasl.mechanism", "sasl.mechanisms"),
];

/// Settings that name a file, which is read as soon as there is a client with TLS.
const FILES: &[&str] = &[
    "ssl.ca.location", "ssl.certificate.location", "ssl.crl.location", "ssl.key.location",
    "ssl.keystore.location",
];

/// Settings with a secret in their value.
const SECRET: &[&str] = &[
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.password",
    "ssl.ca.pem",
    "ssl.certificate.pem",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];

/// Settings of Java's clients, and what takes their place in librdkafka.
const JAVA: &[(&str, &str)] = &[
    ("key.serializer", "nothing: livebridge sends bytes"),
    ("sasl.client.callback.handler.class", "nothing: it runs no Java"),
    ("sasl.jaas.config", "sasl.username and sasl.password"),
    ("sasl.login.callback.handler.class", "nothing: it runs no Java"),
    ("ssl.key.store.type", "ssl.keystore.location (PKCS#12), or ssl.key.location (PEM)"),
    ("ssl.keystore.certificate.chain", "ssl.certificate.pem"),
    ("ssl.keystore.key", "ssl.key.pem"),
    ("ssl.keystore.type", "ssl.keystore.location (PKCS#12), or ssl.key.location (PEM)"),
    ("ssl.truststore.certificates", "ssl.ca.pem"),
    ("ssl.truststore.location", "ssl.ca.location (PEM)"),
    ("ssl.truststore.password", "ssl.ca.location (PEM), which has no password"),
    ("ssl.truststore.type", "ssl.ca.location (PEM)"),
    ("value.serializer", "nothing: livebridge sends bytes"),
];

/// Why the settings of `[kafka.client]` are rejected. No variant holds a value that may be a
/// secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// librdkafka has no such setting.
    #[error("librdkafka has no setting {name}{}", of_java(.name))]
    Unknown {
        /// The setting.
        name: String,
    },
    /// livebridge or librdkafka rejects a value, or a file that it names.
    #[error("{0}")]
    Rejected(String),
}

fn of_java(name: &str) -> String {
    let java = JAVA.iter().find(|(java, _)| java.eq_ignore_ascii_case(name));
    java.map_or_else(String::new, |(_, instead)| {
        format!(", which is Java's; in its place: {instead}")
    })
}

impl SettingError {
    /// The name that librdkafka does not know, when it may be a mistyped one.
    #[must_use]
    pub fn mistyped(&self) -> Option<&str> {
        match self {
            Self::Unknown { name } if of_java(name).is_empty() => Some(name),
            _ => None,
        }
    }

    /// What librdkafka said when it was given the settings.
    pub(super) fn of(error: &KafkaError) -> Self {
        let KafkaError::ClientConfig(kind, detail, name, _) = error else {
            return Self::Rejected(format!("librdkafka rejects the settings: {}", text(error)));
        };
        let name = name.clone();
        // Of some of Java's settings librdkafka knows that they are not its own.
        let unknown = *kind == RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN || !of_java(&name).is_empty();
        if unknown {
            return Self::Unknown { name };
        }
        let detail =
            if is_harmless(&name) { format!(": {}", redact(detail)) } else { String::new() };
        Self::Rejected(format!("librdkafka rejects the value of {name}{detail}"))
    }
}

/// Rejects what would break a promise, and files that cannot be read.
pub(super) fn check(client: &BTreeMap<String, String>) -> Result<(), SettingError> {
    let protocol = client.get("security.protocol").map(|protocol| protocol.to_ascii_lowercase());
    if protocol.is_some_and(|protocol| protocol.contains("ssl")) {
        FILES
            .iter()
            .try_for_each(|name| client.get(*name).map_or(Ok(()), |path| open(name, path)))?;
    }
    for (name, value) in client {
        let Some((_, rule, reason)) = rule(name) else { continue };
        let bounds = match rule {
            Reserved => {
                let problem = format!("{name} is set by livebridge: {reason}; take it out");
                return Err(SettingError::Rejected(problem));
            }
            Between(low, high) => {
                let number = value.trim().parse::<i64>();
                if number.is_ok_and(|number| (*low..=*high).contains(&number)) {
                    continue;
                }
                format!("a whole number from {low} to {high}")
            }
            Among(values) => {
                if values.iter().any(|known| *known == value) {
                    continue;
                }
                format!("one of {}", values.join(", "))
            }
            Warned(_) => continue,
        };
        return Err(SettingError::Rejected(format!("{name} must be {bounds}: {reason}")));
    }
    Ok(())
}

/// Tries to open a file that a setting names: librdkafka's error does not name it.
fn open(name: &str, path: &str) -> Result<(), SettingError> {
    // With "probe" librdkafka looks in the usual places.
    if path == "probe" {
        return Ok(());
    }
    File::open(path).map(drop).map_err(|cause| {
        let advice = permission::advice(Path::new(path), &cause);
        SettingError::Rejected(format!("{name}: cannot read {path}: {cause}{advice}"))
    })
}

/// The consequences of the accepted settings.
pub(super) fn warnings(client: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    client.iter().filter_map(|(name, value)| {
        let (_, Warned(of), reason) = rule(name)? else { return None };
        let matches = of.is_empty() || *of == effective(name, value);
        matches.then(|| format!("kafka.client: {name} is set: {reason}"))
    })
}

/// The value that librdkafka makes of `value`: of a flag, `f`, `0` and `FALSE` are `false`.
fn effective(name: &str, value: &str) -> String {
    let parsed = ClientConfig::new().set(name, value).create_native_config();
    parsed.and_then(|parsed| parsed.get(name)).unwrap_or_else(|_| value.to_owned())
}

fn rule(name: &str) -> Option<&'static (&'static [&'static str], Rule, &'static str)> {
    RULES.iter().find(|(names, ..)| names.contains(&name))
}

/// The setting that `name` stands for, which may have another name.
#[must_use]
pub fn meant_by(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, setting)| setting)
}

/// The settings that livebridge sets, by all their names.
pub fn reserved() -> impl Iterator<Item = &'static str> {
    let reserved = RULES.iter().filter(|(_, rule, _)| matches!(rule, Reserved));
    reserved.flat_map(|(names, ..)| names.iter().copied())
}

/// The settings that may be given, to find the one that a mistyped name stands for.
pub fn known() -> impl Iterator<Item = &'static str> {
    let ruled = RULES.iter().filter(|(_, rule, _)| !matches!(rule, Reserved));
    let ruled = ruled.flat_map(|(names, ..)| names.iter());
    ruled.chain(HARMLESS).chain(SECRET).copied()
}

/// Whether the value of `name` may be shown. Those of unknown settings may not: `sasl.passwrod` has
/// a password in it.
#[must_use]
pub fn is_harmless(name: &str) -> bool {
    HARMLESS.contains(&name) || rule(name).is_some()
}

/// Whether the value of `name` is a secret. That of an unknown setting may be one.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    SECRET.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_value_that_weakens_security_is_warned_about() {
        for (name, insecure, secure) in [
            (
                "enable.ssl.certificate.verification",
                &["false", "False", "f", "F", "0"][..],
                &["true", "T", "1"][..],
            ),
            ("enable.sasl.oauthbearer.unsecure.jwt", &["true", "TRUE", "t", "1"], &["false", "0"]),
            ("ssl.endpoint.identification.algorithm", &["none", "NONE"], &["https"]),
        ] {
            let warned = |value: &&str| {
                let client = BTreeMap::from([(name.to_owned(), (*value).to_owned())]);
                warnings(&client).next().is_some()
            };
            assert!(insecure.iter().all(warned), "{name}");
            assert!(!secure.iter().any(warned), "{name}");
        }
    }

    #[test]
    fn librdkafka_knows_every_name_in_the_tables() {
        let names = known().chain(reserved()).filter(|name| !name.starts_with("test.mock."));
        for name in names {
            // Any value will do: an unknown name is rejected for itself.
            let outcome = ClientConfig::new().set(name, "1").create_native_config();
            if let Err(KafkaError::ClientConfig(kind, detail, ..)) = outcome {
                assert_ne!(kind, RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, "{name}: {detail}");
            }
        }
    }

    #[test]
    fn librdkafka_knows_the_aliases() {
        for (alias, setting) in ALIASES {
            let value = match *alias {
                "compression.type" => "lz4",
                "sasl.mechanism" => "PLAIN",
                _ => "1234",
            };
            let given = ClientConfig::new().set(*alias, value).create_native_config().unwrap();
            assert_eq!(given.get(setting).unwrap().trim_end_matches(".000"), value, "{alias}");
        }
    }

    #[test]
    fn no_name_stands_in_two_tables() {
        let mut names: Vec<&str> = known().chain(reserved()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(SECRET.iter().all(|name| !is_harmless(name)));
    }
}
