//! What the appliance holds, and what it has been asked for and lacks.
//!
//! lookup -> hit: an [`Entry`], of which a [`Lease`] gives the bytes
//!        -> miss: a demand on the board, answered by fill through `admit` and [`AssetWriter`]
//! touch -> recency -> eviction; block whole -> persist -> database; unclean stop -> verify
//!
//! The hot index lives in memory, lock-free for readers; each volume's database is written behind. The catalog never talks to
//! a source and never to a viewer.

mod asker;
mod blocks;
mod config;
mod database;
mod demand;
mod entry;
#[cfg(test)]
mod fault_tests;
mod holdings;
mod housekeeping;
mod index;
mod meta;
mod negative;
mod open;
mod persist;
mod planned;
#[cfg(test)]
mod planned_tests;
#[cfg(test)]
mod power_tests;
mod purge;
#[cfg(test)]
mod purge_tests;
mod recency;
mod refusal;
mod rendezvous;
#[cfg(test)]
mod tests;
mod verify;
mod view;
mod writer;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc::SyncSender,
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use parking_lot::{Mutex, RwLock};

pub use asker::Asker;
pub use config::{Admission, Config};
pub use demand::{
    Demand, Demands, Discovered, Discovery, PassHead, PassThrough, PassThroughDemand, Revalidation, Want,
};
pub use entry::{Entry, Lease};
pub use holdings::{Change, Holdings};
pub use meta::{Lifetime, Meta, SharedText};
pub use open::OpenError;
pub use planned::{ExpectedDigests, InWork, PlannedAsset};
pub use purge::{PurgeError, PurgeMark, Purged, Target};
pub use refusal::Refusal;
pub use view::{CatalogView, HeldAsset, ViewError, VolumeView};
pub use writer::{AssetWriter, WriteError};

use crate::{
    asset::{AssetId, AssetKey, Sha256, UnixTime},
    storage::{AssetFile, HasFile as _, Mappings, MappingsFull, Volume, VolumeFailure, VolumeState, is_shortage},
    sys::Clock,
    telemetry::metrics::{Metrics, VolumeMetrics},
};
use blocks::{BlockState, Blocks};
use demand::Board;
use entry::{Holding, Holds, Home};
use index::Index;
use meta::Texts;
use negative::Negative;
use persist::Record;
use purge::Purges;
use recency::Recency;

/// A block that a viewer waits for and whose digest has to be compared first.
type Unverified = (Arc<Entry>, u32);

/// The assets this appliance holds, and the board for those it lacks.
#[derive(Debug)]
pub struct Catalog {
    config: ArcSwap<Config>,
    index: Index,
    shelves: Vec<Shelf>,
    mappings: Mappings,
    board: Arc<Board>,
    negative: Arc<Negative>,
    planned: planned::Planned,
    touches: ArrayQueue<Arc<Entry>>,
    /// Counts admissions: a use after another asset came in changes the order of eviction, one before does not.
    admissions: AtomicU32,
    clock: Clock,
    metrics: Arc<Metrics>,
    threads: Mutex<housekeeping::Threads>,
    texts: Texts,
    told: holdings::Told,
    home: Home,
    purges: Purges,
}

/// One volume's part of the catalog.
#[derive(Debug)]
struct Shelf {
    volume: Arc<Volume>,
    recency: Mutex<Recency>,
    serial: AtomicU64,
    /// Held while a version gets its number, until it is in the order of eviction.
    naming: RwLock<()>,
    records: SyncSender<Record>,
    verify: Mutex<Option<SyncSender<Unverified>>>,
    metrics: Arc<VolumeMetrics>,
    /// Versions whose whole digest was compared, by their serial number.
    whole: Mutex<HashMap<u64, Sha256>>,
}

/// What the catalog knows of a key.
#[derive(Debug)]
pub enum Lookup {
    /// Held and fresh.
    Hit(Arc<Entry>),
    /// Held, but its source has to be asked whether it is still good.
    Stale(Arc<Entry>),
    /// A source said a moment ago that there is none.
    Negative(Refusal),
    /// Unknown.
    Miss,
}

/// Why an asset is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// No volume is large enough for it.
    #[error("the asset is larger than any volume")]
    TooLarge,
    /// Every volume has failed.
    #[error("no volume is in use")]
    NoVolume,
    /// The manifest in force names its digest: it is taken in by fill alone, and seen once that was compared.
    #[error("it is served once its digest was compared")]
    Withheld,
    /// There is no room for all of it.
    #[error("there is no room for it")]
    NoRoom,
    /// It was purged after its source was asked.
    #[error("the asset was purged meanwhile")]
    Purged,
}

/// Why an entry leaves the catalog; the label of the metric that counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// For room.
    Evicted,
    /// Changed or gone at its source, or by order.
    Purged,
    /// Could not be read, or its volume failed.
    Lost,
}

impl Catalog {
    /// What is known of `key`. Takes no lock on a hit; notes the use.
    pub fn lookup(&self, key: &AssetKey) -> Lookup {
        match self.held(key) {
            Some(entry) => {
                let now = self.clock.unix();
                self.note_use(&entry, now);
                if now < entry.lifetime().fresh_until { Lookup::Hit(entry) } else { Lookup::Stale(entry) }
            }
            None => self.negative.recall(&key.id()).map_or(Lookup::Miss, |refusal| {
                self.metrics.negative_hits.inc();
                Lookup::Negative(refusal)
            }),
        }
    }

    /// Whether an entry found before would be found again, as [`Lookup::Hit`]: neither withdrawn nor stale. Takes no lock; notes the use
    /// of one that would.
    pub fn use_if_fresh(&self, entry: &Arc<Entry>, now: UnixTime) -> bool {
        let fresh = !entry.is_withdrawn() && now < entry.lifetime().fresh_until;
        if fresh {
            self.note_use(entry, now);
        }
        fresh
    }

    fn note_use(&self, entry: &Arc<Entry>, now: UnixTime) {
        if entry.touch(now, self.admissions.load(Ordering::Relaxed)) && self.touches.push(Arc::clone(entry)).is_err() {
            self.metrics.touches_dropped.inc();
        }
    }

    /// The entry for `key`, without noting a use.
    pub fn held(&self, key: &AssetKey) -> Option<Arc<Entry>> {
        self.index.find(key)
    }

    /// Asks fill about an unknown asset; one question for all who ask at the same time.
    ///
    /// # Errors
    /// No source has it or could be asked, or too much is waiting.
    pub async fn discover(&self, key: &AssetKey, want: Want) -> Result<Discovered, Refusal> {
        self.discover_for(key, want, Asker::Viewer).await
    }

    /// As [`Catalog::discover`], for somebody who may be no viewer.
    ///
    /// # Errors
    /// As there.
    pub async fn discover_for(&self, key: &AssetKey, want: Want, asker: Asker) -> Result<Discovered, Refusal> {
        if self.is_withheld(key) {
            // A peer compares the digest itself: what is on its way here need not come from outside for it once more.
            let for_peer = self.held_or_withheld(key).filter(|_| asker.is_peer());
            return Ok(for_peer.map_or(Discovered::PassThrough, Discovered::Entry));
        }
        if self.config.load().admission == Admission::SecondRequest && !self.negative.seen_before(key.id()) {
            return Ok(Discovered::PassThrough);
        }
        let known = || {
            let held = self.held(key).map(|entry| Ok(Discovered::Entry(entry)));
            held.or_else(|| self.negative.recall(&key.id()).map(Err))
        };
        self.board.discover((key, want, asker), known, &self.metrics.collapsed_demands).await
    }

    /// Asks fill whether a stale version is still good; one question for all who ask at the same time. Gives the same entry,
    /// refreshed, or its successor.
    ///
    /// # Errors
    /// The asset is gone, or no source could be asked: see [`Catalog::may_serve_stale`].
    pub async fn revalidate(&self, entry: &Arc<Entry>) -> Result<Arc<Entry>, Refusal> {
        self.revalidate_for(entry, Asker::Viewer).await
    }

    /// As [`Catalog::revalidate`], for somebody who may be no viewer.
    ///
    /// # Errors
    /// As there.
    pub async fn revalidate_for(&self, entry: &Arc<Entry>, asker: Asker) -> Result<Arc<Entry>, Refusal> {
        // Sources that failed a moment ago are not waited for by every viewer.
        if let Some(refusal) = self.negative.recall(&entry.id()) {
            return Err(refusal);
        }
        self.board.revalidate(entry, asker).await
    }

    /// Whether a stale version may be served while no source answers.
    pub fn may_serve_stale(&self, entry: &Entry) -> bool {
        self.clock.unix() < entry.lifetime().stale_until
    }

    /// The entry that has taken the place of a withdrawn one, if it holds the very same version: a response that has begun can go
    /// on from it. `want` is what the response still lacks.
    ///
    /// # Errors
    /// The version is another one or cannot be told from another, or the asset is not to be had.
    pub async fn successor(&self, gone: &Entry, want: Want) -> Result<Arc<Entry>, Refusal> {
        let found = match self.lookup(gone.key()) {
            Lookup::Hit(entry) | Lookup::Stale(entry) => entry,
            Lookup::Negative(refusal) => return Err(refusal),
            Lookup::Miss => match self.discover(gone.key(), want).await? {
                Discovered::Entry(entry) => entry,
                Discovered::PassThrough => return Err(Refusal::Withdrawn),
            },
        };
        let (then, now) = (gone.meta(), found.meta());
        let same = then.length == now.length
            && then.validators.allow_combining()
            && then.validators == now.validators
            && then.content_encoding == now.content_encoding;
        if same { Ok(found) } else { Err(Refusal::Withdrawn) }
    }

    /// Asks fill for a response that is not stored.
    ///
    /// # Errors
    /// No source has it or could be asked, or too much is waiting.
    pub async fn pass_through(&self, key: &AssetKey, want: Want) -> Result<PassThrough, Refusal> {
        self.pass_through_for(key, want, Asker::Viewer).await
    }

    /// As [`Catalog::pass_through`], for somebody who may be no viewer.
    ///
    /// # Errors
    /// As there.
    pub async fn pass_through_for(&self, key: &AssetKey, want: Want, asker: Asker) -> Result<PassThrough, Refusal> {
        self.metrics.pass_throughs.inc();
        self.board.pass_through(key, want, asker).await
    }

    /// Takes in a version of an asset that nobody can have purged meanwhile, still without bytes. An older version of the key leaves.
    ///
    /// # Errors
    /// There is no volume for it.
    pub fn admit(&self, key: &AssetKey, meta: Meta, lifetime: Lifetime) -> Result<Arc<Entry>, AdmitError> {
        self.admit_asked(self.purge_mark(), key, meta, lifetime)
    }

    /// As [`Catalog::admit`], of what a source was asked for at `asked`.
    ///
    /// # Errors
    /// There is no volume for it, or it was purged since.
    pub fn admit_asked(
        &self,
        asked: PurgeMark,
        key: &AssetKey,
        mut meta: Meta,
        lifetime: Lifetime,
    ) -> Result<Arc<Entry>, AdmitError> {
        if self.is_withheld(key) {
            return Err(AdmitError::Withheld);
        }
        let shelf = self.shelf_for(&key.id(), meta.length)?;
        let naming = shelf.naming.read();
        let serial = shelf.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let file = AssetFile::new(Arc::clone(&shelf.volume), serial, meta.length, 0);
        let blocks = Blocks::new(shelf.volume.block_size().count(meta.length), BlockState::Missing);
        let holding = Holding { blocks: Holds::Some(blocks), used: self.clock.unix() };
        self.texts.share(&mut meta);
        let entry = Entry::new(key.clone(), meta, lifetime, file, (holding, self.home.clone()));
        let inserted = self.purges.unless_purged(asked, key, || {
            shelf.recency.lock().insert(Arc::clone(&entry));
            self.index.insert(&entry)
        });
        drop(naming);
        let before = inserted.ok_or(AdmitError::Purged)?;
        if entry.is_sealed() {
            self.record_if_room(&entry, Record::Asset(Arc::clone(&entry)));
        }
        self.admissions.fetch_add(1, Ordering::Relaxed);
        if let Some(before) = before {
            self.leave_later(&before, Leaving::Purged);
        }
        self.negative.forget(&key.id());
        if entry.is_sealed() {
            self.settle_held(&entry);
        }
        Ok(entry)
    }

    /// The volume for an asset: by rendezvous hashing weighted by capacity.
    fn shelf_for(&self, id: &AssetId, length: u64) -> Result<&Shelf, AdmitError> {
        let serving = || self.shelves.iter().filter(|shelf| shelf.volume.state() == VolumeState::Serving);
        if serving().next().is_none() {
            return Err(AdmitError::NoVolume);
        }
        let room_for = |shelf: &&Shelf| {
            let most =
                u128::from(shelf.volume.capacity()) * u128::from(self.config.load().watermark_high_percent) / 100;
            u128::from(length) <= most && length <= shelf.volume.block_size().length_max()
        };
        let score = |shelf: &&Shelf| rendezvous::score(id, shelf.volume.id(), shelf.volume.capacity());
        serving().filter(room_for).max_by(|a, b| score(a).total_cmp(&score(b))).ok_or(AdmitError::TooLarge)
    }

    /// Takes a version out of the catalog: it changed or is gone at its source, or an operator said so. New requests do not find
    /// it any more; leases go on; its file is removed soon.
    pub fn forget(&self, entry: &Arc<Entry>) {
        self.leave_later(entry, Leaving::Purged);
    }

    /// Every entry goes through here when it leaves: out of the index, out of service, off the disk, out of the database. Blocks.
    fn leave(&self, entry: &Arc<Entry>, why: Leaving) {
        if self.take_out(entry) {
            self.remove(entry, why);
        }
    }

    /// As `leave`, but what blocks is done on another thread where the caller must not block.
    fn leave_later(&self, entry: &Arc<Entry>, why: Leaving) {
        if !self.take_out(entry) {
            return;
        }
        match (tokio::runtime::Handle::try_current(), self.home.catalog()) {
            (Ok(runtime), Some(catalog)) => {
                let entry = Arc::clone(entry);
                drop(runtime.spawn_blocking(move || catalog.remove(&entry, why)));
            }
            _ => self.remove(entry, why),
        }
    }

    fn take_out(&self, entry: &Arc<Entry>) -> bool {
        if !self.index.remove(entry) {
            tracing::trace!(asset = %entry.key(), "a later version is in the index");
        }
        self.planned.let_go(entry);
        self.shelf(entry).recency.lock().remove(entry);
        let withdrawn = entry.withdraw();
        if withdrawn {
            self.settle_held(entry);
        }
        withdrawn
    }

    fn remove(&self, entry: &Arc<Entry>, why: Leaving) {
        self.remove_file(entry, why);
        // A lost record leaves a row without a file, which the next start finds out; waiting here could wait for ourselves.
        self.record_if_room(entry, Record::Forget { serial: entry.serial() });
    }

    fn remove_file(&self, entry: &Arc<Entry>, why: Leaving) {
        let shelf = self.shelf(entry);
        shelf.whole.lock().remove(&entry.serial());
        let freed = match why {
            // A failed volume is not written to any more, not even to unlink.
            Leaving::Lost if shelf.volume.state() == VolumeState::Failed => entry.reserved(),
            _ => entry.file().evict(entry.id()).unwrap_or_else(|err| {
                tracing::warn!(asset = %entry.key(), error = %err, "file of an evicted asset could not be removed");
                entry.reserved()
            }),
        };
        let counter = match why {
            Leaving::Evicted => &shelf.metrics.evicted_assets,
            Leaving::Purged => &shelf.metrics.purged_assets,
            Leaving::Lost => &shelf.metrics.lost_assets,
        };
        counter.inc();
        if why == Leaving::Evicted {
            shelf.metrics.evicted_bytes.add(freed);
        }
    }

    /// Evicts from `volume` until `bytes` more fit, as far as there is anything to evict. Blocks.
    fn make_room(&self, volume: &Volume, bytes: u64) {
        let shelf = &self.shelves[usize::from(volume.index())];
        // Twice what is needed: the next blocks of the same fill should not come back for each one.
        let wanted = bytes.saturating_mul(2);
        let by_capacity = volume.capacity().saturating_sub(wanted);
        if volume.kept() > by_capacity {
            return self.evict_until(shelf, by_capacity);
        }
        // The capacity is not used up. Either space is on its way back, or the disk is full before its time.
        if volume.used() == volume.kept() {
            self.evict_until(shelf, volume.kept().saturating_sub(wanted));
        }
    }

    fn evict_until(&self, shelf: &Shelf, goal: u64) {
        self.sort_in_touches();
        while shelf.volume.kept() > goal {
            let victim = shelf.recency.lock().pop_victim();
            let Some(victim) = victim else { return };
            self.leave(&victim, Leaving::Evicted);
        }
    }

    fn shelf(&self, entry: &Entry) -> &Shelf {
        &self.shelves[usize::from(entry.file().volume().index())]
    }

    /// Hands a record to the volume's writer; waits while too many are waiting already, so that filling goes no faster than
    /// the disk. Called only where blocking is allowed.
    fn record(&self, entry: &Entry, record: Record) {
        let shelf = self.shelf(entry);
        if shelf.records.send(record).is_err() {
            tracing::debug!(asset = %entry.key(), "record after the catalog was closed");
        }
    }

    /// Hands on a record whose loss costs only work, without waiting.
    fn record_if_room(&self, entry: &Entry, record: Record) {
        if self.shelf(entry).records.try_send(record).is_err() {
            tracing::debug!(asset = %entry.key(), "a change was not recorded: the disk is behind");
        }
    }

    fn refreshed(&self, entry: &Entry) {
        self.record_if_room(entry, Record::Lifetime { serial: entry.serial(), lifetime: entry.lifetime() });
    }

    fn board(&self) -> &Board {
        &self.board
    }

    fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Queues a block for the verifier. Does not wait.
    fn verify(&self, entry: &Arc<Entry>, block: u32) -> Result<(), Refusal> {
        let queued = self.shelf(entry).verify.lock().as_ref().map(|verify| verify.try_send((Arc::clone(entry), block)));
        let refused = match queued {
            Some(Ok(())) => return Ok(()),
            Some(Err(_)) => Refusal::Busy,
            None => Refusal::Stopping,
        };
        entry.not_verified(block, refused);
        Err(refused)
    }

    fn condemn(&self, entry: &Arc<Entry>, block: u32) {
        entry.condemn(block);
        self.no_longer_whole(entry);
        self.record(entry, Record::Condemned { serial: entry.serial(), block });
    }

    fn mapping_failed(&self, entry: &Arc<Entry>, err: &io::Error) {
        let full = err.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<MappingsFull>);
        if full || is_shortage(err) {
            tracing::warn!(error = %err, "asset cannot be mapped now");
        } else {
            self.read_failed(entry, err);
        }
    }

    /// A read of `entry` failed: the entry leaves, its volume counts the error and may fail.
    fn read_failed(&self, entry: &Arc<Entry>, err: &io::Error) {
        if entry.is_withdrawn() {
            return;
        }
        if err.kind() == io::ErrorKind::NotFound {
            // Evicted just before a crash, before that was recorded; or somebody has removed it.
            tracing::warn!(asset = %entry.key(), "file of an asset is gone; the asset is dropped");
        } else {
            tracing::error!(asset = %entry.key(), error = %err, "asset cannot be read and is dropped");
        }
        let shelf = self.shelf(entry);
        shelf.metrics.read_errors.inc();
        // A file that somebody removed is the file's loss, not the disk's.
        if !matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
            shelf.volume.read_failed();
        }
        self.leave_later(entry, Leaving::Lost);
    }

    fn write_failed(&self, entry: &Entry, err: &io::Error) {
        self.shelf(entry).volume.fail(VolumeFailure::Write(err.to_string()));
    }

    /// Makes everything that is whole now durable, within `patience`. Tells whether all volumes did.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = std::time::Instant::now() + patience;
        let flushed = |shelf: &Shelf| {
            let (done, wait) = std::sync::mpsc::sync_channel(1);
            shelf.records.send(Record::Flush(done)).is_ok()
                && wait.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())).is_ok()
        };
        self.shelves.iter().map(flushed).fold(true, |all, one| all & one)
    }

    /// The volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.shelves.iter().map(|shelf| &shelf.volume)
    }

    /// Assets held.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// Files mapped just now.
    pub fn mapped(&self) -> usize {
        self.mappings.open()
    }

    /// Demands that wait for fill.
    pub fn demands_queued(&self) -> usize {
        self.board.queued()
    }
}
