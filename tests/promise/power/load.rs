//! Callbacks with identifying numbers, clients that send them, and which of them were acknowledged.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::trace::Trace;

/// A callback; its body is derived from these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Callback {
    pub(crate) connection: u32,
    pub(crate) number: u32,
    /// The approximate length of the body.
    pub(crate) bytes: u32,
}

impl fmt::Display for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.connection, self.number, self.bytes)
    }
}

impl Callback {
    /// The event types used, each with its own topic.
    pub(crate) const TYPES: [&str; 2] = ["push", "interrupt"];

    /// The body: a push or an interrupt of its own stream, padded.
    pub(crate) fn body(&self) -> String {
        let event_type = 1 - self.connection % 2;
        let stream = self.number % 16;
        let pad = format!("{self}/").repeat(self.bytes as usize / 12);
        format!(
            "{{\"event_type\":{event_type},\"app\":\"push.example.com\",\"appname\":\"live\",\
             \"stream_id\":\"{connection}-{stream}\",\"sequence\":\"{self}\",\
             \"event_time\":1700000000,\"pad\":\"{pad}\"}}",
            connection = self.connection,
        )
    }

    /// The callback with exactly this body.
    pub(crate) fn of(body: &str) -> Option<Self> {
        let (_, rest) = body.split_once("\"sequence\":\"")?;
        let mut numbers = rest.split_once('"')?.0.split('-').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let callback = Self { connection: next()?, number: next()?, bytes: next()? };
        (callback.body() == body).then_some(callback)
    }
}

/// The callbacks that one connection sent to one process.
#[derive(Debug)]
pub(crate) struct Sent {
    process: u32,
    port: u16,
    /// In order. All but the last were answered 200; the last may have been.
    callbacks: Vec<Callback>,
}

/// A connection to the intake.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    sent: Sent,
}

impl Client {
    pub(crate) fn connect(process: u32, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the intake listens");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket option");
        let port = stream.local_addr().expect("a connected socket").port();
        Self { stream, sent: Sent { process, port, callbacks: Vec::new() } }
    }

    /// Sends a callback and waits for the 200.
    ///
    /// # Panics
    /// On any other response: the log has space for all callbacks.
    pub(crate) fn send(&mut self, callback: Callback) -> io::Result<()> {
        self.sent.callbacks.push(callback);
        let body = callback.body();
        let request = format!(
            "POST /callback HTTP/1.1\r\nHost: bridge\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        while !answer.ends_with(b"{\"code\":0}") {
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => answer.extend_from_slice(&buffer[..read]),
            }
            let text = String::from_utf8_lossy(&answer);
            let rejected = text.len() > 12 && !text.starts_with("HTTP/1.1 200");
            assert!(!rejected, "{callback} was answered {text}");
        }
        Ok(())
    }

    /// Closes the connection.
    pub(crate) fn finish(self) -> Sent {
        self.sent
    }
}

/// The event at which each callback was acknowledged, in order.
pub(crate) fn acknowledged(trace: &Trace, sent: &[Sent]) -> Vec<(usize, Callback)> {
    let responses = trace.responses();
    let mut acknowledged = Vec::new();
    let mut used = BTreeSet::new();
    for sent in sent {
        let places = responses.get(&(sent.process, sent.port)).map_or(&[][..], Vec::as_slice);
        assert!(
            used.insert((sent.process, sent.port)),
            "two connections had one port; responses cannot be told apart"
        );
        assert!(
            (sent.callbacks.len().saturating_sub(1)..=sent.callbacks.len()).contains(&places.len()),
            "{} callbacks and {} responses on one connection",
            sent.callbacks.len(),
            places.len()
        );
        acknowledged.extend(places.iter().copied().zip(sent.callbacks.iter().copied()));
    }
    acknowledged.sort_unstable();
    acknowledged
}
