//! Writes the catalog behind: one thread a volume, in batches.
//!
//! gather for `storage.sync_interval` -> `fdatasync` each file once -> one transaction -> durable
//!
//! In this order, so that the database never promises what the disk does not have. A crash loses at most the gathering.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use super::{
    Lifetime,
    database::{Database, is_full},
    entry::Entry,
    purge::PurgeRow,
};
use crate::{
    asset::{Digest, Sha256, UnixTime},
    storage::{HasFile as _, Volume, VolumeFailure, VolumeState, is_shortage},
    telemetry::metrics::VolumeMetrics,
};

/// Something to make durable.
#[derive(Debug)]
pub(super) enum Record {
    /// A version without blocks.
    Asset(Arc<Entry>),
    /// A block that is whole.
    Block { entry: Arc<Entry>, block: u32, digest: Digest, file: Arc<File> },
    /// A block that turned out worthless.
    Condemned { serial: u64, block: u32 },
    /// A version that was evicted, purged or replaced.
    Forget { serial: u64 },
    /// A prolonged life.
    Lifetime { serial: u64, lifetime: Lifetime },
    /// Its whole digest was compared and is right, or has to be compared again.
    Whole { serial: u64, digest: Option<Sha256> },
    /// Whether it is pinned.
    Pinned { serial: u64, pinned: bool },
    /// Last uses.
    Used(Vec<(u64, UnixTime)>),
    /// Versions up to `serial` that these mean are to go.
    Purge { rows: Arc<Vec<PurgeRow>>, serial: u64 },
    /// Those of them have all gone.
    PurgeDone { rows: Arc<Vec<PurgeRow>> },
    /// Everything before this is to be durable at once; the sender hears when it is.
    Flush(SyncSender<()>),
    /// The last record: everything before it is to be durable, the volume marked clean.
    Stop,
}

/// One volume's writer of records.
#[derive(Debug)]
pub(super) struct Persister {
    pub(super) volume: Arc<Volume>,
    pub(super) database: Database,
    pub(super) records: Receiver<Record>,
    pub(super) interval: Duration,
    pub(super) batch_max: usize,
    pub(super) metrics: Arc<VolumeMetrics>,
}

/// Pause before it is tried again on a full disk, or without a descriptor.
const FULL_PAUSE: Duration = Duration::from_millis(500);

impl Persister {
    /// Runs until told to stop, or until nobody can send any more.
    pub(super) fn run(mut self) {
        loop {
            let Ok(first) = self.records.recv() else { return };
            let (batch, stop) = self.gather(first);
            self.write(batch, stop);
            if stop {
                break;
            }
        }
        if self.volume.state() == VolumeState::Serving
            && let Err(err) = self.database.mark_clean()
        {
            tracing::warn!(volume = %self.volume.root().display(), error = %err, "volume could not be marked clean");
        }
    }

    fn gather(&self, first: Record) -> (Vec<Record>, bool) {
        let deadline = Instant::now() + self.interval;
        let mut batch = Vec::with_capacity(self.batch_max.min(64));
        let mut next = Some(first);
        loop {
            let Some(record) = next.take() else { return (batch, false) };
            let stop = matches!(record, Record::Stop);
            let hurry = stop || matches!(record, Record::Flush(_));
            batch.push(record);
            if hurry || batch.len() >= self.batch_max {
                return (batch, stop);
            }
            match self.records.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(record) => next = Some(record),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody said stop: what was gathered is written, but the volume is not marked clean.
                Err(RecvTimeoutError::Disconnected) => return (batch, false),
            }
        }
    }

    fn write(&mut self, batch: Vec<Record>, stop: bool) {
        if self.volume.state() == VolumeState::Serving {
            let failed = self.sync_files(&batch, stop);
            loop {
                match self.commit(&batch, &failed) {
                    Ok(()) => break self.metrics.database_batches.inc(),
                    // Filling pauses by the full queue; eviction makes room meanwhile. Ends with the volume or the appliance.
                    Err(err) if is_full(&err) && self.volume.state() == VolumeState::Serving && !stop => {
                        self.metrics.database_failures.inc();
                        tracing::warn!(volume = %self.volume.root().display(), "disk is full; the catalog waits for room");
                        // The keeper evicts; here it would send records to itself and wait for itself.
                        self.volume.ask_for_room();
                        std::thread::park_timeout(FULL_PAUSE);
                    }
                    Err(err) => {
                        self.metrics.database_failures.inc();
                        break self.volume.fail(VolumeFailure::Database(err.to_string()));
                    }
                }
            }
        }
        for record in batch {
            match record {
                Record::Flush(done) if done.try_send(()).is_err() => {
                    tracing::debug!("whoever asked for a flush has given up waiting");
                }
                Record::Block { entry, file, .. } => {
                    drop(file);
                    entry.file().settle();
                }
                _ => {}
            }
        }
    }

    /// Syncs every file of the batch once; gives back the serials of those that could not be, whose blocks are condemned.
    fn sync_files(&self, batch: &[Record], stop: bool) -> HashMap<u64, io::ErrorKind> {
        let mut synced: HashMap<u64, Option<io::ErrorKind>> = HashMap::new();
        let mut lost = Vec::new();
        for record in batch {
            let Record::Block { entry, block, file, .. } = record else { continue };
            if entry.is_withdrawn() {
                continue;
            }
            let outcome = synced.entry(entry.serial()).or_insert_with(|| {
                let result = self.volume.disk().sync_data(file).and_then(|()| self.sync_folder(entry, stop));
                result.err().map(|err| self.sync_failed(&err))
            });
            match outcome {
                None => {
                    self.metrics.blocks_durable.inc();
                    if entry.leaves_memory()
                        && let Some(range) = entry.block_size().range_of(*block, entry.meta().length)
                    {
                        self.volume.disk().drop_pages(file, range.start(), range.len());
                    }
                }
                Some(_) => {
                    entry.condemn(*block);
                    lost.push(entry);
                }
            }
        }
        for entry in lost {
            if let Some(catalog) = entry.catalog() {
                catalog.no_longer_whole(entry);
            }
        }
        synced.into_iter().filter_map(|(serial, failed)| Some((serial, failed?))).collect()
    }

    /// Waits out a shortage of descriptors, which a folder takes to be synced, as long as there is time.
    fn sync_folder(&self, entry: &Entry, stop: bool) -> io::Result<()> {
        loop {
            match entry.file().sync_dir(entry.id()) {
                Err(err) if is_shortage(&err) && !stop => {
                    tracing::warn!(error = %err, "folder cannot be synced now; the catalog waits");
                    std::thread::park_timeout(FULL_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn sync_failed(&self, err: &io::Error) -> io::ErrorKind {
        self.metrics.sync_failures.inc();
        // The kernel has dropped the pages it could not write: nothing of the file since its last sync can be trusted.
        if !matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) && !is_shortage(err) {
            self.volume.fail(VolumeFailure::Write(err.to_string()));
        }
        err.kind()
    }

    fn commit(
        &mut self,
        batch: &[Record],
        failed: &HashMap<u64, io::ErrorKind>,
    ) -> Result<(), super::database::DatabaseError> {
        let transaction = self.database.transaction()?;
        let mut grown: HashMap<u64, u32> = HashMap::new();
        for record in batch {
            match record {
                Record::Asset(entry) if !entry.is_withdrawn() => transaction.asset(entry)?,
                Record::Block { entry, block, digest, .. }
                    if !entry.is_withdrawn() && !failed.contains_key(&entry.serial()) =>
                {
                    transaction.asset(entry)?;
                    transaction.block(entry.serial(), *block, digest)?;
                    grown.insert(entry.serial(), entry.block_size().count(entry.meta().length));
                }
                Record::Condemned { serial, block } => transaction.forget_block(*serial, *block)?,
                Record::Forget { serial } => {
                    transaction.forget(*serial)?;
                    grown.remove(serial);
                }
                Record::Lifetime { serial, lifetime } => transaction.lifetime(*serial, *lifetime)?,
                Record::Whole { serial, digest } => {
                    transaction.whole(*serial, digest.as_ref().map(Sha256::as_bytes))?;
                }
                Record::Pinned { serial, pinned } => transaction.pinned(*serial, *pinned)?,
                Record::Purge { rows, serial } => {
                    rows.iter().try_for_each(|row| transaction.purge(&PurgeRow { serial: *serial, ..row.clone() }))?;
                    transaction.keep_latest_purges()?;
                }
                Record::PurgeDone { rows } => rows.iter().try_for_each(|row| transaction.purge_done(row.id))?,
                Record::Used(used) => used.iter().try_for_each(|(serial, when)| transaction.used(*serial, *when))?,
                Record::Asset(_) | Record::Block { .. } | Record::Flush(_) | Record::Stop => {}
            }
        }
        for (serial, blocks) in grown {
            transaction.seal_if_whole(serial, blocks)?;
        }
        transaction.commit()
    }
}
