//! HTTP/1.1 on one connection: reads heads, answers them in order, one after the other.
//!
//! read -> scan for the head's end -> parse -> hit (at once)      -> send
//!                                         -> handler (may wait) -> head, body -> send
//!
//! Requests have no bodies here: what announces one is refused, and the connection ends. Between two requests a connection owns no
//! buffer: heads are read into, and written from, the worker's own desk, and only what is cut off is kept.

pub(super) mod head;
mod sending;
pub(super) mod write;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use futures_util::future::{Either, select};
use http::{
    Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH},
};
use tokio::time::{sleep, timeout};

pub(in crate::serve) use self::sending::{give_way, turn_bytes};
use self::{
    head::{BadHead, Head, Scan},
    sending::{Sending, TURN_BYTES},
    write::{Ending, Framing},
};
use super::{
    body::Body,
    connection::{Connection, Doing, Permit},
    exchange::{Exchange, words_of_head},
    handler::Handler,
    overload::Refused,
    trickle::Trickle,
    wire::Wire,
};
use crate::{
    asset::UnixTime,
    storage::lost_pages,
    telemetry::{access_log::Words, metrics::CacheOutcome},
};

/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// Reads of what is dropped before the worker looks after the others.
const TURN_READS: u32 = 2;
/// Requests answered to one client from memory before the worker looks after the others: who sends many ahead does not keep it.
const TURN_HITS: u64 = 16;
/// Parts of a response that does not go at once, after which it does so too.
const TURN_PARTS: u64 = 4;
/// Bytes of small pieces of a body that are gathered to leave together, and the largest such piece.
const GATHERED_MAX: usize = 16 << 10;
const PIECE_MAX: usize = 2 << 10;

/// What the connections of a worker write on in turn.
#[derive(Debug)]
pub(super) struct Desk {
    input: RefCell<Box<[u8]>>,
    output: RefCell<Vec<u8>>,
    /// `Date`, and the second it is of.
    date: RefCell<(UnixTime, String)>,
    /// Whether the worker is draining: responses say that they are the last.
    pub(super) draining: Cell<bool>,
    /// What answers requests from now on, and its number.
    handler: RefCell<Rc<Handler>>,
    number: Cell<u64>,
}

impl Desk {
    pub(super) fn new(handler: Rc<Handler>) -> Self {
        Self {
            number: Cell::new(handler.number),
            handler: RefCell::new(handler),
            input: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            output: RefCell::new(Vec::with_capacity(1024)),
            date: RefCell::new((UnixTime(u64::MAX), String::new())),
            draining: Cell::new(false),
        }
    }

    /// What answers requests.
    pub(super) fn handler(&self) -> Rc<Handler> {
        Rc::clone(&self.handler.borrow())
    }

    /// Connections take it up with their next request.
    pub(super) fn set_handler(&self, handler: Rc<Handler>) {
        self.number.set(handler.number);
        *self.handler.borrow_mut() = handler;
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
    trickle: Trickle,
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

impl Then {
    /// `ahead`: the client may have sent more already.
    fn after(persists: bool, ahead: bool) -> Self {
        match (persists, ahead) {
            (true, _) => Self::Next,
            (false, false) => Self::End,
            (false, true) => Self::Linger,
        }
    }
}

/// What has been read.
enum Step {
    /// The client sends nothing more.
    Closed,
    /// A request was answered from memory; what did not go out at once is still to be sent.
    Hit(Option<Box<Sending>>, Then),
    /// A request was refused for overload; what did not go out at once is still to be sent.
    Refused(Option<Box<Sending>>, Then),
    /// A request for the handler.
    Asked(Box<Asked>),
    /// No request.
    Bad(BadHead),
}

struct Asked {
    request: Request<()>,
    permit: Permit,
    persists: bool,
}

impl<W: Wire> Http1<W> {
    pub(super) fn new(wire: W, connection: Rc<Connection>, desk: Rc<Desk>) -> Self {
        let handler = desk.handler();
        Self { wire, connection, handler, desk, input: Vec::new(), scan: Scan::default(), trickle: Trickle::default() }
    }

    /// Serves requests until the connection ends.
    ///
    /// # Errors
    /// The connection broke, or a response had to be cut.
    pub(super) async fn serve(mut self) -> io::Result<()> {
        let (mut turn, mut sent) = (0_u64, 0);
        loop {
            let step = poll_fn(|cx| self.poll_request(cx)).await?;
            // What the handler has to look at, with many parts perhaps, is a turn of its own.
            turn += if matches!(step, Step::Hit(..)) { 1 } else { TURN_HITS };
            let then = match step {
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
                    poll_fn(|cx| sending.poll(&mut self.wire, &self.connection, cx)).await?;
                    then
                }
                Step::Refused(sending, then) => Box::pin(self.pause(sending, then)).await?,
                Step::Asked(asked) => Box::pin(self.answer(*asked)).await?,
                Step::Bad(why) => Box::pin(self.refuse(why)).await?,
            };
            poll_fn(|cx| self.wire.poll_flush(cx)).await?;
            if then == Then::Next && self.connection.closing.get().is_none() {
                if self.input.is_empty() {
                    (turn, sent) = (0, self.connection.sent());
                } else {
                    self.connection.begin(Doing::Head);
                    if turn >= TURN_HITS
                        || self.connection.sent() - sent >= turn_bytes(&self.connection).min(TURN_BYTES)
                    {
                        (turn, sent) = (0, self.connection.sent());
                        tokio::task::yield_now().await;
                    }
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
        let mut read_on = false;
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
                    self.trickle.whole(&self.wire);
                    return Poll::Ready(Ok(step));
                }
                if read_on {
                    let connection = &self.connection;
                    self.trickle.read(self.input.len(), (connection.now(), connection.peer.port()), &self.wire);
                }
            }
            self.trickle.look(&self.wire, cx);
            let mut room = desk.input.borrow_mut();
            let count = ready!(self.wire.poll_recv(cx, &mut room))?;
            if count == 0 {
                return Poll::Ready(Ok(Step::Closed));
            }
            self.connection.received();
            read_on = true;
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
        if self.handler.number != self.desk.number.get() {
            self.handler = self.desk.handler();
        }
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
            let permit = self.handler.permit(&self.connection);
            let now = match permit {
                Permit::Granted => self.answer_now(head, rest, cx),
                Permit::Refused(refused) => self.refuse_now(head, rest, refused, cx),
                Permit::Later(_) => None,
            };
            now.map_or_else(
                || {
                    let persists = head.persists();
                    head.to_request(fields).map(|request| Step::Asked(Box::new(Asked { request, permit, persists })))
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
        // Of the turn, or of the end of the response before.
        let (begun, now) = (self.connection.looked(), self.handler.clock.unix());
        let hit = self.handler.hit_now(head, &self.connection, now, &mut out)?;
        let persists = head.persists() && !desk.draining.get();
        let log = self.handler.logged(head.version, || words_of_head(head, self.handler.gate.is_some()));
        let exchange = Exchange::begin_at(begun, Rc::clone(&self.connection), log);
        self.connection.metrics.hit_at_once();
        self.end_head(&mut out, now, (head.version, persists, Framing::NoBody));
        let mut sending = Sending::new(Vec::new(), hit.chunk, Some(exchange));
        // From the desk while that goes well; what does not fit now is kept.
        let gone = sending.send_from_desk(&mut self.wire, &self.connection, &out, cx);
        if let Some(exchange) = &mut sending.exchange {
            exchange.head_sent(hit.status, CacheOutcome::Hit, gone);
        }
        Some(Step::Hit((!gone).then(|| Box::new(sending)), Then::after(persists, ahead)))
    }

    /// Refuses for overload, at as little cost as can be, where a request is as most are.
    #[cold]
    fn refuse_now(&mut self, head: &Head<'_>, ahead: bool, refused: Refused, cx: &mut Context<'_>) -> Option<Step> {
        let desk = Rc::clone(&self.desk);
        let mut out = desk.output.borrow_mut();
        out.clear();
        if !self.handler.refuse_now(head, refused, &mut out) {
            return None;
        }
        let (begun, now) = (self.connection.looked(), self.handler.clock.unix());
        let persists = head.persists() && !desk.draining.get();
        let log = self.handler.logged(head.version, || words_of_head(head, self.handler.gate.is_some()));
        let mut exchange = Exchange::begin_at(begun, Rc::clone(&self.connection), log);
        exchange.shed(refused.why);
        self.end_head(&mut out, now, (head.version, persists, Framing::NoBody));
        exchange.sent(self.handler.templates.write_overloaded_body(&mut out));
        exchange.head(StatusCode::SERVICE_UNAVAILABLE, CacheOutcome::None);
        let mut sending = Sending::new(Vec::new(), None, Some(exchange));
        let gone = sending.send_from_desk(&mut self.wire, &self.connection, &out, cx);
        Some(Step::Refused((!gone).then(|| Box::new(sending)), Then::after(persists, ahead)))
    }

    /// Ends a refusal for overload: its client is not listened to for a moment.
    async fn pause(&mut self, sending: Option<Box<Sending>>, then: Then) -> io::Result<Then> {
        if let Some(mut sending) = sending {
            poll_fn(|cx| sending.poll(&mut self.wire, &self.connection, cx)).await?;
        }
        poll_fn(|cx| self.wire.poll_flush(cx)).await?;
        if then == Then::Next {
            sleep(self.handler.shedding.pause()).await;
        }
        Ok(then)
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
        let Asked { request, permit, persists } = asked;
        let (version, is_head) = (request.version(), request.method() == http::Method::HEAD);
        let wish = self.desk.draining.get();
        self.connection.begin(Doing::Responding);
        let handling = Rc::clone(&self.handler).handle(Rc::clone(&self.connection), request, permit);
        let response = {
            let handling = pin!(handling);
            match select(handling, poll_fn(|cx| self.poll_gone(cx))).await {
                Either::Left((response, _)) => response,
                // Its exchange counts it as one that left.
                Either::Right(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        };
        let then = self.respond(response, version, is_head, persists && !wish).await?;
        if matches!(permit, Permit::Refused(_)) { self.pause(None, then).await } else { Ok(then) }
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
        Ok(Then::after(persists, mistrusted || !self.input.is_empty()))
    }

    /// Sends a head and the body after it, chunk by chunk.
    async fn send_body(&mut self, mut head: Vec<u8>, mut body: Body, framing: Framing) -> io::Result<()> {
        let mut left = if let Framing::Length(length) = framing { length } else { u64::MAX };
        let (mut turn, mut parts) = (0, 0_u64);
        loop {
            parts += 1;
            if parts.is_multiple_of(TURN_PARTS) {
                tokio::task::yield_now().await;
            }
            // The head goes first where the body has to be waited for.
            let next = match poll_fn(|cx| Poll::Ready(body.poll_chunk(cx))).await {
                _ if framing == Framing::NoBody => None,
                Poll::Ready(next) => next,
                Poll::Pending => {
                    let mut sending = Sending::new(std::mem::take(&mut head), None, None);
                    poll_fn(|cx| sending.poll(&mut self.wire, &self.connection, cx)).await?;
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
            if let Some(chunk) = chunk.as_ref().filter(|_| left > 0 && matches!(framing, Framing::Length(_)))
                && chunk.bytes.len() <= PIECE_MAX
                && head.len() + chunk.bytes.len() <= GATHERED_MAX
            {
                // A call for each of many parts would cost more than all of them together.
                head.extend_from_slice(&chunk.bytes);
                if lost_pages::hold(&chunk.bytes) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                continue;
            }
            if framing == Framing::Chunked {
                let mark = match length {
                    0 => "0\r\n\r\n".to_owned(),
                    length => format!("{length:x}\r\n"),
                };
                head.extend_from_slice(mark.as_bytes());
            }
            let mut sending = Sending::new(std::mem::take(&mut head), chunk, None);
            sending.turn = turn;
            poll_fn(|cx| sending.poll(&mut self.wire, &self.connection, cx)).await?;
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
            let mut reads = 0;
            while left > 0 {
                if reads == TURN_READS {
                    give_way(cx);
                    return Poll::Pending;
                }
                reads += 1;
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
