//! Facts that stand in more than one place agree: documents, source, deployment files, alerts.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod alerts;
mod allocations;
mod bench_parts;
mod docs;
#[path = "../../benches/whole/request.rs"]
mod request;
mod structure;
#[path = "../support/mod.rs"]
mod support;
