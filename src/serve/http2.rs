//! HTTP/2 on one connection: hyper speaks it, the handler answers.
//!
//! hyper (frames, HPACK, flow control) -> handler, a task for each stream -> body -> hyper -> [`Multiplexed`] -> secure
//!
//! h2 flushes after each frame of 16 KiB. Here that only encrypts; what has gathered is handed to the kernel in one go when the
//! connection's turn is over, or when it is as much as may be encrypted ahead.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    io::{self, IoSlice},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    rt::{Executor, Read, ReadBufCursor, Write},
    server::conn::http2::Builder,
    service::service_fn,
};
use tokio::{sync::watch, time::timeout};

use super::{
    Config,
    body::Body,
    connection::Connection,
    exchange::{Exchange, words_of},
    frames::Frames,
    handler::Handler,
    http1::{Desk, give_way, head::BadHead, turn_bytes},
    secure::Secure,
    turns::{Turns, in_turn},
    wire::Wire,
};
use crate::sys::{Phase, phase::stopping};

/// Bytes read from one client before it does so too: room for a hundred requests, or for some hundred frames that ask for nothing. Of one that was not served yet, or
/// costs more than it gets, enough for what a client begins with in two turns: each request that is reset at once takes some microseconds.
const TURN_READ: usize = 8 << 10;
const TURN_READ_FIRST: usize = 256;
/// Bytes read from a client at once; requests are smaller.
const READ_BYTES: usize = 4 << 10;
/// Bytes of bodies that a client may send ahead: nobody reads them, since requests here have none.
const WINDOW: u32 = 65_535;

/// Serves requests until the connection ends.
///
/// # Errors
/// The connection broke, or the client broke the protocol.
pub(super) async fn serve(
    wire: Secure,
    connection: Rc<Connection>,
    (desk, turns): (Rc<Desk>, Rc<Turns>),
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    connection.set_multiplexed();
    let handler = desk.handler();
    let wire = Rc::new(RefCell::new(Turn {
        wire,
        left: 0,
        unread: TURN_READ,
        frames: Frames::new(&handler.config.http2),
        flooded: false,
    }));
    let builder = builder(&handler, &connection, Rc::clone(&turns));
    // Boxed: what it takes to find an answer is given back once there is one, however long that then waits to be allowed out.
    let service = service_fn(|request| Box::pin(answer(desk.handler(), Rc::clone(&connection), request)));
    let multiplexed = Multiplexed { turn: Rc::clone(&wire), connection: Rc::clone(&connection) };
    let mut serving = pin!(builder.serve_connection(multiplexed, service));
    let mut drained = pin!(stopping(&mut phase).fuse());
    let (mut is_draining, mut begins) = (false, true);
    let served = poll_fn(|cx| {
        if !is_draining && drained.as_mut().poll(cx).is_ready() {
            is_draining = true;
            serving.as_mut().graceful_shutdown();
        }
        {
            let mut turn = wire.borrow_mut();
            turn.left = usize::try_from(turn_bytes(&connection)).unwrap_or(usize::MAX);
            turn.unread = turn_read(&connection, begins);
            begins = false;
        }
        let ended = serving.as_mut().poll(cx);
        // What this turn has encrypted leaves with it.
        if let Poll::Ready(Err(err)) = wire.borrow_mut().wire.poll_flush(cx)
            && ended.is_pending()
        {
            return Poll::Ready(Err(err));
        }
        ended.map_err(io::Error::other)
    })
    .await;
    if wire.borrow().flooded && connection.comes_last() {
        turns.flooded(&connection);
        // A last word, and the wait for what still comes, would be for nobody who listens.
        wire.borrow_mut().wire.break_off();
        return served;
    }
    if wire.borrow().flooded {
        turns.flooded(&connection);
        let finished = poll_fn(|cx| wire.borrow_mut().wire.poll_finish(cx));
        if let Ok(Ok(())) = timeout(handler.config.linger_timeout, finished).await {
            linger(&wire, &handler.config).await;
        }
    }
    if served.as_ref().is_err_and(is_breach) {
        connection.has_broken_protocol();
    }
    served?;
    linger(&wire, &handler.config).await;
    Ok(())
}

/// Whether a connection has ended since its client has broken the protocol, and not since it was gone.
fn is_breach(err: &io::Error) -> bool {
    let spoken = err.get_ref().and_then(|err| err.downcast_ref::<hyper::Error>());
    spoken.and_then(std::error::Error::source).is_some_and(|err| !err.is::<io::Error>())
}

fn turn_read(connection: &Connection, begins: bool) -> usize {
    match connection.comes_last() {
        // What the server says first is a turn of its own.
        true if begins => 0,
        false if connection.account.is_served() => TURN_READ,
        _ => TURN_READ_FIRST,
    }
}

/// Reads and drops what still comes, for no longer and no more than is allowed: a client goes on telling what it may be sent, and
/// closing a socket with unread bytes resets it, and with it the end of the last response.
async fn linger(wire: &RefCell<Turn>, config: &Config) {
    let mut left = config.linger_max.0;
    let emptied = poll_fn(|cx| {
        let (mut bytes, mut read) = ([0_u8; READ_BYTES], 0);
        while left > 0 {
            // What a client that floods has under way is no reason for others to wait.
            if read >= TURN_READ {
                give_way(cx);
                return Poll::Pending;
            }
            match ready!(wire.borrow_mut().wire.poll_recv(cx, &mut bytes)) {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    left = left.saturating_sub(count as u64);
                    read += count;
                }
            }
        }
        Poll::Ready(())
    });
    if timeout(config.linger_timeout, emptied).await.is_err() {
        tracing::trace!("a client goes on sending after the last word");
    }
}

fn builder(handler: &Handler, connection: &Rc<Connection>, turns: Rc<Turns>) -> Builder<Tasks> {
    let config = &handler.config;
    let limits = &config.http2;
    let mut builder = Builder::new(Tasks { connection: Rc::clone(connection), turns });
    builder
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(config.header_size_max.0).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.pending_resets_max)
        .max_local_error_reset_streams(limits.local_resets_max)
        .max_send_buf_size(usize::try_from(limits.send_buffer.0).unwrap_or(usize::MAX))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .adaptive_window(false)
        // The sweeper and the kernel find out who has gone: a PING would only tell that the client's library is there.
        .keep_alive_interval(None);
    builder
}

async fn answer(
    handler: Rc<Handler>,
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if request.headers().len() > handler.config.header_count_max {
        let log = handler.logged(request.version(), || words_of(&request, handler.gate.is_some()));
        let exchange = Exchange::begin(Rc::clone(&connection), log);
        return Ok(handler.refuse_head(BadHead::TooManyFields, exchange));
    }
    let permit = handler.permit(&connection);
    Ok(handler.handle(connection, request, permit).await)
}

/// A task of the worker for each stream.
#[derive(Clone)]
struct Tasks {
    connection: Rc<Connection>,
    turns: Rc<Turns>,
}

impl<F: Future + 'static> Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        let connection = Rc::clone(&self.connection);
        let stream = in_turn(Rc::clone(&self.turns), Rc::clone(&connection), stream);
        tokio::task::spawn_local(async move {
            if AssertUnwindSafe(stream).catch_unwind().await.is_err() {
                connection.metrics.panicked();
                tracing::error!("a request panicked; its stream is reset");
            }
        });
    }
}

/// The wire, how much may still go out in this turn, and what has passed.
struct Turn {
    wire: Secure,
    left: usize,
    /// How much may still come in.
    unread: usize,
    frames: Frames,
    /// Whether the client has sent more than its bounds allow.
    flooded: bool,
}

/// The wire as hyper sees it.
struct Multiplexed {
    turn: Rc<RefCell<Turn>>,
    connection: Rc<Connection>,
}

impl Read for Multiplexed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0_u8; READ_BYTES];
        let mut turn = self.turn.borrow_mut();
        let room = into.remaining().min(READ_BYTES).min(turn.unread);
        if room == 0 && into.remaining() > 0 {
            give_way(cx);
            return Poll::Pending;
        }
        let count = ready!(turn.wire.poll_recv(cx, &mut bytes[..room]))?;
        turn.unread -= count;
        if let Err(flood) = turn.frames.came(&bytes[..count]) {
            turn.flooded = true;
            // Now, since hyper says no more once reading has failed; a client that takes nothing need not be told.
            if !self.connection.comes_last()
                && let Some(farewell) = turn.frames.farewell()
            {
                let told = turn.wire.poll_gather(cx, &[IoSlice::new(&farewell)]);
                tracing::trace!(?told, "a client is sent away");
            }
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        into.put_slice(&bytes[..count]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Multiplexed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Otherwise every byte of a body would be copied.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut turn = self.turn.borrow_mut();
        if turn.left == 0 {
            give_way(cx);
            return Poll::Pending;
        }
        let taken = ready!(turn.wire.poll_gather(cx, parts))?;
        turn.left = turn.left.saturating_sub(taken);
        let mut passed = taken;
        for part in parts {
            let count = passed.min(part.len());
            let ended = turn.frames.went(&part[..count]);
            if ended > 0 {
                self.connection.pay_hits(ended);
            }
            passed -= count;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // At the end of the turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.turn.borrow_mut().wire.poll_finish(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::SocketAddr};

    use super::*;
    use crate::{serve::account::Together, telemetry::metrics::Metrics};

    #[test]
    fn of_who_costs_much_nothing_is_read_before_it_has_had_a_turn() {
        let (peer, now) = (SocketAddr::from(([127, 0, 0, 1], 1)), Rc::new(Cell::new(1000)));
        let together = Rc::new(Together::default());
        let whose = (peer, 1, Some(Rc::clone(&together)));
        let connection = Connection::new(whose, None, Metrics::new(1).worker(0), Rc::clone(&now));
        let reads = || (turn_read(&connection, true), turn_read(&connection, false));
        assert_eq!(reads(), (TURN_READ_FIRST, TURN_READ_FIRST), "nothing is known of it");
        together.flooded(now.get());
        assert_eq!(reads(), (0, TURN_READ_FIRST));
        connection.add_sent(1 << 20);
        assert_eq!(reads(), (TURN_READ, TURN_READ), "whoever else floods behind its address, this is a viewer");
    }
}
