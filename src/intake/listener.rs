//! The bound socket of the intake.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 4096;

/// The bound socket.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Binds `address`. No connection is accepted yet.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(socket.into()))
    }

    /// Takes over a socket that the service manager has bound.
    ///
    /// # Errors
    /// The operating system's.
    pub fn adopt(socket: TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The bound address, with the port that was chosen if the configured one was 0.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    pub(super) fn try_clone(&self) -> io::Result<TcpListener> {
        self.0.try_clone()
    }
}
