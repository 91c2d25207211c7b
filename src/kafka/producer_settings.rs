//! librdkafka's settings for a producer, by delivery mode and by the failures of the last producer.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use super::{Config, SOCKET_TIMEOUT};

/// How long a transaction may stay open before Kafka aborts it. An abandoned one delays every
/// `read_committed` consumer for this long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the time-outs are doubled at most. The largest record, 512 KiB (`http.max_body`), then
/// passes at 5 kB/s. Every wait for an abandoned transaction of another instance depends on it.
pub const TIMEOUT_DOUBLINGS_MAX: u32 = 2;
/// The time-out of a transaction after all doublings.
pub(super) const TRANSACTION_TIMEOUT_MAX: Duration =
    Duration::from_secs(TRANSACTION_TIMEOUT.as_secs() << TIMEOUT_DOUBLINGS_MAX);
/// How often the coordinator checks for transactions past their time-out: Kafka's default of
/// `transaction.abort.timed.out.transaction.cleanup.interval.ms`.
const ABORT_INTERVAL: Duration = Duration::from_secs(10);
/// Kafka has aborted every abandoned transaction after this time. A transaction that is open for
/// longer is one that no coordinator knows.
const ABANDONED_TRANSACTION_MAX: Duration =
    Duration::from_secs(TRANSACTION_TIMEOUT_MAX.as_secs() + ABORT_INTERVAL.as_secs());
/// Reading a topic up to its end fails when nothing has arrived for this time: an abandoned
/// transaction, which hides the records behind it, is aborted before; brokers may be slow to do so.
pub const READ_STALLED: Duration =
    ABANDONED_TRANSACTION_MAX.saturating_add(Duration::from_secs(20));
/// Messages are given up before their transaction is, so that the error names the cause.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a broker may take for an answer when there is no transaction to keep short: 1 MiB
/// passes at 18 kB/s. It is librdkafka's default.
const PLAIN_SOCKET_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of messages in one request: what brokers accept by default.
pub const REQUEST_BYTES: usize = 1024 * 1024;
/// The same without transactions. A request that times out on a slow link is sent again; so it must
/// be small enough to pass in time with four others before it.
const PLAIN_REQUEST_BYTES: usize = 128 * 1024;

/// What differs from one producer to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerSettings {
    /// The highest number of bytes in one request; a larger message has one of its own.
    pub request_bytes: usize,
    /// How often the time-outs are doubled.
    pub timeout_doublings: u32,
    /// Whether the brokers offer idempotent producers; only without transactions they may not.
    pub idempotent: bool,
    /// Whether messages without a transaction are tried until Kafka accepts or rejects them.
    pub waits_forever: bool,
}

impl Default for ProducerSettings {
    fn default() -> Self {
        let request_bytes = REQUEST_BYTES;
        Self { request_bytes, timeout_doublings: 0, idempotent: true, waits_forever: true }
    }
}

impl ProducerSettings {
    /// How long a transaction may stay open.
    pub(super) fn transaction_timeout(&self) -> Duration {
        TRANSACTION_TIMEOUT * (1 << self.timeout_doublings)
    }

    /// The highest number of bytes in one request that holds more than one message.
    pub(super) fn request_bytes(&self, config: &Config) -> usize {
        let transactional = config.is_transactional();
        let largest = if transactional { REQUEST_BYTES } else { PLAIN_REQUEST_BYTES };
        let configured = config.client.get("batch.size").and_then(|bytes| bytes.parse().ok());
        self.request_bytes.min(configured.unwrap_or(largest))
    }

    /// The client's configuration.
    pub(super) fn client(&self, config: &Config) -> ClientConfig {
        let transactional = config.is_transactional();
        let idempotent = transactional || self.idempotent;
        let scaled = |timeout: Duration| timeout * (1 << self.timeout_doublings);
        let millis = |time: Duration| time.as_millis().to_string();
        let mut client = config.base();
        client
            .set("acks", "all")
            .set("enable.idempotence", idempotent.to_string())
            .set("statistics.interval.ms", config.statistics_interval().as_millis().to_string())
            .set_log_level(RDKafkaLogLevel::Warning);
        let socket_timeout =
            if transactional { scaled(SOCKET_TIMEOUT) } else { PLAIN_SOCKET_TIMEOUT };
        for (name, default) in [
            // Streams get the partitions that Java producers give them.
            ("partitioner", "murmur2_random"),
            // A batch is sent as a whole: waiting for more of it gains nothing.
            ("linger.ms", "1"),
            ("queue.buffering.max.messages", "200000"),
            ("socket.timeout.ms", &millis(socket_timeout)),
        ] {
            if !config.client.contains_key(name) {
                client.set(name, default);
            }
        }
        client.set("batch.size", self.request_bytes(config).to_string());
        let mut message_timeout = millis(scaled(MESSAGE_TIMEOUT));
        if transactional {
            client
                .set("transactional.id", &config.instance)
                .set("transaction.timeout.ms", millis(self.transaction_timeout()));
        } else {
            if self.waits_forever {
                // librdkafka retries until Kafka answers: a message that is given up may be in
                // Kafka, and would be duplicated when it is sent again.
                message_timeout = millis(Duration::ZERO);
            }
            if idempotent {
                // After a rejected request nothing more is sent to any partition, so that what
                // follows it is still behind it when it is sent by the next producer.
                client.set("enable.gapless.guarantee", "true");
            } else {
                client.set("max.in.flight.requests.per.connection", "1");
            }
        }
        client.set("message.timeout.ms", message_timeout);
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_state_the_time_outs_of_transactions() {
        let abandoned = ABANDONED_TRANSACTION_MAX.as_secs();
        let usual = (TRANSACTION_TIMEOUT + ABORT_INTERVAL).as_secs();
        let largest = TRANSACTION_TIMEOUT_MAX.as_secs();
        for (name, text, parts) in [
            (
                "docs/design.md",
                include_str!("../../docs/design.md"),
                [format!("up to {usual} s"), format!("up to {abandoned} s")],
            ),
            (
                "docs/runbook.md",
                include_str!("../../docs/runbook.md"),
                [format!("{abandoned} s: Kafka aborts"), format!("below {largest} s")],
            ),
            (
                "docs/kafka.md",
                include_str!("../../docs/kafka.md"),
                [format!("up to {abandoned} s"), format!("at least {largest} s")],
            ),
            (
                "README.md",
                include_str!("../../README.md"),
                [format!("up to {usual} s"), format!("{abandoned} s")],
            ),
        ] {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for part in parts {
                assert!(text.contains(&part), "{name} does not say {part:?}");
            }
        }
    }

    #[test]
    fn readers_wait_for_the_abort_of_the_longest_transaction() {
        let settings =
            ProducerSettings { timeout_doublings: TIMEOUT_DOUBLINGS_MAX, ..Default::default() };
        assert!(READ_STALLED > settings.transaction_timeout() + ABORT_INTERVAL);
    }
}
