//! Which entry a key has: lock-free for readers.

use std::{
    hash::{Hash, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use papaya::Equivalent;

use super::entry::Entry;
use crate::asset::AssetKey;

/// The entries that are found, each under its key.
///
/// Keys are hashed as they are, with a secret of this process (SipHash: clients choose keys), and compared whole. An asset's own
/// id, the digest that names its file, would cost several times as much for each request, and 32 bytes more for each asset.
#[derive(Debug)]
pub(super) struct Index {
    entries: papaya::HashMap<Keyed, Arc<Entry>, RandomState>,
    /// Whether there ever was a key with a query.
    queries: AtomicBool,
}

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
        let entries = papaya::HashMap::builder().capacity(assets).hasher(RandomState::new()).build();
        Self { entries, queries: AtomicBool::new(false) }
    }

    pub(super) fn find(&self, key: &AssetKey) -> Option<Arc<Entry>> {
        self.entries.pin().get(key).cloned()
    }

    /// Puts an entry in, and gives back the one that stood there under the same key.
    pub(super) fn insert(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        if entry.key().query().is_some() {
            self.queries.store(true, Ordering::Relaxed);
        }
        self.entries.pin().insert(Keyed(Arc::clone(entry)), Arc::clone(entry)).cloned()
    }

    /// Takes this very entry out; `false` where another stands under its key.
    pub(super) fn remove(&self, entry: &Arc<Entry>) -> bool {
        self.entries.pin().remove_if(entry.key(), |_, held| Arc::ptr_eq(held, entry)).is_ok()
    }

    /// Shows every entry that stays in meanwhile, and perhaps others, until `look` says `false`; tells whether it never did.
    pub(super) fn show(&self, look: impl FnMut(&Arc<Entry>) -> bool) -> bool {
        self.entries.pin().values().all(look)
    }

    /// Whether this very entry is found under its key.
    pub(super) fn finds(&self, entry: &Entry) -> bool {
        self.entries.pin().get(entry.key()).is_some_and(|found| std::ptr::eq(Arc::as_ptr(found), entry))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn clear(&self) {
        self.entries.pin().clear();
    }

    /// The entries that `wanted` says are; takes as long as there are entries.
    pub(super) fn all(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        self.entries.pin().values().filter(|entry| wanted(entry)).cloned().collect()
    }

    /// Whether one path may have several entries.
    pub(super) fn has_queries(&self) -> bool {
        self.queries.load(Ordering::Relaxed)
    }
}
