//! A thread beside a worker, for what would hold up its viewers: the public-key part of a handshake is a quarter of a millisecond of work, one by RSA a whole.
//!
//! worker -> queue (bounded) -> helper, which has a core only while nobody else wants it -> worker goes on
//!        -> itself, in its own turn, what has not been begun within [`PATIENCE`] or finds the queue full

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use crate::sys::priority;

/// How long the worker waits for its helper to begin before it does the work itself. A core on which everything is busy leaves the helper next to nothing; what a
/// newcomer then waits for is as long as `serve.queue_delay_max` lets all others wait.
const PATIENCE: Duration = Duration::from_millis(20);

type Work = Box<dyn FnOnce() + Send>;
/// Whoever takes it does it.
type Job = Arc<Mutex<Option<Work>>>;

/// The helper of one worker; ends with it.
#[derive(Debug)]
pub(super) struct Helper {
    jobs: SyncSender<Job>,
}

impl Helper {
    /// Starts the thread, for up to `queue_max` pieces of work that wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(name: String, queue_max: usize) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(queue_max);
        std::thread::Builder::new().name(name).spawn(move || help(&queue))?;
        Ok(Self { jobs })
    }

    /// What `work` comes to, done by the helper if it gets to it, else by the calling thread. `None` where it panicked.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, mut outcome) = oneshot::channel();
        // Whoever waited for it may have left.
        let work: Work = Box::new(move || drop(done.send(work())));
        let job = Arc::new(Mutex::new(Some(work)));
        if self.jobs.try_send(Arc::clone(&job)).is_ok()
            && let Ok(outcome) = timeout(PATIENCE, &mut outcome).await
        {
            return outcome.ok();
        }
        let taken = job.lock().take();
        if let Some(work) = taken {
            work();
        }
        outcome.await.ok()
    }
}

fn help(queue: &Receiver<Job>) {
    if let Err(err) = priority::give_way() {
        tracing::debug!(error = %err, "a helper of a worker does not give way to it");
    }
    while let Ok(job) = queue.recv() {
        let taken = job.lock().take();
        let Some(work) = taken else { continue };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a handshake panicked; its connection is closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread::current};

    use super::*;

    fn name() -> Option<String> {
        current().name().map(Into::into)
    }

    #[tokio::test]
    async fn the_helper_does_what_it_gets_to_and_goes_on_after_a_panic() {
        let helper = Helper::start("helper".into(), 8).expect("started");
        assert_eq!(helper.run(name).await.flatten().as_deref(), Some("helper"));
        assert_eq!(helper.run(|| assert!(name().is_none(), "on purpose")).await, None);
        assert_eq!(helper.run(name).await.flatten().as_deref(), Some("helper"));
    }

    #[tokio::test]
    async fn what_the_helper_does_not_get_to_is_done_by_who_wants_it() {
        let helper = Helper::start("helper".into(), 1).expect("started");
        let (go_on, wait) = channel::<()>();
        let held = helper.run(move || wait.recv().is_ok());
        let mut held = std::pin::pin!(held);
        assert!(futures_util::poll!(&mut held).is_pending());
        // Waits in the queue until patience is over, or finds it full.
        let own = name();
        let (first, second) = tokio::join!(helper.run(name), helper.run(name));
        assert!(first.flatten() == own && second.flatten() == own, "not by the helper");
        go_on.send(()).expect("it waits");
        assert_eq!(held.await, Some(true));
        assert_eq!(helper.run(name).await.flatten().as_deref(), Some("helper"), "what was taken back is passed over");
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_worker() {
        let (ended, has_ended) = channel::<()>();
        let helper = Helper::start("helper".into(), 1).expect("started");
        let held = helper.run(move || ended).await;
        drop(helper);
        drop(held);
        assert!(has_ended.recv().is_err());
    }
}
