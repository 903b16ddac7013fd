//! What the appliance holds, by revision: so that a steering service can be told what has changed since the revision it has.

use std::collections::VecDeque;

use crate::{
    asset::Fingerprint,
    catalog::{Change, Holdings},
};

/// Everything held, 4 bytes an asset, and the changes that led there, up to a bound.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Sorted; two assets may share a fingerprint.
    held: Vec<Fingerprint>,
    /// Grows by one with each look that found changes; 0 before the first look.
    revision: u64,
    /// What changed, and with which revision. In order.
    history: VecDeque<(u64, Change)>,
    /// The earliest revision from which the history leads to the present one.
    reaches_back_to: u64,
    history_max: usize,
}

/// What leads from one revision to the present one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// Sorted; a fingerprint twice where two assets with it came.
    pub(super) added: Vec<Fingerprint>,
    /// As `added`.
    pub(super) removed: Vec<Fingerprint>,
}

impl Ledger {
    /// Keeps at most `history_max` changes.
    pub(super) fn new(history_max: usize) -> Self {
        Self { held: Vec::new(), revision: 0, history: VecDeque::new(), reaches_back_to: 0, history_max }
    }

    /// Takes in what the catalog has told.
    pub(super) fn absorb(&mut self, told: Holdings) {
        match told {
            Holdings::All(mut all) => {
                all.sort_unstable();
                self.held = all;
                self.revision += 1;
                self.reaches_back_to = self.revision;
                self.history.clear();
            }
            Holdings::Changes(changes) if changes.is_empty() => {}
            Holdings::Changes(changes) => {
                self.revision += 1;
                let Delta { added, removed } = net(changes.iter());
                self.held = merge(&self.held, &added, &removed);
                self.history.extend(changes.into_iter().map(|change| (self.revision, change)));
                while self.history.len() > self.history_max {
                    // A revision that is not whole any more leads nowhere.
                    if let Some((revision, _)) = self.history.pop_front() {
                        self.reaches_back_to = revision;
                    }
                }
            }
        }
    }

    /// The present revision.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Everything held. Sorted.
    pub(super) fn held(&self) -> &[Fingerprint] {
        &self.held
    }

    /// What leads from revision `since` to the present one, as far as that is still known.
    pub(super) fn delta(&self, since: u64) -> Option<Delta> {
        let known = (self.reaches_back_to..=self.revision).contains(&since) && since > 0;
        known.then(|| {
            let first = self.history.partition_point(|(revision, _)| *revision <= since);
            net(self.history.range(first..).map(|(_, change)| change))
        })
    }
}

/// What is left of changes when those that undo each other are taken away.
fn net<'a>(changes: impl Iterator<Item = &'a Change>) -> Delta {
    let mut sorted: Vec<_> = changes.copied().collect();
    sorted.sort_unstable_by_key(|change| change.fingerprint);
    let mut delta = Delta::default();
    for same in sorted.chunk_by(|a, b| a.fingerprint == b.fingerprint) {
        let gained = same.iter().filter(|change| change.gained).count();
        let lost = same.len() - gained;
        let into = if gained > lost { &mut delta.added } else { &mut delta.removed };
        into.extend(std::iter::repeat_n(same[0].fingerprint, gained.abs_diff(lost)));
    }
    delta
}

/// All lists are sorted, and `removed` is part of `held`.
fn merge(held: &[Fingerprint], added: &[Fingerprint], removed: &[Fingerprint]) -> Vec<Fingerprint> {
    let mut merged = Vec::with_capacity((held.len() + added.len()).saturating_sub(removed.len()));
    let (mut added, mut removed) = (added.iter().copied().peekable(), removed.iter().copied().peekable());
    for one in held {
        while let Some(new) = added.next_if(|new| new <= one) {
            merged.push(new);
        }
        if removed.next_if(|gone| gone == one).is_none() {
            merged.push(*one);
        }
    }
    merged.extend(added);
    debug_assert!(removed.peek().is_none(), "only what is held is removed");
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fingerprint(bits: u32) -> Fingerprint {
        Fingerprint::from_bits(bits).expect("small")
    }

    fn changes(of: &[(u32, bool)]) -> Holdings {
        Holdings::Changes(
            of.iter().map(|(bits, gained)| Change { fingerprint: fingerprint(*bits), gained: *gained }).collect(),
        )
    }

    #[test]
    fn a_delta_says_what_is_left_of_all_changes_since() {
        let mut ledger = Ledger::new(100);
        ledger.absorb(Holdings::All([9, 5, 5].map(fingerprint).to_vec()));
        assert_eq!((ledger.revision(), ledger.held()), (1, [5, 5, 9].map(fingerprint).as_slice()));
        ledger.absorb(changes(&[(7, true), (5, false)]));
        ledger.absorb(changes(&[]));
        assert_eq!(ledger.revision(), 2, "nothing is no news");
        ledger.absorb(changes(&[(7, false), (1, true), (9, false), (9, true)]));
        assert_eq!(ledger.held(), [1, 5, 9].map(fingerprint));
        let delta = |added: &[u32], removed: &[u32]| {
            let list = |of: &[u32]| of.iter().copied().map(fingerprint).collect();
            Some(Delta { added: list(added), removed: list(removed) })
        };
        assert_eq!(ledger.delta(1), delta(&[1], &[5]));
        assert_eq!(ledger.delta(2), delta(&[1], &[7]));
        assert_eq!(ledger.delta(3), delta(&[], &[]));
        assert_eq!((ledger.delta(0), ledger.delta(4)), (None, None), "neither was ever a revision");
    }

    #[test]
    fn history_ends_at_its_bound_and_with_everything_anew() {
        let mut ledger = Ledger::new(4);
        ledger.absorb(Holdings::All(Vec::new()));
        ledger.absorb(changes(&[(1, true), (2, true), (3, true)]));
        assert!(ledger.delta(1).is_some());
        ledger.absorb(changes(&[(4, true), (5, true)]));
        assert_eq!(ledger.history.len(), 4);
        assert!(ledger.delta(1).is_none() && ledger.delta(2).is_some());
        ledger.absorb(Holdings::All(Vec::new()));
        assert!(ledger.delta(3).is_none() && ledger.delta(4) == Some(Delta::default()));
    }

    proptest! {
        #[test]
        fn deltas_lead_from_any_known_revision_to_the_present(steps in prop::collection::vec(prop::collection::vec(0_u32..8, 0..6), 1..12)) {
            let mut ledger = Ledger::new(20);
            ledger.absorb(Holdings::All(vec![fingerprint(3)]));
            let mut past = vec![(ledger.revision(), ledger.held().to_vec())];
            for step in steps {
                // Each number toggles: it is held by one asset or none.
                let mut held = ledger.held().to_vec();
                let toggled = step.iter().map(|bits| {
                    let gained = !held.contains(&fingerprint(*bits));
                    if gained { held.push(fingerprint(*bits)) } else { held.retain(|one| *one != fingerprint(*bits)) }
                    (*bits, gained)
                });
                let toggled: Vec<_> = toggled.collect();
                ledger.absorb(changes(&toggled));
                held.sort_unstable();
                prop_assert_eq!(ledger.held(), &held);
                past.push((ledger.revision(), held));
            }
            for (revision, held) in past {
                if let Some(Delta { added, removed }) = ledger.delta(revision) {
                    prop_assert_eq!(merge(&held, &added, &removed), ledger.held());
                }
            }
        }
    }
}
