//! One version of an asset: what it is, which blocks of it are here, and who waits for more.

use std::{
    ops::Range,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{
    Asker, Catalog, Lifetime, Meta, Refusal,
    blocks::{BlockState, Blocks},
    holdings::Counted,
    meta::LifetimeCell,
    recency::NOWHERE,
    writer::AssetWriter,
};
use crate::{
    asset::{AssetId, AssetKey, BlockSize, ByteRange, UnixTime},
    storage::{AssetFile, ColdSlice, HasFile, Mapping, ReadError},
};

/// One version of an asset.
///
/// Hot and sealed, it is read without a lock; while blocks are missing, a lock guards which. It leaves the catalog when it is
/// evicted, purged or replaced; leases taken before go on reading it.
#[derive(Debug)]
pub struct Entry {
    key: AssetKey,
    meta: Meta,
    lifetime: LifetimeCell,
    file: AssetFile,
    state: AtomicU8,
    /// Whether it was told of as held; guarded by the lock of what waits to be told.
    counted: Counted,
    /// Seconds since 1970 of the last touch that was noted, so that hits in the same second need not be.
    touched: AtomicU64,
    /// How many assets had been admitted at that touch, in the lower half of the count: only another one matters.
    touched_at: AtomicU32,
    /// Where it stands in its volume's order of eviction; guarded by the lock of that.
    place: AtomicU32,
    writers: AtomicU32,
    /// Fetched ahead of demand: its pages are let go of once they are durable, so that it pushes nothing out of memory.
    ahead: AtomicBool,
    /// `None` when all of it may be served, and after an unclean stop until somebody asks for a block: see `Entry::open`.
    open: Mutex<Option<Box<Open>>>,
    home: Home,
}

/// What is kept while not every block may be served.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) blocks: Blocks,
    pub(super) grown: Arc<Notify>,
    pub(super) failure: Refusal,
}

impl Open {
    fn new(blocks: Blocks) -> Box<Self> {
        Box::new(Self { blocks, grown: Arc::default(), failure: Refusal::SourceFailed })
    }
}

const OPEN: u8 = 0;
const SEALED: u8 = 1;
const WITHDRAWN: u8 = 2;
/// Withdrawn when it was sealed: whoever holds a lease may read all of it.
const WITHDRAWN_SEALED: u8 = 3;

/// What a new entry begins with.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) blocks: Holds,
    pub(super) used: UnixTime,
}

/// What is here of a new entry.
#[derive(Debug)]
pub(super) enum Holds {
    /// Everything.
    All,
    /// Everything, but no digest has been compared since an unclean stop.
    AllUnverified,
    /// Some blocks, or none.
    Some(Blocks),
}

/// The catalog an entry belongs to, once it stands: entries are read from disk before.
#[derive(Clone, Debug, Default)]
pub(super) struct Home(Arc<OnceLock<Weak<Catalog>>>);

impl Home {
    /// The catalog, while it is there.
    pub(super) fn catalog(&self) -> Option<Arc<Catalog>> {
        self.0.get()?.upgrade()
    }

    /// Called once, when the catalog stands.
    pub(super) fn settle(&self, catalog: &Arc<Catalog>) {
        self.0.get_or_init(|| Arc::downgrade(catalog));
    }
}

/// What a writer may do with the block it has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeginBlock {
    /// Write it; its space is, or is not, reserved already.
    Write { reserved: bool },
    /// It is here, or somebody else writes it.
    Skip,
    /// The entry is withdrawn.
    Withdrawn,
}

impl Entry {
    pub(super) fn new(
        key: AssetKey,
        meta: Meta,
        lifetime: Lifetime,
        file: AssetFile,
        (holding, home): (Holding, Home),
    ) -> Arc<Self> {
        let (sealed, open) = match holding.blocks {
            Holds::All => (true, None),
            Holds::AllUnverified => (meta.length == 0, None),
            Holds::Some(blocks) if blocks.all_present() => (true, None),
            Holds::Some(blocks) => (false, Some(Open::new(blocks))),
        };
        Arc::new(Self {
            key,
            meta,
            lifetime: LifetimeCell::new(lifetime),
            file,
            state: AtomicU8::new(if sealed { SEALED } else { OPEN }),
            counted: Counted::default(),
            touched: AtomicU64::new(holding.used.0),
            touched_at: AtomicU32::new(0),
            place: AtomicU32::new(NOWHERE),
            writers: AtomicU32::new(0),
            ahead: AtomicBool::new(false),
            open: Mutex::new(open),
            home,
        })
    }

    /// What it is called.
    pub fn key(&self) -> &AssetKey {
        &self.key
    }

    /// Hash of its key. Computed each time.
    pub fn id(&self) -> AssetId {
        self.key.id()
    }

    /// What it is.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Until when it is good.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime.load()
    }

    /// Seconds since its source made the response that is stored (RFC 9111, 4.2.3): the `Age` header.
    pub fn age(&self, now: UnixTime) -> u64 {
        now.since(self.lifetime.load().born)
    }

    /// Whether every block may be served.
    pub fn is_sealed(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), SEALED | WITHDRAWN_SEALED)
    }

    /// Whether it is in the catalog with every block, compared or not yet.
    pub(super) fn is_whole(&self) -> bool {
        let open = self.open.lock();
        match self.state.load(Ordering::Acquire) {
            OPEN => open.as_ref().is_none_or(|open| open.blocks.all_here()),
            state => state == SEALED,
        }
    }

    pub(super) fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Whether it has left the catalog.
    pub fn is_withdrawn(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), WITHDRAWN | WITHDRAWN_SEALED)
    }

    /// Number of this version on its volume.
    pub fn serial(&self) -> u64 {
        self.file.serial()
    }

    /// Unit in which it is filled.
    pub fn block_size(&self) -> BlockSize {
        self.file.volume().block_size()
    }

    /// Bytes of the asset that are reserved on disk.
    pub fn reserved(&self) -> u64 {
        self.file.reserved()
    }

    /// Contiguous bytes that may be served from `offset` on; for a large part still being filled, perhaps less than there are.
    pub fn available(&self, offset: u64) -> u64 {
        let length = self.meta.length;
        if self.is_sealed() {
            return length.saturating_sub(offset);
        }
        let open = self.open();
        open.as_ref()
            .map_or(length.saturating_sub(offset), |open| open.blocks.available(offset, length, self.block_size()))
    }

    /// Registers what `range` lacks: blocks that nobody has asked for go to fill, unverified ones to the verifier, the rest is on
    /// its way already. Returns whether something had to be fetched or waited for. Does not wait.
    ///
    /// # Errors
    /// Too much is waiting, or the entry is withdrawn.
    pub fn demand(self: &Arc<Self>, range: ByteRange) -> Result<bool, Refusal> {
        self.demand_for(range, &Asker::Viewer)
    }

    /// As [`Entry::demand`], for somebody who may be no viewer.
    ///
    /// # Errors
    /// As there.
    pub fn demand_for(self: &Arc<Self>, range: ByteRange, asker: &Asker) -> Result<bool, Refusal> {
        if self.is_sealed() {
            return Ok(false);
        }
        let catalog = self.catalog().ok_or(Refusal::Stopping)?;
        let wanted = {
            let mut open = self.open();
            let Some(open) = open.as_mut() else { return Ok(false) };
            let blocks = self.block_size().blocks_of(range);
            if self.is_withdrawn() {
                return Err(Refusal::Withdrawn);
            }
            open.blocks.want(blocks)
        };
        let mut refused = Ok(());
        for run in &wanted.fetch {
            if refused.is_ok() {
                refused = catalog.board().fetch(self, run.clone(), asker.clone());
            }
            if let Err(why) = refused {
                self.abandon(run.clone(), why);
            }
        }
        for block in &wanted.verify {
            refused = refused.and(catalog.verify(self, *block));
        }
        refused?;
        Ok(wanted.waiting || !wanted.fetch.is_empty() || !wanted.verify.is_empty())
    }

    /// Waits until at least one byte from `offset` on may be served; tells how many may be.
    ///
    /// # Errors
    /// Nobody will bring the byte: the fetch failed for good, nobody demanded it, or the entry was withdrawn.
    pub async fn grown(self: &Arc<Self>, offset: u64) -> Result<u64, Refusal> {
        loop {
            let grown = {
                let open = self.open();
                let Some(open) = open.as_ref() else { return Ok(self.meta.length.saturating_sub(offset)) };
                let available = open.blocks.available(offset, self.meta.length, self.block_size());
                if available > 0 || offset >= self.meta.length {
                    return Ok(available);
                }
                if self.is_withdrawn() {
                    return Err(Refusal::Withdrawn);
                }
                match open.blocks.state(self.block_size().block_of(offset)) {
                    BlockState::Missing | BlockState::Torn | BlockState::Unverified => return Err(open.failure),
                    _ => Arc::clone(&open.grown).notified_owned(),
                }
            };
            grown.await;
        }
    }

    /// A lease, if the file is mapped. Takes no lock and makes no system call.
    pub fn lease_now(self: &Arc<Self>) -> Option<Lease> {
        Some(Lease { mapping: self.file.mapped()?, entry: Arc::clone(self) })
    }

    /// A lease; maps the file where needed, on a thread that may block.
    ///
    /// # Errors
    /// The file cannot be opened or mapped. An entry whose file is gone is withdrawn: ask the catalog again.
    pub async fn lease(self: &Arc<Self>) -> Result<Lease, ReadError> {
        if let Some(lease) = self.lease_now() {
            return Ok(lease);
        }
        let catalog = self.catalog().ok_or(ReadError::Stopping)?;
        let entry = Arc::clone(self);
        let mapped = tokio::task::spawn_blocking(move || {
            let mapped = catalog.mappings().map(&entry);
            if let Err(err) = &mapped {
                catalog.mapping_failed(&entry, err);
            }
            mapped
        });
        let mapping = mapped.await.map_err(|_| ReadError::Stopping)??;
        Ok(Lease { mapping, entry: Arc::clone(self) })
    }

    /// Whether somebody reads it just now.
    pub(super) fn is_leased(&self) -> bool {
        self.file.is_leased()
    }

    /// Whether somebody writes it just now, or waits for a part of it.
    pub(super) fn is_filling(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
            || (!self.is_sealed() && self.open.lock().as_ref().is_some_and(|open| open.blocks.any_on_its_way()))
    }

    /// Notes a use in second `now`, after so many admissions; tells whether it changes the order of eviction: whether it is the
    /// first of that second, or since another asset came in.
    pub(super) fn touch(&self, now: UnixTime, admissions: u32) -> bool {
        // A lost race between two workers notes the touch twice, which does no harm.
        let first =
            self.touched.load(Ordering::Relaxed) < now.0 || self.touched_at.load(Ordering::Relaxed) != admissions;
        if first {
            self.touched.store(now.0, Ordering::Relaxed);
            self.touched_at.store(admissions, Ordering::Relaxed);
        }
        first
    }

    /// When it was last used.
    pub(super) fn used(&self) -> UnixTime {
        UnixTime(self.touched.load(Ordering::Relaxed))
    }

    pub(super) fn place(&self) -> u32 {
        self.place.load(Ordering::Relaxed)
    }

    pub(super) fn set_place(&self, place: u32) {
        self.place.store(place, Ordering::Relaxed);
    }

    // Fill's side.

    /// A writer from the start of `block` on.
    pub fn writer(self: &Arc<Self>, block: u32) -> AssetWriter {
        AssetWriter::new(Arc::clone(self), block)
    }

    /// Marks what is missing in `blocks` as wanted, for a fetch that is under way already, and gives it back as runs. Each has to
    /// be written or abandoned.
    pub fn claim(&self, blocks: Range<u32>) -> Vec<Range<u32>> {
        let mut open = self.open();
        open.as_mut().map(|open| open.blocks.claim(blocks)).unwrap_or_default()
    }

    /// Blocks that were demanded and cannot be fetched: whoever waits for them hears why.
    pub fn abandon(&self, blocks: Range<u32>, why: Refusal) {
        let mut open = self.open();
        if let Some(open) = open.as_mut() {
            open.blocks.give_up(blocks);
            open.failure = why;
            open.grown.notify_waiters();
        }
    }

    /// Prolongs its life after its source said that it is still good.
    pub fn refresh(self: &Arc<Self>, lifetime: Lifetime) {
        self.lifetime.store(lifetime);
        if let Some(catalog) = self.catalog() {
            catalog.refreshed(self);
        }
    }

    /// Whether all of `blocks` are here: whether a fetch of them would be for nothing.
    pub fn holds(&self, blocks: Range<u32>) -> bool {
        let open = self.open();
        let Some(open) = open.as_ref() else { return true };
        blocks.into_iter().all(|block| open.blocks.state(block) == BlockState::Present)
    }

    pub(super) fn catalog(&self) -> Option<Arc<Catalog>> {
        self.home.catalog()
    }

    /// Which blocks are here; `None` when all may be served. Most assets found after an unclean stop are not asked for soon: what
    /// is kept of their blocks is made when the first is.
    pub(super) fn open(&self) -> MutexGuard<'_, Option<Box<Open>>> {
        let mut open = self.open.lock();
        if open.is_none() && !self.is_sealed() {
            let count = self.block_size().count(self.meta.length);
            *open = Some(Open::new(Blocks::new(count, BlockState::Unverified)));
        }
        open
    }

    /// It is fetched ahead of demand.
    pub(super) fn set_ahead(&self) {
        self.ahead.store(true, Ordering::Relaxed);
    }

    /// Whether nobody needs what was written in memory: it was fetched ahead of demand, and no viewer has it mapped.
    pub(super) fn leaves_memory(&self) -> bool {
        self.ahead.load(Ordering::Relaxed) && !self.file.is_mapped()
    }

    /// Makes it stale in memory, or as it was again: a worker that recalls it asks the catalog.
    pub(super) fn set_lifetime(&self, lifetime: Lifetime) {
        self.lifetime.store(lifetime);
    }

    pub(super) fn add_writer(&self) {
        self.writers.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn drop_writer(&self) {
        self.writers.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn begin_block(&self, writer: u64, block: u32) -> BeginBlock {
        let mut open = self.open();
        if self.is_withdrawn() {
            return BeginBlock::Withdrawn;
        }
        let Some(open) = open.as_mut() else { return BeginBlock::Skip };
        match open.blocks.state(block) {
            state @ (BlockState::Missing | BlockState::Torn | BlockState::Wanted { .. }) => {
                open.blocks.set(block, BlockState::Filling { writer, written: 0 });
                BeginBlock::Write { reserved: state.is_reserved() }
            }
            _ => BeginBlock::Skip,
        }
    }

    /// `written` bytes of the block may be served.
    pub(super) fn block_grew(&self, writer: u64, block: u32, written: u32) {
        if let Some(open) = self.open().as_mut() {
            open.blocks.set(block, BlockState::Filling { writer, written });
            open.grown.notify_waiters();
        }
    }

    /// The block is whole. Seals the asset with its last one.
    pub(super) fn block_present(&self, block: u32) {
        let mut guard = self.open();
        let Some(open) = guard.as_mut() else { return };
        open.blocks.set(block, BlockState::Present);
        let grown = Arc::clone(&open.grown);
        if open.blocks.all_present() {
            let sealed = if self.is_withdrawn() { WITHDRAWN_SEALED } else { SEALED };
            self.state.store(sealed, Ordering::Release);
            *guard = None;
        }
        let sealed = guard.is_none();
        drop(guard);
        grown.notify_waiters();
        if sealed {
            self.settle_held();
        }
    }

    /// A writer stops in the middle of a block that it had begun. It stays wanted: a retry, or `abandon`, decides.
    pub(super) fn block_broke_off(&self, writer: u64, block: u32, reserved: bool) {
        if let Some(open) = self.open().as_mut()
            && matches!(open.blocks.state(block), BlockState::Filling { writer: by, .. } if by == writer)
        {
            open.blocks.set(block, BlockState::Wanted { reserved });
        }
    }

    /// A block that was held is worthless: its digest differs, or it could not be made durable.
    pub(super) fn condemn(&self, block: u32) {
        let mut guard = self.open();
        let count = self.block_size().count(self.meta.length);
        let open = guard.get_or_insert_with(|| Open::new(Blocks::new(count, BlockState::Present)));
        if !matches!(open.blocks.state(block), BlockState::Filling { .. } | BlockState::Wanted { .. }) {
            open.blocks.set(block, BlockState::Torn);
        }
        let open_state = if self.is_withdrawn() { WITHDRAWN } else { OPEN };
        self.state.store(open_state, Ordering::Release);
        open.grown.notify_waiters();
        drop(guard);
        self.settle_held();
    }

    fn settle_held(&self) {
        if let Some(catalog) = self.catalog() {
            catalog.settle_held(self);
        }
    }

    /// The digest of a block was compared and is right. Does nothing for blocks that needed no comparing.
    pub(super) fn verified(&self, block: u32) {
        let waits = self.open().as_ref().map(|open| open.blocks.state(block));
        if matches!(waits, Some(BlockState::Unverified | BlockState::Verifying)) {
            self.block_present(block);
        }
    }

    /// A comparison that was asked for will not take place now.
    pub(super) fn not_verified(&self, block: u32, why: Refusal) {
        if let Some(open) = self.open().as_mut()
            && open.blocks.state(block) == BlockState::Verifying
        {
            open.blocks.set(block, BlockState::Unverified);
            open.failure = why;
            open.grown.notify_waiters();
        }
    }

    /// Takes the entry out of service. Whoever waits for a missing block hears of it; leases go on. Tells whether this call did.
    pub(super) fn withdraw(&self) -> bool {
        let open = self.open.lock();
        let done = match self.state.load(Ordering::Acquire) {
            OPEN => WITHDRAWN,
            SEALED => WITHDRAWN_SEALED,
            _ => return false,
        };
        self.state.store(done, Ordering::Release);
        if let Some(open) = open.as_ref() {
            open.grown.notify_waiters();
        }
        true
    }
}

impl HasFile for Entry {
    fn file(&self) -> &AssetFile {
        &self.file
    }

    fn id(&self) -> AssetId {
        self.key.id()
    }
}

/// A reader's hold on an asset: its bytes stay readable until the lease goes, whatever the catalog decides.
#[derive(Clone, Debug)]
pub struct Lease {
    entry: Arc<Entry>,
    mapping: Arc<Mapping>,
}

impl Lease {
    /// What it is a lease of.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The mapped file.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The mapped file, which stays mapped as long as somebody holds it; the entry is let go.
    pub fn into_mapping(self) -> Arc<Mapping> {
        self.mapping
    }

    /// A part of the asset, which may be cold. Ask only for what [`Entry::available`] has said is there. What it said once stays
    /// true of the bytes, though the block may be given up when its source breaks off: whoever fetches it again writes the same.
    pub fn slice(&self, range: ByteRange) -> Option<ColdSlice> {
        ColdSlice::new(Arc::clone(&self.mapping), range)
    }

    /// A read through this lease failed: the disk's fault is counted, and the entry is withdrawn, so that the next request
    /// fetches the asset anew.
    pub fn read_failed(&self, err: &ReadError) {
        if let (ReadError::Io(err), Some(catalog)) = (err, self.entry.catalog()) {
            catalog.read_failed(&self.entry, err);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_costs_one_piece_of_256_bytes() {
        // With the two counts of its `Arc`. Beyond this, mimalloc's next size is 320: a fifth of what an asset may cost in all.
        assert!(size_of::<Entry>() + 2 * size_of::<usize>() <= 256, "{}", size_of::<Entry>());
    }
}
