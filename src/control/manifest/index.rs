//! Which asset of a list has a key: a table of ranks, four bytes for each, that keeps no key of its own.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;

use super::AssetList;
use crate::asset::AssetKey;

const EMPTY: u32 = u32::MAX;

/// Ranks by the hash of their key, probed one after the other. At most half full. Who chooses keys cannot know the hash's seed.
#[derive(Debug, Default)]
pub(super) struct Index {
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Index {
    pub(super) fn find(&self, key: &AssetKey, assets: &AssetList) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slot_of(key, assets);
        (self.slots[slot] != EMPTY).then_some(self.slots[slot] as usize)
    }

    /// Adds the last of `assets`. `Err`: the rank of the one that has its key.
    pub(super) fn add(&mut self, assets: &AssetList) -> Result<(), usize> {
        let Some(last) = assets.last() else { return Ok(()) };
        if assets.len() * 2 > self.slots.len() {
            self.grow(assets, assets.len() - 1);
        }
        let slot = self.slot_of(&last.key, assets);
        match self.slots[slot] {
            EMPTY => {
                self.slots[slot] = u32::try_from(assets.len() - 1).expect("the parser bounds the number of assets");
                Ok(())
            }
            first => Err(first as usize),
        }
    }

    /// The slot that has a key, or the empty one where it belongs. There is one: half of them are empty.
    fn slot_of(&self, key: &AssetKey, assets: &AssetList) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hash(key) & mask;
        while self.slots[slot] != EMPTY && assets[self.slots[slot] as usize].key != *key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Makes room, and puts the first `count` of `assets` in again.
    fn grow(&mut self, assets: &AssetList, count: usize) {
        self.slots = vec![EMPTY; (self.slots.len() * 2).max(16)];
        let mask = self.slots.len() - 1;
        for (rank, asset) in (0_u32..).zip(assets.iter().take(count)) {
            // No two keys are equal, so that none has to be compared.
            let mut slot = self.hash(&asset.key) & mask;
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = rank;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a hash")]
    fn hash(&self, key: &AssetKey) -> usize {
        self.hasher.hash_one(key) as usize
    }
}
