//! Brings cold slices into memory before anybody reads them.
//!
//! check (`mincore`) -> resident: bytes at once
//!                     -> cold: io_uring `MADV_POPULATE_READ`, or a thread of the pool -> bytes, or the disk's error as a code
//!
//! Never faults on the thread that asks. Between the check and the send the kernel may take pages away again. A check is trusted for
//! `storage.residency_trust`, since pages that somebody has just used are the last to be taken; where one is taken all the same, the
//! worker waits for the disk once, and its major faults and block reads say so.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Config, EngineChoice,
    mapping::{ColdSlice, Populating},
};
use crate::sys::uring::{Attendance, Ring};

/// Reads cold windows, at most so many at once.
#[derive(Debug)]
pub struct Residency {
    engine: Engine,
    trust: Duration,
    slots: Arc<Semaphore>,
    slots_max: usize,
    waits: AtomicU64,
    wait_micros: AtomicU64,
    prefetches: AtomicU64,
}

#[derive(Debug)]
enum Engine {
    Uring(Ring),
    Threads,
}

/// Why a slice cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk could not deliver.
    #[error("reading the volume failed: {0}")]
    Io(#[from] io::Error),
    /// The appliance is stopping.
    #[error("the appliance is stopping")]
    Stopping,
}

impl Residency {
    /// Sets up the engine that `config` asks for.
    ///
    /// # Errors
    /// io_uring was demanded and is not to be had.
    pub fn new(config: &Config) -> io::Result<Self> {
        let ring = || Ring::new(config.cold_reads_max);
        let engine = match config.engine {
            // Not even tried: a kernel or a debugger that bears no ring is a reason to ask for threads.
            EngineChoice::Threads => Engine::Threads,
            EngineChoice::Uring => Engine::Uring(ring()?),
            EngineChoice::Auto => ring().map_or_else(
                |err| {
                    tracing::info!(reason = %err, "no io_uring; cold reads use a pool of threads");
                    Engine::Threads
                },
                Engine::Uring,
            ),
        };
        Ok(Self {
            engine,
            trust: config.residency_trust,
            slots: Arc::new(Semaphore::new(config.cold_reads_max)),
            slots_max: config.cold_reads_max,
            waits: AtomicU64::new(0),
            wait_micros: AtomicU64::new(0),
            prefetches: AtomicU64::new(0),
        })
    }

    /// `"io_uring"` or `"threads"`.
    pub fn engine_name(&self) -> &'static str {
        match self.engine {
            Engine::Uring(_) => "io_uring",
            Engine::Threads => "threads",
        }
    }

    /// Gives the calling thread, a delivery worker within its runtime, a ring of its own, where rings are what reads: its reads end in its
    /// own loop, without another thread. `None` where it goes on with what all share.
    pub fn attend(&self) -> Option<Attendance> {
        let Engine::Uring(_) = &self.engine else { return None };
        Ring::attend(self.slots_max)
            .inspect_err(|err| tracing::info!(reason = %err, "a worker has no io_uring of its own; it shares one"))
            .ok()
    }

    /// Slices somebody had to wait for, and the microseconds they waited in all.
    pub fn cold_waits(&self) -> (u64, u64) {
        (self.waits.load(Ordering::Relaxed), self.wait_micros.load(Ordering::Relaxed))
    }

    /// Windows read ahead of their viewer.
    pub fn prefetches(&self) -> u64 {
        self.prefetches.load(Ordering::Relaxed)
    }

    /// The bytes, if all their pages are in memory. Never waits: no system call, or one or two.
    pub fn resident_now(&self, slice: ColdSlice) -> Option<Bytes> {
        slice.is_cached(self.trust).then(|| slice.into_bytes())
    }

    /// The bytes, after waiting for the disk where needed.
    ///
    /// # Errors
    /// The disk could not deliver.
    pub async fn resident(&self, slice: ColdSlice) -> Result<Bytes, ReadError> {
        if slice.is_cached(self.trust) {
            return Ok(slice.into_bytes());
        }
        if slice.is_damaged() {
            return Err(io::Error::other("the file was cut short, or pages of it are gone").into());
        }
        let begun = Instant::now();
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| ReadError::Stopping)?;
        let outcome = self.populate(slice, slot).await;
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.wait_micros.fetch_add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        outcome.map(ColdSlice::into_bytes)
    }

    /// Starts reading a slice that will be wanted soon. Does nothing when the engine is busy: who waits goes first.
    pub fn prefetch(&self, slice: ColdSlice) {
        if slice.is_cached(self.trust) {
            return;
        }
        let Engine::Uring(ring) = &self.engine else { return };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { return };
        if ring.populate_read(Slotted { slice: slice.into_populating(), _slot: slot }).is_ok() {
            self.prefetches.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn populate(&self, slice: ColdSlice, slot: OwnedSemaphorePermit) -> Result<ColdSlice, ReadError> {
        let Engine::Uring(ring) = &self.engine else { return populate_on_thread(slice, slot).await };
        let pending = ring.populate_read(Slotted { slice: slice.into_populating(), _slot: slot })?;
        let (slotted, result) = pending.await.map_err(|_| ReadError::Stopping)?;
        result?;
        Ok(slotted.slice.into_inner())
    }
}

async fn populate_on_thread(slice: ColdSlice, slot: OwnedSemaphorePermit) -> Result<ColdSlice, ReadError> {
    let populated = tokio::task::spawn_blocking(move || {
        let result = slice.populate();
        drop(slot);
        result.map(|()| slice)
    });
    Ok(populated.await.map_err(|_| ReadError::Stopping)??)
}

/// A slice being read, and its place among the reads: whoever stops waiting for it does not make room for more before the
/// kernel is done.
struct Slotted {
    slice: Populating,
    _slot: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Slotted {
    fn as_ref(&self) -> &[u8] {
        self.slice.as_ref()
    }
}
