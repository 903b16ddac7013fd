//! Which assets were used last: the order in which a volume's assets are evicted.

use std::sync::Arc;

use lru::LruCache;

use super::entry::Entry;
use crate::asset::AssetId;

/// Least recently used first. One per volume; its bytes are counted by the volume.
#[derive(Debug)]
pub(super) struct Recency {
    order: LruCache<AssetId, Arc<Entry>, foldhash::fast::RandomState>,
}

/// How many candidates are looked at for one that nobody reads.
const CANDIDATES_MAX: usize = 1024;

impl Recency {
    pub(super) fn new() -> Self {
        Self { order: LruCache::unbounded_with_hasher(foldhash::fast::RandomState::default()) }
    }

    /// Takes in an asset as the last used one.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) {
        self.order.put(entry.id(), entry);
    }

    /// Marks an asset as used; one that is gone is none any more.
    pub(super) fn touch(&mut self, id: &AssetId) {
        self.order.promote(id);
    }

    /// Takes out this very version.
    pub(super) fn remove(&mut self, entry: &Arc<Entry>) {
        if self.order.peek(&entry.id()).is_some_and(|held| Arc::ptr_eq(held, entry)) {
            self.order.pop(&entry.id());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Takes out the next to evict: the least recently used that is neither being filled nor read. What is read gives no space
    /// back before its reader is done, and what is filled is wanted now.
    pub(super) fn pop_victim(&mut self) -> Option<Arc<Entry>> {
        let free = |entry: &Arc<Entry>| !entry.is_filling() && !entry.is_leased();
        let victim = self.order.iter().rev().take(CANDIDATES_MAX).find(|(_, entry)| free(entry)).map(|(id, _)| *id)?;
        self.order.pop(&victim)
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Arc<Entry>> {
        let all = self.order.iter().map(|(_, entry)| Arc::clone(entry)).collect();
        self.order.clear();
        all
    }
}
