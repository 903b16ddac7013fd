//! What fill takes in ahead of demand, on a real directory.

use std::{fs::File, io::IoSliceMut};

use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};

use super::{
    tests::{BLOCK, Held, content, key, meta, open_on},
    *,
};
use crate::storage::{self, Disk, RealDisk};

const DIGEST: Sha256 = Sha256::new([7; 32]);
const OTHER: Sha256 = Sha256::new([8; 32]);

fn open(root: &std::path::Path, blocks: u64) -> Held {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    open_on(&disk, root, blocks * BLOCK)
}

impl Held {
    fn expect(&self, digests: &[(&str, Sha256)]) {
        self.catalog.expect(digests.iter().map(|(name, digest)| (key(name).id(), *digest)).collect());
    }

    fn plan(&self, name: &str, length: u64) -> Arc<Entry> {
        Arc::clone(self.try_plan(name, length).expect("admitted").entry())
    }

    fn try_plan(&self, name: &str, length: u64) -> Result<InWork, AdmitError> {
        let lifetime = Lifetime::immutable(UnixTime(1_000_000));
        self.catalog
            .admit_planned(&key(name), PlannedAsset { meta: meta(length), lifetime, asked: self.catalog.purge_mark() })
    }

    fn used(&self) -> u64 {
        self.catalog.volumes().map(|volume| volume.used()).sum()
    }

    fn end(self) {
        self.catalog.close();
        self.crash();
    }
}

/// Whether a page of a file is in memory. Where it is not, the kernel begins to read it (and, but for [`Advice::Random`], what follows too).
fn in_memory(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    match preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => read == 1,
        Err(Errno::AGAIN) => false,
        Err(err) => panic!("{err}"),
    }
}

#[tokio::test]
async fn an_asset_with_a_digest_is_seen_once_it_was_compared_and_stays_so_over_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100);
    held.expect(&[("/a", DIGEST)]);
    let entry = held.plan("/a", 3 * BLOCK);
    assert_eq!(held.used(), 3 * BLOCK, "space for all of it");
    entry.writer(0).write_blocking(&content(3 * BLOCK)).expect("written");
    assert!(entry.is_sealed() && held.hit("/a").is_none(), "whole, and not compared");
    let told = held.catalog.discover(&key("/a"), Want::Metadata).await;
    assert!(matches!(told, Ok(Discovered::PassThrough)), "{told:?}");
    let peer = Asker::Cache { through: "b; peer=1".into(), peer: true };
    let told = held.catalog.discover_for(&key("/a"), Want::Metadata, peer).await;
    assert!(matches!(told, Ok(Discovered::Entry(told)) if Arc::ptr_eq(&told, &entry)), "a peer compares it itself");
    let taken = held.catalog.admit(&key("/a"), meta(5), Lifetime::immutable(UnixTime(1)));
    assert_eq!(taken.err(), Some(AdmitError::Withheld), "nor is another version taken in on demand");
    held.catalog.publish(&entry, DIGEST);
    assert_eq!(held.hit("/a").expect("seen").serial(), entry.serial());
    assert_eq!(held.used(), 3 * BLOCK);
    drop(entry);
    held.end();
    let held = open(dir.path(), 100);
    held.expect(&[("/a", DIGEST)]);
    let entry = held.hit("/a").expect("seen after a restart");
    assert_eq!(held.catalog.whole_digest(&entry), Some(DIGEST));
    held.expect(&[("/a", OTHER)]);
    assert!(held.hit("/a").is_none(), "another asset is meant now");
    assert_eq!(held.catalog.withheld(), 0);
}

#[test]
fn what_is_held_is_withheld_while_its_digest_is_not_known() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100);
    let recalled = held.fill("/a", 2 * BLOCK);
    assert!(held.catalog.use_if_fresh(&recalled, UnixTime(1_000_000)));
    held.expect(&[("/a", DIGEST)]);
    assert!(held.hit("/a").is_none());
    assert!(!held.catalog.use_if_fresh(&recalled, UnixTime(1_000_000)), "a worker that recalls it asks again");
    let found = held.catalog.held_or_withheld(&key("/a")).expect("for fill it is there");
    assert!(Arc::ptr_eq(&found, &recalled));
    held.expect(&[]);
    assert!(held.hit("/a").is_some(), "no manifest asks any more");
    assert!(held.catalog.use_if_fresh(&recalled, UnixTime(1_000_000)));
    held.expect(&[("/a", DIGEST)]);
    held.catalog.publish(&recalled, DIGEST);
    assert!(held.hit("/a").is_some());
    held.catalog.discard_block(&recalled, 1);
    assert!(held.hit("/a").is_none(), "a block was lost: what is fetched in its place is not known");
    assert_eq!(held.catalog.whole_digest(&recalled), None);
}

#[tokio::test]
async fn a_begun_fill_goes_on_after_a_crash_with_space_for_the_rest() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100);
    held.expect(&[("/a", DIGEST)]);
    let entry = held.plan("/a", 4 * BLOCK);
    let bytes = content(4 * BLOCK);
    let (first, rest) = bytes.split_at(usize::try_from(2 * BLOCK + 10).expect("small"));
    entry.writer(0).write_blocking(first).expect("written");
    assert!(held.catalog.flush(Duration::from_secs(20)));
    drop(entry);
    held.crash();
    let held = open(dir.path(), 100);
    held.expect(&[("/a", DIGEST)]);
    assert!(held.hit("/a").is_none());
    let entry = held.catalog.held_or_withheld(&key("/a")).expect("begun");
    assert_eq!(held.used(), 2 * BLOCK);
    held.catalog.resume_planned(&entry).expect("room");
    assert_eq!(held.used(), 4 * BLOCK);
    for (block, here) in [(0, true), (1, true), (2, false), (3, false)] {
        assert_eq!(entry.has_block(block).await, Ok(here), "block {block}");
    }
    let mut back = vec![0; usize::try_from(2 * BLOCK).expect("small")];
    entry.read_back(0, &mut back).expect("read");
    assert!(back[..] == first[..back.len()]);
    entry.writer(2).write_blocking(&[&first[back.len()..], rest].concat()).expect("written");
    held.catalog.publish(&entry, DIGEST);
    assert_eq!(held.used(), 4 * BLOCK);
    assert!(held.hit("/a").is_some());
}

#[test]
fn what_is_pinned_is_not_evicted_for_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 20);
    for name in ["/0", "/1", "/2", "/3"] {
        held.fill(name, 4 * BLOCK);
    }
    held.catalog.pin(|key| matches!(key.path(), "0" | "1"));
    for number in 4..12 {
        held.fill(&format!("/{number}"), 4 * BLOCK);
    }
    assert!(held.hit("/0").is_some() && held.hit("/1").is_some());
    assert!(held.hit("/2").is_none() && held.hit("/3").is_none());
    held.end();
    let held = open(dir.path(), 20);
    for number in 12..20 {
        held.fill(&format!("/{number}"), 4 * BLOCK);
    }
    assert!(held.hit("/0").is_some(), "pins outlive a restart, before any manifest is read");
    held.catalog.pin(|_| false);
    for number in 20..28 {
        held.fill(&format!("/{number}"), 4 * BLOCK);
    }
    assert!(held.hit("/0").is_none() && held.hit("/1").is_none());
}

#[test]
fn there_is_room_for_all_of_it_or_none_is_taken() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 20);
    held.expect(&[("/new", DIGEST)]);
    held.fill("/pinned", 10 * BLOCK);
    held.fill("/old", 4 * BLOCK);
    held.catalog.pin(|key| key.path() == "pinned");
    let new = held.try_plan("/new", 9 * BLOCK).expect("room");
    assert!(held.hit("/old").is_none() && held.hit("/pinned").is_some());
    assert_eq!(held.used(), 19 * BLOCK);
    assert_eq!(held.try_plan("/more", 10 * BLOCK).err(), Some(AdmitError::NoRoom));
    let used = held.used();
    assert!(used <= 19 * BLOCK, "what did not fit takes nothing: {used}");
    assert!(held.hit("/pinned").is_some());
    assert!(held.catalog.held_or_withheld(&key("/new")).is_some(), "what is in work is not evicted");
    drop(new);
    held.try_plan("/more", 10 * BLOCK).expect("in its place");
}

#[test]
fn a_plan_evicts_the_very_version_it_saw() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 20);
    let serial = held.fill("/a", BLOCK).serial();
    let view = held.catalog.view();
    assert_eq!(
        view.held.iter().map(|held| (held.serial, held.reserved, held.sealed)).collect::<Vec<_>>(),
        [(serial, BLOCK, true)]
    );
    assert_eq!(view.volume_of(&key("/a"), BLOCK), Some(0));
    assert_eq!(view.volume_of(&key("/a"), 20 * BLOCK), None, "larger than what is kept");
    assert_eq!(held.catalog.evict_planned(&key("/a"), serial + 1), 0);
    assert_eq!(held.catalog.evict_planned(&key("/a"), serial), BLOCK);
    assert!(held.hit("/a").is_none());
}

#[test]
fn the_records_of_a_volume_read_as_the_catalog_does() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 50);
    held.expect(&[("/a", DIGEST)]);
    let entry = held.plan("/a", 3 * BLOCK);
    entry.writer(0).write_blocking(&content(3 * BLOCK)).expect("written");
    held.catalog.publish(&entry, DIGEST);
    held.fill("/b", 2 * BLOCK + 1);
    held.admit("/c", 9 * BLOCK).writer(4).write_blocking(&content(BLOCK)).expect("written");
    assert!(held.catalog.flush(Duration::from_secs(20)));
    let config = storage::Config {
        volumes: vec![storage::VolumeConfig { path: dir.path().into(), capacity: crate::asset::ByteCount(50 * BLOCK) }],
        ..storage::Config::default()
    };
    let outside = CatalogView::read(&config, &Config::default()).expect("read beside the appliance");
    let inside = held.catalog.view();
    assert_eq!(outside.volumes, inside.volumes);
    assert_eq!(outside.held, inside.held);
}

#[test]
fn what_was_fetched_ahead_leaves_memory_once_it_is_durable_and_what_is_hot_stays() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").expect("tempdir");
    let held = open(dir.path(), 1000);
    let hot = held.fill("/hot", 16 * BLOCK);
    let planned = held.plan("/planned", 64 * BLOCK);
    planned.writer(0).write_blocking(&content(64 * BLOCK)).expect("written");
    assert!(held.catalog.flush(Duration::from_secs(20)));
    let resident = |entry: &Arc<Entry>, blocks: u64| {
        let file = entry.file().open_read(entry.id()).expect("open");
        fadvise(&file, 0, None, Advice::Random).expect("advice is taken");
        let pages = (0..blocks * BLOCK).step_by(4096);
        (pages.clone().filter(|offset| in_memory(&file, *offset)).count(), pages.count())
    };
    assert_eq!(resident(&hot, 16), (256, 256));
    let (left, of) = resident(&planned, 64);
    assert!(left * 50 < of, "{left} of {of} pages of the planned asset are in memory");
}

#[test]
fn what_is_fetched_ahead_is_written_past_memory_whatever_its_length_and_the_pieces_it_comes_in() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").expect("tempdir");
    let held = open(dir.path(), 1000);
    for (number, length) in [1, 4095, 4096, BLOCK - 1, 3 * BLOCK, 20 * BLOCK + 4097].into_iter().enumerate() {
        let planned = held.plan(&format!("/{number}"), length);
        let (bytes, mut writer) = (content(length), planned.writer(0));
        // Pieces that end nowhere in particular.
        bytes.chunks(7919).for_each(|piece| writer.write_blocking(piece).expect("written"));
        drop(writer);
        let file = planned.file().open_read(planned.id()).expect("open");
        fadvise(&file, 0, None, Advice::Random).expect("advice is taken");
        // To look brings some of what comes behind; what is written by memory is all there.
        let pages = (0..length / 4096 * 4096).step_by(4096);
        let (all, there) = (pages.clone().count(), pages.filter(|offset| in_memory(&file, *offset)).count());
        assert!(length < 3 * BLOCK || there * 2 < all, "{there} of {all} pages, and nothing was synced yet");
        let mut back = vec![0; bytes.len()];
        planned.read_back(0, &mut back).expect("read");
        assert!(back == bytes, "{length} bytes");
    }
    assert!(held.catalog.flush(Duration::from_secs(20)));
    held.crash();
    let held = open(dir.path(), 1000);
    for (number, length) in [(0, 1), (3, BLOCK - 1), (5, 20 * BLOCK + 4097)] {
        let hit = held.hit(&format!("/{number}")).expect("held");
        let mut back = vec![0; usize::try_from(length).expect("small")];
        hit.read_back(0, &mut back).expect("read");
        assert!(back == content(length), "{length} bytes after a crash");
    }
}
