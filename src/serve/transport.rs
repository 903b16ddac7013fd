//! How bytes leave: a TCP stream for hyper that sends slices of mapped files by `sendfile(2)`.
//!
//! [head][slice of a mapping]  ->  `sendmsg(MSG_MORE)` of the head, `sendfile` of the slice
//! [head][small slice]         ->  one `sendmsg`
//! anything else               ->  `sendmsg`
//!
//! Whether a slice is recognised or not, the same bytes leave: recognition saves the copy, correctness never depends on it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use smallvec::SmallVec;
use tokio::{io::Interest, net::TcpStream};

use super::connection::Connection;
use crate::{storage::Mapping, telemetry::metrics::SendPath};

/// A slice up to this size goes out with its head in one call: two calls less are worth more than the copy.
const COPY_MAX: usize = 16 << 10;
/// Bytes per `sendfile`, so that one fast connection leaves its worker to others now and then.
const SENDFILE_MAX: usize = 1 << 20;
/// Buffers per call; hyper hands over at most this many.
const BUFFERS_MAX: usize = 16;
/// Bytes read at once; a request's head is smaller.
const READ_BYTES: usize = 4 << 10;

/// A TCP stream, and what its worker knows of the connection.
#[derive(Debug)]
pub(super) struct Transport {
    stream: Rc<TcpStream>,
    connection: Rc<Connection>,
}

impl Transport {
    pub(super) fn new(stream: Rc<TcpStream>, connection: Rc<Connection>) -> Self {
        Self { stream, connection }
    }

    /// Tries `send` whenever the socket is writable until it sends, fails, or the socket is full.
    fn poll_send(&self, cx: &mut Context<'_>, mut send: impl FnMut() -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.connection.set_blocked();
                    return Poll::Pending;
                }
            }
            match self.stream.try_io(Interest::WRITABLE, &mut send) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn send_copied(&self, cx: &mut Context<'_>, buffers: &[IoSlice<'_>], more: bool) -> Poll<io::Result<usize>> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, more);
        let sent =
            ready!(self.poll_send(cx, || {
                Ok(sendmsg(&*self.stream, buffers, &mut SendAncillaryBuffer::default(), flags)?)
            }))?;
        self.connection.metrics.sent(SendPath::Copied, sent as u64);
        Poll::Ready(Ok(sent))
    }

    fn send_mapped(
        &self,
        cx: &mut Context<'_>,
        (mapping, offset): &(Arc<Mapping>, u64),
        len: usize,
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.poll_send(cx, || {
            let mut at = *offset;
            Ok(rustix::fs::sendfile(&*self.stream, mapping.file(), Some(&mut at), len.min(SENDFILE_MAX))?)
        }))?;
        if sent == 0 && len > 0 {
            // Somebody has cut the file short: the length that was promised cannot be kept.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.connection.metrics.sent(SendPath::Sendfile, sent as u64);
        Poll::Ready(Ok(sent))
    }
}

impl Read for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0_u8; READ_BYTES];
        let room = buf.remaining().min(READ_BYTES);
        let mut read = 0;
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let tried = self.stream.try_io(Interest::READABLE, || {
                read = recv(&*self.stream, &mut bytes[..room], RecvFlags::empty())?.0;
                // Less than there was room for: the socket is empty now, and asking again would cost a call to hear so.
                if read == 0 || read == room { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match tried {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock && read == 0 => continue,
                Err(err) if err.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(err)),
                _ => {}
            }
            if read > 0 {
                self.connection.received();
            } else if self.connection.is_responding() && self.connection.closing.get().is_none() {
                // It may have closed its half only, and wait for the rest. If it is gone, the next write says so.
                self.connection.hold_last_word(cx.waker());
                return Poll::Pending;
            }
            buf.put_slice(&bytes[..read]);
            return Poll::Ready(Ok(()));
        }
    }
}

impl Write for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// hyper copies every body byte when this says no.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bufs = &bufs[..bufs.len().min(BUFFERS_MAX)];
        let mut head: SmallVec<[IoSlice<'_>; 4]> = SmallVec::new();
        let mut mapped = None;
        let mut copied = 0;
        for buffer in bufs.iter().filter(|buffer| !buffer.is_empty()) {
            if copied + buffer.len() > COPY_MAX
                && let Some(located) = self.connection.locate(buffer)
            {
                mapped = Some((located, buffer.len()));
                break;
            }
            copied += buffer.len();
            head.push(IoSlice::new(buffer));
        }
        let sent = match (head.as_slice(), &mapped) {
            ([], Some((located, len))) => ready!(self.send_mapped(cx, located, *len)),
            ([], None) => return Poll::Ready(Ok(0)),
            (head, mapped) => ready!(self.send_copied(cx, head, mapped.is_some())),
        }?;
        self.connection.advanced(sent, bufs.iter().filter(|buffer| !buffer.is_empty()).map(|buffer| &**buffer));
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is buffered here.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write) {
            // The client was faster.
            Err(rustix::io::Errno::NOTCONN) | Ok(()) => Poll::Ready(Ok(())),
            Err(err) => Poll::Ready(Err(err.into())),
        }
    }
}
