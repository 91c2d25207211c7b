//! livebridge: a durable bridge from Tencent Cloud Live event callbacks to Kafka.
//!
//! ```text
//! HTTP POST ─ intake ─ callback (parse, verify) ─ record ─ wal::Appender ─▶ wal writer ─ fdatasync ─▶ 200
//!                                                                              │
//! Kafka ◀─ kafka (transaction: events + one ledger record) ◀─ publisher ◀──────┘
//!                                                                ▲
//!                                                              ledger (what is published)
//! ```
//! Modules in the order in which a callback meets them:
//! [`intake`], [`callback`], [`event`] and [`record`], [`wal`], [`publisher`], [`ledger`], [`kafka`]. Around them:
//! [`config`], [`metrics`], [`recent`], [`logging`], [`admin`], and [`bridge`], which starts and
//! stops them;
//! [`reloadable`] and [`reload`] bring a new configuration to the running parts; [`service`] notifies
//! systemd, [`heartbeat`] and [`health`] tell whether the parts make progress, [`gaps`] when nothing was accepted, [`descriptors`] raises
//! the limit of open files, [`proxy_protocol`] reads PROXY headers; [`log_limit`] limits log lines,
//! [`permission`] has the errors at files, with what to do about denied access. [`tencent`] calls
//! Tencent Cloud's API for commands, and [`recover`] finds there what was not delivered; the bridge itself does not.
//!
//! # Invariants
//! - **I1** A callback is answered 200 only when its record is durable: written, flushed, and its
//!   file `fdatasync`ed.
//! - **I2** Only a verified callback becomes a record.
//! - **I3** A record leaves the log only when the ledger says that its transaction is committed, when
//!   it was absorbed as a retry of one whose transaction is, or when it cannot be read: its segment
//!   is then kept.
//! - **I4** Records are sent in LSN order, one transaction at a time; after any crash the publisher
//!   goes on behind the last record that the ledger names. A ledger record covers only what the
//!   opening that it names as writer wrote, and counts only if an opening of this directory
//!   published it: nothing that one process wrote is covered by what a process on a copy of its
//!   directory committed.
//! - **I5** Two records are one event only if natural key and content are equal. Of two publishers
//!   of the same event at the same time, whatever directories they have, the one whose ledger
//!   record comes second in the topic aborts its transaction (`publisher/contention.rs`).
//! - **I6** A failed commit ends the process: after a failed flush it is unknown what is on disk.
//! - **I7** Everything has a limit, with a name: connections, headers, bodies, the inbox, frames,
//!   segments, the log, the batch, the window, and every wait for a client.

#![forbid(unsafe_code)]

mod admin;
mod audit;
mod backoff;
mod bridge;
pub mod callback;
pub mod cli;
pub mod config;
mod descriptors;
pub mod event;
pub mod gaps;
mod health;
mod heartbeat;
pub mod intake;
pub mod kafka;
pub mod ledger;
mod log_limit;
mod logging;
pub mod metrics;
mod outage;
mod permission;
mod proxy_protocol;
pub mod publisher;
mod recent;
pub mod record;
pub mod recover;
mod reload;
pub mod reloadable;
pub mod sample;
pub mod secret;
pub mod sender;
mod service;
pub mod tencent;
pub mod wal;
