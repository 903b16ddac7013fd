//! What is counted of the control plane's manifests.

use super::counters::Counter;

/// What is counted of manifests.
#[derive(Debug, Default)]
pub struct ManifestMetrics {
    /// See `oca_manifests_accepted_total`.
    pub accepted: Counter,
    /// See `oca_manifest_key_reloads_total`.
    pub keys_reloaded: Counter,
    /// See `oca_manifest_key_reloads_total`.
    pub keys_refused: Counter,
    /// See `oca_manifest_sequence`. Set at scrape, as all below.
    pub sequence: Counter,
    /// See `oca_manifest_assets`.
    pub assets: Counter,
    /// See `oca_manifest_age_seconds`.
    pub age_seconds: Counter,
    /// See `oca_manifest_expiry_seconds`.
    pub expiry: Counter,
    /// See `oca_manifest_stale`.
    pub stale: Counter,
    refused: parking_lot::Mutex<Vec<(&'static str, u64)>>,
}

impl ManifestMetrics {
    /// One was refused, for this reason.
    pub fn refused(&self, reason: &'static str) {
        let mut refused = self.refused.lock();
        match refused.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => refused.push((reason, 1)),
        }
    }

    /// How often one was refused, by reason.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refused.lock().clone()
    }
}
