//! When the kernel got what a client reads, whenever that client comes to read it (`SO_TIMESTAMPNS`, `socket(7)`).
//!
//! Over loopback what is sent goes through the receiver's protocol on the sender's core: a load that was kept from its own core for a moment does not show in
//! such times.

#![expect(unsafe_code, reason = "control messages that hold times have no safe interface")]

use std::{
    io,
    net::TcpStream,
    os::fd::AsRawFd as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The kernel's clock for arrivals, since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Has the kernel keep the times.
///
/// # Errors
/// As of `setsockopt(2)`.
pub(crate) fn keep(stream: &TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an int that outlives the call; the descriptor is borrowed and open.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// As `recv(2)`, with when the last byte came; nothing where there is none now.
///
/// # Errors
/// As of `recvmsg(2)`; the end of the stream is one too.
pub(crate) fn receive(
    stream: &TcpStream,
    into: &mut [u8],
    flags: libc::c_int,
) -> io::Result<Option<(usize, Option<Duration>)>> {
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // Aligned as control messages have to be.
    let mut control = [0_u64; 8];
    // SAFETY: all bits zero are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: the message points to one part and to room for control messages, both of which outlive the call and have the lengths said.
    let count = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
    if count <= 0 {
        let err = if count == 0 { io::ErrorKind::UnexpectedEof.into() } else { io::Error::last_os_error() };
        return if err.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(err) };
    }
    // The one message that was asked for.
    // SAFETY: the kernel has filled the message in; this looks whether what it has written of the room begins with a header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it is null, or points to a whole header in `control`, which outlives it and is aligned for it.
    let is_time = unsafe { header.as_ref() }
        .is_some_and(|header| header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_TIMESTAMPNS);
    let arrived = is_time.then(|| {
        // SAFETY: the header is there, and behind it the time that a message of this type holds.
        let time = unsafe { libc::CMSG_DATA(header).cast::<libc::timespec>() };
        // SAFETY: as above; read as it lies, aligned or not, and any bits are one.
        let time = unsafe { time.read_unaligned() };
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned() as u32)
    });
    Ok(Some((count.cast_unsigned(), arrived)))
}
