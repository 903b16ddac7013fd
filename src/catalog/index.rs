//! Which entry a key has: lock-free for readers.

use std::{
    hash::{Hash, Hasher, RandomState},
    sync::Arc,
};

use papaya::Equivalent;

use super::entry::Entry;
use crate::asset::AssetKey;

/// The entries that are found, each under its key.
///
/// Keys are hashed as they are, with a secret of this process (SipHash: clients choose keys), and compared whole. An asset's own
/// id, the digest that names its file, would cost several times as much for each request, and 32 bytes more for each asset.
#[derive(Debug)]
pub(super) struct Index(papaya::HashMap<Keyed, Arc<Entry>, RandomState>);

/// An entry as its own key.
#[derive(Debug)]
struct Keyed(Arc<Entry>);

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for Keyed {}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}

impl Equivalent<Keyed> for AssetKey {
    fn equivalent(&self, entry: &Keyed) -> bool {
        entry.0.key() == self
    }
}

impl Index {
    /// Room for so many without growing.
    pub(super) fn with_capacity(assets: usize) -> Self {
        Self(papaya::HashMap::builder().capacity(assets).hasher(RandomState::new()).build())
    }

    pub(super) fn find(&self, key: &AssetKey) -> Option<Arc<Entry>> {
        self.0.pin().get(key).cloned()
    }

    /// Puts an entry in, and gives back the one that stood there under the same key.
    pub(super) fn insert(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        self.0.pin().insert(Keyed(Arc::clone(entry)), Arc::clone(entry)).cloned()
    }

    /// Takes this very entry out; `false` where another stands under its key.
    pub(super) fn remove(&self, entry: &Arc<Entry>) -> bool {
        self.0.pin().remove_if(entry.key(), |_, held| Arc::ptr_eq(held, entry)).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&self) {
        self.0.pin().clear();
    }
}
