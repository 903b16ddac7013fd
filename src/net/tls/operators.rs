//! TLS towards operators: one certificate to show them, and the authorities whose clients they are.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Certificates, Pair, PairError, PairFiles, Protocol,
    pair::{no_pem, parse, read, subject},
};
use crate::asset::UnixTime;

/// What is shown to operators, and what is asked of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorFiles {
    /// The server's certificate and its key.
    pub pair: PairFiles,
    /// The authorities, in PEM, whose clients are operators.
    pub client_ca: Option<PathBuf>,
}

/// Whether a client has to have a certificate for its handshake to come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// It is asked for; one that is shown has to be good.
    Asked,
    /// It has to be shown.
    Demanded,
}

/// The server's side of operators' handshakes.
pub struct Operators {
    acceptor: TlsAcceptor,
    expiry: UnixTime,
}

impl std::fmt::Debug for Operators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operators").field("expiry", &self.expiry).finish_non_exhaustive()
    }
}

impl Operators {
    /// Reads and checks the files. Blocks.
    ///
    /// # Errors
    /// What is wrong with them, and with which.
    pub fn load(files: &OperatorFiles, demand: ClientCertificate, now: UnixTime) -> Result<Self, PairError> {
        let pair = Pair::load(&files.pair, now)?;
        let expiry = pair.expiry();
        let of_pair = |err: rustls::Error| content(&files.pair.certificate, err.to_string());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(of_pair)?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider);
                let verifier = match demand {
                    ClientCertificate::Asked => verifier.allow_unauthenticated(),
                    ClientCertificate::Demanded => verifier,
                };
                let verifier = verifier.build().map_err(|err| content(path, format!("no usable authority: {err}")))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificates::new(vec![pair])));
        config.alpn_protocols = vec![Protocol::Http1.name().into()];
        // Every connection shows its certificate anew: an authority that is dropped is dropped at once.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), expiry })
    }

    /// First second in which the server's certificate is no longer good.
    pub fn expiry(&self) -> UnixTime {
        self.expiry
    }

    /// Goes through the handshake; gives the name of the client that has proved who it is.
    ///
    /// # Errors
    /// It failed, or took longer than `patience`.
    pub async fn accept(
        &self,
        stream: TcpStream,
        patience: Duration,
    ) -> io::Result<(TlsStream<TcpStream>, Option<String>)> {
        let stream = tokio::time::timeout(patience, self.acceptor.accept(stream)).await??;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let client = shown.map(|certificate| subject(certificate).unwrap_or_else(|| "without a name".into()));
        Ok((stream, client))
    }
}

fn content(path: &Path, what: String) -> PairError {
    PairError::Content { path: path.into(), what }
}

fn authorities(path: &Path) -> Result<RootCertStore, PairError> {
    let bytes = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|err| content(path, no_pem(&err)))?;
        parse(&certificate).map_err(|err| content(path, format!("a broken certificate: {err}")))?;
        roots.add(certificate).map_err(|err| content(path, format!("a certificate of no use: {err}")))?;
    }
    if roots.is_empty() { Err(content(path, "no certificate in PEM".into())) } else { Ok(roots) }
}
