//! A thread beside a worker, for what would hold up its viewers: the public-key part of a handshake is a quarter of a millisecond of work, one by RSA a whole; and
//! closing the connection of a client that floods is a twentieth of one.
//!
//! worker -> queue (bounded) -> helper, which has a core only while nobody else wants it -> worker goes on
//!        -> itself, in its own turn, what finds the queue full or has not been begun within [`PATIENCE`]; what has been begun and not ended has the worker's core

use std::{
    cell::Cell,
    io,
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::{sync::oneshot, time::timeout};

use crate::sys::{
    affinity::{cpu_time_of_this_thread, pin_to},
    priority,
};

/// How long the worker waits for its helper to begin before it does the work itself. A core on which everything is busy leaves the helper next to nothing; what a
/// newcomer then waits for is as long as `serve.queue_delay_max` lets all others wait.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long the worker stands still for a helper that has begun and does not get on, since the worker itself has its core: as long as most such work takes.
const LENT: Duration = Duration::from_millis(2);
/// The same for whom nobody waits who matters: a client that costs much. For those the worker does not stand still, either.
const PATIENCE_COSTLY: Duration = Duration::from_secs(1);
/// Such a client's handshake has several pieces of work, and must be able to end in time where the helper gets no core at all: the longest wait for one is this part
/// of the time that a handshake may take.
const PATIENCE_PARTS: u32 = 10;
/// Pieces of work that wait for a helper: what it can begin within [`PATIENCE`]. Who finds the queue full does not wait for nothing.
const QUEUE_MAX: usize = 128;
/// Connections that wait to be closed, of these: handshakes wait behind them.
const CLOSES_MAX: usize = 16;

type Work = Box<dyn FnOnce() + Send>;

/// Whoever takes the work does it.
struct Job {
    stage: Mutex<Stage>,
    ended: Condvar,
}

enum Stage {
    Waiting(Work),
    Begun,
    Ended,
}

impl Job {
    fn take(&self) -> Option<Work> {
        let mut stage = self.stage.lock();
        match std::mem::replace(&mut *stage, Stage::Begun) {
            Stage::Waiting(work) => Some(work),
            other => {
                *stage = other;
                None
            }
        }
    }

    fn end(&self) {
        *self.stage.lock() = Stage::Ended;
        self.ended.notify_all();
    }

    /// Gives the calling thread's core to whoever is at it.
    fn lend(&self) {
        let mut stage = self.stage.lock();
        if matches!(*stage, Stage::Begun) {
            self.ended.wait_for(&mut stage, LENT);
        }
    }
}

/// What became of a piece of work.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done<T> {
    /// What it came to.
    By(T),
    /// Nobody wanted it any more when it would have begun.
    Unwanted,
    Panicked,
}

/// The helper of one worker; ends with it.
#[derive(Debug)]
pub(super) struct Helper {
    jobs: SyncSender<Arc<Job>>,
    cpu_micros: Arc<AtomicU64>,
    closing: Cell<usize>,
}

impl Helper {
    /// Starts the thread, on the `core` of its worker where that has one: who waits for the other lends it.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(name: String, core: Option<usize>) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let cpu_micros = Arc::<AtomicU64>::default();
        std::thread::Builder::new().name(name).spawn({
            let cpu_micros = Arc::clone(&cpu_micros);
            move || {
                if let Some(core) = core {
                    pin_to(core);
                }
                help(&queue, &cpu_micros);
            }
        })?;
        Ok(Self { jobs, cpu_micros, closing: Cell::new(0) })
    }

    /// CPU time of the thread until its last piece of work.
    pub(super) fn cpu_time(&self) -> Duration {
        Duration::from_micros(self.cpu_micros.load(Ordering::Relaxed))
    }

    /// What `work` comes to, done by the helper if it gets to it, else by the calling thread, as long as it `is_wanted`. `costly`: its client costs much, so that it
    /// can wait, for a tenth of this (`serve.tls.handshake_timeout`) and [`PATIENCE_COSTLY`] at most.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        is_wanted: impl Fn() -> bool,
        costly: Option<Duration>,
    ) -> Done<T> {
        let (done, mut outcome) = oneshot::channel();
        // Whoever waited for it may have left.
        let work: Work = Box::new(move || drop(done.send(work())));
        let job = Arc::new(Job { stage: Mutex::new(Stage::Waiting(work)), ended: Condvar::new() });
        if self.jobs.try_send(Arc::clone(&job)).is_ok()
            && let Ok(outcome) = timeout(patience(costly), &mut outcome).await
        {
            return outcome.map_or(Done::Panicked, Done::By);
        }
        match job.take() {
            Some(_) if !is_wanted() => return Done::Unwanted,
            Some(work) => work(),
            None if costly.is_some() => {}
            None => job.lend(),
        }
        outcome.await.map_or(Done::Panicked, Done::By)
    }

    /// Closes the connection of a client that costs much; waits until that is done. What the kernel keeps for one that floods takes it some tens of microseconds to
    /// give back, and to tell the client so.
    pub(super) async fn close(&self, stream: TcpStream) {
        if self.closing.get() >= CLOSES_MAX {
            return;
        }
        let (open, closed) = oneshot::channel::<()>();
        let work: Work = Box::new(move || {
            drop(stream);
            drop(open);
        });
        let job = Job { stage: Mutex::new(Stage::Waiting(work)), ended: Condvar::new() };
        self.closing.set(self.closing.get() + 1);
        // Where the queue is full it is closed here, since nobody has it any more.
        drop(self.jobs.try_send(Arc::new(job)));
        closed.await.ok();
        self.closing.set(self.closing.get() - 1);
    }
}

fn patience(costly: Option<Duration>) -> Duration {
    costly.map_or(PATIENCE, |whole| PATIENCE_COSTLY.min(whole / PATIENCE_PARTS))
}

fn help(queue: &Receiver<Arc<Job>>, cpu_micros: &AtomicU64) {
    if let Err(err) = priority::give_way() {
        tracing::warn!(error = %err, "the helper of a worker does not give way to it: handshakes may hold up viewers");
    }
    while let Ok(job) = queue.recv() {
        let Some(work) = job.take() else { continue };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a handshake panicked; its connection is closed");
        }
        job.end();
        let cpu = cpu_time_of_this_thread();
        cpu_micros.store(u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, sync::mpsc::channel, thread::current};

    use super::*;

    fn name() -> Option<String> {
        current().name().map(Into::into)
    }

    fn helper() -> Helper {
        Helper::start("helper".into(), None).expect("started")
    }

    #[tokio::test]
    async fn the_helper_does_what_it_gets_to_and_goes_on_after_a_panic() {
        let helper = helper();
        let by_helper = || Done::By(Some("helper".to_owned()));
        assert_eq!(helper.run(name, || true, None).await, by_helper());
        assert_eq!(helper.run(|| assert!(name().is_none(), "on purpose"), || true, None).await, Done::Panicked);
        assert_eq!(helper.run(name, || true, None).await, by_helper());
    }

    #[tokio::test]
    async fn what_the_helper_does_not_get_to_is_done_by_who_wants_it() {
        let helper = helper();
        let (go_on, wait) = channel::<()>();
        let mut held = std::pin::pin!(helper.run(move || wait.recv().is_ok(), || true, None));
        assert!(futures_util::poll!(&mut held).is_pending());
        // Waits until patience is over.
        assert_eq!(helper.run(name, || true, None).await, Done::By(name()), "not by the helper");
        assert_eq!(helper.run(name, || false, None).await, Done::Unwanted);
        // Or finds the queue full: two are in it that were taken back.
        let mut waiting: Vec<_> = (2..QUEUE_MAX).map(|_| Box::pin(helper.run(name, || true, None))).collect();
        for one in &mut waiting {
            assert!(futures_util::poll!(one).is_pending());
        }
        let mut full = std::pin::pin!(helper.run(name, || true, None));
        assert_eq!(futures_util::poll!(&mut full), std::task::Poll::Ready(Done::By(name())));
        // What has been begun is waited for, whatever it takes.
        tokio::time::sleep(PATIENCE * 2).await;
        assert!(futures_util::poll!(&mut held).is_pending());
        go_on.send(()).expect("it waits");
        assert_eq!(held.await, Done::By(true));
        drop(waiting);
        // What was taken back is passed over, and what nobody waits for any more is done; then there is room again.
        let mut by = Done::By(name());
        while by == Done::By(name()) {
            tokio::task::yield_now().await;
            by = helper.run(name, || true, None).await;
        }
        assert_eq!(by, Done::By(Some("helper".to_owned())));
    }

    #[tokio::test]
    async fn a_connection_is_closed_by_the_helper_and_at_once_where_that_has_too_much_to_do() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let pair = || {
            let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
            (near, listener.accept().expect("it has come").0)
        };
        let is_closed = |mut near: &TcpStream| near.read(&mut [0]).is_ok_and(|count| count == 0);
        let helper = helper();
        let (near, far) = pair();
        helper.close(far).await;
        assert!(is_closed(&near));
        let (go_on, wait) = channel::<()>();
        let mut held = std::pin::pin!(helper.run(move || wait.recv().is_ok(), || true, None));
        assert!(futures_util::poll!(&mut held).is_pending());
        let mut waiting = Vec::new();
        loop {
            let (near, far) = pair();
            let mut closing = Box::pin(helper.close(far));
            if futures_util::poll!(&mut closing).is_ready() {
                assert!(is_closed(&near));
                break;
            }
            near.set_nonblocking(true).expect("set");
            assert!(!is_closed(&near), "it waits");
            near.set_nonblocking(false).expect("set");
            waiting.push((near, closing));
            assert!(waiting.len() <= CLOSES_MAX, "no more wait than there is room for");
        }
        go_on.send(()).expect("it waits");
        for (near, closing) in waiting {
            closing.await;
            assert!(is_closed(&near));
        }
    }

    #[test]
    fn who_costs_much_waits_longer_and_never_for_all_of_the_time_there_is() {
        assert_eq!(patience(None), PATIENCE);
        for (whole, waits) in [(1, 100), (5, 500), (10, 1000), (60, 1000)] {
            assert_eq!(patience(Some(Duration::from_secs(whole))), Duration::from_millis(waits));
        }
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_worker() {
        let (ended, has_ended) = channel::<()>();
        let helper = helper();
        let held = helper.run(move || ended, || true, None).await;
        drop(helper);
        drop(held);
        assert!(has_ended.recv().is_err());
    }
}
