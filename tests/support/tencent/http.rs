//! As much of HTTP/1.1 as the fake needs.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A request with its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) line: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// `None` when the connection ends or the request makes no sense.
    pub(super) fn read(stream: &mut impl BufRead) -> Option<Self> {
        let mut next = || {
            let mut line = String::new();
            let count = stream.read_line(&mut line).ok()?;
            (count > 0).then(|| line.trim_end().to_owned())
        };
        let line = next()?;
        let mut headers = Vec::new();
        loop {
            let header = next()?;
            let Some((name, value)) = header.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Self { line, headers, body: Vec::new() };
        let length = request.header("content-length").map_or(Some(0), |text| text.parse().ok())?;
        request.body.resize(length, 0);
        stream.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Whether the answer was written.
pub(super) fn respond(stream: &mut impl Write, status: u16, body: &str) -> bool {
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let written = stream.write_all((head + body).as_bytes()).and_then(|()| stream.flush());
    written.is_ok()
}

/// Posts a callback to an `http` URL and returns the status of the answer.
pub(super) fn post(url: &str, body: &str) -> Option<u16> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut stream = TcpStream::connect(authority).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
