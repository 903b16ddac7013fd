//! The one provider of cryptography.

use rustls::crypto::aws_lc_rs;

/// Makes aws-lc-rs the process's provider for TLS. Does nothing the second time.
pub fn install_provider() {
    if aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider is installed already");
    }
}
