//! librdkafka's statistics, reduced to those that operators need.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::metrics::{self, ProducerState};

/// The fields that are read; librdkafka's STATISTICS.md explains them.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    msg_cnt: u64,
    #[serde(default)]
    msg_size: u64,
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    /// Below zero for the addresses that the configuration names.
    nodeid: i32,
    state: String,
    txerrs: u64,
    txretries: u64,
    req_timeouts: u64,
    rtt: Window,
}

/// In microseconds.
#[derive(Deserialize)]
struct Window {
    avg: i64,
}

/// Turns totals since a producer's creation into increases between two reports.
#[derive(Debug, Default)]
pub(super) struct ProducerStats(Mutex<[u64; 3]>);

impl ProducerStats {
    pub(super) fn report(&self, statistics: &[u8]) {
        match serde_json::from_slice(statistics) {
            Ok(statistics) => metrics::producer(&self.since_last(&statistics)),
            Err(error) => tracing::debug!(%error, "librdkafka's statistics cannot be read"),
        }
    }

    fn since_last(&self, statistics: &Statistics) -> ProducerState {
        let brokers = || statistics.brokers.values();
        let sum = |count: fn(&Broker) -> u64| brokers().map(count).sum::<u64>();
        let totals = [
            sum(|broker| broker.txerrs),
            sum(|broker| broker.req_timeouts),
            sum(|broker| broker.txretries),
        ];
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *last, totals);
        drop(last);
        let moved = |index: usize| totals[index].saturating_sub(before[index]);
        let connected = || brokers().filter(|broker| broker.nodeid >= 0 && broker.state == "UP");
        let slowest = connected().map(|broker| broker.rtt.avg).max().unwrap_or(0);
        ProducerState {
            brokers: connected().count() as u64,
            round_trip: Duration::from_micros(u64::try_from(slowest).unwrap_or(0)),
            messages: statistics.msg_cnt,
            bytes: statistics.msg_size,
            errors: moved(0),
            timeouts: moved(1),
            retries: moved(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(nodeid: i32, state: &str, errors: u64, avg: i64) -> String {
        format!(
            r#"{{"nodeid":{nodeid},"state":"{state}","txerrs":{errors},"txretries":0,
                "req_timeouts":1,"rtt":{{"avg":{avg},"p99":9}},"more":[]}}"#
        )
    }

    #[test]
    fn totals_become_increases_and_the_slowest_connected_broker_counts() {
        let stats = ProducerStats::default();
        let report = |errors| {
            let text = format!(
                r#"{{"name":"x","msg_cnt":3,"msg_size":300,"brokers":{{
                    "a":{},"b":{},"c":{},"boot":{}}}}}"#,
                broker(1, "UP", errors, 1500),
                broker(2, "UP", 0, 700),
                broker(3, "DOWN", 0, 9000),
                broker(-1, "UP", 0, 9000),
            );
            stats.since_last(&serde_json::from_str(&text).unwrap())
        };
        let first = ProducerState {
            brokers: 2,
            round_trip: Duration::from_micros(1500),
            messages: 3,
            bytes: 300,
            errors: 5,
            timeouts: 4,
            retries: 0,
        };
        assert_eq!(report(5), first);
        assert_eq!(report(7), ProducerState { errors: 2, timeouts: 0, ..first });
    }
}
