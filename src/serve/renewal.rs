//! Certificates that change while they are in use.
//!
//! files -> looked at now and then, or when told -> loaded and checked -> shown from the next handshake on
//!
//! A pair that is no good changes nothing: the one in use stays, a line in the log says why, and it is counted. Everything here blocks:
//! it runs beside the workers.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Config,
    config::{KernelTls, Tls},
};
use crate::{
    net::tls::{Certificates, Offload, Pair, PairError, PairFiles, Server},
    sys::{Clock, Stamp, Watch, stamp},
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
    watch: Watch,
}

/// Pairs that are loaded and not in use yet.
#[derive(Debug)]
pub struct Prepared {
    watched: Vec<Watched>,
    loaded: Vec<Pair>,
}

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
        let watched = pairs.iter().map(|files| Watched { files: files.clone(), watch: Watch::new(stamps(files)) });
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
            if watched.watch.is_due(stamps(&watched.files)) {
                self.load(number, &watched.files);
            }
        }
        self.tell_expiries(&pairs);
    }

    /// Takes over what is there.
    pub fn reload(&self) {
        let mut pairs = self.pairs.lock();
        for (number, watched) in pairs.iter_mut().enumerate() {
            watched.watch = Watch::new(stamps(&watched.files));
            self.load(number, &watched.files);
        }
        self.tell_expiries(&pairs);
    }

    /// Loads other pairs, to be taken over as a whole.
    ///
    /// # Errors
    /// One of them is no good; nothing has changed.
    pub fn prepare(&self, files: &[PairFiles]) -> Result<Prepared, PairError> {
        let now = self.clock.unix();
        let watched = files.iter().map(|files| Watched { files: files.clone(), watch: Watch::new(stamps(files)) });
        Ok(Prepared {
            watched: watched.collect(),
            loaded: files.iter().map(|files| Pair::load(files, now)).collect::<Result<_, _>>()?,
        })
    }

    /// Shows these pairs, and no others, from the next handshake on.
    pub fn take_over(&self, Prepared { watched, loaded }: Prepared) {
        let mut pairs = self.pairs.lock();
        for gone in pairs.iter().filter(|old| watched.iter().all(|new| new.files.certificate != old.files.certificate))
        {
            self.metrics.forget_certificate(&gone.files.certificate.display().to_string());
        }
        *pairs = watched;
        self.certificates.set(loaded);
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

fn stamps(files: &PairFiles) -> Vec<Stamp> {
    vec![stamp(&files.certificate), stamp(&files.key)]
}
