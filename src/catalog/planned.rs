//! What fill takes in ahead of demand.
//!
//! expect (the manifest's digests) -> admit_planned (space for all of it at once) -> blocks -> digest compared -> publish
//!
//! An asset whose digest the manifest names is withheld until that digest was compared: the index does not find it, requests for it
//! pass through, and a worker that recalls it from before asks again. What is compared stays so over a restart; what was not is
//! withheld again before viewers are served.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    AdmitError, Catalog, Entry, Leaving, Lifetime, Meta, PurgeMark, Refusal,
    blocks::{BlockState, Blocks},
    entry::{Holding, Holds},
    persist::Record,
};
use crate::{
    asset::{AssetId, AssetKey, ByteRange, Sha256},
    storage::{AssetFile, HasFile as _},
};

/// SHA-256 digests of whole assets, as the manifest in force names them: about 60 bytes of memory for each.
#[derive(Clone, Debug, Default)]
pub struct ExpectedDigests(HashMap<AssetId, Sha256, foldhash::fast::RandomState>);

/// An asset that fill takes in ahead of demand.
#[derive(Clone, Debug)]
pub struct PlannedAsset {
    /// What it is.
    pub meta: Meta,
    /// Until when it is good.
    pub lifetime: Lifetime,
    /// When its source was asked.
    pub asked: PurgeMark,
}

/// A version that fill has in work: as long as this is held, it is not evicted for room.
#[derive(Debug)]
pub struct InWork(Arc<Entry>);

impl InWork {
    fn new(entry: &Arc<Entry>) -> Self {
        entry.add_writer();
        Self(Arc::clone(entry))
    }

    /// The version.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.0
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.0.drop_writer();
    }
}

impl FromIterator<(AssetId, Sha256)> for ExpectedDigests {
    fn from_iter<I: IntoIterator<Item = (AssetId, Sha256)>>(digests: I) -> Self {
        Self(digests.into_iter().collect())
    }
}

impl ExpectedDigests {
    /// The digest that `id` has to have.
    pub fn of(&self, id: &AssetId) -> Option<&Sha256> {
        self.0.get(id)
    }

    /// How many assets have one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no asset has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The assets that are withheld, and the digests they wait for.
#[derive(Debug, Default)]
pub(super) struct Planned {
    expected: ArcSwap<ExpectedDigests>,
    withheld: Mutex<HashMap<AssetKey, Withheld>>,
}

#[derive(Debug)]
struct Withheld {
    entry: Arc<Entry>,
    /// As it was before viewers were kept from it.
    lifetime: Lifetime,
}

impl Planned {
    /// Forgets a version that leaves the catalog.
    pub(super) fn let_go(&self, entry: &Arc<Entry>) {
        let mut withheld = self.withheld.lock();
        if withheld.get(entry.key()).is_some_and(|held| Arc::ptr_eq(&held.entry, entry)) {
            withheld.remove(entry.key());
        }
    }

    /// The versions that `wanted` says are.
    pub(super) fn all(&self, wanted: impl Fn(&AssetKey) -> bool) -> Vec<Arc<Entry>> {
        let withheld = self.withheld.lock();
        withheld.values().filter(|held| wanted(held.entry.key())).map(|held| Arc::clone(&held.entry)).collect()
    }

    fn find(&self, key: &AssetKey) -> Option<Arc<Entry>> {
        self.withheld.lock().get(key).map(|held| Arc::clone(&held.entry))
    }
}

/// How long a planned fill waits for room before it is told that there is none.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks.
const ROOM_PAUSE: Duration = Duration::from_millis(25);

impl Catalog {
    /// Puts the digests of a manifest in force. What is held and was not compared with them is withheld from now on; what is held of
    /// other content leaves; what no manifest asks a digest of any more is seen again. Blocks.
    pub fn expect(&self, expected: ExpectedDigests) {
        self.planned.expected.store(Arc::new(expected));
        let expected = self.planned.expected.load();
        for shelf in &self.shelves {
            let entries: Vec<_> = shelf.recency.lock().by_serial().into_iter().map(|(_, entry)| entry).collect();
            for entry in entries {
                let whole = shelf.whole.lock().get(&entry.serial()).copied();
                match (expected.of(&entry.id()), whole) {
                    (Some(digest), Some(whole)) if *digest == whole => {}
                    // Whole, and another asset than the one that is meant.
                    (Some(_), Some(_)) => self.leave(&entry, Leaving::Purged),
                    (Some(_), None) => self.withhold(&entry),
                    (None, _) => self.show(&entry),
                }
            }
        }
    }

    /// The digest that the manifest in force names for an asset.
    pub fn expected_digest(&self, key: &AssetKey) -> Option<Sha256> {
        let expected = self.planned.expected.load();
        if expected.is_empty() { None } else { expected.of(&key.id()).copied() }
    }

    /// Whether nobody may be served this asset from here: its digest was not compared yet.
    pub(super) fn is_withheld(&self, key: &AssetKey) -> bool {
        self.expected_digest(key).is_some_and(|_| self.held(key).is_none())
    }

    /// The version that fill has in work, or that is held: for fill, withheld ones included.
    pub fn held_or_withheld(&self, key: &AssetKey) -> Option<Arc<Entry>> {
        self.planned.find(key).or_else(|| self.held(key))
    }

    /// Assets withheld just now.
    pub fn withheld(&self) -> usize {
        self.planned.withheld.lock().len()
    }

    /// The digest of the whole, where it was compared.
    pub fn whole_digest(&self, entry: &Entry) -> Option<Sha256> {
        self.shelf(entry).whole.lock().get(&entry.serial()).copied()
    }

    /// Takes in an asset ahead of demand, with space for all of it. It is seen at once where the manifest names no digest of it. Blocks.
    ///
    /// # Errors
    /// There is no volume for it, or no room, or it was purged since its source was asked.
    pub fn admit_planned(&self, key: &AssetKey, asset: PlannedAsset) -> Result<InWork, AdmitError> {
        let PlannedAsset { mut meta, lifetime, asked } = asset;
        let id = key.id();
        let shelf = self.shelf_for(&id, meta.length)?;
        let naming = shelf.naming.read();
        let serial = shelf.serial.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let file = AssetFile::new(Arc::clone(&shelf.volume), serial, meta.length, 0);
        let count = shelf.volume.block_size().count(meta.length);
        let holding = Holding { blocks: Holds::Some(Blocks::new(count, BlockState::Torn)), used: self.clock.unix() };
        self.texts.share(&mut meta);
        let entry = Entry::new(key.clone(), meta, lifetime, file, (holding, self.home.clone()));
        entry.set_ahead();
        let work = InWork::new(&entry);
        // In the order of eviction before its file exists, so that nobody takes that for a leftover.
        shelf.recency.lock().insert(Arc::clone(&entry));
        drop(naming);
        if let Err(err) = self.reserve_planned(&entry, std::slice::from_ref(&(0..count))) {
            self.leave(&entry, Leaving::Evicted);
            return Err(err);
        }
        let expected = self.expected_digest(key).is_some();
        let taken_in = self.purges.unless_purged(asked, key, || {
            if !expected {
                return self.index.insert(&entry);
            }
            let withheld = Withheld { entry: Arc::clone(&entry), lifetime };
            self.planned.withheld.lock().insert(key.clone(), withheld).map(|before| before.entry)
        });
        let Some(before) = taken_in else {
            self.leave(&entry, Leaving::Purged);
            return Err(AdmitError::Purged);
        };
        self.record(&entry, Record::Asset(Arc::clone(&entry)));
        self.admissions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(before) = before {
            self.leave(&before, Leaving::Purged);
        }
        self.negative.forget(&id);
        Ok(work)
    }

    /// Reserves what a withheld version that was begun before still lacks, so that all of it fits. Blocks.
    ///
    /// # Errors
    /// There is no room.
    pub fn resume_planned(&self, entry: &Arc<Entry>) -> Result<InWork, AdmitError> {
        entry.set_ahead();
        let work = InWork::new(entry);
        if self.planned.find(entry.key()).is_none_or(|held| !Arc::ptr_eq(&held, entry)) {
            // Viewers may fetch blocks of it beside us: each is reserved as it is written.
            return Ok(work);
        }
        let runs = entry.missing();
        self.reserve_planned(entry, &runs)?;
        let mut open = entry.open();
        if let Some(open) = open.as_mut() {
            for block in runs.into_iter().flatten() {
                open.blocks.set(block, BlockState::Torn);
            }
        }
        Ok(work)
    }

    fn reserve_planned(&self, entry: &Arc<Entry>, runs: &[std::ops::Range<u32>]) -> Result<(), AdmitError> {
        let (size, length) = (entry.block_size(), entry.meta().length);
        let ranges =
            runs.iter().filter_map(|run| ByteRange::new(size.start_of(run.start), size.start_of(run.end).min(length)));
        let ranges: Vec<_> = ranges.collect();
        if ranges.is_empty() {
            return Ok(());
        }
        let file = entry.file();
        let reserve = |opened: &File, range: &ByteRange| -> io::Result<()> {
            let begun = Instant::now();
            loop {
                match file.reserve(opened, *range) {
                    Err(err) if err.kind() == io::ErrorKind::StorageFull && begun.elapsed() < ROOM_PATIENCE => {
                        // Exactly what is needed: the plan has said what has to go, and this only what a viewer took meanwhile.
                        self.make_room_for(file.volume(), range.len());
                        std::thread::park_timeout(ROOM_PAUSE);
                    }
                    done => return done,
                }
            }
        };
        let reserved =
            file.open_write(entry.id()).and_then(|opened| ranges.iter().try_for_each(|range| reserve(&opened, range)));
        file.settle();
        reserved.map_err(|err| {
            tracing::warn!(asset = %entry.key(), error = %err, "no room for a planned asset");
            AdmitError::NoRoom
        })
    }

    fn make_room_for(&self, volume: &crate::storage::Volume, bytes: u64) {
        let shelf = &self.shelves[usize::from(volume.index())];
        self.evict_until(shelf, volume.capacity().saturating_sub(bytes));
    }

    /// The digest of the whole was compared and is right: from now on it is found, and stays good as long as it is held. Blocks.
    pub fn publish(&self, entry: &Arc<Entry>, digest: Sha256) {
        if entry.is_withdrawn() || !entry.is_sealed() {
            return;
        }
        self.shelf(entry).whole.lock().insert(entry.serial(), digest);
        self.record(entry, Record::Whole { serial: entry.serial(), digest: Some(digest) });
        if let Some(held) = self.planned.withheld.lock().get_mut(entry.key())
            && Arc::ptr_eq(&held.entry, entry)
        {
            held.lifetime = Lifetime::immutable(held.lifetime.born);
        }
        entry.set_lifetime(Lifetime::immutable(entry.lifetime().born));
        self.refreshed(entry);
        self.show(entry);
    }

    /// What was fetched is not what the manifest means: it leaves, unseen. Blocks.
    pub fn discard(&self, entry: &Arc<Entry>) {
        self.leave(entry, Leaving::Purged);
    }

    /// A block that fill has written is not what the manifest means. Blocks.
    pub fn discard_block(&self, entry: &Arc<Entry>, block: u32) {
        self.condemn(entry, block);
    }

    /// Pins these versions and no others, so that they are not evicted for room. Blocks.
    pub fn pin(&self, pinned: impl Fn(&AssetKey) -> bool) {
        for shelf in &self.shelves {
            let entries = shelf.recency.lock().by_serial();
            for (serial, entry) in entries {
                let pinned = pinned(entry.key());
                if shelf.recency.lock().pin(&entry, pinned) {
                    self.record(&entry, Record::Pinned { serial, pinned });
                }
            }
        }
    }

    /// Evicts this very version by plan, unless somebody reads it just now. Tells how many bytes come back. Blocks.
    pub fn evict_planned(&self, key: &AssetKey, serial: u64) -> u64 {
        let found =
            [self.planned.find(key), self.held(key)].into_iter().flatten().find(|entry| entry.serial() == serial);
        let Some(entry) = found.filter(|entry| !entry.is_leased() && !entry.is_filling()) else { return 0 };
        let bytes = entry.reserved();
        self.leave(&entry, Leaving::Evicted);
        bytes
    }

    /// A block of it was lost: the digest of the whole has to be compared again, before it is served again where one is expected.
    pub(super) fn no_longer_whole(&self, entry: &Arc<Entry>) {
        if self.shelf(entry).whole.lock().remove(&entry.serial()).is_some() {
            self.record_if_room(entry, Record::Whole { serial: entry.serial(), digest: None });
            if self.planned.expected.load().of(&entry.id()).is_some() {
                self.withhold(entry);
            }
        }
    }

    /// Keeps viewers from it. Responses that have begun go on.
    fn withhold(&self, entry: &Arc<Entry>) {
        let mut withheld = self.planned.withheld.lock();
        if entry.is_withdrawn() || withheld.contains_key(entry.key()) || !self.index.remove(entry) {
            return;
        }
        let lifetime = entry.lifetime();
        withheld.insert(entry.key().clone(), Withheld { entry: Arc::clone(entry), lifetime });
        // Workers that recall it look into the catalog for what is stale.
        entry.set_lifetime(Lifetime { fresh_until: crate::asset::UnixTime(0), ..lifetime });
        self.settle_held(entry);
    }

    /// Lets viewers find it, if it was withheld.
    fn show(&self, entry: &Arc<Entry>) {
        let before = {
            let mut withheld = self.planned.withheld.lock();
            if withheld.get(entry.key()).is_none_or(|held| !Arc::ptr_eq(&held.entry, entry)) {
                return;
            }
            let Some(held) = withheld.remove(entry.key()) else { return };
            entry.set_lifetime(held.lifetime);
            self.index.insert(entry)
        };
        if let Some(before) = before {
            self.leave(&before, Leaving::Purged);
        }
        if entry.is_withdrawn() {
            self.index.remove(entry);
        }
        self.settle_held(entry);
    }
}

impl Entry {
    /// Runs of blocks that are neither here nor reserved.
    fn missing(&self) -> Vec<std::ops::Range<u32>> {
        let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
        let open = self.open();
        let Some(open) = open.as_ref() else { return runs };
        for block in 0..self.block_size().count(self.meta().length) {
            if open.blocks.state(block) == BlockState::Missing {
                match runs.last_mut() {
                    Some(run) if run.end == block => run.end = block + 1,
                    _ => runs.push(block..block + 1),
                }
            }
        }
        runs
    }

    /// Marks the missing blocks from `first` on as wanted, up to one that is not missing and to `max` of them, and gives them back. They
    /// have to be written or abandoned.
    pub fn claim_run(&self, first: u32, max: u32) -> std::ops::Range<u32> {
        let mut open = self.open();
        let Some(open) = open.as_mut() else { return first..first };
        let mut end = first;
        while end < self.block_size().count(self.meta().length).min(first.saturating_add(max)) {
            let state = open.blocks.state(end);
            if !matches!(state, BlockState::Missing | BlockState::Torn) {
                break;
            }
            open.blocks.set(end, BlockState::Wanted { reserved: state.is_reserved() });
            end += 1;
        }
        first..end
    }

    /// Whether a block is here, compared with its own digest where that is due, once whoever brings it now has come to an end.
    ///
    /// # Errors
    /// It cannot be compared now, or the entry was withdrawn.
    pub async fn has_block(self: &Arc<Self>, block: u32) -> Result<bool, Refusal> {
        let mut asked = false;
        loop {
            let (verify, changed) = {
                let mut open = self.open();
                let Some(open) = open.as_mut() else { return Ok(true) };
                if self.is_withdrawn() {
                    return Err(Refusal::Withdrawn);
                }
                let changed = Arc::clone(&open.grown).notified_owned();
                match open.blocks.state(block) {
                    BlockState::Present => return Ok(true),
                    BlockState::Missing | BlockState::Torn => return Ok(false),
                    BlockState::Unverified if asked => return Err(open.failure),
                    BlockState::Unverified => {
                        open.blocks.set(block, BlockState::Verifying);
                        (true, changed)
                    }
                    BlockState::Verifying | BlockState::Wanted { .. } | BlockState::Filling { .. } => (false, changed),
                }
            };
            if verify {
                asked = true;
                self.catalog().ok_or(Refusal::Stopping)?.verify(self, block)?;
            }
            changed.await;
        }
    }

    /// Reads what is here back from the disk, past the mapping, and lets go of the pages. Blocks.
    ///
    /// # Errors
    /// As of the disk; the entry leaves the catalog where it cannot be read.
    pub fn read_back(self: &Arc<Self>, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.file().open_read(self.id()).and_then(|file| {
            let disk = self.file().volume().disk();
            disk.read_at(&file, buffer, offset)?;
            if self.leaves_memory() {
                disk.drop_pages(&file, offset, buffer.len() as u64);
            }
            Ok(())
        });
        if let (Err(err), Some(catalog)) = (&read, self.catalog()) {
            catalog.mapping_failed(self, err);
        }
        read
    }
}
