//! TLS towards viewers and sources, and the one provider of cryptography for everybody.
//!
//! files -> `pair` (read, checked) -> `certificates` (chosen by SNI, replaced while in use) -> `server` (versions, suites, tickets)
//! -> `session` (one connection: bytes of the wire in and out, plaintext out and in) -> `sealing` (records of TLS 1.3)
//! -> `kernel` (where it is allowed: the keys, for the kernel to go on with)
//!
//! Nothing of these waits: sockets and deadlines are the caller's. `operators` is for the admin listener and `outward` for
//! sources, whose runtimes may. The only part of the crate that knows rustls.

mod certificates;
mod fault;
mod kernel;
mod operators;
mod outward;
mod pair;
mod sealing;
mod server;
mod session;
#[cfg(test)]
mod tests;

use rustls::crypto::aws_lc_rs;

pub use certificates::Certificates;
pub use fault::{TlsFault, tls_fault};
pub use kernel::{Keys, Offload, Sending};
pub use operators::{ClientCertificate, OperatorFiles, Operators};
pub use outward::{Outward, OutwardConfig, OutwardError, outward};
pub use pair::{Pair, PairError, PairFiles};
pub use server::{Protocol, Server};
pub use session::{Answer, Established, Session, Version};

/// Makes aws-lc-rs the process's provider for TLS. Does nothing the second time.
pub fn install_provider() {
    if aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider is installed already");
    }
}
