//! Mapped asset files, and slices of them that may or may not be in memory.
//!
//! The only file that maps memory. A [`ColdSlice`] names bytes without being able to read them; only `residency` turns one
//! into bytes.

#![expect(
    unsafe_code,
    reason = "mapping a file, and asking the kernel which of its pages are in memory, have no safe interface"
)]

use std::{fs::File, io, ops::Range, sync::Arc};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

use super::{asset_file::OpenCount, volume::Space};
use crate::asset::ByteRange;

/// One mapped asset file. Keeps its file open, so that `sendfile(2)` can send from it.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
    file: File,
    space: Arc<Space>,
    _open: OpenCount,
}

impl Mapping {
    /// Maps all of `file`, which holds at least one byte.
    ///
    /// # Errors
    /// As of `mmap(2)`; `UnexpectedEof` where the file is shorter than `length`.
    pub(super) fn new(file: File, length: u64, space: Arc<Space>, open: OpenCount) -> io::Result<Self> {
        if file.metadata()?.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // JUSTIFICATION: a copy into a buffer per chunk would cost about half of the CPU of a hit (DESIGN.md, 3).
        // SAFETY: files below a volume are written only by this process (`lock`), only in blocks that no slice covers yet,
        // and never truncated. The mapping is read-only and lives in the `Arc` that every slice holds. Somebody who truncates
        // a file from outside makes reads fail with a code: slices are populated before they are read.
        let map = unsafe { MmapOptions::new().len(len).map(&file)? };
        Ok(Self { map, file, space, _open: open })
    }

    /// Bytes mapped.
    pub fn length(&self) -> u64 {
        self.map.len() as u64
    }

    /// The file below, for `sendfile(2)`.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The space the file takes, and through it its volume.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Offset in the file, if `bytes` lies inside this mapping. Compares addresses; reads nothing.
    pub fn locate(&self, bytes: &[u8]) -> Option<u64> {
        let base = self.map.as_ptr().addr();
        let start = bytes.as_ptr().addr().checked_sub(base)?;
        let end = start.checked_add(bytes.len())?;
        (end <= self.map.len()).then_some(start as u64)
    }

    /// Whether all pages of `range` are in memory, ready to be read (`mincore(2)`).
    ///
    /// `cachestat(2)` would be cheaper, but counts pages that the kernel is still reading ahead: whoever sends them waits for the
    /// disk. `mincore` counts a page only when its bytes are there.
    fn is_cached(&self, range: &Range<usize>) -> bool {
        let page = rustix::param::page_size();
        let start = range.start / page * page;
        let len = range.end - start;
        let mut residency = vec![0_u8; len.div_ceil(page)];
        let address = self.map.as_ptr().wrapping_add(start);
        // SAFETY: `start..start + len` lies inside the mapping and begins at a page; the vector has a byte for each page.
        let result = unsafe { libc::mincore(address.cast_mut().cast(), len, residency.as_mut_ptr()) };
        result == 0 && residency.iter().all(|page| page & 1 == 1)
    }
}

/// A part of a mapping that may not be in memory: it can be named, checked and populated, but not read.
#[derive(Clone, Debug)]
pub struct ColdSlice {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl ColdSlice {
    /// `range` of `mapping`, cut to the mapping's end; `None` where nothing is left.
    pub fn new(mapping: Arc<Mapping>, range: ByteRange) -> Option<Self> {
        let whole = ByteRange::new(0, mapping.length())?;
        let cut = range.intersect(whole)?;
        let range = usize::try_from(cut.start()).ok()?..usize::try_from(cut.end()).ok()?;
        Some(Self { mapping, range })
    }

    /// The mapping it is a part of.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "a slice is never empty")]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether all its pages are in memory just now.
    pub(super) fn is_cached(&self) -> bool {
        self.mapping.is_cached(&self.range)
    }

    /// `MADV_POPULATE_READ` on the calling thread.
    ///
    /// # Errors
    /// `EFAULT` or `EIO` where the disk could not deliver a page; no signal is raised.
    pub(super) fn populate(&self) -> io::Result<()> {
        const MADV_POPULATE_READ: libc::c_int = 22;
        let page = rustix::param::page_size();
        let start = self.range.start / page * page;
        let base = self.mapping.map.as_ptr();
        // SAFETY: `start` is at most the mapping's length.
        let address = unsafe { base.add(start) };
        // SAFETY: the range lies inside the mapping and begins at a page; populating only reads the file.
        let result = unsafe { libc::madvise(address.cast_mut().cast(), self.range.end - start, MADV_POPULATE_READ) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The bytes, for what has just been found or made resident.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(Resident(self))
    }

    /// The slice as a buffer for the kernel to populate.
    pub(super) fn into_populating(self) -> Populating {
        Populating(self)
    }
}

/// A slice whose pages were in memory a moment ago.
struct Resident(ColdSlice);

impl AsRef<[u8]> for Resident {
    fn as_ref(&self) -> &[u8] {
        &self.0.mapping.map[self.0.range.clone()]
    }
}

/// A slice in the kernel's hands. Its address is taken; its bytes are not read by us.
pub(super) struct Populating(ColdSlice);

impl Populating {
    pub(super) fn into_inner(self) -> ColdSlice {
        self.0
    }
}

impl AsRef<[u8]> for Populating {
    fn as_ref(&self) -> &[u8] {
        &self.0.mapping.map[self.0.range.clone()]
    }
}
