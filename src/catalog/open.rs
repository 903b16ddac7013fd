//! Opens the catalog: volumes, databases, what was held, and the threads that keep it.

use std::{
    collections::HashSet,
    sync::{Arc, Weak, atomic::AtomicU64, mpsc},
};

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;

use super::{
    AdmitError, Catalog, Config, Demands, Entry, Index, Shelf,
    blocks::{BlockState, Blocks},
    database::{Database, Stored},
    demand::Board,
    entry::Holding,
    housekeeping::{self, Threads},
    negative::Negative,
    persist::Persister,
    recency::Recency,
    verify::Verifier,
};
use crate::{
    asset::{ByteCount, ByteRange},
    storage::{self, AssetFile, Disk, FileName, Mappings, Volume, VolumeError},
    sys::Clock,
    telemetry::metrics::Metrics,
};

/// Why the catalog cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No volume can be used; the last one's reason.
    #[error("no volume can be used: {0}")]
    NoVolume(#[source] Box<OpenError>),
    /// A volume cannot be opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume's database cannot be used.
    #[error("catalog database of volume {path}: {source}", path = path.display())]
    Database {
        /// The volume.
        path: std::path::PathBuf,
        /// What SQLite said.
        source: super::database::DatabaseError,
    },
    /// A thread cannot be started.
    #[error("start a catalog thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The configuration names no volume.
    #[error("{0}")]
    Empty(AdmitError),
}

/// Verifications that may wait per volume.
const VERIFY_QUEUE_MAX: usize = 4096;

impl Catalog {
    /// Opens all volumes and loads what they hold. A volume that cannot be opened is left out, loudly, as long as another can.
    ///
    /// # Errors
    /// No volume can be used; a volume is in use by another process or was made with other blocks.
    pub fn open(
        config: &Config,
        storage: &storage::Config,
        disk: &Arc<dyn Disk>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, Demands), OpenError> {
        let mut opened = Vec::new();
        let mut last = None;
        for volume in &storage.volumes {
            let index = u16::try_from(opened.len()).map_err(|_| OpenError::Empty(AdmitError::NoVolume))?;
            match open_volume(index, volume, storage, disk) {
                Ok(one) => opened.push(one),
                // Mistakes of the operator are not worked around.
                Err(err @ OpenError::Volume(VolumeError::InUse(_) | VolumeError::BlockSize { .. })) => return Err(err),
                Err(err) => {
                    tracing::error!(volume = %volume.path.display(), error = %err, "volume is left out");
                    last = Some(err);
                }
            }
        }
        if opened.is_empty() {
            return Err(last.map_or(OpenError::Empty(AdmitError::NoVolume), |err| OpenError::NoVolume(Box::new(err))));
        }
        let negative = Arc::new(Negative::new(config, clock.clone()));
        let (board, demands) = Board::new(config.demand_queue_max, Arc::clone(&negative));
        let mut started = Ok(());
        let catalog = Arc::new_cyclic(|me: &Weak<Self>| {
            let mut threads = Threads::default();
            let index = Index::with_hasher(foldhash::fast::RandomState::default());
            let shelves = opened
                .into_iter()
                .map(|one| {
                    let (shelf, thread) = one.into_shelf(&index, (me, &metrics), storage);
                    match thread {
                        Ok(thread) => threads.add(thread),
                        Err(err) => started = Err(err),
                    }
                    shelf
                })
                .collect();
            Self {
                config: config.clone(),
                index,
                shelves,
                mappings: Mappings::new(storage.mappings_max),
                board,
                negative,
                touches: ArrayQueue::new(config.touch_queue_max.max(1)),
                admissions: AtomicU64::new(0),
                used: Mutex::default(),
                clock,
                metrics,
                threads: Mutex::new(threads),
                me: me.clone(),
            }
        });
        started?;
        housekeeping::start(&catalog, storage)?;
        Ok((catalog, demands))
    }
}

/// A volume whose directory and database are open.
struct Opened {
    volume: Arc<Volume>,
    database: Database,
    reader: Database,
    clean: bool,
    stored: Vec<Stored>,
    /// Serials of records that cannot be read back.
    unreadable: Vec<u64>,
    serial: u64,
}

fn open_volume(
    index: u16,
    config: &storage::VolumeConfig,
    storage: &storage::Config,
    disk: &Arc<dyn Disk>,
) -> Result<Opened, OpenError> {
    let volume = Volume::open(index, config, storage, Arc::clone(disk))?;
    let database_error = |source| OpenError::Database { path: config.path.clone(), source };
    let path = volume.root().join("catalog.sqlite");
    let (database, clean) = Database::open(&path).map_err(database_error)?;
    let reader = Database::open_reader(&path).map_err(database_error)?;
    let (stored, unreadable) = database.load().map_err(database_error)?;
    let serial = database.serial_max().map_err(database_error)?;
    if !unreadable.is_empty() {
        tracing::warn!(volume = %volume.root().display(), assets = unreadable.len(), "records that cannot be read are dropped");
    }
    tracing::info!(
        volume = %volume.root().display(), assets = stored.len(), clean, capacity = %ByteCount(volume.capacity()), "volume opened"
    );
    Ok(Opened { volume, database, reader, clean, stored, unreadable, serial })
}

impl Opened {
    /// Puts what the volume held into the index, and starts the threads that write and verify it.
    fn into_shelf(
        self,
        index: &Index,
        (me, metrics): (&Weak<Catalog>, &Metrics),
        storage: &storage::Config,
    ) -> (Shelf, std::io::Result<housekeeping::VolumeThreads>) {
        let mut recency = Recency::new();
        let (records, take_records) = mpsc::sync_channel(storage.sync_queue_max.max(1));
        let (verify, take_verify) = mpsc::sync_channel(VERIFY_QUEUE_MAX);
        let mut serial = self.serial;
        let mut forget = self.unreadable;
        for stored in self.stored {
            serial = serial.max(stored.serial);
            let old_serial = stored.serial;
            match entry_of(stored, &self.volume, self.clean, me) {
                // The same asset twice: a record of leaving was lost, or a volume came back after others had taken its share.
                // The later version of one volume stays; of two volumes, the first.
                Some(entry) => {
                    let before = index.pin().get(&entry.id()).cloned();
                    match before {
                        Some(before)
                            if !Arc::ptr_eq(before.file().volume(), &self.volume) || before.serial() > old_serial =>
                        {
                            forget.push(old_serial);
                        }
                        before => {
                            if let Some(before) = before {
                                recency.remove(&before);
                                forget.push(before.serial());
                            }
                            index.pin().insert(entry.id(), Arc::clone(&entry));
                            recency.insert(entry);
                        }
                    }
                }
                None => forget.push(old_serial),
            }
        }
        for serial in forget {
            // The queue is empty and its writer not yet started; what does not fit is forgotten at the next start.
            if records.try_send(super::persist::Record::Forget { serial }).is_err() {
                break;
            }
        }
        let metrics = metrics.volume(&self.volume.root().display().to_string());
        let persister = Persister {
            volume: Arc::clone(&self.volume),
            database: self.database,
            records: take_records,
            interval: storage.sync_interval,
            batch_max: storage.sync_batch_max,
            metrics: Arc::clone(&metrics),
        };
        let verifier = Verifier {
            volume: Arc::clone(&self.volume),
            database: self.reader,
            wanted: take_verify,
            scrub_rate: storage.scrub_rate.bytes_per_second(),
            catalog: me.clone(),
            metrics: Arc::clone(&metrics),
        };
        let threads = housekeeping::VolumeThreads::start(persister, verifier, Arc::clone(&self.volume), storage);
        let shelf = Shelf {
            volume: self.volume,
            recency: Mutex::new(recency),
            serial: AtomicU64::new(serial),
            records,
            verify: Mutex::new(Some(verify)),
            metrics,
        };
        (shelf, threads)
    }
}

/// The entry of a stored asset; `None` where it is of no use.
fn entry_of(stored: Stored, volume: &Arc<Volume>, clean: bool, me: &Weak<Catalog>) -> Option<Arc<Entry>> {
    // Parts of a version that cannot be told from another one cannot be completed.
    if !stored.sealed && !stored.meta.validators.allow_combining() {
        return None;
    }
    let (size, length) = (volume.block_size(), stored.meta.length);
    let count = size.count(length);
    let here = if clean { BlockState::Present } else { BlockState::Unverified };
    let (blocks, reserved) = if stored.sealed {
        (Blocks::new(count, here), length)
    } else {
        let mut blocks = Blocks::new(count, BlockState::Missing);
        let held: HashSet<u32> = stored.blocks.into_iter().filter(|block| *block < count).collect();
        held.iter().for_each(|block| blocks.set(*block, here));
        (blocks, held.iter().filter_map(|block| size.range_of(*block, length)).map(ByteRange::len).sum())
    };
    let name = FileName { id: stored.key.id(), serial: stored.serial };
    let file = Arc::new(AssetFile::new(Arc::clone(volume), name, length, reserved));
    let holding = Holding { blocks, used: stored.used };
    Some(Entry::new(stored.key, stored.meta, stored.lifetime, file, (holding, me.clone())))
}
