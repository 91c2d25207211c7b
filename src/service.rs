//! The service manager (systemd): its socket activation, and notifications to it.
//!
//! A socket of the service manager stays open between the end of one process and the start of the
//! next, and the kernel queues connections in the meantime, so an upgrade rejects none. Without a
//! service manager, everything here does nothing.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The socket for callbacks, if the service manager passed one (`LISTEN_FDS`).
///
/// # Errors
/// When what it passed is not a TCP listener.
pub(crate) fn socket() -> io::Result<Option<TcpListener>> {
    ListenFd::from_env().take_tcp_listener(0)
}

/// A state that the service manager is notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Callbacks are accepted.
    Ready,
    /// A new configuration is being read.
    Reloading,
    /// A stop was requested.
    Stopping,
}

/// Notifies the service manager.
pub(crate) fn notify(stage: Stage) {
    let notified = match stage {
        Stage::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Stage::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Stage::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = notified {
        tracing::warn!(%error, "cannot notify the service manager: {stage:?}");
    }
}

/// Notifies the service manager's watchdog forever, while `makes_progress`. Without a notification
/// for `WatchdogSec=`, it restarts the process.
pub(crate) async fn watchdog(makes_progress: impl Fn() -> bool) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // Half the time-out, as systemd advises, and never a busy loop.
    let every = (limit / 2).max(Duration::from_millis(10));
    let mut progressing = true;
    loop {
        let before = std::mem::replace(&mut progressing, makes_progress());
        if progressing {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                tracing::warn!(%error, "cannot notify the watchdog of the service manager");
            }
        } else if before {
            tracing::error!(
                "intake or log make no progress; the service manager will restart the process"
            );
        }
        tokio::time::sleep(every).await;
    }
}
