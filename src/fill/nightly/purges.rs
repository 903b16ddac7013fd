//! Drops what a manifest says is to go: once, when it comes.
//!
//! What is fetched for viewers afterwards is what the source has now, and stays. After a restart it is only made sure that nothing of before
//! the manifest is left: a crash may have come between the two.

use std::time::Duration;

use serde_json::json;

use super::Nightly;
use crate::{
    asset::PathPrefix,
    catalog::Target,
    control::{Accepted, manifest::Purge},
};

/// Longest wait for the disks to remember it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a manifest means, as the catalog is told. A prefix that no key can begin with means nothing.
fn targets(purges: &[Purge]) -> Vec<Target> {
    let target = |purge: &Purge| match purge {
        Purge::Key(key) => Some(Target::Path(key.clone())),
        Purge::Prefix(prefix) => PathPrefix::decoded(prefix).ok().map(Target::Prefix),
    };
    purges.iter().filter_map(target).collect()
}

impl Nightly {
    /// Carries out what a manifest purges; `has_come`: it was not in force before the start. Blocks.
    pub(super) fn purge_listed(&self, accepted: &Accepted, has_come: bool) {
        let targets = targets(&accepted.manifest.head.purge);
        let catalog = &self.context.catalog;
        if targets.is_empty() || !(has_come || catalog.holds_from_before(&targets, accepted.received)) {
            return;
        }
        match catalog.purge(&targets, PATIENCE) {
            Ok(purged) => self.note(accepted, "purged", json!({ "assets": purged.assets, "bytes": purged.bytes })),
            Err(err) => tracing::warn!(error = %err, "purged by the manifest, but perhaps not over a restart"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asset::AssetKey;

    #[test]
    fn keys_and_prefixes_are_meant_as_they_are_written() {
        let key = AssetKey::parse("/a%20b", Some("v=1")).expect("valid");
        let purges = [Purge::Key(key.clone()), Purge::Prefix("old/é".into()), Purge::Prefix("no//key".into())];
        let prefix = PathPrefix::parse("/old/%C3%A9").expect("valid");
        assert_eq!(targets(&purges), [Target::Path(key), Target::Prefix(prefix)]);
    }
}
