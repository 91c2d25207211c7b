//! What is in deploy/ works: units, manifests, contract, consumers, drills.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod balancers;
mod consumers;
mod contract;
mod drills;
mod files;
mod kubernetes;
mod sandbox;
#[path = "../support/mod.rs"]
mod support;
