//! HTTP/1.1 on one connection: reads heads, answers them in order, one after the other.
//!
//! read -> scan for the head's end -> parse -> hit (at once)      -> send
//!                                         -> handler (may wait) -> head, body -> send
//!
//! Requests have no bodies here: what announces one is refused, and the connection ends. Between two requests a connection owns no
//! buffer: heads are read into, and written from, the worker's own desk, and only what is cut off is kept.

pub(super) mod head;
pub(super) mod write;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::future::{Either, select};
use http::{
    Request, Response, Version,
    header::{CONNECTION, CONTENT_LENGTH},
};
use tokio::time::timeout;

use self::{
    head::{BadHead, Head, Scan},
    write::{Ending, Framing},
};
use super::{
    body::{Body, Chunk},
    connection::{Connection, Doing},
    exchange::{Exchange, words_of_head},
    handler::Handler,
    wire::{Outgoing, Wire},
};
use crate::{
    asset::UnixTime,
    telemetry::{access_log::Words, metrics::CacheOutcome},
};

/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// Bytes sent to one client before the worker looks after the others.
const TURN_BYTES: u64 = 4 << 20;

/// Requests answered to one client before the worker looks after the others: who sends many ahead does not keep it.
const TURN_REQUESTS: u64 = 64;

/// What the connections of a worker write on in turn.
#[derive(Debug)]
pub(super) struct Desk {
    input: RefCell<Box<[u8]>>,
    output: RefCell<Vec<u8>>,
    /// `Date`, and the second it is of.
    date: RefCell<(UnixTime, String)>,
    /// Whether the worker is draining: responses say that they are the last.
    pub(super) draining: Cell<bool>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            input: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            output: RefCell::new(Vec::with_capacity(1024)),
            date: RefCell::new((UnixTime(u64::MAX), String::new())),
            draining: Cell::new(false),
        }
    }
}

/// One connection, and what of it was read and not yet answered.
#[derive(Debug)]
pub(super) struct Http1<W> {
    pub(super) wire: W,
    connection: Rc<Connection>,
    handler: Rc<Handler>,
    desk: Rc<Desk>,
    input: Vec<u8>,
    scan: Scan,
}

/// How a connection goes on after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// With the next request.
    Next,
    /// It ends, as both sides wish.
    End,
    /// It ends, though the client may still be sending: what comes is read and dropped for a moment, since closing a socket with
    /// unread bytes resets it, and the response could be lost.
    Linger,
}

/// What has been read.
enum Step {
    /// The client sends nothing more.
    Closed,
    /// A request was answered from memory; what did not go out at once is still to be sent.
    Hit(Option<Box<Sending>>, Then),
    /// A request for the handler.
    Asked(Box<Asked>),
    /// No request.
    Bad(BadHead),
}

struct Asked {
    request: Request<()>,
    persists: bool,
}

/// Bytes on their way out, and what they end when they have gone.
struct Sending {
    head: Vec<u8>,
    head_sent: usize,
    chunk: Option<Chunk>,
    chunk_sent: usize,
    exchange: Option<Exchange>,
    /// Bytes sent since others had their turn.
    turn: u64,
}

impl<W: Wire> Http1<W> {
    pub(super) fn new(wire: W, connection: Rc<Connection>, handler: Rc<Handler>, desk: Rc<Desk>) -> Self {
        Self { wire, connection, handler, desk, input: Vec::new(), scan: Scan::default() }
    }

    /// Serves requests until the connection ends.
    ///
    /// # Errors
    /// The connection broke, or a response had to be cut.
    pub(super) async fn serve(mut self) -> io::Result<()> {
        let mut answered = 0_u64;
        loop {
            let then = match poll_fn(|cx| self.poll_request(cx)).await? {
                Step::Closed if self.input.is_empty() => {
                    // It may have closed its half only, and wait for our last word; if it is gone, nobody misses that.
                    if let Err(err) = poll_fn(|cx| self.wire.poll_finish(cx)).await {
                        tracing::trace!(error = %err, "the client has gone");
                    }
                    return Ok(());
                }
                Step::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
                Step::Hit(None, then) => then,
                Step::Hit(Some(mut sending), then) => {
                    poll_fn(|cx| sending.poll(&mut self.wire, cx)).await?;
                    then
                }
                Step::Asked(asked) => Box::pin(self.answer(*asked)).await?,
                Step::Bad(why) => Box::pin(self.refuse(why)).await?,
            };
            poll_fn(|cx| self.wire.poll_flush(cx)).await?;
            if then == Then::Next && self.connection.closing.get().is_none() {
                if !self.input.is_empty() {
                    self.connection.begin(Doing::Head);
                }
                answered += 1;
                if answered.is_multiple_of(TURN_REQUESTS) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            poll_fn(|cx| self.wire.poll_finish(cx)).await?;
            if then == Then::Linger {
                self.linger().await;
            }
            return Ok(());
        }
    }

    /// Reads until a head is whole, and answers it if it can be answered at once.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let desk = Rc::clone(&self.desk);
        loop {
            if !self.input.is_empty() {
                // Sent ahead, or in pieces.
                let input = std::mem::take(&mut self.input);
                let step = self.step(&input, cx);
                let (used, step) = step.map_or((0, None), |(used, step)| (used, Some(step)));
                self.input = input;
                self.input.drain(..used);
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                if let Some(step) = step {
                    return Poll::Ready(Ok(step));
                }
            }
            let mut room = desk.input.borrow_mut();
            let count = ready!(self.wire.poll_recv(cx, &mut room))?;
            if count == 0 {
                return Poll::Ready(Ok(Step::Closed));
            }
            self.connection.received();
            let read = &room[..count];
            if !self.input.is_empty() {
                self.input.extend_from_slice(read);
                continue;
            }
            let step = self.step(read, cx);
            let used = step.as_ref().map_or(0, |(used, _)| *used);
            self.input.extend_from_slice(&read[used..]);
            if let Some((_, step)) = step {
                return Poll::Ready(Ok(step));
            }
        }
    }

    /// Takes the first head off `bytes`, if it is whole, and tells how long it was. What is wrong takes everything.
    fn step(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Option<(usize, Step)> {
        let config = Rc::clone(&self.handler);
        let config = &config.config;
        let size_max = usize::try_from(config.header_size_max.0).unwrap_or(usize::MAX);
        let found = self.scan.find_end(bytes);
        let end = match found {
            Ok(Some(end)) if end <= size_max => end,
            Ok(None) if bytes.len() <= size_max => return None,
            Ok(_) => return Some((bytes.len(), Step::Bad(self.scan.too_long()))),
            Err(why) => return Some((bytes.len(), Step::Bad(why))),
        };
        self.scan = Scan::default();
        let step = head::parse(&bytes[..end], config.header_count_max, |head, fields| {
            let rest = bytes.len() > end;
            self.answer_now(head, rest, cx).map_or_else(
                || {
                    let persists = head.persists();
                    head.to_request(fields).map(|request| Step::Asked(Box::new(Asked { request, persists })))
                },
                Ok,
            )
        });
        match step.flatten() {
            Ok(step) => Some((end, step)),
            Err(why) => Some((bytes.len(), Step::Bad(why))),
        }
    }

    /// Answers from memory, and sends as much of it as the socket takes. `ahead`: the client has sent more already.
    fn answer_now(&mut self, head: &Head<'_>, ahead: bool, cx: &mut Context<'_>) -> Option<Step> {
        let desk = Rc::clone(&self.desk);
        let mut out = desk.output.borrow_mut();
        out.clear();
        let (begun, now) = (Instant::now(), self.handler.clock.unix());
        let hit = self.handler.hit_now(head, &self.connection, now, &mut out)?;
        let persists = head.persists() && !desk.draining.get();
        let log = self.handler.logged(head.version, || words_of_head(head, self.handler.gate.is_some()));
        let exchange = Exchange::begin_at(begun, Rc::clone(&self.connection), log);
        self.connection.metrics.hit_at_once();
        self.end_head(&mut out, now, (head.version, persists, Framing::NoBody));
        let mut sending = Sending::new(Vec::new(), hit.chunk, Some(exchange));
        // From the desk while that goes well; what does not fit now is kept.
        let gone = sending.send_from_desk(&mut self.wire, &out, cx);
        if let Some(exchange) = &mut sending.exchange {
            exchange.head_sent(hit.status, CacheOutcome::Hit, gone);
        }
        let then = match (persists, ahead) {
            (true, _) => Then::Next,
            (false, false) => Then::End,
            (false, true) => Then::Linger,
        };
        Some(Step::Hit((!gone).then(|| Box::new(sending)), then))
    }

    fn end_head(&self, out: &mut Vec<u8>, now: UnixTime, (version, persists, framing): (Version, bool, Framing)) {
        let mut date = self.desk.date.borrow_mut();
        if date.0 != now {
            *date = (now, httpdate::fmt_http_date(now.into()));
        }
        write::ending(out, &Ending { date: &date.1, version, persists, framing });
    }

    /// Asks the handler, and sends what it says.
    async fn answer(&mut self, asked: Asked) -> io::Result<Then> {
        let Asked { request, persists } = asked;
        let (version, is_head) = (request.version(), request.method() == http::Method::HEAD);
        let wish = self.desk.draining.get();
        self.connection.begin(Doing::Responding);
        let handling = Rc::clone(&self.handler).handle(Rc::clone(&self.connection), request);
        let response = {
            let handling = pin!(handling);
            match select(handling, poll_fn(|cx| self.poll_gone(cx))).await {
                Either::Left((response, _)) => response,
                // Its exchange counts it as one that left.
                Either::Right(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        };
        self.respond(response, version, is_head, persists && !wish).await
    }

    async fn refuse(&mut self, why: BadHead) -> io::Result<Then> {
        self.connection.begin(Doing::Responding);
        tracing::debug!(client = %self.connection.peer, reason = ?why, "a head is refused");
        self.connection.metrics.connection_error();
        let log = self.handler.logged(Version::HTTP_11, || Words::new(("-", "-"), [None; 3]));
        let exchange = Exchange::begin(Rc::clone(&self.connection), log);
        let response = self.handler.refuse_head(why, exchange);
        self.respond(response, Version::HTTP_11, false, false).await?;
        Ok(Then::Linger)
    }

    async fn respond(
        &mut self,
        mut response: Response<Body>,
        version: Version,
        is_head: bool,
        persists: bool,
    ) -> io::Result<Then> {
        // The handler says "close" where the request cannot be trusted to end where it seems to.
        let mistrusted = response.headers_mut().remove(CONNECTION).is_some();
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        let framing = match (response.status().as_u16(), length) {
            (204 | 304, _) => Framing::NoBody,
            _ if is_head => Framing::NoBody,
            (_, Some(length)) => Framing::Length(length),
            (_, None) if version == Version::HTTP_10 => Framing::UntilClose,
            (_, None) => Framing::Chunked,
        };
        let persists = persists && !mistrusted && framing != Framing::UntilClose;
        let mut out = Vec::with_capacity(512);
        write::status_line(&mut out, response.status());
        write::fields(&mut out, response.headers());
        self.end_head(&mut out, self.handler.clock.unix(), (version, persists, framing));
        self.send_body(out, response.into_body(), framing).await?;
        Ok(match (persists, mistrusted || !self.input.is_empty()) {
            (true, _) => Then::Next,
            (false, false) => Then::End,
            (false, true) => Then::Linger,
        })
    }

    /// Sends a head and the body after it, chunk by chunk.
    async fn send_body(&mut self, mut head: Vec<u8>, mut body: Body, framing: Framing) -> io::Result<()> {
        let mut left = if let Framing::Length(length) = framing { length } else { u64::MAX };
        let mut turn = 0;
        loop {
            // The head goes first where the body has to be waited for.
            let next = match poll_fn(|cx| Poll::Ready(body.poll_chunk(cx))).await {
                _ if framing == Framing::NoBody => None,
                Poll::Ready(next) => next,
                Poll::Pending => {
                    let mut sending = Sending::new(std::mem::take(&mut head), None, None);
                    poll_fn(|cx| sending.poll(&mut self.wire, cx)).await?;
                    poll_fn(|cx| self.wire.poll_flush(cx)).await?;
                    poll_fn(|cx| body.poll_chunk(cx)).await
                }
            };
            let chunk = match next {
                Some(Ok(chunk)) if chunk.bytes.is_empty() => continue,
                Some(Ok(chunk)) => Some(chunk),
                None => None,
                Some(Err(_)) => {
                    if framing == Framing::UntilClose {
                        self.wire.break_off();
                    }
                    // Logged and counted by the exchange.
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            };
            let length = chunk.as_ref().map_or(0, |chunk| chunk.bytes.len() as u64);
            assert!(length <= left, "a body is longer than its head says");
            left -= length;
            let over = chunk.is_none();
            if framing == Framing::Chunked {
                let mark = match length {
                    0 => "0\r\n\r\n".to_owned(),
                    length => format!("{length:x}\r\n"),
                };
                head.extend_from_slice(mark.as_bytes());
            }
            let mut sending = Sending::new(std::mem::take(&mut head), chunk, None);
            sending.turn = turn;
            poll_fn(|cx| sending.poll(&mut self.wire, cx)).await?;
            turn = sending.turn;
            if framing == Framing::Chunked && !over {
                head.extend_from_slice(b"\r\n");
            }
            if over || left == 0 {
                break;
            }
        }
        // Fewer bytes than promised: only a cut connection says so.
        if matches!(framing, Framing::Length(_)) && left > 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Ready when the client goes away while a source is waited for. What it sends meanwhile is kept, up to what one head may be.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let desk = Rc::clone(&self.desk);
        let most = usize::try_from(self.handler.config.header_size_max.0).unwrap_or(usize::MAX);
        while self.connection.doing() == Doing::Waiting && self.input.len() < most {
            let mut room = desk.input.borrow_mut();
            match ready!(self.wire.poll_recv(cx, &mut room)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(count) => self.input.extend_from_slice(&room[..count]),
            }
        }
        Poll::Pending
    }

    /// Reads and drops what still comes, for no longer and no more than is allowed.
    async fn linger(&mut self) {
        let desk = Rc::clone(&self.desk);
        let config = Rc::clone(&self.handler);
        let mut left = config.config.linger_max.0;
        let emptied = poll_fn(|cx| {
            while left > 0 {
                let mut room = desk.input.borrow_mut();
                match ready!(self.wire.poll_recv(cx, &mut room)) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => left = left.saturating_sub(count as u64),
                }
            }
            Poll::Ready(())
        });
        if timeout(config.config.linger_timeout, emptied).await.is_err() {
            tracing::trace!(client = %self.connection.peer, "a client goes on sending after the last word");
        }
    }
}

impl Sending {
    fn new(head: Vec<u8>, chunk: Option<Chunk>, exchange: Option<Exchange>) -> Self {
        Self { head, head_sent: 0, chunk, chunk_sent: 0, exchange, turn: 0 }
    }

    /// Sends with `head` before the chunk, as far as that goes at once; keeps what is left of it, and tells whether all has gone. An
    /// error shows when the rest is sent.
    fn send_from_desk(&mut self, wire: &mut impl Wire, head: &[u8], cx: &mut Context<'_>) -> bool {
        let body = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk.bytes);
        let mapping = self.chunk.as_ref().and_then(|chunk| chunk.mapping.as_deref());
        let sent = match wire.poll_send(cx, &Outgoing { head, body, mapping }) {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        let of_head = sent.min(head.len());
        if of_head < head.len() {
            self.head = head[of_head..].to_vec();
        }
        self.took(sent - of_head);
        self.head.is_empty() && self.chunk.is_none()
    }

    /// `count` bytes of the chunk have gone.
    fn took(&mut self, count: usize) {
        self.chunk_sent += count;
        if let Some(exchange) = &mut self.exchange {
            exchange.sent(count as u64);
        }
        if self.chunk.as_ref().is_some_and(|chunk| chunk.bytes.len() == self.chunk_sent) {
            self.chunk = None;
        }
    }

    fn poll(&mut self, wire: &mut impl Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let head = &self.head[self.head_sent..];
            let body = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk.bytes[self.chunk_sent..]);
            if head.is_empty() && body.is_empty() {
                self.exchange = None;
                return Poll::Ready(Ok(()));
            }
            if self.turn >= TURN_BYTES {
                self.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mapping = self.chunk.as_ref().and_then(|chunk| chunk.mapping.as_deref());
            let sent = ready!(wire.poll_send(cx, &Outgoing { head, body, mapping }))?;
            let of_head = sent.min(head.len());
            self.head_sent += of_head;
            self.turn += sent as u64;
            self.took(sent - of_head);
        }
    }
}
