//! A load generator that costs less than the servers it measures: one thread, epoll, keep-alive connections, bodies dropped in the
//! kernel (`MSG_TRUNC`, `tcp(7)`), latency from the request's last byte sent to the response's last byte received.
//!
//! With `verify`, bodies are read and compared, byte for byte, instead.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    event::epoll,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::random::Random;

/// One request: a path, and a part of what is there; `None`: all of it, whose length is then given.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) path: String,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) whole: bool,
}

/// Whether bytes are what a request has to give at that offset of its body.
pub(crate) type Check<'a> = dyn Fn(&Ask, u64, &[u8]) -> bool + 'a;

/// What to send, and for how long.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    /// Gives the next request.
    pub(crate) next: Box<dyn FnMut(&mut Random) -> Ask + 'a>,
    /// Compares what came with what should have: request, offset in its body, bytes.
    pub(crate) verify: Option<Box<Check<'a>>>,
    /// Also ends after so many requests.
    pub(crate) requests_max: u64,
}

/// What came back.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

/// Longest head of a response that is understood.
const HEAD_MAX: usize = 2048;
/// Most that is dropped by one call.
const DROP_MAX: usize = 4 << 20;
/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Connection {
    stream: TcpStream,
    ask: Ask,
    sent_at: Instant,
    head: Vec<u8>,
    /// Bytes of the body still to come; `None` while the head is read.
    left: Option<u64>,
    /// Whether it has asked all that it will.
    done: bool,
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
            let stream = TcpStream::connect(self.address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll::add(&poll, &stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
            let ask = (self.next)(&mut random);
            let head = Vec::with_capacity(HEAD_MAX);
            connections.push(Connection { stream, ask, sent_at: Instant::now(), head, left: None, done: false });
        }
        let mut outcome = Outcome {
            requests: 0,
            bytes: 0,
            seconds: 0.0,
            latency: Histogram::new_with_bounds(1, 60_000_000, 3).map_err(io::Error::other)?,
        };
        let mut nowhere = vec![0_u8; DROP_MAX];
        let begun = Instant::now();
        for connection in &mut connections {
            connection.send()?;
        }
        let mut asking = connections.len();
        let mut events = Vec::with_capacity(1024);
        while asking > 0 {
            events.clear();
            let patience = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            let wait = || epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&patience));
            rustix::io::retry_on_intr(wait)?;
            if events.is_empty() {
                return Err(io::Error::other(format!("{}: no byte for {PATIENCE:?}", self.address)));
            }
            let ending = begun.elapsed() >= self.time;
            for event in &events {
                let connection = &mut connections[event.data.u64() as usize];
                if connection.done || !connection.read(&mut nowhere, self.verify.as_deref())? {
                    continue;
                }
                let micros = connection.sent_at.elapsed().as_micros() as u64;
                outcome.latency.saturating_record(micros.max(1));
                outcome.requests += 1;
                outcome.bytes += connection.ask.len;
                if ending || outcome.requests >= self.requests_max {
                    connection.done = true;
                    asking -= 1;
                } else {
                    connection.ask = (self.next)(&mut random);
                    connection.send()?;
                }
            }
        }
        outcome.seconds = begun.elapsed().as_secs_f64();
        Ok(outcome)
    }
}

impl Connection {
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
        // A request is smaller than any socket's buffer.
        if send(&self.stream, text, SendFlags::NOSIGNAL)? == text.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Takes what has come; tells whether the response is whole.
    fn read(&mut self, nowhere: &mut [u8], verify: Option<&Check<'_>>) -> io::Result<bool> {
        loop {
            let socket: BorrowedFd<'_> = self.stream.as_fd();
            let Some(left) = self.left else {
                let mut piece = [0_u8; 512];
                let count = match recv(socket, &mut piece[..], RecvFlags::empty()) {
                    Err(Errno::AGAIN) => return Ok(false),
                    count => count?.0,
                };
                if count == 0 {
                    return Err(self.failed("the connection ended before the response"));
                }
                self.head.extend_from_slice(&piece[..count]);
                let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    if self.head.len() >= HEAD_MAX {
                        return Err(self.failed("the head does not end"));
                    }
                    continue;
                };
                let length = self.check_head(end)?;
                let body = &self.head[end + 4..];
                if verify.is_some_and(|verify| !verify(&self.ask, 0, body)) {
                    return Err(self.failed("a byte is wrong"));
                }
                let left = length.checked_sub(body.len() as u64);
                self.left = Some(left.ok_or_else(|| self.failed("more bytes than asked for"))?);
                continue;
            };
            if left == 0 {
                return Ok(true);
            }
            let room = left.min(nowhere.len() as u64) as usize;
            let flags = if verify.is_some() { RecvFlags::empty() } else { RecvFlags::TRUNC };
            let count = match recv(socket, &mut nowhere[..room], flags) {
                Err(Errno::AGAIN) => return Ok(false),
                Err(err) => return Err(err.into()),
                // What is dropped is the second of the two.
                Ok((kept, dropped)) => kept.max(dropped),
            };
            if count == 0 {
                return Err(self.failed("the connection ended in the middle of a body"));
            }
            if verify.is_some_and(|verify| !verify(&self.ask, self.ask.len - left, &nowhere[..count])) {
                return Err(self.failed("a byte is wrong"));
            }
            self.left = Some(left - count as u64);
        }
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
