//! The manifest in force, for those who act on it.

use std::sync::Arc;

use tokio::sync::watch;

use super::manifest::Manifest;
use crate::asset::{Sha256, UnixTime};

/// A manifest that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// What it says.
    pub manifest: Manifest,
    /// Digest of the file that was signed.
    pub digest: Sha256,
    /// When it was accepted; stays over restarts.
    pub received: UnixTime,
    /// Names of the keys that signed it and are trusted.
    pub keys: Vec<Box<str>>,
}

/// The manifest in force. Clones are the same handle.
#[derive(Clone, Debug)]
pub struct InForce(watch::Sender<Option<Arc<Accepted>>>);

impl Default for InForce {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl InForce {
    /// The manifest in force; `None` before the first. It stays in force past its expiry: see [`Manifest::has_expired`].
    pub fn now(&self) -> Option<Arc<Accepted>> {
        self.0.borrow().clone()
    }

    /// Tells of each change: `changed().await`, then `borrow_and_update()`.
    pub fn follow(&self) -> watch::Receiver<Option<Arc<Accepted>>> {
        self.0.subscribe()
    }

    /// Puts a manifest in force.
    pub fn put(&self, accepted: Accepted) {
        self.0.send_replace(Some(Arc::new(accepted)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::manifest::{Builder, Head};

    #[tokio::test]
    async fn who_follows_is_told() {
        let in_force = InForce::default();
        let mut follower = in_force.clone().follow();
        assert!(follower.borrow_and_update().is_none() && in_force.now().is_none());
        let manifest = Builder::default().finish(Head { sequence: 7, ..Head::default() });
        let (digest, received) = (Sha256::new([0; 32]), UnixTime(1));
        in_force.put(Accepted { manifest, digest, received, keys: Vec::new() });
        follower.changed().await.expect("the handle lives");
        assert_eq!(follower.borrow_and_update().as_ref().expect("there is one").manifest.head.sequence, 7);
    }
}
