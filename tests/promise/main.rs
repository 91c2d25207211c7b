//! The promises under faults: kills, power cuts, broker and disk faults, attacks, and the model of the protocol.
//!
//! Each module has a short form here and a long campaign; docs/testing.md lists the commands.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod attack;
mod backlog;
mod clock;
mod crash;
mod disk;
mod faults;
mod fuzz;
mod power;
mod protocol_model;
#[path = "../support/mod.rs"]
mod support;
