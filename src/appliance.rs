//! Puts an appliance together, from the bottom up, and takes it apart again in reverse.
//!
//! limits -> certificates and keys -> listeners bound -> sandbox -> access log -> residency -> catalog -> fill -> admin -> workers -> serving
//!
//! Addresses are bound before anything is opened, so that a port that is taken costs nothing; viewers are served last, when
//! everything below them stands.

mod commands;
mod process;
mod reload;
mod sampled;
mod told;
mod watched;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    sync::{Notify, oneshot},
};

use crate::{
    admin::{self, Answering, History, PurgeOrder, Refused, ReportWanted, Subject, Why},
    asset::{AssetKey, ByteCount},
    catalog::{self, Catalog},
    config::Config,
    control::{self, Control, InForce},
    fill::{self, nightly::Nightly},
    health::Watch,
    net::{self, listener::Inherited},
    serve, steering,
    storage::{Disk, RealDisk, Residency, VolumeState},
    sys::{
        Clock, Phase, PhaseCell,
        sandbox::{self, Reach},
    },
    telemetry::{access_log::AccessLog, metrics::Metrics},
};
use commands::Purging;
use process::{confine, raise_limits};
pub use reload::ReloadError;
use reload::Running;
use sampled::Sampled;
use told::{Drained, Told};
use watched::{load_meter, watched};

/// Threads of the runtime for fill and operators.
const RUNTIME_THREADS: usize = 2;
/// Threads of that runtime that may block: writing what is filled, reading local sources.
const BLOCKING_THREADS: usize = 64;
/// Longest wait for what still runs on that runtime when everything else has ended.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait at the end for steering services to take the report that says so.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often the runtime shows that it turns.
const PULSE: Duration = Duration::from_millis(100);

/// Why an appliance does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("listen")]
    Listen(#[source] io::Error),
    /// The service manager has left a socket that the configuration has no use for: one of the two files is wrong, and stays so.
    #[error("listen where the service manager does")]
    Inherited(#[source] io::Error),
    /// A certificate cannot be shown to viewers.
    #[error("prepare TLS")]
    Tls(#[from] serve::TlsError),
    /// Signed URLs cannot be told from forged ones.
    #[error("read the keys of signed URLs")]
    Signing(#[from] serve::SigningError),
    /// The networks that are served are not known.
    #[error("read the networks that are served")]
    Clients(#[from] serve::ClientsError),
    /// Operators cannot be told from others.
    #[error("guard the admin listener")]
    Guard(#[from] admin::GuardError),
    /// The process cannot be confined, though the kernel says that it can.
    #[error("confine the process, which process.sandbox = \"off\" leaves out")]
    Sandbox(#[from] sandbox::SandboxError),
    /// The access log cannot be opened.
    #[error("open the access log")]
    AccessLog(#[source] io::Error),
    /// Cold reads cannot be set up as configured.
    #[error("set up io_uring, which storage.engine demands")]
    Engine(#[source] io::Error),
    /// What is held cannot be opened.
    #[error("open the catalog")]
    Catalog(#[from] catalog::OpenError),
    /// Manifests cannot be told from forged ones.
    #[error("read the keys of manifests")]
    Control(#[from] control::StartError),
    /// The client that asks for manifests cannot be set up.
    #[error("set up the client that asks for manifests")]
    Pull(#[source] control::pull::PullError),
    /// A source cannot be set up.
    #[error("set up fill")]
    Fill(#[from] fill::StartError),
    /// A steering service cannot be reported to.
    #[error("set up steering")]
    Steering(#[from] steering::ServiceError),
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
    running: Arc<Running>,
    catalog: Arc<Catalog>,
    runtime: Runtime,
    fill: fill::Fill,
    stop_admin: oneshot::Sender<()>,
    workers: serve::Workers,
    reporter: Arc<steering::Reporter>,
}

/// What operators see of an appliance.
struct View {
    started: Instant,
    phase: PhaseCell,
    catalog: Arc<Catalog>,
    residency: Arc<Residency>,
    metrics: Arc<Metrics>,
    control: Arc<Control>,
    listeners: Vec<SocketAddr>,
    /// Names of sources that only a manifest's addresses lead to.
    by_manifest: Vec<String>,
    workers: usize,
    purging: Purging,
    health: Arc<Watch>,
    nightly: Arc<Nightly>,
    reporter: Arc<steering::Reporter>,
    drained: Arc<Drained>,
    history: Arc<History>,
}

impl Appliance {
    /// Starts an appliance; it serves when this returns. Blocks while volumes are opened. The process is confined to what the configuration
    /// names and to `also`, unless `process.sandbox` says otherwise: to be called before there are other threads.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running.
    pub fn start(config: Config, also: Reach) -> Result<Self, StartError> {
        Self::start_by(config, also, Clock::system(), InForce::default())
    }

    /// As [`Appliance::start`], by a clock and for manifests that somebody else moves.
    ///
    /// # Errors
    /// As there.
    pub fn start_by(config: Config, also: Reach, clock: Clock, in_force: InForce) -> Result<Self, StartError> {
        net::tls::install_provider();
        raise_limits(&config);
        let (started, phase) = (Instant::now(), PhaseCell::default());
        let worker_count = serve::worker_count(&config.serve);
        let metrics = Arc::new(Metrics::new(worker_count));
        let renewal = serve::Renewal::start(&config.serve, &metrics, &clock)?;
        let signing = serve::Signing::start(&config.serve, &metrics)?;
        let clients = serve::Clients::start(&config.serve, &metrics)?;
        let guard = admin::Guard::start(&config.admin, &metrics, &clock)?;
        let mut inherited = Inherited::of_this_process().map_err(StartError::Inherited)?;
        let named = config.serve.http.iter().chain(&config.serve.https).chain([&config.admin.listen]);
        inherited.check(&named.copied().collect::<Vec<_>>()).map_err(StartError::Inherited)?;
        let listeners = serve::bind(&config.serve, &mut inherited).map_err(StartError::Listen)?;
        let admin_listener = admin::bind(&config.admin, &mut inherited).map_err(StartError::Listen)?;
        let admin = admin_listener.local_addr().map_err(StartError::Listen)?;
        let (http, https) = (listeners.http().to_vec(), listeners.https().to_vec());
        confine(&config, also)?;
        let access_log =
            Arc::new(AccessLog::start(&config.telemetry.access, worker_count).map_err(StartError::AccessLog)?);
        let residency = Arc::new(Residency::new(&config.storage).map_err(StartError::Engine)?);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (catalog, demands) =
            Catalog::open(&config.catalog, &config.storage, &disk, clock.clone(), Arc::clone(&metrics))?;

        let control = Control::start(
            &config.control,
            config.source_rules(),
            (clock.clone(), in_force.clone()),
            Arc::clone(&metrics),
        )?;

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("oca-runtime")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        // Fill is there before viewers are, and before anybody judges how the box is.
        let watch = Arc::new(OnceLock::new());
        let fill = {
            let _inside = runtime.enter();
            control::pull::start(&control).map_err(StartError::Pull)?;
            fill::start(
                &config.fill,
                Arc::clone(&catalog),
                demands,
                (&metrics, clock.clone(), config.storage.block_size),
                (in_force, load_meter(&metrics, &residency, &watch)),
            )?
        };
        let drained = Arc::new(Drained::default());
        let watched = watched(&config, (&phase, &clock), (&catalog, &residency, &metrics), &control, &drained);
        let health = Watch::start(watched::limits(&config), watched);
        runtime.spawn(Arc::clone(&health).run());
        watch.get_or_init(|| Arc::clone(&health));
        let told = Told {
            phase: phase.clone(),
            health: Arc::clone(&health),
            drained: Arc::clone(&drained),
            nightly: fill.nightly(),
        };
        let reporter = Arc::new(steering::Reporter::new(
            config.steering.clone(),
            told::listeners(&http, &https),
            (Arc::new(told), Arc::clone(&catalog)),
            (clock.clone(), Arc::clone(&metrics)),
        ));
        {
            let _inside = runtime.enter();
            steering::start(&reporter, steering::prepare(&config.steering)?, &phase.watch());
        }
        let goodbye = Arc::clone(&reporter);
        let history = Arc::new(History::new(config.admin.history));
        let sampled = Sampled {
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            catalog: Arc::clone(&catalog),
            clock: clock.clone(),
            history: Arc::clone(&history),
        };
        let view = Arc::new(View {
            started,
            phase: phase.clone(),
            catalog: Arc::clone(&catalog),
            residency: Arc::clone(&residency),
            metrics: Arc::clone(&metrics),
            control: Arc::clone(&control),
            listeners: [http.as_slice(), &https].concat(),
            by_manifest: config.fill.by_manifest.iter().map(|source| source.name.clone()).collect(),
            workers: worker_count,
            purging: Purging::new(&catalog),
            health: Arc::clone(&health),
            nightly: fill.nightly(),
            reporter: Arc::clone(&reporter),
            drained,
            history: Arc::clone(&history),
        });
        runtime.spawn(sampled.run());
        observe(&metrics, &view, &access_log);
        let (stop_admin, stopped) = oneshot::channel::<()>();
        let admin_guard = Arc::clone(&guard);
        runtime.spawn(async move {
            let stop = async { drop(stopped.await) };
            if let Err(err) = admin::serve(admin_listener, admin_guard, view, stop).await {
                tracing::error!(error = %err, "the admin listener ended");
            }
        });
        let foundation = serve::Foundation {
            catalog: Arc::clone(&catalog),
            residency,
            renewal: renewal.clone(),
            metrics: Arc::clone(&metrics),
            access_log: Arc::clone(&access_log),
            clock,
            phase: phase.clone(),
            identity: fill.identity(),
        };
        let terms = reload::terms(&config, signing.clone(), clients.clone());
        let workers = serve::start(terms, listeners, &foundation).map_err(StartError::Threads)?;
        let running = Arc::new(Running {
            config: Mutex::new(config),
            renewal,
            signing: ArcSwapOption::new(signing),
            clients: ArcSwapOption::new(clients),
            offering: workers.offering(),
            guard,
            catalog: Arc::clone(&catalog),
            fill: fill.changing(),
            control,
            health,
            reporter,
            phase: phase.clone(),
            metrics: Arc::clone(&metrics),
            changed: Notify::new(),
        });
        running.watch_files(&runtime);
        count_clients(&metrics, &running);
        phase.enter(Phase::Serving);
        tracing::info!(?http, ?https, %admin, workers = worker_count, assets = catalog.len(), "serving");
        let parts =
            Parts { phase, access_log, running, catalog, runtime, fill, stop_admin, workers, reporter: goodbye };
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

    /// Opens the logs' files anew, has certificates, keys and tokens read anew, and takes over what of `new`, where there is one, takes no
    /// restart; returns when that is done.
    ///
    /// # Errors
    /// The other configuration cannot be taken over; nothing of it is.
    pub async fn reload(&self, new: Option<Config>) -> Result<(), ReloadError> {
        self.parts.access_log.reopen();
        let (running, runtime) = (Arc::clone(&self.parts.running), &self.parts.runtime);
        let files = Arc::clone(&running);
        if runtime.spawn_blocking(move || files.read_files()).await.is_err() {
            tracing::error!("reading files anew panicked");
        }
        let Some(new) = new else { return Ok(()) };
        runtime.spawn(running.take_over(new)).await.map_err(|_| ReloadError::Panicked)?
    }

    /// Serves on, and says that viewers should be sent elsewhere: it is about to stop.
    pub fn leave(&self) {
        tracing::info!("about to stop: viewers are to be sent elsewhere");
        self.parts.phase.enter(Phase::Leaving);
    }

    /// Counts that all grow as long as every worker and the runtime turn.
    pub fn pulses(&self) -> Vec<Arc<AtomicU64>> {
        let mut pulses = self.parts.workers.pulses();
        let pulse = Arc::<AtomicU64>::default();
        pulses.push(Arc::clone(&pulse));
        self.parts.runtime.spawn(async move {
            let mut ticks = tokio::time::interval(PULSE);
            loop {
                ticks.tick().await;
                pulse.fetch_add(1, Ordering::Relaxed);
            }
        });
        pulses
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
        self.phase.enter(Phase::Stopping);
        self.workers.join();
        self.runtime.block_on(self.fill.stop());
        self.catalog.close();
        self.access_log.close();
        self.runtime.block_on(self.reporter.say_goodbye(GOODBYE));
        // Operators can watch to the end.
        drop(self.stop_admin);
        self.runtime.shutdown_timeout(RUNTIME_PATIENCE);
        tracing::info!("stopped");
    }
}

/// Has it counted, at each scrape, how many clients are remembered.
fn count_clients(metrics: &Metrics, running: &Arc<Running>) {
    let running = Arc::downgrade(running);
    metrics.before_scrape(move |metrics| {
        let clients = running.upgrade().and_then(|running| running.clients.load_full());
        metrics.clients_remembered.set(clients.map_or(0, |clients| clients.remembered()) as u64);
    });
}

/// Has gauges set whenever somebody scrapes.
fn observe(metrics: &Metrics, view: &Arc<View>, access_log: &Arc<AccessLog>) {
    let (started, catalog) = (view.started, Arc::downgrade(&view.catalog));
    let (residency, access_log) = (Arc::clone(&view.residency), Arc::clone(access_log));
    let health = Arc::downgrade(&view.health);
    metrics.before_scrape(move |_| {
        // What is scraped is no older than what `/ready` says.
        if let Some(health) = health.upgrade() {
            health.look();
        }
    });
    let nightly = Arc::downgrade(&view.nightly);
    metrics.before_scrape(move |metrics| {
        if let Some(nightly) = nightly.upgrade() {
            metrics.set_planned(nightly.progress().numbers());
        }
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

/// The last second, as JSON.
fn traffic(last: &admin::Sample) -> Value {
    json!({
        "bits_per_second": last.egress,
        "requests_per_second": last.requests,
        "hit_percent": last.hit_percent,
        "first_byte_seconds": last.first_byte.map(|millis| millis / 1000.0),
        "fill_bits_per_second": last.fill,
    })
}

impl View {
    /// What a drain has come to.
    fn standing(&self) -> Value {
        json!({ "phase": self.phase.now().label(), "connections": self.metrics.connections() })
    }
}

impl Subject for View {
    fn ready(&self) -> (bool, Value) {
        let health = self.health.health_now();
        let ready = health.is_ready();
        (ready, json!({ "ready": ready, "state": health.state, "reasons": health.reasons }))
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
        let health = self.health.health_now();
        json!({
            "appliance": self.reporter.appliance(),
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.phase.now().label(),
            "ready": health.is_ready(),
            "health": health,
            "load": self.health.snapshot().load,
            "traffic": traffic(&self.history.last()),
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
            "manifest": control::status(&self.control.standing()),
            "sources": self.health.limits().sources.iter().chain(&self.by_manifest).map(source).collect::<Vec<_>>(),
            "fill": self.nightly.progress().status(),
            "steering": self.reporter.status(),
        })
    }

    fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }

    fn control(&self) -> Option<Arc<Control>> {
        Some(Arc::clone(&self.control))
    }

    fn report(&self, wanted: &ReportWanted) -> Vec<u8> {
        let ours = wanted.boot_id.as_deref() == Some(self.reporter.boot_id());
        let known = steering::Known {
            availability: wanted.since.filter(|_| ours),
            clients: wanted.clients.filter(|_| ours),
            wants_full: wanted.full,
        };
        self.reporter.write(known).body
    }

    fn drain(&self) -> Result<Value, Refused> {
        if self.phase.now() == Phase::Starting {
            return Err(Refused::new(Why::Conflict, "starting", "it does not serve yet"));
        }
        self.drained.is_the_operators();
        if self.phase.now() == Phase::Serving && self.phase.enter(Phase::Drained) == Phase::Drained {
            tracing::info!("drained by order: viewers are to be sent elsewhere; those that come are served");
        }
        Ok(self.standing())
    }

    fn purge(&self, order: PurgeOrder) -> Answering {
        self.purging.purge(order)
    }

    fn undrain(&self) -> Result<Value, Refused> {
        let before = self.phase.now();
        match self.phase.undrain() {
            Phase::Leaving | Phase::Stopping => {
                Err(Refused::new(Why::Conflict, "stopping", "it is about to stop, and cannot be held"))
            }
            now => {
                if before != now {
                    tracing::info!("the drain is taken back");
                }
                Ok(self.standing())
            }
        }
    }

    fn fill_now(&self) -> Result<Value, Refused> {
        if self.nightly.fill_now() {
            tracing::info!("filling now, by order");
            return Ok(self.nightly.progress().status());
        }
        Err(Refused::new(Why::Conflict, "no_manifest", "there is no manifest to fill for"))
    }

    fn why(&self, path: &str) -> Result<Value, Refused> {
        let key = AssetKey::parse(path, None).map_err(|err| Refused::new(Why::Faulty, "no_path", err.to_string()))?;
        Ok(self.nightly.why(&key))
    }
}
