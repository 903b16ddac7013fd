//! Which assets were used last: the order in which a volume's assets are evicted.

use std::sync::Arc;

use super::entry::Entry;
use crate::asset::UnixTime;

/// Least recently used first. One per volume; its bytes are counted by the volume.
///
/// A list linked by numbers, 16 bytes an asset: an entry knows its place in it, so that no second index is needed to find it.
#[derive(Debug)]
pub(super) struct Recency {
    places: Vec<Place>,
    /// The first of the places that nobody takes; they are linked by `older`.
    free: u32,
    newest: u32,
    oldest: u32,
    len: usize,
}

#[derive(Debug)]
struct Place {
    entry: Option<Arc<Entry>>,
    newer: u32,
    older: u32,
}

/// No place: the end of the list, or an entry that is not in it.
pub(super) const NOWHERE: u32 = u32::MAX;
/// In place of neighbours: the entry is pinned and stands outside of the list, so that no search for a victim passes it.
const PINNED: u32 = u32::MAX - 1;

/// How many candidates are looked at for one that nobody reads.
const CANDIDATES_MAX: usize = 1024;

impl Recency {
    pub(super) fn with_capacity(assets: usize) -> Self {
        Self { places: Vec::with_capacity(assets), free: NOWHERE, newest: NOWHERE, oldest: NOWHERE, len: 0 }
    }

    /// Takes in an asset as the last used one. It is in no other list.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) {
        let at = match self.place(self.free).map(|place| place.older) {
            Some(next) => std::mem::replace(&mut self.free, next),
            None => {
                let Ok(at) = u32::try_from(self.places.len()) else { return };
                self.places.push(Place { entry: None, newer: NOWHERE, older: NOWHERE });
                at
            }
        };
        entry.set_place(at);
        if let Some(place) = self.place_mut(at) {
            place.entry = Some(entry);
        }
        self.len += 1;
        self.link_newest(at);
    }

    /// Marks an asset as used; one that is gone is none any more.
    pub(super) fn touch(&mut self, entry: &Arc<Entry>) {
        let at = entry.place();
        if self.holds(at, entry) && at != self.newest && !self.is_pinned(at) {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    /// Takes an asset out of the order of eviction, or puts it back as the last used one. Tells whether that changed anything.
    pub(super) fn pin(&mut self, entry: &Arc<Entry>, pinned: bool) -> bool {
        let at = entry.place();
        if !self.holds(at, entry) || self.is_pinned(at) == pinned {
            return false;
        }
        if pinned {
            self.unlink(at);
            if let Some(place) = self.place_mut(at) {
                (place.newer, place.older) = (PINNED, PINNED);
            }
        } else {
            self.link_newest(at);
        }
        true
    }

    fn is_pinned(&self, at: u32) -> bool {
        self.place(at).is_some_and(|place| place.entry.is_some() && place.newer == PINNED)
    }

    /// Takes out this very version.
    pub(super) fn remove(&mut self, entry: &Arc<Entry>) {
        let at = entry.place();
        if self.holds(at, entry) {
            self.take(at);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes out the next to evict: the least recently used that is neither being filled nor read. What is read gives no space
    /// back before its reader is done, and what is filled is wanted now.
    pub(super) fn pop_victim(&mut self) -> Option<Arc<Entry>> {
        let mut at = self.oldest;
        for _ in 0..CANDIDATES_MAX {
            let place = self.place(at)?;
            if place.entry.as_ref().is_some_and(|entry| !entry.is_filling() && !entry.is_leased()) {
                return self.take(at);
            }
            at = place.newer;
        }
        None
    }

    /// Serial and last use of what was used at `since` or later, as far as it stands before everything older.
    pub(super) fn used_since(&self, since: UnixTime) -> Vec<(u64, UnixTime)> {
        let mut at = self.newest;
        let mut used = Vec::new();
        while let Some((entry, place)) = self.place(at).and_then(|place| Some((place.entry.as_ref()?, place)))
            && entry.used() >= since
        {
            used.push((entry.serial(), entry.used()));
            at = place.older;
        }
        used
    }

    /// All that is in it, in the order of serials.
    pub(super) fn by_serial(&self) -> Vec<(u64, Arc<Entry>)> {
        let entries = self.places.iter().filter_map(|place| place.entry.as_ref());
        let mut entries: Vec<_> = entries.map(|entry| (entry.serial(), Arc::clone(entry))).collect();
        entries.sort_unstable_by_key(|(serial, _)| *serial);
        entries
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Arc<Entry>> {
        let all = std::mem::replace(self, Self::with_capacity(0));
        all.places.into_iter().filter_map(|place| place.entry).inspect(|entry| entry.set_place(NOWHERE)).collect()
    }

    fn holds(&self, at: u32, entry: &Arc<Entry>) -> bool {
        self.place(at).and_then(|place| place.entry.as_ref()).is_some_and(|held| Arc::ptr_eq(held, entry))
    }

    fn take(&mut self, at: u32) -> Option<Arc<Entry>> {
        if !self.is_pinned(at) {
            self.unlink(at);
        }
        let free = self.free;
        let place = self.place_mut(at)?;
        place.older = free;
        let entry = place.entry.take()?;
        entry.set_place(NOWHERE);
        self.free = at;
        self.len -= 1;
        Some(entry)
    }

    fn unlink(&mut self, at: u32) {
        let Some((newer, older)) = self.place(at).map(|place| (place.newer, place.older)) else { return };
        match self.place_mut(newer) {
            Some(place) => place.older = older,
            None => self.newest = older,
        }
        match self.place_mut(older) {
            Some(place) => place.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let before = std::mem::replace(&mut self.newest, at);
        match self.place_mut(before) {
            Some(place) => place.newer = at,
            None => self.oldest = at,
        }
        if let Some(place) = self.place_mut(at) {
            (place.newer, place.older) = (NOWHERE, before);
        }
    }

    fn place(&self, at: u32) -> Option<&Place> {
        self.places.get(at as usize)
    }

    fn place_mut(&mut self, at: u32) -> Option<&mut Place> {
        self.places.get_mut(at as usize)
    }
}
