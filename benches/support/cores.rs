//! Who runs where, and what it has cost.

use std::{
    fs, io,
    process::{Child, Command},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The core of servers, and the core of the load: another one, not another thread of the same where that can be. The same one where there is only one, which no
/// figure survives.
pub(crate) fn cores() -> (usize, usize) {
    let allowed = allowed();
    let first = allowed.first().copied().unwrap_or(0);
    let siblings = siblings(first);
    let others = || allowed.iter().skip(1).copied();
    (first, others().find(|core| !siblings.contains(core)).or_else(|| others().next()).unwrap_or(first))
}

/// Whether the load runs on the same core as servers, or on another thread of it, and takes their time.
pub(crate) fn share_a_core() -> bool {
    let (server, load) = cores();
    server == load || siblings(server).contains(&load)
}

/// Threads of the same core, itself too, as the kernel lists them: `0,4` or `0-1`.
fn siblings(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let text = fs::read_to_string(path).unwrap_or_default();
    let of = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    text.trim().split(',').filter_map(of).flatten().collect()
}

fn allowed() -> Vec<usize> {
    static ALLOWED: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    // As it was when the bench began: pinning narrows what is allowed.
    let read = || {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
    };
    ALLOWED.get_or_init(read).clone()
}

/// Keeps the calling thread on these cores.
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    Ok(sched_setaffinity(None, &set)?)
}

/// Keeps the calling thread on the core of the load.
pub(crate) fn pin_to_load() -> io::Result<()> {
    pin(&[cores().1])
}

/// Starts a server on its core, and nowhere else.
pub(crate) fn spawn_server(command: &mut Command) -> io::Result<Child> {
    // A child runs where its parent was allowed to when it was born.
    let own = sched_getaffinity(None)?;
    pin(&[cores().0])?;
    let child = command.spawn();
    sched_setaffinity(None, &own)?;
    child
}

/// CPU seconds that processes have used so far, by all their threads.
pub(crate) fn cpu_seconds(ids: &[u32]) -> f64 {
    ids.iter().map(|id| cpu_seconds_of(*id)).sum()
}

fn cpu_seconds_of(id: u32) -> f64 {
    // To the nanosecond, but without the threads that have ended, as the kernel's own for io_uring do.
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let nanos: u64 = tasks
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    // With them, but in ticks: after the name in parentheses, the 12th and 13th field are user and system time.
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    let ticks = (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64;
    ticks.max(nanos as f64 / 1e9)
}

/// Bytes that processes have had read from disks so far, what the kernel read ahead for them included.
pub(crate) fn disk_bytes(ids: &[u32]) -> u64 {
    let of = |id: &u32| {
        let text = fs::read_to_string(format!("/proc/{id}/io")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse::<u64>().ok())
    };
    ids.iter().filter_map(of).sum()
}

/// A process and its children.
pub(crate) fn family(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|id| id.parse().ok()).chain([id]).collect()
}
