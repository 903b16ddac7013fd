//! Whoever follows the changes knows exactly what is held.

use std::{collections::BTreeMap, sync::atomic::AtomicBool};

use super::*;
use crate::catalog::tests::{BLOCK, content, key, open};

/// What a follower knows: how many held assets have each fingerprint.
#[derive(Debug, Default, PartialEq)]
struct Follower {
    held: BTreeMap<Fingerprint, usize>,
    told_anew: usize,
}

impl Follower {
    fn follow(&mut self, catalog: &Catalog, changes_max: usize) {
        match catalog.holdings(changes_max) {
            None => {}
            Some(Holdings::All(all)) => {
                self.held.clear();
                self.told_anew += 1;
                all.into_iter().for_each(|fingerprint| *self.held.entry(fingerprint).or_default() += 1);
            }
            Some(Holdings::Changes(changes)) => {
                for Change { fingerprint, gained } in changes {
                    let count = self.held.entry(fingerprint).or_default();
                    *count = if gained { *count + 1 } else { count.checked_sub(1).expect("it was held") };
                }
                self.held.retain(|_, count| *count > 0);
            }
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.held.contains_key(&Fingerprint::of(&key(name)))
    }
}

/// What is held in truth.
fn truth(catalog: &Catalog) -> BTreeMap<Fingerprint, usize> {
    let mut held = BTreeMap::new();
    catalog.index.show(|entry| {
        if entry.is_whole() {
            *held.entry(Fingerprint::of(entry.key())).or_default() += 1;
        }
        true
    });
    held
}

#[test]
fn an_asset_is_told_of_when_its_last_block_comes_and_when_it_leaves() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    held.fill("/before", 2 * BLOCK);
    held.admit("/part", 2 * BLOCK).writer(0).write_blocking(&content(BLOCK)).expect("written");
    let mut follower = Follower::default();
    follower.follow(&held.catalog, 100);
    assert!(follower.knows("/before") && !follower.knows("/part"), "{follower:?}");

    held.fill("/after", BLOCK);
    held.admit("/empty", 0);
    let part = held.hit("/part").expect("held");
    part.writer(1).write_blocking(&content(BLOCK)).expect("written");
    follower.follow(&held.catalog, 100);
    assert!(["/before", "/after", "/empty", "/part"].iter().all(|name| follower.knows(name)), "{follower:?}");

    held.catalog.condemn(&part, 0);
    held.catalog.forget(&held.hit("/before").expect("held"));
    // Another version, of which nothing is here yet.
    held.admit("/after", BLOCK);
    follower.follow(&held.catalog, 100);
    assert_eq!(follower.held.len(), 1, "{follower:?}");
    part.writer(0).write_blocking(&content(BLOCK)).expect("written anew");
    follower.follow(&held.catalog, 100);
    assert_eq!((follower.held.len(), follower.told_anew), (2, 1), "{follower:?}");
    assert_eq!(follower.held, truth(&held.catalog));
}

#[test]
fn what_was_held_before_an_unclean_stop_is_held_after_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    held.fill("/a", 2 * BLOCK);
    assert!(held.catalog.flush(std::time::Duration::from_secs(5)));
    held.crash();
    let held = open(dir.path(), 100 * BLOCK);
    let mut follower = Follower::default();
    follower.follow(&held.catalog, 100);
    assert!(follower.knows("/a"), "nothing of it was compared yet");
    let entry = held.hit("/a").expect("held");
    let all = crate::asset::ByteRange::new(0, 2 * BLOCK).expect("range");
    assert_eq!(entry.demand(all), Ok(true), "it is compared before it is served");
    held.until("compared", || entry.is_sealed());
    follower.follow(&held.catalog, 100);
    assert_eq!((&follower.held, follower.told_anew), (&truth(&held.catalog), 1), "comparing it was no news");
}

#[test]
fn nothing_waits_before_somebody_follows_nor_beyond_the_bound() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let waiting = || held.catalog.told.0.lock().changes.capacity();
    (0..20).for_each(|number| drop(held.fill(&format!("/{number}"), 100)));
    assert_eq!(waiting(), 0);
    let mut follower = Follower::default();
    follower.follow(&held.catalog, 8);
    (20..28).for_each(|number| drop(held.fill(&format!("/{number}"), 100)));
    assert_eq!(held.catalog.told.0.lock().changes.len(), 8);
    (28..60).for_each(|number| drop(held.fill(&format!("/{number}"), 100)));
    assert_eq!(waiting(), 0, "too many: dropped");
    follower.follow(&held.catalog, 8);
    assert_eq!((&follower.held, follower.told_anew), (&truth(&held.catalog), 2));
}

#[test]
fn a_follower_knows_the_truth_whatever_happens_at_the_same_time() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 4000 * BLOCK);
    let (done, mut follower) = (AtomicBool::new(false), Follower::default());
    std::thread::scope(|scope| {
        let change = |seed: u64| {
            let held = &held;
            move || {
                let mut random = seed;
                for _ in 0..400 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    // Few names, so that threads meet.
                    let name = format!("/{}", (random >> 40) % 50);
                    match (random >> 33) % 4 {
                        // Another thread may have withdrawn it meanwhile.
                        0 | 1 => drop(held.admit(&name, 100).writer(0).write_blocking(&content(100))),
                        2 => {
                            if let Some(entry) = held.hit(&name) {
                                held.catalog.forget(&entry);
                            }
                        }
                        _ => {
                            if let Some(entry) = held.hit(&name) {
                                held.catalog.condemn(&entry, 0);
                                drop(entry.writer(0).write_blocking(&content(100)));
                            }
                        }
                    }
                }
            }
        };
        let changing: Vec<_> = (1..4).map(|seed| scope.spawn(change(seed))).collect();
        let following = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                follower.follow(&held.catalog, 30);
            }
        });
        let ended: Vec<_> = changing.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Release);
        following.join().expect("no panic");
        assert!(ended.iter().all(Result::is_ok));
    });
    // The first may find that too much had changed, the second tells everything, the third what came while it counted.
    (0..3).for_each(|_| follower.follow(&held.catalog, 30));
    assert_eq!(follower.held, truth(&held.catalog));
    assert!(!follower.held.is_empty() && follower.told_anew > 0);
}
