//! Mapped asset files, and slices of them that may or may not be in memory.
//!
//! The only file that maps memory. A [`ColdSlice`] names bytes without being able to read them; only `residency` turns one
//! into bytes.

#![expect(
    unsafe_code,
    reason = "mapping a file, and asking the kernel which of its pages are in memory, have no safe interface"
)]

use std::{
    fs::File,
    io,
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::fs::Advice;

use super::{asset_file::OpenCount, lost_pages, volume::Space};
use crate::asset::ByteRange;

/// Bytes whose residency is remembered together.
const STRETCH: usize = 1 << 20;

/// One mapped asset file. Keeps its file open, so that `sendfile(2)` can send from it.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
    /// When each stretch of [`STRETCH`] bytes was last looked at as a whole, and what was found.
    looks: Box<[Look]>,
    /// Where bytes were last found not to be in memory, and when: who asks whether he may send asks again on his way to wait for them.
    cold: AtomicU64,
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
        // a file from outside makes reads fail: with a code where they populate, and else as `lost_pages` has it.
        let map = unsafe { MmapOptions::new().len(len).map(&file)? };
        let looks = (0..len.div_ceil(STRETCH)).map(|_| Look::default()).collect();
        Ok(Self { map, looks, cold: AtomicU64::new(0), file, space, _open: open })
    }

    /// Bytes mapped.
    pub fn length(&self) -> u64 {
        self.map.len() as u64
    }

    /// Has the kernel start reading `part` into its page cache, if it is not there yet (`posix_fadvise(2)`); without waiting for the disk, but
    /// the calling thread takes the pages and hands the read over: some 20 us for 64 KiB. What becomes of it is not known here.
    pub(super) fn advise(&self, part: ByteRange) {
        let advised = rustix::fs::fadvise(&self.file, part.start(), NonZeroU64::new(part.len()), Advice::WillNeed);
        if let Err(err) = advised {
            tracing::debug!(error = %err, "advice to read is not taken");
        }
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

    /// Whether all pages of `range` are in memory, ready to be read; where the stretches it lies in were found so less than `trust`
    /// ago, without asking again.
    fn is_cached(&self, range: &Range<usize>, trust: Duration) -> bool {
        if lost_pages::count() > 0 && self.is_damaged(range) {
            return false;
        }
        match u64::try_from(trust.as_millis()).unwrap_or(u64::MAX) {
            0 => self.is_in_memory(range) && !self.is_cut(),
            trust => self.was_cached(range, coarse_millis(), trust),
        }
    }

    /// Whether the file is shorter than what is mapped of it.
    fn is_cut(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.len() < self.length())
    }

    /// Whether `range` cannot be relied on: the file was cut short, or pages of it were found gone.
    fn is_damaged(&self, range: &Range<usize>) -> bool {
        self.is_cut() || lost_pages::lie_in(&self.addresses(range))
    }

    fn addresses(&self, range: &Range<usize>) -> Range<usize> {
        let base = self.map.as_ptr().addr();
        base + range.start..base + range.end
    }

    fn was_cached(&self, range: &Range<usize>, now: u64, trust: u64) -> bool {
        let stretches = range.start / STRETCH..range.end.div_ceil(STRETCH);
        if self.looks[stretches.clone()].iter().all(|look| look.is_good(now, trust)) {
            return true;
        }
        let cold = found_cold(range.start, now);
        if self.cold.load(Ordering::Relaxed) == cold {
            return false;
        }
        // Behind the end of a file that somebody cut short, the last page holds zeros.
        if !self.is_in_memory(range) || self.is_cut() {
            self.cold.store(cold, Ordering::Relaxed);
            return false;
        }
        for stretch in stretches {
            let look = &self.looks[stretch];
            let whole = stretch * STRETCH..((stretch + 1) * STRETCH).min(self.map.len());
            if range.start <= whole.start && whole.end <= range.end {
                look.note(now, true);
            } else if look.is_worth_it(now, trust, range.len()) {
                look.note(now, self.is_in_memory(&whole));
            }
        }
        true
    }

    /// Whether all pages of `range` are in memory just now (`mincore(2)`).
    ///
    /// `cachestat(2)` would be cheaper, but counts pages that the kernel is still reading ahead: whoever sends them waits for the
    /// disk. `mincore` counts a page only when its bytes are there.
    fn is_in_memory(&self, range: &Range<usize>) -> bool {
        const PAGES: usize = 512;
        let page = rustix::param::page_size();
        let mut start = range.start / page * page;
        while start < range.end {
            let mut found = [0_u8; PAGES];
            let len = (range.end - start).min(PAGES * page);
            let found = &mut found[..len.div_ceil(page)];
            let address = self.map.as_ptr().wrapping_add(start);
            // SAFETY: `start..start + len` lies inside the mapping and begins at a page; `found` has a byte for each page.
            let result = unsafe { libc::mincore(address.cast_mut().cast(), len, found.as_mut_ptr()) };
            if result != 0 || found.iter().any(|page| page & 1 == 0) {
                return false;
            }
            start += len;
        }
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if lost_pages::count() > 0 {
            lost_pages::forget(&self.addresses(&(0..self.map.len())));
        }
    }
}

/// A place and a millisecond as one number, never 0. Two places that share it cost a read of what is there already, no more.
fn found_cold(start: usize, now: u64) -> u64 {
    now << 24 | (start as u64 >> 12) & 0xff_ffff
}

/// What is known of a stretch: since when, in milliseconds of the coarse clock; below that, what asking about parts of it has cost since ([`WORTH`]);
/// and in the lowest bit whether all of it was in memory then.
#[derive(Debug, Default)]
struct Look(AtomicU64);

const SINCE_SHIFT: u32 = 8;
/// Cost of asking about parts of a stretch after which it is looked at as a whole, for all who come within the time of trust: about what that costs.
/// Who reads here and there would pay for what nobody else is helped by.
const WORTH: u64 = 16;
/// Bytes of which the pages cost 1 to look at, of a call that itself costs 2.
const LOOKED: usize = 64 << 10;

impl Look {
    fn is_good(&self, now: u64, trust: u64) -> bool {
        let look = self.0.load(Ordering::Relaxed);
        look & 1 == 1 && now.saturating_sub(look >> SINCE_SHIFT) < trust
    }

    /// Counts that the kernel was asked about `len` bytes, and tells whether the whole should be looked at now: once in the time of trust, whatever is
    /// found. Two threads that ask at once may count as one.
    fn is_worth_it(&self, now: u64, trust: u64, len: usize) -> bool {
        let look = self.0.load(Ordering::Relaxed);
        let is_old = look == 0 || now.saturating_sub(look >> SINCE_SHIFT) >= trust;
        let (since, before) = if is_old { (now, 0) } else { (look >> SINCE_SHIFT, (look & 0xff) >> 1) };
        let cost = (before + 2 + len.div_ceil(LOOKED) as u64).min(WORTH);
        self.0.store(since << SINCE_SHIFT | cost << 1 | u64::from(!is_old) & look & 1, Ordering::Relaxed);
        before < WORTH && cost == WORTH
    }

    fn note(&self, now: u64, resident: bool) {
        self.0.store(now << SINCE_SHIFT | WORTH << 1 | u64::from(resident), Ordering::Relaxed);
    }
}

/// Milliseconds since the machine started, as exact as the kernel's tick: read without asking the clock itself.
fn coarse_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let millis = now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000;
    u64::try_from(millis).unwrap_or(0).max(1)
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

    /// Whether all its pages are in memory, as far as was seen less than `trust` ago.
    pub(super) fn is_cached(&self, trust: Duration) -> bool {
        self.mapping.is_cached(&self.range, trust)
    }

    /// Whether all its pages are in memory just now, ready to be read: asked anew. Does not see that the file ends within the last one.
    pub(super) fn is_in_memory(&self) -> bool {
        !self.is_lost() && self.mapping.is_in_memory(&self.range)
    }

    /// Whether pages of it were found gone.
    pub(super) fn is_lost(&self) -> bool {
        lost_pages::count() > 0 && lost_pages::lie_in(&self.mapping.addresses(&self.range))
    }

    /// Where it lies in its file, in pieces of `most` bytes at most.
    pub(super) fn pieces(&self, most: u64) -> impl Iterator<Item = ByteRange> + use<> {
        let (start, end) = (self.range.start as u64, self.range.end as u64);
        (start..end)
            .step_by(usize::try_from(most).unwrap_or(usize::MAX))
            .filter_map(move |from| ByteRange::new(from, (from + most).min(end)))
    }

    /// Whether its bytes cannot be relied on, since somebody cut the file short or the disk lost pages of it.
    pub(super) fn is_damaged(&self) -> bool {
        self.mapping.is_damaged(&self.range)
    }

    /// `MADV_POPULATE_READ` on the calling thread, after advice that keeps the kernel from reading far around it.
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
        // What becomes of advice is of no interest: populating tells.
        // SAFETY: the range lies inside the mapping and begins at a page; this advice only reads the file.
        unsafe { libc::madvise(address.cast_mut().cast(), self.range.end - start, libc::MADV_WILLNEED) };
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

impl AsRef<[u8]> for Populating {
    fn as_ref(&self) -> &[u8] {
        &self.0.mapping.map[self.0.range.clone()]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{
        asset::ByteCount,
        storage::{RealDisk, Volume, VolumeConfig},
    };

    pub(in crate::storage) const LEN: usize = 3 * STRETCH + 5000;

    /// All 7, and in memory.
    pub(in crate::storage) fn mapped(dir: &std::path::Path) -> Mapping {
        let config = VolumeConfig { path: dir.join("volume"), capacity: ByteCount(1 << 30) };
        let volume = Volume::open(&config, &crate::storage::Config::default(), Arc::new(RealDisk)).expect("a volume");
        let path = dir.join("asset");
        std::fs::write(&path, vec![7; LEN]).expect("written");
        let file = File::open(path).expect("opened");
        file.sync_all().expect("only clean pages can be dropped");
        let open = OpenCount::take(&Arc::new(AtomicUsize::new(0)), 1).expect("room");
        Mapping::new(file, LEN as u64, Arc::new(Space::of_held(volume, 0)), open).expect("mapped")
    }

    pub(in crate::storage) fn forget(mapping: &Mapping) {
        rustix::fs::fadvise(mapping.file(), 0, None, Advice::DontNeed).expect("advice is taken");
    }

    #[test]
    fn what_was_in_memory_is_trusted_for_its_time_and_no_longer() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let mapping = mapped(dir.path());
        let part = STRETCH + 10..STRETCH + 20_000;
        for _ in 0..5 {
            assert!(mapping.was_cached(&part, 1000, 500), "it was just written");
        }
        assert!(!mapping.looks[1].is_good(1000, 500), "few have asked for parts of it");
        assert!(mapping.was_cached(&part, 1000, 500));
        forget(&mapping);
        if mapping.is_in_memory(&part) {
            eprintln!("SKIPPED: pages cannot be dropped here");
            return;
        }
        assert!(mapping.was_cached(&part, 1499, 500));
        assert!(mapping.was_cached(&(STRETCH..STRETCH + 1), 1499, 500), "the stretch was looked at as a whole");
        assert!(!mapping.was_cached(&(0..1), 1499, 500), "another stretch was not");
        assert!(!mapping.was_cached(&(STRETCH - 1..STRETCH + 1), 1499, 500), "nor is half an answer one");
        assert!(!mapping.was_cached(&part, 1500, 500), "its time is up");
        assert!(!mapping.is_cached(&part, Duration::ZERO), "without trust the kernel is asked");
    }

    #[test]
    fn a_stretch_that_is_there_in_part_is_asked_about_each_time() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let mapping = mapped(dir.path());
        mapping.looks[3].note(1000, false);
        let tail = 3 * STRETCH + 1..LEN;
        for _ in 0..20 {
            assert!(mapping.was_cached(&tail, 1499, 500), "the kernel says so");
            assert!(!mapping.looks[3].is_good(1499, 500), "but not of the whole, which is not asked again so soon");
        }
        for _ in 0..6 {
            assert!(!mapping.looks[3].is_good(1500, 500));
            assert!(mapping.was_cached(&tail, 1500, 500));
        }
        assert!(mapping.looks[3].is_good(1500, 500), "many have asked");
    }

    #[test]
    fn a_cold_slice_is_read_without_its_neighbours() {
        const PIECE: usize = 64 << 10;
        let dir = tempfile::tempdir().expect("a scratch folder");
        let mapping = Arc::new(mapped(dir.path()));
        let slice = |at: usize| ColdSlice { mapping: Arc::clone(&mapping), range: at * PIECE..(at + 1) * PIECE };
        forget(&mapping);
        if mapping.is_in_memory(&(0..PIECE)) {
            eprintln!("SKIPPED: pages cannot be dropped here");
            return;
        }
        slice(10).populate().expect("read");
        if let Ok(ring) = crate::sys::uring::Ring::new(8) {
            let read = ring.populate_read(slice(20).into_populating()).expect("submitted").blocking_recv();
            read.expect("completed").expect("read");
        } else {
            slice(20).populate().expect("read");
        }
        for at in [10, 20] {
            let there = [at - 1, at, at + 1].map(|at| mapping.is_in_memory(&slice(at).range));
            assert_eq!(
                there,
                [false, true, false],
                "piece {at}: a fault reads as far around itself as the device's read-ahead goes"
            );
        }
    }

    /// Cuts the file short under bytes that were found resident, and reads them on a thread that survives.
    fn read_behind_a_new_end(mapping: &Arc<Mapping>, dir: &std::path::Path, survives: bool) -> Bytes {
        let bytes = ColdSlice { mapping: Arc::clone(mapping), range: 0..2 * STRETCH }.into_bytes();
        let file = File::options().write(true).open(dir.join("asset")).expect("opened");
        file.set_len(STRETCH as u64).expect("cut short");
        let read = move || {
            if survives {
                lost_pages::survive_on_this_thread().expect("a handler");
            }
            assert!(bytes[..STRETCH].iter().all(|byte| *byte == 7), "what is left is as it was");
            assert!(bytes[STRETCH..].iter().all(|byte| *byte == 0), "what is gone reads as zeros");
            bytes
        };
        std::thread::spawn(read).join().expect("it lives")
    }

    #[test]
    fn a_page_that_is_gone_is_read_as_zeros_and_known_for_it() {
        let (dir, other) = (tempfile::tempdir().expect("a scratch folder"), tempfile::tempdir().expect("another"));
        let (mapping, intact) = (Arc::new(mapped(dir.path())), mapped(other.path()));
        assert!(!mapping.is_damaged(&(0..LEN)));
        let before = lost_pages::count();
        let bytes = read_behind_a_new_end(&mapping, dir.path(), true);
        assert!(lost_pages::count() - before >= (STRETCH / 4096) as u64, "each page raised a signal");
        assert!(lost_pages::hold(&bytes) && lost_pages::hold(&bytes[STRETCH + 5000..STRETCH + 5001]));
        assert!(!lost_pages::hold(&bytes[..STRETCH]), "what is left can be sent");
        assert!(!lost_pages::hold(&intact.map[..]), "other files are none the worse");
        assert!(mapping.is_damaged(&(STRETCH..STRETCH + 1)) && !intact.is_damaged(&(0..LEN)));
        let addresses = mapping.addresses(&(0..LEN));
        drop((bytes, mapping));
        assert!(!lost_pages::lie_in(&addresses), "other files may be mapped there");
    }

    /// What the next test is about; it ends its process.
    #[test]
    #[ignore = "is run by the next test in a process of its own"]
    fn death_by_a_page_that_is_gone() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        read_behind_a_new_end(&Arc::new(mapped(dir.path())), dir.path(), false);
    }

    #[test]
    fn without_the_handler_the_process_ends() {
        use std::os::unix::process::ExitStatusExt;
        let own = std::env::current_exe().expect("this test");
        let name = "storage::mapping::tests::death_by_a_page_that_is_gone";
        let output = std::process::Command::new(own).args(["--exact", name, "--ignored"]).output().expect("it runs");
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
