//! Tells steering services how this appliance is, how loaded, and what it holds; hears what they ask for.
//!
//! catalog's changes -> `ledger` -> `availability` (a list as text) --+
//! `prefixes` (clients served)                                        +-> [`Reporter`]: a report -> `sender` -> service
//! health, load, phase ([`Subject`]) ---------------------------------+                         -> whoever asks for one
//!                                                 `reply` (acknowledged, full, interval, drain) <- service
//!
//! One task for each service, on the small runtime. Nothing is queued: a report is made when it is sent, and one that does not
//! arrive is not sent again, since the next one says more. A service that is down, slow, huge or talks nonsense costs its own
//! task a connection at each interval, and viewers nothing.

mod availability;
mod config;
mod ledger;
mod prefixes;
mod reply;
mod report;
mod sender;
mod service;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::{Value, json};

pub use availability::Summary;
pub use config::{Config, ServiceConfig};
use ledger::{Delta, Ledger};
use prefixes::Prefixes;
use report::{Availability, Changes, Clients, Identity, Report, Texts};
pub use report::{Listener, ManifestProgress, VERSION};
use sender::Sessions;
pub use sender::{Prepared, prepare, start};
pub use service::{ServiceError, check};

use crate::{
    asset::Fingerprint,
    catalog::Catalog,
    health::{Health, Load},
    sys::{Clock, Phase},
    telemetry::metrics::Metrics,
};

/// What is asked of the appliance for a report, and of it by a service.
pub trait Subject: Send + Sync + 'static {
    /// Its phase.
    fn phase(&self) -> Phase;

    /// How it is, and how loaded.
    fn condition(&self) -> (Health, Load);

    /// How far tonight's fill is, where there is a manifest.
    fn manifest(&self) -> Option<ManifestProgress>;

    /// Has viewers sent elsewhere, as the services of these names ask; takes that back where none does any more.
    fn drain(&self, services: &BTreeSet<String>);
}

/// What a reader of a report has already, and wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Revision of the holdings, of this boot.
    pub availability: Option<u64>,
    /// Revision of the networks of clients, of this boot.
    pub clients: Option<u64>,
    /// Whether it wants to be told everything that is held.
    pub wants_full: bool,
}

/// Makes reports.
pub struct Reporter {
    config: ArcSwap<Config>,
    sessions: Mutex<Sessions>,
    id: String,
    boot_id: String,
    listeners: Vec<Listener>,
    subject: Arc<dyn Subject>,
    catalog: Arc<Catalog>,
    clock: Clock,
    metrics: Arc<Metrics>,
    sequence: AtomicU64,
    told: Mutex<(Ledger, Prefixes)>,
    /// Names of the services that want it drained.
    draining_for: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("id", &self.id).field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

/// A report, written.
#[derive(Debug)]
pub struct Written {
    /// The JSON.
    pub body: Vec<u8>,
    /// Revision of the holdings that it tells of.
    pub revision: u64,
    /// Whether it tells everything that is held.
    pub is_full: bool,
}

impl Reporter {
    /// One that tells of `catalog`. Nobody else may follow the catalog's holdings.
    pub fn new(
        config: Config,
        listeners: Vec<Listener>,
        (subject, catalog): (Arc<dyn Subject>, Arc<Catalog>),
        (clock, metrics): (Clock, Arc<Metrics>),
    ) -> Self {
        let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let told = (Ledger::new(config.changes_max), Prefixes::new(&config));
        Self {
            id: if config.id.is_empty() { machine() } else { config.id.clone() },
            boot_id: boot_id(),
            listeners,
            subject,
            catalog,
            clock,
            metrics,
            sequence: AtomicU64::new(0),
            told: Mutex::new(told),
            draining_for: Mutex::default(),
            sessions: Mutex::default(),
            config: ArcSwap::from_pointee(config),
        }
    }

    /// Of this start of the appliance.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Who this appliance is, and where it stands, as JSON.
    pub fn appliance(&self) -> Value {
        json!({ "id": self.id, "site": self.config.load().site })
    }

    /// How it stands with each service that is reported to, as JSON.
    pub fn status(&self) -> Value {
        self.sessions.lock().status(self)
    }

    /// Waits until every service that takes reports has been told that the appliance stops, for `limit` at most.
    pub async fn say_goodbye(&self, limit: Duration) {
        let spoken = Arc::clone(&self.sessions.lock().spoken);
        let told = async {
            loop {
                let mut spoken = std::pin::pin!(spoken.notified());
                // From here on no word is missed.
                spoken.as_mut().enable();
                if self.sessions.lock().have_told(Phase::Stopping) {
                    return;
                }
                spoken.await;
            }
        };
        if tokio::time::timeout(limit, told).await.is_err() {
            tracing::warn!("a steering service was not told in time that the appliance stops");
        }
    }

    /// Writes a report for a reader that has and wants what `known` says. Blocks: the first one counts what is held.
    pub fn write(&self, known: Known) -> Written {
        let config = self.config.load_full();
        let (health, load) = self.subject.condition();
        let mut told = self.told.lock();
        let (ledger, prefixes) = &mut *told;
        // Where too much changes to count, the last that is known is told; the next report knows more.
        if let Some(holdings) = self.catalog.holdings(config.changes_max) {
            ledger.absorb(holdings);
        }
        prefixes.look(&config);
        let availability = availability(ledger, known);
        let has_clients = known.clients == Some(prefixes.revision());
        let report = Report {
            version: VERSION,
            appliance: Identity {
                id: &self.id,
                site: &config.site,
                boot_id: &self.boot_id,
                software: concat!("oca/", env!("CARGO_PKG_VERSION")),
            },
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            time_unix: self.clock.unix().0,
            phase: self.subject.phase().label(),
            health,
            load,
            listeners: &self.listeners,
            urls: Texts(&config.urls),
            clients: Clients {
                revision: prefixes.revision(),
                prefixes: (!has_clients).then_some(Texts(prefixes.all())),
            },
            manifest: self.subject.manifest(),
            availability,
        };
        self.metrics.assets_held.set(report.availability.held as u64);
        self.metrics.client_prefixes.set(prefixes.all().len() as u64);
        let body = serde_json::to_vec(&report).unwrap_or_else(|err| {
            tracing::error!(error = %err, "a report cannot be written");
            Vec::new()
        });
        Written { body, revision: report.availability.revision, is_full: report.availability.full.is_some() }
    }

    /// A service wants the appliance drained, or no longer. It is as long as one of them does.
    fn order(&self, service: &str, drain: bool) {
        let mut draining_for = self.draining_for.lock();
        if drain && self.config.load().services.iter().all(|known| known.name != service) {
            return;
        }
        let changed = if drain { draining_for.insert(service.into()) } else { draining_for.remove(service) };
        // Each time that it is asked for: an operator may have taken it back meanwhile.
        if changed || drain {
            self.subject.drain(&draining_for);
        }
    }
}

fn availability(ledger: &Ledger, known: Known) -> Availability {
    let delta = known.availability.filter(|_| !known.wants_full).and_then(|since| Some((since, ledger.delta(since)?)));
    let changes = |(since, Delta { added, removed }): (u64, Delta)| Changes {
        since,
        added: Summary::of(&added),
        removed: Summary::of(&removed),
    };
    Availability {
        revision: ledger.revision(),
        held: ledger.held().len(),
        fingerprint_bits: Fingerprint::BITS,
        full: known.wants_full.then(|| Summary::of(ledger.held())),
        delta: delta.map(changes),
    }
}

fn boot_id() -> String {
    let mut random = [0_u8; 16];
    if !matches!(rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()), Ok(16)) {
        random = (u128::from(sender::random()) << 64 | u128::from(sender::random())).to_le_bytes();
    }
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}
