//! The command line, the configuration, and what operators see.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cli;
mod commands;
mod config;
mod logs;
mod observe;
mod privacy;
mod reload;
mod serve;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
