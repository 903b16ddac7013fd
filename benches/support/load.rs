//! A load generator that costs less than the servers it measures: one thread, epoll, keep-alive connections, bodies dropped in the
//! kernel (`MSG_TRUNC`, `tcp(7)`), latency from the request's last byte sent to the response's last byte received.
//!
//! With `verify`, bodies are read and compared, byte for byte, instead.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    event::epoll,
    net::{RecvFlags, SendFlags, send},
};
use rustls::ClientConfig;

use super::{
    arrival, cores, events, http2,
    random::Random,
    records::{Records, receive},
    stolen::{Tenth, Undisturbed},
};

/// One request: a path, and a part of what is there; `whole`: all of it, whose length is then `len`.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) path: String,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) whole: bool,
}

/// Whether bytes are what a request has to give at that offset of its body.
pub(crate) type Check<'a> = dyn Fn(&Ask, u64, &[u8]) -> bool + 'a;

/// What is spoken.
#[derive(Clone, Debug, Default)]
pub(crate) enum Protocol {
    #[default]
    Http1,
    /// HTTP/1.1 inside of TLS 1.3.
    Https(Arc<ClientConfig>),
    /// HTTP/2 inside of TLS 1.3, one request at a time on each connection.
    Http2(Arc<ClientConfig>),
}

/// What to send, and for how long.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    /// Gives the next request.
    pub(crate) next: Box<dyn FnMut(&mut Random) -> Ask + 'a>,
    /// Compares what came with what should have: request, offset in its body, bytes.
    pub(crate) verify: Option<Box<Check<'a>>>,
    /// Never asks more often; at least as many as there are connections.
    pub(crate) requests_max: u64,
    /// The server's processes, whose CPU time is taken once all connections are open.
    pub(crate) servers: Vec<u32>,
    /// Looks for what has come again and again instead of sleeping ([`events::poll`]): where nobody else needs its core.
    pub(crate) polls: bool,
}

/// What came back.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// What the server had read from disks meanwhile.
    pub(crate) disk_bytes: u64,
    /// What the load did not wait in: near `seconds`, it was the load that was measured.
    pub(crate) load_busy_seconds: f64,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
    /// Share of the time that `latency` holds nothing of, since the host took the machine away in it.
    pub(crate) left_out: f64,
    /// Tenths of a second; as above.
    pub(crate) tenths: Vec<Tenth>,
}

/// Longest head of a response that is understood.
const HEAD_MAX: usize = 2048;
/// Most that is dropped or compared by one call.
const DROP_MAX: usize = 4 << 20;
/// Most that is read by a call that looks for a head: little of a body is copied with it, and no server's head takes two, as no client's buffer is so small.
const PIECE_MAX: usize = 1024;
/// How much later than it is due a request may leave before others that are due by then are left out.
const LATE: Duration = Duration::from_micros(20);
/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Connection {
    stream: TcpStream,
    speech: Speech,
    ask: Ask,
    sent_at: Instant,
    /// When the request was due, where that was by the kernel's clock before it could be sent; and when the last bytes came.
    due_at: Duration,
    arrived: Option<Duration>,
    /// Whether the kernel is asked for the latter.
    keeps_times: bool,
    /// The response's head, and what came with it.
    head: Vec<u8>,
    /// Bytes of the body still to come; `None` while the head is read.
    left: Option<u64>,
    /// Whether it has asked all that it will.
    done: bool,
}

enum Speech {
    Plain,
    Sealed(Box<Records>),
    Http2(Box<http2::Session>),
}

impl Load<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// A connection fails, or an answer is not what was asked for: the message says which.
    pub(crate) fn run(&mut self) -> io::Result<Outcome> {
        let mut random = Random::new(self.address.port().into());
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(self.connections);
        for number in 0..self.connections {
            let connection = Connection::open(self.address, &self.protocol, (self.next)(&mut random))?;
            epoll::add(&poll, &connection.stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
            connections.push(connection);
        }
        let mut outcome = Outcome {
            requests: 0,
            bytes: 0,
            seconds: 0.0,
            cpu_seconds: 0.0,
            disk_bytes: 0,
            load_busy_seconds: 0.0,
            latency: Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other)?,
            left_out: 0.0,
            tenths: Vec::new(),
        };
        let mut scratch = vec![0_u8; DROP_MAX];
        let disk = cores::disk_bytes(&self.servers);
        let (begun, cpu) = (Instant::now(), cores::cpu_seconds(&self.servers));
        for connection in &mut connections {
            connection.send()?;
        }
        let (mut asking, mut asked) = (connections.len(), connections.len() as u64);
        let mut events = Vec::with_capacity(1024);
        let mut idle = Duration::ZERO;
        while asking > 0 {
            let from = Instant::now();
            let wait = if self.polls { events::poll } else { events::wait };
            wait(&poll, &mut events, PATIENCE)?;
            idle += from.elapsed();
            if events.is_empty() {
                return Err(io::Error::other(format!("{}: no byte for {PATIENCE:?}", self.address)));
            }
            let ending = begun.elapsed() >= self.time;
            for event in &events {
                let connection = &mut connections[event.data.u64() as usize];
                if connection.done || !connection.read(&mut scratch, self.verify.as_deref())? {
                    continue;
                }
                let micros = connection.sent_at.elapsed().as_micros() as u64;
                outcome.latency.saturating_record(micros.max(1));
                outcome.requests += 1;
                outcome.bytes += connection.ask.len;
                if ending || asked >= self.requests_max {
                    connection.done = true;
                    asking -= 1;
                } else {
                    asked += 1;
                    connection.ask = (self.next)(&mut random);
                    connection.send()?;
                }
            }
        }
        outcome.seconds = begun.elapsed().as_secs_f64();
        outcome.cpu_seconds = cores::cpu_seconds(&self.servers) - cpu;
        outcome.disk_bytes = cores::disk_bytes(&self.servers) - disk;
        outcome.load_busy_seconds = outcome.seconds - idle.as_secs_f64();
        Ok(outcome)
    }
}

impl Load<'_> {
    /// Runs it as an open loop: requests come at random moments, `rate` a second on average, whether or not those before were answered. Latency
    /// is from the moment at which a request is due where no connection is free then, so that waiting for one counts, else from when it is sent, and to the moment at which
    /// the kernel has the last of its response: a load that is kept from its core is no part of it. Nor is what came while the host had taken the machine away.
    /// What is told begins after `warm`, when `mark` is called with 0, as it is with the number of each `period` that has begun since then.
    ///
    /// # Errors
    /// As of `run`.
    pub(crate) fn run_open(
        &mut self,
        rate: f64,
        warm: Duration,
        (period, mark): (Duration, &mut dyn FnMut(u32)),
    ) -> io::Result<Outcome> {
        let mut random = Random::new(self.address.port().into());
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(self.connections);
        for number in 0..self.connections {
            let mut connection = Connection::open(self.address, &self.protocol, (self.next)(&mut random))?;
            connection.keeps_times =
                matches!(connection.speech, Speech::Plain) && arrival::keep(&connection.stream).is_ok();
            epoll::add(&poll, &connection.stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
            connections.push(connection);
        }
        let mut outcome = Outcome {
            requests: 0,
            bytes: 0,
            seconds: 0.0,
            cpu_seconds: 0.0,
            disk_bytes: 0,
            load_busy_seconds: 0.0,
            latency: Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other)?,
            left_out: 0.0,
            tenths: Vec::new(),
        };
        let own = [std::process::id()];
        let mut scratch = vec![0_u8; DROP_MAX];
        let mut events = Vec::with_capacity(1024);
        // Each in its turn: by the last that has become idle a few would ask for most, as no viewer does.
        let mut idle: VecDeque<usize> = (0..self.connections).collect();
        let mut waiting = VecDeque::new();
        let mut due = Instant::now();
        let mut begun = due + warm;
        let (end, mut counted) = (begun + self.time, None);
        let (mut marks, mut next_mark) = (0, None::<Instant>);
        loop {
            let now = Instant::now();
            if counted.is_none() && now >= begun {
                mark(0);
                let latency = Undisturbed::begin().map_err(io::Error::other)?;
                begun = Instant::now();
                next_mark = begun.checked_add(period);
                counted = Some((latency, cores::cpu_seconds(&self.servers), cores::cpu_seconds(&own)));
            }
            if now < end && next_mark.is_some_and(|next| now >= next) {
                marks += 1;
                mark(marks);
                next_mark = begun.checked_add(period * (marks + 1));
            }
            let mut late = false;
            while due <= now && due < end {
                if waiting.len() >= idle.len() {
                    waiting.push_back((due, true));
                } else if !late {
                    waiting.push_back((due, false));
                }
                // Who was kept from its core does not make up for that at once: what it would have sent is not sent.
                late = now - due > LATE || late;
                due += Duration::from_secs_f64(-(1.0 - random.unit()).ln() / rate);
            }
            while !waiting.is_empty()
                && let Some(number) = idle.pop_front()
            {
                let connection = &mut connections[number];
                connection.ask = (self.next)(&mut random);
                connection.send()?;
                if let Some((due, true)) = waiting.pop_front() {
                    connection.due_at = connection.due_at.saturating_sub(connection.sent_at - due);
                    connection.sent_at = due;
                }
            }
            if due >= end && idle.len() == connections.len() {
                break;
            }
            let wait = if due < end { due.saturating_duration_since(now) } else { PATIENCE };
            events::wait(&poll, &mut events, wait)?;
            if now > end + PATIENCE {
                return Err(io::Error::other(format!("{}: no answer for {PATIENCE:?}", self.address)));
            }
            for event in &events {
                let number = event.data.u64() as usize;
                let connection = &mut connections[number];
                if idle.contains(&number) || !connection.read(&mut scratch, self.verify.as_deref())? {
                    continue;
                }
                let now = Instant::now();
                let took = connection.arrived.and_then(|arrived| arrived.checked_sub(connection.due_at));
                if let Some((latency, ..)) = &mut counted {
                    latency.record(took.unwrap_or(now - connection.sent_at), now);
                    outcome.requests += 1;
                    outcome.bytes += connection.ask.len;
                }
                idle.push_back(number);
            }
        }
        let Some((latency, cpu, own_cpu)) = counted else {
            return Err(io::Error::other("it has no time"));
        };
        outcome.seconds = begun.elapsed().as_secs_f64();
        let kept = latency.end();
        (outcome.latency, outcome.left_out, outcome.tenths) = (kept.latency, kept.left_out, kept.tenths);
        outcome.cpu_seconds = cores::cpu_seconds(&self.servers) - cpu;
        outcome.load_busy_seconds = cores::cpu_seconds(&own) - own_cpu;
        Ok(outcome)
    }
}

impl Connection {
    fn open(address: SocketAddr, protocol: &Protocol, ask: Ask) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let speech = match protocol {
            Protocol::Http1 => Speech::Plain,
            Protocol::Https(offer) => Speech::Sealed(Box::new(Records::connect(&stream, offer)?)),
            Protocol::Http2(offer) => {
                let records = Records::connect(&stream, offer)?;
                Speech::Http2(Box::new(http2::Session::begin(&stream, records)?))
            }
        };
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            speech,
            ask,
            sent_at: Instant::now(),
            due_at: Duration::ZERO,
            arrived: None,
            keeps_times: false,
            head: Vec::new(),
            left: None,
            done: false,
        })
    }

    fn send(&mut self) -> io::Result<()> {
        let mut text = [0_u8; 512];
        let mut rest = &mut text[..];
        let ask = &self.ask;
        write!(rest, "GET {} HTTP/1.1\r\nHost: bench\r\n", ask.path)?;
        if !ask.whole {
            write!(rest, "Range: bytes={}-{}\r\n", ask.start, ask.start + ask.len - 1)?;
        }
        write!(rest, "\r\n")?;
        let left = rest.len();
        let text = &text[..text.len() - left];
        self.head.clear();
        self.left = None;
        self.sent_at = Instant::now();
        if self.keeps_times {
            (self.due_at, self.arrived) = (arrival::now(), None);
        }
        match &mut self.speech {
            // A request is smaller than any socket's buffer.
            Speech::Plain if send(&self.stream, text, SendFlags::NOSIGNAL)? == text.len() => Ok(()),
            Speech::Plain => Err(io::ErrorKind::WriteZero.into()),
            Speech::Sealed(records) => records.send(&self.stream, text),
            Speech::Http2(session) => session.ask(&self.stream, &self.ask),
        }
    }

    /// Takes what has come; tells whether the response is whole.
    fn read(&mut self, scratch: &mut Vec<u8>, verify: Option<&Check<'_>>) -> io::Result<bool> {
        if let Speech::Http2(session) = &mut self.speech {
            let (ask, stream) = (&self.ask, &self.stream);
            let whole = session.read(stream, ask, verify);
            return whole.map_err(|err| io::Error::other(format!("{err}: asked for {ask:?}")));
        }
        loop {
            let Some(left) = self.left else {
                if !self.read_head(verify)? {
                    return Ok(false);
                }
                continue;
            };
            if left == 0 {
                return Ok(true);
            }
            let room = left.min(DROP_MAX as u64) as usize;
            let count = match (&mut self.speech, verify) {
                (Speech::Sealed(records), None) => records.skip(&self.stream)?,
                (Speech::Sealed(records), Some(_)) => {
                    scratch.clear();
                    records.open(&self.stream, scratch)?
                }
                (_, None) if self.keeps_times => {
                    scratch.resize(DROP_MAX, 0);
                    arrival::receive(&self.stream, &mut scratch[..room], libc::MSG_TRUNC)?.map(|(count, arrived)| {
                        self.arrived = arrived;
                        count
                    })
                }
                (_, None) => {
                    scratch.resize(DROP_MAX, 0);
                    receive(&self.stream, &mut scratch[..room], RecvFlags::TRUNC)?
                }
                (_, Some(_)) => {
                    scratch.resize(DROP_MAX, 0);
                    receive(&self.stream, &mut scratch[..room], RecvFlags::empty())?
                }
            };
            let Some(count) = count else { return Ok(false) };
            if verify.is_some_and(|verify| !verify(&self.ask, self.ask.len - left, &scratch[..count])) {
                return Err(self.failed("a byte is wrong"));
            }
            self.left = Some(left.checked_sub(count as u64).ok_or_else(|| self.failed("more bytes than asked for"))?);
        }
    }

    /// Reads until the head is there; tells whether it is.
    fn read_head(&mut self, verify: Option<&Check<'_>>) -> io::Result<bool> {
        let before = self.head.len();
        let count = match &mut self.speech {
            Speech::Sealed(records) => records.open(&self.stream, &mut self.head)?,
            _ => {
                self.head.resize(before + PIECE_MAX, 0);
                let count = receive(&self.stream, &mut self.head[before..], RecvFlags::empty());
                self.head.truncate(before + count.as_ref().map_or(0, |count| count.unwrap_or(0)));
                count.map_err(|err| self.failed(&err.to_string()))?
            }
        };
        if count.is_none() {
            return Ok(false);
        }
        let Some(end) = self.head.windows(4).take(HEAD_MAX).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() < HEAD_MAX { Ok(true) } else { Err(self.failed("the head does not end")) };
        };
        let length = self.check_head(end)?;
        let body = &self.head[end + 4..];
        let left = length.checked_sub(body.len() as u64).ok_or_else(|| self.failed("more bytes than asked for"))?;
        if verify.is_some_and(|verify| !verify(&self.ask, 0, body)) {
            return Err(self.failed("a byte is wrong"));
        }
        self.left = Some(left);
        Ok(true)
    }

    /// The length of the body, if the head is what was asked for.
    fn check_head(&self, end: usize) -> io::Result<u64> {
        let head = &self.head[..end];
        let expected: &[u8] = if self.ask.whole { b"HTTP/1.1 200" } else { b"HTTP/1.1 206" };
        if !head.starts_with(expected) {
            return Err(self.failed("another status than expected"));
        }
        let length = head.split(|byte| *byte == b'\n').find_map(|line| {
            let (name, value) = (line.get(..15)?, line.get(15..)?);
            name.eq_ignore_ascii_case(b"content-length:").then_some(value)
        });
        let length = length.and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok());
        if length == Some(self.ask.len) { Ok(self.ask.len) } else { Err(self.failed("another length than asked for")) }
    }

    fn failed(&self, what: &str) -> io::Error {
        let head = String::from_utf8_lossy(&self.head[..self.head.len().min(300)]).into_owned();
        io::Error::other(format!("{what}: asked for {:?}, got {head:?}", self.ask))
    }
}
