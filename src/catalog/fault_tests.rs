//! The catalog on disks that fail: full, broken, lying about what is durable, and without power.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64},
};

use super::{tests::*, *};
use crate::{
    asset::{ByteRange, UnixTime},
    storage::{Disk, RealDisk},
};

/// An offset of a file, and what was there.
type Undo = (u64, Vec<u8>);

/// A disk that fails when it is told to, and that forgets what was not synced when its power is cut.
#[derive(Debug, Default)]
pub(super) struct FaultDisk {
    real: RealDisk,
    writes_fail: AtomicBool,
    syncs_fail: AtomicBool,
    reads_fail: AtomicBool,
    /// Nothing can be opened: the process has no descriptor left.
    descriptors_gone: AtomicBool,
    /// Bytes that can still be reserved before the disk is full, whatever the volume's capacity; `u64::MAX`: no bound.
    room: AtomicU64,
    /// What was written to a file (by inode) since it was synced, to be undone by a power cut: offset and what was there.
    unsynced: Mutex<HashMap<u64, Vec<Undo>>>,
    paths: Mutex<HashMap<u64, PathBuf>>,
    /// Files whose folder was not synced since they were made.
    nameless: Mutex<HashSet<PathBuf>>,
    power: Mutex<Power>,
}

/// When the power goes.
#[derive(Default)]
struct Power {
    is_gone: bool,
    syncs: u64,
    goes: Option<Going>,
}

/// The moment at which it goes.
struct Going {
    /// At this sync.
    sync: u64,
    /// After it, or in its place.
    after: bool,
    /// What is done at that moment.
    then: Box<dyn Fn() + Send>,
}

impl std::fmt::Debug for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Power").field("is_gone", &self.is_gone).field("syncs", &self.syncs).finish_non_exhaustive()
    }
}

impl FaultDisk {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { room: AtomicU64::new(u64::MAX), ..Self::default() })
    }

    fn fail(&self, what: &AtomicBool, failing: bool) {
        what.store(failing, Ordering::SeqCst);
    }

    /// From that sync on, counted from now, nothing is done any more; `after`: that one still is. `then` sees the moment.
    pub(super) fn cut_power_at(&self, sync: u64, after: bool, then: impl Fn() + Send + 'static) {
        *self.power.lock() =
            Power { is_gone: false, syncs: 0, goes: Some(Going { sync, after, then: Box::new(then) }) };
    }

    pub(super) fn has_no_power(&self) -> bool {
        self.power.lock().is_gone
    }

    fn check_power(&self) -> io::Result<()> {
        if self.has_no_power() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// Syncs, unless the power goes.
    fn sync(&self, carry_out: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut power = self.power.lock();
        let number = power.syncs;
        power.syncs += 1;
        let going = power.goes.as_ref().filter(|going| going.sync == number && !power.is_gone);
        let (is_gone, is_done) = match going {
            Some(going) => {
                (going.then)();
                (true, going.after)
            }
            None => (power.is_gone, !power.is_gone),
        };
        power.is_gone = is_gone;
        if is_done { carry_out() } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
    }

    fn check(what: &AtomicBool) -> io::Result<()> {
        if what.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn check_descriptors(&self) -> io::Result<()> {
        let gone = self.descriptors_gone.load(Ordering::SeqCst);
        if gone { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(()) }
    }

    /// Brings back what was on the platters: everything that was not synced is as it was before it was written.
    pub(super) fn cut_power(&self) -> usize {
        let mut undone = 0;
        self.power.lock().is_gone = false;
        self.power.lock().goes = None;
        for path in self.nameless.lock().drain() {
            // It may have been evicted.
            undone += usize::from(std::fs::remove_file(path).is_ok());
        }
        for (inode, writes) in self.unsynced.lock().drain() {
            let Some(file) = self.paths.lock().get(&inode).and_then(|path| File::options().write(true).open(path).ok())
            else {
                continue;
            };
            for (offset, before) in writes.into_iter().rev() {
                file.write_all_at(&before, offset).expect("undone");
                undone += 1;
            }
        }
        undone
    }

    fn inode(file: &File) -> u64 {
        file.metadata().expect("open").ino()
    }

    fn remember(&self, file: &File, path: &Path) {
        self.paths.lock().insert(Self::inode(file), path.into());
    }
}

impl Disk for FaultDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<File> {
        Self::check(&self.writes_fail)?;
        self.check_power()?;
        self.check_descriptors()?;
        self.nameless.lock().insert(path.into());
        self.real.create(path, length).inspect(|file| self.remember(file, path))
    }

    fn open_write(&self, path: &Path) -> io::Result<File> {
        Self::check(&self.writes_fail)?;
        self.check_power()?;
        self.check_descriptors()?;
        self.real.open_write(path).inspect(|file| self.remember(file, path))
    }

    fn open_read(&self, path: &Path) -> io::Result<File> {
        Self::check(&self.reads_fail)?;
        self.check_descriptors()?;
        self.real.open_read(path)
    }

    fn open_direct(&self, path: &Path) -> io::Result<File> {
        self.open_read(path)
    }

    fn reserve(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let taken = self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| match room {
            u64::MAX => Some(room),
            room => room.checked_sub(len),
        });
        taken.map_err(|_| io::Error::from_raw_os_error(libc::ENOSPC))?;
        self.real.reserve(file, offset, len)
    }

    fn write_at(&self, file: &File, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        Self::check(&self.writes_fail)?;
        self.check_power()?;
        let mut before = vec![0; pieces.iter().map(|piece| piece.len()).sum()];
        self.real.read_at(file, &mut before, offset)?;
        self.unsynced.lock().entry(Self::inode(file)).or_default().push((offset, before));
        self.real.write_at(file, pieces, offset)
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        Self::check(&self.reads_fail)?;
        self.real.read_at(file, buffer, offset)
    }

    fn read_some(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Self::check(&self.reads_fail)?;
        self.real.read_some(file, buffer, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        Self::check(&self.syncs_fail)?;
        self.sync(|| {
            self.unsynced.lock().remove(&Self::inode(file));
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Self::check(&self.syncs_fail)?;
        self.check_descriptors()?;
        self.sync(|| {
            self.nameless.lock().retain(|file| file.parent() != Some(path));
            self.real.sync_dir(path)
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.check_power()?;
        let freed = std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
        self.room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| Some(room.saturating_add(freed)))
            .expect("always some");
        self.real.unlink(path)
    }
}

pub(super) fn on(disk: &Arc<FaultDisk>, root: &Path, capacity: u64) -> Held {
    let disk: Arc<dyn Disk> = Arc::clone(disk) as _;
    open_on(&disk, root, capacity)
}

#[test]
fn a_full_disk_evicts_and_goes_on_filling_and_hits_are_untouched() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    disk.room.store(6 * BLOCK, Ordering::SeqCst);
    let held = on(&disk, dir.path(), 100 * BLOCK);
    for number in 0..20 {
        held.fill(&format!("/{number}"), BLOCK);
    }
    assert!(held.hit("/19").is_some(), "the newest is held");
    assert!(held.hit("/0").is_none(), "the oldest had to go, although the capacity was not used up");
    assert_eq!(held.catalog.volumes().next().expect("one").state(), VolumeState::Serving, "full is not broken");
}

#[test]
fn when_nothing_can_be_evicted_the_writer_hears_of_it_and_the_volume_lives() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    disk.room.store(BLOCK, Ordering::SeqCst);
    let held = on(&disk, dir.path(), 100 * BLOCK);
    let entry = held.admit("/a", 3 * BLOCK);
    let failed = entry.writer(0).write_blocking(&content(3 * BLOCK));
    assert!(matches!(failed, Err(WriteError::NoRoom)), "{failed:?}");
    assert_eq!(entry.available(0), BLOCK, "what was written is served");
    assert_eq!(held.catalog.volumes().next().expect("one").state(), VolumeState::Serving);
}

#[test]
fn a_write_that_fails_takes_the_volume_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    let held = on(&disk, dir.path(), 100 * BLOCK);
    held.fill("/a", BLOCK);
    disk.fail(&disk.writes_fail, true);
    let entry = held.admit("/b", BLOCK);
    let failed = entry.writer(0).write_blocking(&content(BLOCK));
    assert!(matches!(failed, Err(WriteError::Io(_))), "{failed:?}");
    let volume = Arc::clone(held.catalog.volumes().next().expect("one"));
    assert!(matches!(volume.failure(), Some(VolumeFailure::Write(_))), "{:?}", volume.failure());
    assert_eq!(
        held.catalog.admit(&key("/c"), meta(BLOCK), Lifetime::immutable(UnixTime(0))).err(),
        Some(AdmitError::NoVolume)
    );
    held.until("its assets are gone", || held.hit("/a").is_none());
}

#[test]
fn a_sync_that_fails_condemns_what_it_covered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    let held = on(&disk, dir.path(), 100 * BLOCK);
    held.fill("/durable", BLOCK);
    assert!(held.catalog.flush(Duration::from_secs(10)));
    disk.fail(&disk.syncs_fail, true);
    let lost = held.fill("/lost", 2 * BLOCK);
    held.until("the blocks are condemned", || lost.available(0) == 0 && lost.available(BLOCK) == 0);
    assert!(held.catalog.shelves[0].metrics.sync_failures.value() > 0, "and it is counted");
    drop((held, lost));
    disk.fail(&disk.syncs_fail, false);
    disk.cut_power();
    let held = on(&disk, dir.path(), 100 * BLOCK);
    assert!(held.hit("/durable").is_some(), "what was durable is still there");
    assert!(held.hit("/lost").is_none(), "what was not was never recorded");
}

#[tokio::test]
async fn a_read_that_fails_drops_the_asset_and_too_many_take_the_volume_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    let held = on(&disk, dir.path(), 100 * BLOCK);
    let names: Vec<String> = (0..8).map(|number| format!("/{number}")).collect();
    names.iter().for_each(|name| drop(held.fill(name, BLOCK)));
    disk.fail(&disk.reads_fail, true);
    let volume = Arc::clone(held.catalog.volumes().next().expect("one"));
    for (number, name) in names.iter().enumerate() {
        assert_eq!(volume.state(), VolumeState::Serving, "after {number} failures");
        let entry = held.hit(name).expect("held");
        entry.lease().await.expect_err("cannot be read");
        assert!(held.hit(name).is_none(), "dropped, so that the next request fetches it anew");
    }
    assert_eq!(volume.failure(), Some(VolumeFailure::Reads(8)));
}

#[tokio::test]
async fn a_shortage_of_descriptors_is_no_fault_of_the_disk() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    let held = on(&disk, dir.path(), 100 * BLOCK);
    let volume = Arc::clone(held.catalog.volumes().next().expect("one"));
    let (begun, unmapped) = (held.admit("/begun", 2 * BLOCK), held.fill("/unmapped", BLOCK));
    let mut writer = begun.writer(0);
    writer.write_blocking(&content(2 * BLOCK)[..10]).expect("written");
    disk.fail(&disk.descriptors_gone, true);

    assert!(volume.probe().is_ok());
    let failed = held.admit("/b", BLOCK).writer(0).write_blocking(&content(BLOCK));
    assert!(matches!(failed, Err(WriteError::Shortage(_))), "{failed:?}");
    for _ in 0..20 {
        unmapped.lease().await.expect_err("it takes a descriptor to map a file");
    }
    writer.write_blocking(&content(2 * BLOCK)[10..]).expect("its file is open already");
    assert!(!held.catalog.flush(Duration::from_millis(100)), "folders cannot be synced, so nothing is durable yet");

    disk.fail(&disk.descriptors_gone, false);
    assert!(held.catalog.flush(Duration::from_secs(10)), "what waited is durable now");
    assert_eq!(volume.state(), VolumeState::Serving);
    assert!(held.hit("/begun").is_some() && held.hit("/unmapped").is_some());
    unmapped.lease().await.expect("it can be mapped again");
}

#[test]
fn a_power_cut_at_any_time_leaves_nothing_wrong() {
    let seed: u64 = std::env::var("OCA_SEED").map_or(0x0ca, |seed| seed.parse().expect("a number"));
    println!("OCA_SEED={seed}");
    let mut random = seed | 1;
    let mut next = move |bound: u64| {
        // xorshift64 (Marsaglia, 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    let mut durable: Vec<String> = Vec::new();
    let mut undone = 0;
    for life in 0..12 {
        let held = on(&disk, dir.path(), 1000 * BLOCK);
        for name in &durable {
            assert_right(&held, name, true);
        }
        for number in 0..next(12) {
            let name = format!("/{life}-{number}");
            let length = 1 + next(3 * BLOCK);
            let entry = held.admit(&name, length);
            let written = if next(2) == 0 { length } else { next(length + 1) };
            let bytes = content(length);
            entry.writer(0).write_blocking(&bytes[..usize::try_from(written).expect("small")]).expect("written");
            if next(3) == 0 {
                assert!(held.catalog.flush(Duration::from_secs(10)));
                if entry.is_sealed() {
                    durable.push(name);
                }
            }
        }
        held.crash();
        undone += disk.cut_power();
    }
    let held = on(&disk, dir.path(), 1000 * BLOCK);
    for life in 0..12 {
        (0..12).for_each(|number| assert_right(&held, &format!("/{life}-{number}"), false));
    }
    assert!(!durable.is_empty(), "nothing was ever durable: nothing was tested");
    assert!(undone > 0, "no power cut met anything that was not durable: nothing was tested");
}

#[test]
fn a_power_cut_in_a_night_shows_nothing_that_was_not_compared_and_keeps_what_was() {
    let digest = Sha256::new([7; 32]);
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FaultDisk::new();
    let names: Vec<String> = (0..40_u64).map(|number| format!("/{number}")).collect();
    let expected = || names.iter().map(|name| (key(name).id(), digest)).collect();
    let (mut durable, mut undone): (Vec<String>, usize) = (Vec::new(), 0);
    for (number, name) in (0_u64..).zip(&names) {
        let held = on(&disk, dir.path(), 1000 * BLOCK);
        held.catalog.expect(expected());
        for name in &durable {
            assert_right(&held, name, true);
        }
        let length = 1 + number * 7919 % (4 * BLOCK);
        let planned = PlannedAsset {
            meta: meta(length),
            lifetime: Lifetime::immutable(UnixTime(1)),
            asked: held.catalog.purge_mark(),
        };
        let work = held.catalog.admit_planned(&key(name), planned).expect("room");
        let written = if number % 3 == 0 { length / 2 } else { length };
        let bytes = content(length);
        work.entry().writer(0).write_blocking(&bytes[..usize::try_from(written).expect("small")]).expect("written");
        // What is not whole is not published, whoever says so.
        held.catalog.publish(work.entry(), digest);
        assert_eq!(held.hit(name).is_some(), written == length);
        if number % 2 == 0 {
            assert!(held.catalog.flush(Duration::from_secs(10)));
            durable.extend((written == length).then(|| name.clone()));
        }
        drop(work);
        held.crash();
        undone += disk.cut_power();
    }
    let held = on(&disk, dir.path(), 1000 * BLOCK);
    held.catalog.expect(expected());
    let seen = names.iter().filter(|name| held.hit(name).is_some()).inspect(|name| assert_right(&held, name, true));
    assert!(seen.count() >= durable.len() && durable.len() > 10);
    assert!(undone > 0, "no power cut met anything that was not durable: nothing was tested");
}

/// Whatever is served of an asset is right; with `whole`, all of it has to be there.
pub(super) fn assert_right(held: &Held, name: &str, whole: bool) {
    let Some(entry) = held.hit(name) else {
        assert!(!whole, "{name} was durable and is gone");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (length, expected) = (entry.meta().length, content(entry.meta().length));
        let mut at = 0;
        while at < length {
            let block = ByteRange::new(at, (at + BLOCK).min(length)).expect("range");
            let here = match entry.demand(block) {
                Ok(_) if whole => entry.grown(at).await.expect("durable"),
                // Nobody fetches here: only what has to be verified comes.
                Ok(_) => entry.available(at),
                Err(err) => panic!("{name}: {err:?}"),
            };
            if here > 0 {
                let part = ByteRange::new(at, at + here).expect("range");
                let span = usize::try_from(at).expect("small")..usize::try_from(at + here).expect("small");
                assert_eq!(read(&entry, part).await, expected[span], "{name} at {at}");
            }
            at += BLOCK;
        }
    });
}
