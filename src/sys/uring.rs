//! The io_uring that brings cold pages into memory without stopping the thread that asks.
//!
//! Whoever wants pages submits (`io_uring_enter` returns at once: the kernel's worker threads do the faulting). A delivery worker has a
//! ring of its own, whose completions its own loop takes ([`Ring::attend`]): no other thread wakes in between. Everybody else shares one
//! ring, whose thread waits for completions and wakes the tasks. Nothing here reads or writes file data itself.

#![expect(
    unsafe_code,
    reason = "submission entries carry addresses, and the two ends of the ring are used by different threads"
)]

use std::{
    cell::RefCell,
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::JoinHandle,
};

use io_uring::{IoUring, Probe, opcode, squeue, types::Fd};
use parking_lot::Mutex;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    task::AbortHandle,
};

/// `MADV_POPULATE_READ`: populate page tables for reading, faulting in all pages, errors as a code (`madvise(2)`, Linux 5.14).
const MADV_POPULATE_READ: i32 = 22;
/// Where the kernel puts bytes that are read only to hear when they are there; nobody looks at them.
static SINK: AtomicU8 = AtomicU8::new(0);
/// User data of the entry that ends the completion thread; no allocation has this address.
const STOP: u64 = 0;
/// User data of advice, whose outcome is of no interest; no allocation has this address either.
const ADVICE: u64 = 1;

/// Reads at once that a ring has room for at most; its completions have twice as much.
pub const IN_FLIGHT_MOST: usize = 4096;

thread_local! {
    /// The ring whose completions the loop of this thread takes.
    static ATTENDED: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// A ring and the thread that waits on it.
#[derive(Debug)]
pub struct Ring {
    shared: Arc<Shared>,
    waiter: Option<JoinHandle<()>>,
}

/// As long as it lives, what its thread submits goes through a ring of that thread. Reads that are under way when it is dropped keep
/// their memory for ever: nobody is left to hear of them.
#[derive(Debug)]
pub struct Attendance {
    task: AbortHandle,
    /// It is this thread's.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.task.abort();
        ATTENDED.set(None);
    }
}

/// A ring as something that becomes readable.
#[derive(Debug)]
struct Readable(Arc<Shared>);

impl AsRawFd for Readable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.ring.as_raw_fd()
    }
}

struct Shared {
    ring: IoUring,
    /// Held while an entry is pushed and submitted: the submission queue has one producer at a time.
    submission: Mutex<()>,
    stopped: AtomicBool,
    page_bytes: usize,
    /// How advice is submitted: what it is for follows it whatever becomes of it.
    advice: squeue::Flags,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("stopped", &self.stopped).finish_non_exhaustive()
    }
}

/// What became of a read, once it is known.
pub type Outcome = oneshot::Receiver<io::Result<()>>;

/// What waits for one completion: whom to tell, and what must stay open or mapped until then.
struct Pending<K> {
    done: oneshot::Sender<io::Result<()>>,
    keep: K,
    /// That were asked for.
    bytes: i32,
}

/// A pending read behind a pointer that forgets what it keeps.
trait Completion: Send {
    /// With the kernel's result: bytes, or an error's number below zero.
    fn complete(self: Box<Self>, result: i32);
}

/// For an entry, and then for [`reclaim`].
fn into_user_data(completion: impl Completion + 'static) -> u64 {
    let completion: Box<Box<dyn Completion>> = Box::new(Box::new(completion));
    Box::into_raw(completion).expose_provenance() as u64
}

impl<K: Send> Completion for Pending<K> {
    fn complete(self: Box<Self>, result: i32) {
        let Self { done, keep, bytes } = *self;
        // Before anybody hears of it: what it holds may be what they wait for.
        drop(keep);
        let result = match result {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            less if less < bytes => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        };
        // Nobody listens any more when the viewer left or the read was a prefetch.
        drop(done.send(result));
    }
}

impl Ring {
    /// Makes a ring for up to `in_flight_max` reads at once.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or lacks `IORING_OP_MADVISE` (before Linux 5.6) or `MADV_POPULATE_READ`
    /// (before 5.14).
    pub fn new(in_flight_max: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(in_flight_max)?);
        let waiter = std::thread::Builder::new().name("oca-uring".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.wait_for_completions()
        })?;
        Ok(Self { shared, waiter: Some(waiter) })
    }

    /// Gives the calling thread, which is within a local runtime (one that keeps all its tasks on one thread), a ring of its own for up to
    /// `in_flight_max` reads, whose completions that runtime takes.
    ///
    /// # Errors
    /// As of [`Ring::new`]; what the thread submits goes through the shared ring then, as before.
    pub fn attend(in_flight_max: usize) -> io::Result<Attendance> {
        let shared = Arc::new(Shared::new(in_flight_max)?);
        let readable = Readable(Arc::clone(&shared));
        // SAFETY: the descriptor is the ring's, which `Readable` keeps and never changes, so it is open until after it is deregistered.
        let readable = unsafe { AsyncFd::register_with_interest(readable, Interest::READABLE)? };
        let task = tokio::task::spawn_local(async move {
            while let Ok(mut ready) = readable.readable().await {
                // Before looking: what completes from here on is another edge.
                ready.clear_ready();
                readable.get_ref().0.take_completions();
            }
        });
        ATTENDED.set(Some(shared));
        Ok(Attendance { task: task.abort_handle(), _not_send: PhantomData })
    }

    /// Tells when the byte `at` of the file `keep` is in the page cache: for who has had the kernel start reading it (`posix_fadvise(2)`), and
    /// what lies before it. `keep` stays open until then, whether anybody listens or not.
    ///
    /// Costs a fraction of populating, since no thread of the kernel's is woken to fault.
    ///
    /// # Errors
    /// Through the receiver: that of `read(2)`; `UnexpectedEof` where the file ends before. At once: the ring did not take the entry.
    pub fn when_read<K>(&self, keep: K, at: u64) -> io::Result<Outcome>
    where
        K: AsFd + Send + 'static,
    {
        ATTENDED.with_borrow(|attended| attended.as_ref().unwrap_or(&self.shared).when_read(keep, at))
    }

    /// Brings the pages of `keep` into memory. `keep` stays alive until that is done, whether anybody listens or not.
    ///
    /// # Errors
    /// Through the receiver: `EFAULT` or `EIO` where the disk could not deliver a page. At once: the ring did not take the entry.
    pub fn populate_read<K>(&self, keep: K) -> io::Result<Outcome>
    where
        K: AsRef<[u8]> + Send + 'static,
    {
        ATTENDED.with_borrow(|attended| attended.as_ref().unwrap_or(&self.shared).populate_read(keep))
    }
}

impl Shared {
    fn when_read<K>(&self, keep: K, at: u64) -> io::Result<Outcome>
    where
        K: AsFd + Send + 'static,
    {
        let read = opcode::Read::new(Fd(keep.as_fd().as_raw_fd()), SINK.as_ptr(), 1).offset(at).build();
        let (done, outcome) = oneshot::channel();
        let user_data = into_user_data(Pending { done, keep, bytes: 1 });
        if let Err(err) = self.submit(&[read.user_data(user_data)]) {
            // SAFETY: the entry was not taken, so what it would have led to is still ours alone.
            drop(unsafe { reclaim(user_data) });
            return Err(err);
        }
        Ok(outcome)
    }

    fn populate_read<K>(&self, keep: K) -> io::Result<Outcome>
    where
        K: AsRef<[u8]> + Send + 'static,
    {
        let bytes = keep.as_ref();
        let into_page = bytes.as_ptr().addr() % self.page_bytes;
        let start = bytes.as_ptr().wrapping_sub(into_page);
        let len = i64::try_from(bytes.len() + into_page).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (done, outcome) = oneshot::channel();
        let user_data = into_user_data(Pending { done, keep, bytes: 0 });
        // A fault reads around itself as far as the device's read-ahead goes, which is megabytes where it is set for throughput: 65
        // bytes for each one wanted were seen. Advice reads what it names; populating then waits for that.
        let advice = opcode::Madvise::new(start.cast(), len, libc::MADV_WILLNEED).build().user_data(ADVICE);
        let populate = opcode::Madvise::new(start.cast(), len, MADV_POPULATE_READ).build().user_data(user_data);
        if let Err(err) = self.submit(&[advice.flags(self.advice), populate]) {
            // SAFETY: the entry was not taken, so what it would have led to is still ours alone.
            drop(unsafe { reclaim(user_data) });
            return Err(err);
        }
        Ok(outcome)
    }
}

/// # Safety
/// `user_data` must come from [`into_user_data`] and must not have been reclaimed before.
unsafe fn reclaim(user_data: u64) -> Box<Box<dyn Completion>> {
    #[expect(clippy::cast_possible_truncation, reason = "addresses are as wide as usize")]
    let pointer = std::ptr::with_exposed_provenance_mut(user_data as usize);
    // SAFETY: by this function's contract the pointer is a live, unaliased box of this type.
    unsafe { Box::from_raw(pointer) }
}

impl Shared {
    fn new(in_flight_max: usize) -> io::Result<Self> {
        let entries = in_flight_max.clamp(8, IN_FLIGHT_MOST).next_power_of_two();
        let entries = u32::try_from(entries).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ring = IoUring::builder().setup_cqsize(entries * 2).build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Madvise::CODE) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring has no IORING_OP_MADVISE"));
        }
        let mut advice = squeue::Flags::IO_HARDLINK;
        // Where the kernel can spare our thread the news of it (Linux 5.17).
        if ring.params().is_feature_skip_cqe_on_success() {
            advice |= squeue::Flags::SKIP_SUCCESS;
        }
        Ok(Self {
            ring,
            submission: Mutex::new(()),
            stopped: AtomicBool::new(false),
            page_bytes: rustix::param::page_size(),
            advice,
        })
    }

    /// Submits all of `entries` or none.
    fn submit(&self, entries: &[squeue::Entry]) -> io::Result<()> {
        let _one_producer = self.submission.lock();
        {
            // JUSTIFICATION: one lock and one enter per cold window, instead of a hop to the ring's own thread.
            // SAFETY: `submission` is held, and nobody else makes a submission queue, so this is the only one.
            let mut queue = unsafe { self.ring.submission_shared() };
            // SAFETY: what the entries point to is a static, or a mapping kept alive (as is a file) by the `Pending` behind the last one's user
            // data, which is reclaimed only after that one's completion (or by the caller, when they were not taken), and those before
            // it are linked: they end first.
            unsafe { queue.push_multiple(entries) }.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        }
        // An interrupted or refused enter leaves the entry in the queue; the kernel takes it with the next one. Only what this
        // process could never repair is left, and there the entry has to stay alive too: so the result is no failure of ours.
        loop {
            match self.ring.submit() {
                // It may take fewer than there are.
                // SAFETY: as above, `submission` is held.
                Ok(_) if unsafe { self.ring.submission_shared() }.is_empty() => break,
                Ok(_) => {}
                Err(err) if !matches!(err.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                    tracing::error!(error = %err, "io_uring does not take submissions");
                    break;
                }
                Err(_) => std::thread::yield_now(),
            }
        }
        Ok(())
    }

    fn wait_for_completions(&self) {
        while !self.stopped.load(Ordering::Acquire) {
            // SAFETY: waiting for completions submits nothing and passes no argument that the kernel would read.
            let waited = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(0, 1, 1 /* IORING_ENTER_GETEVENTS */, None)
            };
            if let Err(err) = waited
                && err.raw_os_error() != Some(libc::EINTR)
            {
                tracing::error!(error = %err, "io_uring does not deliver completions");
                // Whatever it is, asking again at once would only burn a core.
                std::thread::park_timeout(std::time::Duration::from_millis(100));
            }
            self.take_completions();
        }
    }

    /// Tells who waits for what has ended. For the one thread that waits on this ring.
    fn take_completions(&self) {
        // SAFETY: only the ring's thread, or the one task that attends it, makes a completion queue, and only one at a time.
        let completions = unsafe { self.ring.completion_shared() };
        for completion in completions {
            if matches!(completion.user_data(), STOP | ADVICE) {
                continue;
            }
            // SAFETY: user data other than these comes from `into_user_data`, and each completion is seen once.
            let pending = unsafe { reclaim(completion.user_data()) };
            pending.complete(completion.result());
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let woken = self.shared.submit(&[opcode::Nop::new().build().user_data(STOP)]);
        if let (Ok(()), Some(waiter)) = (woken, self.waiter.take())
            && waiter.join().is_err()
        {
            tracing::error!("the io_uring thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Shown(Arc<Vec<u8>>);

    impl AsRef<[u8]> for Shown {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    #[test]
    fn pages_of_a_buffer_are_populated_and_the_buffer_is_let_go_of() {
        let Ok(ring) = Ring::new(8) else {
            println!("skipped: this kernel has no io_uring for us");
            return;
        };
        let buffer = Shown(Arc::new(vec![7_u8; 100_000]));
        let outcome = ring.populate_read(buffer.clone()).expect("submitted");
        outcome.blocking_recv().expect("completed").expect("populated");
        assert_eq!(Arc::strong_count(&buffer.0), 1, "nothing is kept once it is known");
    }

    #[test]
    fn a_thread_with_a_ring_of_its_own_takes_its_completions_itself() {
        let Ok(ring) = Ring::new(8) else { return };
        // Nobody waits for what the shared ring completes, so whatever comes back came through the other one.
        ring.shared.stopped.store(true, Ordering::Release);
        ring.shared.submit(&[opcode::Nop::new().build().user_data(STOP)]).expect("submitted");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .expect("a runtime");
        runtime.block_on(async {
            let attendance = Ring::attend(8).expect("as the other one");
            let reads: Vec<_> = (0..6).map(|_| ring.populate_read(vec![7_u8; 100_000]).expect("submitted")).collect();
            for read in reads {
                read.await.expect("completed").expect("populated");
            }
            drop(attendance);
            ATTENDED.with_borrow(|attended| assert!(attended.is_none(), "the shared one is used again"));
        });
    }

    #[test]
    fn who_waits_for_a_byte_hears_when_it_is_there_and_when_it_never_will_be() {
        let Ok(ring) = Ring::new(8) else { return };
        let file = tempfile::tempfile().expect("a file");
        file.set_len(10_000).expect("grown");
        let file = Arc::new(file);
        let when = |at| ring.when_read(Arc::clone(&file), at).expect("submitted").blocking_recv().expect("completed");
        when(0).expect("there");
        when(9_999).expect("there");
        assert_eq!(when(10_000).expect_err("behind the end").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(Arc::strong_count(&file), 1, "nothing is kept once it is known");
    }

    #[test]
    fn a_read_nobody_waits_for_does_no_harm() {
        let Ok(ring) = Ring::new(8) else { return };
        for _ in 0..100 {
            match ring.populate_read(vec![7_u8; 10_000]) {
                Ok(outcome) => drop(outcome),
                Err(err) => assert_eq!(err.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }
}
