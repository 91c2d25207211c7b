//! The client of Tencent Cloud's API, and what uses it, against a fake.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod api;
mod away;
mod cli;
mod gaps;
mod records;
mod recover;
mod setup;
mod streams;
#[path = "../support/mod.rs"]
mod support;
