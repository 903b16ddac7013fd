//! Purges on real directories: at once, over crashes, on volumes that were away, against what was asked before.

use super::{
    purge::Target,
    tests::{BLOCK, Held, content, key, meta, open, open_volumes},
    *,
};
use crate::asset::{PathPrefix, Sha256};

const PATIENCE: Duration = Duration::from_secs(20);

fn path(text: &str) -> Vec<Target> {
    vec![Target::Path(key(text))]
}

fn prefix(text: &str) -> Vec<Target> {
    vec![Target::Prefix(PathPrefix::parse(text).expect("valid"))]
}

fn names(held: &Held, names: &[&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| held.catalog.held(&key(name)).is_some()).collect()
}

const ALL: [&str; 4] = ["/a/1", "/a/2", "/ab", "/b"];

#[test]
fn what_is_purged_is_gone_at_once_and_after_a_crash() {
    for (targets, left) in
        [(path("/a/1"), &["/a/2", "/ab", "/b"][..]), (prefix("/a/"), &["/ab", "/b"]), (prefix("/"), &[])]
    {
        let dir = tempfile::tempdir().expect("tempdir");
        let held = open(dir.path(), 100 * BLOCK);
        let entries: Vec<_> = ALL.iter().map(|name| held.fill(name, BLOCK)).collect();
        assert!(held.catalog.flush(PATIENCE));
        let would = held.catalog.would_purge(&targets);
        assert_eq!(names(&held, &ALL), ALL, "nothing has gone");
        let purged = held.catalog.purge(&targets, PATIENCE).expect("durable");
        assert_eq!(purged, would);
        assert_eq!((purged.assets, purged.bytes), ((4 - left.len()) as u64, (4 - left.len()) as u64 * BLOCK));
        assert_eq!(names(&held, &ALL), left);
        assert_eq!(entries.iter().filter(|entry| !entry.is_withdrawn()).count(), left.len(), "nobody recalls them");
        drop(entries);
        held.crash();
        let held = open(dir.path(), 100 * BLOCK);
        assert_eq!(names(&held, &ALL), left);
    }
}

#[test]
fn a_crash_before_anything_is_removed_brings_nothing_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    ALL.iter().for_each(|name| drop(held.fill(name, BLOCK)));
    // What `purge` does before it answers, and no more.
    held.catalog.put_on_record(&Arc::new(held.catalog.rows(&prefix("/a/"))));
    assert!(held.catalog.flush(PATIENCE));
    // What comes later under the same name stays.
    held.fill("/a/2", 2 * BLOCK);
    assert!(held.catalog.flush(PATIENCE));
    held.crash();
    for _ in 0..2 {
        let held = open(dir.path(), 100 * BLOCK);
        assert_eq!(names(&held, &ALL), ["/a/2", "/ab", "/b"]);
        assert_eq!(held.catalog.held(&key("/a/2")).expect("held").meta().length, 2 * BLOCK);
        held.crash();
    }
}

#[test]
fn a_volume_that_was_away_learns_what_was_purged() {
    let (one, two) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let both = [one.path(), two.path()];
    let held = open_volumes(&both, 100 * BLOCK);
    let all: Vec<String> =
        (0..32).map(|number| format!("/{}/{number}", if number % 2 == 0 { "a" } else { "b" })).collect();
    all.iter().for_each(|name| drop(held.fill(name, BLOCK)));
    held.catalog.close();
    drop(held);
    let held = open_volumes(&both[..1], 100 * BLOCK);
    held.catalog.purge(&prefix("/a/"), PATIENCE).expect("durable");
    held.catalog.close();
    drop(held);
    for _ in 0..2 {
        let held = open_volumes(&both, 100 * BLOCK);
        let left: Vec<_> = all.iter().filter(|name| held.catalog.held(&key(name)).is_some()).collect();
        assert!(left.len() == 16 && left.iter().all(|name| name.starts_with("/b/")), "{left:?}");
        held.crash();
    }
}

#[test]
fn a_path_goes_with_every_query_of_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let queried = AssetKey::parse("/a", Some("v=1")).expect("valid");
    held.fill("/a", BLOCK);
    let entry = held.catalog.admit(&queried, meta(BLOCK), Lifetime::immutable(UnixTime(1_000_000))).expect("admitted");
    entry.writer(0).write_blocking(&content(BLOCK)).expect("written");
    assert_eq!(held.catalog.purge(&path("/a"), PATIENCE).expect("durable").assets, 2);
    assert!(held.catalog.held(&queried).is_none());
}

#[tokio::test]
async fn what_was_asked_before_a_purge_is_neither_admitted_nor_joined_nor_remembered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut held = open(dir.path(), 100 * BLOCK);
    let ask = |held: &Held| {
        let catalog = Arc::clone(&held.catalog);
        tokio::spawn(async move { catalog.discover(&key("/a"), Want::Metadata).await })
    };
    let before = ask(&held);
    let Some(Demand::Discover(asked_before)) = held.demands.next().await else { panic!("a question") };
    let mark = held.catalog.purge_mark();
    held.catalog.purge(&path("/a"), PATIENCE).expect("durable");

    let after = ask(&held);
    let Some(Demand::Discover(asked_after)) = held.demands.next().await else { panic!("a question of its own") };
    let life = Lifetime::immutable(UnixTime(1_000_000));
    let admitted = held.catalog.admit_asked(mark, &key("/a"), meta(BLOCK), life);
    assert!(matches!(admitted, Err(AdmitError::Purged)));
    assert!(held.catalog.held(&key("/a")).is_none());
    asked_before.refused(Refusal::NotFound);
    assert!(matches!(before.await.expect("joined"), Err(Refusal::NotFound)));
    assert!(matches!(held.catalog.lookup(&key("/a")), Lookup::Miss), "what it came to is of before");

    let entry = held.catalog.admit_asked(held.catalog.purge_mark(), &key("/a"), meta(BLOCK), life).expect("admitted");
    asked_after.admitted(entry);
    assert!(matches!(after.await.expect("joined"), Ok(Discovered::Entry(_))));
}

#[tokio::test]
async fn what_is_being_filled_goes_too() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let entry = held.admit("/a", 3 * BLOCK);
    let mut writer = entry.writer(0);
    writer.write(bytes::Bytes::from(content(BLOCK + 100))).await.expect("written");
    assert_eq!(held.catalog.purge(&path("/a"), PATIENCE).expect("durable").assets, 1);
    let range = crate::asset::ByteRange::new(0, BLOCK).expect("range");
    assert_eq!(entry.demand(range), Err(Refusal::Withdrawn));
    assert!(held.catalog.held(&key("/a")).is_none());
    let rest = writer.write(bytes::Bytes::from(content(2 * BLOCK))).await;
    assert!(matches!(rest, Err(WriteError::Withdrawn)), "{rest:?}");
    drop(writer);
    let volume = held.catalog.volumes().next().expect("a volume");
    held.until("its space comes back", || volume.used() == 0);
}

#[test]
fn a_purge_that_no_disk_can_remember_holds_and_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    held.fill("/a", BLOCK);
    held.catalog.volumes().for_each(|volume| volume.fail(VolumeFailure::Write("gone".into())));
    assert_eq!(held.catalog.purge(&path("/a"), PATIENCE), Err(PurgeError::NoVolume));
    assert!(held.catalog.held(&key("/a")).is_none());
}

#[test]
fn what_is_withheld_goes_too() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    held.catalog.expect([(key("/a").id(), Sha256::new([1; 32]))].into_iter().collect());
    let planned = PlannedAsset {
        meta: meta(BLOCK),
        lifetime: Lifetime::immutable(UnixTime(1_000_000)),
        asked: held.catalog.purge_mark(),
    };
    let work = held.catalog.admit_planned(&key("/a"), planned).expect("admitted");
    assert_eq!(held.catalog.withheld(), 1);
    assert_eq!(held.catalog.purge(&path("/a"), PATIENCE).expect("durable").assets, 1);
    assert!(work.entry().is_withdrawn() && held.catalog.held_or_withheld(&key("/a")).is_none());
}
