//! livebridge: a durable bridge from Tencent Cloud Live event callbacks to Kafka.

pub mod admin;
pub mod bridge;
pub mod callback;
pub mod config;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod logging;
pub mod metrics;
pub mod publisher;
pub mod record;
pub mod wal;
