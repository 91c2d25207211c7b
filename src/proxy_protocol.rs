//! The PROXY protocol, versions 1 and 2: a proxy sends its client's address ahead of the client's
//! own bytes. <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Bytes that identify the version. No header is shorter.
const START: usize = 12;
const V2: &[u8; START] = b"\r\n\r\n\0\r\nQUIT\n";
/// The start of version 1.
const V1: &[u8] = b"PROXY ";
/// The pause between two reads of a connection that has sent less than the start of a header.
const PEEK_INTERVAL: Duration = Duration::from_millis(10);
/// The longest header of version 1.
const V1_MAX: usize = 107;
/// The longest part of version 2 after its length: addresses and the balancers' extensions.
const V2_MAX: u16 = 1024;

/// The client of a connection, according to its PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAddress {
    /// A client with this address.
    Known(IpAddr),
    /// The proxy itself, for a health check (`LOCAL`).
    Local,
    /// A client whose address the proxy does not send (`UNKNOWN`).
    Unknown,
}

/// Reads a PROXY header if the connection begins with one, and ignores it: for a listener that does
/// not need the client's address. Other bytes stay unread.
///
/// # Errors
/// The connection's, or an invalid header.
pub(crate) async fn skip(stream: &mut TcpStream) -> io::Result<()> {
    let mut start = [0; START];
    loop {
        let count = stream.peek(&mut start).await?;
        let seen = &start[..count];
        let is_prefix = |whole: &[u8]| whole.starts_with(&seen[..count.min(whole.len())]);
        if count == 0 || !(is_prefix(V2) || is_prefix(V1)) {
            return Ok(());
        }
        // Enough to distinguish it from every HTTP method.
        if count >= V1.len() {
            return read(stream).await.map(drop);
        }
        // `peek` returns at once while there are some bytes, so it cannot wait for more.
        sleep(PEEK_INTERVAL).await;
    }
}

/// Reads the header, and no byte after it.
///
/// # Errors
/// The connection's, or an invalid header.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<ClientAddress> {
    let mut start = [0; START];
    stream.read_exact(&mut start).await?;
    if start == *V2 {
        return version_2(stream).await;
    }
    if !start.starts_with(V1) {
        return Err(wrong("there is no PROXY header"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == V1_MAX {
            return Err(wrong("the PROXY header is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line)
}

fn wrong(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// `PROXY TCP4 <source> <destination> <source port> <destination port>`, or `PROXY UNKNOWN …`.
fn version_1(line: &[u8]) -> io::Result<ClientAddress> {
    let line = str::from_utf8(line).unwrap_or_default();
    let words: Vec<&str> = line.trim_end_matches("\r\n").split(' ').skip(1).collect();
    if words.first() == Some(&"UNKNOWN") {
        return Ok(ClientAddress::Unknown);
    }
    let source = || {
        let [family, source, destination, from, to] = words[..] else { return None };
        let _: (u16, u16) = (from.parse().ok()?, to.parse().ok()?);
        let (source, destination): (IpAddr, IpAddr) =
            (source.parse().ok()?, destination.parse().ok()?);
        let is = |is_family: fn(&IpAddr) -> bool| is_family(&source) && is_family(&destination);
        let matches = match family {
            "TCP4" => is(IpAddr::is_ipv4),
            "TCP6" => is(IpAddr::is_ipv6),
            _ => false,
        };
        matches.then_some(source)
    };
    source().map(ClientAddress::Known).ok_or_else(|| wrong("the PROXY header is invalid"))
}

async fn version_2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<ClientAddress> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = stream.read_u16().await?;
    if length > V2_MAX {
        return Err(wrong("the PROXY header is too long"));
    }
    let mut rest = vec![0; usize::from(length)];
    stream.read_exact(&mut rest).await?;
    // The high half of a family is 1 for IPv4 and 2 for IPv6; sources stand first.
    let source: Option<IpAddr> = match (command, family >> 4) {
        (LOCAL, _) => return Ok(ClientAddress::Local),
        (PROXY, 0 | 3) => return Ok(ClientAddress::Unknown),
        (PROXY, 1) if rest.len() >= 12 => {
            rest.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into())
        }
        (PROXY, 2) if rest.len() >= 36 => {
            rest.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into())
        }
        _ => None,
    };
    source.map(ClientAddress::Known).ok_or_else(|| wrong("the PROXY header is invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header in `bytes`, and how many of them were not read.
    fn parse(bytes: &[u8]) -> (io::Result<ClientAddress>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rest = bytes;
        let source = runtime.block_on(read(&mut rest));
        (source, rest.len())
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn a_header_gives_the_clients_address_and_no_byte_after_it_is_read() {
        let v4: [u8; 12] = [203, 0, 113, 7, 10, 0, 0, 1, 1, 2, 0, 80];
        let mut v6 = [0; 40];
        v6[..2].copy_from_slice(&[0x20, 0x01]);
        let address = |text: &str| ClientAddress::Known(text.parse().unwrap());
        for (header, expected) in [
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n".to_vec(), address("203.0.113.7")),
            (b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n".to_vec(), address("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), ClientAddress::Unknown),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), ClientAddress::Unknown),
            (version_2(0x21, 0x11, &v4), address("203.0.113.7")),
            (version_2(0x21, 0x21, &v6), address("2001::")),
            (version_2(0x20, 0x00, &[]), ClientAddress::Local),
            (version_2(0x20, 0x11, &v4), ClientAddress::Local),
            (version_2(0x21, 0x00, &[1; 7]), ClientAddress::Unknown),
        ] {
            let (source, left) = parse(&[&header[..], b"POST "].concat());
            assert_eq!((source.unwrap(), left), (expected, 5), "{}", header.escape_ascii());
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
        for bytes in [
            &b"POST /callback HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 203.0.113.7 ::1 1 2\r\n",
            b"PROXY TCP6 203.0.113.7 203.0.113.8 1 2\r\n",
            b"PROXY TCP4 203.0.113.7 203.0.113.8 1 65536\r\n",
            b"PROXY TCP4 203.0.113.7 203.0.113.8 1\r\n",
            b"PROXY TCP4 203.0.113.7 203.0.113.8 1 2 3\r\n",
            b"PROXY \xff\xff\xff\xff\xff\xff\xff\r\n",
            b"PROXY TCP4 203.0",
            long.as_bytes(),
            &version_2(0x21, 0x11, &[0; 11]),
            &version_2(0x21, 0x21, &[0; 35]),
            &version_2(0x11, 0x11, &[0; 12]),
            &version_2(0x21, 0x41, &[0; 12]),
            &version_2(0x21, 0x11, &[0; 1025]),
            &version_2(0x21, 0x11, &[0; 12])[..20],
        ] {
            assert!(parse(bytes).0.is_err(), "{}", bytes.escape_ascii());
        }
    }
}
