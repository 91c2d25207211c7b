//! The address of the API.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

/// Where requests go: a scheme and an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    is_plain: bool,
    authority: String,
}

/// Why a URL is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Something else than a scheme and a host.
    #[error(
        "the endpoint is not a URL with a host only, such as https://live.tencentcloudapi.com or \
         https://live.intl.tencentcloudapi.com"
    )]
    Form,
    /// Credentials would cross the network without encryption.
    #[error(
        "the endpoint is plain HTTP, which is allowed on the loopback interface only: signed requests \
         can be read and repeated on the way; use https"
    )]
    Plain,
}

impl Endpoint {
    /// Takes `https://HOST[:PORT]`, or the same with `http` on the loopback interface.
    ///
    /// # Errors
    /// [`EndpointError`]
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let uri: Uri = url.trim().parse().map_err(|_| EndpointError::Form)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(EndpointError::Form);
        };
        let is_bare = uri.path() == "/" && uri.query().is_none();
        if !is_bare || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(EndpointError::Form);
        }
        let is_plain = match scheme {
            "https" => false,
            "http" if is_loopback(authority.host()) => true,
            "http" => return Err(EndpointError::Plain),
            _ => return Err(EndpointError::Form),
        };
        // The signature covers the host in lower case.
        Ok(Self { is_plain, authority: authority.as_str().to_ascii_lowercase() })
    }

    /// Whether it is plain HTTP, which never leaves the machine.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The value of the header `Host`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

impl Default for Endpoint {
    fn default() -> Self {
        Self { is_plain: false, authority: "live.tencentcloudapi.com".to_owned() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_plain { "http" } else { "https" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_allowed_on_the_loopback_interface_only() {
        for (url, shown) in [
            ("https://live.tencentcloudapi.com", "https://live.tencentcloudapi.com"),
            ("https://Live.Intl.tencentcloudapi.com/", "https://live.intl.tencentcloudapi.com"),
            ("https://10.0.0.1:8443", "https://10.0.0.1:8443"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://localhost:9000/", "http://localhost:9000"),
            ("http://[::1]:9000", "http://[::1]:9000"),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().to_string(), shown);
        }
        for url in ["http://live.tencentcloudapi.com", "http://10.0.0.1", "http://127.0.0.1.x.org"]
        {
            assert_eq!(Endpoint::parse(url), Err(EndpointError::Plain), "{url}");
        }
        for url in [
            "", "live.tencentcloudapi.com", "ftp://x", "https://", "https://x/path",
            "https://x/?a=b", "https://user:password@x",
        ] {
            assert_eq!(Endpoint::parse(url), Err(EndpointError::Form), "{url}");
        }
    }
}
