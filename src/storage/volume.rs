//! A volume: one disk's directory, how much it may hold, and whether it lives.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use super::{
    config::VolumeConfig,
    disk::{Disk, is_shortage},
    layout,
};
use crate::asset::{BlockSize, ByteCount};

/// One disk's directory.
#[derive(Debug)]
pub struct Volume {
    index: AtomicU16,
    identity: layout::Identity,
    root: PathBuf,
    block_size: BlockSize,
    capacity: AtomicU64,
    /// Bytes of blocks reserved on the disk, those of evicted files that leases still hold included.
    used: AtomicU64,
    /// The part of `used` that belongs to evicted files and comes back when their last lease goes.
    leaving: AtomicU64,
    room_wanted: AtomicBool,
    state: AtomicU8,
    failure: Mutex<Option<VolumeFailure>>,
    read_errors: AtomicU32,
    read_errors_max: u32,
    device: u64,
    probing: Mutex<Probing>,
    disk: Arc<dyn Disk>,
    _lock: File,
}

/// What probes have found.
#[derive(Debug, Default)]
struct Probing {
    /// Begin of the one that is under way.
    begun: Option<Instant>,
    took: Option<Duration>,
    free_percent: Option<f64>,
}

/// Whether a volume is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Read from and written to.
    Serving,
    /// Taken out: nothing of it is served, nothing is written.
    Failed,
}

/// Why a volume was taken out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeFailure {
    /// A write, reservation or sync failed with something other than a full disk.
    #[error("writing failed: {0}")]
    Write(String),
    /// More reads failed than `storage.read_errors_max` allows.
    #[error("reading failed {0} times")]
    Reads(u32),
    /// The directory is no longer the one that was opened: unmounted, or another disk in its place.
    #[error("the directory is gone or another disk stands in its place")]
    Gone,
    /// The probe did not come back in time.
    #[error("the disk has not answered for {0} s")]
    Silent(u64),
    /// The catalog database cannot be written.
    #[error("the catalog database failed: {0}")]
    Database(String),
}

impl VolumeFailure {
    /// Label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Write(_) => "write",
            Self::Reads(_) => "read",
            Self::Gone => "gone",
            Self::Silent(_) => "silent",
            Self::Database(_) => "database",
        }
    }
}

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The directory cannot be used.
    #[error("volume {path}: {source}", path = path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("volume {path} is in use by another process", path = .0.display())]
    InUse(PathBuf),
    /// It was made with other blocks.
    #[error("volume {path} was made with blocks of {on_disk}, the configuration says {configured}; set storage.block_size to {on_disk} or empty the volume", path = path.display())]
    BlockSize {
        /// The directory.
        path: PathBuf,
        /// As the volume has it.
        on_disk: ByteCount,
        /// As the configuration has it.
        configured: ByteCount,
    },
}

/// Why there is no space for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// Capacity is used up.
    #[error("the volume's capacity is used up")]
    Full,
}

impl Volume {
    /// Opens the volume at `config.path`, making it where the directory is new or empty.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn open(config: &VolumeConfig, storage: &super::Config, disk: Arc<dyn Disk>) -> Result<Arc<Self>, VolumeError> {
        let io_error = |source| VolumeError::Io { path: config.path.clone(), source };
        if let Err(err) = std::fs::create_dir(&config.path)
            && err.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(io_error(err));
        }
        let root = config.path.canonicalize().map_err(io_error)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(root.join("lock")).map_err(io_error)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| VolumeError::InUse(config.path.clone()))?;
        let identity = layout::open_or_create(&root, storage.block_size.bytes()).map_err(io_error)?;
        if identity.block_size != storage.block_size.bytes() {
            return Err(VolumeError::BlockSize {
                path: config.path.clone(),
                on_disk: ByteCount(identity.block_size),
                configured: ByteCount(storage.block_size.bytes()),
            });
        }
        let device = std::fs::metadata(&root).map_err(io_error)?.dev();
        Ok(Arc::new(Self {
            index: AtomicU16::new(0),
            identity,
            root,
            block_size: storage.block_size,
            capacity: AtomicU64::new(config.capacity.0),
            used: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            room_wanted: AtomicBool::new(false),
            state: AtomicU8::new(0),
            failure: Mutex::new(None),
            read_errors: AtomicU32::new(0),
            read_errors_max: storage.read_errors_max,
            device,
            probing: Mutex::default(),
            disk,
            _lock: lock,
        }))
    }

    /// Place among the volumes in use.
    pub fn index(&self) -> u16 {
        self.index.load(Ordering::Relaxed)
    }

    /// Gives it its place among the volumes in use, before it is used.
    pub fn set_index(&self, index: u16) {
        self.index.store(index, Ordering::Relaxed);
    }

    /// Its random name, the same for as long as the volume exists.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Unit in which it is filled.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The disk below.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Bytes it may hold.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Sets how many bytes of assets it may hold. Where it holds more, they are evicted.
    pub fn set_capacity(&self, bytes: u64) {
        self.capacity.store(bytes, Ordering::Relaxed);
    }

    /// Bytes reserved, those of evicted files that leases still hold included.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Bytes reserved that nobody has given up yet: what eviction can still free.
    pub fn kept(&self) -> u64 {
        self.used().saturating_sub(self.leaving.load(Ordering::Acquire))
    }

    /// Whether it is in use.
    pub fn state(&self) -> VolumeState {
        if self.state.load(Ordering::Acquire) == 0 { VolumeState::Serving } else { VolumeState::Failed }
    }

    /// Why it was taken out.
    pub fn failure(&self) -> Option<VolumeFailure> {
        self.failure.lock().clone()
    }

    /// Takes the volume out. The first reason stays.
    pub fn fail(&self, why: VolumeFailure) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(volume = %self.root.display(), reason = %why, "volume failed and is taken out");
            *failure = Some(why);
            self.state.store(1, Ordering::Release);
        }
    }

    /// Counts a failed read; takes the volume out when there were too many.
    pub fn read_failed(&self) {
        let errors = self.read_errors.fetch_add(1, Ordering::AcqRel) + 1;
        if errors >= self.read_errors_max {
            self.fail(VolumeFailure::Reads(errors));
        }
    }

    /// Counts `bytes` as used.
    ///
    /// # Errors
    /// [`SpaceError::Full`] where they would exceed the capacity.
    pub fn take_space(&self, bytes: u64) -> Result<(), SpaceError> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.capacity())
            })
            .map(drop)
            .map_err(|_| SpaceError::Full)
    }

    /// Counts `bytes` that lie on the disk already, whatever the capacity.
    pub(super) fn hold(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Gives back `bytes` that nobody reads.
    pub(super) fn let_go(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Asks for something to be evicted: the disk is full although the capacity is not.
    pub fn ask_for_room(&self) {
        self.room_wanted.store(true, Ordering::Release);
    }

    /// Whether room was asked for since the last call.
    pub fn take_room_request(&self) -> bool {
        self.room_wanted.swap(false, Ordering::AcqRel)
    }

    /// How long the disk took for the last probe, or has been taking for the present one, whichever is longer.
    pub fn probe_time(&self) -> Option<Duration> {
        let probing = self.probing.lock();
        probing.took.max(probing.begun.map(|begun| begun.elapsed()))
    }

    /// Percent of its file system that is free, as of the last probe.
    pub fn free_percent(&self) -> Option<f64> {
        self.probing.lock().free_percent
    }

    /// The number of the device it lies on (`st_dev`).
    pub fn device(&self) -> u64 {
        self.device
    }

    /// As [`Volume::probe_unseen`], and notes how long it took and how much room there is.
    ///
    /// # Errors
    /// As there.
    pub fn probe(&self) -> Result<(), VolumeFailure> {
        let begun = Instant::now();
        self.probing.lock().begun = Some(begun);
        let probed = self.probe_unseen();
        let room = rustix::fs::statvfs(&self.root).ok().filter(|room| room.f_blocks > 0);
        let mut probing = self.probing.lock();
        probing.begun = None;
        probing.took = Some(begun.elapsed());
        probing.free_percent = room.map(|room| room.f_bavail as f64 * 100.0 / room.f_blocks as f64);
        probed
    }

    /// Writes, syncs and reads back a small file, and looks whether the directory is still the one that was opened.
    ///
    /// # Errors
    /// What is wrong with the volume. Blocks for as long as the disk does.
    fn probe_unseen(&self) -> Result<(), VolumeFailure> {
        let device = std::fs::metadata(self.root.join("lock")).map(|meta| meta.dev());
        if device.ok() != Some(self.device) {
            return Err(VolumeFailure::Gone);
        }
        let path = self.root.join("probe");
        let probe = || -> io::Result<bool> {
            let file = match self.disk.open_write(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => self.disk.create(&path, 8)?,
                other => other?,
            };
            let mut back = [0_u8; 8];
            self.disk.write_at(&file, &[b"oca-live"], 0)?;
            self.disk.sync_data(&file)?;
            self.disk.read_at(&file, &mut back, 0)?;
            Ok(&back == b"oca-live")
        };
        match probe() {
            Ok(true) => Ok(()),
            Ok(false) => Err(VolumeFailure::Write("what was written reads back differently".into())),
            // A full disk is no broken disk: filling pauses, eviction makes room.
            Err(err) if err.kind() == io::ErrorKind::StorageFull => Ok(()),
            // Nor is one that could not be asked.
            Err(err) if is_shortage(&err) => {
                tracing::warn!(volume = %self.root.display(), error = %err, "volume cannot be probed now");
                Ok(())
            }
            Err(err) => Err(VolumeFailure::Write(err.to_string())),
        }
    }
}

/// The space of one version of an asset on its volume. Given back when the file was evicted and nobody holds it any more.
#[derive(Debug)]
pub struct Space {
    volume: Arc<Volume>,
    bytes: AtomicU64,
    /// Set by eviction; what is held at that time counts as leaving.
    leaving: Mutex<bool>,
}

impl Space {
    /// The space of a file that holds `bytes` already, which the volume has counted.
    pub(super) fn of_held(volume: Arc<Volume>, bytes: u64) -> Self {
        Self { volume, bytes: AtomicU64::new(bytes), leaving: Mutex::new(false) }
    }

    /// Where it is.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`SpaceError::Full`] where the volume has none left.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), SpaceError> {
        let leaving = self.leaving.lock();
        self.volume.take_space(bytes)?;
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if *leaving {
            self.volume.leaving.fetch_add(bytes, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Gives back `bytes` that were taken for nothing.
    pub(super) fn shrink(&self, bytes: u64) {
        let leaving = self.leaving.lock();
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.volume.used.fetch_sub(bytes, Ordering::AcqRel);
        if *leaving {
            self.volume.leaving.fetch_sub(bytes, Ordering::AcqRel);
        }
    }

    /// The file is evicted: its space comes back with the last holder. Returns what was held; zero the second time.
    pub(super) fn leave(&self) -> u64 {
        let mut leaving = self.leaving.lock();
        if std::mem::replace(&mut *leaving, true) {
            return 0;
        }
        let bytes = self.bytes();
        self.volume.leaving.fetch_add(bytes, Ordering::AcqRel);
        bytes
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if *self.leaving.get_mut() {
            let bytes = self.bytes();
            self.volume.used.fetch_sub(bytes, Ordering::AcqRel);
            self.volume.leaving.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}
