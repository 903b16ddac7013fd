//! Brings cold slices into memory before anybody reads them.
//!
//! check (`mincore`) -> resident: bytes at once
//!                   -> cold: each piece: advice, and io_uring tells when it has come -> check -> bytes
//!                            where the disk's queue is full: io_uring `MADV_POPULATE_READ` -> check -> bytes
//!                            where not all has come so, or there is no io_uring: a thread of the pool -> bytes, or the disk's error as a code
//!
//! Never waits for a disk on the thread that asks, which hands reads over as long as the disk's queue has room. Between the check and the send the kernel may take pages away again. A check is trusted for
//! `storage.residency_trust`, since pages that somebody has just used are the last to be taken; where one is taken all the same, the
//! worker waits for the disk once, and its major faults and block reads say so.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
};

use super::{
    Config, EngineChoice,
    mapping::{ColdSlice, Mapping, Populating},
};
use crate::{
    asset::ByteRange,
    sys::{
        disk_queue,
        uring::{Attendance, Outcome, Ring},
    },
};

/// Reads cold windows, at most so many at once.
#[derive(Debug)]
pub struct Residency {
    engine: Engine,
    trust: Duration,
    slots: Arc<Semaphore>,
    slots_max: usize,
    /// Pieces that may be handed to the disk by the threads that ask, at once, and how many are.
    advised_max: usize,
    advised: Arc<AtomicUsize>,
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
            advised_max: config.volumes.iter().map(|volume| advised_max(&volume.path)).min().unwrap_or(ADVISED),
            advised: Arc::default(),
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

    /// The bytes, after waiting for the disk where needed. Where something has to be read, so is what of `next` is not in memory, behind it and as
    /// far as the engine is not busy: who waits goes first.
    ///
    /// # Errors
    /// The disk could not deliver.
    pub async fn resident(&self, slice: ColdSlice, next: Option<ColdSlice>) -> Result<Bytes, ReadError> {
        if slice.is_cached(self.trust) {
            self.prefetch(next).await;
            return Ok(slice.into_bytes());
        }
        let begun = Instant::now();
        let outcome = match &self.engine {
            Engine::Uring(ring) => self.read(ring, slice, next).await,
            Engine::Threads => populate_on_thread(slice, self.slot().await?).await,
        };
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.wait_micros.fetch_add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        outcome.map(ColdSlice::into_bytes)
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit, ReadError> {
        Arc::clone(&self.slots).acquire_owned().await.map_err(|_| ReadError::Stopping)
    }

    /// Starts reading a slice that will be wanted soon.
    async fn prefetch(&self, slice: Option<ColdSlice>) {
        let (Engine::Uring(ring), Some(slice)) = (&self.engine, slice) else { return };
        if slice.is_cached(self.trust) {
            return;
        }
        for (number, piece) in slice.pieces(PIECE).enumerate() {
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { return };
            if self.start(ring, &slice, piece, slot).is_err() {
                return;
            }
            if number == 0 {
                self.prefetches.fetch_add(1, Ordering::Relaxed);
            }
            yield_now().await;
        }
    }

    async fn read(&self, ring: &Ring, slice: ColdSlice, next: Option<ColdSlice>) -> Result<ColdSlice, ReadError> {
        let (mut reads, mut failed) = (Vec::new(), false);
        for piece in slice.pieces(PIECE) {
            // Others have their turn between two.
            if !reads.is_empty() {
                yield_now().await;
            }
            match self.start(ring, &slice, piece, self.slot().await?) {
                Ok(read) => reads.push(read),
                Err(_) => failed = true,
            }
        }
        self.prefetch(next).await;
        for read in reads {
            failed |= read.await.map_err(|_| ReadError::Stopping)?.is_err();
        }
        if !failed && slice.is_in_memory() {
            return Ok(slice);
        }
        // Not all of a piece came with its last byte, or the ring failed, which is no fault of the disk's. A thread waits for each page, and tells
        // what is wrong with it.
        populate_on_thread(slice, self.slot().await?).await
    }

    /// Has `piece` of `slice` read. What comes back does so when its last byte is there. Whether all others are, too, is not known then: somebody else
    /// may have had the last page read before, the disk may have failed for another, and what lies apart on it comes in any order.
    fn start(
        &self,
        ring: &Ring,
        slice: &ColdSlice,
        piece: ByteRange,
        slot: OwnedSemaphorePermit,
    ) -> io::Result<Outcome> {
        let mapping = Arc::clone(slice.mapping());
        let advised = Advised(Arc::clone(&self.advised));
        if advised.0.fetch_add(1, Ordering::Relaxed) >= self.advised_max {
            // Whoever handed it over would wait for a place in the disk's queue: the kernel's threads do.
            let piece = ColdSlice::new(mapping, piece).ok_or(io::ErrorKind::InvalidInput)?;
            check(&piece)?;
            return ring.populate_read(Slotted { slice: piece.into_populating(), _slot: slot });
        }
        mapping.advise(piece);
        ring.when_read(Started { mapping, _slot: slot, _advised: advised }, piece.end() - 1)
    }
}

/// Counts while a piece is on its way.
struct Advised(Arc<AtomicUsize>);

impl Drop for Advised {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The same where nothing says what the disk's queue holds: half of the 64 that it has where the disk itself takes 32.
const ADVISED: usize = 32;

/// Pieces that are handed to a disk by the threads that ask: half of what its queue holds, which is not theirs alone.
fn advised_max(path: &Path) -> usize {
    disk_queue::room(path, PIECE).map_or(ADVISED, |room| room / 2)
}

/// Bytes of which a thread hands the reading to the disk before it looks after others: some 80 us of work.
const PIECE: u64 = 256 << 10;

/// # Errors
/// The slice cannot be relied on, which populating does not see.
fn check(slice: &ColdSlice) -> io::Result<()> {
    // The file's loss, or somebody's fault, and not known to be its disk's.
    let damaged = || io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut short, or pages of it are gone");
    if slice.is_damaged() { Err(damaged()) } else { Ok(()) }
}

async fn populate_on_thread(slice: ColdSlice, slot: OwnedSemaphorePermit) -> Result<ColdSlice, ReadError> {
    let populated = tokio::task::spawn_blocking(move || {
        let result = check(&slice).and_then(|()| slice.populate());
        drop(slot);
        result.map(|()| slice)
    });
    Ok(populated.await.map_err(|_| ReadError::Stopping)??)
}

/// What is being read, and its place among the reads: whoever stops waiting for it does not make room for more before the kernel is
/// done.
struct Started {
    mapping: Arc<Mapping>,
    _slot: OwnedSemaphorePermit,
    _advised: Advised,
}

impl AsFd for Started {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapping.file().as_fd()
    }
}

/// The same of a slice whose pages are waited for.
struct Slotted {
    slice: Populating,
    _slot: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Slotted {
    fn as_ref(&self) -> &[u8] {
        self.slice.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::mapping::tests::{LEN, forget, mapped},
        *,
    };

    fn slice(mapping: &Arc<Mapping>, start: usize, end: usize) -> ColdSlice {
        ColdSlice::new(Arc::clone(mapping), ByteRange::new(start as u64, end as u64).expect("not empty"))
            .expect("there")
    }

    fn residency(engine: EngineChoice, cold_reads_max: usize) -> Option<Residency> {
        Residency::new(&Config { engine, cold_reads_max, ..Config::default() })
            .inspect_err(|err| eprintln!("SKIPPED: {err}"))
            .ok()
    }

    const WAYS: [(EngineChoice, usize); 4] =
        [(EngineChoice::Uring, 100), (EngineChoice::Uring, 1), (EngineChoice::Uring, 0), (EngineChoice::Threads, 0)];

    #[tokio::test]
    async fn more_pieces_than_may_be_read_at_once_are_read_for_all_who_wait() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let mapping = Arc::new(mapped(dir.path()));
        for (engine, advised_max) in WAYS {
            let Some(residency) = residency(engine, 2).map(|made| Arc::new(Residency { advised_max, ..made })) else {
                continue;
            };
            forget(&mapping);
            let readers: Vec<_> = (0..6)
                .map(|number| {
                    let (residency, mapping) = (Arc::clone(&residency), Arc::clone(&mapping));
                    tokio::spawn(async move {
                        let start = number * 100_000;
                        let next = slice(&mapping, LEN - 600_000, LEN);
                        residency.resident(slice(&mapping, start, start + 2_000_000), Some(next)).await.expect("read")
                    })
                })
                .collect();
            for reader in readers {
                let bytes = reader.await.expect("it ends");
                assert!(bytes.len() == 2_000_000 && bytes.iter().all(|byte| *byte == 7));
            }
            assert!(slice(&mapping, 0, 2_500_000).is_in_memory(), "{engine:?}");
        }
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_counted_until_it_has_come_whether_anybody_waits_or_not() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let mapping = Arc::new(mapped(dir.path()));
        let Some(residency) = residency(EngineChoice::Uring, 4) else { return };
        forget(&mapping);
        {
            let reading = std::pin::pin!(residency.resident(slice(&mapping, 0, 200_000), None));
            assert!(futures_util::poll!(reading).is_pending() || slice(&mapping, 0, 200_000).is_in_memory());
        }
        residency.resident(slice(&mapping, 1 << 20, LEN), None).await.expect("read");
        let all = residency.slots.acquire_many(4).await.expect("all come back");
        assert_eq!(residency.advised.load(Ordering::Relaxed), 0);
        drop(all);
    }

    #[tokio::test]
    async fn a_slice_of_which_only_the_last_page_is_in_memory_is_read() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let mapping = Arc::new(mapped(dir.path()));
        for (engine, advised_max) in WAYS {
            let Some(residency) = residency(engine, 8).map(|made| Residency { advised_max, ..made }) else { continue };
            forget(&mapping);
            slice(&mapping, 196_000, 200_000).populate().expect("read");
            let bytes = residency.resident(slice(&mapping, 0, 200_000), None).await.expect("read");
            assert!(bytes.iter().all(|byte| *byte == 7));
            assert!(slice(&mapping, 0, 200_000).is_in_memory(), "{engine:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_was_cut_short_is_an_error() {
        for ((engine, advised_max), trust) in WAYS.into_iter().flat_map(|way| [(way, 0), (way, 1000)]) {
            let dir = tempfile::tempdir().expect("a scratch folder");
            let mapping = Arc::new(mapped(dir.path()));
            let Some(residency) = residency(engine, 8).map(|made| Residency { advised_max, ..made }) else { continue };
            // Of a part that stays in memory behind the end, too.
            let residency = Residency { trust: Duration::from_millis(trust), ..residency };
            forget(&mapping);
            std::fs::File::options()
                .write(true)
                .open(dir.path().join("asset"))
                .and_then(|file| file.set_len(150_000))
                .expect("cut short");
            for (start, end) in [(100_000, 200_000), (149_000, 151_000), (0, 1_000_000), (2_000_000, LEN)] {
                let failed = residency.resident(slice(&mapping, start, end), None).await;
                // Not the disk's: its volume does not fail by it.
                let is_cut = matches!(&failed, Err(ReadError::Io(err)) if err.kind() == io::ErrorKind::UnexpectedEof);
                assert!(is_cut, "{engine:?}: {start}..{end}: {failed:?}");
                assert!(residency.resident_now(slice(&mapping, start, end)).is_none());
            }
        }
    }
}
