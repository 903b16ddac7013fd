//! Waiting for sockets, and no longer than is due.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

/// Waits until something is ready of what `from` watches, for `longest` at most, and puts it into `events`. To the nanosecond: `epoll_wait(2)`
/// rounds up to whole milliseconds, and requests that are due at random moments would leave in bursts of as many as come due in one.
///
/// # Errors
/// As of `ppoll(2)` and `epoll_wait(2)`.
pub(crate) fn wait(from: &OwnedFd, events: &mut Vec<epoll::Event>, longest: Duration) -> io::Result<()> {
    events.clear();
    let time = |time: Duration| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    if rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&time(longest))))? > 0 {
        let none = time(Duration::ZERO);
        rustix::io::retry_on_intr(|| epoll::wait(from, rustix::buffer::spare_capacity(events), Some(&none)))?;
    }
    Ok(())
}
