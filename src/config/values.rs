//! Values that need more than a type: an address to listen on, the path of callbacks, broker
//! addresses, callback keys that cannot be right.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The longest `CallbackKey` that the console accepts.
const KEY_MAX: usize = 32;

/// The address that `text` names: `8080` and `:8080` mean all interfaces, `localhost` is 127.0.0.1.
/// Other host names are not resolved: what is listened on must not depend on DNS.
#[must_use]
pub fn listen_address(text: &str) -> Option<SocketAddr> {
    let all = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let host = match host {
        "" | "*" => all,
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => return None,
    };
    // `u16` would accept "+80".
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    Some(SocketAddr::new(host, port.parse().ok().filter(|_| digits)?))
}

/// Whether only one of the addresses can be listened on. Port 0 is a free one.
pub(super) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    // `[::]` includes all addresses of IPv4 too, unless the system says otherwise.
    let includes =
        |a: IpAddr, b: IpAddr| a == b || a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    one.port() == other.port() && one.port() != 0 && (includes(a, b) || includes(b, a))
}

/// What `http.path` compares requests with: the path without slashes at its end.
///
/// It is compared byte by byte with the path of the request as it was sent. A path that no request
/// can have is rejected here, because every callback would get 404.
pub(super) fn path(text: &str) -> Result<String, &'static str> {
    let sub = |b: u8| b"-._~!$&'()*+,;=:@%/".contains(&b);
    let problem = if text.is_empty() {
        "is empty; set it to \"/callback\", or to \"/\" to accept every path"
    } else if text.contains("://") {
        "is a whole URL; only its path belongs here, such as \"/callback\""
    } else if !text.starts_with('/') {
        "must begin with a slash, as in \"/callback\""
    } else if text.contains('?') {
        "contains '?': a query is not part of the path; remove it, requests may have any"
    } else if text.contains('#') {
        "contains '#': clients do not send what follows it"
    } else if text.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
        "contains a blank, which no request line can have"
    } else if !text.is_ascii() {
        "contains characters that clients send percent-encoded; write them so (%E7%9B%B4), or use \
         letters and digits"
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || sub(b)) {
        "contains a character that no path can have; use letters, digits and -._~!$&'()*+,;=:@"
    } else if text.split('%').skip(1).any(|rest| {
        !rest.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    }) {
        "contains '%' without two hexadecimal digits behind it"
    } else if text.contains("//") {
        "contains two slashes in a row, which many proxies make one"
    } else if text.split('/').any(|step| step == "." || step == "..") {
        "contains \"/./\" or \"/../\", which clients resolve before they send it"
    } else {
        return Ok(text.trim_end_matches('/').to_owned());
    };
    Err(problem)
}

/// What is wrong with the list of brokers, if anything.
pub(super) fn brokers(text: &str) -> Result<(), String> {
    let example = "write \"host:9092\", several joined by commas";
    if text.trim().is_empty() {
        return Err(format!("is empty; {example}"));
    }
    if text.contains(['"', '\'', '[', '{']) && !text.contains("]:") {
        return Err(format!("has quotes or brackets within the text; {example}, without them"));
    }
    for broker in text.split(',').map(str::trim) {
        let address = broker.split_once("://").map_or(broker, |(_, address)| address);
        let scheme = &broker[..broker.len() - address.len()];
        let known = ["", "PLAINTEXT://", "SSL://", "SASL_PLAINTEXT://", "SASL_SSL://"];
        if !known.contains(&&*scheme.to_ascii_uppercase()) {
            return Err(format!("has a scheme that is not Kafka's; {example}"));
        }
        if address.contains('@') {
            return Err(format!(
                "has a user before a host; set sasl.username and sasl.password in [kafka.client]; {example}"
            ));
        }
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (address, None),
        };
        if host.is_empty() || host.contains(char::is_whitespace) || host.contains('/') {
            return Err(format!(
                "has a broker without a host, or a blank or slash in one; {example}"
            ));
        }
        let is_port = |port: &str| {
            port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if port.is_some_and(|port| !is_port(port)) {
            return Err(format!("has a port that is not a number from 1 to 65535; {example}"));
        }
    }
    Ok(())
}

/// Why the console cannot have this callback key, if it cannot. The text of the key is in no
/// answer.
pub(super) fn key_problem(key: &str) -> Option<&'static str> {
    let quoted = |quote| key.len() > 1 && key.starts_with(quote) && key.ends_with(quote);
    if quoted('"') || quoted('\'') {
        Some("is in quotes, which are part of the key then; remove them")
    } else if key.contains("${") || key.contains("$(") || key.contains("{{") {
        Some("looks like a variable that was not replaced")
    } else if key.chars().count() > KEY_MAX {
        Some("has more than the 32 letters and digits that the console accepts")
    } else {
        None
    }
}

/// A note about an instance that is named after a container, if `host` is a container's id.
pub(super) fn container_id(host: &str) -> Option<String> {
    /// Docker and Podman cut ids to this length for the host name.
    const LENGTH: usize = 12;
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (host.len() == LENGTH && host.bytes().all(is_digit)).then(|| {
        format!(
            "kafka.instance is not set, and the host name {host} looks like the id of a container, \
             which its successor on the same volume does not keep: an open transaction then delays \
             consumers by up to 40 s. Set kafka.instance (LIVEBRIDGE_KAFKA_INSTANCE) to a name that \
             stays with the volume"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on_have_short_forms() {
        for (text, address) in [
            ("8080", "0.0.0.0:8080"),
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "0.0.0.0:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::]:8080"),
            ("10.0.0.1:0", "10.0.0.1:0"),
            (" 127.0.0.1:9999\n", "127.0.0.1:9999"),
        ] {
            assert_eq!(listen_address(text), address.parse().ok(), "{text}");
        }
        for text in
            ["", ":", "localhost", "example.com:80", "+80", ":+80", "65536", "::1", "http://:80"]
        {
            assert_eq!(listen_address(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_that_no_request_can_have_is_rejected() {
        for (text, path_) in [
            ("/", ""),
            ("/callback/", "/callback"),
            ("/a/b", "/a/b"),
            ("/%E7%9B%B4", "/%E7%9B%B4"),
            ("/a.b..c", "/a.b..c"),
        ] {
            assert_eq!(path(text), Ok(path_.to_owned()), "{text}");
        }
        for (text, says) in [
            ("", "is empty"),
            ("callback", "must begin with a slash"),
            ("http://host/callback", "whole URL"),
            ("/callback?key=1", "'?'"),
            ("/callback#a", "'#'"),
            ("/call back", "blank"),
            ("/callback\n", "blank"),
            ("/直播", "percent-encoded"),
            ("/a\"b", "no path can have"),
            ("/a%", "hexadecimal"),
            ("/a%4", "hexadecimal"),
            ("/a%zz", "hexadecimal"),
            ("/a//b", "two slashes"),
            ("//", "two slashes"),
            ("/a/../b", "resolve"),
            ("/a/.", "resolve"),
        ] {
            let problem = path(text).expect_err(text);
            assert!(problem.contains(says), "{text}: {problem}");
        }
    }

    #[test]
    fn brokers_that_cannot_be_addresses_are_rejected() {
        for text in
            ["a:1,b:2", "kafka", "kafka:9092, kafka2:9092", "[::1]:9092,[::2]", "SASL_SSL://a:9093"]
        {
            assert_eq!(brokers(text), Ok(()), "{text}");
        }
        for (text, says) in [
            (" ", "is empty"),
            ("\"kafka:9092\"", "quotes"),
            ("'kafka:9092'", "quotes"),
            ("[\"a:1\"]", "quotes"),
            ("a:1,,b:1", "without a host"),
            ("kafka:9092 kafka2:9092", "blank"),
            ("http://kafka:9092", "scheme"),
            ("kafka:port", "port"),
            ("kafka:0", "port"),
            ("kafka:70000", "port"),
            ("me:pass@kafka:9092", "has a user"),
        ] {
            let problem = brokers(text).expect_err(text);
            assert!(problem.contains(says), "{text}: {problem}");
        }
    }

    #[test]
    fn only_keys_that_the_console_cannot_have_are_noted() {
        let longest = "k".repeat(KEY_MAX);
        for key in ["k", "\"", "\"a", "a\"", "'a", "a'", "$a{", &longest] {
            assert_eq!(key_problem(key), None, "{key}");
        }
        let longer = "k".repeat(KEY_MAX + 1);
        for key in ["\"\"", "\"a\"", "'a'", "${KEY}", "$(KEY)", "{{ key }}", &longer] {
            assert!(key_problem(key).is_some(), "{key}");
        }
    }

    #[test]
    fn only_the_ids_of_containers_are_noted_as_host_names() {
        assert!(container_id("3f1a9c0b77de").unwrap().contains("3f1a9c0b77de"));
        for name in ["livebridge-0", "host", "3f1a9c0b77d", "3f1a9c0b77dea", "3F1A9C0B77DE"] {
            assert_eq!(container_id(name), None, "{name}");
        }
    }
}
