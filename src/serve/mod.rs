//! Sends ranges of assets to viewers.
//!
//! worker (accepts) -> http1 (reads heads) -> hit (what is in memory, at once)                    -> wire
//!                                         -> request -> handler -> response -> body (all the rest) -> wire
//!
//! `http2` does with hyper what http1 does, through the same handler.
//! The wire is plain TCP or `secure`; `renewal` keeps the certificates those of the files.
//!
//! Before anything is looked up, `signing` says whether the request may have it.
//! The connection knows what is going on, the sweeper watches that, the exchange counts and logs it.
//!
//! Never writes to disk, never asks a source, never waits for a page on a worker: what is missing is demanded from the catalog,
//! what is cold is asked of `storage::Residency`.

mod body;
pub mod conditions;
mod config;
mod connection;
mod exchange;
mod frames;
mod handler;
mod hit;
mod http1;
mod http2;
mod kernel;
pub mod ranges;
mod renewal;
mod request;
mod response;
mod secure;
pub mod signing;
mod sweeper;
mod wire;
mod worker;

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

pub use config::{Config, Cors, Http2, KernelTls, Tls};
pub use renewal::{Renewal, TlsError};
pub use signing::{Signing, SigningError};

use crate::{
    catalog::Catalog,
    net::listener,
    storage::Residency,
    sys::{Clock, PhaseCell, affinity},
    telemetry::{access_log::AccessLog, metrics::Metrics},
};
use handler::Handler;
use hit::Recall;
use response::Templates;
use signing::Gate;
use worker::Worker;

/// The sockets that viewers connect to, one of each address for each worker.
#[derive(Debug)]
pub struct Listeners {
    per_worker: Vec<Vec<(TcpListener, Scheme)>>,
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// Binds the viewers' addresses.
///
/// # Errors
/// The address that cannot be bound, and why.
pub fn bind(config: &Config) -> io::Result<Listeners> {
    let workers = worker_count(config);
    let mut listeners =
        Listeners { per_worker: (0..workers).map(|_| Vec::new()).collect(), http: Vec::new(), https: Vec::new() };
    let plain = config.http.iter().map(|address| (address, Scheme::Http, "serve.http"));
    let secure = config.https.iter().map(|address| (address, Scheme::Https, "serve.https"));
    for (address, scheme, key) in plain.chain(secure) {
        let bound = listener::bind_for_each(*address, workers, config.backlog)
            .map_err(|err| io::Error::new(err.kind(), format!("{key} {address}: {err}")))?;
        let addresses = if scheme == Scheme::Http { &mut listeners.http } else { &mut listeners.https };
        addresses.push(bound[0].local_addr()?);
        for (worker, listener) in listeners.per_worker.iter_mut().zip(bound) {
            worker.push((listener, scheme));
        }
    }
    Ok(listeners)
}

/// Workers that `config` asks for: as many as it says, or one per core.
pub fn worker_count(config: &Config) -> usize {
    if config.workers == 0 { affinity::cores().len() } else { config.workers }
}

impl Listeners {
    /// The addresses for plain HTTP that are bound; where the configuration says port 0, with the port that it became.
    pub fn http(&self) -> &[SocketAddr] {
        &self.http
    }

    /// As `http`, for HTTPS.
    pub fn https(&self) -> &[SocketAddr] {
        &self.https
    }
}

/// What the delivery plane stands on.
#[derive(Debug)]
pub struct Foundation {
    /// What is held.
    pub catalog: Arc<Catalog>,
    /// How cold bytes come into memory.
    pub residency: Arc<Residency>,
    /// The certificates for viewers of HTTPS.
    pub renewal: Option<Arc<Renewal>>,
    /// Who may have what.
    pub signing: Option<Arc<Signing>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is logged of each response.
    pub access_log: Arc<AccessLog>,
    /// Time.
    pub clock: Clock,
    /// When to drain.
    pub phase: PhaseCell,
    /// `storage.window`, in bytes.
    pub window: u64,
    /// `fill.read_ahead`, in bytes.
    pub read_ahead: u64,
}

/// The workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<io::Result<()>>>,
    open: Arc<AtomicUsize>,
}

/// Starts the workers.
///
/// # Errors
/// A thread cannot be started.
pub fn start(config: &Config, listeners: Listeners, on: &Foundation) -> io::Result<Workers> {
    let config = Arc::new(config.clone());
    let open = Arc::new(AtomicUsize::new(0));
    let cores = affinity::cores();
    // Pinning helps where every core has its worker, and hurts where somebody chose fewer to share the machine.
    let pin = config.workers == 0 && cores.len() > 1;
    let mut threads = Vec::new();
    for (number, listeners) in listeners.per_worker.into_iter().enumerate() {
        let metrics = on.metrics.worker(number);
        let handler_parts = (Arc::clone(&config), Arc::clone(&on.catalog), Arc::clone(&on.residency), on.clock.clone());
        let ring = on.access_log.ring(number);
        let tls = on.renewal.as_ref().map(|renewal| renewal.server());
        let handshakes_max = config.tls.handshakes_max.div_ceil(on.metrics.worker_count());
        let signing = on.signing.clone();
        let (window, read_ahead, phase, open) =
            (on.window, on.read_ahead.max(on.window), on.phase.watch(), Arc::clone(&open));
        let core = pin.then(|| cores[number % cores.len()]);
        let run = move || {
            if let Some(core) = core {
                affinity::pin_to(core);
            }
            let (config, catalog, residency, clock) = handler_parts;
            let handler = Handler {
                templates: Templates::new(&config),
                recall: Recall::new(config.recall_max),
                gate: signing.map(|signing| Gate::new(&signing, &metrics)),
                config: Arc::clone(&config),
                catalog,
                residency,
                clock,
                ring,
                window,
                read_ahead,
                // Ids of different workers do not meet.
                request_ids: Cell::new((number as u64) << 48),
            };
            let connections_max = config.connections_max;
            Worker { config, listeners, handler, metrics, open, connections_max, phase, tls, handshakes_max }.run()
        };
        threads.push(std::thread::Builder::new().name(format!("oca-worker-{number}")).spawn(run)?);
    }
    Ok(Workers { threads, open })
}

impl Workers {
    /// Connections open just now.
    pub fn connections(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open)
    }

    /// Waits for the workers to end; they do after draining has begun. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::error!(error = %err, "a worker failed"),
                Err(_) => tracing::error!("a worker panicked"),
            }
        }
        debug_assert_eq!(self.open.load(Ordering::Acquire), 0, "connections outlive their workers");
    }
}
