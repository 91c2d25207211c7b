//! Facts that stand in more than one place agree: documents, source, deployment files, alerts.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod alerts;
mod bench_parts;
mod docs;
mod structure;
#[path = "../support/mod.rs"]
mod support;
