//! What every connection has in common: versions, suites, application protocols, tickets.

use std::sync::Arc;

use rustls::{
    CipherSuite, ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, Ticketer, cipher_suite},
    },
    server::{ClientHello, NoServerSessionStorage},
};

use super::{Certificates, Offload, sealing};

/// Tickets for one client after a handshake: one for the next connection, one for another beside it.
const TICKETS: usize = 2;

/// A protocol that is spoken inside of TLS (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    /// Its name in ALPN and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

/// The server's side of every handshake.
#[derive(Debug)]
pub struct Server {
    /// For clients that compute AES fast: its shorter key first, which costs both sides less and is as far out of reach.
    ours: Arc<ServerConfig>,
    /// For clients that prefer ChaCha20, since they compute AES slowly: their order.
    theirs: Arc<ServerConfig>,
    /// What the kernel may take over.
    offload: Offload,
}

impl Server {
    /// TLS 1.3 and 1.2 with `certificates` and `protocols`, the preferred one first. Tickets are encrypted with keys that are made at
    /// start, live in memory only and are replaced every six hours; a ticket is good for the server name that it was given
    /// for (RFC 6066, 3), which rustls holds to.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(certificates: Arc<Certificates>, protocols: &[Protocol]) -> Result<Self, rustls::Error> {
        let mut suites = sealing::suites().to_vec();
        suites.extend([
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ]);
        let provider = CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() };
        let mut ours = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(certificates);
        ours.alpn_protocols = protocols.iter().map(|protocol| protocol.name().into()).collect();
        ours.ticketer = Ticketer::new()?;
        ours.send_tls13_tickets = TICKETS;
        // Nothing is remembered of a client: what resumption needs is in its ticket.
        ours.session_storage = Arc::new(NoServerSessionStorage {});
        let theirs = ours.clone();
        ours.ignore_client_order = true;
        Ok(Self { ours: Arc::new(ours), theirs: Arc::new(theirs), offload: Offload::default() })
    }

    /// Lets sessions be handed to the kernel that `offload` says it takes.
    #[must_use]
    pub fn handing_over(mut self, offload: Offload) -> Self {
        // Keys that cannot be had cannot be lost: only where they are needed.
        for config in [&mut self.ours, &mut self.theirs] {
            Arc::make_mut(config).enable_secret_extraction = offload.count() > 0;
        }
        self.offload = offload;
        self
    }

    pub(super) fn offload(&self) -> Offload {
        self.offload
    }

    /// The configuration for one client. The same client gets the same one, so that it can resume.
    pub(super) fn config_for(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        Arc::clone(if prefers_chacha(hello.cipher_suites()) { &self.theirs } else { &self.ours })
    }
}

fn prefers_chacha(suites: &[CipherSuite]) -> bool {
    let first = suites.iter().find_map(|suite| {
        let name = suite.as_str()?;
        (name.contains("CHACHA20") || name.contains("AES")).then(|| name.contains("CHACHA20"))
    });
    first.unwrap_or(false)
}
