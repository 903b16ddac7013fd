//! What is held, as a plan sees it: a picture of one moment, which nothing moves.

use std::{io, path::PathBuf};

use super::{
    Catalog, Config,
    database::{Database, DatabaseError},
    rendezvous,
};
use crate::{
    asset::{AssetKey, BlockSize, Sha256, UnixTime},
    storage::{self, VolumeState, read_identity},
};

/// What is held at one moment.
#[derive(Clone, Debug, Default)]
pub struct CatalogView {
    /// The volumes in use.
    pub volumes: Vec<VolumeView>,
    /// Every version held, withheld ones included.
    pub held: Vec<HeldAsset>,
}

/// A volume at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeView {
    /// Its random name.
    pub id: String,
    /// Bytes it may hold.
    pub capacity: u64,
    /// Bytes that eviction begins above.
    pub high: u64,
    /// Bytes that are held and that eviction could free.
    pub kept: u64,
    /// Unit in which it is filled.
    pub block_size: BlockSize,
}

/// A version at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldAsset {
    /// What it is called.
    pub key: AssetKey,
    /// Which version.
    pub serial: u64,
    /// Its volume, by its place among [`CatalogView::volumes`].
    pub volume: usize,
    /// Bytes of the whole.
    pub length: u64,
    /// Bytes reserved on the disk.
    pub reserved: u64,
    /// Whether every block is here.
    pub sealed: bool,
    /// SHA-256 of the whole, where it was compared.
    pub whole: Option<Sha256>,
    /// Whether somebody reads it just now.
    pub leased: bool,
    /// Last use.
    pub used: UnixTime,
}

/// Why a catalog cannot be looked at from outside.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The volume's directory cannot be read.
    #[error("volume {path}: {source}", path = path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its database cannot be read.
    #[error("catalog database of volume {path}: {source}", path = path.display())]
    Database {
        /// The directory.
        path: PathBuf,
        /// What SQLite said.
        source: DatabaseError,
    },
}

impl CatalogView {
    /// The volume that an asset of `length` bytes belongs on; `None` where none is large enough.
    pub fn volume_of(&self, key: &AssetKey, length: u64) -> Option<usize> {
        let id = key.id();
        let fits =
            |(_, volume): &(usize, &VolumeView)| length <= volume.high && length <= volume.block_size.length_max();
        let score = |volume: &VolumeView| rendezvous::score(&id, &volume.id, volume.capacity);
        let volumes = self.volumes.iter().enumerate().filter(fits);
        volumes.max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b))).map(|(at, _)| at)
    }

    /// Reads the records of the volumes of a configuration, while an appliance runs with them or not. Nothing is changed. Of a running
    /// appliance it shows what is durable: the last half second is missing, and who reads what just now.
    ///
    /// # Errors
    /// See [`ViewError`]. A volume that does not exist yet is empty.
    pub fn read(storage: &storage::Config, catalog: &Config) -> Result<Self, ViewError> {
        let mut view = Self::default();
        for config in &storage.volumes {
            let io_error = |source| ViewError::Io { path: config.path.clone(), source };
            let database_error = |source| ViewError::Database { path: config.path.clone(), source };
            let identity = match read_identity(&config.path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => None,
                read => Some(read.map_err(io_error)?),
            };
            let at = view.volumes.len();
            let path = config.path.join("catalog.sqlite");
            let mut kept = 0;
            let block_size = identity.as_ref().and_then(|identity| BlockSize::new(identity.block_size));
            let block_size = block_size.unwrap_or(storage.block_size);
            if identity.is_some() && path.exists() {
                let database = Database::open_reader(&path).map_err(database_error)?;
                let load = database.load(|row| {
                    let Ok(stored) = row else { return };
                    let blocks =
                        stored.blocks.iter().filter_map(|block| block_size.range_of(*block, stored.meta.length));
                    let here: u64 = blocks.map(crate::asset::ByteRange::len).sum();
                    let reserved = if stored.sealed { stored.meta.length } else { here };
                    kept += reserved;
                    view.held.push(HeldAsset {
                        serial: stored.serial,
                        volume: at,
                        length: stored.meta.length,
                        reserved,
                        sealed: stored.sealed,
                        whole: stored.whole,
                        leased: false,
                        used: stored.used,
                        key: stored.key,
                    });
                });
                load.map_err(database_error)?;
            }
            view.volumes.push(VolumeView {
                id: identity.map_or_else(|| format!("{}", config.path.display()), |identity| identity.id),
                capacity: config.capacity.0,
                high: percent(config.capacity.0, catalog.watermark_high_percent),
                kept,
                block_size,
            });
        }
        Ok(view)
    }
}

fn percent(of: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(of) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

impl Catalog {
    /// What is held just now. Takes each volume's lock once; about 200 bytes of memory for each asset. Blocks.
    pub fn view(&self) -> CatalogView {
        let mut view = CatalogView::default();
        self.sort_in_touches();
        for shelf in self.shelves.iter().filter(|shelf| shelf.volume.state() == VolumeState::Serving) {
            let (volume, at) = (&shelf.volume, view.volumes.len());
            view.volumes.push(VolumeView {
                id: volume.id().into(),
                capacity: volume.capacity(),
                high: percent(volume.capacity(), self.config.load().watermark_high_percent),
                kept: volume.kept(),
                block_size: volume.block_size(),
            });
            let entries = shelf.recency.lock().by_serial();
            let whole = shelf.whole.lock();
            view.held.extend(entries.into_iter().map(|(serial, entry)| HeldAsset {
                key: entry.key().clone(),
                serial,
                volume: at,
                length: entry.meta().length,
                reserved: entry.reserved(),
                sealed: entry.is_sealed(),
                whole: whole.get(&serial).copied(),
                leased: entry.is_leased(),
                used: entry.used(),
            }));
        }
        view
    }
}
