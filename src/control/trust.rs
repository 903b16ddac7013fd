//! The trusted keys in use, taken over from their files as these change: by the rules of certificates, and all files or none.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    config::Config,
    keys::{KeysError, TrustedKeys},
};
use crate::{
    sys::{Stamp, Watch, stamp},
    telemetry::metrics::Metrics,
};

/// Whose signatures count now.
#[derive(Debug)]
pub(super) struct Trust {
    keys: ArcSwap<TrustedKeys>,
    files: Mutex<Watch>,
}

fn stamps(config: &Config) -> Vec<Stamp> {
    config.keys.iter().map(|file| stamp(Path::new(file))).collect()
}

/// As many as have to sign, at least: fewer would take no manifest ever.
fn load(config: &Config) -> Result<TrustedKeys, KeysError> {
    let keys = config.trusted_keys()?;
    if !config.keys.is_empty() && keys.count() < config.threshold {
        return Err(KeysError::too_few(keys.count(), config.threshold));
    }
    Ok(keys)
}

impl Trust {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// One of them is no good, or all of them have too few keys.
    pub(super) fn start(config: &Config) -> Result<Self, KeysError> {
        // Stamped before they are read: what changes in between is found to have changed.
        let files = Mutex::new(Watch::new(stamps(config)));
        Ok(Self { keys: ArcSwap::from_pointee(load(config)?), files })
    }

    pub(super) fn now(&self) -> Arc<TrustedKeys> {
        self.keys.load_full()
    }

    /// Takes over what has changed and then stayed as it was for one look; whether other keys are trusted from now on. Blocks.
    pub(super) fn look(&self, config: &Config, metrics: &Metrics) -> bool {
        let mut files = self.files.lock();
        files.is_due(stamps(config)) && self.take_over(config, metrics)
    }

    /// Takes over what is there. Blocks.
    pub(super) fn reload(&self, config: &Config, metrics: &Metrics) -> bool {
        let mut files = self.files.lock();
        *files = Watch::new(stamps(config));
        !config.keys.is_empty() && self.take_over(config, metrics)
    }

    fn take_over(&self, config: &Config, metrics: &Metrics) -> bool {
        match load(config) {
            Ok(keys) => {
                let (count, threshold) = (keys.count(), keys.threshold());
                let is_new = *self.keys.load_full() != keys;
                self.keys.store(Arc::new(keys));
                metrics.manifest.keys_reloaded.add(1);
                tracing::info!(keys = count, threshold, "the keys of manifests were read anew");
                is_new
            }
            Err(err) => {
                metrics.manifest.keys_refused.add(1);
                tracing::error!(error = %err, "changed keys of manifests are refused; those in use stay");
                false
            }
        }
    }
}
