//! The system's certificate authorities, which may include those of an organisation: for the TLS
//! connections that commands open.

use rustls_native_certs::CertificateResult;

/// No certificate authority can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no certificate authorities are found, so that no TLS certificate can be verified ({0}); install \
     the package ca-certificates, or set SSL_CERT_FILE"
)]
pub struct NoAuthorities(String);

/// The certificates of the authorities, at least one.
pub(crate) fn load() -> Result<CertificateResult, NoAuthorities> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let causes: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(NoAuthorities(causes.join("; ")));
    }
    Ok(found)
}
