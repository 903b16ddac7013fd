//! The threads of the fill ahead of demand: few, and of the lowest priority unless the configuration says otherwise.

use std::io;

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

use super::{super::ended, Config};
use crate::sys::priority;

/// Threads that ask and compute digests, at most: enough for 10 Gb/s. No more than half of the cores, so that on a small box few of them wake at once.
const THREADS_MAX: usize = 2;
/// Threads that may block beside one for each asset in work: plans, purges, and files of a source.
const BLOCKING_BESIDE: usize = 4;

/// The fill ahead of demand at work.
#[derive(Debug)]
pub(in crate::fill) struct Nights {
    tasks: Vec<JoinHandle<()>>,
    /// `None` once it has ended.
    runtime: Option<Runtime>,
}

/// A task that ends with this.
#[derive(Debug)]
pub(super) struct Ending(pub(super) JoinHandle<()>);

impl Ending {
    /// Ends it, and waits until it has.
    pub(super) async fn end(&mut self) {
        self.0.abort();
        if let Err(err) = (&mut self.0).await
            && err.is_panic()
        {
            tracing::error!(error = %err, "the fill by manifest panicked");
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A runtime for it.
pub(super) fn runtime(config: &Config) -> io::Result<Runtime> {
    let gives_way = config.gives_way;
    let give_way = move || {
        if gives_way && let Err(err) = priority::give_way() {
            tracing::warn!(error = %err, "a thread of the fill cannot give way to others");
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .worker_threads((cores / 2).clamp(1, THREADS_MAX))
        .max_blocking_threads(config.assets_at_once.saturating_add(BLOCKING_BESIDE))
        .thread_name("oca-fill")
        .on_thread_start(give_way)
        .enable_all()
        .build()
}

impl Nights {
    pub(super) fn new(tasks: impl Into<Vec<JoinHandle<()>>>, runtime: Runtime) -> Self {
        Self { tasks: tasks.into(), runtime: Some(runtime) }
    }

    /// Ends what runs; what is half written is given up.
    pub(in crate::fill) async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            ended(task).await;
        }
    }
}

impl Drop for Nights {
    fn drop(&mut self) {
        // A thread that waits for a disk ends by itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
