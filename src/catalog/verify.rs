//! Compares what lies on a volume with the digests recorded for it: one thread a volume.
//!
//! First what viewers wait for (blocks from before an unclean stop), then, at `storage.scrub_rate` and for ever, everything in
//! turn, read from the disk itself and not from memory. A block that differs is condemned and fetched anew when it is wanted.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use super::{
    Catalog, Refusal, Unverified,
    database::Database,
    entry::{Entry, Home},
};
use crate::{
    asset::{ByteRange, Digest},
    storage::{AlignedBuffer, HasFile as _, Volume, VolumeState, is_shortage},
    telemetry::metrics::VolumeMetrics,
};

/// One volume's verifier.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) volume: Arc<Volume>,
    pub(super) database: Database,
    /// Blocks that viewers wait for.
    pub(super) wanted: Receiver<Unverified>,
    /// Bytes per second; zero: no scrubbing.
    pub(super) scrub_rate: u64,
    pub(super) home: Home,
    pub(super) metrics: Arc<VolumeMetrics>,
}

/// How many blocks the scrubber looks up at once.
const SCRUB_BATCH: u32 = 64;
/// Rest between two rounds of the scrubber, and while it is off.
const ROUND_PAUSE: Duration = Duration::from_secs(60);
/// Rest while the catalog is still being put together.
const START_PAUSE: Duration = Duration::from_millis(100);

impl Verifier {
    /// Runs until nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut buffer =
            AlignedBuffer::new(usize::try_from(self.volume.block_size().bytes()).expect("blocks are at most 64 MiB"));
        let mut position = (0, None);
        let mut pause = Duration::ZERO;
        loop {
            match self.wanted.recv_timeout(pause) {
                Ok((entry, block)) => {
                    self.verify_wanted(&entry, block, &mut buffer);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            pause = self.scrub_next(&mut position, &mut buffer).unwrap_or(ROUND_PAUSE);
        }
    }

    fn verify_wanted(&self, entry: &Arc<Entry>, block: u32, buffer: &mut AlignedBuffer) {
        let Some(catalog) = self.home.catalog() else { return };
        if self.volume.state() != VolumeState::Serving || entry.is_withdrawn() {
            return entry.not_verified(block, Refusal::Withdrawn);
        }
        match self.database.digest(entry.serial(), block) {
            Ok(Some(digest)) => {
                let file = entry.file().open_read(entry.id());
                self.compare((&catalog, entry), (block, &digest), file, buffer);
            }
            Ok(None) => catalog.condemn(entry, block),
            Err(err) => {
                tracing::warn!(error = %err, "digest cannot be read");
                entry.not_verified(block, Refusal::Busy);
            }
        }
    }

    /// Verifies the next block in turn; gives how long to rest before the one after it, `None` at the end of a round.
    fn scrub_next(&mut self, position: &mut (u64, Option<u32>), buffer: &mut AlignedBuffer) -> Option<Duration> {
        if self.scrub_rate == 0 || self.volume.state() != VolumeState::Serving {
            return None;
        }
        // Not yet there: this thread is begun before the catalog. Once it is gone, nobody can ask and `run` ends.
        let Some(catalog) = self.home.catalog() else { return Some(START_PAUSE) };
        let next = self.database.blocks_after(position.0, position.1, SCRUB_BATCH);
        let next = next
            .inspect_err(|err| tracing::warn!(error = %err, "scrubber cannot read the catalog"))
            .unwrap_or_default();
        let Some(block) = next.first() else {
            *position = (0, None);
            return None;
        };
        *position = (block.serial, Some(block.number));
        let held = catalog.held(&block.key).filter(|entry| entry.serial() == block.serial);
        // Evicted since: the row is about to go too.
        let Some(entry) = held else { return Some(Duration::ZERO) };
        let file = entry.file().open_direct(entry.id());
        let read = self.compare((&catalog, &entry), (block.number, &block.digest), file, buffer);
        self.metrics.scrubbed_bytes.add(read);
        Some(Duration::from_secs_f64(read as f64 / self.scrub_rate as f64))
    }

    /// Reads a block and compares; tells how many bytes were read.
    fn compare(
        &self,
        (catalog, entry): (&Catalog, &Arc<Entry>),
        (block, digest): (u32, &Digest),
        file: io::Result<File>,
        buffer: &mut AlignedBuffer,
    ) -> u64 {
        let Some(range) = entry.block_size().range_of(block, entry.meta().length) else { return 0 };
        let read = file.and_then(|file| self.read(&file, range, buffer));
        match read {
            Ok(bytes) if blake3::hash(bytes).as_bytes() == digest.as_bytes() => {
                self.metrics.blocks_verified.inc();
                entry.verified(block);
            }
            Ok(_) => {
                self.metrics.blocks_corrupt.inc();
                tracing::error!(asset = %entry.key(), block, volume = %self.volume.root().display(), "block differs from its digest and is dropped");
                catalog.condemn(entry, block);
            }
            Err(err) if entry.is_withdrawn() => {
                tracing::debug!(asset = %entry.key(), error = %err, "asset was withdrawn while it was verified");
                entry.not_verified(block, Refusal::Withdrawn);
            }
            Err(err) if is_shortage(&err) => {
                tracing::warn!(asset = %entry.key(), block, error = %err, "block cannot be verified now");
                entry.not_verified(block, Refusal::Busy);
            }
            Err(err) => {
                tracing::debug!(asset = %entry.key(), block, error = %err, "block cannot be read");
                catalog.read_failed(entry, &err);
            }
        }
        range.len()
    }

    fn read<'b>(&self, file: &File, range: ByteRange, buffer: &'b mut AlignedBuffer) -> io::Result<&'b [u8]> {
        let len = usize::try_from(range.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let whole = buffer.whole_mut();
        let mut read = 0;
        while read < len {
            // Direct reads have to begin and be sized in sectors; only the last one of a file comes back short.
            let got = self.volume.disk().read_some(file, &mut whole[read..], range.start() + read as u64)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            read += got;
        }
        Ok(&whole[..len])
    }
}
