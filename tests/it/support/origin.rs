//! An origin that says what it was asked, serves content of any length, and misbehaves to order.
//!
//! Written over bare sockets: an HTTP library would refuse to send most of what a broken origin sends.

mod answer;

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::Content;
use answer::answer;

/// What the origin publishes under one path.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) body: Body,
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
    /// Further fields of every 200, 206 and 304.
    pub(crate) fields: Vec<(String, String)>,
    /// Whether `Range` is honoured.
    pub(crate) ranges: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Computed(Content),
    Bytes(Arc<Vec<u8>>),
}

/// One way to be wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answers with this status and a short text.
    Status(u16),
    /// Answers with this status, and wants to be asked again after so many seconds.
    Later(u16, u64),
    /// The byte at this offset of the asset is another one.
    Flipped(u64),
    /// Closes the connection in place of an answer.
    Hangup,
    /// Answers with something that is not HTTP.
    Garbage,
    /// Closes after so many bytes of the body.
    Short(u64),
    /// Resets the connection after so many bytes of the body.
    Reset(u64),
    /// Falls silent after so many bytes of the body until `Origin::release`.
    Stall(u64),
    /// `Content-Length` and body are so many bytes shorter than `Content-Range` says.
    Understated(u64),
    /// `Content-Length` and body are so many bytes longer than `Content-Range` says.
    Overlong(u64),
    /// The whole asset as 200, whatever range was asked for.
    Whole,
    /// `Content-Range` begins so many bytes later than asked; the body is that of the range asked for.
    Shifted(u64),
    /// `Content-Range` names this total length.
    Total(u64),
    /// 206 without `Content-Range`.
    NoContentRange,
    /// Chunked, so without a length.
    Chunked,
    /// Chunked, cut after so many bytes of the body.
    ChunkedCut(u64),
    /// Neither length nor chunks: ends when the connection does.
    UntilClose,
    /// Points elsewhere.
    Redirect(String),
    /// Says that the body is compressed.
    Gzip,
    /// So many bytes every few milliseconds.
    Trickle(u64),
}

/// One request as the origin saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// As in the request line, with its query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    /// Bytes of body handed to the kernel.
    pub(crate) sent: u64,
    /// When it came.
    pub(crate) at: Instant,
}

/// Holds back every answer for one path while it lives.
pub(crate) struct Gate {
    shared: Arc<Shared>,
    path: String,
}

pub(crate) struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Refuses connections while set.
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    published: HashMap<String, Published>,
    /// Versions to come: after so many more requests for the path.
    upcoming: HashMap<String, (usize, Published)>,
    faults: HashMap<String, Vec<(Fault, usize)>>,
    seen: Vec<Seen>,
    /// Paths held back, and how many requests wait.
    gates: HashMap<String, usize>,
    /// Grows with every `release`.
    releases: u64,
    /// Open connections, by their number.
    connections: HashMap<u64, TcpStream>,
    accepted: u64,
}

impl Published {
    /// Computed content with a strong ETag of its own and a date.
    pub(crate) fn new(seed: u64, length: u64) -> Self {
        Self {
            body: Body::Computed(Content::new(seed, length)),
            etag: Some(format!("\"{seed:x}-{length:x}\"")),
            last_modified: Some("Sun, 01 Nov 2026 00:00:00 GMT".into()),
            fields: Vec::new(),
            ranges: true,
        }
    }

    pub(crate) fn bytes(bytes: Vec<u8>) -> Self {
        let mut published = Self::new(0, bytes.len() as u64);
        published.etag = Some(format!("\"{}\"", blake3::hash(&bytes).to_hex()));
        published.body = Body::Bytes(Arc::new(bytes));
        published
    }

    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    pub(crate) fn etag(mut self, etag: Option<&str>) -> Self {
        self.etag = etag.map(Into::into);
        self
    }

    pub(crate) fn last_modified(mut self, date: Option<&str>) -> Self {
        self.last_modified = date.map(Into::into);
        self
    }

    pub(crate) fn without_ranges(mut self) -> Self {
        self.ranges = false;
        self
    }

    fn length(&self) -> u64 {
        match &self.body {
            Body::Computed(content) => content.length,
            Body::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Bytes from `offset`, with zeros past the end (for bodies that are longer than they should be).
    fn fill(&self, offset: u64, into: &mut [u8]) {
        let inside = (self.length().saturating_sub(offset)).min(into.len() as u64) as usize;
        match &self.body {
            Body::Computed(content) if inside > 0 => content.fill(offset, &mut into[..inside]),
            Body::Bytes(bytes) if inside > 0 => {
                into[..inside].copy_from_slice(&bytes[offset as usize..offset as usize + inside]);
            }
            _ => {}
        }
        into[inside..].fill(0);
    }
}

impl Origin {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), closed: AtomicBool::new(false) });
        let acceptor = Some(accept(listener, Arc::clone(&shared)));
        Self { address, shared, acceptor }
    }

    /// With a trailing slash.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn publish(&self, path: &str, published: Published) {
        self.shared.state.lock().published.insert(path.into(), published);
    }

    /// Publishes computed content and hands it back for comparison.
    pub(crate) fn publish_new(&self, path: &str, seed: u64, length: u64) -> Content {
        self.publish(path, Published::new(seed, length));
        Content::new(seed, length)
    }

    /// Publishes every file below `folder`.
    pub(crate) fn publish_folder(&self, folder: &Path) {
        for entry in walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.expect("the folder is readable")) {
            if entry.file_type().is_file() {
                let path = entry.path().strip_prefix(folder).expect("it lies inside").to_string_lossy().into_owned();
                self.publish(&format!("/{path}"), Published::bytes(std::fs::read(entry.path()).expect("readable")));
            }
        }
    }

    /// Publishes another version once `requests` more requests for the path have been answered.
    pub(crate) fn publish_after(&self, path: &str, requests: usize, published: Published) {
        self.shared.state.lock().upcoming.insert(path.into(), (requests, published));
    }

    /// Lets the next `times` requests for `path` go wrong.
    pub(crate) fn fail(&self, path: &str, fault: Fault, times: usize) {
        self.shared.state.lock().faults.entry(path.into()).or_default().push((fault, times));
    }

    /// Ends all faults and stalls.
    pub(crate) fn recover(&self) {
        self.shared.state.lock().faults.clear();
        self.release();
    }

    /// Lets stalled bodies go on.
    pub(crate) fn release(&self) {
        self.shared.state.lock().releases += 1;
        self.shared.changed.notify_all();
    }

    pub(crate) fn gate(&self, path: &str) -> Gate {
        self.shared.state.lock().gates.insert(path.into(), 0);
        Gate { shared: Arc::clone(&self.shared), path: path.into() }
    }

    /// Requests for `path` so far, with whatever query.
    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        let state = self.shared.state.lock();
        state.seen.iter().filter(|seen| seen.target.split('?').next() == Some(path)).cloned().collect()
    }

    /// Connections that are open, or whose last request is still being answered.
    pub(crate) fn connections(&self) -> usize {
        self.shared.state.lock().connections.len()
    }

    /// All requests so far.
    pub(crate) fn all_seen(&self) -> Vec<Seen> {
        self.shared.state.lock().seen.clone()
    }

    /// Targets of all requests so far.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.shared.state.lock().seen.iter().map(|seen| seen.target.clone()).collect()
    }

    /// Bytes of bodies sent for `path` so far.
    pub(crate) fn sent(&self, path: &str) -> u64 {
        self.seen(path).iter().map(|seen| seen.sent).sum()
    }

    /// Goes away: closes every connection and refuses new ones.
    pub(crate) fn go_down(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees that it shall stop.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
        self.release();
        for (_, connection) in self.shared.state.lock().connections.drain() {
            // A connection that the peer has closed already needs no more.
            drop(connection.shutdown(Shutdown::Both));
        }
    }

    /// Comes back at the same address.
    pub(crate) fn come_up(&mut self) {
        assert!(self.acceptor.is_none(), "it is up");
        let listener = TcpListener::bind(self.address).expect("the port is still ours");
        self.shared.closed.store(false, Ordering::SeqCst);
        self.acceptor = Some(accept(listener, Arc::clone(&self.shared)));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if self.acceptor.is_some() {
            self.go_down();
        }
    }
}

impl Gate {
    /// Waits until `count` requests stand before the gate.
    pub(crate) fn wait_for(&self, count: usize) {
        let mut state = self.shared.state.lock();
        while state.gates[&self.path] < count {
            let waited = self.shared.changed.wait_for(&mut state, Duration::from_secs(30));
            assert!(!waited.timed_out(), "{} of {count} requests came for {}", state.gates[&self.path], self.path);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.state.lock().gates.remove(&self.path);
        self.shared.changed.notify_all();
    }
}

impl Seen {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn accept(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        for stream in listener.incoming() {
            if shared.closed.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let number = {
                let mut state = shared.state.lock();
                state.accepted += 1;
                let number = state.accepted;
                state.connections.insert(number, stream.try_clone().expect("a descriptor is free"));
                number
            };
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let mut connection = Connection { stream, ahead: Vec::new(), shared: Arc::clone(&shared) };
                // The peer's hanging up ends a connection; nobody waits for it.
                drop(connection.serve());
                // A reset takes effect when the last descriptor is closed.
                shared.state.lock().connections.remove(&number);
            });
        }
    })
}

struct Connection {
    stream: TcpStream,
    ahead: Vec<u8>,
    shared: Arc<Shared>,
}

/// An answer, ready to be sent.
struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    published: Published,
    /// Of the body.
    start: u64,
    length: u64,
    fault: Option<Fault>,
}

impl Connection {
    fn serve(&mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        while let Some(seen) = self.read_request()? {
            let (index, fault, published) = self.admit(&seen);
            let go_on = match (fault, published) {
                (Some(Fault::Hangup), _) => false,
                (Some(Fault::Garbage), _) => {
                    self.stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")?;
                    false
                }
                (Some(Fault::Status(status)), _) => self.send_text(&seen, status, &[])?,
                (Some(Fault::Later(status, seconds)), _) => {
                    self.send_text(&seen, status, &[("Retry-After", &seconds.to_string())])?
                }
                (Some(Fault::Redirect(to)), _) => self.send_text(&seen, 302, &[("Location", &to)])?,
                (_, None) => self.send_text(&seen, 404, &[])?,
                (fault, Some(published)) => self.send(&seen, index, answer(&seen, published, fault))?,
            };
            if !go_on {
                self.stream.shutdown(Shutdown::Both)?;
                break;
            }
        }
        Ok(())
    }

    fn read_request(&mut self) -> io::Result<Option<Seen>> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Ok(None);
            }
            self.ahead.extend_from_slice(&chunk[..count]);
        };
        let text: Vec<u8> = self.ahead.drain(..end).collect();
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        let mut lines = text.split("\r\n").take_while(|line| !line.is_empty());
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default().into(), words.next().unwrap_or_default().into());
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Some(Seen { method, target, fields, sent: 0, at: Instant::now() }))
    }

    /// Notes the request, waits at its gate, and decides what it gets.
    fn admit(&self, seen: &Seen) -> (usize, Option<Fault>, Option<Published>) {
        let path = seen.target.split('?').next().unwrap_or_default();
        let mut state = self.shared.state.lock();
        state.seen.push(seen.clone());
        let index = state.seen.len() - 1;
        if let Some(waiting) = state.gates.get_mut(path) {
            *waiting += 1;
            self.shared.changed.notify_all();
            while state.gates.contains_key(path) && !self.shared.closed.load(Ordering::SeqCst) {
                self.shared.changed.wait(&mut state);
            }
        }
        let published = state.published.get(path).cloned();
        if let Some((left, _)) = state.upcoming.get_mut(path) {
            *left -= 1;
            if *left == 0 {
                let (_, next) = state.upcoming.remove(path).expect("it was just there");
                state.published.insert(path.into(), next);
            }
        }
        let fault = state.faults.get_mut(path).and_then(|faults| {
            let (fault, times) = faults.first_mut()?;
            let fault = fault.clone();
            *times -= 1;
            if *times == 0 {
                faults.remove(0);
            }
            Some(fault)
        });
        (index, fault, published)
    }

    fn send_text(&mut self, seen: &Seen, status: u16, fields: &[(&str, &str)]) -> io::Result<bool> {
        let body = format!("origin says {status}\n");
        let mut head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        if seen.method != "HEAD" {
            head.push_str(&body);
        }
        self.stream.write_all(head.as_bytes())?;
        Ok(true)
    }

    /// Sends the answer; whether the connection may go on.
    fn send(&mut self, seen: &Seen, index: usize, answer: Answer) -> io::Result<bool> {
        let mut head = format!("HTTP/1.1 {} Said\r\n", answer.status);
        for (name, value) in &answer.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.stream.write_all(head.as_bytes())?;
        if seen.method == "HEAD" || answer.status == 304 {
            return Ok(true);
        }
        let chunked = matches!(answer.fault, Some(Fault::Chunked | Fault::ChunkedCut(_)));
        let cut_at = match answer.fault {
            Some(Fault::Short(at) | Fault::Reset(at) | Fault::ChunkedCut(at)) => at,
            _ => u64::MAX,
        };
        let mut stall_at = if let Some(Fault::Stall(at)) = answer.fault { at } else { u64::MAX };
        let step = if let Some(Fault::Trickle(bytes)) = answer.fault { bytes } else { 64 << 10 };
        let mut buffer = vec![0; step as usize];
        let mut sent = 0;
        while sent < answer.length.min(cut_at) {
            if sent == stall_at {
                self.wait_for_release();
                stall_at = u64::MAX;
            }
            let count = step.min(answer.length - sent).min(cut_at - sent).min(stall_at.saturating_sub(sent).max(1));
            let piece = &mut buffer[..count as usize];
            answer.published.fill(answer.start + sent, piece);
            if let Some(Fault::Flipped(at)) = answer.fault
                && let Some(byte) = at.checked_sub(answer.start + sent).and_then(|at| piece.get_mut(at as usize))
            {
                *byte ^= 1;
            }
            if chunked {
                self.stream.write_all(format!("{count:x}\r\n").as_bytes())?;
            }
            self.stream.write_all(piece)?;
            if chunked {
                self.stream.write_all(b"\r\n")?;
            }
            sent += count;
            self.shared.state.lock().seen[index].sent = sent;
            if matches!(answer.fault, Some(Fault::Trickle(_))) {
                pause();
            }
        }
        if matches!(answer.fault, Some(Fault::Reset(_))) {
            socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
            return Err(io::Error::other("reset to order"));
        }
        if chunked && cut_at == u64::MAX {
            self.stream.write_all(b"0\r\n\r\n")?;
        }
        Ok(cut_at == u64::MAX && !matches!(answer.fault, Some(Fault::UntilClose)))
    }

    fn wait_for_release(&self) {
        let mut state = self.shared.state.lock();
        let before = state.releases;
        while state.releases == before && !self.shared.closed.load(Ordering::SeqCst) {
            self.shared.changed.wait(&mut state);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an origin that trickles is slow by the clock")]
fn pause() {
    thread::sleep(Duration::from_millis(5));
}
