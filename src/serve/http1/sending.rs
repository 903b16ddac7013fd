//! Bytes on their way out, turn by turn.

use std::{
    io,
    pin::pin,
    task::{Context, Poll},
};

use super::super::{
    body::Chunk,
    connection::Connection,
    exchange::Exchange,
    wire::{Outgoing, Wire},
};

/// Bytes sent to one client before the worker looks after the others.
pub(super) const TURN_BYTES: u64 = 256 << 10;
/// The same to one beside whom nobody wanted anything of late: each turn costs a call, and the kernel's work that runs beside it. Whoever comes meanwhile waits
/// for some 0.15 ms, once.
const TURN_BYTES_ALONE: u64 = 1 << 20;
/// The same to one that does not go first, or where the worker has time to spare for more calls: about what it costs to answer a viewer, who may come meanwhile.
const TURN_BYTES_SHORT: u64 = 64 << 10;
/// What is left of a turn that is not worth a call.
const TURN_REST: usize = 16 << 10;

/// Bytes on their way out, and what they end when they have gone.
pub(super) struct Sending {
    head: Vec<u8>,
    head_sent: usize,
    chunk: Option<Chunk>,
    chunk_sent: usize,
    pub(super) exchange: Option<Exchange>,
    /// Bytes sent since others had their turn.
    pub(super) turn: u64,
}

/// Gives others their turn: wakes the task once they, and those of whom the kernel has news, have had theirs.
pub(in crate::serve) fn give_way(cx: &mut Context<'_>) {
    // Ready at once only outside of a runtime, where there are no others.
    if pin!(tokio::task::yield_now()).poll(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
}

/// Bytes that may go to a client before the worker looks after the others.
pub(in crate::serve) fn turn_bytes(connection: &Connection) -> u64 {
    match (connection.waited.get().is_zero(), connection.is_alone()) {
        (false, _) => TURN_BYTES_SHORT,
        // Encrypting takes three times as long.
        (true, true) if !connection.secure.get() => TURN_BYTES_ALONE,
        (true, false) if connection.has_short_turn() => TURN_BYTES_SHORT,
        (true, _) => TURN_BYTES,
    }
}

/// What of `body` goes in a turn that has `room` for so many bytes: no small rest is left for a call of its own.
fn of_turn(body: &[u8], room: u64) -> &[u8] {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if body.len() > room.saturating_add(TURN_REST) { &body[..room] } else { body }
}

impl Sending {
    pub(super) fn new(head: Vec<u8>, chunk: Option<Chunk>, exchange: Option<Exchange>) -> Self {
        Self { head, head_sent: 0, chunk, chunk_sent: 0, exchange, turn: 0 }
    }

    /// Sends with `head` before the chunk, as far as that goes at once; keeps what is left of it, and tells whether all has gone. An
    /// error shows when the rest is sent.
    pub(super) fn send_from_desk(
        &mut self,
        wire: &mut impl Wire,
        connection: &Connection,
        head: &[u8],
        cx: &mut Context<'_>,
    ) -> bool {
        let all = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk.bytes);
        let body = of_turn(all, turn_bytes(connection));
        let more = body.len() < all.len();
        let mapping = self.chunk.as_ref().and_then(|chunk| chunk.mapping.as_deref());
        let sent = match wire.poll_send(cx, &Outgoing { head, body, mapping, more }) {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        let of_head = sent.min(head.len());
        if of_head < head.len() {
            self.head = head[of_head..].to_vec();
        }
        self.turn = sent as u64;
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

    pub(super) fn poll(
        &mut self,
        wire: &mut impl Wire,
        connection: &Connection,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let most = turn_bytes(connection);
        loop {
            let head = &self.head[self.head_sent..];
            let all = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk.bytes[self.chunk_sent..]);
            if head.is_empty() && all.is_empty() {
                self.exchange = None;
                return Poll::Ready(Ok(()));
            }
            if self.turn + TURN_REST as u64 > most {
                self.turn = 0;
                give_way(cx);
                return Poll::Pending;
            }
            let body = of_turn(all, most - self.turn);
            let more = body.len() < all.len();
            let mapping = self.chunk.as_ref().and_then(|chunk| chunk.mapping.as_deref());
            let Poll::Ready(sent) = wire.poll_send(cx, &Outgoing { head, body, mapping, more }) else {
                // The next is another turn.
                self.turn = 0;
                return Poll::Pending;
            };
            let sent = sent?;
            let of_head = sent.min(head.len());
            self.head_sent += of_head;
            self.turn += sent as u64;
            self.took(sent - of_head);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        net::{Ipv4Addr, SocketAddr},
        rc::Rc,
        time::Duration,
    };

    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn turns_are_short_where_there_is_time_for_more_of_them_and_long_where_nobody_else_wants_any() {
        let whose = (SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), 0, None);
        let connection = Connection::new(whose, None, Metrics::new(1).worker(0), Rc::new(Cell::new(1)));
        let of = |number: u64, short: bool| {
            connection.begin_turn(number, short);
            turn_bytes(&connection)
        };
        assert_eq!([of(1, false), of(10, true), of(20, false)], [TURN_BYTES, TURN_BYTES_SHORT, TURN_BYTES]);
        assert_eq!([of(21, false), of(22, false)], [TURN_BYTES, TURN_BYTES_ALONE], "three in a row");
        assert!((23..120).all(|number| of(number, true) == TURN_BYTES_SHORT), "a moment without others");
        assert_eq!(of(120, true), TURN_BYTES_ALONE);
        connection.secure.set(true);
        assert_eq!([of(121, true), of(130, true)], [TURN_BYTES, TURN_BYTES_SHORT]);
        connection.has_waited((Duration::from_micros(1), false));
        assert_eq!([of(131, false), of(132, false), of(133, false)], [TURN_BYTES_SHORT; 3], "it does not go first");
    }
}
