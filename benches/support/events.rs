//! Waiting for sockets, and no longer than is due.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::event::{self, PollFd, PollFlags, Timespec, epoll};

/// Waits until something is ready of what `from` watches, for `longest` at most, and puts it into `events`. To the nanosecond: `epoll_wait(2)`
/// rounds up to whole milliseconds, and requests that are due at random moments would leave in bursts of as many as come due in one.
///
/// # Errors
/// As of `ppoll(2)` and `epoll_wait(2)`.
pub(crate) fn wait(from: &OwnedFd, events: &mut Vec<epoll::Event>, longest: Duration) -> io::Result<()> {
    events.clear();
    let time = |time: Duration| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    if rustix::io::retry_on_intr(|| event::poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&time(longest))))? > 0 {
        let none = time(Duration::ZERO);
        rustix::io::retry_on_intr(|| epoll::wait(from, rustix::buffer::spare_capacity(events), Some(&none)))?;
    }
    Ok(())
}

/// As [`wait`], but without sleeping: whoever sends to a thread of the same machine that sleeps pays for waking it, which a server whose viewers are elsewhere
/// does not. By `perf`, on a virtual machine, where it takes the host to wake another core, that was a third of the server's time.
///
/// # Errors
/// As of `epoll_wait(2)`.
pub(crate) fn poll(from: &OwnedFd, events: &mut Vec<epoll::Event>, longest: Duration) -> io::Result<()> {
    events.clear();
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    let begun = Instant::now();
    while events.is_empty() && begun.elapsed() < longest {
        rustix::io::retry_on_intr(|| epoll::wait(from, rustix::buffer::spare_capacity(events), Some(&none)))?;
    }
    Ok(())
}
