//! A minimal HTTP client that sends exactly the given bytes, so that requests can be malformed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::TIME_LIMIT;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header, if present.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Whether the response announces the end of the connection.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Wire {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap()
    }

    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIME_LIMIT)?;
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// A client on an existing connection.
    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
        Self { stream, received: Vec::new() }
    }

    pub(crate) fn read_timeout(self, timeout: Duration) -> Self {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
        self
    }

    /// Sends `bytes`. A connection closed by the peer shows in the response.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// As [`Wire::send`], but does not block on a full buffer; false when the connection has ended.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let sent = self.stream.write(bytes.as_ref());
        self.stream.set_nonblocking(false).unwrap();
        sent.is_ok() || sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Shuts down the sending direction; responses can still be read.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next response; `None` when the connection ends, or times out, before it is complete.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            match self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => self.receive().ok().filter(|&count| count > 0)?,
            };
        };
        let head = String::from_utf8(self.received.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Answer { status, head, body: String::new() };
        let length = answer.header("content-length").map_or(0, |text| text.parse().unwrap());
        while self.received.len() < length {
            self.receive().ok().filter(|&count| count > 0)?;
        }
        answer.body = String::from_utf8(self.received.drain(..length).collect()).unwrap();
        Some(answer)
    }

    /// Reads the rest of a response head without a body, of which a part was already read.
    pub(crate) fn skip_head(&mut self) -> bool {
        loop {
            if let Some(at) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                self.received.drain(..at + 4);
                return true;
            }
            if !self.receive().is_ok_and(|count| count > 0) {
                return false;
            }
        }
    }

    /// Whether the server closes the connection without sending anything more.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.received.is_empty()
            && match self.receive() {
                Ok(count) => count == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            }
    }

    /// Whether nothing arrives for `time`, not even the end of the connection.
    pub(crate) fn is_silent(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let outcome = self.receive();
        self.stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
        matches!(
            outcome,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        )
    }

    /// Another handle for sending on the same connection.
    pub(crate) fn try_clone(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap(), received: Vec::new() }
    }

    /// The remaining bytes.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// A connection from the loopback address `from`.
pub(crate) fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(1))?;
    Ok(socket.into())
}

/// Sends `request` on a new connection; `None` without a connection or a response.
pub(crate) fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> Option<Answer> {
    let mut wire = Wire::try_connect(address).ok()?;
    wire.send(request);
    wire.answer()
}

/// A POST of `body` to `path`.
pub(crate) fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A POST of `body` in chunks of at most `size` bytes.
pub(crate) fn post_chunked(path: &str, body: &str, size: usize) -> Vec<u8> {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for chunk in body.as_bytes().chunks(size) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// A GET of `path`.
pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n")).unwrap()
}

/// Sends callbacks one after another, each of which must be acknowledged. The server closes a
/// connection after a number of responses; another one follows.
pub(crate) fn deliver(intake: SocketAddr, bodies: impl IntoIterator<Item = impl AsRef<str>>) {
    let connect = || Wire::connect(intake).read_timeout(Duration::from_mins(1));
    let mut wire = connect();
    for body in bodies {
        let body = body.as_ref();
        wire.send(post("/callback", body));
        let answer = wire.answer().unwrap_or_else(|| panic!("no answer to {body}"));
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"code":0}"#), "{body}");
        if answer.closes() {
            wire = connect();
        }
    }
}
