//! TLS on the intake: 1.2 and 1.3, with a certificate and a key from files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::permission;

/// The certificate that the intake presents, with its key.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    expires: SystemTime,
    certificate: PathBuf,
}

/// Why certificate and key cannot be used. No message repeats what is in the key's file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or does not contain what it should.
    #[error("cannot read {wanted} from {path}: {problem}", path = path.display())]
    File {
        /// A certificate or a key.
        wanted: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// They do not belong together, or are of a kind that is not supported.
    #[error("{certificate} and {key} cannot be used together: {cause}",
        certificate = certificate.display(), key = key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        #[source]
        cause: rustls::Error,
    },
}

/// What is wrong with a file in PEM form. The parser's own errors contain lines of the file, which
/// in a key without line ends is the whole key: none of them is kept.
fn pem_problem(error: &pem::Error, path: &Path) -> String {
    let problem = match error {
        pem::Error::Io(cause) => return format!("{cause}{}", permission::advice(path, cause)),
        pem::Error::MissingSectionEnd { .. } => {
            "a section has no line -----END …-----; are the ends of its lines lost?"
        }
        pem::Error::IllegalSectionStart { .. } => {
            "the line -----BEGIN …----- has more on it; are the ends of its lines lost?"
        }
        pem::Error::Base64Decode(_) => "a section is not base64",
        pem::Error::NoItemsFound => "there is none in it",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it cannot be parsed",
    };
    format!("{problem}; it must be in PEM form")
}

fn file_error(wanted: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError::File { wanted, path: path.to_owned(), problem }
}

/// The certificates in the PEM file `path`, and when the first of them expires.
fn read_chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, SystemTime), TlsError> {
    let failed = |problem| file_error("a certificate", path, problem);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| failed(pem_problem(&error, path)))?;
    let mut expires = None;
    for link in &chain {
        let link = Certificate::from_der(link).map_err(|error| failed(error.to_string()))?;
        let end = link.tbs_certificate().validity().not_after.to_unix_duration();
        let end = SystemTime::UNIX_EPOCH + end;
        expires = Some(expires.map_or(end, |before: SystemTime| before.min(end)));
    }
    let expires = expires.ok_or_else(|| failed(pem_problem(&pem::Error::NoItemsFound, path)))?;
    Ok((chain, expires))
}

/// When the first of the certificates in the PEM file `path` expires.
///
/// # Errors
/// [`TlsError`]
pub fn certificate_expiry(path: &Path) -> Result<SystemTime, TlsError> {
    read_chain(path).map(|(_, expires)| expires)
}

impl Tls {
    /// Reads the chain of certificates, the server's own first, and its key.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let (chain, expires) = read_chain(certificate)?;
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| file_error("a private key", key, pem_problem(&error, key)))?;
        let pair = |cause| TlsError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            cause,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(pair)?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            expires,
            certificate: certificate.to_owned(),
        })
    }

    /// When the first certificate of the chain expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}
