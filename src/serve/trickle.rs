//! Heads, and handshakes, that come a few bytes at a time: they are looked at once a second.
//!
//! Each packet would otherwise wake the worker and take a turn, some microseconds for a byte. While a head rests the kernel wakes nobody for less than
//! [`WAKE_BYTES`] of it (`SO_RCVLOWAT`, `socket(7)`), or when its client leaves.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use super::wire::Wire;

/// Reads of a head after which it may be called slow: people who type have had theirs, and packets of a large head come many at a time.
const READS: usize = 4;
/// Bytes of a head for each of them, below which it is: a twentieth of a packet.
const PIECE_MIN: usize = 64;
/// Age of its first bytes below which it is not, in milliseconds: some clients write line by line, all within one.
const AGE_MIN: u64 = 100;
/// Bytes for which it is looked at before its time.
const WAKE_BYTES: i32 = 1024;
/// Its time, in milliseconds, and what more some have so that not all have it at once.
const REST: u64 = 750;
const SPREAD: u16 = 512;

/// How the head comes that is on its way in, or the handshake.
#[derive(Debug, Default)]
pub(super) struct Trickle {
    reads: usize,
    /// When its first bytes were read, in milliseconds.
    begun: u64,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Trickle {
    /// Whether it rests is looked at; once that is over, whatever comes wakes the worker again. Before each read.
    pub(super) fn look<W: Wire>(&mut self, wire: &W, cx: &mut Context<'_>) {
        if let Some(rest) = &mut self.rest
            && let Poll::Ready(()) = rest.as_mut().poll(cx)
        {
            self.end(wire);
        }
    }

    /// There was a read, and of the head `have` bytes are there: it is not whole. `number`: any, by which heads differ.
    pub(super) fn read<W: Wire>(&mut self, have: usize, (now_millis, number): (u64, u16), wire: &W) {
        if self.reads == 0 {
            self.begun = now_millis;
        }
        self.reads += 1;
        if self.reads < READS || have >= self.reads * PIECE_MIN || now_millis.saturating_sub(self.begun) < AGE_MIN {
            self.end(wire);
            return;
        }
        // Again and again: one that has waited for its turn wakes by each byte since.
        wire.wake_at(WAKE_BYTES);
        self.rest = Some(Box::pin(sleep(Duration::from_millis(REST + u64::from(number % SPREAD)))));
    }

    /// The head is whole.
    pub(super) fn whole<W: Wire>(&mut self, wire: &W) {
        self.reads = 0;
        self.end(wire);
    }

    fn end<W: Wire>(&mut self, wire: &W) {
        if self.rest.take().is_some() {
            wire.wake_at(1);
        }
    }
}
