//! What the intake accepts, what it rejects, and what it answers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod access;
mod callback;
mod http;
mod identity;
#[path = "../support/mod.rs"]
mod support;
