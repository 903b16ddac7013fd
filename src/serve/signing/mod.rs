//! Signed URLs: who may have what, by the word of somebody whose key is known here.
//!
//! request -> package (what it presents, and what it asks for without that) -> gate: rule of the path
//!         -> token (RFC 9246: keys -> signature -> claims) or plain (expiry and HMAC) -> allowed, or why not
//!
//! A worker remembers the tokens that it has verified, never an answer: time, URI and client are compared for every request. A
//! token that is not remembered costs one signature, and that only on the handler's way. Nothing here reads a file but
//! [`Signing::look`] and [`Signing::reload`], which run beside the workers.

mod base64url;
pub mod config;
pub mod container;
mod gate;
pub mod keys;
mod nonces;
pub mod package;
pub mod plain;
#[cfg(test)]
mod tests;
pub mod token;

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use config::{Config, Form, KeySet, Policy, Rule};
pub(super) use gate::{Asking, Gate, Grant};
use keys::{Keys, KeysError};
use nonces::Nonces;

use crate::{
    sys::{Stamp, Watch, stamp},
    telemetry::metrics::Metrics,
};

/// Why URLs cannot be told from forged ones.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// A key set is no good.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The key for renewed tokens is not there, or is only a public one.
    #[error("no key '{0}' that can sign stands in a key set for uri-signing (serve.signing.renewal_key)")]
    RenewalKey(String),
}

/// What all workers share.
#[derive(Debug)]
pub struct Signing {
    config: Config,
    query_in_key: bool,
    keys: ArcSwap<Generation>,
    /// Outlives other keys and rules: what was used stays so.
    nonces: Arc<Nonces>,
    files: Mutex<Watch>,
    metrics: Arc<Metrics>,
}

/// The keys in use, and how often they have changed: what was verified with others has to be verified again.
#[derive(Debug)]
struct Generation {
    keys: Keys,
    number: u64,
}

/// Reads the keys of a configuration. Blocks.
///
/// # Errors
/// The first thing that is wrong with them.
pub fn load(config: &Config) -> Result<Keys, SigningError> {
    let keys = Keys::load(&config.key_sets)?;
    let kid = &config.renewal_key;
    if !kid.is_empty() && !keys.key(kid, Form::UriSigning).is_some_and(keys::Key::signs) {
        return Err(SigningError::RenewalKey(kid.clone()));
    }
    Ok(keys)
}

impl Signing {
    /// Loads the keys; `None` where nothing is signed. Blocks.
    ///
    /// # Errors
    /// See [`SigningError`].
    pub fn start(config: &super::Config, metrics: &Arc<Metrics>) -> Result<Option<Arc<Self>>, SigningError> {
        let signing = &config.signing;
        if !signing.is_on() {
            return Ok(None);
        }
        // Stamped before they are read: what changes in between is found to have changed.
        let stamps = stamps(signing);
        let keys = load(signing)?;
        tracing::info!(keys = keys.len(), "signed URLs are verified");
        Ok(Some(Arc::new(Self::with(config, keys, stamps, metrics))))
    }

    /// As [`Signing::start`], in the place of `before`: nonces that were used stay so. Blocks.
    ///
    /// # Errors
    /// As there.
    pub fn renewed(
        config: &super::Config,
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Result<Option<Arc<Self>>, SigningError> {
        let signing = &config.signing;
        if !signing.is_on() {
            return Ok(None);
        }
        let stamps = stamps(signing);
        let mut made = Self::with(config, load(signing)?, stamps, metrics);
        if let Some(before) = before {
            made.nonces = Arc::clone(&before.nonces);
            made.nonces.set_most(signing.nonces_max);
        }
        Ok(Some(Arc::new(made)))
    }

    fn with(config: &super::Config, keys: Keys, stamps: Vec<Stamp>, metrics: &Arc<Metrics>) -> Self {
        Self {
            config: config.signing.clone(),
            query_in_key: config.query_in_key,
            keys: ArcSwap::from_pointee(Generation { keys, number: 0 }),
            nonces: Arc::new(Nonces::new(config.signing.nonces_max)),
            files: Mutex::new(Watch::new(stamps)),
            metrics: Arc::clone(metrics),
        }
    }

    /// Takes over what has changed and then stayed as it was for one look.
    pub fn look(&self) {
        let mut files = self.files.lock();
        if files.is_due(stamps(&self.config)) {
            self.load();
        }
    }

    /// Takes over what is there.
    pub fn reload(&self) {
        let mut files = self.files.lock();
        *files = Watch::new(stamps(&self.config));
        self.load();
    }

    /// All sets or none: a key that has moved from one to another is never in both, nor in neither.
    fn load(&self) {
        match load(&self.config) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "new keys for signed URLs are in use");
                let number = self.keys.load().number + 1;
                self.keys.store(Arc::new(Generation { keys, number }));
                self.metrics.keys_reloaded.inc();
            }
            Err(err) => {
                tracing::error!(error = %err, "changed keys for signed URLs are refused; the ones in use stay");
                self.metrics.keys_refused.inc();
            }
        }
    }
}

fn stamps(config: &Config) -> Vec<Stamp> {
    config.key_sets.iter().map(|set| stamp(&set.path)).collect()
}
