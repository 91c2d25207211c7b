//! Certificates and a TLS client.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion, version,
};

use super::TIME_LIMIT;

/// The supported versions.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

/// A self-signed certificate with its key in files, which is also its own authority.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    der: CertificateDer<'static>,
}

impl Identity {
    /// A new one for `localhost`, written to `dir`, valid until the last day of `year`.
    pub(crate) fn write(dir: &Path, year: i32) -> Self {
        let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
        let mut wanted = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        wanted.not_after = rcgen::date_time_ymd(year, 12, 31);
        let secret = rcgen::KeyPair::generate().unwrap();
        let made = wanted.self_signed(&secret).unwrap();
        fs::write(&key, secret.serialize_pem()).unwrap();
        fs::write(&certificate, made.pem()).unwrap();
        Self { certificate, key, der: made.der().clone() }
    }

    /// The section that enables TLS for the intake.
    pub(crate) fn section(&self) -> String {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        format!("[tls]\ncertificate = \"{certificate}\"\nprivate_key = \"{key}\"\n")
    }

    /// A TLS handshake with `address` that trusts only this certificate.
    pub(crate) fn connect(
        &self,
        address: SocketAddr,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> io::Result<TlsWire> {
        self.handshake(TcpStream::connect(address)?, versions, protocols)
    }

    /// The same on a connection that exists.
    pub(crate) fn handshake(
        &self,
        mut stream: TcpStream,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> io::Result<TlsWire> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        stream.set_nodelay(true)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(TlsWire(StreamOwned::new(session, stream)))
    }
}

/// A TLS connection.
pub(crate) struct TlsWire(StreamOwned<ClientConnection, TcpStream>);

impl TlsWire {
    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        self.0.conn.protocol_version()
    }

    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        self.0.conn.alpn_protocol()
    }

    /// Sends `request` and returns the status of the response; `None` without a response.
    pub(crate) fn exchange(&mut self, request: impl AsRef<[u8]>) -> Option<u16> {
        self.0.write_all(request.as_ref()).ok()?;
        let mut received = Vec::new();
        let mut part = [0; 4096];
        // Every response body is JSON.
        while !received.ends_with(b"}") {
            let count = self.0.read(&mut part).ok().filter(|&count| count > 0)?;
            received.extend_from_slice(&part[..count]);
        }
        String::from_utf8(received).unwrap().split(' ').nth(1)?.parse().ok()
    }
}
