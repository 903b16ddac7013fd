//! What the kernel knows of a socket and no safe interface tells.

#![expect(
    unsafe_code,
    reason = "the ioctls for a socket's queues, SO_RCVLOWAT, RUSAGE_THREAD and descriptors that a parent has left open have no safe interface"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The descriptors that the service manager has left open for this process (`sd_listen_fds(3)`), once a process: later calls give none.
///
/// # Errors
/// What the environment says of them is not so.
pub fn inherited() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    let descriptors = sd_notify::listen_fds()?;
    // SAFETY: each is open, as `listen_fds` has just found by setting a flag on it; the environment says that they were left for this very
    // process, which has no other owner for them, and `TAKEN` that nobody was given them before.
    Ok(descriptors.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).collect())
}

/// Bytes handed to the kernel that the peer has not acknowledged yet (`SIOCOUTQ`, `tcp(7)`).
///
/// # Errors
/// As of `ioctl(2)`.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    queued(socket, libc::TIOCOUTQ)
}

/// Bytes handed to the kernel that it has not sent yet (`SIOCOUTQNSD`).
///
/// # Errors
/// As of `ioctl(2)`.
pub fn unsent(socket: impl AsFd) -> io::Result<u64> {
    // linux/sockios.h; libc does not name it.
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    queued(socket, SIOCOUTQNSD)
}

fn queued(socket: impl AsFd, request: libc::c_ulong) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one int, to a variable that outlives the call; the descriptor is borrowed and open.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(bytes.cast_unsigned()))
}

/// The connection's round trip as the kernel has measured it, at first from the handshake (`TCP_INFO`, `tcp(7)`).
///
/// # Errors
/// As of `getsockopt(2)`.
pub fn round_trip(socket: impl AsFd) -> io::Result<Duration> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes of the structure that it is given; the descriptor is borrowed and open.
    let result = unsafe {
        libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut size)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed above, and every bit pattern is a valid value of its integers.
    let info = unsafe { info.assume_init() };
    Ok(Duration::from_micros(info.tcpi_rtt.into()))
}

/// From how many bytes on whoever waits for the socket is told that it can be read (`SO_RCVLOWAT`, `socket(7)`; at most half of what its buffer holds); of its end,
/// at once. What is there already counts.
///
/// # Errors
/// As of `setsockopt(2)`.
pub fn wake_at(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&bytes)).map_err(io::Error::other)?;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` bytes of an int that outlives the call; the descriptor is borrowed and open.
    let result =
        unsafe { libc::setsockopt(descriptor, libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How much of the other end of a connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    /// Nothing that is known.
    There,
    /// It sends nothing more (FIN), and may still read.
    Half,
    /// It has reset the connection, and nobody has read so yet.
    Gone,
}

/// What the kernel knows of the other end by now (`POLLRDHUP` and `POLLERR` of `poll(2)`), without a wait.
///
/// # Errors
/// As of `poll(2)`.
pub fn peer_end(socket: impl AsFd) -> io::Result<PeerEnd> {
    let mut polled = [PollFd::new(&socket, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default()))?;
    let found = polled[0].revents();
    Ok(if found.contains(PollFlags::ERR) {
        PeerEnd::Gone
    } else if found.contains(PollFlags::RDHUP) {
        PeerEnd::Half
    } else {
        PeerEnd::There
    })
}

/// What the calling thread had to wait for the disk for, instead of somebody else.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskWaits {
    /// Page faults that took a read (`ru_majflt`).
    pub major_faults: u64,
    /// Blocks of 512 bytes that it had the disk read (`ru_inblock`): also those of `sendfile(2)`, which makes no faults.
    pub blocks_read: u64,
}

/// What the calling thread has waited for so far (`getrusage(2)`).
pub fn disk_waits_of_this_thread() -> DiskWaits {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure that it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    if result != 0 {
        return DiskWaits::default();
    }
    // SAFETY: it was zeroed above, and every bit pattern is a valid value of its integers.
    let usage = unsafe { usage.assume_init() };
    let count = |number: libc::c_long| u64::try_from(number).unwrap_or(0);
    DiskWaits { major_faults: count(usage.ru_majflt), blocks_read: count(usage.ru_inblock) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{Shutdown, TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn it_is_known_how_much_of_the_other_end_is_gone() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let pair = || {
            let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
            (listener.accept().expect("it has come").0, far)
        };
        // What the other end does is known once the kernel has told so.
        let told = |near: &TcpStream, flags: PollFlags| {
            poll(&mut [PollFd::new(near, flags)], Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).expect("polled");
            peer_end(near).expect("known")
        };
        let (near, mut far) = pair();
        far.write_all(b"a").expect("written");
        assert_eq!(told(&near, PollFlags::IN), PeerEnd::There);
        far.shutdown(Shutdown::Write).expect("shut");
        assert_eq!(told(&near, PollFlags::RDHUP), PeerEnd::Half);
        near.shutdown(Shutdown::Write).expect("shut");
        assert_eq!(told(&near, PollFlags::HUP), PeerEnd::Half, "it may not have read our last yet");
        let (near, mut far) = pair();
        far.write_all(b"a").expect("written");
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("set");
        drop(far);
        assert_eq!(told(&near, PollFlags::HUP), PeerEnd::Gone, "whatever it has said before");
    }
}
