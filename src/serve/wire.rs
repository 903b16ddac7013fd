//! How bytes leave and come in: the seam between the protocol and the socket, and the plain TCP side of it.
//!
//! [head][part of a mapped file]        ->  `sendmsg(MSG_MORE)` of the head, `sendfile` of the part
//! [head][small part, or other bytes]   ->  one `sendmsg`
//!
//! The same bytes leave either way: knowing the mapping saves the copy, correctness never depends on it.

use std::{
    io::{self, IoSlice},
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt::set_tcp_cork};
use tokio::{io::Interest, net::TcpStream};

use super::connection::Connection;
use crate::{
    storage::Mapping,
    sys::socket,
    telemetry::metrics::{SendPath, WorkerMetrics},
};

/// A part of a mapped file up to this size goes out with its head in one call: one call less is worth more than the copy. At 16 KiB
/// `sendfile` costs less where the bytes are not in the processor's cache, as those of many assets are not.
const COPY_MAX: usize = 8 << 10;
/// Bytes per `sendfile`, so that one fast connection leaves its worker to others now and then.
const SENDFILE_MAX: usize = 1 << 20;

/// What a connection's bytes go through.
pub(super) trait Wire {
    /// Reads what has come, at least one byte; 0 where the client sends nothing more.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends as much of `out` as fits now, and tells how many bytes of head and body that was; never 0 of something.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_send(&mut self, cx: &mut Context<'_>, out: &Outgoing<'_>) -> Poll<io::Result<usize>>;

    /// Hands on what `poll_send` took and still holds.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Whoever waits for what comes is woken from so many bytes on.
    fn wake_at(&self, bytes: i32);

    /// Makes the end of the connection look like the failure it is: for a body that is cut where nothing else marks its end.
    fn break_off(&mut self);
}

/// What is to be sent next: bytes of ours, then bytes of an asset or of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) head: &'a [u8],
    pub(super) body: &'a [u8],
    /// The mapping that `body` is a part of.
    pub(super) mapping: Option<&'a Mapping>,
    /// Whether what follows `body` is at hand, and comes with the next turn.
    pub(super) more: bool,
}

/// Plain TCP.
#[derive(Debug)]
pub(super) struct Plain {
    stream: Rc<TcpStream>,
    connection: Rc<Connection>,
    /// Whether the kernel keeps the end of what it is given until more has come.
    corked: bool,
}

impl Plain {
    pub(super) fn new(stream: Rc<TcpStream>, connection: Rc<Connection>) -> Self {
        Self { stream, connection, corked: false }
    }

    /// Sends what fits. What goes in several turns leaves in whole packets, as if it were one call: else the end of each would be a small
    /// packet of its own (tcp(7), `TCP_CORK`, which waits for 200 ms at most).
    fn send(&mut self, out: &Outgoing<'_>) -> io::Result<usize> {
        if out.more && out.mapping.is_some() {
            self.cork(true);
        }
        let sent = send(&self.stream, out, &self.connection.metrics)?;
        if !out.more && sent == out.head.len() + out.body.len() {
            self.cork(false);
        }
        Ok(sent)
    }

    fn cork(&mut self, corked: bool) {
        // Where that fails, so does what is sent next.
        if self.corked != corked && set_tcp_cork(&*self.stream, corked).is_ok() {
            self.corked = corked;
        }
    }

    /// Has the runtime wait for news of a socket that was found full. None can have come since: what brings them runs on this thread.
    fn set_full(&self) {
        let full: io::Result<()> = self.stream.try_io(Interest::WRITABLE, || Err(io::ErrorKind::WouldBlock.into()));
        debug_assert!(full.is_err());
    }
}

impl Wire for Plain {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = into.len();
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let mut read = None;
            let tried = self.stream.try_io(Interest::READABLE, || {
                let count = recv(&*self.stream, &mut *into, RecvFlags::empty())?.0;
                read = Some(count);
                // Less than there was room for: the socket is empty now, and asking again would cost a call to hear so.
                if count == 0 || count == room { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match (read, tried) {
                (Some(count), _) => return Poll::Ready(Ok(count)),
                (None, Err(err)) if err.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(err)),
                (None, _) => {}
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, out: &Outgoing<'_>) -> Poll<io::Result<usize>> {
        // Nearly always there is room, and asking for it first costs more than the one call in vain.
        if !self.connection.is_full() {
            match self.send(out) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.set_full(),
                sent => {
                    self.connection.add_sent(sent.as_ref().map_or(0, |sent| *sent as u64));
                    return Poll::Ready(sent);
                }
            }
        }
        loop {
            match self.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.connection.set_blocked();
                    return Poll::Pending;
                }
            }
            match self.send(out) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.set_full(),
                Ok(sent) => {
                    self.connection.add_sent(sent as u64);
                    return Poll::Ready(Ok(sent));
                }
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held here.
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write) {
            // The client was faster.
            Err(rustix::io::Errno::NOTCONN) | Ok(()) => Poll::Ready(Ok(())),
            Err(err) => Poll::Ready(Err(err.into())),
        }
    }

    fn wake_at(&self, bytes: i32) {
        wake_at(&self.stream, bytes);
    }

    fn break_off(&mut self) {
        if let Err(err) = self.stream.set_zero_linger() {
            tracing::debug!(error = %err, "connection is closed as if all were well");
        }
    }
}

/// As [`Wire::wake_at`]. Where the kernel will not, more is read than need be.
pub(super) fn wake_at(stream: &TcpStream, bytes: i32) {
    if let Err(err) = socket::wake_at(stream, bytes) {
        tracing::debug!(error = %err, "a connection is read as each byte comes");
    }
}

/// Sends what fits; counts by which way it left.
fn send(stream: &TcpStream, out: &Outgoing<'_>, metrics: &WorkerMetrics) -> io::Result<usize> {
    let Some(mapping) = out.mapping.filter(|_| out.body.len() > COPY_MAX) else {
        let sent = copy(stream, &[IoSlice::new(out.head), IoSlice::new(out.body)], SendFlags::NOSIGNAL)?;
        metrics.sent(SendPath::Copied, sent as u64);
        return Ok(sent);
    };
    let mut before = 0;
    if !out.head.is_empty() {
        before = copy(stream, &[IoSlice::new(out.head)], SendFlags::NOSIGNAL | SendFlags::MORE)?;
        metrics.sent(SendPath::Copied, before as u64);
        if before < out.head.len() {
            return Ok(before);
        }
    }
    match send_mapped(stream, mapping, out.body) {
        Ok(sent) => {
            metrics.sent(SendPath::Sendfile, sent as u64);
            Ok(before + sent)
        }
        // What went wrong, or that the socket is full, shows again when the body is next.
        Err(_) if before > 0 => Ok(before),
        Err(err) => Err(err),
    }
}

fn copy(stream: &TcpStream, buffers: &[IoSlice<'_>], flags: SendFlags) -> io::Result<usize> {
    Ok(sendmsg(stream, buffers, &mut SendAncillaryBuffer::default(), flags)?)
}

fn send_mapped(stream: &TcpStream, mapping: &Mapping, bytes: &[u8]) -> io::Result<usize> {
    let Some(mut at) = mapping.locate(bytes) else {
        return Err(io::Error::other("bytes to be sent lie outside of their mapping"));
    };
    let sent = rustix::fs::sendfile(stream, mapping.file(), Some(&mut at), bytes.len().min(SENDFILE_MAX))?;
    // Somebody has cut the file short: the length that was promised cannot be kept.
    if sent == 0 && !bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(sent) }
}
