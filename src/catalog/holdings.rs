//! Which assets are held whole, told as changes: what a list of holdings is kept up to date by.
//!
//! an asset becomes whole, or leaves, or loses a block -> `settle` -> a bounded list of changes -> whoever follows takes them
//!
//! *Held* is an asset that requests find and of which every block is here, those included whose digest has yet to be compared after an
//! unclean stop. One that is withheld until it was compared as a whole is not.
//! Nothing is noted before somebody follows, and no hit comes here. Where more changes wait than may, they are dropped, and who
//! follows is told everything anew.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::{Catalog, entry::Entry, index::Index};
use crate::asset::Fingerprint;

/// Nobody follows, or too much waited: the next time, everything is told.
const NOBODY: u8 = 0;

/// One asset came to be held, or is held no longer. An asset that is replaced by another version of its key is two changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of its key.
    pub fingerprint: Fingerprint,
    /// Whether it is held now.
    pub gained: bool,
}

/// What is told to whoever follows.
#[derive(Debug, PartialEq, Eq)]
pub enum Holdings {
    /// Everything held, in no order; two assets may share a fingerprint.
    All(Vec<Fingerprint>),
    /// What changed since the last time, in order.
    Changes(Vec<Change>),
}

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Counts how often everything was told; an entry bears the number in which it was counted as held.
    generation: u8,
    last_generation: u8,
    changes: Vec<Change>,
    changes_max: usize,
}

/// In which generation an entry was counted as held; [`NOBODY`] where it is not.
#[derive(Debug, Default)]
pub(super) struct Counted(AtomicU8);

impl Told {
    /// Looks whether an entry is held, and notes it where that is news. Whatever the order in which threads come here after
    /// they have changed an entry: the last one finds it as it is.
    pub(super) fn settle(&self, entry: &Entry, index: &Index) {
        let mut waiting = self.0.lock();
        let generation = waiting.generation;
        if generation == NOBODY {
            return;
        }
        let (counted, held) = (&entry.counted().0, entry.is_whole() && index.finds(entry));
        if held == (counted.load(Ordering::Relaxed) == generation) {
            return;
        }
        counted.store(if held { generation } else { NOBODY }, Ordering::Relaxed);
        if waiting.changes.len() < waiting.changes_max {
            waiting.changes.push(Change { fingerprint: Fingerprint::of(entry.key()), gained: held });
        } else {
            waiting.generation = NOBODY;
            waiting.changes = Vec::new();
        }
    }

    /// The changes that wait, or the generation under which everything has to be counted.
    fn take(&self, changes_max: usize) -> Result<Vec<Change>, u8> {
        let mut waiting = self.0.lock();
        if waiting.generation != NOBODY {
            return Ok(std::mem::take(&mut waiting.changes));
        }
        waiting.last_generation = waiting.last_generation.checked_add(1).unwrap_or(NOBODY + 1);
        (waiting.generation, waiting.changes_max) = (waiting.last_generation, changes_max);
        Err(waiting.generation)
    }

    /// Counts an entry under `generation` unless a change has told of it already. `false` when that generation is over.
    fn count(&self, entry: &Entry, index: &Index, generation: u8, into: &mut Vec<Fingerprint>) -> bool {
        if !entry.is_whole() {
            return true;
        }
        let fingerprint = Fingerprint::of(entry.key());
        let waiting = self.0.lock();
        // It may have left, or have been told of, since.
        if waiting.generation == generation
            && entry.is_whole()
            && index.finds(entry)
            && entry.counted().0.swap(generation, Ordering::Relaxed) != generation
        {
            into.push(fingerprint);
        }
        waiting.generation == generation
    }
}

impl Catalog {
    /// What is held: everything the first time, then what has changed since. For one that follows; two would take each other's
    /// changes. At most `changes_max` changes wait to be taken. Blocks while everything is counted (0.3 s for a million assets).
    ///
    /// `None` where so much changed meanwhile that the count is void: ask again later.
    pub fn holdings(&self, changes_max: usize) -> Option<Holdings> {
        let generation = match self.told.take(changes_max) {
            Ok(changes) => return Some(Holdings::Changes(changes)),
            Err(generation) => generation,
        };
        let mut all = Vec::with_capacity(self.index.len());
        self.index.show(|entry| self.told.count(entry, &self.index, generation, &mut all)).then_some(Holdings::All(all))
    }

    /// See [`Told::settle`]. Called after whatever may have made an entry whole or found, or no longer so.
    pub(super) fn settle_held(&self, entry: &Entry) {
        self.told.settle(entry, &self.index);
    }
}

#[cfg(test)]
#[path = "holdings_tests.rs"]
mod tests;
