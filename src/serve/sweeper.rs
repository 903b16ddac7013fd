//! Ends connections that take too long: once a second a worker looks at each of its own, a few at a time, so that nobody waits until it is done with thousands.
//!
//! One look costs less than timers for every request, and needs no cooperation of the protocol: the socket is shut down, and the
//! connection's task ends by itself. A deadline may be overrun by up to a second.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    task::Waker,
    time::Duration,
};

use tokio::net::TcpStream;

use super::{
    Config,
    connection::{Connection, Doing},
};
use crate::{
    sys::socket::{self, PeerEnd},
    telemetry::metrics::CloseReason,
};

/// How often each connection is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Most that one look excuses, in milliseconds: twice the time between two of them.
const EXCUSED_AT_ONCE: u64 = 2000;
/// How long a connection has to be idle, in milliseconds, to make room for another.
const IDLE_MIN: u64 = 1000;

/// The connections of one worker.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    connections: RefCell<Vec<(Weak<TcpStream>, Rc<Connection>)>>,
    round: Cell<Round>,
    /// Those in a handshake, the oldest first; and some that are past it.
    handshakes: RefCell<VecDeque<(Weak<TcpStream>, Rc<Connection>)>>,
    /// Handshakes that go on.
    under_way: Cell<usize>,
}

/// A look at all connections.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// Which of them is next.
    at: usize,
    /// Time within which all that follow are looked at.
    left: Duration,
}

impl Default for Round {
    fn default() -> Self {
        Self { at: 0, left: EVERY }
    }
}

/// The deadlines, in milliseconds and bytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    handshake: u64,
    header: u64,
    idle: u64,
    /// The same while requests are refused.
    idle_overloaded: u64,
    overloaded: bool,
    stall: u64,
    rate_window: u64,
    rate_min: u64,
}

impl Deadlines {
    pub(super) fn new(config: &Config) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            handshake: millis(config.tls.handshake_timeout),
            header: millis(config.header_timeout),
            idle: millis(config.idle_timeout),
            idle_overloaded: millis(config.idle_timeout_overloaded),
            overloaded: false,
            stall: millis(config.stall_timeout),
            rate_window: millis(config.send_rate_window),
            rate_min: config.send_rate_min.bytes_per_second(),
        }
    }

    /// While requests are refused, or not.
    pub(super) fn while_overloaded(self, overloaded: bool) -> Self {
        Self { overloaded, ..self }
    }

    /// Whether, and why, a connection's time is up. `acked`: bytes that its client has acknowledged in all.
    fn verdict(&self, connection: &Connection, acked: impl FnOnce() -> u64) -> Option<CloseReason> {
        match connection.doing() {
            _ if connection.waits_long() && !connection.comes_last() => self.wait_for_us(connection),
            _ if connection.waits_long() && self.is_excused(connection) => None,
            Doing::Handshake if connection.doing_for() > self.handshake => Some(CloseReason::HandshakeTimeout),
            Doing::Fresh | Doing::Head if connection.doing_for() > self.header => Some(CloseReason::HeaderTimeout),
            Doing::Idle if connection.is_idle() && connection.doing_for() > self.idle => Some(CloseReason::IdleTimeout),
            Doing::Idle if self.overloaded && connection.is_idle() && connection.doing_for() > self.idle_overloaded => {
                Some(CloseReason::Overload)
            }
            _ if connection.awaits_client() => self.pace(connection, acked()),
            _ => self.wait_for_us(connection),
        }
    }

    /// Whether what a connection waits is no fault of its client, though that costs much: for as long in all as a rate window has, and no longer. Its deadlines are put off by that, and do
    /// not begin anew, as they would for who waits on purpose.
    fn is_excused(&self, connection: &Connection) -> bool {
        let mut pace = connection.pace.get();
        let passed = connection.now().saturating_sub(pace.excused_at).min(EXCUSED_AT_ONCE);
        pace.excused_at = connection.now();
        pace.excused += passed;
        let excused = pace.excused <= self.rate_window;
        if excused && pace.window_millis > 0 {
            pace.window_millis += passed;
        }
        if excused && pace.progress_millis > 0 {
            pace.progress_millis += passed;
        }
        connection.pace.set(pace);
        excused
    }

    /// The client waits for us, not we for it.
    fn wait_for_us(&self, connection: &Connection) -> Option<CloseReason> {
        let mut pace = connection.pace.get();
        pace.window_millis = 0;
        pace.excused = 0;
        pace.progress_millis = connection.now();
        connection.pace.set(pace);
        None
    }

    /// Judges by what the client acknowledges, not by what the kernel takes: buffers of some megabytes make the latter jumpy.
    fn pace(&self, connection: &Connection, acked: u64) -> Option<CloseReason> {
        let now = connection.now();
        let mut pace = connection.pace.get();
        if acked > pace.acked || pace.progress_millis == 0 {
            pace.acked = acked;
            pace.progress_millis = now;
        }
        if pace.window_millis == 0 {
            pace.window_millis = now.max(1);
            pace.window_acked = acked;
        }
        let window = now.saturating_sub(pace.window_millis);
        let verdict = if now.saturating_sub(pace.progress_millis) > self.stall {
            Some(CloseReason::Stalled)
        } else if window >= self.rate_window {
            let slow =
                acked.saturating_sub(pace.window_acked).saturating_mul(1000) < self.rate_min.saturating_mul(window);
            (pace.window_millis, pace.excused) = (0, 0);
            slow.then_some(CloseReason::TooSlow)
        } else {
            None
        };
        connection.pace.set(pace);
        verdict
    }
}

impl Sweeper {
    pub(super) fn add(&self, stream: &Rc<TcpStream>, connection: &Rc<Connection>) {
        self.connections.borrow_mut().push((Rc::downgrade(stream), Rc::clone(connection)));
    }

    /// A handshake begins. Where that makes more than `max`, the oldest is cut: it has had its time, and who comes now is likelier to
    /// be a viewer.
    pub(super) fn begin_handshake(&self, stream: &Rc<TcpStream>, connection: &Rc<Connection>, max: usize) {
        let mut handshakes = self.handshakes.borrow_mut();
        handshakes.push_back((Rc::downgrade(stream), Rc::clone(connection)));
        self.under_way.set(self.under_way.get() + 1);
        while self.under_way.get() > max {
            let Some((stream, connection)) = handshakes.pop_front() else { return };
            if let Some(stream) = stream.upgrade().filter(|_| goes_on(&connection)) {
                close(&stream, &connection, CloseReason::HandshakesMax);
                self.under_way.set(self.under_way.get() - 1);
            }
        }
    }

    /// A handshake is over, however it ended.
    pub(super) fn end_handshake(&self, connection: &Connection) {
        connection.begin(Doing::Fresh);
        if connection.closing.get() != Some(CloseReason::HandshakesMax) {
            self.under_way.set(self.under_way.get() - 1);
        }
    }

    /// Looks at so many connections that each is looked at once a second, `elapsed` after the last time; forgets those that have ended. Tells whom to wake, one
    /// after the other, since its client has left while it waits for its turn.
    pub(super) fn sweep(&self, deadlines: &Deadlines, elapsed: Duration) -> Vec<Waker> {
        let mut left = Vec::new();
        self.handshakes.borrow_mut().retain(|(_, connection)| goes_on(connection));
        let mut connections = self.connections.borrow_mut();
        let mut round = self.round.get();
        if round.at >= connections.len() {
            round = Round::default();
        }
        let Round { mut at, left: time_left } = round;
        for _ in 0..due(connections.len() - at, elapsed, time_left) {
            let Some((stream, connection)) = connections.get(at) else { break };
            if let Some(stream) = stream.upgrade() {
                look_at(&stream, connection, deadlines);
                if connection.waits_long() && has_left(&stream, connection) {
                    left.extend(connection.leave());
                }
                at += 1;
            } else {
                // In its place comes the last, which is next.
                connections.swap_remove(at);
            }
        }
        self.round.set(Round { at, left: time_left.saturating_sub(elapsed) });
        left
    }

    /// Closes up to `count` connections on which nothing is under way: those that have been idle for longest, and not those that
    /// were served within the last second.
    pub(super) fn close_longest_idle(&self, count: usize) {
        let connections = self.connections.borrow();
        let is_idle = |connection: &Connection| {
            connection.doing() == Doing::Idle
                && connection.is_idle()
                && connection.doing_for() >= IDLE_MIN
                && connection.closing.get().is_none()
        };
        let mut idle: Vec<_> = connections.iter().filter(|(_, connection)| is_idle(connection)).collect();
        if idle.len() > count {
            idle.select_nth_unstable_by_key(count, |(_, connection)| std::cmp::Reverse(connection.doing_for()));
            idle.truncate(count);
        }
        for (stream, connection) in idle {
            if let Some(stream) = stream.upgrade()
                && rustix::io::ioctl_fionread(&*stream).unwrap_or(0) == 0
            {
                send_away(&stream, connection, CloseReason::ConnectionsFull);
            }
        }
    }

    /// Closes connections on which nothing is under way. Who has just connected, or sent what was not read yet, is about to be answered.
    pub(super) fn close_idle(&self) {
        for (stream, connection) in self.connections.borrow().iter() {
            if let Some(stream) = stream.upgrade()
                && connection.is_idle()
                && !connection.is_new()
                && connection.closing.get().is_none()
                && rustix::io::ioctl_fionread(&*stream).unwrap_or(0) == 0
            {
                send_away(&stream, connection, CloseReason::Drain);
            }
        }
    }

    /// Closes everything that is left.
    pub(super) fn close_all(&self) {
        for (stream, connection) in self.connections.borrow().iter() {
            if let Some(stream) = stream.upgrade() {
                close(&stream, connection, CloseReason::Drain);
            }
        }
    }
}

/// How many are looked at after `elapsed`, where `rest` are to be within `left`: all, where that is over.
fn due(rest: usize, elapsed: Duration, left: Duration) -> usize {
    let micros = |time: Duration| usize::try_from(time.as_micros()).unwrap_or(usize::MAX);
    rest.saturating_mul(micros(elapsed.min(left))).checked_div(micros(left)).map_or(rest, |due| (due + 1).min(rest))
}

/// Closes a connection whose time is up.
fn look_at(stream: &TcpStream, connection: &Connection, deadlines: &Deadlines) {
    let acked = || connection.sent().saturating_sub(socket::unacknowledged(stream).unwrap_or(0));
    if connection.closing.get().is_none()
        && let Some(reason) = deadlines.verdict(connection, acked)
    {
        match reason {
            // What it has asked is read when it is its turn.
            CloseReason::Overload if rustix::io::ioctl_fionread(stream).unwrap_or(0) > 0 => {}
            CloseReason::IdleTimeout | CloseReason::Overload => send_away(stream, connection, reason),
            _ => close(stream, connection, reason),
        }
    }
}

/// Whether nobody is there any more to be answered. A client that has closed its half only may wait for an answer to what it has asked before: not where it has never asked, nor
/// within TLS of which it has not seen the beginning.
fn has_left(stream: &TcpStream, connection: &Connection) -> bool {
    let has_asked = || match (connection.secure.get(), connection.doing()) {
        (true, _) => connection.sent() > 0,
        (false, Doing::Fresh) => rustix::io::ioctl_fionread(stream).is_ok_and(|unread| unread > 0),
        (false, _) => true,
    };
    match socket::peer_end(stream) {
        Ok(PeerEnd::Gone) => true,
        // Ours closes that half, too.
        Ok(PeerEnd::Half) => connection.closing.get().is_none() && !has_asked(),
        Ok(PeerEnd::There) | Err(_) => false,
    }
}

/// Whether a handshake goes on. Until its task has ended, that it is closed tells that it does not.
fn goes_on(connection: &Connection) -> bool {
    connection.doing() == Doing::Handshake && connection.closing.get() != Some(CloseReason::HandshakesMax)
}

/// Ends a connection on which nothing is under way: its task finds that no more will come, and takes leave as its protocol has it.
fn send_away(stream: &TcpStream, connection: &Connection, reason: CloseReason) {
    connection.closing.set(Some(reason));
    connection.metrics.closed(reason);
    if let Err(err) = rustix::net::shutdown(stream, rustix::net::Shutdown::Read) {
        tracing::debug!(error = %err, "connection was closed already");
    }
}

fn close(stream: &TcpStream, connection: &Connection, reason: CloseReason) {
    connection.closing.set(Some(reason));
    connection.metrics.closed(reason);
    if matches!(reason, CloseReason::Stalled | CloseReason::TooSlow)
        // What it would not take is not kept for it: the connection is reset.
        && let Err(err) = stream.set_zero_linger()
    {
        tracing::debug!(error = %err, "connection will linger");
    }
    if let Err(err) = rustix::net::shutdown(stream, rustix::net::Shutdown::Both) {
        tracing::debug!(error = %err, "connection was closed already");
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::SocketAddr};

    use super::*;
    use crate::{serve::account::Together, telemetry::metrics::Metrics};

    const DEADLINES: Deadlines = Deadlines {
        idle_overloaded: 5_000,
        overloaded: false,
        handshake: 5_000,
        header: 10_000,
        idle: 60_000,
        stall: 30_000,
        rate_window: 60_000,
        rate_min: 8_000,
    };

    fn connection() -> (Rc<Connection>, Rc<Cell<u64>>) {
        let now = Rc::new(Cell::new(1_000_000));
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        (Connection::new((peer, 0, None), None, Metrics::new(1).worker(0), Rc::clone(&now)), now)
    }

    #[tokio::test]
    async fn each_connection_is_looked_at_once_a_second_however_often_some_are() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (_, now) = connection();
        let sweeper = Sweeper::default();
        let (mut clients, mut streams, mut connections) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..25 {
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let stream = Rc::new(accepted.expect("accepted").0);
            let connection = Connection::new((address, 0, None), None, Metrics::new(1).worker(0), Rc::clone(&now));
            sweeper.add(&stream, &connection);
            clients.push(client.expect("connected"));
            streams.push(Some(stream));
            connections.push(connection);
        }
        now.set(now.get() + 10_001);
        sweeper.sweep(&DEADLINES, Duration::from_millis(100));
        assert_eq!(connections.iter().filter(|connection| connection.closing.get().is_some()).count(), 3);
        // Those that have ended are looked at too, and forgotten; nobody is passed over for it.
        streams.iter_mut().step_by(2).for_each(|stream| *stream = None);
        for _ in 0..9 {
            sweeper.sweep(&DEADLINES, Duration::from_millis(100));
        }
        let looked_at = |(stream, connection): (&Option<_>, &Rc<Connection>)| {
            stream.is_none() || connection.closing.get().is_some()
        };
        assert!(streams.iter().zip(&connections).all(looked_at));
        sweeper.sweep(&DEADLINES, Duration::from_secs(5));
        let left = streams.iter().flatten().count();
        sweeper.sweep(&DEADLINES, Duration::from_secs(5));
        assert_eq!(sweeper.connections.borrow().len(), left);
        // However many come meanwhile.
        assert_eq!(due(1000, EVERY / 10, EVERY / 10), 1000);
        assert_eq!((due(1000, EVERY, Duration::ZERO), due(1000, EVERY / 10, EVERY)), (1000, 101));
        assert_eq!((due(0, EVERY, EVERY), due(1, Duration::ZERO, EVERY)), (0, 1));
    }

    #[test]
    fn a_head_that_trickles_is_not_given_more_time() {
        let (connection, now) = connection();
        for _ in 0..10 {
            now.set(now.get() + 1_000);
            connection.received();
            assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        }
        now.set(now.get() + 1);
        connection.received();
        assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::HeaderTimeout));
    }

    #[test]
    fn who_costs_much_is_excused_while_it_waits_and_not_for_ever() {
        let now = Rc::new(Cell::new(1_000_000));
        let together = Rc::new(Together::default());
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let whose = (peer, 0, Some(Rc::clone(&together)));
        let connection = Connection::new(whose, None, Metrics::new(1).worker(0), Rc::clone(&now));
        let mut verdict = None;
        let mut lived = 0;
        // A head that never ends, of one whose client floods all the time: it has a turn every ten seconds.
        while verdict.is_none() && lived < 1000 {
            if lived % 10 == 0 {
                connection.end_wait((Duration::ZERO, true));
                connection.begin_wait(Waker::noop());
            }
            lived += 1;
            now.set(now.get() + 1_000);
            together.flooded(now.get());
            verdict = DEADLINES.verdict(&connection, || 0);
        }
        assert_eq!(verdict, Some(CloseReason::HeaderTimeout));
        let window = DEADLINES.rate_window / 1000;
        assert!((window..2 * window).contains(&lived), "{lived} s, of which a window is excused");
    }

    #[test]
    fn who_waits_for_its_turn_is_not_late() {
        let (connection, now) = connection();
        now.set(now.get() + 9_000);
        connection.begin_wait(Waker::noop());
        now.set(now.get() + 20_000);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None, "we have not read what it sent");
        connection.end_wait((Duration::from_secs(20), false));
        // What trickles in is ready again and again, and waits for a moment each time.
        for late in [None, Some(CloseReason::HeaderTimeout)] {
            connection.begin_wait(Waker::noop());
            now.set(now.get() + 900);
            assert_eq!(
                DEADLINES.verdict(&connection, || 0),
                late,
                "ten seconds of its own, and short waits excuse nobody"
            );
            connection.end_wait((Duration::from_millis(900), false));
        }
        // Nor is it slow at taking what it was not sent.
        connection.begin(Doing::Responding);
        connection.set_blocked();
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        connection.begin_wait(Waker::noop());
        now.set(now.get() + 100_000);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        connection.end_wait((Duration::from_secs(100), false));
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    }

    #[tokio::test]
    async fn who_has_asked_and_closed_its_half_is_there_still() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let pair = |said: &[u8]| {
            let mut far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
            far.write_all(said).expect("written");
            let near = listener.accept().expect("it has come").0;
            near.set_nonblocking(true).expect("set");
            (TcpStream::from_std(near).expect("taken over"), far)
        };
        let half = |said: &[u8]| {
            let (near, far) = pair(said);
            far.shutdown(std::net::Shutdown::Write).expect("shut");
            (near, far)
        };
        // It is known once it has come, over loopback at once.
        let left = |(near, _far): &(TcpStream, std::net::TcpStream), secure: bool, sent: u64| {
            let (connection, _) = connection();
            connection.secure.set(secure);
            connection.add_sent(sent);
            has_left(near, &connection)
        };
        assert!(!left(&pair(b""), false, 0));
        assert!(left(&half(b""), false, 0), "it has never asked");
        assert!(!left(&half(b"GET / HTTP/1.0\r\n\r\n"), false, 0), "what it asks is unread");
        assert!(left(&half(b"\x16\x03\x01"), true, 0), "nobody agrees on a session so");
        assert!(!left(&half(b""), true, 100), "it may have asked inside of TLS");
        let (connection, _) = connection();
        connection.begin(Doing::Responding);
        assert!(!has_left(&half(b"").0, &connection), "it is answered");
        connection.begin(Doing::Fresh);
        connection.closing.set(Some(CloseReason::IdleTimeout));
        assert!(!has_left(&half(b"").0, &connection), "it is sent away as its protocol has it");
        let (near, far) = pair(b"GET / HTTP/1.0\r\n\r\n");
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("set");
        drop(far);
        assert!(has_left(&near, &connection), "whatever it has asked");
    }

    #[test]
    fn a_handshake_has_a_deadline_of_its_own() {
        let (connection, now) = connection();
        connection.begin(Doing::Handshake);
        now.set(now.get() + 5_000);
        connection.received();
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        now.set(now.get() + 1);
        assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::HandshakeTimeout));
    }

    #[test]
    fn who_says_nothing_goes_sooner_while_requests_are_refused() {
        let (connection, now) = connection();
        connection.begin(Doing::Idle);
        now.set(now.get() + 5_001);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        let overloaded = DEADLINES.while_overloaded(true);
        assert_eq!(overloaded.verdict(&connection, || 0), Some(CloseReason::Overload));
        connection.begin(Doing::Responding);
        now.set(now.get() + 5_001);
        assert_eq!(overloaded.verdict(&connection, || 0), None, "what has begun goes on");
    }

    #[test]
    fn waiting_for_fill_is_no_fault_of_the_client() {
        let (connection, now) = connection();
        connection.begin(Doing::Responding);
        now.set(now.get() + 10_000_000);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    }

    #[test]
    fn of_several_exchanges_one_that_waits_for_the_client_counts() {
        let (connection, now) = connection();
        connection.set_multiplexed();
        connection.begin_exchange();
        connection.begin_exchange();
        now.set(now.get() + 10_000_000);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None, "both wait for us");
        connection.turn(false);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        now.set(now.get() + 30_001);
        assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::Stalled), "one is the client's turn");
        connection.turn(true);
        assert_eq!(DEADLINES.verdict(&connection, || 0), None);
    }

    #[test]
    fn what_waits_to_be_allowed_out_is_no_idleness_while_it_moves() {
        let (connection, now) = connection();
        connection.set_multiplexed();
        connection.begin_exchange();
        connection.turn(false);
        connection.end_exchange();
        for _ in 0..10 {
            now.set(now.get() + 50_000);
            connection.progressed();
            assert!(!connection.is_idle());
            assert_eq!(DEADLINES.verdict(&connection, || 0), None);
        }
        now.set(now.get() + 60_001);
        assert_eq!(DEADLINES.verdict(&connection, || 0), Some(CloseReason::IdleTimeout));
    }

    #[test]
    fn who_takes_nothing_is_stalled_and_who_takes_little_is_too_slow() {
        let (connection, now) = connection();
        connection.begin(Doing::Responding);
        connection.set_blocked();
        assert_eq!(DEADLINES.verdict(&connection, || 5), None);
        now.set(now.get() + 30_001);
        assert_eq!(DEADLINES.verdict(&connection, || 5), Some(CloseReason::Stalled));

        let (connection, now) = self::connection();
        connection.begin(Doing::Responding);
        connection.set_blocked();
        let mut verdicts = Vec::new();
        for second in 0..=61 {
            verdicts.push(DEADLINES.verdict(&connection, || second * 7_000));
            now.set(now.get() + 1_000);
        }
        assert_eq!(verdicts.iter().flatten().collect::<Vec<_>>(), [&CloseReason::TooSlow]);
    }

    #[test]
    fn a_slow_viewer_above_the_minimum_is_served_for_ever() {
        let (connection, now) = connection();
        connection.begin(Doing::Responding);
        connection.set_blocked();
        for second in 0..1_000 {
            assert_eq!(DEADLINES.verdict(&connection, || second * 9_000), None, "second {second}");
            now.set(now.get() + 1_000);
        }
    }
}
