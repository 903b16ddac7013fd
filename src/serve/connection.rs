//! What a worker knows of one connection: what it is doing, how the client takes what it is sent, and which parts of mapped
//! files are on their way out.
//!
//! Shared by the connection's transport, its handler and the sweeper, all on one thread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Waker,
};

use crate::{
    storage::Mapping,
    telemetry::metrics::{CloseReason, WorkerMetrics},
};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// A request's head is on its way in.
    Head,
    /// Between two requests.
    Idle,
    /// A source is waited for.
    Waiting,
    /// A response is made or sent.
    Responding,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) metrics: Arc<WorkerMetrics>,
    now_millis: Rc<Cell<u64>>,
    doing: Cell<Doing>,
    since_millis: Cell<u64>,
    /// Whether the last write found the socket's buffer full.
    blocked: Cell<bool>,
    /// Bytes handed to the kernel in all.
    sent: Cell<u64>,
    outgoing: RefCell<VecDeque<Outgoing>>,
    pub(super) closing: Cell<Option<CloseReason>>,
    pub(super) pace: Cell<Pace>,
    /// Whom to tell that a response has gone, where the client has sent its last word before that.
    last_word: RefCell<Option<Waker>>,
}

/// How the client has been taking what it is sent, as the sweeper saw it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Bytes the client had acknowledged when the count below began.
    pub(super) acked: u64,
    /// When the client last acknowledged something.
    pub(super) progress_millis: u64,
    /// Begin of the present rate window, and what was acknowledged then; zero: none.
    pub(super) window_millis: u64,
    pub(super) window_acked: u64,
}

/// A piece of a mapped file that the body has handed out and the transport has not sent yet.
#[derive(Debug)]
struct Outgoing {
    start: usize,
    end: usize,
    mapping: Arc<Mapping>,
}

/// Most pieces remembered; hyper queues no more than a few. A piece that is forgotten is sent by copying.
const OUTGOING_MAX: usize = 64;

impl Connection {
    pub(super) fn new(peer: SocketAddr, metrics: Arc<WorkerMetrics>, now_millis: Rc<Cell<u64>>) -> Rc<Self> {
        Rc::new(Self {
            peer,
            metrics,
            since_millis: Cell::new(now_millis.get()),
            now_millis,
            doing: Cell::new(Doing::Head),
            blocked: Cell::new(false),
            sent: Cell::new(0),
            outgoing: RefCell::default(),
            closing: Cell::new(None),
            pace: Cell::default(),
            last_word: RefCell::default(),
        })
    }

    pub(super) fn doing(&self) -> Doing {
        self.doing.get()
    }

    pub(super) fn now(&self) -> u64 {
        self.now_millis.get()
    }

    /// Milliseconds since it began to do what it does.
    pub(super) fn doing_for(&self) -> u64 {
        self.now().saturating_sub(self.since_millis.get())
    }

    pub(super) fn begin(&self, doing: Doing) {
        self.doing.set(doing);
        self.since_millis.set(self.now());
        self.tell_last_word();
    }

    /// Whether a response, or the rest of one, is about to go out.
    pub(super) fn is_responding(&self) -> bool {
        self.doing.get() == Doing::Responding || self.blocked.get()
    }

    /// Whether nothing is under way: no request has begun, and the kernel has every byte of the last response.
    pub(super) fn is_idle(&self) -> bool {
        self.doing.get() == Doing::Idle && !self.blocked.get()
    }

    /// The client sends nothing more, and may still be listening: `waker` hears when the response has gone.
    pub(super) fn hold_last_word(&self, waker: &Waker) {
        *self.last_word.borrow_mut() = Some(waker.clone());
    }

    fn tell_last_word(&self) {
        if !self.is_responding()
            && let Some(waker) = self.last_word.take()
        {
            waker.wake();
        }
    }

    /// Bytes came in: between requests, they are the first of a head. Later ones do not refresh its deadline.
    pub(super) fn received(&self) {
        if self.doing.get() == Doing::Idle {
            self.begin(Doing::Head);
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }

    pub(super) fn set_blocked(&self) {
        self.blocked.set(true);
    }

    /// A piece of a mapped file goes out next, after those before it.
    pub(super) fn expect(&self, bytes: &[u8], mapping: &Arc<Mapping>) {
        let mut outgoing = self.outgoing.borrow_mut();
        if outgoing.len() == OUTGOING_MAX {
            outgoing.pop_front();
        }
        let start = bytes.as_ptr().addr();
        outgoing.push_back(Outgoing { start, end: start + bytes.len(), mapping: Arc::clone(mapping) });
    }

    /// The mapping that `bytes` are a part of, and their offset in its file.
    pub(super) fn locate(&self, bytes: &[u8]) -> Option<(Arc<Mapping>, u64)> {
        let start = bytes.as_ptr().addr();
        let outgoing = self.outgoing.borrow();
        // Nearly always the first; after a piece that was never sent, a later one.
        let piece = outgoing.iter().find(|piece| piece.start <= start && start + bytes.len() <= piece.end)?;
        let offset = piece.mapping.locate(bytes)?;
        Some((Arc::clone(&piece.mapping), offset))
    }

    /// The kernel took `count` bytes of `buffers`: pieces that have gone out whole are forgotten, and with them their mapping.
    pub(super) fn advanced<'b>(&self, count: usize, buffers: impl Iterator<Item = &'b [u8]>) {
        self.blocked.set(false);
        self.sent.set(self.sent.get() + count as u64);
        self.tell_last_word();
        let mut outgoing = self.outgoing.borrow_mut();
        if outgoing.is_empty() {
            return;
        }
        let mut left = count;
        for buffer in buffers {
            let gone = left.min(buffer.len());
            left -= gone;
            if gone < buffer.len() || outgoing.is_empty() {
                break;
            }
            let end = buffer.as_ptr().addr() + buffer.len();
            if let Some(at) = outgoing.iter().position(|piece| piece.end == end) {
                outgoing.drain(..=at);
            }
        }
    }
}
