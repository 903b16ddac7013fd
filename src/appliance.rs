//! Puts an appliance together, from the bottom up, and takes it apart again in reverse.
//!
//! limits -> certificates and keys -> listeners bound -> access log -> residency -> catalog -> fill -> admin -> workers -> serving
//!
//! Addresses are bound before anything is opened, so that a port that is taken costs nothing; viewers are served last, when
//! everything below them stands.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::oneshot};

use crate::{
    admin::{self, Subject},
    asset::ByteCount,
    catalog::{self, Catalog},
    config::Config,
    fill, net, serve,
    storage::{Disk, RealDisk, Residency, VolumeState},
    sys::{Clock, Phase, PhaseCell},
    telemetry::{access_log::AccessLog, metrics::Metrics},
};

/// Threads of the runtime for fill and operators.
const RUNTIME_THREADS: usize = 2;
/// Threads of that runtime that may block: writing what is filled, reading local sources.
const BLOCKING_THREADS: usize = 64;
/// Longest wait for what still runs on that runtime when everything else has ended.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(5);

/// Why an appliance does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("listen on {0}")]
    Listen(#[source] io::Error),
    /// A certificate cannot be shown to viewers.
    #[error("prepare TLS")]
    Tls(#[from] serve::TlsError),
    /// Signed URLs cannot be told from forged ones.
    #[error("read the keys of signed URLs")]
    Signing(#[from] serve::SigningError),
    /// The access log cannot be opened.
    #[error("open the access log")]
    AccessLog(#[source] io::Error),
    /// Cold reads cannot be set up as configured.
    #[error("set up io_uring, which storage.engine demands")]
    Engine(#[source] io::Error),
    /// What is held cannot be opened.
    #[error("open the catalog")]
    Catalog(#[from] catalog::OpenError),
    /// A source cannot be set up.
    #[error("set up fill")]
    Fill(#[from] fill::StartError),
    /// The system has no threads for us.
    #[error("start threads")]
    Threads(#[source] io::Error),
}

/// A running appliance.
#[derive(Debug)]
pub struct Appliance {
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    admin: SocketAddr,
    parts: Parts,
}

/// What has to be ended, in the order in which it was begun.
#[derive(Debug)]
struct Parts {
    phase: PhaseCell,
    access_log: Arc<AccessLog>,
    renewal: Option<Arc<serve::Renewal>>,
    signing: Option<Arc<serve::Signing>>,
    catalog: Arc<Catalog>,
    runtime: Runtime,
    fill: fill::Fill,
    stop_admin: oneshot::Sender<()>,
    workers: serve::Workers,
}

/// What operators see of an appliance.
struct View {
    started: Instant,
    phase: PhaseCell,
    catalog: Arc<Catalog>,
    residency: Arc<Residency>,
    metrics: Arc<Metrics>,
    listeners: Vec<SocketAddr>,
    sources: Vec<String>,
    workers: usize,
}

impl Appliance {
    /// Starts an appliance; it serves when this returns. Blocks while volumes are opened.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running.
    pub fn start(config: Config) -> Result<Self, StartError> {
        net::tls::install_provider();
        match rlimit::increase_nofile_limit(u64::MAX) {
            Ok(limit) => tracing::debug!(limit, "file descriptors"),
            Err(err) => tracing::warn!(error = %err, "the limit of file descriptors cannot be raised"),
        }
        let (started, clock, phase) = (Instant::now(), Clock::system(), PhaseCell::default());
        let worker_count = serve::worker_count(&config.serve);
        let metrics = Arc::new(Metrics::new(worker_count));
        let renewal = serve::Renewal::start(&config.serve, &metrics, &clock)?;
        let signing = serve::Signing::start(&config.serve, &metrics)?;
        let listeners = serve::bind(&config.serve).map_err(StartError::Listen)?;
        let admin_listener = admin::bind(&config.admin).map_err(StartError::Listen)?;
        let admin = admin_listener.local_addr().map_err(StartError::Listen)?;
        let (http, https) = (listeners.http().to_vec(), listeners.https().to_vec());
        let access_log =
            Arc::new(AccessLog::start(&config.telemetry.access, worker_count).map_err(StartError::AccessLog)?);
        let residency = Arc::new(Residency::new(&config.storage).map_err(StartError::Engine)?);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (catalog, demands) =
            Catalog::open(&config.catalog, &config.storage, &disk, clock.clone(), Arc::clone(&metrics))?;

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("oca-runtime")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let fill = {
            let _inside = runtime.enter();
            fill::start(
                &config.fill,
                Arc::clone(&catalog),
                demands,
                (&metrics, clock.clone(), config.storage.block_size),
            )?
        };
        let view = Arc::new(View {
            started,
            phase: phase.clone(),
            catalog: Arc::clone(&catalog),
            residency: Arc::clone(&residency),
            metrics: Arc::clone(&metrics),
            listeners: [http.as_slice(), &https].concat(),
            sources: config.fill.sources.iter().map(|source| source.name.clone()).collect(),
            workers: worker_count,
        });
        observe(&metrics, &view, &access_log);
        let (stop_admin, stopped) = oneshot::channel::<()>();
        let admin_config = config.admin.clone();
        runtime.spawn(async move {
            let stop = async { drop(stopped.await) };
            if let Err(err) = admin::serve(admin_listener, &admin_config, view, stop).await {
                tracing::error!(error = %err, "the admin listener ended");
            }
        });
        if let Some(renewal) = &renewal {
            let renewal = Arc::clone(renewal);
            runtime.spawn(look_at_files(config.serve.tls.check_interval, move || renewal.look()));
        }
        if let Some(signing) = &signing {
            let signing = Arc::clone(signing);
            runtime.spawn(look_at_files(config.serve.signing.check_interval, move || signing.look()));
        }
        let foundation = serve::Foundation {
            catalog: Arc::clone(&catalog),
            residency,
            renewal: renewal.clone(),
            signing: signing.clone(),
            metrics,
            access_log: Arc::clone(&access_log),
            clock,
            phase: phase.clone(),
            window: config.storage.window.0,
            read_ahead: config.fill.read_ahead.0,
        };
        let workers = serve::start(&config.serve, listeners, &foundation).map_err(StartError::Threads)?;
        phase.enter(Phase::Serving);
        tracing::info!(?http, ?https, %admin, workers = worker_count, assets = catalog.len(), "serving");
        let parts = Parts { phase, access_log, renewal, signing, catalog, runtime, fill, stop_admin, workers };
        Ok(Self { http, https, admin, parts })
    }

    /// Where viewers connect to.
    pub fn http_addresses(&self) -> &[SocketAddr] {
        &self.http
    }

    /// Where viewers connect to by TLS.
    pub fn https_addresses(&self) -> &[SocketAddr] {
        &self.https
    }

    /// Where operators connect to.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Opens the access log's file anew, and has certificates and keys read anew.
    pub fn reload(&self) {
        self.parts.access_log.reopen();
        if let Some(renewal) = self.parts.renewal.clone() {
            self.parts.runtime.spawn_blocking(move || renewal.reload());
        }
        if let Some(signing) = self.parts.signing.clone() {
            self.parts.runtime.spawn_blocking(move || signing.reload());
        }
    }

    /// Drains, makes everything durable and ends. On a thread of its own, since it blocks and ends a runtime.
    pub async fn shutdown(self) {
        let (done, ended) = oneshot::channel();
        let parts = self.parts;
        let end = move || {
            parts.end();
            if done.send(()).is_err() {
                tracing::debug!("nobody waited for the end");
            }
        };
        match std::thread::Builder::new().name("oca-shutdown".into()).spawn(end) {
            Ok(_) => drop(ended.await),
            Err(err) => tracing::error!(error = %err, "no thread to end the appliance in order"),
        }
    }
}

impl Parts {
    /// In the reverse order of the start.
    fn end(self) {
        tracing::info!("draining");
        self.phase.enter(Phase::Draining);
        self.workers.join();
        self.runtime.block_on(self.fill.stop());
        self.catalog.close();
        self.access_log.close();
        // Operators can watch to the end.
        drop(self.stop_admin);
        self.runtime.shutdown_timeout(RUNTIME_PATIENCE);
        tracing::info!("stopped");
    }
}

/// Looks at files that may change for as long as the runtime lives.
async fn look_at_files(every: Duration, look: impl Fn() + Clone + Send + 'static) {
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if tokio::task::spawn_blocking(look.clone()).await.is_err() {
            tracing::error!("looking at files panicked");
        }
    }
}

/// Has gauges set whenever somebody scrapes.
fn observe(metrics: &Metrics, view: &Arc<View>, access_log: &Arc<AccessLog>) {
    let (started, catalog) = (view.started, Arc::downgrade(&view.catalog));
    let (residency, access_log) = (Arc::clone(&view.residency), Arc::clone(access_log));
    metrics.before_scrape(move |metrics| {
        metrics.uptime_seconds.set(started.elapsed().as_secs());
        metrics.access_log_dropped.set(access_log.dropped());
        let (waits, micros) = residency.cold_waits();
        metrics.cold_waits.set(waits);
        metrics.cold_wait_micros.set(micros);
        metrics.prefetches.set(residency.prefetches());
        let Some(catalog) = catalog.upgrade() else { return };
        metrics.assets.set(catalog.len() as u64);
        metrics.mappings.set(catalog.mapped() as u64);
        metrics.demands_queued.set(catalog.demands_queued() as u64);
        for volume in catalog.volumes() {
            let counters = metrics.volume(&volume.root().display().to_string());
            counters.used_bytes.set(volume.used());
            counters.capacity_bytes.set(volume.capacity());
            counters.failed.set(u64::from(volume.state() == VolumeState::Failed));
        }
    });
}

impl Subject for View {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.phase.now() != Phase::Serving {
            reasons.push(format!("the appliance is {}", self.phase.now().label()));
        }
        if self.catalog.volumes().all(|volume| volume.state() == VolumeState::Failed) {
            reasons.push("no volume is in use".into());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn status(&self) -> Value {
        let volume = |volume: &Arc<crate::storage::Volume>| {
            json!({
                "path": volume.root().display().to_string(),
                "id": volume.id(),
                "state": if volume.state() == VolumeState::Serving { "serving" } else { "failed" },
                "failure": volume.failure().map(|failure| failure.to_string()),
                "used_bytes": volume.used(),
                "capacity_bytes": volume.capacity(),
                "used": ByteCount(volume.used()).to_string(),
            })
        };
        let source = |name: &String| {
            let counters = self.metrics.source(name);
            json!({
                "name": name,
                "set_aside": counters.set_aside.value() == 1,
                "fetches": counters.fetches.value(),
                "bytes": counters.bytes.value(),
                "errors": counters.errors().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.phase.now().label(),
            "ready": self.ready().is_ok(),
            "not_ready_because": self.ready().err().unwrap_or_default(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "listeners": self.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "workers": self.workers,
            "connections": self.metrics.connections(),
            "cold_reads_by": self.residency.engine_name(),
            "catalog": {
                "assets": self.catalog.len(),
                "mapped": self.catalog.mapped(),
                "demands_queued": self.catalog.demands_queued(),
            },
            "volumes": self.catalog.volumes().map(volume).collect::<Vec<_>>(),
            "sources": self.sources.iter().map(source).collect::<Vec<_>>(),
        })
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }
}
