//! Fills ahead of demand, as the manifest in force says.
//!
//! manifest -> digests in force, what it purges goes, plan -> wait for the window -> evict -> bring in by rank, at a pace that leaves viewers theirs
//! -> window closes: pause at the border of a block, and go on from there when the next one opens
//!
//! In a site each asset falls to one box, by the ranking that demands go by: the others take it from there, and fetch it themselves
//! only after nothing has come from the site for `fill.nightly.site_wait`.

mod bring;
pub mod config;
mod digests;
mod events;
mod pace;
mod progress;
mod purges;
mod round;
mod threads;
mod window;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::Notify};

use super::{
    Context,
    attempts::Ahead,
    plan::{FillPlan, plan},
    ranking,
};
use crate::{
    asset::{AssetId, AssetKey, BitRate, UnixTime},
    catalog::{Catalog, CatalogView, ExpectedDigests},
    control::{
        Accepted, InForce,
        manifest::{Manifest, ManifestAsset},
    },
};
use bring::{Bringing, Ended, Who};
pub use config::{Config, Day, TimeOfDay, Window, Zone};
pub(super) use digests::digest_of;
use events::Events;
pub use pace::Load;
use pace::{Pace, Yielding};
pub use progress::{HowFar, Progress};
use round::Round;
use threads::Ending;
pub(super) use threads::Nights;
pub use window::{WindowState, Windows};

/// Tells what viewers have taken so far.
pub type LoadMeter = Arc<dyn Fn() -> Load + Send + Sync>;

/// The fill by manifest.
pub struct Nightly {
    context: Arc<Context>,
    in_force: InForce,
    load: LoadMeter,
    gate: Gate,
    pace: Pace,
    progress: Progress,
    events: Events,
    /// The manifest whose digests are in force, and what was decided for it last.
    decided: parking_lot::Mutex<Option<(Arc<Accepted>, Arc<FillPlan>)>>,
    /// Since when something is wanted of which a manifest says that it is to be waited for: no more than there is in a manifest.
    wanted_since: parking_lot::Mutex<HashMap<AssetId, Duration>>,
}

impl std::fmt::Debug for Nightly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nightly").field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// Whether anything may be fetched now.
#[derive(Debug, Default)]
struct Gate {
    open: AtomicBool,
    /// Somebody has said: now, whatever the window.
    forced: AtomicBool,
    changed: Notify,
}

impl Gate {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn set(&self, open: bool) {
        if self.open.swap(open, Ordering::AcqRel) != open {
            self.changed.notify_waiters();
        }
    }
}

/// How often windows and load are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often the rate is adjusted.
const ADJUST: Duration = Duration::from_secs(1);
/// Events about an asset that are told at once.
const EVENTS_MAX: usize = 20;

impl Nightly {
    pub(super) fn new(context: Arc<Context>, in_force: InForce, load: LoadMeter) -> Self {
        let settings = context.settings();
        let config = &settings.config.nightly;
        Self {
            pace: Pace::new(context.clock.clone()),
            events: Events::new(config.log.clone(), config.log_size_max.0),
            progress: Progress::default(),
            gate: Gate::default(),
            decided: parking_lot::Mutex::default(),
            wanted_since: parking_lot::Mutex::default(),
            context,
            in_force,
            load,
        }
    }

    /// Puts the digests of the manifest in force, if there is one. Before viewers are served. Blocks.
    pub(super) fn take_up_now(&self) {
        if let Some(accepted) = self.in_force.now() {
            self.take_up(&accepted, false);
        }
    }

    /// Begins, with windows and load looked at on the current runtime.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<Nights> {
        let (follow, look) = (Arc::clone(self), Arc::clone(self));
        let runtime = threads::runtime(&self.context.settings().config.nightly)?;
        let threads = runtime.handle().clone();
        let follow = tokio::spawn(async move { follow.follow(&threads).await });
        Ok(Nights::new([follow, tokio::spawn(async move { look.look().await })], runtime))
    }

    /// Fills now, whatever the window, until the plan is carried out. Tells whether there is a manifest to fill for.
    pub fn fill_now(&self) -> bool {
        if self.in_force.now().is_none() {
            return false;
        }
        self.gate.forced.store(true, Ordering::Release);
        let settings = self.context.settings();
        let config = &settings.config.nightly;
        self.adjust(&mut Yielding::new(config.link, config.cold_wait_max));
        self.gate.changed.notify_waiters();
        true
    }

    /// Windows, rates or rules are others: whoever waits for them looks again.
    pub(super) fn look_again(&self) {
        self.gate.changed.notify_waiters();
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Opens the event log anew: somebody has moved it. Blocks.
    pub fn reopen_log(&self) {
        self.events.reopen();
    }

    /// Why an asset is here or not: what the manifest says of it, what was decided, what is held, and what happened. Blocks.
    pub fn why(&self, key: &AssetKey) -> Value {
        let decided = self.decided.lock().clone();
        let held = self.context.catalog.held_or_withheld(key).map(|entry| {
            json!({
                "serial": entry.serial(),
                "volume": crate::storage::HasFile::file(&*entry).volume().root().display().to_string(),
                "length": entry.meta().length,
                "reserved": entry.reserved(),
                "whole": entry.is_sealed(),
                "digest_compared": self.context.catalog.whole_digest(&entry).is_some(),
                "seen_by_viewers": self.context.catalog.held(key).is_some(),
            })
        });
        let manifest = decided.as_ref().map(|(accepted, plan)| {
            let manifest = &accepted.manifest;
            let found = manifest.find(key).and_then(|(rank, asset)| Some((u32::try_from(rank).ok()?, asset)));
            let decision = found.map(|(rank, _)| decision(plan, rank));
            let waited = found.filter(|(_, asset)| has_waits(manifest, asset)).map(|(_, asset)| self.waited(asset).as_secs());
            json!({
                "sequence": manifest.head.sequence, "rank": found.map(|(rank, _)| rank), "decision": decision, "waited_seconds": waited,
            })
        });
        let events = self.events.about(key.path(), EVENTS_MAX);
        json!({ "asset": key.path(), "manifest": manifest, "held": held, "events": events })
    }

    /// Follows the manifest in force for as long as the appliance runs: each has its nights on `threads`, and they end before those of the next
    /// one begin.
    async fn follow(self: &Arc<Self>, threads: &Handle) {
        let mut follow = self.in_force.follow();
        loop {
            let accepted = follow.borrow_and_update().clone();
            let mut nights = accepted.map(|accepted| {
                let nightly = Arc::clone(self);
                let is_new = self.decided.lock().as_ref().is_none_or(|(decided, _)| !Arc::ptr_eq(decided, &accepted));
                if is_new {
                    // Here: what it says of viewers' assets gives way to nobody.
                    tokio::task::block_in_place(|| self.take_up(&accepted, true));
                }
                Ending(threads.spawn(async move { nightly.nights(&accepted).await }))
            });
            if follow.changed().await.is_err() {
                return;
            }
            if let Some(nights) = nights.as_mut() {
                nights.end().await;
            }
        }
    }

    /// A manifest comes in force, or is again after the start: what it names a digest of is seen once that was compared, and nothing else of
    /// that name. Blocks.
    fn take_up(&self, accepted: &Arc<Accepted>, has_come: bool) {
        let manifest = &accepted.manifest;
        let digests: ExpectedDigests =
            manifest.assets().iter().filter_map(|asset| Some((asset.key.id(), digest_of(asset)?))).collect();
        self.context.catalog.expect(digests);
        self.purge_listed(accepted, has_come);
        let (plan, _) = self.decide(accepted);
        tracing::info!(
            sequence = manifest.head.sequence,
            assets = manifest.assets().len(),
            keep = plan.keep.len(),
            fetch = plan.fetch.len(),
            passed_over = plan.passed_over.len(),
            "manifest is planned for"
        );
        self.note(accepted, "planned", json!({
            "wanted": manifest.assets().len(), "keep": plan.keep.len(), "fetch": plan.fetch.len(), "bytes": plan.bytes_to_fetch(),
            "passed_over": plan.passed_over.len(),
        }));
    }

    /// Decides anew. Blocks.
    fn decide(&self, accepted: &Arc<Accepted>) -> (Arc<FillPlan>, CatalogView) {
        let (manifest, catalog) = (&accepted.manifest, &self.context.catalog);
        let view = catalog.view();
        let plan =
            Arc::new(plan(manifest, &view, &self.context.settings().config.nightly.rules, self.context.clock.unix()));
        let pinned: std::collections::HashSet<&AssetKey> =
            plan.pinned.iter().map(|rank| &manifest.assets()[*rank as usize].key).collect();
        catalog.pin(|key| pinned.contains(key));
        self.progress.planned(manifest.head.sequence, &plan, &|rank| manifest.assets()[rank as usize].length.0);
        *self.decided.lock() = Some((Arc::clone(accepted), Arc::clone(&plan)));
        (plan, view)
    }

    /// Night after night for one manifest; ends with it.
    async fn nights(&self, accepted: &Arc<Accepted>) {
        self.compare(accepted).await;
        loop {
            self.until_open().await;
            let (plan, view) = tokio::task::block_in_place(|| {
                let (plan, view) = self.decide(accepted);
                self.evict(accepted, &plan, &view);
                (plan, view)
            });
            drop(view);
            let failed = Round::new(self, accepted, &plan).run().await;
            if !self.gate.is_open() {
                self.note(accepted, "paused", json!({}));
                continue;
            }
            self.gate.forced.store(false, Ordering::Release);
            self.progress.round_ended();
            if !plan.fetch.is_empty() {
                tracing::info!(sequence = accepted.manifest.head.sequence, failed, "fill has ended");
                self.note(accepted, "ended", json!({ "failed": failed }));
            }
            let settings = self.context.settings();
            let config = &settings.config.nightly;
            self.rest(if failed > 0 { config.retry_after } else { config.plan_interval }).await;
        }
    }

    /// Compares what is here as a whole with its digest: it takes neither link nor window, and viewers wait for it.
    async fn compare(&self, accepted: &Arc<Accepted>) {
        let plan = self.decided.lock().as_ref().map(|(_, plan)| Arc::clone(plan));
        let here = plan.iter().flat_map(|plan| &plan.fetch).filter(|fetch| fetch.bytes == 0);
        for fetch in here {
            self.bring(accepted, fetch.rank, true).await;
        }
    }

    fn evict(&self, accepted: &Arc<Accepted>, plan: &FillPlan, view: &CatalogView) {
        for eviction in &plan.evict {
            let victim = &view.held[eviction.held as usize];
            let bytes = self.context.catalog.evict_planned(&victim.key, victim.serial);
            if bytes > 0 {
                self.progress.evicted();
                let why = eviction.why.label();
                self.note(accepted, "evicted", json!({ "asset": victim.key.path(), "bytes": bytes, "reason": why }));
            }
        }
    }

    async fn bring(&self, accepted: &Arc<Accepted>, rank: u32, site_only: bool) -> (u32, Ended) {
        let asset = &accepted.manifest.assets()[rank as usize];
        let begun = Instant::now();
        let in_work = self.progress.begin();
        let fetches_for_site = !self.context.settings().config.site.name.is_empty() && self.falls_to_me(&asset.key);
        let who = Who { may_ask: Ahead { site_only, waited: self.waited(asset) }, fetches_for_site };
        let ended = Bringing::new(self, &accepted.manifest, asset, who).run().await;
        drop(in_work);
        let path = asset.key.path();
        match ended {
            Ended::Held => {
                self.progress.held(asset.length.0);
                let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                let more = json!({ "asset": path, "rank": rank, "bytes": asset.length.0, "millis": millis });
                self.note(accepted, "held", more);
            }
            Ended::Failed(reason) => {
                tracing::warn!(asset = %asset.key, reason, "planned asset is not to be had");
                self.progress.failed(path, reason);
                self.note(accepted, "failed", json!({ "asset": path, "rank": rank, "reason": reason }));
            }
            Ended::Paused | Ended::Waiting | Ended::Later => {}
        }
        (rank, ended)
    }

    /// From now on those assets of the plan are waited for that were not before.
    fn wanted_from_now(&self, manifest: &Manifest, plan: &FillPlan) {
        let now = self.context.clock.monotonic();
        let mut wanted = self.wanted_since.lock();
        let ids = plan.fetch.iter().map(|fetch| &manifest.assets()[fetch.rank as usize]);
        let ids = ids.filter(|asset| has_waits(manifest, asset)).map(|asset| asset.key.id());
        *wanted = ids.map(|id| (id, wanted.get(&id).copied().unwrap_or(now))).collect();
    }

    fn waited(&self, asset: &ManifestAsset) -> Duration {
        let wanted = self.wanted_since.lock();
        if wanted.is_empty() {
            return Duration::ZERO;
        }
        wanted
            .get(&asset.key.id())
            .map_or(Duration::ZERO, |since| self.context.clock.monotonic().saturating_sub(*since))
    }

    /// Whether no live box of the site stands above this one for an asset.
    fn falls_to_me(&self, key: &AssetKey) -> bool {
        let settings = self.context.settings();
        let sources = settings.sources.iter();
        let live = sources.filter(|source| source.set_aside.admit(Instant::now()).is_some());
        ranking::falls_to(&key.id(), &settings.config.site.name, live.map(|source| &source.config))
    }

    /// Looks at windows and load for as long as the appliance runs.
    async fn look(&self) {
        let config = self.context.settings().config.nightly.clone();
        let mut yielding = Yielding::new(config.link, config.cold_wait_max);
        let mut adjusted: Option<Duration> = None;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let now = self.context.clock.monotonic();
            let due = adjusted.is_none_or(|then| now.saturating_sub(then) >= ADJUST);
            if due {
                adjusted = Some(now);
                self.adjust(&mut yielding);
            }
        }
    }

    fn adjust(&self, yielding: &mut Yielding) {
        let now = self.context.clock.unix();
        let settings = self.context.settings();
        let config = &settings.config.nightly;
        yielding.go_by(config.link, config.cold_wait_max);
        let state = Windows::new(config.time_zone.clone(), config.windows.clone()).at(now);
        let forced = self.gate.forced.load(Ordering::Acquire);
        let expired = self.in_force.now().is_none_or(|accepted| accepted.manifest.has_expired(now));
        let fastest = config.windows.iter().map(|window| window.rate).max().unwrap_or(config.rate_outside);
        let allowed = match state {
            _ if expired => BitRate(0),
            _ if forced => fastest,
            WindowState::Open { rate, .. } => rate,
            WindowState::Closed { .. } => config.rate_outside,
        };
        let rate = yielding.next(self.context.clock.monotonic(), (self.load)(), allowed);
        // While it is closed the rate stays: what is under way goes on to the border of its block.
        if allowed.0 > 0 {
            self.pace.set(rate);
        }
        self.gate.set(allowed.0 > 0);
        let window = match state {
            WindowState::Open { until, .. } => json!({ "state": "open", "until": until.0 }),
            WindowState::Closed { next } => json!({ "state": "closed", "opens": next.map(|next| next.0) }),
        };
        let rate = if allowed.0 > 0 { self.pace.rate().0 } else { 0 };
        self.progress.window(now, window, rate, forced);
    }

    async fn until_open(&self) {
        loop {
            let changed = self.gate.changed.notified();
            if self.gate.is_open() {
                return;
            }
            changed.await;
        }
    }

    /// Waits by the appliance's clock; ends early when the window opens or closes, or somebody says: now.
    async fn rest(&self, time: Duration) {
        let until = self.context.clock.monotonic() + time;
        let changed = self.gate.changed.notified();
        tokio::pin!(changed);
        while self.context.clock.monotonic() < until {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = &mut changed => return,
            }
        }
    }

    fn note(&self, accepted: &Accepted, event: &str, more: Value) {
        let now: UnixTime = self.context.clock.unix();
        self.events.note(now, accepted.manifest.head.sequence, event, more);
    }
}

fn has_waits(manifest: &Manifest, asset: &ManifestAsset) -> bool {
    manifest.sources(asset).iter().any(|choice| !choice.wait.is_zero())
}

fn decision(plan: &FillPlan, rank: u32) -> &'static str {
    if plan.keep.binary_search(&rank).is_ok() {
        "keep"
    } else if plan.fetch.binary_search_by_key(&rank, |fetch| fetch.rank).is_ok() {
        "fetch"
    } else {
        plan.passed_over.iter().find(|(passed, _)| *passed == rank).map_or("unknown", |(_, why)| why.label())
    }
}

impl Context {
    /// Does what blocks, with the catalog; `None` when the appliance stops.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Catalog) -> T + Send + 'static) -> Option<T> {
        let catalog = Arc::clone(&self.catalog);
        tokio::task::spawn_blocking(move || work(&catalog)).await.ok()
    }
}
