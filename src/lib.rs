//! livebridge: a durable bridge from Tencent Cloud Live event callbacks to Kafka.

pub mod callback;
pub mod kafka;
pub mod ledger;
pub mod metrics;
pub mod publisher;
pub mod record;
pub mod wal;
