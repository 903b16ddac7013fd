//! The file of one version of an asset.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::{
    layout::FileName,
    mapping::Mapping,
    volume::{Space, SpaceError, Volume},
};
use crate::asset::{AssetId, ByteRange};

/// The file of one version of an asset: its place, its space, and its mapping while it is mapped.
///
/// There is one for each asset held, and few of them are open at a time: what only an open file needs is made when it is opened.
#[derive(Debug)]
pub struct AssetFile {
    serial: u64,
    length: u64,
    volume: Arc<Volume>,
    slot: ArcSwapOption<Mapping>,
    /// Set by use, cleared by the hand of the mappings' clock.
    used_lately: AtomicBool,
    /// Held while the file is opened, made or mapped; never on a worker.
    held: Mutex<Held>,
}

/// Whoever owns an asset's file.
pub trait HasFile: Send + Sync + 'static {
    /// The file.
    fn file(&self) -> &AssetFile;

    /// Hash of the asset's key: the first part of the file's name. Computed where a file is opened, which is dearer by far, instead of
    /// held for each asset.
    fn id(&self) -> AssetId;
}

/// The space of a file, and who shares it.
#[derive(Debug)]
enum Held {
    /// So many bytes, and nobody has the file open.
    Closed(u64),
    /// Somebody reads or writes it, or did so lately.
    Open(Box<Open>),
    /// Given up by eviction: from then on only mappings hold the space. The entry may be remembered for longer, by readers of the
    /// index, than its space may be.
    Evicted,
}

#[derive(Debug)]
struct Open {
    writing: Weak<File>,
    space: Arc<Space>,
}

/// Counts one open mapping for as long as it lives.
#[derive(Debug)]
pub(super) struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    /// `None` when `max` are open.
    pub(super) fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < max).then_some(open + 1));
        taken.is_ok().then(|| Self(Arc::clone(count)))
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl AssetFile {
    /// The file of a version that holds `reserved` bytes on disk already. Touches no disk.
    pub fn new(volume: Arc<Volume>, serial: u64, length: u64, reserved: u64) -> Self {
        volume.hold(reserved);
        Self {
            serial,
            length,
            slot: ArcSwapOption::empty(),
            used_lately: AtomicBool::new(false),
            held: Mutex::new(Held::Closed(reserved)),
            volume,
        }
    }

    /// Number of the version on its volume.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Bytes of the whole asset.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The volume it lies on.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Bytes reserved for it; none any more when it was evicted.
    pub fn reserved(&self) -> u64 {
        match &*self.held.lock() {
            Held::Closed(bytes) => *bytes,
            Held::Open(open) => open.space.bytes(),
            Held::Evicted => 0,
        }
    }

    /// Where it lies. `id` is its owner's, here and below.
    pub fn path(&self, id: AssetId) -> PathBuf {
        FileName { id, serial: self.serial }.path(self.volume().root())
    }

    /// Counts the space of one block and reserves it on the disk. Blocks.
    ///
    /// # Errors
    /// `StorageFull` where capacity or disk is full, `NotFound` when it has been evicted; other errors as of the disk.
    pub fn reserve(&self, file: &File, block: ByteRange) -> io::Result<()> {
        let space = Arc::clone(&self.held.lock().open(&self.volume)?.space);
        space.grow(block.len()).map_err(|SpaceError::Full| io::Error::from(io::ErrorKind::StorageFull))?;
        let reserved = self.volume.disk().reserve(file, block.start(), block.len());
        if reserved.is_err() {
            space.shrink(block.len());
        }
        reserved
    }

    /// The file, open for writing blocks; made when it does not exist. Shared by all who write. Blocks.
    ///
    /// # Errors
    /// As of the disk; `NotFound` when it has been evicted, or is gone although blocks of it were held; `UnexpectedEof` when
    /// somebody has cut it.
    pub fn open_write(&self, id: AssetId) -> io::Result<Arc<File>> {
        let mut held = self.held.lock();
        let open = held.open(&self.volume)?;
        let held = open.space.bytes();
        if let Some(file) = open.writing.upgrade() {
            return Ok(file);
        }
        let (disk, path) = (self.volume().disk(), self.path(id));
        let file = match disk.open_write(&path) {
            // A file that has held blocks is never made anew: what is said to be in it would read as zeros.
            Err(err) if err.kind() == io::ErrorKind::NotFound && held == 0 => disk.create(&path, self.length)?,
            other => other?,
        };
        if file.metadata()?.len() != self.length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is not as long as the asset"));
        }
        let file = Arc::new(file);
        open.writing = Arc::downgrade(&file);
        Ok(file)
    }

    /// The file that is open for writing, once more, for writing past the page cache; `None` where that cannot be. Blocks.
    ///
    /// # Errors
    /// As of the disk.
    pub fn open_write_direct(&self, id: AssetId) -> io::Result<Option<File>> {
        self.volume().disk().open_write_direct(&self.path(id))
    }

    /// Opens for verifying what is on disk. Blocks.
    ///
    /// # Errors
    /// As of the disk.
    pub fn open_read(&self, id: AssetId) -> io::Result<File> {
        self.volume().disk().open_read(&self.path(id))
    }

    /// Opens for comparing what the disk itself has. Blocks.
    ///
    /// # Errors
    /// As of the disk.
    pub fn open_direct(&self, id: AssetId) -> io::Result<File> {
        self.volume().disk().open_direct(&self.path(id))
    }

    /// Makes the file's place in its directory durable. Blocks.
    ///
    /// # Errors
    /// As of `fsync(2)`.
    pub fn sync_dir(&self, id: AssetId) -> io::Result<()> {
        let path = self.path(id);
        let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
        let disk = self.volume().disk();
        disk.sync_dir(folder)?;
        // The fan-out directory may be new too.
        folder.parent().map_or(Ok(()), |assets| disk.sync_dir(assets))
    }

    /// The mapping, if the file is mapped. Takes no lock.
    pub fn mapped(&self) -> Option<Arc<Mapping>> {
        let mapping = self.slot.load_full()?;
        if !self.used_lately.load(Ordering::Relaxed) {
            self.used_lately.store(true, Ordering::Relaxed);
        }
        Some(mapping)
    }

    /// Maps the file; once, however many ask. Blocks. The second value tells whether this call mapped it.
    pub(super) fn map(
        &self,
        id: impl FnOnce() -> AssetId,
        open: impl FnOnce() -> io::Result<OpenCount>,
    ) -> io::Result<(Arc<Mapping>, bool)> {
        let mut held = self.held.lock();
        if let Some(mapping) = self.mapped() {
            return Ok((mapping, false));
        }
        let space = Arc::clone(&held.open(&self.volume)?.space);
        let file = self.open_read(id())?;
        let mapping = Arc::new(Mapping::new(file, self.length, space, open()?)?);
        self.slot.store(Some(Arc::clone(&mapping)));
        self.used_lately.store(true, Ordering::Relaxed);
        Ok((mapping, true))
    }

    /// Forgets the mapping; it is unmapped when its last lease goes.
    pub(super) fn unmap(&self) {
        self.slot.store(None);
        self.settle();
    }

    /// Lets go of what only an open file needs, if nobody has it open any more.
    pub fn settle(&self) {
        self.held.lock().close();
    }

    /// Whether it is mapped. Takes no lock, and notes no use.
    pub fn is_mapped(&self) -> bool {
        self.slot.load().is_some()
    }

    /// Whether somebody besides the slot holds the mapping.
    pub fn is_leased(&self) -> bool {
        self.slot.load().as_ref().is_some_and(|mapping| Arc::strong_count(mapping) > 1)
    }

    /// Clears the mark of use and tells whether it was set.
    pub(super) fn take_used_lately(&self) -> bool {
        self.used_lately.swap(false, Ordering::Relaxed)
    }

    /// Removes the file from the disk. Whoever holds a lease goes on reading; the space counts as free when the last has gone.
    /// Returns the bytes that will come back; zero when it was evicted before. Blocks.
    ///
    /// # Errors
    /// As of `unlink(2)`. The file is lost to us all the same; start-up removes what was left.
    pub fn evict(&self, id: AssetId) -> io::Result<u64> {
        let held = std::mem::replace(&mut *self.held.lock(), Held::Evicted);
        let freed = match &held {
            Held::Closed(bytes) => {
                self.volume.let_go(*bytes);
                *bytes
            }
            Held::Open(open) => open.space.leave(),
            Held::Evicted => 0,
        };
        self.slot.store(None);
        drop(held);
        match self.volume().disk().unlink(&self.path(id)) {
            // Nothing of it was ever written.
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(freed),
            other => other.map(|()| freed),
        }
    }
}

impl Held {
    /// What an open file needs, made where it is the first that is opened.
    fn open(&mut self, volume: &Arc<Volume>) -> io::Result<&mut Open> {
        if let Self::Closed(bytes) = *self {
            *self = Self::Open(Box::new(Open {
                writing: Weak::new(),
                space: Arc::new(Space::of_held(Arc::clone(volume), bytes)),
            }));
        }
        match self {
            Self::Open(open) => Ok(open),
            Self::Closed(_) | Self::Evicted => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn close(&mut self) {
        // New holders of the space come only through the lock that the caller has.
        if let Self::Open(open) = self
            && Arc::strong_count(&open.space) == 1
            && open.writing.strong_count() == 0
        {
            *self = Self::Closed(open.space.bytes());
        }
    }
}
