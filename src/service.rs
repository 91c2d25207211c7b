//! The service manager (systemd): the socket that it holds for us, and what it wants to know.
//!
//! A socket that it holds stays open while one process ends and the next one starts, and the kernel
//! keeps who comes meanwhile: so an upgrade turns nobody away. Everything here does nothing when
//! there is no service manager.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The socket for callbacks, if it is the service manager's (`LISTEN_FDS`).
///
/// # Errors
/// When what it gave us is no such socket.
pub fn socket() -> io::Result<Option<TcpListener>> {
    ListenFd::from_env().take_tcp_listener(0)
}

/// What the service manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Callbacks are taken.
    Ready,
    /// A new configuration is read; ready again right after.
    Reloading,
    /// An order to stop was taken.
    Stopping,
}

/// Tells the service manager.
pub fn tell(stage: Stage) {
    let told = match stage {
        Stage::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Stage::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Stage::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell the service manager: {stage:?}");
    }
}

/// Tells the service manager again and again that all is well, for ever, but only while `is_well`:
/// it restarts us when it has not been told for `WatchdogSec=`.
pub async fn watchdog(is_well: impl Fn() -> bool) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // As systemd advises; and never a busy loop.
    let every = (limit / 2).max(Duration::from_millis(10));
    let mut well = true;
    loop {
        let before = std::mem::replace(&mut well, is_well());
        if well {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                tracing::warn!(%error, "cannot tell the service manager that all is well");
            }
        } else if before {
            tracing::error!("intake or log stand still; the service manager will restart this");
        }
        tokio::time::sleep(every).await;
    }
}
