//! Which core a thread runs on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores this process may run on.
pub fn cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return vec![0] };
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// Keeps the calling thread on `core`. A kernel that refuses costs speed, nothing else.
pub fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(err) = sched_setaffinity(None, &set) {
        tracing::debug!(core, error = %err, "worker is not pinned");
    }
}

/// Time that the calling thread has computed (`CLOCK_THREAD_CPUTIME_ID`).
pub fn cpu_time_of_this_thread() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default()
}
