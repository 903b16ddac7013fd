//! TLS towards servers that we ask: who vouches for them, and who we are to them.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;

/// Whom we trust, and who we are, in PEM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outward<'a> {
    /// A certificate with those that link it to its authority, and its private key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
    /// Certificates of the authorities that are trusted.
    pub authorities: Option<&'a [u8]>,
    /// Whether, where there are no `authorities`, those of the system are. Otherwise nobody is.
    pub system: bool,
}

/// Why nobody can be asked by TLS.
#[derive(Debug, thiserror::Error)]
pub enum OutwardError {
    /// The identity is none, or its key is another's.
    #[error("no certificate in PEM that fits its key")]
    Identity,
    /// The authorities are none.
    #[error("no list of certificates in PEM")]
    Authorities,
    /// The system's authorities cannot be read.
    #[error("the system's trusted certificates cannot be read")]
    System(#[source] rustls::Error),
}

/// What a connector goes by.
pub type OutwardConfig = ClientConfig;

/// What a connector of TLS 1.2 and 1.3 goes by; it has no ALPN yet. Reads the system's authorities, where they are asked for: it blocks.
///
/// # Errors
/// What is wrong with which part.
pub fn outward(parts: Outward<'_>) -> Result<OutwardConfig, OutwardError> {
    super::install_provider();
    let builder = ClientConfig::builder();
    let builder = if parts.authorities.is_none() && parts.system {
        builder.with_platform_verifier().map_err(OutwardError::System)?
    } else {
        let mut trusted = RootCertStore::empty();
        if let Some(pem) = parts.authorities {
            for certificate in chain(pem).ok_or(OutwardError::Authorities)? {
                trusted.add(certificate).map_err(|_| OutwardError::Authorities)?;
            }
        }
        builder.with_root_certificates(Arc::new(trusted))
    };
    let Some((certificates, key)) = parts.identity else { return Ok(builder.with_no_client_auth()) };
    let certificates = chain(certificates).ok_or(OutwardError::Identity)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| OutwardError::Identity)?;
    builder.with_client_auth_cert(certificates, key).map_err(|_| OutwardError::Identity)
}

/// All certificates of a file, one at least.
fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!chain.is_empty()).then_some(chain)
}
