//! Sends ranges of assets to viewers.
//!
//! worker (accepts) -> http1 (reads heads) -> hit (what is in memory, at once)                    -> wire
//!                                         -> request -> handler -> response -> body (all the rest) -> wire
//!
//! `http2` does with hyper what http1 does, through the same handler.
//! All of it by `terms`, which may change while it serves. The wire is plain TCP or `secure`; `renewal` keeps the certificates those of the files.
//!
//! `clients` says whose connections are taken in, and how much one client may ask for.
//! Before anything is looked up, `signing` says whether the request may have it.
//! `helper` is a thread beside each worker that does what handshakes cost.
//! `overload` says which requests are refused while a worker has more to do than it can, and `turns` who is served first.
//! The connection knows what is going on, the sweeper watches that, the exchange counts and logs it.
//!
//! Never writes to disk, never asks a source, never waits for a page on a worker: what is missing is demanded from the catalog,
//! what is cold is asked of `storage::Residency`.

mod account;
mod body;
pub mod clients;
pub mod conditions;
mod config;
mod connection;
mod exchange;
mod frames;
mod handler;
mod helper;
mod hit;
mod http1;
mod http2;
mod kernel;
mod manner;
mod overload;
pub mod ranges;
mod renewal;
mod request;
mod response;
mod secure;
pub mod signing;
mod sweeper;
mod terms;
mod trickle;
mod turns;
mod waiters;
mod wire;
mod worker;

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

pub use clients::{Clients, ClientsError};
pub use config::{Config, Cors, Http2, KernelTls, Tls};
pub use renewal::{Prepared as PreparedPairs, Renewal, TlsError};
pub use signing::{Signing, SigningError};
pub use terms::{Offering, Terms};

use crate::{
    asset::ByteCount,
    catalog::Catalog,
    net::listener::{self, Inherited},
    storage::Residency,
    sys::{Clock, PhaseCell, affinity},
    telemetry::{access_log::AccessLog, metrics::Metrics},
};
use helper::Helper;
use terms::Maker;
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
pub fn bind(config: &Config, inherited: &mut Inherited) -> io::Result<Listeners> {
    let workers = worker_count(config);
    let mut listeners =
        Listeners { per_worker: (0..workers).map(|_| Vec::new()).collect(), http: Vec::new(), https: Vec::new() };
    let plain = config.http.iter().map(|address| (address, Scheme::Http, "serve.http"));
    let secure = config.https.iter().map(|address| (address, Scheme::Https, "serve.https"));
    for (address, scheme, key) in plain.chain(secure) {
        let bound = listener::for_each(*address, workers, config.backlog, inherited)
            .map_err(|err| io::Error::new(err.kind(), format!("{key} {address}: {err}")))?;
        if config.receive_buffer.0 > 0 {
            // Connections have what their listener has.
            let bytes = usize::try_from(config.receive_buffer.0).unwrap_or(usize::MAX);
            let mut has = bytes;
            for listener in bound.iter().flatten() {
                let socket = socket2::SockRef::from(listener);
                socket.set_recv_buffer_size(bytes)?;
                // Of twice of which it tells (`socket(7)`).
                has = has.min(socket.recv_buffer_size()? / 2);
            }
            if has < bytes {
                tracing::warn!(
                    "{key} {address}: the kernel gives {} and not {} to serve.receive_buffer: raise net.core.rmem_max, or set less",
                    ByteCount(has as u64),
                    config.receive_buffer
                );
            }
        }
        let addresses = if scheme == Scheme::Http { &mut listeners.http } else { &mut listeners.https };
        addresses.extend(bound.iter().flatten().next().map(TcpListener::local_addr).transpose()?);
        for (worker, share) in listeners.per_worker.iter_mut().zip(bound) {
            worker.extend(share.into_iter().map(|listener| (listener, scheme)));
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
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is logged of each response.
    pub access_log: Arc<AccessLog>,
    /// Time.
    pub clock: Clock,
    /// When to drain.
    pub phase: PhaseCell,
    /// What this appliance is called among caches (`fill.site.self`).
    pub identity: Arc<str>,
}

/// The workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<io::Result<()>>>,
    offering: Arc<Offering>,
    open: Arc<AtomicUsize>,
    pulses: Vec<Arc<AtomicU64>>,
}

/// Starts the workers.
///
/// # Errors
/// A thread cannot be started.
pub fn start(terms: Terms, listeners: Listeners, on: &Foundation) -> io::Result<Workers> {
    let own_cores = terms.config.workers == 0;
    let mut offering = Offering::new(terms);
    let open = Arc::new(AtomicUsize::new(0));
    // One for all: what clients have taken is counted by it over all workers.
    let epoch = Instant::now();
    let cores = affinity::cores();
    // Pinning helps where every core has its worker, and hurts where somebody chose fewer to share the machine.
    let pin = own_cores && cores.len() > 1;
    let (mut threads, mut pulses) = (Vec::new(), Vec::new());
    for (number, listeners) in listeners.per_worker.into_iter().enumerate() {
        let metrics = on.metrics.worker(number);
        let offered = offering.worker();
        let (catalog, residency, clock) = (Arc::clone(&on.catalog), Arc::clone(&on.residency), on.clock.clone());
        let (lines, identity) = (on.access_log.lines(number), Arc::clone(&on.identity));
        let pulse = Arc::<AtomicU64>::default();
        pulses.push(Arc::clone(&pulse));
        let tls = on.renewal.as_ref().map(|renewal| renewal.server());
        let workers = on.metrics.worker_count();
        let (phase, open) = (on.phase.watch(), Arc::clone(&open));
        let core = pin.then(|| cores[number % cores.len()]);
        let helper = match &tls {
            Some(_) => Some(Helper::start(format!("oca-helper-{number}"), core)?),
            None => None,
        };
        let run = move || {
            if let Some(core) = core {
                affinity::pin_to(core);
            }
            // Ids of different workers do not meet.
            let request_ids = Rc::new(Cell::new((number as u64) << 48));
            let maker =
                Maker { catalog, residency, clock, lines, identity, metrics: Arc::clone(&metrics), request_ids };
            Worker { listeners, offered, maker, metrics, open, phase, tls, helper, workers, epoch, pulse }.run()
        };
        threads.push(std::thread::Builder::new().name(format!("oca-worker-{number}")).spawn(run)?);
    }
    Ok(Workers { threads, offering: Arc::new(offering), open, pulses })
}

impl Workers {
    /// Where they are told of other terms.
    pub fn offering(&self) -> Arc<Offering> {
        Arc::clone(&self.offering)
    }

    /// Connections open just now.
    pub fn connections(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open)
    }

    /// One count for each worker, which grows ten times a second as long as the worker turns.
    pub fn pulses(&self) -> Vec<Arc<AtomicU64>> {
        self.pulses.clone()
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
