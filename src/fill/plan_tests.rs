//! The plan, by cases and by what always holds.

use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;

use super::plan::{EvictedFor, FillPlan, PassedOver, Rules, plan};
use crate::{
    asset::{AssetKey, BlockSize, ByteCount, Sha256, UnixTime},
    catalog::{CatalogView, HeldAsset, VolumeView},
    control::manifest::{Builder, Details, Head, Manifest, ManifestAsset, Purge},
};

const NOW: UnixTime = UnixTime(1_000_000);
const GB: u64 = 1_000_000_000;

fn key(name: &str) -> AssetKey {
    AssetKey::parse(name, None).expect("valid")
}

fn digest(of: u8) -> Sha256 {
    Sha256::new([of; 32])
}

fn asset(name: &str, length: u64) -> ManifestAsset {
    ManifestAsset { sha256: Some(digest(1)), ..ManifestAsset::new(key(name), ByteCount(length)) }
}

fn manifest(assets: impl IntoIterator<Item = ManifestAsset>) -> Manifest {
    let mut builder = Builder::default();
    assets.into_iter().for_each(|asset| builder.add(asset).expect("once"));
    builder.finish(Head::default())
}

fn volume(number: usize, capacity: u64) -> VolumeView {
    let block_size = BlockSize::DEFAULT;
    VolumeView { id: format!("{number:032}"), capacity, high: capacity / 100 * 95, kept: 0, block_size }
}

fn held(name: &str, length: u64) -> HeldAsset {
    HeldAsset {
        key: key(name),
        serial: 1,
        volume: 0,
        length,
        reserved: length,
        sealed: true,
        whole: Some(digest(1)),
        leased: false,
        used: UnixTime(0),
    }
}

fn view(capacity: u64, held: impl IntoIterator<Item = HeldAsset>) -> CatalogView {
    let mut view = CatalogView { volumes: vec![volume(0, capacity)], held: held.into_iter().collect() };
    count(&mut view);
    view
}

/// Says again what each volume holds, and numbers the versions.
fn count(view: &mut CatalogView) {
    view.volumes.iter_mut().for_each(|volume| volume.kept = 0);
    for (serial, held) in (1..).zip(&mut view.held) {
        held.serial = serial;
        view.volumes[held.volume].kept += held.reserved;
    }
}

fn decided(manifest: &Manifest, view: &CatalogView) -> FillPlan {
    plan(manifest, view, &Rules::default(), NOW)
}

fn fetched(plan: &FillPlan) -> Vec<u32> {
    plan.fetch.iter().map(|fetch| fetch.rank).collect()
}

fn evicted<'v>(plan: &FillPlan, view: &'v CatalogView) -> Vec<(&'v str, EvictedFor)> {
    plan.evict.iter().map(|gone| (view.held[gone.held as usize].key.path(), gone.why)).collect()
}

/// The view after the plan was carried out.
fn carried_out(manifest: &Manifest, view: &CatalogView, plan: &FillPlan) -> CatalogView {
    let gone: HashSet<_> = plan.evict.iter().map(|gone| gone.held as usize).collect();
    let wanted: HashSet<_> = plan.fetch.iter().map(|fetch| &manifest.assets()[fetch.rank as usize].key).collect();
    let mut after = CatalogView { volumes: view.volumes.clone(), held: Vec::new() };
    let stays = |(at, held): &(usize, &HeldAsset)| !gone.contains(at) && !wanted.contains(&held.key);
    after.held.extend(view.held.iter().enumerate().filter(stays).map(|(_, held)| held.clone()));
    for fetch in &plan.fetch {
        let asset = &manifest.assets()[fetch.rank as usize];
        after.held.push(HeldAsset {
            volume: fetch.volume as usize,
            whole: asset.sha256,
            ..held(asset.key.path(), asset.length.0)
        });
    }
    count(&mut after);
    after
}

#[test]
fn the_most_wanted_are_fetched_while_they_fit() {
    let wanted = manifest([asset("/a", 3 * GB), asset("/b", 4 * GB), asset("/c", 2 * GB), asset("/d", GB)]);
    let empty = view(10 * GB, []);
    let plan = decided(&wanted, &empty);
    assert_eq!(fetched(&plan), [0, 1, 3], "c does not fit in what is left of 80 %, d does");
    assert_eq!(plan.passed_over, [(2, PassedOver::NoRoom)]);
    assert_eq!(plan.bytes_to_fetch(), 8 * GB);
    let tiny = decided(&manifest([asset("/a", 3 * GB)]), &view(2 * GB, []));
    assert_eq!(tiny.passed_over, [(0, PassedOver::TooLarge)]);
}

#[test]
fn what_is_held_as_wanted_is_kept_and_the_rest_compared_completed_or_replaced() {
    let wanted = manifest(["/whole", "/unknown", "/partial", "/other", "/longer"].map(|name| asset(name, GB)));
    let now = view(
        10 * GB,
        [
            held("/whole", GB),
            HeldAsset { whole: None, ..held("/unknown", GB) },
            HeldAsset { whole: None, sealed: false, reserved: GB / 4, ..held("/partial", GB) },
            HeldAsset { whole: Some(digest(2)), ..held("/other", GB) },
            held("/longer", GB / 2),
        ],
    );
    let plan = decided(&wanted, &now);
    assert_eq!(plan.keep, [0]);
    let bytes: Vec<_> = plan.fetch.iter().map(|fetch| (fetch.rank, fetch.bytes)).collect();
    assert_eq!(bytes, [(1, 0), (2, GB - GB / 4), (3, GB), (4, GB)]);
    assert_eq!(evicted(&plan, &now), [("other", EvictedFor::Changed), ("longer", EvictedFor::Changed)]);
}

#[test]
fn what_no_list_has_goes_first_the_longest_unused_before_the_others_and_only_as_much_as_is_wanted() {
    let wanted = manifest([asset("/new", 4 * GB), asset("/kept", GB)]);
    let used = |name, seconds| HeldAsset { used: UnixTime(seconds), ..held(name, 2 * GB) };
    let now = view(10 * GB, [held("/kept", GB), used("/b", 20), used("/a", 10), used("/c", 30)]);
    let plan = decided(&wanted, &now);
    assert_eq!(fetched(&plan), [0]);
    assert_eq!(evicted(&plan, &now), [("a", EvictedFor::Unlisted)], "11 GB less 2 GB is below the watermark");
}

#[test]
fn what_is_watched_does_not_go_for_something_less_popular() {
    let in_use = |name| HeldAsset { used: UnixTime(NOW.0 - 60), ..held(name, 4 * GB) };
    let unlisted = view(10 * GB, [in_use("/live"), held("/idle", 4 * GB)]);
    let plan = decided(&manifest([asset("/new", 4 * GB), asset("/next", 4 * GB)]), &unlisted);
    assert_eq!(fetched(&plan), [0]);
    assert_eq!(evicted(&plan, &unlisted), [("idle", EvictedFor::Unlisted)]);

    // Wanted less than what fills the disk: it may go for that, but not for what comes after it.
    let first = ["/1", "/2", "/3"].map(|name| asset(name, 2 * GB));
    let wanted = manifest(first.into_iter().chain([asset("/watched", 4 * GB), asset("/small", GB)]));
    let now = view(10 * GB, [in_use("/watched")]);
    let plan = decided(&wanted, &now);
    assert_eq!(fetched(&plan), [0, 1, 2]);
    assert_eq!(plan.passed_over, [(3, PassedOver::NoRoom), (4, PassedOver::Watched)]);
    let quiet = view(10 * GB, [held("/watched", 4 * GB)]);
    assert_eq!(fetched(&decided(&wanted, &quiet)), [0, 1, 2, 4]);
}

#[test]
fn pins_have_a_bound() {
    let pinned = |name| ManifestAsset {
        details: Some(Box::new(Details { pin: Some(true), ..Details::default() })),
        ..asset(name, 2 * GB)
    };
    let plan = decided(&manifest(["/a", "/b", "/c"].map(pinned)), &view(10 * GB, [held("/b", 2 * GB)]));
    assert_eq!((fetched(&plan), plan.keep, plan.pinned), (vec![0, 2], vec![1], vec![0, 1]));
}

#[test]
fn what_the_manifest_purges_is_not_fetched() {
    let mut builder = Builder::default();
    builder.add(asset("/old/a", GB)).expect("once");
    let head = Head { purge: vec![Purge::Prefix("old/".into())], ..Head::default() };
    let plan = decided(&builder.finish(head), &view(10 * GB, []));
    assert_eq!(plan.passed_over, [(0, PassedOver::Purged)]);
}

#[test]
fn a_small_change_of_ranks_moves_nothing() {
    let names: Vec<_> = (0..1000).map(|number| format!("/{number}")).collect();
    let empty = view(100 * GB, []);
    let first = manifest(names.iter().map(|name| asset(name, GB / 10)));
    let plan = decided(&first, &empty);
    assert_eq!(fetched(&plan).len(), 800);
    let after = carried_out(&first, &empty, &plan);
    // Neighbours change places by up to 20 ranks.
    let mut order: Vec<usize> = (0..1000).collect();
    order.sort_by_key(|rank| rank + (rank * 7919) % 20);
    let second = manifest(order.into_iter().map(|rank| asset(&names[rank], GB / 10)));
    let plan = decided(&second, &after);
    assert_eq!((plan.fetch.len(), plan.evict.len()), (0, 0));
    // Something new at the top comes in, for one that goes.
    let third = manifest(["/new"].into_iter().chain(names.iter().map(String::as_str)).map(|name| asset(name, GB / 10)));
    let plan = decided(&third, &after);
    assert_eq!(fetched(&plan), [0]);
    assert!(plan.evict.is_empty(), "between 80 % and the watermark there is room");
}

#[test]
fn each_asset_goes_to_one_volume_and_volumes_fill_by_their_size() {
    let volumes = vec![volume(0, 100 * GB), volume(1, 300 * GB)];
    let now = CatalogView { volumes, held: Vec::new() };
    let plan = decided(&manifest((0..1000).map(|number| asset(&format!("/{number}"), GB / 10))), &now);
    let on = |volume| plan.fetch.iter().filter(|fetch| fetch.volume == volume).count();
    assert_eq!(on(0) + on(1), 1000);
    assert!((200..300).contains(&on(0)), "{} of 1000 on a quarter of the room", on(0));
}

/// What a case is made of: lengths of the wanted, and of each held version what it is.
type Case = (Vec<u64>, Vec<(usize, u64, u8)>, u64);

fn cases() -> impl Strategy<Value = Case> {
    let held = (0..40_usize, 1..40_u64, any::<u8>());
    (prop::collection::vec(1..40_u64, 0..30), prop::collection::vec(held, 0..30), 20..400_u64)
}

/// `at_home`: each version lies where its asset belongs, as where no volume has come or gone.
fn made((lengths, versions, capacity): Case, at_home: bool) -> (Manifest, CatalogView) {
    let wanted = manifest((0..).zip(&lengths).map(|(number, length)| asset(&format!("/{number}"), *length)));
    let mut now = CatalogView { volumes: vec![volume(0, capacity), volume(1, capacity)], held: Vec::new() };
    let mut seen = HashSet::new();
    for (name, length, kind) in versions.into_iter().filter(|(name, ..)| seen.insert(*name)) {
        // Most are of the length that is wanted.
        let length = lengths.get(name).copied().filter(|_| kind & 0x30 != 0).unwrap_or(length);
        let sealed = kind & 1 == 0;
        let home = now.volume_of(&key(&format!("/{name}")), length);
        now.held.push(HeldAsset {
            volume: home.filter(|_| at_home).unwrap_or(usize::from(kind & 2 != 0)),
            reserved: if sealed { length } else { length / 2 },
            sealed,
            whole: (sealed && kind & 4 == 0).then_some(digest(if kind & 0x40 == 0 { 1 } else { 2 })),
            leased: kind & 8 != 0,
            ..held(&format!("/{name}"), length)
        });
    }
    count(&mut now);
    (wanted, now)
}

proptest! {
    #[test]
    fn every_plan_fits_says_all_and_takes_nothing_from_who_watches(case in cases()) {
        let (wanted, now) = made(case, false);
        let rules = Rules { watched_within: Duration::from_secs(60), ..Rules::default() };
        let plan = plan(&wanted, &now, &rules, NOW);
        let mut ranks: Vec<u32> = plan.keep.iter().copied().chain(fetched(&plan)).collect();
        ranks.extend(plan.passed_over.iter().map(|(rank, _)| *rank));
        ranks.sort_unstable();
        let all: Vec<u32> = (0..).take(wanted.assets().len()).collect();
        prop_assert_eq!(ranks, all, "each wanted asset is in one list, once");
        let gone: HashSet<_> = plan.evict.iter().map(|gone| gone.held).collect();
        prop_assert_eq!(gone.len(), plan.evict.len(), "nothing goes twice");
        for rank in &plan.keep {
            let kept = now.held.iter().position(|held| held.key == wanted.assets()[*rank as usize].key);
            prop_assert!(!gone.contains(&u32::try_from(kept.expect("it is held")).expect("few")));
        }
        let after = carried_out(&wanted, &now, &plan);
        for (number, volume) in after.volumes.iter().enumerate() {
            // Where more was there than is kept at all, the plan adds nothing.
            let fetches = plan.fetch.iter().any(|fetch| fetch.volume as usize == number && fetch.bytes > 0);
            prop_assert!(volume.kept <= volume.high || !fetches, "{} of {}", volume.kept, volume.high);
        }
        for eviction in plan.evict.iter().filter(|eviction| eviction.why != EvictedFor::Changed) {
            let victim = &now.held[eviction.held as usize];
            let Some((rank, _)) = wanted.find(&victim.key) else {
                prop_assert!(!victim.leased, "what is watched and in no list stays");
                continue;
            };
            if victim.leased {
                let worse = plan.fetch.iter().find(|fetch| fetch.volume as usize == victim.volume && fetch.bytes > 0 && fetch.rank as usize > rank);
                prop_assert!(worse.is_none(), "{} went for rank {:?}", victim.key, worse);
            }
        }
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(case in cases()) {
        let (wanted, now) = made(case, true);
        let first = decided(&wanted, &now);
        // Once what was watched has gone, nothing closes its volume any more.
        prop_assume!(first.passed_over.iter().all(|(_, why)| *why != PassedOver::Watched));
        let after = carried_out(&wanted, &now, &first);
        let second = decided(&wanted, &after);
        prop_assert_eq!(second.fetch, vec![], "after {:?}", first);
        prop_assert_eq!(second.evict, vec![]);
    }
}
