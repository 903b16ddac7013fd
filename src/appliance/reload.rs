//! What may change while the appliance runs: its files are read again, and so is its configuration.
//!
//! told (SIGHUP), or a file has changed -> read -> good: in use from now on; no good: a line in the log, and what is in use stays
//!
//! Of another configuration everything that can fail is prepared before anything is changed: it is taken over as a whole, or not at all.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::{runtime::Runtime, sync::Notify};

use super::watched;
use crate::{
    admin,
    catalog::Catalog,
    config::Config,
    control::Control,
    fill::{self, SourceLocation},
    health::Watch,
    serve, steering,
    sys::PhaseCell,
    telemetry::{logging, metrics::Metrics},
};

/// Why another configuration is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A certificate cannot be shown to viewers.
    #[error("prepare TLS: {0}")]
    Tls(#[from] crate::net::tls::PairError),
    /// Signed URLs cannot be told from forged ones.
    #[error("read the keys of signed URLs: {0}")]
    Signing(#[from] serve::SigningError),
    /// The networks that are served are not known.
    #[error("read the networks that are served: {0}")]
    Clients(#[from] serve::ClientsError),
    /// Operators cannot be told from others.
    #[error("guard the admin listener: {0}")]
    Guard(#[from] admin::GuardError),
    /// A source cannot be set up.
    #[error("set up fill: {0}")]
    Fill(#[from] fill::StartError),
    /// A steering service cannot be reported to.
    #[error("set up steering: {0}")]
    Steering(#[from] steering::ServiceError),
    /// What is listened on stays until a restart, and would be open to everybody.
    #[error(
        "admin.listen, which changes with a restart alone, can be reached from other machines, and nobody would be asked for a credential"
    )]
    OpenToAll,
    /// The process has given up what it would need.
    #[error("{} cannot be read by this process, which has given up what its configuration did not name: restart it, or name what lies in a folder that it did", .0.display())]
    OutOfReach(PathBuf),
    /// A bug.
    #[error("preparing it panicked")]
    Panicked,
}

/// The parts of an appliance that take another configuration while they run.
#[derive(Debug)]
pub(super) struct Running {
    /// What runs: of keys that need a restart, what they were at the start.
    pub(super) config: Mutex<Config>,
    pub(super) renewal: Option<Arc<serve::Renewal>>,
    pub(super) signing: ArcSwapOption<serve::Signing>,
    pub(super) clients: ArcSwapOption<serve::Clients>,
    pub(super) offering: Arc<serve::Offering>,
    pub(super) guard: Arc<admin::Guard>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) fill: fill::Changing,
    pub(super) control: Arc<Control>,
    pub(super) health: Arc<Watch>,
    pub(super) reporter: Arc<steering::Reporter>,
    pub(super) phase: PhaseCell,
    pub(super) metrics: Arc<Metrics>,
    /// Files are looked at in other intervals.
    pub(super) changed: Notify,
}

/// Everything of another configuration that could have failed.
struct Prepared {
    config: Config,
    pairs: Option<serve::PreparedPairs>,
    signing: Option<Arc<serve::Signing>>,
    clients: Option<Arc<serve::Clients>>,
    guard: admin::PreparedGuard,
    fill: fill::Settings,
    steering: steering::Prepared,
}

/// Files that are looked at for changes.
#[derive(Clone, Copy, Debug)]
enum Files {
    Certificates,
    Keys,
    Networks,
    Manifests,
    Operators,
}

impl Files {
    const ALL: [Self; 5] = [Self::Certificates, Self::Keys, Self::Networks, Self::Manifests, Self::Operators];

    fn interval(self, config: &Config) -> Duration {
        match self {
            Self::Certificates => config.serve.tls.check_interval,
            Self::Keys => config.serve.signing.check_interval,
            Self::Networks => config.serve.clients.check_interval,
            Self::Manifests => config.control.check_interval,
            Self::Operators => config.admin.check_interval,
        }
    }
}

impl Running {
    /// Looks at files that may change for as long as the runtime lives.
    pub(super) fn watch_files(self: &Arc<Self>, runtime: &Runtime) {
        for files in Files::ALL {
            runtime.spawn(Arc::clone(self).look_at(files));
        }
    }

    async fn look_at(self: Arc<Self>, files: Files) {
        loop {
            let every = files.interval(&self.config.lock());
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.changed.notified() => continue,
            }
            let running = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || running.look(files)).await.is_err() {
                tracing::error!("looking at files panicked");
            }
        }
    }

    /// Blocks.
    fn look(&self, files: Files) {
        match files {
            Files::Certificates => drop(self.renewal.as_ref().map(|renewal| renewal.look())),
            Files::Keys => drop(self.signing.load_full().map(|signing| signing.look())),
            Files::Networks => drop(self.clients.load_full().map(|clients| clients.look())),
            Files::Manifests => self.control.look(),
            Files::Operators => self.guard.look(),
        }
    }

    /// Reads every file that is in use anew. Blocks.
    pub(super) fn read_files(&self) {
        if let Some(renewal) = &self.renewal {
            renewal.reload();
        }
        if let Some(signing) = self.signing.load_full() {
            signing.reload();
        }
        if let Some(clients) = self.clients.load_full() {
            clients.reload();
        }
        self.guard.reload();
        self.control.reload();
        self.fill.reopen_log();
    }

    /// Takes another configuration over, as far as that can be done while it runs: when this returns, viewers are served by it.
    ///
    /// # Errors
    /// See [`ReloadError`]; nothing has changed.
    pub(super) async fn take_over(self: Arc<Self>, new: Config) -> Result<(), ReloadError> {
        let running = Arc::clone(&self);
        let prepared = tokio::task::spawn_blocking(move || running.prepare(new));
        let Prepared { config, pairs, signing, clients, guard, fill, steering } =
            prepared.await.map_err(|_| ReloadError::Panicked)??;
        if let Err(err) = logging::show(&config.telemetry.filter) {
            tracing::error!(error = %err, "other messages cannot be shown");
        }
        if let (Some(renewal), Some(pairs)) = (&self.renewal, pairs) {
            renewal.take_over(pairs);
        }
        self.guard.take_over(guard);
        let names: Vec<String> = config.fill.sources.iter().map(|source| source.name.clone()).collect();
        for gone in self.config.lock().fill.sources.iter().filter(|source| !names.contains(&source.name)) {
            self.metrics.source(&gone.name).set_aside.set(0);
        }
        self.control.set_rules(config.source_rules());
        self.fill.take_over(fill);
        self.catalog.go_by(&config.catalog, &config.storage.volumes);
        self.health.judge_by(watched::limits(&config));
        steering::start(&self.reporter, steering, &self.phase.watch());
        self.signing.store(signing.clone());
        self.clients.store(clients.clone());
        let before = std::mem::replace(&mut *self.config.lock(), config.clone());
        self.changed.notify_waiters();
        let same = before.serve == config.serve
            && before.storage.window == config.storage.window
            && before.fill.read_ahead == config.fill.read_ahead;
        if !same {
            self.offering.offer(terms(&config, signing, clients)).await;
        }
        Ok(())
    }

    /// Blocks.
    fn prepare(&self, new: Config) -> Result<Prepared, ReloadError> {
        let running = self.config.lock().clone();
        let config = kept_until_restart(new, &running)?;
        let (serve, before) = (&config.serve, &running.serve);
        let signing_stays = serve.signing == before.signing && serve.query_in_key == before.query_in_key;
        let signing = match self.signing.load_full() {
            known if signing_stays => known,
            known => serve::Signing::renewed(serve, &self.metrics, known.as_deref())?,
        };
        let clients = match self.clients.load_full() {
            known if serve.clients == before.clients => known,
            _ => serve::Clients::start(serve, &self.metrics)?,
        };
        let pairs = self.renewal.as_ref().filter(|_| serve.tls.pairs != before.tls.pairs);
        let pairs = pairs.map(|renewal| renewal.prepare(&serve.tls.pairs)).transpose()?;
        let guard = self.guard.prepare(&config.admin)?;
        let fill = self.fill.prepare(&config.fill, &self.metrics)?;
        let steering = steering::prepare(&config.steering)?;
        Ok(Prepared { pairs, signing, clients, guard, fill, steering, config })
    }
}

/// What viewers are served by.
pub(super) fn terms(
    config: &Config,
    signing: Option<Arc<serve::Signing>>,
    clients: Option<Arc<serve::Clients>>,
) -> serve::Terms {
    serve::Terms {
        config: Arc::new(config.serve.clone()),
        clients,
        signing,
        window: config.storage.window.0,
        read_ahead: config.fill.read_ahead.0,
    }
}

/// Keeps of what `running` is what needs a restart and is read by parts that take the rest over.
fn kept_until_restart(mut new: Config, running: &Config) -> Result<Config, ReloadError> {
    new.serve.tls.kernel = running.serve.tls.kernel;
    new.serve.tls.protocols.clone_from(&running.serve.tls.protocols);
    if !running.serve.https.is_empty() && new.serve.tls.pairs.is_empty() {
        // HTTPS is to end, with the restart.
        new.serve.tls.pairs.clone_from(&running.serve.tls.pairs);
    }
    new.admin.listen = running.admin.listen;
    new.admin.connections_max = running.admin.connections_max;
    if !new.admin.is_loopback() && !new.admin.asks_for_credentials() {
        return Err(ReloadError::OpenToAll);
    }
    new.fill.by_manifest.clone_from(&running.fill.by_manifest);
    new.control.check_interval = running.control.check_interval;
    new.fill.site.name.clone_from(&running.fill.site.name);
    new.steering.changes_max = running.steering.changes_max;
    for source in &new.fill.sources {
        if let SourceLocation::Directory(folder) = &source.location
            && std::fs::read_dir(folder).is_err_and(|err| err.kind() == io::ErrorKind::PermissionDenied)
        {
            return Err(ReloadError::OutOfReach(folder.clone()));
        }
    }
    Ok(new)
}
