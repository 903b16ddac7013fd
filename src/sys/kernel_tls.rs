//! TLS records through a TCP socket whose keys the kernel holds (Linux, Documentation/networking/tls.rst).

#![expect(
    unsafe_code,
    reason = "TCP_ULP, SOL_TLS and the record type beside a message have no safe interface in a crate we use"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Bytes to the peer.
    Send,
    /// Bytes from the peer.
    Receive,
}

// linux/tls.h
const TLS_TX: libc::c_int = 1;
const TLS_RX: libc::c_int = 2;
const TLS_SET_RECORD_TYPE: libc::c_int = 1;
const TLS_GET_RECORD_TYPE: libc::c_int = 2;

/// Room for the type of a record beside a message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Beside([u8; 64]);

/// Makes the socket one that may be given keys. Until it has some, nothing changes.
///
/// # Errors
/// As of `setsockopt(2)`: the kernel has no TLS, or the socket is not connected.
pub fn attach(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls\0")
}

/// Gives the kernel the keys of one direction, laid out as the `tls12_crypto_info_*` of linux/tls.h.
///
/// # Errors
/// As of `setsockopt(2)`: the kernel does not know the cipher.
pub fn set_keys(socket: impl AsFd, direction: Direction, keys: &[u8]) -> io::Result<()> {
    let name = if direction == Direction::Send { TLS_TX } else { TLS_RX };
    set(socket, libc::SOL_TLS, name, keys)
}

/// Fills `keys` with what the kernel holds for sending, the number of the next record among it. The first four bytes have to say
/// which version and cipher that is.
///
/// # Errors
/// As of `getsockopt(2)`.
pub fn sending_keys(socket: impl AsFd, keys: &mut [u8]) -> io::Result<()> {
    read(socket, libc::SOL_TLS, TLS_TX, keys)
}

/// Bytes that TCP has been given so far, less a constant of the connection; `None` while they cannot be told at one instant.
///
/// # Errors
/// As of `getsockopt(2)`.
pub fn tcp_bytes(socket: impl AsFd) -> io::Result<Option<u64>> {
    let before = acknowledged(&socket)?;
    let unacknowledged = super::socket::unacknowledged(&socket)?;
    Ok((acknowledged(&socket)? == before).then(|| before + unacknowledged))
}

/// `tcpi_bytes_acked` of `TCP_INFO`, which the `tcp_info` of glibc ends before.
fn acknowledged(socket: impl AsFd) -> io::Result<u64> {
    const AT: usize = 120;
    let mut info = [0_u8; AT + 8];
    read(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let (_, last) = info.split_last_chunk::<8>().ok_or(io::ErrorKind::InvalidData)?;
    Ok(u64::from_ne_bytes(*last))
}

fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    let size = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads at most `size` bytes, which `value` has; the descriptor is borrowed and open.
    let result = unsafe { libc::setsockopt(descriptor, level, name, value.as_ptr().cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn read(socket: impl AsFd, level: libc::c_int, name: libc::c_int, into: &mut [u8]) -> io::Result<()> {
    let room = libc::socklen_t::try_from(into.len()).map_err(io::Error::other)?;
    let mut size = room;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes, which `into` has room for; the descriptor is borrowed and open.
    let result = unsafe { libc::getsockopt(descriptor, level, name, into.as_mut_ptr().cast(), &raw mut size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if size < room { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

/// Receives plaintext of records of one type, without waiting: how many bytes, and the type. 0 bytes of `None` where TCP has ended.
///
/// # Errors
/// As of `recvmsg(2)`; `EBADMSG` where a record is not what the peer has sent.
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Option<u8>)> {
    let mut beside = Beside([0; 64]);
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut message = message(&mut part, &mut beside);
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the message names one buffer and one room for control data, both alive and of the length it says; the descriptor is open.
    let result = unsafe { libc::recvmsg(descriptor, &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(count) = usize::try_from(result) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has filled the message in; it still names `beside`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Ok((count, None));
    }
    // SAFETY: a header that is not null lies inside of `beside`, which is aligned for it.
    let about = unsafe { header.read() };
    if about.cmsg_level != libc::SOL_TLS || about.cmsg_type != TLS_GET_RECORD_TYPE {
        return Ok((count, None));
    }
    // SAFETY: as above; the data follow the header.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: a control message of this type carries one byte.
    let record = unsafe { data.read() };
    Ok((count, Some(record)))
}

/// Sends a whole record that is not data, without waiting.
///
/// # Errors
/// As of `sendmsg(2)`.
pub fn send_record(socket: impl AsFd, record: u8, bytes: &[u8]) -> io::Result<()> {
    let mut bytes = bytes.to_vec();
    let mut beside = Beside([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = message(&mut part, &mut beside);
    // SAFETY: it only computes.
    let space = unsafe { libc::CMSG_SPACE(1) };
    // SAFETY: as above.
    let length = unsafe { libc::CMSG_LEN(1) };
    message.msg_controllen = space as usize;
    // SAFETY: the message names `beside`, which has room for a header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    let value = libc::cmsghdr { cmsg_len: length as usize, cmsg_level: libc::SOL_TLS, cmsg_type: TLS_SET_RECORD_TYPE };
    // SAFETY: `header` points into `beside`, which is aligned for it and outlives the call.
    unsafe { header.write(value) };
    // SAFETY: the data follow the header, inside of `beside`.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: as above, and one byte fits.
    unsafe { data.write(record) };
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the message names one buffer and its control data, both alive; the descriptor is borrowed and open.
    let result = unsafe { libc::sendmsg(descriptor, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    match usize::try_from(result) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(sent) if sent < bytes.len() => Err(io::ErrorKind::WriteZero.into()),
        Ok(_) => Ok(()),
    }
}

fn message(part: &mut libc::iovec, beside: &mut Beside) -> libc::msghdr {
    // SAFETY: null pointers and zeroes are a valid message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = beside.0.as_mut_ptr().cast();
    message.msg_controllen = beside.0.len();
    message
}
