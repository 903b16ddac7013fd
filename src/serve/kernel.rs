//! TLS on a connection whose keys the kernel has: bytes leave as on plain TCP, by `sendfile`, and it makes records of them.
//!
//! What comes is data, an alert, or a message of the handshake; the kernel tells which. The only message that a client may send here
//! changes its keys (RFC 8446, 4.6.3), for which the next ones would have to be at hand: the kernel has never had what they are derived
//! from. It is taken for the last that the client says: what it has asked for is answered in full, and the connection closed.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    connection::Connection,
    wire::{Outgoing, Plain, Wire},
};
use crate::{net::tls::Sending, sys::kernel_tls};

// Types of records (RFC 8446, 5.1).
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;

/// Level and description of `close_notify` (RFC 8446, 6.1).
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Bytes after which no further request is read, and after which no more are sent at all. AES-GCM allows 2^24.5 records for one key (RFC
/// 8446, 5.5); a record here may be as small as a page, so these are 2^23 and 2^24 records at the least favourable size.
const SOFT_MAX: u64 = 32 << 30;
const HARD_MAX: u64 = 64 << 30;

/// How often it is looked whether the kernel has encrypted the last bytes: it does not tell.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// A TCP stream with TLS in the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    stream: Rc<TcpStream>,
    connection: Rc<Connection>,
    plain: Plain,
    sending: Sending,
    /// Bytes of plaintext that the kernel has taken, and what they count for at most towards the limits of a key.
    taken: u64,
    spent: u64,
    /// The client says no more.
    ended: bool,
    closed: bool,
    looking: Option<Pin<Box<Sleep>>>,
}

impl Kernel {
    pub(super) fn new(stream: Rc<TcpStream>, connection: Rc<Connection>, sending: Sending) -> Self {
        let plain = Plain::new(Rc::clone(&stream), Rc::clone(&connection));
        Self { stream, connection, plain, sending, taken: 0, spent: 0, ended: false, closed: false, looking: None }
    }

    /// What a record that is not data comes to.
    fn told(&mut self, record: Option<u8>, bytes: &[u8]) -> io::Result<usize> {
        match (record, bytes) {
            (Some(ALERT), [_, description]) if *description != CLOSE_NOTIFY[1] => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, format!("alert {description} from the client")))
            }
            _ => {
                self.ended = true;
                Ok(0)
            }
        }
    }

    fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.closed {
            ready!(self.stream.poll_write_ready(cx))?;
            let tried =
                self.stream.try_io(Interest::WRITABLE, || kernel_tls::send_record(&*self.stream, ALERT, &CLOSE_NOTIFY));
            match tried {
                Ok(()) => {
                    self.closed = true;
                    self.taken += CLOSE_NOTIFY.len() as u64;
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Wire for Kernel {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.ended || self.spent >= SOFT_MAX {
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            // Fewer bytes than there was room for do not mean that there are no more: a receive ends where the type changes.
            match self.stream.try_io(Interest::READABLE, || kernel_tls::receive(&*self.stream, into)) {
                Ok((0, Some(APPLICATION_DATA))) => {}
                Ok((count, Some(APPLICATION_DATA))) => return Poll::Ready(Ok(count)),
                Ok((0, None)) => return Poll::Ready(Ok(0)),
                Ok((_, None)) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Ok((count, record)) => return Poll::Ready(self.told(record, &into[..count])),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, out: &Outgoing<'_>) -> Poll<io::Result<usize>> {
        if self.spent >= HARD_MAX {
            return Poll::Ready(Err(io::Error::other("the connection's key has encrypted as much as it may")));
        }
        let sent = ready!(self.plain.poll_send(cx, out))? as u64;
        self.taken += sent;
        // Head and body may end a record each, however small.
        self.spent += sent + 2 * 4096;
        Poll::Ready(Ok(usize::try_from(sent).unwrap_or(usize::MAX)))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.plain.poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_close_notify(cx))?;
        while !self.sending.is_drained(&*self.stream, self.taken)? {
            self.connection.set_blocked();
            let looking = self.looking.get_or_insert_with(|| Box::pin(sleep(DRAIN_LOOK)));
            ready!(looking.as_mut().poll(cx));
            self.looking = None;
        }
        ready!(self.plain.poll_finish(cx))?;
        // What a client has said last, left there, would make the kernel reset the connection, and the client lose the end.
        let mut last_words = [0_u8; 64];
        if let Err(err) = kernel_tls::receive(&*self.stream, &mut last_words) {
            tracing::trace!(error = %err, "the client has said nothing more");
        }
        Poll::Ready(Ok(()))
    }

    fn wake_at(&self, bytes: i32) {
        self.plain.wake_at(bytes);
    }

    fn break_off(&mut self) {
        self.plain.break_off();
    }
}
