//! livebridge: a durable bridge from Tencent Cloud Live event callbacks to Kafka.
//!
//! ```text
//! HTTP POST ─ intake ─ callback (parse, verify) ─ record ─ wal::Appender ─▶ wal writer ─ fdatasync ─▶ 200
//!                                                                              │
//! Kafka ◀─ kafka (transaction: events + one ledger record) ◀─ publisher ◀──────┘
//!                                                                ▲
//!                                                              ledger (what is published)
//! ```
//! The path of a callback: [`intake`], [`callback`] (which makes a [`record`] of an [`event`]),
//! [`wal`], [`publisher`], [`ledger`], [`kafka`].
//!
//! Around it:
//! - [`cli`]: the commands. [`config`]: the configuration. [`bridge`] starts and stops the parts.
//! - [`reload`] applies a changed configuration to a running bridge, through [`reloadable`] values.
//! - [`metrics`], [`logging`], [`log_limit`] and [`outage`] (limit log lines), [`admin`] (the
//!   status page) and [`status_history`]: what operators see.
//! - [`heartbeat`] and [`health`]: whether the parts make progress. [`gaps`]: times without
//!   accepted callbacks. [`service`]: notifies systemd.
//! - [`descriptors`] raises the limit of open files. [`proxy_protocol`] reads PROXY headers.
//!   [`permission`] has the errors of files, with advice. [`secret`] masks secrets. [`backoff`] has
//!   the pauses between retries. [`authorities`] loads the system's certificate authorities.
//! - [`tencent`] calls Tencent Cloud's API, and [`recover`] finds callbacks there that were not
//!   delivered: for commands; the running bridge uses neither. [`audit`] compares log, ledger and
//!   topics.
//! - [`sample`] makes sample callbacks, and [`sender`] sends them: for `dev`, `send` and
//!   benchmarks.
//!
//! # Invariants
//! - **I1** A callback is answered 200 only when its record is durable: written, flushed, and its
//!   file `fdatasync`ed.
//! - **I2** Only a verified callback becomes a record.
//! - **I3** A record leaves the log only when the ledger lists its transaction as committed,
//!   when it was absorbed as a retry of one whose transaction is, or when it cannot be read: its
//!   segment is then kept.
//! - **I4** Records are sent in LSN order, one transaction at a time. After a crash, the publisher
//!   resumes after the last record in the ledger. Each process that opens a log directory is an
//!   *opening*, with an id. A ledger record counts as progress only for records that its writer's
//!   opening wrote, and only if an opening of this directory published it. So a copy of a directory
//!   never marks records of the original as published, nor the reverse.
//! - **I5** Two records are one event only if natural key and content are equal. If two publishers
//!   publish the same event at the same time, also from different directories, the one whose ledger
//!   record comes second in the topic aborts its transaction (`publisher/contention.rs`).
//! - **I6** A failed write or sync of the log ends the process: it is then unknown what is on disk.
//! - **I7** Everything has a limit, with a name: connections, headers, bodies, the inbox, frames,
//!   segments, the log, the batch, the window, and every wait for a client.

#![forbid(unsafe_code)]

mod admin;
mod audit;
mod authorities;
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
pub mod record;
pub mod recover;
mod reload;
pub mod reloadable;
pub mod sample;
pub mod secret;
pub mod sender;
mod service;
mod status_history;
pub mod tencent;
pub mod wal;
