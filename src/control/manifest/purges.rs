//! Which assets a manifest purges: by binary search, since a list may name a hundred thousand and be asked about each of a million.

use super::Purge;
use crate::asset::AssetKey;

/// Places in a list of purges, in the order of what they name.
#[derive(Debug, Default)]
pub(super) struct Purges {
    /// By path.
    keys: Vec<u32>,
    /// None of them begins with another.
    prefixes: Vec<u32>,
}

impl Purges {
    /// Of a list, which stays as it is.
    pub(super) fn of(purges: &[Purge]) -> Self {
        let places = |is: fn(&Purge) -> bool| {
            let mut places: Vec<u32> =
                (0..).zip(purges).filter(|(_, purge)| is(purge)).map(|(place, _)| place).collect();
            places.sort_by_key(|place| text(&purges[*place as usize]));
            places
        };
        let keys = places(|purge| matches!(purge, Purge::Key(_)));
        let mut prefixes = places(|purge| matches!(purge, Purge::Prefix(_)));
        // What begins with one that is there says no more than that one, and stands behind it.
        prefixes.dedup_by(|next, kept| text(&purges[*next as usize]).starts_with(text(&purges[*kept as usize])));
        Self { keys, prefixes }
    }

    /// Whether one of `purges` names an asset.
    pub(super) fn name(&self, key: &AssetKey, purges: &[Purge]) -> bool {
        let path = key.path();
        let at = |place: &u32| text(&purges[*place as usize]);
        let begin = self.keys.partition_point(|place| at(place) < path);
        let same = self.keys[begin..].iter().take_while(|place| at(place) == path);
        let is_named = |place: &u32| match &purges[*place as usize] {
            Purge::Key(purged) => purged.query().is_none() || purged == key,
            Purge::Prefix(_) => false,
        };
        // Everything between a prefix of it and itself begins with that prefix.
        let last = self.prefixes.partition_point(|place| at(place) <= path).checked_sub(1);
        same.into_iter().any(is_named) || last.is_some_and(|last| path.starts_with(at(&self.prefixes[last])))
    }
}

fn text(purge: &Purge) -> &str {
    match purge {
        Purge::Key(key) => key.path(),
        Purge::Prefix(prefix) => prefix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(purge: &Purge, key: &AssetKey) -> bool {
        match purge {
            Purge::Key(purged) => purged == key || (purged.query().is_none() && purged.path() == key.path()),
            Purge::Prefix(prefix) => key.path().starts_with(&**prefix),
        }
    }

    #[test]
    fn a_search_says_what_a_look_at_each_would() {
        let paths = ["a", "a/b", "a/b/c", "a/bc", "ab", "b", "b/a", "b/ab", "ba", "é/a", "é", "z"];
        let queries = [None, Some("v=1"), Some("v=2")];
        let key = |path: &str, query| AssetKey::from_record(path, query).expect("a key");
        let all: Vec<Purge> = paths
            .iter()
            .flat_map(|path| queries.map(|query| Purge::Key(key(path, query))))
            .chain(["a/", "a/b", "a/b/", "b", "b/", "é/", "zz", "0"].map(|prefix| Purge::Prefix(prefix.into())))
            .collect();
        // Each subset of a few, by the bits of a number that is none's.
        for number in 0..4000_u64 {
            let bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number << 40);
            let some = all.iter().enumerate().filter(|(at, _)| bits >> at & 3 == 3).map(|(_, purge)| purge.clone());
            let purges: Vec<_> = some.collect();
            let index = Purges::of(&purges);
            for path in paths {
                for query in queries {
                    let key = key(path, query);
                    let wanted = purges.iter().any(|purge| named(purge, &key));
                    assert_eq!(index.name(&key, &purges), wanted, "{key} of {purges:?}");
                }
            }
        }
    }
}
