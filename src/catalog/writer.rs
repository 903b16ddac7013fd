//! Writes what fill fetches into an asset, in order, from the start of a block on.
//!
//! reserve the block -> pwrite -> mark how far it is (viewers wake) -> at its end: digest, present, to the database
//!
//! What is fetched ahead of demand goes past the page cache, in larger pieces, and is seen block by block: nobody waits for it, it would push what
//! viewers want out of memory, and writing it behind would take time from the threads that serve.
//!
//! Blocks that are here, or that somebody else writes, are passed over: the bytes are counted and dropped.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Refusal,
    entry::{BeginBlock, Entry},
    persist::Record,
};
use crate::{
    asset::{ByteRange, Digest},
    storage::{AlignedBuffer, DIRECT_UNIT, HasFile as _, is_shortage},
};

/// Why bytes could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No space, and nothing could be evicted for it.
    #[error("no space left on the volume")]
    NoRoom,
    /// The entry was evicted, purged or replaced.
    #[error("the asset was withdrawn")]
    Withdrawn,
    /// More bytes than the asset has.
    #[error("more bytes than the asset has")]
    TooLong,
    /// The process is short of descriptors or memory.
    #[error("writing is not possible now: {0}")]
    Shortage(io::Error),
    /// The disk failed; the volume is taken out.
    #[error("writing to the volume failed: {0}")]
    Io(io::Error),
    /// The appliance is stopping.
    #[error("the appliance is stopping")]
    Stopping,
}

impl WriteError {
    /// What a viewer who waits for the bytes hears.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoRoom => Refusal::NoRoom,
            Self::Shortage(_) => Refusal::Busy,
            Self::Withdrawn | Self::Io(_) => Refusal::Withdrawn,
            Self::TooLong => Refusal::SourceFailed,
            Self::Stopping => Refusal::Stopping,
        }
    }
}

/// A writer into one asset. Dropped in the middle of a block, it leaves the block wanted but not there.
#[derive(Debug)]
pub struct AssetWriter {
    /// Away while a write is under way on another thread.
    inner: Option<Box<Inner>>,
    position: u64,
}

#[derive(Debug)]
struct Inner {
    entry: Arc<Entry>,
    id: u64,
    position: u64,
    file: Option<Arc<File>>,
    block: Option<Block>,
    passed_over: bool,
    direct: Direct,
}

/// The way past the page cache.
#[derive(Debug)]
enum Direct {
    Unknown,
    Off,
    On(Box<Passing>),
}

/// Bytes on their way past the page cache.
#[derive(Debug)]
struct Passing {
    file: File,
    buffer: AlignedBuffer,
    /// Bytes in the buffer.
    filled: usize,
}

/// The block a writer stands in.
#[derive(Debug)]
struct Block {
    number: u32,
    range: ByteRange,
    /// `None` for a block that is passed over.
    hasher: Option<Box<blake3::Hasher>>,
    reserved: bool,
    /// Whether it is written past the page cache.
    is_direct: bool,
}

/// Bytes that are gathered for a write past the page cache.
const DIRECT_BYTES: usize = 1 << 20;

/// Longest wait for space that is on its way back, and the pause between two looks. Longer than `storage.sync_interval` is by
/// default; fill waits, viewers who hit do not.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
const ROOM_PAUSE: Duration = Duration::from_millis(25);

static WRITERS: AtomicU64 = AtomicU64::new(1);

impl AssetWriter {
    pub(super) fn new(entry: Arc<Entry>, block: u32) -> Self {
        entry.add_writer();
        let position = entry.block_size().start_of(block).min(entry.meta().length);
        let id = WRITERS.fetch_add(1, Ordering::Relaxed);
        Self {
            inner: Some(Box::new(Inner {
                entry,
                id,
                position,
                file: None,
                block: None,
                passed_over: false,
                direct: Direct::Unknown,
            })),
            position,
        }
    }

    /// Offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether a block was passed over: what lies on the disk there came from elsewhere than what this writer was given.
    pub fn has_passed_over(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.passed_over)
    }

    /// Writes the next bytes; they may be served when this returns, or, of a block that goes past the page cache, when the block is whole. Runs on a
    /// thread that may block, unless they only go to memory: then waking one takes longer than what it is for.
    ///
    /// # Errors
    /// See [`WriteError`]. After an error the writer is of no more use.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        if let Some(inner) = self.inner.as_mut().filter(|inner| inner.only_gathers(bytes.len())) {
            let result = inner.write(std::iter::once(bytes.as_ref()));
            self.position = inner.position;
            return result;
        }
        self.write_pieces(vec![bytes]).await
    }

    /// As [`AssetWriter::write`], for several pieces in one go.
    ///
    /// # Errors
    /// See [`WriteError`]. After an error the writer is of no more use.
    pub async fn write_pieces(&mut self, pieces: Vec<Bytes>) -> Result<(), WriteError> {
        let Some(mut inner) = self.inner.take() else { return Err(WriteError::Stopping) };
        let written = tokio::task::spawn_blocking(move || {
            let result = inner.write(pieces.iter().map(AsRef::as_ref));
            (inner, result)
        });
        let (inner, result) = written.await.map_err(|_| WriteError::Stopping)?;
        self.position = inner.position;
        self.inner = Some(inner);
        result
    }

    /// As [`AssetWriter::write`], on the calling thread, which has to be one that may block.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write_blocking(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let inner = self.inner.as_mut().ok_or(WriteError::Stopping)?;
        let result = inner.write(std::iter::once(bytes));
        self.position = inner.position;
        result
    }
}

impl Inner {
    fn write<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), WriteError> {
        let mut pieces: VecDeque<&[u8]> = pieces.filter(|piece| !piece.is_empty()).collect();
        while !pieces.is_empty() {
            if self.block.is_none() {
                self.begin_block()?;
            }
            let Some(block) = self.block.as_mut() else { return Err(WriteError::TooLong) };
            let room = usize::try_from(block.range.end() - self.position).unwrap_or(usize::MAX);
            let now = take_first(&mut pieces, room);
            let taken = now.iter().map(|piece| piece.len() as u64).sum::<u64>();
            if let Some(hasher) = block.hasher.as_mut() {
                for piece in &now {
                    hasher.update(piece);
                }
                if block.is_direct {
                    self.pass(&now)?;
                    self.position += taken;
                    if self.position == self.block_end() {
                        self.flush_passing()?;
                        self.finish_block()?;
                    }
                    continue;
                }
                let file = self.file.as_ref().ok_or(WriteError::Stopping)?;
                let volume = self.entry.file().volume();
                volume.disk().write_at(file, &now, self.position).map_err(|err| disk_failed(&self.entry, err))?;
                let written = self.position + taken - block.range.start();
                let written = u32::try_from(written).unwrap_or(u32::MAX);
                self.position += taken;
                if self.position < block.range.end() {
                    self.entry.block_grew(self.id, block.number, written);
                }
            } else {
                self.position += taken;
            }
            if self.position == block.range.end() {
                self.finish_block()?;
            }
        }
        Ok(())
    }

    /// Whether that many bytes neither reach the disk nor end a block, which others hear of.
    fn only_gathers(&self, bytes: usize) -> bool {
        let Some(block) = &self.block else { return false };
        let fits = match &self.direct {
            Direct::On(passing) => block.is_direct && passing.filled + bytes < passing.buffer.whole().len(),
            Direct::Unknown | Direct::Off => false,
        };
        // What is passed over goes nowhere.
        (fits || block.hasher.is_none()) && self.position + (bytes as u64) < block.range.end()
    }

    fn block_end(&self) -> u64 {
        self.block.as_ref().map_or(u64::MAX, |block| block.range.end())
    }

    /// Gathers `pieces`, which come at the present position, for writes past the page cache.
    fn pass(&mut self, pieces: &[&[u8]]) -> Result<(), WriteError> {
        let mut at = self.position;
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let Direct::On(passing) = &mut self.direct else { return Err(WriteError::Stopping) };
                let room = &mut passing.buffer.whole_mut()[passing.filled..];
                let (now, later) = piece.split_at(piece.len().min(room.len()));
                room[..now.len()].copy_from_slice(now);
                (passing.filled, at, piece) = (passing.filled + now.len(), at + now.len() as u64, later);
                if passing.filled == passing.buffer.whole().len() {
                    self.write_passing(at)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is gathered at the end of a block.
    fn flush_passing(&mut self) -> Result<(), WriteError> {
        self.write_passing(self.position)
    }

    /// Writes what is gathered and ends at `end`.
    fn write_passing(&mut self, end: u64) -> Result<(), WriteError> {
        let (Direct::On(passing), Some(file)) = (&mut self.direct, self.file.as_ref()) else { return Ok(()) };
        let disk = self.entry.file().volume().disk();
        let bytes = &passing.buffer.whole()[..std::mem::take(&mut passing.filled)];
        let begin = end - bytes.len() as u64;
        // The end of a file is seldom that of a page.
        let (pages, rest) = bytes.split_at(bytes.len() / DIRECT_UNIT * DIRECT_UNIT);
        let written = match disk.write_at(&passing.file, &[pages], begin) {
            // A disk of larger sectors than we know of.
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => disk.write_at(file, &[pages], begin),
            written => written,
        };
        let written = written.and_then(|()| disk.write_at(file, &[rest], begin + pages.len() as u64));
        written.map_err(|err| disk_failed(&self.entry, err))
    }

    /// Whether the block that begins now is written past the page cache.
    fn goes_direct(&mut self) -> Result<bool, WriteError> {
        // Who has it mapped reads it by the page cache.
        if !self.entry.leaves_memory() {
            return Ok(false);
        }
        if matches!(self.direct, Direct::Unknown) {
            let file = self.entry.file().open_write_direct(self.entry.id());
            self.direct = match file.map_err(|err| disk_failed(&self.entry, err))? {
                Some(file) => {
                    Direct::On(Box::new(Passing { file, buffer: AlignedBuffer::new(DIRECT_BYTES), filled: 0 }))
                }
                None => Direct::Off,
            };
        }
        Ok(matches!(self.direct, Direct::On(_)))
    }

    fn begin_block(&mut self) -> Result<(), WriteError> {
        let (entry, size) = (&self.entry, self.entry.block_size());
        let length = entry.meta().length;
        if self.position >= length {
            return Err(WriteError::TooLong);
        }
        let number = size.block_of(self.position);
        let range = size.range_of(number, length).ok_or(WriteError::TooLong)?;
        let mut block = Block { number, range, hasher: None, reserved: false, is_direct: false };
        match entry.begin_block(self.id, number) {
            BeginBlock::Withdrawn => return Err(WriteError::Withdrawn),
            BeginBlock::Skip => self.passed_over = true,
            BeginBlock::Write { reserved } => {
                block.reserved = reserved;
                // From here on the block is ours: `Drop` gives it back if what follows fails.
                block.hasher = Some(Box::default());
                self.block = Some(block);
                self.reserve(range)?;
                let is_direct = self.goes_direct()?;
                if let Some(block) = &mut self.block {
                    block.is_direct = is_direct;
                }
                return Ok(());
            }
        }
        self.block = Some(block);
        Ok(())
    }

    /// Opens the file, and reserves space for the block, evicting others where there is none.
    fn reserve(&mut self, range: ByteRange) -> Result<(), WriteError> {
        let Some(block) = self.block.as_mut() else { return Ok(()) };
        let file = self.entry.file();
        let opened = match self.file.take() {
            Some(opened) => opened,
            None => file.open_write(self.entry.id()).map_err(|err| disk_failed(&self.entry, err))?,
        };
        if !block.reserved {
            let mut reserved = file.reserve(&opened, range);
            let begun = Instant::now();
            // What is evicted gives its space back when its last reader and its last record have let go of it.
            while matches!(&reserved, Err(err) if err.kind() == io::ErrorKind::StorageFull)
                && begun.elapsed() < ROOM_PATIENCE
            {
                let catalog = self.entry.catalog().ok_or(WriteError::Stopping)?;
                catalog.make_room(file.volume(), range.len());
                reserved = file.reserve(&opened, range);
                if reserved.is_err() {
                    std::thread::park_timeout(ROOM_PAUSE);
                }
            }
            reserved.map_err(|err| disk_failed(&self.entry, err))?;
            block.reserved = true;
        }
        self.file = Some(opened);
        Ok(())
    }

    fn finish_block(&mut self) -> Result<(), WriteError> {
        let Some(block) = self.block.take() else { return Ok(()) };
        let (Some(hasher), Some(file)) = (block.hasher, self.file.as_ref()) else { return Ok(()) };
        let digest = Digest::new(*hasher.finalize().as_bytes());
        self.entry.block_present(block.number);
        let catalog = self.entry.catalog().ok_or(WriteError::Stopping)?;
        let record =
            Record::Block { entry: Arc::clone(&self.entry), block: block.number, digest, file: Arc::clone(file) };
        catalog.record(&self.entry, record);
        Ok(())
    }
}

/// Takes at most `room` bytes off the front.
fn take_first<'a>(pieces: &mut VecDeque<&'a [u8]>, mut room: usize) -> Vec<&'a [u8]> {
    let mut taken = Vec::with_capacity(pieces.len());
    while room > 0
        && let Some(piece) = pieces.pop_front()
    {
        let (now, later) = piece.split_at(room.min(piece.len()));
        if !later.is_empty() {
            pieces.push_front(later);
        }
        room -= now.len();
        taken.push(now);
    }
    taken
}

/// Tells a full disk, which is a state, and a shortage, which is none of its doing, from a broken one, which takes the volume
/// out.
fn disk_failed(entry: &Arc<Entry>, err: io::Error) -> WriteError {
    match err.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WriteError::NoRoom,
        // The file was evicted under the writer; or somebody has removed or cut it, and with it what was held.
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
            if let Some(catalog) = entry.catalog() {
                catalog.read_failed(entry, &err);
            }
            WriteError::Withdrawn
        }
        _ if is_shortage(&err) => WriteError::Shortage(err),
        _ => {
            if let Some(catalog) = entry.catalog() {
                catalog.write_failed(entry, &err);
            }
            WriteError::Io(err)
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(block) = self.block.take()
            && block.hasher.is_some()
        {
            self.entry.block_broke_off(self.id, block.number, block.reserved);
        }
        drop(self.file.take());
        self.entry.file().settle();
        self.entry.drop_writer();
    }
}
