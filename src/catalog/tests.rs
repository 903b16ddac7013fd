//! The catalog as serve and fill use it, on a real directory.

use std::path::Path;

use super::*;
use crate::{
    asset::{BitRate, BlockSize, ByteCount, ByteRange, EntityTag, UnixTime, Validators},
    storage::{self, Disk, RealDisk, Residency, VolumeConfig},
};

pub(super) const BLOCK: u64 = 64 << 10;

pub(super) struct Held {
    pub(super) catalog: Arc<Catalog>,
    pub(super) demands: Demands,
}

fn storage_config(roots: &[&Path], capacity: u64) -> storage::Config {
    storage::Config {
        block_size: BlockSize::new(BLOCK).expect("valid"),
        volumes: roots
            .iter()
            .map(|root| VolumeConfig { path: (*root).into(), capacity: ByteCount(capacity) })
            .collect(),
        sync_interval: Duration::from_millis(5),
        // The scrubber would compare blocks before a test asks for them.
        scrub_rate: BitRate(0),
        ..storage::Config::default()
    }
}

pub(super) fn open(root: &Path, capacity: u64) -> Held {
    open_volumes(&[root], capacity)
}

pub(super) fn open_volumes(roots: &[&Path], capacity: u64) -> Held {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    open_all_on(&disk, roots, capacity)
}

pub(super) fn open_on(disk: &Arc<dyn Disk>, root: &Path, capacity: u64) -> Held {
    open_all_on(disk, &[root], capacity)
}

fn open_all_on(disk: &Arc<dyn Disk>, roots: &[&Path], capacity: u64) -> Held {
    let clock = Clock::manual(UnixTime(1_000_000));
    let config = storage_config(roots, capacity);
    // The threads of a catalog that was dropped let go of the volume a moment later.
    for _ in 0..2_000 {
        match Catalog::open(&Config::default(), &config, disk, clock.clone(), Arc::new(Metrics::new(1))) {
            Ok((catalog, demands)) => return Held { catalog, demands },
            Err(OpenError::Volume(storage::VolumeError::InUse(_))) => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Err(err) => panic!("{err}"),
        }
    }
    panic!("the volume stays in use");
}

pub(super) fn key(name: &str) -> AssetKey {
    AssetKey::parse(name, None).expect("valid")
}

pub(super) fn meta(length: u64) -> Meta {
    Meta {
        length,
        validators: Validators { etag: EntityTag::parse("\"v1\""), ..Validators::default() },
        content_type: Some("video/mp4".into()),
        content_encoding: None,
        cache_control: None,
        ranged: true,
    }
}

pub(super) fn content(length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).expect("small")];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

impl Held {
    /// Ends without a word to the disk, and waits until nobody writes any more.
    pub(super) fn crash(self) {
        let volumes: Vec<_> = self.catalog.volumes().map(Arc::downgrade).collect();
        drop(self);
        for _ in 0..2_000 {
            if volumes.iter().all(|volume| volume.strong_count() == 0) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        panic!("somebody holds on to the volume");
    }

    pub(super) fn until(&self, what: &str, reached: impl Fn() -> bool) {
        for _ in 0..2_000 {
            if reached() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        panic!("{what}: not in time");
    }

    pub(super) fn admit(&self, name: &str, length: u64) -> Arc<Entry> {
        self.catalog.admit(&key(name), meta(length), Lifetime::immutable(UnixTime(1_000_000))).expect("admitted")
    }

    pub(super) fn fill(&self, name: &str, length: u64) -> Arc<Entry> {
        let entry = self.admit(name, length);
        entry.writer(0).write_blocking(&content(length)).expect("written");
        entry
    }

    pub(super) fn hit(&self, name: &str) -> Option<Arc<Entry>> {
        match self.catalog.lookup(&key(name)) {
            Lookup::Hit(entry) => Some(entry),
            _ => None,
        }
    }
}

pub(super) async fn read(entry: &Arc<Entry>, range: ByteRange) -> Vec<u8> {
    let residency = Residency::new(&storage::Config::default()).expect("engine");
    let lease = entry.lease().await.expect("lease");
    residency.resident(lease.slice(range).expect("there"), None).await.expect("read").to_vec()
}

#[tokio::test]
async fn what_is_written_is_read_back_as_it_arrives() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let length = 2 * BLOCK + 17;
    let entry = held.admit("/a", length);
    assert_eq!(entry.available(0), 0);
    let bytes = content(length);
    let mut writer = entry.writer(0);
    writer.write(bytes::Bytes::copy_from_slice(&bytes[..100])).await.expect("written");
    assert_eq!(entry.available(0), 100, "served before the block is whole");
    assert_eq!(read(&entry, ByteRange::new(0, 100).expect("range")).await, bytes[..100]);
    writer.write(bytes::Bytes::copy_from_slice(&bytes[100..])).await.expect("written");
    assert!(entry.is_sealed());
    assert_eq!(read(&entry, ByteRange::new(0, length).expect("range")).await, bytes);
    assert!(matches!(writer.write(bytes::Bytes::from_static(b"x")).await, Err(WriteError::TooLong)));
}

#[tokio::test]
async fn who_waits_is_woken_by_bytes_and_by_failure() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut held = open(dir.path(), 100 * BLOCK);
    let entry = held.admit("/a", 3 * BLOCK);
    let want = ByteRange::new(BLOCK, BLOCK + 1).expect("range");
    assert_eq!(entry.demand(want), Ok(true));
    assert_eq!(entry.demand(want), Ok(true), "the second is not asked for again");
    let Some(Demand::Blocks { blocks, .. }) = held.demands.next().await else { panic!("a demand for blocks") };
    assert_eq!(blocks, 1..2);
    assert_eq!(held.catalog.demands_queued(), 0);
    let waiting = tokio::spawn({
        let entry = Arc::clone(&entry);
        async move { entry.grown(BLOCK).await }
    });
    entry.abandon(blocks, Refusal::SourceTimedOut);
    assert_eq!(waiting.await.expect("joined"), Err(Refusal::SourceTimedOut));
    assert_eq!(entry.demand(want), Ok(true), "it can be asked for again");
    entry.writer(1).write_blocking(&[7; 10]).expect("written");
    assert_eq!(entry.available(BLOCK), 0, "the writer was dropped in the middle: the block is not there");
    entry.abandon(1..2, Refusal::SourceFailed);
    assert_eq!(entry.grown(BLOCK).await, Err(Refusal::SourceFailed));
}

#[tokio::test]
async fn a_question_is_asked_once_for_all() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut held = open(dir.path(), 100 * BLOCK);
    let want = Want::Range { start: 0, end: None };
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let catalog = Arc::clone(&held.catalog);
            tokio::spawn(async move { catalog.discover(&key("/a"), want).await })
        })
        .collect();
    let Some(Demand::Discover(discovery)) = held.demands.next().await else { panic!("a question") };
    tokio::task::yield_now().await;
    let entry = held.admit("/a", BLOCK);
    discovery.admitted(entry);
    for asked in asking {
        assert!(matches!(asked.await.expect("joined"), Ok(Discovered::Entry(_))));
    }
    assert_eq!(held.catalog.demands_queued(), 0);
    assert_eq!(held.catalog.demands_queued(), 0, "nothing else was asked");
}

#[test]
fn a_clean_stop_keeps_everything() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    held.fill("/whole", 2 * BLOCK);
    let part = held.admit("/part", 3 * BLOCK);
    part.writer(1).write_blocking(&content(BLOCK)).expect("written");
    held.catalog.close();
    drop((held, part));
    let held = open(dir.path(), 100 * BLOCK);
    let whole = held.hit("/whole").expect("held");
    assert!(whole.is_sealed());
    assert_eq!(whole.meta(), &meta(2 * BLOCK));
    let part = held.hit("/part").expect("held");
    assert_eq!((part.available(0), part.available(BLOCK)), (0, BLOCK));
    assert_eq!(held.catalog.volumes().map(|volume| volume.used()).sum::<u64>(), 3 * BLOCK);
}

#[tokio::test]
async fn after_a_crash_blocks_are_compared_before_they_are_served() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let entry = held.fill("/a", 2 * BLOCK);
    assert!(held.catalog.flush(Duration::from_secs(10)));
    let path = entry.file().path(entry.id());
    drop((held, entry));
    // The second block rots while nobody looks.
    let mut bytes = content(2 * BLOCK);
    bytes[usize::try_from(BLOCK).expect("small") + 5] ^= 1;
    std::fs::write(&path, &bytes).expect("rot");

    let mut held = open(dir.path(), 100 * BLOCK);
    let entry = held.hit("/a").expect("still held");
    assert_eq!(entry.available(0), 0, "not before it was compared");
    assert_eq!(entry.demand(ByteRange::new(0, 2 * BLOCK).expect("range")), Ok(true));
    assert_eq!(entry.grown(0).await, Ok(BLOCK));
    assert_eq!(entry.grown(BLOCK).await, Err(Refusal::SourceFailed), "the rotten block is dropped");
    assert_eq!(entry.demand(ByteRange::new(BLOCK, BLOCK + 1).expect("range")), Ok(true));
    let Some(Demand::Blocks { blocks, .. }) = held.demands.next().await else { panic!("a demand for blocks") };
    assert_eq!(blocks, 1..2, "and asked for anew");
    let good = content(2 * BLOCK);
    entry.writer(1).write_blocking(&good[good.len() / 2..]).expect("written");
    assert!(entry.is_sealed());
    assert_eq!(read(&entry, ByteRange::new(0, 2 * BLOCK).expect("range")).await, good);
}

#[test]
fn the_least_recently_used_goes_and_capacity_is_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 10 * BLOCK);
    for number in 0..30 {
        held.fill(&format!("/{number}"), BLOCK);
        let used = held.catalog.volumes().next().expect("one").used();
        assert!(used <= 10 * BLOCK, "{used}");
    }
    assert!(held.hit("/29").is_some());
    assert!(held.hit("/0").is_none());
    held.catalog.close();
    let files = walk(dir.path());
    assert!(files <= 10, "{files} files are left");
}

fn walk(root: &Path) -> usize {
    let folders = std::fs::read_dir(root.join("assets")).expect("readable");
    folders.map(|folder| std::fs::read_dir(folder.expect("entry").path()).expect("readable").count()).sum()
}

#[tokio::test]
async fn a_lease_outlives_eviction_and_its_space_counts_until_it_goes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 10 * BLOCK);
    let entry = held.fill("/a", 2 * BLOCK);
    let lease = entry.lease().await.expect("lease");
    held.catalog.leave(&entry, Leaving::Evicted);
    assert!(held.hit("/a").is_none());
    assert_eq!(walk(dir.path()), 0);
    let volume = Arc::clone(held.catalog.volumes().next().expect("one"));
    assert_eq!((volume.used(), volume.kept()), (2 * BLOCK, 0));
    let residency = Residency::new(&storage::Config::default()).expect("engine");
    let slice = lease.slice(ByteRange::new(0, 2 * BLOCK).expect("range")).expect("there");
    assert_eq!(residency.resident(slice, None).await.expect("read"), content(2 * BLOCK));
    assert!(held.catalog.flush(Duration::from_secs(10)), "the writer of records lets go of the entry too");
    drop((lease, entry));
    assert_eq!(volume.used(), 0);
}

#[test]
fn a_failed_volume_loses_what_it_held_and_no_more() {
    let (one, two) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let mut config = storage_config(&[one.path()], 100 * BLOCK);
    config.volumes.push(VolumeConfig { path: two.path().into(), capacity: ByteCount(100 * BLOCK) });
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock = Clock::manual(UnixTime(1_000_000));
    let opened = Catalog::open(&Config::default(), &config, &disk, clock, Arc::new(Metrics::new(1)));
    let (catalog, demands) = opened.expect("open");
    let held = Held { catalog, demands };
    let names: Vec<String> = (0..40).map(|number| format!("/{number}")).collect();
    let entries: Vec<_> = names.iter().map(|name| held.fill(name, BLOCK)).collect();
    let on_first = entries.iter().filter(|entry| entry.file().volume().index() == 0).count();
    assert!((5..35).contains(&on_first), "both volumes get their share: {on_first}");
    held.catalog.volumes().next().expect("one").fail(VolumeFailure::Gone);
    let mut left = usize::MAX;
    for _ in 0..500 {
        left = names.iter().filter(|name| held.hit(name).is_some()).count();
        if left == 40 - on_first {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(left, 40 - on_first);
    assert_eq!(held.fill("/new", BLOCK).file().volume().index(), 1);
}

#[tokio::test]
async fn a_file_that_somebody_removed_or_cut_is_never_made_anew_under_what_it_held() {
    for cut in [false, true] {
        let dir = tempfile::tempdir().expect("tempdir");
        let held = open(dir.path(), 100 * BLOCK);
        let entry = held.admit("/a", 3 * BLOCK);
        entry.writer(0).write_blocking(&content(3 * BLOCK)[..usize::try_from(BLOCK).expect("small")]).expect("written");
        let path = entry.file().path(entry.id());
        assert!(held.catalog.flush(Duration::from_secs(10)));
        held.until("the record is written", || {
            if cut {
                std::fs::File::options().write(true).open(&path).expect("open").set_len(0).expect("cut");
            } else if path.exists() {
                std::fs::remove_file(&path).expect("removed");
            }
            // The writer of records may hold the file open a moment longer.
            matches!(entry.writer(1).write_blocking(&[7; 10]), Err(WriteError::Withdrawn))
        });
        assert!(held.hit("/a").is_none(), "what it held is lost, and is fetched anew");
    }
}

#[test]
fn what_is_being_read_is_not_evicted_for_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 10 * BLOCK);
    let read = held.fill("/read", 8 * BLOCK);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let lease = runtime.block_on(read.lease()).expect("lease");
    let entry = held.admit("/new", 4 * BLOCK);
    let failed = entry.writer(0).write_blocking(&content(4 * BLOCK));
    assert!(matches!(failed, Err(WriteError::NoRoom)), "{failed:?}");
    assert!(held.hit("/read").is_some());
    drop(lease);
    held.fill("/later", 4 * BLOCK);
    assert!(held.hit("/read").is_none(), "now it may go");
}

#[test]
fn the_order_of_eviction_is_that_of_last_use_whatever_comes_and_goes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let entries: Vec<_> = (0..24).map(|number| held.admit(&format!("/{number}"), BLOCK)).collect();
    drop(held.catalog.shelves[0].recency.lock().drain());
    let (mut order, mut model) = (Recency::with_capacity(0), Vec::<usize>::new());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for step in 0..2_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = usize::try_from(random % 24).expect("small");
        let entry = &entries[at];
        let known = model.iter().position(|held| *held == at);
        match (random >> 32) % 3 {
            0 => {
                if known.is_none() {
                    order.insert(Arc::clone(entry));
                    model.push(at);
                }
            }
            1 => {
                order.touch(entry);
                if let Some(known) = known {
                    model.remove(known);
                    model.push(at);
                }
            }
            _ => {
                order.remove(entry);
                known.map(|known| model.remove(known));
            }
        }
        assert_eq!(order.len(), model.len(), "step {step}");
        let newest_first: Vec<_> = order.used_since(UnixTime(0)).into_iter().map(|(serial, _)| serial).collect();
        let expected: Vec<_> = model.iter().rev().map(|at| entries[*at].serial()).collect();
        assert_eq!(newest_first, expected, "step {step}");
    }
    let victims: Vec<_> = std::iter::from_fn(|| order.pop_victim()).map(|entry| entry.serial()).collect();
    assert_eq!(victims, model.iter().map(|at| entries[*at].serial()).collect::<Vec<_>>());
    assert_eq!(order.len(), 0);
}

#[test]
fn what_is_mapped_and_evicted_again_and_again_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("tempdir");
    let held = open(dir.path(), 100 * BLOCK);
    let before = Arc::downgrade(&held.fill("/first", 10));
    for number in 0..200 {
        let entry = held.fill(&format!("/{number}"), 10);
        held.catalog.mappings.map(&entry).expect("mapped");
        held.catalog.leave(&entry, Leaving::Evicted);
    }
    assert!(held.catalog.mappings.round() <= 64 + 1, "{}", held.catalog.mappings.round());
    assert_eq!(held.catalog.mapped(), 0);
    assert!(before.upgrade().is_some(), "what is held stays");
}
