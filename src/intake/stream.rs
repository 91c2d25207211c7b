//! The byte stream of a connection: plain or TLS, with its activity recorded for time-outs, and
//! closed so that the last response arrives.
//!
//! When a server closes a socket with unread bytes in it, the kernel sends a reset, and the client
//! may lose the response that was sent before. So after a response that leaves bytes unread, the
//! connection is half closed, and further bytes of the client are read and dropped, within limits
//! (as nginx's `lingering_close`).

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::activity::{Activity, Linger};
use crate::metrics::{self, CloseReason};

/// How long a connection is read after a rejection: enough for [`LINGER_BYTES_MAX`] at
/// 13 Mbit/s, and half of what a slow body may take.
const LINGER_LONG: Duration = Duration::from_secs(5);
/// The same after other last responses, and after a body that timed out: bytes in transit arrive
/// within a round trip.
const LINGER_SHORT: Duration = Duration::from_secs(1);
/// A client that has sent nothing for this long counts as done.
const LINGER_GAP: Duration = Duration::from_secs(2);
/// Bytes that are read and dropped: sixteen times the largest body that can be configured.
const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes that are dropped by one read.
const SCRATCH_BYTES: usize = 16 * 1024;

pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Delegates to the variant's stream.
macro_rules! delegate {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().transport {
            Transport::Plain($stream) => $call,
            Transport::Tls($stream) => $call,
        }
    };
}

/// A connection that records its state in its [`Activity`].
pub(super) struct ClientStream {
    transport: Transport,
    activity: Arc<Activity>,
    /// Whether the client has closed its sending side.
    ended: bool,
    closing: Option<Closing>,
}

/// The state of a half-closed connection, whose further bytes are dropped.
struct Closing {
    until: Instant,
    /// Fires at `until`, or [`LINGER_GAP`] after the last bytes.
    timer: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Closing {
    fn new(linger: Duration) -> Self {
        let until = Instant::now() + linger;
        let first = until.min(Instant::now() + LINGER_GAP);
        Self { until, timer: Box::pin(sleep_until(first)), bytes: 0 }
    }

    fn dropped(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.timer.as_mut().reset(self.until.min(Instant::now() + LINGER_GAP));
    }
}

impl ClientStream {
    pub(super) fn new(transport: Transport, activity: Arc<Activity>) -> Self {
        Self { transport, activity, ended: false, closing: None }
    }

    /// Reads and drops what the client sends until it ends, or a limit is reached.
    fn poll_drop_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = &mut self.closing else { return Poll::Ready(()) };
        // TLS is not decrypted: nothing of it is used.
        let tcp = match &self.transport {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        };
        let mut scratch = [0; SCRATCH_BYTES];
        loop {
            let timed_out = closing.timer.as_mut().poll(cx).is_ready();
            let is_still_sending = closing.bytes > 0 && Instant::now() >= closing.until;
            if is_still_sending || closing.bytes > LINGER_BYTES_MAX {
                metrics::ended(CloseReason::LingerLimit);
                return Poll::Ready(());
            }
            if timed_out {
                return Poll::Ready(());
            }
            if ready!(tcp.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            match tcp.try_read(&mut scratch) {
                Ok(0) => return Poll::Ready(()),
                Ok(count) => closing.dropped(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = (buffer.filled().len(), buffer.remaining());
        let this = self.as_mut();
        ready!(delegate!(this, stream => pin!(stream).poll_read(cx, buffer)))?;
        if buffer.filled().len() > before.0 {
            self.activity.bytes_received();
        } else if before.1 > 0 {
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let activity = Arc::clone(&self.activity);
        let written = delegate!(self, stream => pin!(stream).poll_write(cx, bytes));
        if written.is_pending() {
            activity.write_blocked();
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let activity = Arc::clone(&self.activity);
        let written = delegate!(self, stream => pin!(stream).poll_write_vectored(cx, parts));
        if written.is_pending() {
            activity.write_blocked();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.as_mut();
        let flushed = delegate!(this, stream => pin!(stream).poll_flush(cx));
        match &flushed {
            Poll::Pending => self.activity.write_blocked(),
            Poll::Ready(_) => self.activity.response_flushed(),
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let this = self.as_mut();
            ready!(delegate!(this, stream => pin!(stream).poll_shutdown(cx)))?;
            let linger = match self.activity.linger() {
                _ if self.ended => return Poll::Ready(Ok(())),
                Linger::No => return Poll::Ready(Ok(())),
                Linger::Short => LINGER_SHORT,
                Linger::Long => LINGER_LONG,
            };
            self.closing = Some(Closing::new(linger));
        }
        self.poll_drop_rest(cx).map(Ok)
    }
}
