//! Certificates that change while they are in use.
//!
//! files -> looked at now and then, or when told -> loaded and checked -> shown from the next handshake on
//!
//! A pair that is no good changes nothing: the one in use stays, a line in the log says why, and it is counted. Everything here blocks:
//! it runs beside the workers.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use parking_lot::Mutex;

use super::{
    Config,
    config::{KernelTls, Tls},
};
use crate::{
    net::tls::{Certificates, Offload, Pair, PairError, PairFiles, Server},
    sys::Clock,
    telemetry::metrics::Metrics,
};

/// Why viewers cannot be served by TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or its key is no good.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// There is no randomness for the keys of tickets.
    #[error("make keys for session tickets: {0}")]
    Tickets(String),
}

/// Keeps the certificates in use those of the files.
#[derive(Debug)]
pub struct Renewal {
    certificates: Arc<Certificates>,
    server: Arc<Server>,
    pairs: Mutex<Vec<Watched>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

#[derive(Debug)]
struct Watched {
    files: PairFiles,
    /// What the files looked like when they were last loaded, good or not.
    tried: Stamps,
    /// What they looked like at the last look.
    seen: Stamps,
}

/// What tells one state of a file from another.
pub(super) type Stamp = Option<(u64, u64, i64, i64)>;
/// Of a certificate's file and its key's.
type Stamps = [Stamp; 2];

impl Renewal {
    /// Loads the certificates of `config`; `None` where nobody is served by TLS. Blocks.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn start(config: &Config, metrics: &Arc<Metrics>, clock: &Clock) -> Result<Option<Arc<Self>>, TlsError> {
        let Tls { pairs, protocols, kernel, .. } = &config.tls;
        if config.https.is_empty() {
            return Ok(None);
        }
        // Stamped before they are read: what changes in between is found to have changed.
        let watched = pairs.iter().map(|files| {
            let stamps = stamps(files);
            Watched { files: files.clone(), tried: stamps, seen: stamps }
        });
        let watched: Vec<Watched> = watched.collect();
        let now = clock.unix();
        let loaded = pairs.iter().map(|files| Pair::load(files, now)).collect::<Result<_, _>>()?;
        let certificates = Arc::new(Certificates::new(loaded));
        let server =
            Server::new(Arc::clone(&certificates), protocols).map_err(|err| TlsError::Tickets(err.to_string()))?;
        let server = match kernel {
            KernelTls::Off => server,
            KernelTls::Auto => {
                let offload = Offload::probe();
                tracing::info!(ciphers = offload.count(), of = Offload::CIPHERS, "the kernel was asked for TLS");
                server.handing_over(offload)
            }
        };
        let renewal = Self {
            certificates,
            server: Arc::new(server),
            pairs: Mutex::new(watched),
            metrics: Arc::clone(metrics),
            clock: clock.clone(),
        };
        renewal.tell_expiries(&renewal.pairs.lock());
        Ok(Some(Arc::new(renewal)))
    }

    /// The server's side of handshakes.
    pub fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    /// Takes over what has changed and then stayed as it was for one look: certificate and key are not replaced at one moment.
    pub fn look(&self) {
        let mut pairs = self.pairs.lock();
        for (number, watched) in pairs.iter_mut().enumerate() {
            let now = stamps(&watched.files);
            let settled = now == watched.seen;
            watched.seen = now;
            if settled && now != watched.tried {
                watched.tried = now;
                self.load(number, &watched.files);
            }
        }
        self.tell_expiries(&pairs);
    }

    /// Takes over what is there.
    pub fn reload(&self) {
        let mut pairs = self.pairs.lock();
        for (number, watched) in pairs.iter_mut().enumerate() {
            watched.tried = stamps(&watched.files);
            watched.seen = watched.tried;
            self.load(number, &watched.files);
        }
        self.tell_expiries(&pairs);
    }

    fn load(&self, number: usize, files: &PairFiles) {
        let certificate = files.certificate.display();
        match Pair::load(files, self.clock.unix()) {
            Ok(pair) => {
                let until = httpdate::fmt_http_date(pair.expiry().into());
                if self.certificates.replace(number, pair) {
                    tracing::info!(%certificate, %until, "a new certificate is in use");
                    self.metrics.certificates_renewed.inc();
                }
            }
            Err(err) => {
                tracing::error!(%certificate, error = %err, "a changed certificate is refused; the one in use stays");
                self.metrics.certificates_refused.inc();
            }
        }
    }

    fn tell_expiries(&self, pairs: &[Watched]) {
        for (watched, expiry) in pairs.iter().zip(self.certificates.expiries()) {
            let name = watched.files.certificate.display().to_string();
            self.metrics.certificate(&name).expiry.set(expiry.0);
        }
    }
}

fn stamps(files: &PairFiles) -> Stamps {
    [stamp(&files.certificate), stamp(&files.key)]
}

pub(super) fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}
