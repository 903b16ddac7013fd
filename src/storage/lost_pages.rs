//! Pages of mapped files that are gone: somebody cut a file short from outside, or its disk fails after the pages were found in memory.
//!
//! Reading such a page raises SIGBUS, which ends the process and with it every response. On threads that ask for it, a page of zeros takes
//! the place of the one that is gone, and what happened is written down, before anybody can read them: who has read must not send what it
//! read if [`hold`] says so.

#![expect(unsafe_code, reason = "handling a signal, and mapping a page where one is missing, have no safe interface")]

use std::{
    cell::Cell,
    io,
    ops::Range,
    sync::{
        Once,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Pages that may be lost before the process ends after all: by then its disks are gone, and zeros are all it has.
const LOST_MAX: usize = 1024;
const PAGE: usize = 4096;

static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Addresses of pages that were replaced; filled from the front.
static LOST: [AtomicUsize; LOST_MAX] = [const { AtomicUsize::new(0) }; LOST_MAX];

thread_local! {
    static SURVIVES: Cell<bool> = const { Cell::new(false) };
}

/// From now on, a page that is gone does not end the process when this thread reads it. For threads that read no other mappings than those
/// of asset files, and ask [`hold`] or look at [`count`] before they send what they have read.
///
/// # Errors
/// As of `sigaction(2)`.
pub fn survive_on_this_thread() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut outcome = Ok(());
    INSTALLED.call_once(|| outcome = install());
    SURVIVES.set(true);
    outcome
}

/// How many pages were found gone. Where it grows between reading and sending, what was read may be zeros in place of an asset.
pub fn count() -> u64 {
    FAULTS.load(Ordering::Acquire)
}

/// Whether `bytes` lie on a page that was replaced, so that what was read of them may be zeros in place of an asset. Reads none of them.
pub fn hold(bytes: &[u8]) -> bool {
    let base = bytes.as_ptr().addr();
    count() > 0 && !bytes.is_empty() && lie_in(&(base..base + bytes.len()))
}

/// Whether one of the addresses is on a page that was replaced.
pub(super) fn lie_in(addresses: &Range<usize>) -> bool {
    let pages = addresses.start / PAGE * PAGE..addresses.end;
    let known = usize::try_from(count()).unwrap_or(LOST_MAX).min(LOST_MAX);
    LOST[..known].iter().any(|page| pages.contains(&page.load(Ordering::Acquire)))
}

/// The addresses are given back, and may be those of another file soon.
pub(super) fn forget(addresses: &Range<usize>) {
    let known = usize::try_from(count()).unwrap_or(LOST_MAX).min(LOST_MAX);
    for page in &LOST[..known] {
        if addresses.contains(&page.load(Ordering::Acquire)) {
            page.store(0, Ordering::Release);
        }
    }
}

fn install() -> io::Result<()> {
    // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = replace as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `replace` has the signature that SA_SIGINFO asks for, and calls only what signal-safety(7) allows and `mmap`, which is
    // a bare system call in every C library.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn replace(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid `siginfo_t`.
    let info = unsafe { &*info };
    // SAFETY: of SIGBUS it has an address.
    let page = unsafe { info.si_addr() }.addr() / PAGE * PAGE;
    let at = usize::try_from(FAULTS.load(Ordering::Acquire)).unwrap_or(LOST_MAX);
    let survives = SURVIVES.try_with(Cell::get).unwrap_or(false) && page != 0 && at < LOST_MAX;
    // Before anybody can read zeros.
    let noted = survives && note(page);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let replaced = noted && {
        // SAFETY: the page is one of a mapping of an asset file, as this thread reads no others; it holds nothing, since reading it
        // raised this signal, and what is put there can be read like it.
        let at = unsafe { libc::mmap(std::ptr::without_provenance_mut(page), PAGE, libc::PROT_READ, flags, -1, 0) };
        at != libc::MAP_FAILED
    };
    if !replaced {
        // As if there were no handler: the read is tried again, and ends the process.
        // SAFETY: the default action can always be set.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn note(page: usize) -> bool {
    let at = FAULTS.fetch_add(1, Ordering::AcqRel);
    let slot = usize::try_from(at).ok().and_then(|at| LOST.get(at));
    slot.inspect(|slot| slot.store(page, Ordering::Release)).is_some()
}
