//! Where bytes lie: volumes, the files of assets on them, their mappings, and how cold pages come into memory.
//!
//! volume -> layout -> asset_file -> (writer: `AssetFile::write_at`) -> mapping -> residency
//!
//! A file is written block by block, each block once; it is never truncated and never renamed over. Eviction unlinks it; the
//! space counts as free when the last lease has let go of the mapping. Nothing here knows keys, viewers or sources.

mod aligned;
mod asset_file;
mod config;
mod disk;
mod layout;
pub mod lost_pages;
mod mapping;
mod mappings;
mod residency;
mod volume;

pub use aligned::{AlignedBuffer, DIRECT_UNIT};
pub use asset_file::{AssetFile, HasFile};
pub use config::{Config, EngineChoice, VolumeConfig};
pub use disk::{Disk, RealDisk, is_shortage};
pub use layout::{FileName, Identity, read_identity};
pub use mapping::{ColdSlice, Mapping};
pub use mappings::{Mappings, MappingsFull};
pub use residency::{ReadError, Residency};
pub use volume::{Space, SpaceError, Volume, VolumeError, VolumeFailure, VolumeState};
