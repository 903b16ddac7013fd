//! TLS on a connection: the wire that encrypts.
//!
//! handshake -> `poll_recv`: socket -> session -> plaintext; `poll_send`: plaintext -> records -> one `sendmsg` for many of them
//!
//! Bytes of an asset are encrypted from where they are mapped. How much is encrypted ahead of the kernel follows the client: all that
//! `serve.tls.write_buffer` allows while the socket has room for it, one record where it has none. An idle connection holds nothing.

use std::{
    future::poll_fn,
    io::{self, IoSlice, Read, Write},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use tokio::{io::Interest, net::TcpStream};

use super::{
    Config,
    connection::Connection,
    helper::{Done, Helper},
    kernel::Kernel,
    trickle::Trickle,
    wire::{Outgoing, Wire, wake_at},
};
use crate::{
    net::tls::{Established, Session},
    storage::lost_pages,
    sys::{kernel_tls, socket},
    telemetry::metrics::SendPath,
};

/// Least that is encrypted at once: one record.
const BATCH_MIN: usize = 16 << 10;
/// What is encrypted at once to begin with.
const BATCH_FIRST: usize = 64 << 10;

/// Bytes that are read and dropped at the end: room for a record that says that no more will come.
const LAST_WORDS_MAX: usize = 1024;

/// A TCP stream with TLS on it.
#[derive(Debug)]
pub(super) struct Secure {
    stream: Rc<TcpStream>,
    connection: Rc<Connection>,
    session: Session,
    /// The first byte that came.
    first: Option<u8>,
    /// Where records end, while no byte behind the handshake may be read.
    records: Option<Records>,
    /// Bytes of a body encrypted at once, and at most.
    batch: usize,
    batch_max: usize,
    /// Bytes encrypted since the kernel last had all of them, and how many may be before it is given them.
    gathered: usize,
    quota: usize,
    /// Unsent bytes that the kernel takes at most; 0 where that is not known.
    unsent_max: u64,
    finished: bool,
    /// Whether what goes to the kernel now is followed by more at once, so that it need not leave before a packet is full.
    more: bool,
    /// Pages that were gone when the connection began.
    lost_pages: u64,
    /// Whether what is encrypted may not be what an asset holds: none of it must leave.
    spoiled: bool,
}

/// Why there is no session.
#[derive(Debug)]
pub(super) enum NoSession {
    /// The client has left, or was sent away.
    Left,
    /// The client speaks HTTP without TLS.
    Plaintext,
    /// They do not come to terms, or the connection broke.
    Failed(io::Error),
}

impl Secure {
    pub(super) fn new(stream: Rc<TcpStream>, connection: Rc<Connection>, session: Session, config: &Config) -> Self {
        let batch_max = usize::try_from(config.tls.write_buffer.0).unwrap_or(usize::MAX).max(BATCH_MIN);
        let unsent_max = config.unsent_max.0;
        let batch = BATCH_FIRST.min(batch_max);
        let records = session.may_be_handed_over().then(Records::default);
        Self {
            stream,
            connection,
            session,
            first: None,
            records,
            batch,
            batch_max,
            gathered: 0,
            quota: 0,
            unsent_max,
            finished: false,
            more: false,
            lost_pages: lost_pages::count(),
            spoiled: false,
        }
    }

    /// Agrees with the client on a session. The sweeper sees to it that this takes no longer than `most`.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn handshake(
        &mut self,
        helper: Option<&Helper>,
        most: Duration,
    ) -> Result<Established, NoSession> {
        let (mut trickle, mut came) = (Trickle::default(), 0);
        loop {
            let costs_much = self.connection.comes_last();
            self.session.set_costly(helper.is_some() && costs_much);
            let Some(work) = self.session.answer() else {
                match poll_fn(|cx| self.poll_handshake(cx, (&mut trickle, &mut came))).await? {
                    Some(established) => return Ok(established),
                    None => continue,
                }
            };
            let answer = match helper {
                Some(helper) => {
                    helper.run(work, || self.connection.closing.get().is_none(), costs_much.then_some(most)).await
                }
                None => Done::By(work()),
            };
            let answer = match answer {
                Done::By(answer) => answer,
                Done::Unwanted => return Err(NoSession::Left),
                Done::Panicked => {
                    self.connection.metrics.panicked();
                    return Err(NoSession::Failed(io::ErrorKind::Other.into()));
                }
            };
            if let Err(err) = self.session.answered(answer) {
                poll_fn(|cx| {
                    self.tell(cx);
                    Poll::Ready(())
                })
                .await;
                return Err(NoSession::Failed(err));
            }
        }
    }

    /// Gives the session to the kernel where it can be; otherwise reads by more than one record from here on.
    ///
    /// # Errors
    /// The kernel has refused what it said that it would take: the connection cannot go on.
    pub(super) fn hand_over(mut self) -> io::Result<Handed> {
        if self.records.take().is_none_or(|records| !records.is_between()) || !self.session.can_be_handed_over() {
            return Ok(Handed::Kept(Box::new(self)));
        }
        if let Err(err) = kernel_tls::attach(&*self.stream) {
            tracing::debug!(error = %err, "the kernel does not take a connection's TLS");
            return Ok(Handed::Kept(Box::new(self)));
        }
        // Its wake-ups are for whole records from here on.
        self.connection.set_socket(None);
        let sending = self.session.into_keys()?.install(&*self.stream)?;
        self.connection.metrics.kernel_tls();
        Ok(Handed::Over(Kernel::new(self.stream, self.connection, sending)))
    }

    /// Nothing where the client's first message has come. `came`: bytes of what it says now.
    fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
        (trickle, came): (&mut Trickle, &mut usize),
    ) -> Poll<Result<Option<Established>, NoSession>> {
        let before = *came;
        loop {
            ready!(self.poll_drain(cx)).map_err(NoSession::Failed)?;
            if let Some(established) = self.session.established() {
                trickle.whole(self);
                return Poll::Ready(Ok(Some(established)));
            }
            trickle.look(self, cx);
            let Poll::Ready(received) = self.poll_receive(cx) else {
                // A record may take two reads: what counts is how often something came.
                if *came > before {
                    trickle.read(*came, (self.connection.now(), self.connection.peer.port()), self);
                    // By this it is woken when the rest is over.
                    trickle.look(self, cx);
                }
                return Poll::Pending;
            };
            match received {
                Ok(0) => return Poll::Ready(Err(NoSession::Left)),
                Ok(_) if self.session.waits_for_answer() => {
                    trickle.whole(self);
                    *came = 0;
                    return Poll::Ready(Ok(None));
                }
                Ok(count) => *came += count,
                Err(_) if self.first.is_some_and(|first| first.is_ascii_uppercase()) => {
                    return Poll::Ready(Err(NoSession::Plaintext));
                }
                Err(err) => {
                    self.tell(cx);
                    return Poll::Ready(Err(NoSession::Failed(err)));
                }
            }
        }
    }

    /// Tells the client what is wrong, where that goes at once.
    fn tell(&mut self, cx: &mut Context<'_>) {
        let told = self.poll_drain(cx);
        tracing::trace!(?told, "alert");
    }

    /// Reads once from the socket; bytes of the wire, 0 at their end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let Self { stream, session, first, records, .. } = self;
            let mut received = None;
            let tried = stream.try_io(Interest::READABLE, || {
                let mut incoming = Incoming { stream, first, records, is_empty: false };
                received = Some(session.receive(&mut incoming));
                // Said even where something came: asking again would cost a call to hear so.
                if incoming.is_empty { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (received, tried) {
                (Some(Err(err)), _) if err.kind() == io::ErrorKind::WouldBlock => {}
                (Some(received), _) => return Poll::Ready(received),
                (None, Err(err)) if err.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(err)),
                (None, _) => {}
            }
        }
    }

    /// Encrypts `parts`, and hands them to the kernel only where much has gathered; bytes taken.
    pub(super) fn poll_gather(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.gathered >= self.quota {
            ready!(self.poll_paced(cx))?;
            self.quota = self.room(self.batch);
        }
        let taken = self.encrypt(parts)?;
        // Small parts were copied before they came here: where those were read is not known any more.
        self.spoiled |= lost_pages::count() != self.lost_pages;
        self.gathered += taken;
        self.connection.metrics.sent(SendPath::Encrypted, taken as u64);
        if parts.len() > 1 {
            // A frame and its payload: a part of a response, not only talk between the two ends.
            self.connection.progressed();
        }
        Poll::Ready(Ok(taken))
    }

    /// How many of `wanted` bytes the socket has room for, but at least one record: what is encrypted and does not fit is memory that a
    /// client which takes nothing keeps.
    fn room(&self, wanted: usize) -> usize {
        // Not worth the question.
        if wanted <= 2 * BATCH_MIN || self.unsent_max == 0 {
            return wanted;
        }
        let unsent = socket::unsent(&*self.stream).unwrap_or(0);
        let room = usize::try_from(self.unsent_max.saturating_sub(unsent)).unwrap_or(usize::MAX);
        wanted.min((room / BATCH_MIN * BATCH_MIN).max(BATCH_MIN))
    }

    /// As `poll_drain`; how much is encrypted at once follows how that goes.
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_drain(cx);
        match &drained {
            Poll::Ready(Ok(())) => (self.batch, self.gathered) = ((self.batch * 2).min(self.batch_max), 0),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.batch = (self.batch / 2).max(BATCH_MIN),
        }
        drained
    }

    /// Encrypts what is read from mapped files. Where pages of it are gone, what stands there instead must not leave.
    fn encrypt(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.session.encrypt(parts)?;
        self.spoiled |= parts.iter().any(|part| lost_pages::hold(part));
        self.check_pages()?;
        Ok(taken)
    }

    fn check_pages(&self) -> io::Result<()> {
        if !self.spoiled {
            return Ok(());
        }
        Err(io::Error::other("pages of a file are gone, and were in what was to be sent"))
    }

    /// Hands what is encrypted to the kernel.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_pages()?;
        while self.session.has_output() {
            match self.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.connection.set_blocked();
                    return Poll::Pending;
                }
            }
            let Self { stream, session, more, .. } = self;
            let mut written = None;
            let tried = stream.try_io(Interest::WRITABLE, || {
                let mut outgoing = Wired { stream, more: *more, is_full: false };
                written = Some(session.write_to(&mut outgoing));
                if outgoing.is_full { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (written, tried) {
                (Some(Ok(0)), _) => break,
                (Some(Ok(count)), _) => self.connection.add_sent(count as u64),
                (Some(Err(err)), _) | (None, Err(err)) if err.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(err));
                }
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Secure {
    fn poll_waste(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(into) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }
}

impl Wire for Secure {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        // What comes after the last word is only dropped; a piece of it may be gone already, and the rest makes no records.
        if self.finished {
            return self.poll_waste(cx, into);
        }
        loop {
            if let Some(count) = self.session.take(into)? {
                return Poll::Ready(Ok(count));
            }
            let received = ready!(self.poll_receive(cx));
            // An answer to a change of keys, or what was wrong; it does not wait for a response to go with.
            if self.session.has_output()
                && let Poll::Ready(Err(err)) = self.poll_drain(cx)
            {
                return Poll::Ready(Err(err));
            }
            if received? == 0 {
                return Poll::Ready(Ok(0));
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, out: &Outgoing<'_>) -> Poll<io::Result<usize>> {
        self.more = true;
        let drained = self.poll_drain(cx);
        self.more = false;
        ready!(drained)?;
        let body = &out.body[..self.room(out.body.len().min(self.batch))];
        let taken = self.encrypt(&[IoSlice::new(out.head), IoSlice::new(body)])?;
        self.connection.metrics.sent(SendPath::Encrypted, taken as u64);
        self.more = out.more || taken < out.head.len() + out.body.len();
        let paced = self.poll_paced(cx);
        self.more = false;
        // What does not fit goes first next time.
        match paced {
            Poll::Ready(Err(err)) => Poll::Ready(Err(err)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_drain(cx);
        if drained.is_ready() {
            (self.gathered, self.quota) = (0, 0);
        }
        drained
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.session.close();
        }
        ready!(self.poll_drain(cx))?;
        match rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write) {
            // The client was faster.
            Err(rustix::io::Errno::NOTCONN) | Ok(()) => {}
            Err(err) => return Poll::Ready(Err(err.into())),
        }
        // A client that has closed its half has said so in a record that nobody reads any more. Left there, it would make the kernel
        // reset the connection, and the client lose the end of the response.
        let mut last_words = [0_u8; LAST_WORDS_MAX];
        if let Err(err) = recv(&*self.stream, &mut last_words[..], RecvFlags::DONTWAIT) {
            tracing::trace!(error = %err, "the client has said nothing more");
        }
        Poll::Ready(Ok(()))
    }

    fn wake_at(&self, bytes: i32) {
        wake_at(&self.stream, bytes);
    }

    fn break_off(&mut self) {
        // Without a word inside of TLS, the end is none already; this is for clients that do not look.
        if let Err(err) = self.stream.set_zero_linger() {
            tracing::debug!(error = %err, "connection is closed as if all were well");
        }
    }
}

/// Who goes on with a connection.
#[derive(Debug)]
pub(super) enum Handed {
    /// The kernel.
    Over(Kernel),
    /// This process.
    Kept(Box<Secure>),
}

/// Bytes of a record before its payload (RFC 8446, 5.1).
const RECORD_HEADER: usize = 5;

/// Follows the records of a stream, so that a read can end where one does.
#[derive(Debug, Default)]
struct Records {
    header: [u8; RECORD_HEADER],
    have: usize,
    left: usize,
}

impl Records {
    /// Bytes until it is known how many more there are.
    fn wanted(&self) -> usize {
        if self.left > 0 { self.left } else { RECORD_HEADER - self.have }
    }

    /// `bytes`, no more than were wanted, have come.
    fn advance(&mut self, bytes: &[u8]) {
        if self.left > 0 {
            self.left -= bytes.len();
            return;
        }
        self.header[self.have..self.have + bytes.len()].copy_from_slice(bytes);
        self.have += bytes.len();
        if self.have == RECORD_HEADER {
            self.have = 0;
            self.left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        }
    }

    /// Whether the next byte begins a record.
    fn is_between(&self) -> bool {
        self.left == 0 && self.have == 0
    }
}

/// The socket as the session reads from it.
struct Incoming<'a> {
    stream: &'a TcpStream,
    first: &'a mut Option<u8>,
    records: &'a mut Option<Records>,
    /// Whether nothing is left to read.
    is_empty: bool,
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = self.records.as_ref().map_or(into.len(), |records| records.wanted().min(into.len()));
        let into = &mut into[..room];
        // Until it has said otherwise.
        self.is_empty = true;
        let count = recv(self.stream, &mut *into, RecvFlags::empty())?.0;
        self.is_empty = count > 0 && count < room;
        if let Some(records) = self.records {
            records.advance(&into[..count]);
        }
        if self.first.is_none() {
            *self.first = into[..count].first().copied();
        }
        Ok(count)
    }
}

/// The socket as the session writes to it.
struct Wired<'a> {
    stream: &'a TcpStream,
    /// Whether more follows at once.
    more: bool,
    /// Whether it takes no more.
    is_full: bool,
}

impl Write for Wired<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        // Until it has said otherwise.
        self.is_full = true;
        let flags = SendFlags::NOSIGNAL | if self.more { SendFlags::MORE } else { SendFlags::empty() };
        let count = sendmsg(self.stream, bytes, &mut SendAncillaryBuffer::default(), flags)?;
        self.is_full = count < bytes.iter().map(|bytes| bytes.len()).sum();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
