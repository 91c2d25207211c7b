//! The write-ahead log against models, damage, and the properties of sled that it depends on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod damage;
mod model;
mod record;
mod segments;
#[path = "../support/mod.rs"]
mod support;
