//! Measures and judges now and then, tells of changes once, and keeps the last answer for whoever asks.
//!
//! look: counters and clocks -> differences -> [`Inputs`], [`Load`] -> [`judge`], [`headroom`] -> snapshot, gauges, log
//!
//! On the small runtime: a worker is never asked, it only leaves its counts.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use super::{
    Config, Health, Inputs, Load, Manifest,
    inputs::{Certificate, Overload, Served, Source, Volume},
    judge,
    load::Connections,
    machine,
    meters::Meters,
    skew::Skew,
    state::{Code, State},
    window::{Counts, Window},
};
use crate::{
    asset::UnixTime,
    catalog::Catalog,
    storage::{Residency, VolumeState},
    sys::{Clock, PhaseCell},
    telemetry::metrics::Metrics,
};

/// What is looked at.
pub struct Watched {
    /// What the appliance is about.
    pub phase: PhaseCell,
    /// Names of the steering services that have it drained.
    pub drained_by: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What is held, and on which volumes.
    pub catalog: Arc<Catalog>,
    /// How cold bytes come into memory.
    pub residency: Arc<Residency>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// The manifest in force, if there is one, and why none can come, where one should.
    pub manifest: Box<dyn Fn() -> (Option<Manifest>, Option<String>) + Send + Sync>,
    /// `catalog.demand_queue_max`.
    pub demand_queue_max: u64,
    /// Directories of all volumes that are configured.
    pub volumes: Vec<PathBuf>,
    /// Whether viewers are served by HTTPS alone.
    pub https_only: bool,
}

/// What it is judged by. May change while it is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// What the operator has decided.
    pub config: Config,
    /// `serve.connections_max`.
    pub connections_max: u64,
    /// Names of all sources.
    pub sources: Vec<String>,
}

/// What was found at one look.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// How it is.
    pub health: Health,
    /// How loaded it is.
    pub load: Load,
}

/// Looks, and keeps what was found.
pub struct Watch {
    limits: ArcSwap<Limits>,
    changed: Notify,
    watched: Watched,
    found: ArcSwap<Snapshot>,
    looking: Mutex<Looking>,
}

/// What one look leaves for the next.
#[derive(Default)]
struct Looking {
    /// When the last look was, by the monotonic clock.
    last: Option<Duration>,
    window: Window,
    meters: Meters,
    skew: Skew,
    /// What the last look was judged by.
    inputs: Option<Inputs>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("found", &self.found).finish_non_exhaustive()
    }
}

impl Watch {
    /// Begins to watch, with a first look.
    pub fn start(limits: Limits, watched: Watched) -> Arc<Self> {
        let watch = Arc::new(Self {
            limits: ArcSwap::from_pointee(limits),
            changed: Notify::new(),
            watched,
            found: ArcSwap::default(),
            looking: Mutex::default(),
        });
        watch.look();
        watch
    }

    /// Looks every `health.interval`, for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            let interval = self.limits.load().config.interval;
            tokio::select! {
                () = sleep(interval) => {}
                () = self.changed.notified() => {}
            }
            self.look();
        }
    }

    /// What it judges by.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// Judges by other limits from now on.
    pub fn judge_by(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
        self.changed.notify_one();
    }

    /// What was found last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.found.load_full()
    }

    /// How it is just now: phase and volumes are looked at, all else is as of the last look.
    pub fn health_now(&self) -> Health {
        let before = self.found.load();
        let looking = self.looking.lock();
        let Some(inputs) = &looking.inputs else { return before.health.clone() };
        let Watched { phase, drained_by, .. } = &self.watched;
        let (phase, volumes) = (phase.now(), self.volumes());
        let inputs = Inputs { phase, drained_by: drained_by(), volumes, ..inputs.clone() };
        judge(&inputs, &self.limits.load().config, &before.health)
    }

    /// Measures and judges once.
    pub fn look(&self) {
        let mut looking = self.looking.lock();
        let limits = self.limits.load_full();
        let now = self.watched.clock.monotonic();
        let elapsed = looking.last.replace(now).map(|last| now.saturating_sub(last));
        looking.window.add(now, self.counts(&limits), limits.config.window);
        let before = self.found.load_full();
        let load = self.load(&mut looking, elapsed, &limits);
        let inputs = self.inputs(&mut looking, (&load, now), &limits);
        let health = judge(&inputs, &limits.config, &before.health);
        looking.inputs = Some(inputs);
        drop(looking);
        tell(&before.health, &health);
        self.show(&health, &load);
        self.found.store(Arc::new(Snapshot { health, load }));
    }

    fn counts(&self, limits: &Limits) -> Counts {
        let Watched { metrics, residency, .. } = &self.watched;
        let (cold_waits, cold_wait_micros) = residency.cold_waits();
        let mut counts = Counts { totals: metrics.totals(), cold_waits, cold_wait_micros, ..Counts::default() };
        for name in &limits.sources {
            let source = metrics.source(name);
            counts.fetches += source.fetches.value();
            counts.failures += source.errors().iter().map(|(_, count)| count).sum::<u64>();
        }
        counts
    }

    fn load(&self, looking: &mut Looking, elapsed: Option<Duration>, limits: &Limits) -> Load {
        let Watched { metrics, catalog, .. } = &self.watched;
        let Some(last) = looking.window.last_step() else { return Load::default() };
        let connections = Connections { open: metrics.connections(), max: limits.connections_max };
        let disks = catalog.volumes().filter(|volume| volume.state() == VolumeState::Serving);
        let disks = disks.map(|volume| (volume.root().display().to_string(), volume.device()));
        let elapsed = elapsed.filter(|elapsed| !elapsed.is_zero());
        looking.meters.measure(&last, &metrics.pressures(), (&disks.collect::<Vec<_>>(), elapsed));
        looking.meters.load(connections, &limits.config)
    }

    fn volumes(&self) -> Vec<Volume> {
        let Watched { catalog, volumes, .. } = &self.watched;
        let mut known: Vec<Volume> = catalog
            .volumes()
            .map(|volume| Volume {
                name: volume.root().display().to_string(),
                failure: volume.failure().map(|failure| failure.to_string()),
                free_percent: volume.free_percent(),
                probe: volume.probe_time(),
            })
            .collect();
        // Those that could not be opened are told of at start, and are as good as taken out.
        let opened = |path: &PathBuf| {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            catalog.volumes().any(|volume| volume.root() == real || volume.root() == path)
        };
        if known.len() < volumes.len() {
            for path in volumes.iter().filter(|path| !opened(path)) {
                known.push(Volume {
                    name: path.display().to_string(),
                    failure: Some("it could not be opened".into()),
                    free_percent: None,
                    probe: None,
                });
            }
        }
        known
    }

    fn inputs(&self, looking: &mut Looking, (load, now): (&Load, Duration), limits: &Limits) -> Inputs {
        let Watched { phase, metrics, catalog, clock, .. } = &self.watched;
        let late = looking.window.of_late();
        let set_aside = |name: &String| metrics.source(name).set_aside.value() == 1;
        let pressures = metrics.pressures();
        let capacity = load.egress.capacity.map(|capacity| capacity.bits_per_second as f64).filter(|bits| *bits > 0.0);
        let (manifest, manifest_failure) = (self.watched.manifest)();
        Inputs {
            phase: phase.now(),
            drained_by: (self.watched.drained_by)(),
            volumes: self.volumes(),
            served: Served {
                responses: late.totals.responses,
                errors: late.totals.errors,
                hits: late.totals.hits,
                first_byte: late.totals.first_byte(),
            },
            cold_wait: (late.cold_wait_micros.checked_div(late.cold_waits)).map(Duration::from_micros),
            fill: super::Fill {
                fetches: late.fetches,
                failures: late.failures.min(late.fetches),
                queued: catalog.demands_queued() as u64,
                queued_max: self.watched.demand_queue_max,
            },
            sources: limits
                .sources
                .iter()
                .map(|name| Source { name: name.clone(), set_aside: set_aside(name) })
                .collect(),
            manifest,
            manifest_failure,
            memory: machine::memory(),
            descriptors: machine::descriptors(),
            clock_jump_seconds: looking.skew.look(
                (machine::wall(), now),
                limits.config.clock_jump_max,
                limits.config.clock_jump_memory,
            ),
            certificates: certificates(metrics, clock.unix()),
            https_only: self.watched.https_only,
            overload: Overload {
                queue_delay: pressures.iter().map(|worker| worker.queue_delay).max().unwrap_or_default(),
                refused_percent: pressures.iter().map(|worker| worker.shed_permille).max().unwrap_or(0) as f64 / 10.0,
                egress_percent: capacity.map(|bits| load.egress.bits_per_second.short * 100.0 / bits),
                connections_percent: load.connections.open as f64 * 100.0 / load.connections.max.max(1) as f64,
            },
        }
    }

    /// Sets the gauges.
    fn show(&self, health: &Health, load: &Load) {
        let metrics = &self.watched.metrics;
        for state in State::ALL {
            let value = f64::from(u8::from(state == health.state));
            metrics.gauge("oca_health_state", Some(("state", state.label())), value);
        }
        for code in Code::ALL {
            let count = health.reasons.iter().filter(|reason| reason.code == code).count();
            metrics.gauge("oca_health_reasons", Some(("code", code.label())), count as f64);
        }
        let capacity = load.egress.capacity.map_or(0, |capacity| capacity.bits_per_second);
        metrics.gauge("oca_egress_bits_per_second", None, load.egress.bits_per_second.short.round());
        metrics.gauge("oca_egress_capacity_bits_per_second", None, capacity as f64);
        if let Some(bits) = load.headroom.bits_per_second {
            metrics.gauge("oca_headroom_bits_per_second", None, bits as f64);
        }
        for disk in &load.disks {
            metrics.gauge("oca_disk_busy_ratio", Some(("volume", &disk.volume)), disk.busy.short);
        }
    }
}

fn certificates(metrics: &Metrics, now: UnixTime) -> Vec<Certificate> {
    let left = |expiry: u64| expiry.checked_sub(now.0).filter(|left| *left > 0).map(Duration::from_secs);
    let all = metrics.certificate_expiries().into_iter();
    all.map(|(name, expiry)| Certificate { name, expires_in: left(expiry) }).collect()
}

/// Tells, once, what has changed.
fn tell(before: &Health, now: &Health) {
    for reason in &now.reasons {
        if !before.has(reason.code, reason.subject.as_deref()) {
            let (code, subject) = (reason.code.label(), reason.subject.as_deref());
            match reason.severity {
                State::Starting | State::Draining => tracing::info!(code, reason = %reason.words, "health"),
                _ => tracing::warn!(code, subject, reason = %reason.words, "health: a reason has come"),
            }
        }
    }
    for reason in &before.reasons {
        if !now.has(reason.code, reason.subject.as_deref()) {
            tracing::info!(
                code = reason.code.label(),
                subject = reason.subject.as_deref(),
                "health: a reason has gone"
            );
        }
    }
    if before.state != now.state {
        tracing::info!(from = before.state.label(), to = now.state.label(), "health: another state");
    }
}
