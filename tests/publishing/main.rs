//! What reaches Kafka, with real brokers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod audit;
mod broker;
mod broker_settings;
mod delivery;
mod other_instances;
mod recovery;
mod replay;
mod replay_beside;
mod restore;
mod secure;
#[path = "../support/mod.rs"]
mod support;
mod unfit_kafka;
mod versions;
