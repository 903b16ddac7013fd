//! What operators have an appliance do.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::Semaphore;

use crate::{
    admin::{Answering, PurgeOrder, Refused, Why},
    catalog::Catalog,
};

/// Longest wait for the disks to remember a purge.
const PURGE_PATIENCE: Duration = Duration::from_secs(30);

/// Carries out purges one after the other: each looks at every asset, which takes a core for a while.
#[derive(Debug)]
pub(super) struct Purging {
    catalog: Arc<Catalog>,
    slot: Arc<Semaphore>,
}

impl Purging {
    pub(super) fn new(catalog: &Arc<Catalog>) -> Self {
        Self { catalog: Arc::clone(catalog), slot: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn purge(&self, order: PurgeOrder) -> Answering {
        let (catalog, slot) = (Arc::clone(&self.catalog), Arc::clone(&self.slot));
        Box::pin(async move {
            let slot = slot.acquire_owned().await;
            let PurgeOrder { targets, dry_run } = order;
            let purged = tokio::task::spawn_blocking(move || {
                // Held to the end, also where whoever has ordered it does not wait for that.
                let _slot = slot;
                if dry_run { Ok(catalog.would_purge(&targets)) } else { catalog.purge(&targets, PURGE_PATIENCE) }
            });
            match purged.await {
                Ok(Ok(purged)) => Ok(json!({ "assets": purged.assets, "bytes": purged.bytes, "dry_run": dry_run })),
                Ok(Err(err)) => {
                    let words = format!("purged for new requests, but perhaps not over a restart: {err}");
                    Err(Refused::new(Why::Failed, "not_durable", words))
                }
                Err(_) => Err(Refused::new(Why::Failed, "failed", "the purge broke off; see the log")),
            }
        })
    }
}
