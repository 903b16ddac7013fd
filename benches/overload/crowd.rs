//! Viewers that ask at their own pace, whatever they are answered: one thread, epoll, bodies dropped in the kernel (`MSG_TRUNC`, `tcp(7)`).
//!
//! A request is due at a random moment. Some come on a connection of their own; the others on whichever is idle, that which was served last
//! first, or on a new one where none is. Latency is from the moment at which a request is due to the last byte of its response.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    event::epoll,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use socket2::{Domain, Socket, Type};

use super::support::{events, random::Random};

/// Longest head of a response that is understood.
const HEAD_MAX: usize = 1024;
/// Most that is dropped by one call.
const DROP_MAX: usize = 4 << 20;

/// What a crowd does.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    /// Bytes of a range, and of the asset.
    pub(crate) range: u64,
    pub(crate) length: u64,
    /// Requests a second; `None`: as many as come of `together` at the same time.
    pub(crate) rate: Option<f64>,
    pub(crate) together: usize,
    /// Of a hundred requests, those that come on a connection of their own.
    pub(crate) fresh_percent: u64,
    pub(crate) connections_max: usize,
    /// Before anything counts, and while it does.
    pub(crate) settle: Duration,
    pub(crate) time: Duration,
    /// After which a viewer has given up.
    pub(crate) patience: Duration,
}

/// What came of the requests that were due while it counted.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) offered: u64,
    pub(crate) served: u64,
    pub(crate) refused: u64,
    /// Connections that were reset or closed before an answer, and requests that nobody answered in time.
    pub(crate) lost: u64,
    /// Responses that broke off: never.
    pub(crate) cut: u64,
    /// Requests that waited at the viewers' side since there were no more connections to be had.
    pub(crate) held_back: u64,
    /// Responses served in the time that counts, whenever their requests were due.
    pub(crate) answered: u64,
    pub(crate) seconds: f64,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) refusal: Histogram<u64>,
    pub(crate) connections: usize,
}

/// What has come so far, for who watches meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) bytes: AtomicU64,
    pub(crate) answers: AtomicU64,
    pub(crate) open: AtomicU64,
}

/// One connection.
struct Viewer {
    socket: Socket,
    due: Instant,
    counts: bool,
    state: State,
    fresh: bool,
    /// Of another life of its place.
    life: u32,
    head: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Idle,
    Asked,
    /// Bytes of a body still to come, and whether it is that of a refusal.
    Body(u64, bool),
}

/// What reading has come to.
enum Came {
    Nothing,
    Whole { refused: bool },
    Ended { begun: bool },
}

pub(crate) struct Crowd {
    plan: Plan,
    seen: Arc<Seen>,
    poll: rustix::fd::OwnedFd,
    viewers: Vec<Option<Viewer>>,
    free: Vec<usize>,
    idle: VecDeque<(usize, u32)>,
    waiting: VecDeque<(Instant, bool)>,
    lives: u32,
    random: Random,
    nowhere: Vec<u8>,
    outcome: Outcome,
    under_way: usize,
}

impl Crowd {
    pub(crate) fn new(plan: &Plan, seen: &Arc<Seen>) -> io::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other);
        Ok(Self {
            plan: plan.clone(),
            seen: Arc::clone(seen),
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            viewers: Vec::new(),
            free: Vec::new(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            lives: 0,
            random: Random::new(7),
            nowhere: vec![0; DROP_MAX],
            outcome: Outcome {
                offered: 0,
                served: 0,
                refused: 0,
                lost: 0,
                cut: 0,
                held_back: 0,
                answered: 0,
                seconds: 0.0,
                latency: histogram()?,
                refusal: histogram()?,
                connections: 0,
            },
            under_way: 0,
        })
    }

    /// Runs it.
    ///
    /// # Errors
    /// The machine has no sockets, or an answer is none of those that are expected.
    pub(crate) fn run(mut self) -> io::Result<Outcome> {
        let begun = Instant::now();
        let (from, end) = (begun + self.plan.settle, begun + self.plan.settle + self.plan.time);
        let mut due = begun;
        let mut events = Vec::with_capacity(1024);
        let mut swept = begun;
        loop {
            let now = Instant::now();
            let counts = |due: Instant| due >= from && due < end;
            match self.plan.rate {
                Some(rate) => {
                    while due <= now && due < end {
                        self.arrive(due, counts(due))?;
                        due += Duration::from_secs_f64(-(1.0 - self.random.unit()).ln() / rate);
                    }
                }
                None => {
                    while now < end && self.under_way + self.waiting.len() < self.plan.together {
                        self.arrive(now, counts(now))?;
                    }
                    due = now;
                }
            }
            while let Some((due, counts)) = self.waiting.front().copied()
                && self.ask(due, counts, false)?
            {
                self.waiting.pop_front();
            }
            if now >= end && self.under_way == 0 && self.waiting.is_empty() {
                break;
            }
            if now.saturating_duration_since(swept) > Duration::from_millis(250) {
                swept = now;
                self.give_up(now);
            }
            let wait = if now < end { due.saturating_duration_since(now) } else { Duration::from_millis(50) };
            let wait = wait.min(Duration::from_millis(50));
            events::wait(&self.poll, &mut events, wait)?;
            for event in &events {
                let data = event.data.u64();
                self.look((data >> 32) as u32, (data & 0xffff_ffff) as usize, (from, end))?;
            }
        }
        self.outcome.seconds = self.plan.time.as_secs_f64();
        self.seen.open.store(0, Ordering::Relaxed);
        Ok(self.outcome)
    }

    /// A viewer wants something.
    fn arrive(&mut self, due: Instant, counts: bool) -> io::Result<()> {
        self.outcome.offered += u64::from(counts);
        let fresh = self.random.below(100) < self.plan.fresh_percent;
        if !self.waiting.is_empty() || !self.ask(due, counts, fresh)? {
            self.outcome.held_back += u64::from(counts);
            self.waiting.push_back((due, counts));
        }
        Ok(())
    }

    /// Asks, if there is a connection to be had.
    fn ask(&mut self, due: Instant, counts: bool, fresh: bool) -> io::Result<bool> {
        while !fresh && let Some((number, life)) = self.idle.pop_front() {
            let Some(viewer) = self.viewers[number].as_mut().filter(|viewer| viewer.life == life) else { continue };
            (viewer.due, viewer.counts) = (due, counts);
            if self.send(number)? {
                self.under_way += 1;
                return Ok(true);
            }
            // The server has closed it meanwhile, which it may.
            self.close(number);
        }
        if self.viewers.len() - self.free.len() >= self.plan.connections_max {
            return Ok(false);
        }
        let socket = Socket::new(Domain::for_address(self.plan.address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&self.plan.address.into()) {
            Ok(()) => {}
            Err(err) if err.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(err) => return Err(err),
        }
        self.lives = self.lives.wrapping_add(1);
        let life = self.lives;
        let number = self.free.pop().unwrap_or_else(|| {
            self.viewers.push(None);
            self.viewers.len() - 1
        });
        let data = epoll::EventData::new_u64(u64::from(life) << 32 | number as u64);
        epoll::add(&self.poll, &socket, data, epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET)?;
        let head = Vec::with_capacity(HEAD_MAX);
        self.viewers[number] = Some(Viewer { socket, due, counts, state: State::Connecting, fresh, life, head });
        self.outcome.connections = self.outcome.connections.max(self.viewers.len() - self.free.len());
        self.seen.open.fetch_add(1, Ordering::Relaxed);
        self.under_way += 1;
        Ok(true)
    }

    /// Sends the request; tells whether the connection took it.
    fn send(&mut self, number: usize) -> io::Result<bool> {
        let start = self.random.below(self.plan.length / self.plan.range) * self.plan.range;
        let Some(viewer) = self.viewers[number].as_mut() else { return Ok(false) };
        let closes = if viewer.fresh { "Connection: close\r\n" } else { "" };
        let text = format!(
            "GET /0.mp4 HTTP/1.1\r\nHost: bench\r\nRange: bytes={start}-{}\r\n{closes}\r\n",
            start + self.plan.range - 1
        );
        match send(&viewer.socket, text.as_bytes(), SendFlags::NOSIGNAL) {
            Ok(count) if count == text.len() => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
            Err(Errno::AGAIN | Errno::NOTCONN) if viewer.state == State::Connecting => return Ok(true),
            Ok(_) => return Err(ErrorKind::WriteZero.into()),
            Err(err) => return Err(err.into()),
        }
        viewer.head.clear();
        viewer.state = State::Asked;
        Ok(true)
    }

    fn look(&mut self, life: u32, number: usize, (from, end): (Instant, Instant)) -> io::Result<()> {
        let Some(viewer) = self.viewers[number].as_mut().filter(|viewer| viewer.life == life) else { return Ok(()) };
        if viewer.state == State::Connecting {
            if !self.send(number)? {
                self.lose(number, false);
            }
            return Ok(());
        }
        let was_idle = viewer.state == State::Idle;
        match viewer.read(&mut self.nowhere, &self.seen)? {
            Came::Nothing => {}
            Came::Ended { .. } if was_idle => self.close(number),
            Came::Ended { begun } => self.lose(number, begun),
            Came::Whole { refused } => {
                let now = Instant::now();
                let micros = (now - viewer.due).as_micros() as u64;
                let (counts, fresh) = (viewer.counts, viewer.fresh);
                viewer.state = State::Idle;
                self.under_way -= 1;
                self.seen.answers.fetch_add(1, Ordering::Relaxed);
                let outcome = &mut self.outcome;
                outcome.answered += u64::from(!refused && now >= from && now < end);
                if counts {
                    let (count, times) = if refused {
                        (&mut outcome.refused, &mut outcome.refusal)
                    } else {
                        (&mut outcome.served, &mut outcome.latency)
                    };
                    *count += 1;
                    times.saturating_record(micros.max(1));
                }
                if fresh {
                    self.close(number);
                } else if refused {
                    self.idle.push_back((number, life));
                } else {
                    self.idle.push_front((number, life));
                }
            }
        }
        Ok(())
    }

    fn lose(&mut self, number: usize, begun: bool) {
        if let Some(viewer) = &self.viewers[number] {
            self.outcome.lost += u64::from(viewer.counts && !begun);
            self.outcome.cut += u64::from(begun);
            self.under_way -= 1;
        }
        self.close(number);
    }

    fn close(&mut self, number: usize) {
        if self.viewers[number].take().is_some() {
            self.seen.open.fetch_sub(1, Ordering::Relaxed);
            self.free.push(number);
        }
    }

    /// Viewers who have waited for too long leave.
    fn give_up(&mut self, now: Instant) {
        let patience = self.plan.patience;
        let has_given_up = |viewer: &Viewer| viewer.state != State::Idle && now - viewer.due > patience;
        for number in 0..self.viewers.len() {
            if self.viewers[number].as_ref().is_some_and(has_given_up) {
                self.lose(number, false);
            }
        }
        while let Some((due, counts)) = self.waiting.front().copied()
            && now - due > patience
        {
            self.outcome.lost += u64::from(counts);
            self.waiting.pop_front();
        }
    }
}

impl AsFd for Viewer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Viewer {
    /// Takes what has come: all of it, since nobody says twice that there is something.
    fn read(&mut self, nowhere: &mut [u8], seen: &Seen) -> io::Result<Came> {
        loop {
            let got = match self.state {
                State::Connecting | State::Idle => recv(&*self, &mut nowhere[..1], RecvFlags::empty()),
                State::Asked => {
                    // No byte of the body is taken with the head but those of a small piece.
                    let mut piece = [0_u8; 512];
                    let got = recv(&*self, &mut piece[..], RecvFlags::empty());
                    if let Ok((count, _)) = got {
                        self.head.extend_from_slice(&piece[..count]);
                    }
                    got
                }
                State::Body(left, _) => {
                    let room = left.min(DROP_MAX as u64) as usize;
                    recv(&*self, &mut nowhere[..room], RecvFlags::TRUNC)
                }
            };
            let count = match got {
                Ok((kept, dropped)) => kept.max(dropped),
                Err(Errno::AGAIN) => return Ok(Came::Nothing),
                Err(Errno::CONNRESET | Errno::PIPE) => 0,
                Err(err) => return Err(err.into()),
            };
            if count == 0 {
                return Ok(Came::Ended { begun: matches!(self.state, State::Body(_, false)) });
            }
            seen.bytes.fetch_add(count as u64, Ordering::Relaxed);
            match self.state {
                State::Connecting | State::Idle => return Err(io::Error::other("an answer that nobody asked for")),
                State::Asked => self.read_head()?,
                State::Body(left, refused) => self.state = State::Body(left - count as u64, refused),
            }
            if let State::Body(0, refused) = self.state {
                return Ok(Came::Whole { refused });
            }
        }
    }

    fn read_head(&mut self) -> io::Result<()> {
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() < HEAD_MAX { Ok(()) } else { Err(self.failed("the head does not end")) };
        };
        let refused = self.head.starts_with(b"HTTP/1.1 503");
        if !refused && !self.head.starts_with(b"HTTP/1.1 206") {
            return Err(self.failed("another status than expected"));
        }
        let length = self.head[..end].split(|byte| *byte == b'\n').find_map(|line| {
            let (name, value) = (line.get(..15)?, line.get(15..)?);
            let value = name.eq_ignore_ascii_case(b"content-length:").then_some(value)?;
            std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok()
        });
        let length = length.ok_or_else(|| self.failed("no length"))?;
        let came = (self.head.len() - end - 4) as u64;
        let left = length.checked_sub(came).ok_or_else(|| self.failed("more bytes than asked for"))?;
        self.state = State::Body(left, refused);
        Ok(())
    }

    fn failed(&self, what: &str) -> io::Error {
        io::Error::other(format!("{what}: {:?}", String::from_utf8_lossy(&self.head)))
    }
}
