//! Brings in what viewers ask for and the catalog lacks.
//!
//! demand -> discover / fetch / revalidate / pass through -> attempts -> source (http, directory) -> check -> writer -> catalog
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
mod http;
mod pass_through;
mod revalidate;
mod set_aside;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use config::{Config, Freshness, SourceConfig, SourceKind, SourceLocation};
#[doc(hidden)]
pub use http::judge_untrusted;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinHandle,
};

use crate::{
    asset::BlockSize,
    catalog::{Catalog, Demand, Demands, Refusal},
    sys::Clock,
    telemetry::metrics::Metrics,
};
use source::Source;

/// What all fetches share.
#[derive(Debug)]
struct Context {
    config: Config,
    catalog: Arc<Catalog>,
    sources: Vec<Arc<Source>>,
    clock: Clock,
    block_size: BlockSize,
    /// Held while an asset is fetched whole once more; rare, so one at a time for all.
    whole_fetches: Mutex<()>,
    passes: Arc<Semaphore>,
}

/// The fill plane at work.
#[derive(Debug)]
pub struct Fill {
    task: JoinHandle<()>,
}

/// Why filling cannot begin.
#[derive(Debug, thiserror::Error)]
#[error("source {name}: {source}")]
pub struct StartError {
    name: String,
    source: reqwest::Error,
}

/// Starts to take demands, on the current runtime.
///
/// # Errors
/// The HTTP client of a source cannot be set up.
pub fn start(
    config: &Config,
    catalog: Arc<Catalog>,
    demands: Demands,
    on: (&Metrics, Clock, BlockSize),
) -> Result<Fill, StartError> {
    let (metrics, clock, block_size) = on;
    let sources = config.sources.iter().map(|source| {
        let made = Source::new(source.clone(), metrics.source(&source.name));
        made.map(Arc::new).map_err(|err| StartError { name: source.name.clone(), source: err })
    });
    let context = Arc::new(Context {
        config: config.clone(),
        catalog,
        sources: sources.collect::<Result<_, _>>()?,
        clock,
        block_size,
        whole_fetches: Mutex::new(()),
        passes: Arc::new(Semaphore::new(config.pass_through_max)),
    });
    Ok(Fill { task: tokio::spawn(take_demands(context, demands)) })
}

impl Fill {
    /// Ends filling at once; what is half written is given up, what waits is refused.
    pub async fn stop(self) {
        self.task.abort();
        if let Err(err) = self.task.await
            && err.is_panic()
        {
            tracing::error!(error = %err, "the fill plane panicked");
        }
    }
}

/// Takes demands while there is room for another fetch: beyond that they wait on the board, and beyond its bound they are
/// refused there.
async fn take_demands(context: Arc<Context>, mut demands: Demands) {
    let jobs = Arc::new(Semaphore::new(context.config.fetches_max.max(1)));
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
    async fn work(&self, demand: Demand) {
        match demand {
            Demand::Discover(discovery) => self.discover(discovery).await,
            Demand::Blocks { entry, blocks } => self.fetch_blocks(&entry, blocks).await,
            Demand::Revalidate(revalidation) => self.revalidate(revalidation).await,
            Demand::PassThrough(demand) => self.pass_through(demand).await,
        }
    }
}
