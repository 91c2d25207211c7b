//! Access control before the signature: networks, trusted proxies, a secret in a header.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::HeaderName;
use ipnet::IpNet;

use super::Tls;
use crate::secret::Secret;

/// The header that carries [`Access::secret`]; a proxy in front can add it.
const SECRET: HeaderName = HeaderName::from_static("x-livebridge-secret");
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The configured access control, and the protocols of connections.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Networks from which callbacks are accepted; empty for all.
    pub allow: Networks,
    /// Proxies whose `X-Forwarded-For` or PROXY header is trusted.
    pub trusted_proxies: Networks,
    /// Whether the proxies' connections begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The required value of the header `X-Livebridge-Secret`.
    pub secret: Option<Secret>,
    /// With a certificate, only TLS connections are accepted.
    pub tls: Option<Tls>,
}

/// A list of networks, which may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Parses texts such as `10.0.0.0/8`, `2001:db8::/32` or a single address.
    ///
    /// # Errors
    /// The first text that is neither.
    pub fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let network = |text: &str| {
            let address = || text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
            let network = text.parse().ok().or_else(|| address().map(IpNet::from));
            network.ok_or_else(|| text.to_owned())
        };
        texts.map(network).collect::<Result<_, _>>().map(Self)
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl Access {
    pub(super) fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted_proxies.contains(address)
    }

    pub(super) fn is_allowed(&self, address: IpAddr) -> bool {
        self.allow.0.is_empty() || self.allow.contains(address)
    }

    /// The address of the client that sent a request over a connection from `peer`: the last
    /// address in `X-Forwarded-For` that a trusted proxy has written and that is not a trusted
    /// proxy itself. Any client can send the header, so other addresses in it are ignored.
    pub(super) fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.is_trusted(peer) {
            return peer;
        }
        let mut client = peer;
        let lines = headers.get_all(FORWARDED).iter().rev();
        let mut hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
        while self.is_trusted(client) {
            match hops.next().map(|hop| address(hop.trim())) {
                Some(Some(before)) => client = before,
                _ => break,
            }
        }
        client
    }

    pub(super) fn has_secret(&self, headers: &HeaderMap) -> bool {
        let value = || headers.get(SECRET).map_or(&b""[..], |value| value.as_bytes());
        self.secret.as_ref().is_none_or(|secret| secret.is(value()))
    }
}

/// An address as proxies write it: alone or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().ok().map(|address: std::net::SocketAddr| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        Networks::parse(texts.iter().copied()).unwrap()
    }

    #[test]
    fn networks_hold_the_addresses_in_them_and_no_others() {
        let some = networks(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.1"]);
        for (text, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("198.51.100.1", true),
        ] {
            assert_eq!(some.contains(text.parse().unwrap()), inside, "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0", "example.com", "", "10.0.0.0/8/8"] {
            assert_eq!(Networks::parse([text].into_iter()), Err(text.to_owned()));
        }
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let access = Access { trusted_proxies: networks(&["10.0.0.0/8"]), ..Access::default() };
        for (peer, lines, client) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["192.0.2.66, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["192.0.2.66,198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["192.0.2.66", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            // An unreadable hop ends the chain: what stands before it is not trustworthy.
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, "], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED, line.parse().unwrap());
            }
            let found = access.client_address(peer.parse().unwrap(), &headers);
            assert_eq!(found.to_string(), client, "{peer} {lines:?}");
        }
    }
}
