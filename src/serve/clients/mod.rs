//! Who viewers are: whether their network is served at all, and how much one of them may take.
//!
//! connection -> [`Clients::admit`]: networks (allow list) -> table (connections and requests of its prefix) -> [`Seat`]
//! request -> the seat's client: one cell
//!
//! A client is everybody behind one prefix of addresses. Where nothing is configured there is no [`Clients`], and nothing is looked up.

mod config;
mod networks;
mod table;

use std::{net::IpAddr, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use config::Config;
pub use networks::Network;
use networks::Networks;
pub(super) use networks::prefix;
pub(super) use table::Client;
use table::{Excess, Table};

use crate::{
    sys::{Watch, stamp},
    telemetry::metrics::{ClientDenial, Metrics},
};

/// Why the networks that are served are not known.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ClientsError {
    what: String,
}

/// What all workers share.
#[derive(Debug)]
pub struct Clients {
    config: Config,
    /// Networks that are served; none: all.
    allowed: Option<ArcSwap<Networks>>,
    unlimited: Networks,
    table: Option<Table>,
    file: Mutex<Watch>,
    metrics: Arc<Metrics>,
}

/// A connection that is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) why: ClientDenial,
    /// Seconds after which the client may come again; none: it need not.
    pub(super) retry_after: Option<u64>,
}

/// A connection's place among those of its client.
#[derive(Debug)]
pub(super) struct Seat {
    clients: Arc<Clients>,
    key: u128,
    pub(super) client: Arc<Client>,
}

impl Seat {
    /// The connection has ended.
    pub(super) fn leave(self, now_millis: u64) {
        if let Some(table) = &self.clients.table {
            table.leave(self.key, &self.client, now_millis);
        }
    }
}

/// Seconds after which who has too many connections may try again: players end one within that.
const CONNECTIONS_RETRY: u64 = 5;

/// Reads the networks that are served; none where all are. Blocks.
fn load(config: &Config) -> Result<Option<Networks>, ClientsError> {
    if !config.names_networks() {
        return Ok(None);
    }
    let further = config.allow_file.as_deref().map(Networks::read).transpose().map_err(|what| ClientsError { what })?;
    Ok(Some(Networks::new(config.allow.iter().copied().chain(further.into_iter().flatten()))))
}

/// Whether the file that `config` names is good. Blocks.
///
/// # Errors
/// What is wrong with it.
pub fn check(config: &Config) -> Result<(), ClientsError> {
    load(config).map(drop)
}

impl Clients {
    /// Reads the networks; `None` where everybody is served as much as they like. Blocks.
    ///
    /// # Errors
    /// See [`ClientsError`].
    pub fn start(config: &super::Config, metrics: &Arc<Metrics>) -> Result<Option<Arc<Self>>, ClientsError> {
        let config = &config.clients;
        if !config.is_on() {
            return Ok(None);
        }
        // Stamped before it is read: what changes in between is found to have changed.
        let file = Mutex::new(Watch::new(config.allow_file.iter().map(|path| stamp(path)).collect()));
        let allowed = load(config)?;
        if let Some(networks) = &allowed {
            tracing::info!(blocks = networks.len(), "only these networks are served");
        }
        Ok(Some(Arc::new(Self {
            config: config.clone(),
            allowed: allowed.map(ArcSwap::from_pointee),
            unlimited: Networks::new(config.unlimited.iter().copied()),
            table: config.limits().then(|| Table::new(config)),
            file,
            metrics: Arc::clone(metrics),
        })))
    }

    /// Takes the file over, once it has changed and then stayed as it was for one look. Blocks.
    pub fn look(&self) {
        let Some(path) = &self.config.allow_file else { return };
        let mut file = self.file.lock();
        if file.is_due(vec![stamp(path)]) {
            self.load(path);
        }
    }

    /// Takes over what is there. Blocks.
    pub fn reload(&self) {
        let Some(path) = &self.config.allow_file else { return };
        let mut file = self.file.lock();
        *file = Watch::new(vec![stamp(path)]);
        self.load(path);
    }

    fn load(&self, path: &Path) {
        match load(&self.config) {
            Ok(networks) => {
                if let (Some(allowed), Some(networks)) = (&self.allowed, networks) {
                    tracing::info!(file = %path.display(), blocks = networks.len(), "networks that are served were read anew");
                    allowed.store(Arc::new(networks));
                }
                self.metrics.networks_reloaded.inc();
            }
            Err(err) => {
                tracing::error!(error = %err, "a changed list of networks is refused; the one in use stays");
                self.metrics.networks_refused.inc();
            }
        }
    }

    /// Clients that are remembered just now.
    pub fn remembered(&self) -> usize {
        self.table.as_ref().map_or(0, Table::len)
    }

    /// Whether no bound of a client holds for `address`.
    pub(super) fn is_unlimited(&self, address: IpAddr) -> bool {
        self.unlimited.contains(address)
    }

    /// Takes in a connection; `None`: nobody counts what it takes.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, now_millis: u64) -> Result<Option<Seat>, Denied> {
        if self.allowed.as_ref().is_some_and(|networks| !networks.load().contains(address)) {
            return Err(Denied { why: ClientDenial::Network, retry_after: None });
        }
        let Some(table) = self.table.as_ref().filter(|_| !self.unlimited.contains(address)) else { return Ok(None) };
        let key = prefix(address, (self.config.ipv4_prefix, self.config.ipv6_prefix));
        match table.enter(key, now_millis) {
            Ok(client) => Ok(client.map(|client| Seat { clients: Arc::clone(self), key, client })),
            Err(Excess::Connections) => {
                Err(Denied { why: ClientDenial::Connections, retry_after: Some(CONNECTIONS_RETRY) })
            }
            Err(Excess::Requests(seconds)) => Err(Denied { why: ClientDenial::Requests, retry_after: Some(seconds) }),
        }
    }
}
