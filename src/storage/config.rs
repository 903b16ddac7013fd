//! What the operator decides about disks.

use std::{path::PathBuf, time::Duration};

use crate::{
    asset::{BitRate, BlockSize, ByteCount},
    sys::sandbox::Reach,
};

/// Where bytes lie and how they are brought into memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Unit in which assets are filled, digested and accounted.
    pub block_size: BlockSize,
    /// The disks, one directory each.
    pub volumes: Vec<VolumeConfig>,
    /// Most assets mapped at once; each costs one file descriptor and one of `vm.max_map_count` maps.
    pub mappings_max: usize,
    /// Bytes made resident ahead of what is being sent to one viewer.
    pub window: ByteCount,
    /// How cold windows are read.
    pub engine: EngineChoice,
    /// Pieces of cold windows (of 256 KiB by io_uring, whole ones by threads) being read at once, over all viewers; further ones wait their turn.
    pub cold_reads_max: usize,
    /// Most wait between a block's last byte and its being durable.
    pub sync_interval: Duration,
    /// Blocks made durable in one batch at most.
    pub sync_batch_max: usize,
    /// How long pages that were found in memory are taken to be there still; zero asks the kernel each time.
    pub residency_trust: Duration,
    /// Blocks that may wait to become durable; filling waits beyond that.
    pub sync_queue_max: usize,
    /// Rate at which the scrubber re-reads what is stored; zero turns it off.
    pub scrub_rate: BitRate,
    /// Failed reads after which a volume is taken out.
    pub read_errors_max: u32,
    /// How often each volume is probed with a small write, sync and read.
    pub probe_interval: Duration,
    /// Longest wait for that probe before the volume counts as failed.
    pub probe_timeout: Duration,
}

/// One disk's directory.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeConfig {
    /// The directory; made at start if its parent exists.
    pub path: PathBuf,
    /// Bytes of assets it may hold. Catalog and file system metadata come on top (about 1 %).
    pub capacity: ByteCount,
}

/// How cold windows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where the kernel has it, threads otherwise.
    Auto,
    /// io_uring or refuse to start.
    Uring,
    /// A pool of blocking threads.
    Threads,
}

impl Config {
    /// The files that are used after the start: those below the volumes, which are made where they are missing.
    pub fn reach(&self, reach: &mut Reach) {
        for volume in &self.volumes {
            reach.write_below(&volume.path);
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            volumes: Vec::new(),
            mappings_max: 32_768,
            window: ByteCount(2 << 20),
            engine: EngineChoice::Auto,
            cold_reads_max: 128,
            residency_trust: Duration::from_secs(1),
            sync_interval: Duration::from_millis(500),
            sync_batch_max: 256,
            sync_queue_max: 4096,
            scrub_rate: BitRate(160_000_000),
            read_errors_max: 8,
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(30),
        }
    }
}
