//! Opens the catalog: volumes, databases, what was held, and the threads that keep it.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
        mpsc,
    },
    thread::ScopedJoinHandle,
};

use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use parking_lot::{Mutex, RwLock};

use super::{
    AdmitError, Catalog, Config, Demands, Entry, Shelf,
    blocks::{BlockState, Blocks},
    database::{Database, Stored},
    demand::Board,
    entry::{Holding, Holds, Home},
    housekeeping::{self, Threads},
    index::Index,
    meta::Texts,
    negative::Negative,
    persist::Persister,
    purge::{Matcher, PurgeRow, Purges},
    recency::Recency,
    verify::Verifier,
};
use crate::{
    asset::{ByteCount, ByteRange, Sha256, UnixTime},
    storage::{self, AssetFile, Disk, HasFile as _, Mappings, Volume, VolumeError},
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
    Thread(#[from] io::Error),
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
        let texts = Texts::default();
        let home = Home::default();
        let opened = open_volumes(storage, disk, (&texts, &home))?;
        let negative = Arc::new(Negative::new(config, clock.clone()));
        let (board, demands) = Board::new(config.demand_queue_max, Arc::clone(&negative));
        let mut threads = Threads::default();
        let index = Index::with_capacity(opened.iter().map(|one| one.entries.len()).sum());
        let mut shelves = Vec::with_capacity(opened.len());
        for one in opened {
            let (shelf, started) = one.into_shelf(&index, (&home, &metrics), storage);
            threads.add(started?);
            shelves.push(shelf);
        }
        let catalog = Arc::new(Self {
            config: ArcSwap::from_pointee(config.clone()),
            index,
            shelves,
            mappings: Mappings::new(storage.mappings_max),
            board,
            negative,
            planned: super::planned::Planned::default(),
            touches: ArrayQueue::new(config.touch_queue_max.max(1)),
            admissions: AtomicU32::new(0),
            clock,
            metrics,
            threads: Mutex::new(threads),
            texts,
            told: super::holdings::Told::default(),
            home: home.clone(),
            purges: Purges::default(),
        });
        home.settle(&catalog);
        housekeeping::start(&catalog, storage)?;
        Ok((catalog, demands))
    }
}

/// Opens all volumes and reads what they hold, at the same time: each has a disk of its own.
fn open_volumes(
    storage: &storage::Config,
    disk: &Arc<dyn Disk>,
    shared: (&Texts, &Home),
) -> Result<Vec<Opened>, OpenError> {
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |volume| scope.spawn(move || open_volume(volume, storage, disk, shared));
        let threads: Vec<_> = storage.volumes.iter().map(start).collect();
        threads.into_iter().map(ScopedJoinHandle::join).collect()
    });
    let mut opened = Vec::new();
    let mut last = None;
    for (result, config) in results.into_iter().zip(&storage.volumes) {
        match result.unwrap_or_else(|_| Err(io::Error::other("reading a catalog panicked").into())) {
            Ok(one) => {
                let index = u16::try_from(opened.len()).map_err(|_| OpenError::Empty(AdmitError::NoVolume))?;
                one.volume.set_index(index);
                opened.push(one);
            }
            // Mistakes of the operator are not worked around.
            Err(err @ OpenError::Volume(VolumeError::InUse(_) | VolumeError::BlockSize { .. })) => return Err(err),
            Err(err) => {
                tracing::error!(volume = %config.path.display(), error = %err, "volume is left out");
                last = Some(err);
            }
        }
    }
    if opened.is_empty() {
        return Err(last.map_or(OpenError::Empty(AdmitError::NoVolume), |err| OpenError::NoVolume(Box::new(err))));
    }
    end_purges(&mut opened);
    Ok(opened)
}

/// Purges that a crash has interrupted, and those of which a volume that was away knows nothing, are carried out.
fn end_purges(opened: &mut [Opened]) {
    let all: HashMap<i64, PurgeRow> =
        opened.iter().flat_map(|one| &one.purges).map(|row| (row.id, row.clone())).collect();
    for one in opened {
        let known: HashMap<i64, u64> = one.purges.iter().map(|row| (row.id, row.serial)).collect();
        let mut matcher = Matcher::default();
        let mut ended = Vec::new();
        for row in all.values() {
            let up_to = known.get(&row.id).copied().unwrap_or(u64::MAX);
            if up_to > 0 {
                matcher.add(&row.path, row.is_prefix, up_to);
                ended.push(PurgeRow { serial: 0, ..row.clone() });
            }
        }
        if matcher.is_empty() {
            continue;
        }
        let mut gone = std::mem::take(&mut one.forget);
        one.entries.retain(|(_, serial, entry)| {
            let stays = *serial > matcher.up_to(entry.key());
            if !stays {
                gone.push(*serial);
            }
            stays
        });
        let volume = one.volume.root().display();
        tracing::info!(%volume, purges = ended.len(), assets = gone.len(), "purges of before are carried out");
        let recorded = one.database.transaction().and_then(|batch| {
            gone.iter().try_for_each(|serial| batch.forget(*serial))?;
            ended.iter().try_for_each(|row| batch.purge(row))?;
            batch.keep_latest_purges()?;
            batch.commit()
        });
        if let Err(err) = recorded {
            // Out of the index they are all the same; the next start tries again.
            tracing::warn!(%volume, error = %err, "a purge could not be recorded");
        }
    }
}

/// A volume whose directory and database are open.
struct Opened {
    volume: Arc<Volume>,
    database: Database,
    reader: Database,
    /// What it holds, with its last use and serial; least recently used first.
    entries: Vec<(UnixTime, u64, Arc<Entry>)>,
    /// Serials of records that are of no use.
    forget: Vec<u64>,
    serial: u64,
    /// Digests of wholes that were compared, by serial.
    whole: HashMap<u64, Sha256>,
    /// Serials of what is pinned.
    pinned: HashSet<u64>,
    /// What was purged lately, as far as it knows.
    purges: Vec<PurgeRow>,
}

fn open_volume(
    config: &storage::VolumeConfig,
    storage: &storage::Config,
    disk: &Arc<dyn Disk>,
    (texts, home): (&Texts, &Home),
) -> Result<Opened, OpenError> {
    let volume = Volume::open(config, storage, Arc::clone(disk))?;
    let database_error = |source| OpenError::Database { path: config.path.clone(), source };
    let path = volume.root().join("catalog.sqlite");
    let (database, clean) = Database::open(&path).map_err(database_error)?;
    let reader = Database::open_reader(&path).map_err(database_error)?;
    let (rows, serial) = database.extent().map_err(database_error)?;
    let (mut entries, mut forget, mut unreadable) = (Vec::with_capacity(rows), Vec::new(), 0_usize);
    let (mut whole, mut pinned) = (HashMap::new(), HashSet::new());
    let load = database.load(|row| match row {
        Ok(mut stored) => {
            texts.share(&mut stored.meta);
            let (used, serial) = (stored.used, stored.serial);
            whole.extend(stored.whole.filter(|_| stored.sealed).map(|digest| (serial, digest)));
            pinned.extend(stored.pinned.then_some(serial));
            match entry_of(stored, &volume, clean, home) {
                Some(entry) => entries.push((used, serial, entry)),
                None => forget.push(serial),
            }
        }
        Err(serial) => {
            unreadable += 1;
            forget.push(serial);
        }
    });
    load.map_err(database_error)?;
    if unreadable > 0 {
        tracing::warn!(volume = %volume.root().display(), assets = unreadable, "records that cannot be read are dropped");
    }
    tracing::info!(
        volume = %volume.root().display(), assets = entries.len(), clean, capacity = %ByteCount(volume.capacity()), "volume opened"
    );
    let purges = database.purges().map_err(database_error)?;
    entries.sort_unstable_by_key(|(used, serial, _)| (*used, *serial));
    Ok(Opened { volume, database, reader, entries, forget, serial, whole, pinned, purges })
}

impl Opened {
    /// Puts what the volume held into the index, and starts the threads that write and verify it.
    fn into_shelf(
        self,
        index: &Index,
        (home, metrics): (&Home, &Metrics),
        storage: &storage::Config,
    ) -> (Shelf, io::Result<housekeeping::VolumeThreads>) {
        let mut recency = Recency::with_capacity(self.entries.len());
        let (records, take_records) = mpsc::sync_channel(storage.sync_queue_max.max(1));
        let (verify, take_verify) = mpsc::sync_channel(VERIFY_QUEUE_MAX);
        let mut forget = self.forget;
        for (_, _, entry) in self.entries {
            // The same asset twice: a record of leaving was lost, or a volume came back after others had taken its share.
            // The later version of one volume stays; of two volumes, the first.
            match index.find(entry.key()) {
                Some(before)
                    if !Arc::ptr_eq(before.file().volume(), &self.volume) || before.serial() > entry.serial() =>
                {
                    forget.push(entry.serial());
                }
                before => {
                    if let Some(before) = before {
                        recency.remove(&before);
                        forget.push(before.serial());
                    }
                    index.insert(&entry);
                    let pinned = self.pinned.contains(&entry.serial());
                    recency.insert(Arc::clone(&entry));
                    recency.pin(&entry, pinned);
                }
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
            home: home.clone(),
            metrics: Arc::clone(&metrics),
        };
        let threads = housekeeping::VolumeThreads::start(persister, verifier, Arc::clone(&self.volume), storage);
        let shelf = Shelf {
            volume: self.volume,
            recency: Mutex::new(recency),
            serial: AtomicU64::new(self.serial),
            naming: RwLock::new(()),
            records,
            verify: Mutex::new(Some(verify)),
            metrics,
            whole: Mutex::new(self.whole),
        };
        (shelf, threads)
    }
}

/// The entry of a stored asset; `None` where it is of no use.
fn entry_of(stored: Stored, volume: &Arc<Volume>, clean: bool, home: &Home) -> Option<Arc<Entry>> {
    // Parts of a version that cannot be told from another one cannot be completed.
    if !stored.sealed && !stored.meta.validators.allow_combining() {
        return None;
    }
    let (size, length) = (volume.block_size(), stored.meta.length);
    let count = size.count(length);
    let (blocks, reserved) = if stored.sealed {
        (if clean { Holds::All } else { Holds::AllUnverified }, length)
    } else {
        let here = if clean { BlockState::Present } else { BlockState::Unverified };
        let mut blocks = Blocks::new(count, BlockState::Missing);
        let held: HashSet<u32> = stored.blocks.into_iter().filter(|block| *block < count).collect();
        held.iter().for_each(|block| blocks.set(*block, here));
        let reserved = held.iter().filter_map(|block| size.range_of(*block, length)).map(ByteRange::len).sum();
        (Holds::Some(blocks), reserved)
    };
    let file = AssetFile::new(Arc::clone(volume), stored.serial, length, reserved);
    let holding = Holding { blocks, used: stored.used };
    Some(Entry::new(stored.key, stored.meta, stored.lifetime, file, (holding, home.clone())))
}
