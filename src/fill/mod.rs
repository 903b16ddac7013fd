//! Brings in what viewers ask for and the catalog lacks.
//!
//! demand -> discover / fetch / revalidate / pass through -> ranking -> attempts -> source (http, directory) -> check -> writer -> catalog
//! manifest in force -> nightly: plan, window, pace -> attempts -> ...
//!
//! Takes demands from the catalog's board and writes through the catalog; never talks to a viewer. Every head is checked, every
//! byte counted: what a source gets wrong ends here.

mod attempts;
mod check;
mod config;
mod directory;
mod discover;
mod fetch;
mod freshness;
mod hints;
mod http;
pub mod nightly;
mod pace;
mod pass_through;
mod plan;
#[cfg(test)]
mod plan_tests;
mod ranking;
mod revalidate;
mod set_aside;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;
pub use config::{Config, Freshness, SiteConfig, SourceConfig, SourceKind, SourceLocation};
pub use http::HttpError;
#[doc(hidden)]
pub use http::judge_untrusted;
pub use plan::{EvictedFor, Eviction, Fetch, FillPlan, PassedOver, Rules, plan};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinHandle,
};

use crate::{
    asset::{AssetKey, BlockSize},
    catalog::{Catalog, Demand, Demands, Refusal},
    control::{
        InForce,
        manifest::{Manifest, ManifestAsset},
    },
    sys::Clock,
    telemetry::metrics::Metrics,
};
use hints::Hints;
use ranking::Route;
use source::Source;

/// What all fetches share.
#[derive(Debug)]
struct Context {
    settings: ArcSwap<Settings>,
    catalog: Arc<Catalog>,
    in_force: InForce,
    /// What this box is called among caches.
    identity: Arc<str>,
    clock: Clock,
    block_size: BlockSize,
    /// Held while an asset is fetched whole once more; rare, so one at a time for all.
    whole_fetches: Mutex<()>,
    passes: Arc<Semaphore>,
}

/// What of it may change while it works.
#[derive(Debug)]
pub struct Settings {
    config: Config,
    /// Those that are configured, and behind them those that only a manifest's addresses lead to.
    sources: Vec<Arc<Source>>,
}

impl Settings {
    /// What a manifest says of where an asset comes from, in terms of these sources; `None`: nothing.
    fn hints(&self, manifest: &Manifest, asset: &ManifestAsset) -> Option<Hints> {
        let choices = manifest.sources(asset);
        (!choices.is_empty()).then(|| Hints::of(choices, self.sources.iter().map(|source| &source.config)))
    }
}

/// The fill plane at work.
#[derive(Debug)]
pub struct Fill {
    context: Arc<Context>,
    identity: Arc<str>,
    task: JoinHandle<()>,
    nightly: Arc<nightly::Nightly>,
    /// Let go of with their runtime.
    nights: nightly::Nights,
}

/// Why filling cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A source cannot be asked.
    #[error("source {name}: {source}")]
    Source {
        /// Its name.
        name: String,
        /// Why not.
        source: HttpError,
    },
    /// The system has no threads for it.
    #[error("threads of the fill by manifest: {0}")]
    Threads(#[from] std::io::Error),
}

/// Starts to take demands, on the current runtime; what is fetched ahead of demand has threads of its own.
///
/// # Errors
/// The HTTP client of a source cannot be set up, or there are no threads.
pub fn start(
    config: &Config,
    catalog: Arc<Catalog>,
    demands: Demands,
    on: (&Metrics, Clock, BlockSize),
    (in_force, load): (InForce, nightly::LoadMeter),
) -> Result<Fill, StartError> {
    let (metrics, clock, block_size) = on;
    let context = Arc::new(Context {
        settings: ArcSwap::from_pointee(settings(config, metrics, &[])?),
        catalog,
        in_force: in_force.clone(),
        identity: identity(&config.site),
        clock,
        block_size,
        whole_fetches: Mutex::new(()),
        passes: Arc::new(Semaphore::new(config.pass_through_max)),
    });
    let identity = Arc::clone(&context.identity);
    let nightly = Arc::new(nightly::Nightly::new(Arc::clone(&context), in_force, load));
    // Before a viewer is served: what the manifest names a digest of is seen only once that was compared.
    nightly.take_up_now();
    let nights = nightly.start()?;
    let task = tokio::spawn(take_demands(Arc::clone(&context), demands));
    Ok(Fill { context, identity, task, nightly, nights })
}

/// Sets up the sources of a configuration. One that is `here` as it is wanted stays, with what is known of it.
fn settings(config: &Config, metrics: &Metrics, here: &[Arc<Source>]) -> Result<Settings, StartError> {
    let sources = config.sources.iter().chain(&config.by_manifest).map(|source| {
        // Files that it names are read anew.
        let names_files = source.files.iter().next().is_some() || source.store.credentials.is_some();
        if let Some(same) = here.iter().find(|here| here.config == *source && !names_files) {
            return Ok(Arc::clone(same));
        }
        let made = Source::new(source.clone(), metrics.source(&source.name));
        made.map(Arc::new).map_err(|err| StartError::Source { name: source.name.clone(), source: err })
    });
    Ok(Settings { config: config.clone(), sources: sources.collect::<Result<_, _>>()? })
}

/// What this box is called among caches: by its peers, or else by a name that nobody has chosen.
fn identity(site: &SiteConfig) -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    if !site.name.is_empty() {
        return site.name.as_str().into();
    }
    format!("oca-{:016x}", RandomState::new().hash_one(0)).into()
}

impl Fill {
    /// What this box is called among caches, in what it asks of them: a request that says so too has gone round in a circle.
    pub fn identity(&self) -> Arc<str> {
        Arc::clone(&self.identity)
    }

    /// To change what it goes by.
    pub fn changing(&self) -> Changing {
        Changing { context: Arc::clone(&self.context), nightly: Arc::clone(&self.nightly) }
    }

    /// The fill by manifest.
    pub fn nightly(&self) -> Arc<nightly::Nightly> {
        Arc::clone(&self.nightly)
    }

    /// Ends filling at once; what is half written is given up, what waits is refused.
    pub async fn stop(self) {
        self.nights.stop().await;
        ended(self.task).await;
    }
}

/// Ends a task.
async fn ended(task: JoinHandle<()>) {
    task.abort();
    if let Err(err) = task.await
        && err.is_panic()
    {
        tracing::error!(error = %err, "the fill plane panicked");
    }
}

/// Changes what fill goes by while it works.
#[derive(Debug)]
pub struct Changing {
    context: Arc<Context>,
    nightly: Arc<nightly::Nightly>,
}

impl Changing {
    /// Sets up what another configuration asks for, to be taken over as a whole. Blocks.
    ///
    /// # Errors
    /// A source cannot be set up; nothing has changed.
    pub fn prepare(&self, config: &Config, metrics: &Metrics) -> Result<Settings, StartError> {
        settings(config, metrics, &self.context.settings().sources)
    }

    /// Asks these sources, and goes by these windows and limits, from now on; what is under way is finished as it was begun.
    pub fn take_over(&self, settings: Settings) {
        self.context.settings.store(Arc::new(settings));
        self.nightly.look_again();
    }

    /// Opens the event log anew: somebody has moved it. Blocks.
    pub fn reopen_log(&self) {
        self.nightly.reopen_log();
    }
}

/// Takes demands while there is room for another fetch: beyond that they wait on the board, and beyond its bound they are
/// refused there.
async fn take_demands(context: Arc<Context>, mut demands: Demands) {
    let jobs = Arc::new(Semaphore::new(context.settings().config.fetches_max.max(1)));
    let mut running = tokio::task::JoinSet::new();
    loop {
        // Ended jobs are let go of as others come.
        while let Some(ended) = running.try_join_next() {
            if let Err(err) = ended
                && err.is_panic()
            {
                tracing::error!(error = %err, "a fetch panicked; its demand is refused");
            }
        }
        let Ok(slot) = Arc::clone(&jobs).acquire_owned().await else { return };
        let Some(demand) = demands.next().await else { return };
        let context = Arc::clone(&context);
        running.spawn(async move {
            // A response that passes through takes as long as its viewer does: it has a bound of its own.
            let slot = match &demand {
                Demand::PassThrough(_) => {
                    drop(slot);
                    match Arc::clone(&context.passes).try_acquire_owned() {
                        Ok(pass) => pass,
                        Err(_) => return refuse(demand),
                    }
                }
                _ => slot,
            };
            context.work(demand).await;
            drop(slot);
        });
    }
}

fn refuse(demand: Demand) {
    if let Demand::PassThrough(demand) = demand {
        demand.answer(Err(Refusal::Busy));
    }
}

impl Context {
    /// What it goes by just now.
    fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// What the manifest in force says of where an asset comes from; `None`: nothing.
    fn told_of(&self, settings: &Settings, key: &AssetKey) -> Option<Hints> {
        let accepted = self.in_force.now()?;
        let (_, asset) = accepted.manifest.find(key)?;
        settings.hints(&accepted.manifest, asset)
    }

    async fn work(&self, demand: Demand) {
        match demand {
            Demand::Discover(discovery) => self.discover(discovery).await,
            Demand::Blocks { entry, blocks, asker } => self.fetch_blocks(&entry, blocks, Route::of(&asker)).await,
            Demand::Revalidate(revalidation) => self.revalidate(revalidation).await,
            Demand::PassThrough(demand) => self.pass_through(demand).await,
        }
    }
}
