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
        if excused {
            connection.excuse(passed);
            if pace.window_millis > 0 {
                pace.window_millis += passed;
            }
            if pace.progress_millis > 0 {
                pace.progress_millis += passed;
            }
        }
        connection.pace.set(pace);
        excused
    }

    /// The client waits for us, not we for it.
    fn wait_for_us(&self, connection: &Connection) -> Option<CloseReason> {
        let mut pace = connection.pace.get();
        pace.window_millis = 0;
        if !connection.comes_last() {
            pace.excused = 0;
        }
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
                if connection.waits_long() && (is_cut(connection) || has_left(&stream, connection)) {
                    left.extend(connection.waiters.leave());
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

    /// Closes up to `count` connections on which nothing is under way, or a head that does not come to its end: those on which that has been so for longest, and not those that
    /// were served, or made, within the last second.
    pub(super) fn close_longest_idle(&self, count: usize) {
        let connections = self.connections.borrow();
        let is_idle = |connection: &Connection| {
            let gives_way = match connection.doing() {
                Doing::Idle | Doing::Fresh => connection.is_idle(),
                // Who waits to be read may have sent all of it.
                Doing::Head => connection.waiters.since().is_none(),
                Doing::Handshake | Doing::Waiting | Doing::Responding => false,
            };
            gives_way && connection.doing_for() >= IDLE_MIN && connection.closing.get().is_none()
        };
        let mut idle: Vec<_> = connections.iter().filter(|(_, connection)| is_idle(connection)).collect();
        if idle.len() > count {
            idle.select_nth_unstable_by_key(count, |(_, connection)| std::cmp::Reverse(connection.doing_for()));
            idle.truncate(count);
        }
        for (stream, connection) in idle {
            if let Some(stream) = stream.upgrade()
                // Of a head that comes a few bytes at a time some are unread for most of the time.
                && (connection.doing() == Doing::Head || rustix::io::ioctl_fionread(&*stream).unwrap_or(0) == 0)
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

/// Whether it was cut, so that there is nothing to be done in a turn that it waits for.
fn is_cut(connection: &Connection) -> bool {
    use CloseReason::{HandshakeTimeout, HandshakesMax, HeaderTimeout, Stalled, TooSlow};
    let reason = connection.closing.get();
    reason.is_some_and(|reason| matches!(reason, HandshakeTimeout | HandshakesMax | HeaderTimeout | Stalled | TooSlow))
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
mod tests;
