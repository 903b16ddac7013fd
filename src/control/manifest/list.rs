//! The assets of a manifest by rank. In pieces: a list that grows to a million is never copied, and never there twice.

use std::ops::Index;

use super::ManifestAsset;

/// Assets of a piece: some 400 KiB.
const PIECE: usize = 1 << 12;

/// The assets of a manifest, the most wanted first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AssetList {
    /// Invariant: each but the last has [`PIECE`] assets, and none is empty.
    pieces: Vec<Vec<ManifestAsset>>,
}

impl AssetList {
    /// How many there are.
    pub fn len(&self) -> usize {
        let last = self.pieces.last().map_or(0, Vec::len);
        self.pieces.len().saturating_sub(1) * PIECE + last
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// All of them, the most wanted first.
    pub fn iter(&self) -> impl Iterator<Item = &ManifestAsset> + Clone {
        self.pieces.iter().flatten()
    }

    pub(super) fn last(&self) -> Option<&ManifestAsset> {
        self.pieces.last()?.last()
    }

    pub(super) fn push(&mut self, asset: ManifestAsset) {
        match self.pieces.last_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(asset),
            None => self.pieces.push(vec![asset]),
        }
    }

    pub(super) fn pop(&mut self) -> Option<ManifestAsset> {
        let piece = self.pieces.last_mut()?;
        let asset = piece.pop();
        if piece.is_empty() {
            self.pieces.pop();
        }
        asset
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.pieces.last_mut().into_iter().for_each(Vec::shrink_to_fit);
        self.pieces.shrink_to_fit();
    }
}

impl Index<usize> for AssetList {
    type Output = ManifestAsset;

    fn index(&self, rank: usize) -> &ManifestAsset {
        &self.pieces[rank / PIECE][rank % PIECE]
    }
}

impl<'a> IntoIterator for &'a AssetList {
    type Item = &'a ManifestAsset;
    type IntoIter = std::iter::Flatten<std::slice::Iter<'a, Vec<ManifestAsset>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.pieces.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asset::{AssetKey, ByteCount};

    #[test]
    fn ranks_go_on_from_piece_to_piece() {
        let asset = |number: usize| {
            let key = AssetKey::parse(&format!("/{number}"), None).expect("a key");
            ManifestAsset::new(key, ByteCount(number as u64 + 1))
        };
        let mut list = AssetList::default();
        assert!(list.is_empty() && list.last().is_none() && list.pop().is_none());
        for number in 0..=2 * PIECE {
            assert_eq!(list.len(), number);
            list.push(asset(number));
        }
        assert_eq!(
            (list.len(), list.iter().count(), (&list).into_iter().count()),
            (2 * PIECE + 1, 2 * PIECE + 1, 2 * PIECE + 1)
        );
        for rank in [0, PIECE - 1, PIECE, 2 * PIECE - 1, 2 * PIECE] {
            assert_eq!((&list[rank], list.iter().nth(rank)), (&asset(rank), Some(&asset(rank))));
        }
        assert_eq!(list.pop(), Some(asset(2 * PIECE)));
        assert_eq!((list.len(), list.last()), (2 * PIECE, Some(&asset(2 * PIECE - 1))));
        list.push(asset(7));
        list.shrink_to_fit();
        assert_eq!((list.len(), &list[2 * PIECE]), (2 * PIECE + 1, &asset(7)));
    }
}
