//! What a worker knows of one connection: what it is doing, and how the client takes what it is sent.
//!
//! Shared by the connection's wire, its handler and the sweeper, all on one thread.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

use super::{
    account::{Account, BROKEN, Together, Trust},
    clients::Client,
    overload::Refused,
    waiters::Waiters,
    wire::wake_at,
};
use crate::telemetry::metrics::{CloseReason, WorkerMetrics};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// A session of TLS is agreed on.
    Handshake,
    /// Nothing has come on it yet.
    Fresh,
    /// A request's head is on its way in.
    Head,
    /// Between two requests.
    Idle,
    /// A source is waited for.
    Waiting,
    /// A response is made or sent.
    Responding,
}

/// Whether a request may go on, by who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Granted,
    /// Its client has asked for too much; it may ask again in so many seconds.
    Later(u64),
    /// The worker has more to do than it can.
    Refused(Refused),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// Who counts what it takes.
    client: Option<Arc<Client>>,
    /// What tells its client from others.
    pub(super) prefix: u128,
    /// What all connections of its client have taken of this worker; none: its client may take as much as it likes.
    pub(super) together: Option<Rc<Together>>,
    /// What it has cost, and what it has got.
    pub(super) account: Account,
    /// When the clock was last looked at in its present turn, and whether nothing was done since that costs anything.
    looked: Cell<Instant>,
    is_done: Cell<bool>,
    /// How long it has waited for this turn until it was called; zero where it goes first.
    pub(super) waited: Cell<Duration>,
    /// Number of the turn after its last one, of all that its worker has given, and how many before that were its own, too.
    row: Cell<(u64, u8)>,
    /// Whether its present turn had better be short, since the worker has time to spare for more of them.
    short: Cell<bool>,
    /// What it has on trust.
    trust: Trust,
    /// How much of what it has waited says something of the worker: not where its client costs much.
    late: Cell<Duration>,
    /// Those of its tasks that wait for their turns.
    pub(super) waiters: Waiters,
    /// Its socket as long as the kernel may be told to wake nobody for what comes on it, and whether it was.
    socket: RefCell<Weak<TcpStream>>,
    held: Cell<bool>,
    now_millis: Rc<Cell<u64>>,
    doing: Cell<Doing>,
    since_millis: Cell<u64>,
    /// Whether the last write found the socket's buffer full.
    blocked: Cell<bool>,
    /// Bytes handed to the kernel in all.
    sent: Cell<u64>,
    /// Bytes of an asset that a body hands out at once, at most.
    handout_max: Cell<u64>,
    /// Whether several exchanges may be under way at once.
    multiplexed: Cell<bool>,
    /// Hits whose bodies have been begun and have not gone to their end.
    hits_owed: Cell<u64>,
    /// Exchanges under way, and how many of them wait for us rather than for the client.
    exchanges: Cell<usize>,
    ours: Cell<usize>,
    /// When a request on it was refused for overload, if that was not followed by another that was not; zero: never.
    pub(super) refused_millis: Cell<u64>,
    /// Whether it is by TLS.
    pub(super) secure: Cell<bool>,
    pub(super) closing: Cell<Option<CloseReason>>,
    pub(super) pace: Cell<Pace>,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Served,
    /// Its client has left while it waited for us.
    Left,
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
    /// For how long it was excused, since it waited for a turn of who costs much, and when that was seen last; in milliseconds.
    pub(super) excused: u64,
    pub(super) excused_at: u64,
}

/// Bytes of responses by which a connection is told from others of a client that costs much: more than a flood takes on each.
const KNOWN: u64 = 1 << 20;
/// Bytes that come while it waits for a turn that is far away, short of which the worker is not woken: a quarter of what the smallest buffers hold by default, so that none grows for it.
const HELD: i32 = 32 << 10;
/// Turns that come in a row to who is not alone.
const ROW: u8 = 2;
const ROW_SHORT: u8 = 100;
/// Milliseconds without a byte of a response after which it is taken that none is waiting to be allowed out; and of waiting for a turn after
/// which it is not the client that is late.
const SETTLED: u64 = 1000;

impl Connection {
    pub(super) fn new(
        (peer, prefix, together): (SocketAddr, u128, Option<Rc<Together>>),
        client: Option<Arc<Client>>,
        metrics: Arc<WorkerMetrics>,
        now_millis: Rc<Cell<u64>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            peer,
            metrics,
            client,
            prefix,
            together,
            account: Account::default(),
            looked: Cell::new(Instant::now()),
            is_done: Cell::new(false),
            waited: Cell::default(),
            row: Cell::new((u64::MAX, 0)),
            short: Cell::new(false),
            trust: Trust::default(),
            late: Cell::default(),
            waiters: Waiters::default(),
            socket: RefCell::default(),
            held: Cell::new(false),
            since_millis: Cell::new(now_millis.get()),
            now_millis,
            doing: Cell::new(Doing::Fresh),
            blocked: Cell::new(false),
            sent: Cell::new(0),
            handout_max: Cell::new(u64::MAX),
            multiplexed: Cell::new(false),
            hits_owed: Cell::new(0),
            exchanges: Cell::new(0),
            ours: Cell::new(0),
            refused_millis: Cell::new(0),
            secure: Cell::new(false),
            closing: Cell::new(None),
            pace: Cell::default(),
        })
    }

    /// Whether its client may ask for one thing more. To be asked once for each request.
    pub(super) fn may_ask(&self) -> Permit {
        match &self.client {
            None => Permit::Granted,
            Some(client) => match client.take(self.now()) {
                Ok(()) => Permit::Granted,
                Err(seconds) => Permit::Later(seconds),
            },
        }
    }

    /// When the clock was last looked at in its present turn.
    pub(super) fn looked(&self) -> Instant {
        self.looked.get()
    }

    /// The clock says `now`, and something is done after that.
    pub(super) fn look(&self, now: Instant) {
        self.looked.set(now);
        self.is_done.set(false);
    }

    /// The clock says `now`, and so it does at the end of the turn, unless [something](Self::begin_exchange) is done after that.
    pub(super) fn look_last(&self, now: Instant) {
        self.looked.set(now);
        self.is_done.set(true);
    }

    /// What the clock says at the end of its present turn.
    pub(super) fn look_at_end(&self) -> Instant {
        if !self.is_done.get() {
            self.looked.set(Instant::now());
        }
        self.looked.get()
    }

    /// A task of it is ready, and waits for its turn from now on; `waker` is for when its client leaves. Tells what ends that.
    pub(super) fn begin_wait(&self, waker: &Waker) -> u64 {
        self.waiters.begin(waker, self.now())
    }

    /// It waits still. Where its client costs much that is for long, and what comes after the first bytes wakes nobody: an event of epoll for each of ten thousand packets a
    /// second is a twentieth of a core. The first have to be told of, since whoever reads asks for no more than whether they were.
    pub(super) fn hold(&self, cx: &mut Context<'_>) {
        if self.held.get() || self.is_multiplexed() || !self.comes_last() {
            return;
        }
        let Some(socket) = self.socket.borrow().upgrade() else { return };
        if socket.poll_read_ready(cx).is_ready() {
            wake_at(&socket, HELD);
            self.held.set(true);
        }
    }

    /// A turn has come after it has `waited`: of a wait that was long nothing counts as the client's time, unless that costs much, which is [excused](Self::excuse) for so long.
    pub(super) fn has_waited(&self, (waited, costly): (Duration, bool)) {
        self.waited.set(waited);
        self.late.set(if costly { Duration::ZERO } else { waited });
        let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        if millis >= SETTLED && !costly {
            self.excuse(millis);
        }
        if self.held.replace(false)
            && let Some(socket) = self.socket.borrow().upgrade()
        {
            wake_at(&socket, 1);
        }
    }

    /// Of what it does so many milliseconds do not count as the client's time.
    pub(super) fn excuse(&self, millis: u64) {
        self.since_millis.set(self.since_millis.get().saturating_add(millis).min(self.now()));
    }

    /// It is by this socket; none: the kernel is to wake the worker whatever comes.
    pub(super) fn set_socket(&self, socket: Option<&Rc<TcpStream>>) {
        *self.socket.borrow_mut() = socket.map(Rc::downgrade).unwrap_or_default();
    }

    /// How long it has waited by the rules for all, which is as long as the worker is late. What one waits whose client costs much says nothing of that.
    pub(super) fn late(&self) -> Duration {
        self.late.get()
    }

    /// Its turn begins, which is that of this `number` among all of its worker, and had better be `short` where the worker has time to spare for more of them.
    pub(super) fn begin_turn(&self, number: u64, short: bool) {
        self.short.set(short);
        let (after, row) = self.row.get();
        self.row.set((number + 1, if after == number { row.saturating_add(1) } else { 0 }));
    }

    /// Whether nobody else had a turn of late: in more than two in a row, since of two who always want one each has that at times; in more than a hundred where there is time to spare, since
    /// others who come some thousand times a second may not have wanted any for a moment.
    pub(super) fn is_alone(&self) -> bool {
        self.row.get().1 >= if self.short.get() { ROW_SHORT } else { ROW }
    }

    /// Whether its turn had better be short: who comes meanwhile waits for less.
    pub(super) fn has_short_turn(&self) -> bool {
        self.short.get()
    }

    /// Whether it has been waiting for its turn for so long that its client may have done all that it has to. Short waits excuse nobody: who
    /// trickles waits for most of the time.
    pub(super) fn waits_long(&self) -> bool {
        self.waiters.since().is_some_and(|since| self.now().saturating_sub(since) >= SETTLED)
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
    }

    /// Several exchanges may be under way at once.
    pub(super) fn set_multiplexed(&self) {
        self.multiplexed.set(true);
    }

    /// Whether several exchanges may be under way at once.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed.get()
    }

    /// How many turns it takes to answer a request from memory: with HTTP/2 it is read, answered and sent in one each.
    pub(super) fn turns_of_hit(&self) -> u64 {
        if self.multiplexed.get() { 3 } else { 1 }
    }

    /// The body of a hit is begun on a stream: it pays once its end has gone. What is made ahead of a window that never opens has not.
    pub(super) fn owe_hit(&self) {
        if self.multiplexed.get() {
            self.hits_owed.set(self.hits_owed.get() + 1);
        }
    }

    /// So many bodies have gone to their end.
    pub(super) fn pay_hits(&self, ended: u64) {
        let owed = self.hits_owed.get();
        let paid = ended.min(owed);
        self.hits_owed.set(owed - paid);
        if paid > 0 {
            self.pay_hit(paid);
        }
    }

    /// So many hits have been answered.
    pub(super) fn pay_hit(&self, count: u64) {
        self.account.hit(count * self.turns_of_hit());
    }

    /// It has taken `nanos` in this window, of which hits have paid for so much.
    pub(super) fn take(&self, window: u64, (nanos, paid): (u64, u64)) {
        let Some(together) = &self.together else { return };
        let trusted = self.trust.take(together, window, nanos, self.now());
        together.take(window, (nanos - trusted, paid), self.now());
    }

    /// It has got something that it asked for.
    pub(super) fn got_what_it_asked(&self) {
        self.trust.got();
    }

    /// It ends, and what it has taken on trust is held against its client, unless that has left while it waited for us.
    pub(super) fn end(&self, how: End) {
        if let Some(together) = &self.together
            && (how == End::Served || self.closing.get().is_some())
        {
            self.trust.was_wrong(together, self.now());
        }
    }

    /// An exchange begins; it is our turn.
    pub(super) fn begin_exchange(&self) {
        self.trust.asked();
        self.is_done.set(false);
        self.exchanges.set(self.exchanges.get() + 1);
        self.ours.set(self.ours.get() + 1);
        self.begin(Doing::Responding);
    }

    /// An exchange is over.
    pub(super) fn end_exchange(&self) {
        self.exchanges.set(self.exchanges.get() - 1);
        if self.exchanges.get() == 0 {
            self.begin(Doing::Idle);
        }
    }

    /// It is our turn in one more exchange, or in one less.
    pub(super) fn turn(&self, ours: bool) {
        self.ours.set(if ours { self.ours.get() + 1 } else { self.ours.get() - 1 });
    }

    /// A part of a response went out. Of several exchanges, the last may be over for us while its bytes wait for the client.
    pub(super) fn progressed(&self) {
        if self.doing.get() == Doing::Idle {
            self.since_millis.set(self.now());
        }
    }

    /// Whether nothing is under way: no request has begun or waits to be read, and the kernel has every byte of the last response.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.doing.get(), Doing::Idle | Doing::Fresh | Doing::Handshake)
            && !self.blocked.get()
            && self.waiters.since().is_none()
            && (!self.multiplexed.get() || self.doing_for() > SETTLED)
    }

    /// Whether it was made so lately that its first request can still be on its way.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.doing.get(), Doing::Fresh | Doing::Handshake) && self.doing_for() <= SETTLED
    }

    /// Whether the client has to take something before we can go on.
    pub(super) fn awaits_client(&self) -> bool {
        self.blocked.get() || (self.multiplexed.get() && self.exchanges.get() > self.ours.get())
    }

    /// Bytes came in: between requests, they are the first of a head. Later ones do not refresh its deadline, and neither do
    /// those of the first request: it is as late as its connection is old.
    pub(super) fn received(&self) {
        self.is_done.set(false);
        match self.doing.get() {
            Doing::Idle => self.begin(Doing::Head),
            Doing::Fresh => self.doing.set(Doing::Head),
            Doing::Handshake | Doing::Head | Doing::Waiting | Doing::Responding => {}
        }
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Whether the last write found the socket's buffer full.
    pub(super) fn is_full(&self) -> bool {
        self.blocked.get()
    }

    pub(super) fn set_blocked(&self) {
        self.blocked.set(true);
    }

    /// Bytes of an asset that a body hands out at once, at most.
    pub(super) fn handout_max(&self) -> u64 {
        self.handout_max.get()
    }

    /// Bytes that are read in user space are handed out in small parts: whether they are in memory is looked at with each.
    pub(super) fn set_handout_max(&self, bytes: u64) {
        self.handout_max.set(bytes);
    }

    /// The kernel took `count` bytes.
    pub(super) fn add_sent(&self, count: u64) {
        self.blocked.set(false);
        self.sent.set(self.sent.get() + count);
        self.account.got(count);
        if let Some(together) = &self.together {
            together.got(count);
        }
    }

    /// It is closed for flooding.
    pub(super) fn flooded(&self) {
        self.closing.set(Some(CloseReason::Flood));
        self.metrics.closed(CloseReason::Flood);
    }

    /// It ends since its client has broken the protocol.
    pub(super) fn has_broken_protocol(&self) {
        if let Some(together) = &self.together {
            together.trust_was_wrong(BROKEN, self.now());
        }
    }

    /// Whether its client costs much more than what it gets.
    fn costs_much(&self) -> bool {
        self.together.as_ref().is_some_and(|together| together.costs_much(self.now()))
    }

    /// Whether it gets what it costs and has got much: what its client does otherwise is nothing to it.
    pub(super) fn is_known(&self) -> bool {
        self.account.is_served() && self.sent() >= KNOWN
    }

    /// Whether it comes after all others wherever it waits: its client costs much, and it is not one that stands for itself.
    pub(super) fn comes_last(&self) -> bool {
        self.costs_much() && !self.is_known()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Write as _, task::Poll};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn what_comes_for_who_waits_long_wakes_nobody_until_its_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let pair = async || {
                let peer = std::net::TcpStream::connect(address).expect("it listens");
                let (stream, _) = listener.accept().await.expect("it has come");
                (peer, Rc::new(stream))
            };
            let together = Rc::<Together>::default();
            let whose = (address, 1, Some(Rc::clone(&together)));
            let connection = Connection::new(whose, None, Metrics::new(1).worker(0), Rc::default());
            let (mut peer, stream) = pair().await;
            connection.set_socket(Some(&stream));
            let mut buffer = [0; 64];
            let hold = || {
                poll_fn(|cx| {
                    connection.hold(cx);
                    Poll::Ready(())
                })
            };
            // One whose client costs nobody much is woken by each byte.
            hold().await;
            assert!(!connection.held.get());
            together.take(0, (20_000_000, 0), 0);
            // What is new is taken to be ready until it was read.
            assert!(stream.try_read(&mut buffer).is_err());
            // Of the first bytes it is told, so that it has them in its turn at once.
            hold().await;
            assert!(!connection.held.get(), "nothing has come");
            peer.write_all(b"a").expect("sent");
            stream.readable().await.expect("it is there");
            hold().await;
            assert!(connection.held.get());
            assert!(stream.readable().now_or_never().is_some(), "it need not ask again");
            assert_eq!(stream.try_read(&mut buffer).expect("a byte"), 1);
            assert!(stream.try_read(&mut buffer).is_err(), "no more");
            peer.write_all(b"b").expect("sent");
            // What comes later elsewhere has been told of, so this would have been, too.
            let (mut other, after) = pair().await;
            other.write_all(b"c").expect("sent");
            after.readable().await.expect("it is there");
            assert!(stream.readable().now_or_never().is_none(), "it waits");
            connection.has_waited((Duration::ZERO, false));
            stream.readable().await.expect("it is told now");
            assert_eq!(stream.try_read(&mut buffer).expect("a byte"), 1);
            assert!(stream.try_read(&mut buffer).is_err(), "no more");
            peer.write_all(b"d").expect("sent");
            stream.readable().await.expect("as it comes");
        });
    }

    #[test]
    fn who_has_three_turns_in_a_row_is_alone() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let connection = Connection::new((peer, 1, None), None, Metrics::new(1).worker(0), Rc::default());
        let alone = |numbers: &[u64]| {
            for number in numbers {
                connection.begin_turn(*number, false);
            }
            connection.is_alone()
        };
        assert!(!alone(&[0, 1]));
        assert!(alone(&[2]) && alone(&[3, 4]));
        assert!(!alone(&[6]), "somebody else had the fifth");
        assert!(!alone(&[7]));
        assert!(alone(&[8]));
    }
}
