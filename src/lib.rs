//! livebridge: a durable bridge from Tencent Cloud Live event callbacks to Kafka.

pub mod callback;
pub mod metrics;
pub mod record;
pub mod wal;
