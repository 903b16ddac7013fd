//! A long line between two network namespaces, made in user space where a kernel has no `netem`.
//!
//! Each namespace has a TUN device. Two threads read whole IP packets from one and write them into the other: lost by a seeded
//! choice, dropped where the queue in front of the line is full, sent no faster than the line's rate, and as late as it is long.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tappers::{Interface, Tun};

use super::support::{Fallible, random::Random};

/// The server's address and the viewer's.
pub(crate) const SERVER: &str = "10.97.0.1";
const VIEWER: &str = "10.97.0.2";
/// How long a packet waits in front of the line at most: what routers are commonly given for a few viewers' rate.
const QUEUE_MAX: Duration = Duration::from_millis(50);
/// Packets read before those that are due are looked at again.
const BATCH: usize = 32;

/// A network namespace; gone with its last process and the last handle on it.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    fn new(role: &str) -> io::Result<Self> {
        let name = format!("oca-distant-{}-{role}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let handle = File::open(format!("/run/netns/{name}"));
        // The handle keeps it; without a name, nothing is left behind however the bench ends.
        ip(&format!("netns del {name}"))?;
        Ok(Self(handle?))
    }

    /// Does `work` in a thread inside of it. Processes begun there, and sockets, belong to it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Fallible<T> + Send) -> Fallible<T> {
        use std::os::fd::AsFd as _;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            inside.join().map_err(|_| "a thread in a namespace panicked")?
        })
    }
}

fn ip(arguments: &str) -> io::Result<()> {
    let run = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output()?;
    let told = String::from_utf8_lossy(&run.stderr);
    if run.status.success() {
        Ok(())
    } else if told.contains("not permitted") || told.contains("denied") {
        Err(io::Error::new(ErrorKind::PermissionDenied, format!("ip {arguments}: {}", told.trim())))
    } else {
        Err(io::Error::other(format!("ip {arguments}: {}", told.trim())))
    }
}

/// What a line is like; can be changed while it is in use.
#[derive(Debug)]
struct Shape {
    delay: AtomicU64,
    lost_per_million: AtomicU64,
    /// Nanoseconds that a byte takes, times 1024.
    byte_nanos_1024: u64,
    mtu: usize,
    ended: AtomicBool,
    lost: AtomicU64,
    overflowed: AtomicU64,
}

/// What was carried in one direction.
struct Carried {
    /// Microseconds after its time that a packet was handed on.
    late: Histogram<u64>,
}

/// Two namespaces and the line between them; ended when dropped.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) server: Namespace,
    pub(crate) viewer: Namespace,
    shape: Arc<Shape>,
    carriers: Vec<JoinHandle<Fallible<Carried>>>,
}

impl Line {
    /// A line of `rate` megabits per second.
    ///
    /// # Errors
    /// `PermissionDenied` where this process may not make namespaces, or there are no TUN devices to be had.
    pub(crate) fn new(rate: u64, mtu: usize, seed: u64) -> Fallible<Self> {
        let (server, viewer) = (Namespace::new("server")?, Namespace::new("viewer")?);
        let near = Arc::new(server.within(|| device(SERVER, VIEWER, mtu))?);
        let far = Arc::new(viewer.within(|| device(VIEWER, SERVER, mtu))?);
        let shape = Arc::new(Shape {
            delay: AtomicU64::new(0),
            lost_per_million: AtomicU64::new(0),
            byte_nanos_1024: 8_000 * 1024 / rate,
            mtu,
            ended: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        });
        let ends = [(Arc::clone(&near), Arc::clone(&far)), (far, near)];
        let carrier = |(number, (from, to)): (u64, (Arc<Tun>, Arc<Tun>))| {
            let (shape, random) = (Arc::clone(&shape), Random::new(seed + number));
            std::thread::spawn(move || carry(&from, &to, &shape, random))
        };
        let carriers = (0..).zip(ends).map(carrier).collect();
        Ok(Self { server, viewer, shape, carriers })
    }

    /// From now on packets take `round_trip / 2` each way, and a part of them is lost.
    pub(crate) fn set(&self, round_trip: Duration, lost_per_million: u64) {
        self.shape.delay.store((round_trip / 2).as_nanos() as u64, Ordering::Relaxed);
        self.shape.lost_per_million.store(lost_per_million, Ordering::Relaxed);
    }

    /// From now on the server's new connections use `name` for congestion control.
    pub(crate) fn control(&self, name: &str) -> Fallible<()> {
        // The sysctl is refused outside of the first namespace for what the first one does not allow everyone; a route is not.
        let route = format!("route replace {VIEWER} dev far src {SERVER} congctl {name}");
        self.server.within(|| Ok(ip(&route)?))
    }

    /// Ends it, and says how well it was kept.
    pub(crate) fn end(mut self) -> Fallible<String> {
        self.shape.ended.store(true, Ordering::Relaxed);
        let mut late = Histogram::<u64>::new(3)?;
        for carrier in self.carriers.drain(..) {
            late.add(carrier.join().map_err(|_| "a carrier panicked")??.late)?;
        }
        Ok(format!(
            "{} packets carried, {} lost by choice, {} dropped in front of a full queue; handed on later than was due by {} us (p50), \
             {} us (p99), {} us (most)",
            late.len(),
            self.shape.lost.load(Ordering::Relaxed),
            self.shape.overflowed.load(Ordering::Relaxed),
            late.value_at_quantile(0.5),
            late.value_at_quantile(0.99),
            late.max(),
        ))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shape.ended.store(true, Ordering::Relaxed);
    }
}

/// A TUN device of the namespace that this thread is in.
fn device(own: &str, peer: &str, mtu: usize) -> Fallible<Tun> {
    let mut tun = Tun::new_named(Interface::new("far")?)?;
    tun.set_nonblocking(true)?;
    ip("link set lo up")?;
    ip(&format!("addr add {own} peer {peer} dev far"))?;
    ip(&format!("link set far mtu {mtu} txqueuelen 10000 up"))?;
    // What one connection has learnt is not what the next one begins with.
    std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")?;
    Ok(tun)
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

fn carry(from: &Tun, to: &Tun, shape: &Shape, mut random: Random) -> Fallible<Carried> {
    // The line is to be as long as it says however busy the machine is; it still works where that is refused.
    if let Err(err) = rustix::process::setpriority_process(None, -10) {
        eprintln!("the line runs without priority: {err}");
    }
    // Bounded: the line's rate times its delay, and `QUEUE_MAX` more.
    let mut queue: VecDeque<Packet> = VecDeque::new();
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut free_at = Instant::now();
    let mut late = Histogram::<u64>::new_with_max(60_000_000, 3)?;
    while !shape.ended.load(Ordering::Relaxed) {
        let mut now = Instant::now();
        while let Some(packet) = queue.pop_front_if(|packet| packet.due <= now) {
            late.saturating_record((now - packet.due).as_micros() as u64);
            if let Err(err) = to.send(&packet.bytes) {
                return Err(format!("a packet cannot be handed on: {err}").into());
            }
            spare.push(packet.bytes);
            now = Instant::now();
        }
        let next = queue.front().map_or(Duration::from_millis(50), |packet| packet.due.saturating_duration_since(now));
        let next = Timespec { tv_sec: next.as_secs() as i64, tv_nsec: i64::from(next.subsec_nanos()) };
        if poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&next))? == 0 {
            continue;
        }
        for _ in 0..BATCH {
            let mut bytes = spare.pop().unwrap_or_default();
            bytes.resize(shape.mtu, 0);
            let length = match from.recv(&mut bytes) {
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    spare.push(bytes);
                    break;
                }
                length => length?,
            };
            bytes.truncate(length);
            now = Instant::now();
            if random.below(1_000_000) < shape.lost_per_million.load(Ordering::Relaxed) {
                shape.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            free_at = free_at.max(now);
            if free_at - now > QUEUE_MAX {
                shape.overflowed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            free_at += Duration::from_nanos(length as u64 * shape.byte_nanos_1024 / 1024);
            let due = free_at + Duration::from_nanos(shape.delay.load(Ordering::Relaxed));
            queue.push_back(Packet { due, bytes });
        }
    }
    Ok(Carried { late })
}
