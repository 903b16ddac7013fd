//! One worker: a thread with its own runtime, its own listeners and its own connections. Nothing on it blocks.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::LocalOptions,
    sync::watch,
    task::{coop::unconstrained, yield_now},
    time::{interval, sleep, sleep_until, timeout},
};

use super::{
    Config, KernelTls, Scheme,
    clients::{Denied, Seat, prefix},
    connection::{Connection, Doing, End},
    helper::Helper,
    http1::{Desk, Http1},
    http2,
    overload::{Governor, PATIENCE, own_delay},
    secure::{Handed, NoSession, Secure},
    sweeper::{Deadlines, Sweeper},
    terms::{self, Maker, Offered},
    turns::{self, Shares, Turns, in_turn},
    wire::Plain,
};
use crate::{
    health::QueueDelay,
    net::tls::{Established, Protocol, Server, Session, Version},
    storage::lost_pages,
    sys::{Phase, affinity::cpu_time_of_this_thread, phase::stopping, socket},
    telemetry::metrics::{CloseReason, Handshake, Refused, Shed, WorkerMetrics},
};

/// How often room is made for connections, and what the kernel counts is asked for.
const EVERY_SECOND: Duration = Duration::from_secs(1);
/// How often the worker's idea of time moves on, and how long it has been kept waiting and deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The same while it is kept waiting.
const CLOSE_TICK: Duration = Duration::from_millis(10);
/// How much longer the kernel waits for a client that acknowledges nothing than the sweeper does.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(5);
/// Time for which connections are accepted before the worker looks after the others, looked at after so many...
const ACCEPT_TURN: Duration = Duration::from_micros(100);
/// ... or this part of the time that the others took before, where that is more: who comes in a crowd does not wait until all who are served have had their turn many times, and
/// they wait an eighth longer at most, whatever listeners there are.
const ACCEPT_SHARE: u32 = 8;
const ACCEPT_LOOK: u32 = 8;
/// A client of whom more than this part of all connections wait for their turn gets no more of them, whatever it costs.
const CROWDS_MIN: usize = 4;
/// While fewer are open than this part of all that are allowed, those of who costs much may wait for however long.
const ROOMY: usize = 2;
/// Rest after the system has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refused clients that are told so at the same time, per worker; further ones are just closed.
const REFUSALS_MAX: usize = 64;
/// Clients that are not taken in for who they are and told so at the same time, per worker; further ones are just closed.
const DENIALS_MAX: usize = 16;
/// Longest wait for a refused client to read why.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// What a worker needs.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) listeners: Vec<(StdListener, Scheme)>,
    /// What viewers are served by.
    pub(super) offered: Offered,
    pub(super) maker: Maker,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// Connections of all workers.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) phase: watch::Receiver<Phase>,
    /// TLS, where viewers are served by it.
    pub(super) tls: Option<Arc<Server>>,
    /// Who does the costly part of handshakes, where viewers are served by TLS.
    pub(super) helper: Option<Helper>,
    /// How many workers there are.
    pub(super) workers: usize,
    /// When time began, for all workers.
    pub(super) epoch: Instant,
    /// Grows as long as the worker turns.
    pub(super) pulse: Arc<AtomicU64>,
}

/// What the tasks of a worker share.
struct Shared {
    metrics: Arc<WorkerMetrics>,
    sweeper: Sweeper,
    desk: Rc<Desk>,
    turns: Rc<Turns>,
    now_millis: Rc<Cell<u64>>,
    here: Cell<usize>,
    refusing: Cell<usize>,
    open: Arc<AtomicUsize>,
    phase: watch::Receiver<Phase>,
    tls: Option<Arc<Server>>,
    helper: Option<Helper>,
    workers: usize,
    /// Clients being told why they are not taken in, of whom nobody else counts the connections.
    denying: Cell<usize>,
    pulse: Arc<AtomicU64>,
}

impl Worker {
    /// Serves until draining is over.
    ///
    /// # Errors
    /// The runtime cannot be made or the listeners cannot be taken over.
    pub(super) fn run(self) -> io::Result<()> {
        lost_pages::survive_on_this_thread()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Only mapping files and the fallback for cold reads block, each in bounded number.
            .max_blocking_threads(8)
            .thread_name("oca-worker-blocking")
            .build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> io::Result<()> {
        let _own_ring = self.maker.residency.attend();
        let Self { mut offered, maker, .. } = self;
        let terms = offered.now();
        let desk = Rc::new(Desk::new(maker.handler(&terms)));
        offered.take_up(terms.number);
        let following = tokio::task::spawn_local(terms::follow(offered, maker, Rc::clone(&desk)));
        let shared = Rc::new(Shared {
            metrics: self.metrics,
            sweeper: Sweeper::default(),
            desk,
            turns: Rc::new(Turns::new()),
            now_millis: Rc::new(Cell::new(1)),
            here: Cell::new(0),
            refusing: Cell::new(0),
            open: self.open,
            phase: self.phase,
            tls: self.tls,
            helper: self.helper,
            workers: self.workers,
            denying: Cell::new(0),
            pulse: self.pulse,
        });
        shared.now_millis.set(millis_since(self.epoch));
        let desk = Rc::clone(&shared.desk);
        let percent = move || {
            let config = &desk.handler().config;
            Shares { called: config.newcomers_percent, costly: config.costly_permille }
        };
        let clock = Rc::clone(&shared.now_millis);
        let caller = tokio::task::spawn_local(turns::call(Rc::clone(&shared.turns), clock, percent));
        let keeper = tokio::task::spawn_local(keep_time(Rc::clone(&shared), self.epoch));
        let mut accepting = Vec::new();
        let share = ACCEPT_SHARE * u32::try_from(self.listeners.len()).unwrap_or(u32::MAX).clamp(1, 1 << 16);
        for (listener, scheme) in self.listeners {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            accepting.push(tokio::task::spawn_local(accept(Rc::clone(&shared), (listener, scheme), share)));
        }
        let mut phase = shared.phase.clone();
        stopping(&mut phase).await;
        for task in accepting {
            task.abort();
        }
        shared.finish().await;
        keeper.abort();
        caller.abort();
        following.abort();
        Ok(())
    }
}

/// Moves the worker's coarse clock, and looks at deadlines.
async fn keep_time(shared: Rc<Shared>, epoch: Instant) {
    let (mut last_second, mut last) = (0, Instant::now());
    // Of who goes first, and of who is called.
    let (mut delay, mut called) = (QueueDelay::default(), QueueDelay::default());
    let mut bound = shared.desk.handler().config.queue_delay_max;
    let (mut governor, mut governor_of_called) = (Governor::new(bound), Governor::new(bound));
    let runtime = tokio::runtime::Handle::current().metrics();
    let mut busy = runtime.worker_total_busy_duration(0);
    loop {
        // What is late here waits in the queue in which requests wait: it is measured by waiting in it.
        let due = last + if delay.is_felt() || called.is_felt() { CLOSE_TICK } else { TICK };
        sleep_until(due.into()).await;
        let at = Instant::now();
        let (late, elapsed) = (at.saturating_duration_since(due), at - last);
        let before = std::mem::replace(&mut busy, runtime.worker_total_busy_duration(0));
        let worked = busy.saturating_sub(before);
        shared.turns.set_worked(worked, elapsed);
        let [late, late_called] = [late, shared.turns.wait_of_late()].map(|late| own_delay(late, elapsed, worked));
        delay.add(late, elapsed);
        called.add(late_called, elapsed);
        let handler = shared.desk.handler();
        if bound != handler.config.queue_delay_max {
            bound = handler.config.queue_delay_max;
            (governor, governor_of_called) = (Governor::new(bound), Governor::new(bound));
        }
        let (refused, refused_late) = (governor.look(late, elapsed), governor_of_called.look(late_called, elapsed));
        handler.shedding.set((refused, refused_late));
        shared.turns.set_client_percent(handler.config.client_percent);
        shared
            .metrics
            .set_pressure(delay.average().max(called.average()), refused.newcomers.max(refused_late.newcomers));
        shared.metrics.set_called_delay(called.average());
        last = at;
        let now = millis_since(epoch);
        shared.now_millis.set(now);
        shared.pulse.fetch_add(1, Ordering::Relaxed);
        let deadlines = Deadlines::new(&handler.config);
        let left = shared.sweeper.sweep(&deadlines.while_overloaded(handler.shedding.is_on()), elapsed);
        shared.turns.let_go(left);
        shared.turns.forgive(now);
        if u128::from(now - last_second) >= EVERY_SECOND.as_millis() {
            last_second = now;
            shared.make_room(&handler.config);
            let waits = socket::disk_waits_of_this_thread();
            shared.metrics.set_disk_waits(waits.major_faults, waits.blocks_read);
            let helped = shared.helper.as_ref().map(Helper::cpu_time).unwrap_or_default();
            shared.metrics.set_cpu_time(cpu_time_of_this_thread() + helped);
        }
    }
}

/// At least 1: zero stands for "never".
fn millis_since(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
}

/// `share`: of what part of the others' time connections are accepted, for this listener alone.
async fn accept(shared: Rc<Shared>, (listener, scheme): (TcpListener, Scheme), share: u32) {
    let (mut accepted, mut begun, mut turn) = (0_u32, Instant::now(), ACCEPT_TURN);
    loop {
        // As many at once as have come, rather than as many as tokio has a task do: who is too much hears so at once.
        match unconstrained(listener.accept()).await {
            Ok((stream, peer)) => {
                shared.take(stream, peer, scheme);
                accepted += 1;
                if accepted.is_multiple_of(ACCEPT_LOOK) && begun.elapsed() > turn {
                    let ended = Instant::now();
                    yield_now().await;
                    begun = Instant::now();
                    turn = ACCEPT_TURN.max((begun - ended) / share);
                }
            }
            Err(err) => {
                // A client that left in the queue is its own affair; without descriptors, asking again at once does not help.
                if matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) {
                    tracing::warn!(error = %err, "connections cannot be accepted");
                    shared.metrics.accept_failed();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Shared {
    fn take(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, scheme: Scheme) {
        let handler = self.desk.handler();
        // First: who is refused here takes no place from anybody.
        let admitted = handler.clients.as_ref().map(|clients| clients.admit(peer.ip(), self.now_millis.get()));
        let seat = match admitted.transpose() {
            Ok(seat) => seat.flatten(),
            Err(denied) => return self.deny(stream, peer, scheme, denied),
        };
        let networks = &handler.config.clients;
        let prefix = prefix(peer.ip(), (networks.ipv4_prefix, networks.ipv6_prefix));
        let most = (handler.config.connections_max / CROWDS_MIN).div_ceil(self.workers);
        let bounded = handler.clients.as_ref().is_none_or(|clients| !clients.is_unlimited(peer.ip()));
        let crowd = bounded && {
            let longest = handler.config.queue_delay_max * PATIENCE;
            let plenty = self.open.load(Ordering::Acquire) < handler.config.connections_max / ROOMY;
            self.turns.is_crowd(prefix, (most, longest, plenty), self.now_millis.get())
        };
        let client = seat.as_ref().map(|seat| Arc::clone(&seat.client));
        let open = self.open.fetch_add(1, Ordering::AcqRel);
        let counted = Counted { shared: Rc::clone(self), seat };
        self.here.set(self.here.get() + 1);
        if crowd || open >= handler.config.connections_max {
            self.metrics.refused(if crowd { Refused::Crowd } else { Refused::Full });
            // A client of HTTPS could be told only after a handshake, which is what there is no room for.
            if self.refusing.get() < REFUSALS_MAX && scheme == Scheme::Http {
                tokio::task::spawn_local(refuse(Rc::clone(self), stream, counted));
            }
            return;
        }
        self.metrics.accepted();
        if let Err(err) = tune(&stream, &handler.config) {
            tracing::debug!(error = %err, "connection cannot be tuned");
        }
        let whose = (peer, prefix, bounded.then(|| self.turns.together(prefix, self.now_millis.get())));
        let connection = Connection::new(whose, client, Arc::clone(&self.metrics), Rc::clone(&self.now_millis));
        let stream = Rc::new(stream);
        connection.set_socket(Some(&stream));
        connection.secure.set(scheme == Scheme::Https);
        self.sweeper.add(&stream, &connection);
        let shared = Rc::clone(self);
        let kept = (counted, Rc::clone(&stream), Rc::clone(&connection));
        // Two kinds of tasks: a plain connection does not pay for the size of the other's.
        match scheme {
            Scheme::Http => self.spawn(kept, shared.serve_plain(stream, connection)),
            Scheme::Https => self.spawn(kept, shared.serve_secure(stream, connection)),
        }
    }

    /// Closes idle connections and those on which a head does not come, the longest so first, while nearly all that are allowed are open: as many of this worker's as it has of all.
    fn make_room(&self, config: &Config) {
        let (open, here) = (self.open.load(Ordering::Acquire), self.here.get());
        let high = config.connections_max * usize::from(config.connections_percent) / 100;
        if open > high && config.connections_percent < 100 {
            self.sweeper.close_longest_idle(((open - high) * here).div_ceil(open));
        }
    }

    /// Refuses a connection for who it is from: by HTTP as long as few are being told so, else by closing it.
    fn deny(self: &Rc<Self>, stream: TcpStream, client: SocketAddr, scheme: Scheme, denied: Denied) {
        tracing::debug!(%client, reason = denied.why.label(), "a connection is refused for who it is from");
        self.metrics.client_denied(denied.why);
        // A client of HTTPS could be told only after a handshake, which is worth more than what it asks for.
        if scheme == Scheme::Http && self.denying.get() < DENIALS_MAX {
            let shared = Rc::clone(self);
            self.denying.set(self.denying.get() + 1);
            tokio::task::spawn_local(async move {
                tell(&stream, &denial(denied)).await;
                shared.denying.set(shared.denying.get() - 1);
            });
        }
    }

    fn spawn(
        self: &Rc<Self>,
        (counted, stream, connection): (Counted, Rc<TcpStream>, Rc<Connection>),
        serving: impl Future<Output = io::Result<()>> + 'static,
    ) {
        let (metrics, client) = (Arc::clone(&self.metrics), connection.peer);
        let serving = in_turn(Rc::clone(&self.turns), Rc::clone(&connection), serving);
        tokio::task::spawn_local(async move {
            let served = AssertUnwindSafe(serving).catch_unwind().await;
            connection.end(if matches!(served, Ok(None)) { End::Left } else { End::Served });
            // What it still had to do elsewhere is for nobody.
            counted.shared.turns.let_go(connection.waiters.leave());
            match served {
                // The client has had its answers, or left while it waited for its turn.
                Ok(None | Some(Ok(()))) => {}
                Ok(Some(Err(err))) => {
                    // Clients that hang up, and those that write no HTTP, are everyday; the error says which.
                    tracing::debug!(%client, error = %err, "connection ended");
                    metrics.connection_error();
                }
                Err(_) => {
                    metrics.panicked();
                    tracing::error!(%client, "a request panicked; its connection is closed");
                }
            }
            if connection.comes_last()
                && let Some(helper) = &counted.shared.helper
                && let Ok(Ok(stream)) = Rc::try_unwrap(stream).map(TcpStream::into_std)
            {
                helper.close(stream).await;
            }
            drop(counted);
        });
    }

    async fn serve_plain(self: Rc<Self>, stream: Rc<TcpStream>, connection: Rc<Connection>) -> io::Result<()> {
        let wire = Plain::new(stream, Rc::clone(&connection));
        Http1::new(wire, connection, Rc::clone(&self.desk)).serve().await
    }

    async fn serve_secure(self: Rc<Self>, stream: Rc<TcpStream>, connection: Rc<Connection>) -> io::Result<()> {
        let Some(server) = self.tls.as_ref() else { return Err(io::ErrorKind::Unsupported.into()) };
        if self.desk.handler().shedding.refuses_handshake(&connection) {
            self.metrics.shed(Shed::Handshake);
            return Ok(());
        }
        let config = Arc::clone(&self.desk.handler().config);
        let handshakes_max = config.tls.handshakes_max.div_ceil(self.workers);
        connection.set_handout_max(config.tls.write_buffer.0);
        connection.begin(Doing::Handshake);
        self.sweeper.begin_handshake(&stream, &connection, handshakes_max);
        let mut under_way = UnderWay { shared: &self, connection: &connection, outcome: Handshake::Left };
        let session = Session::new(Arc::clone(server));
        let mut wire = Secure::new(Rc::clone(&stream), Rc::clone(&connection), session, &config);
        let shaken = wire.handshake(self.helper.as_ref(), config.tls.handshake_timeout).await;
        under_way.outcome = outcome(&shaken, connection.closing.get());
        drop(under_way);
        if shaken.is_ok() && connection.comes_last() {
            // What viewers may come behind is one of the two, and not both.
            yield_now().await;
        }
        match shaken {
            Ok(Established { protocol: Protocol::Http1, .. }) => {
                let desk = Rc::clone(&self.desk);
                if config.tls.kernel == KernelTls::Off {
                    return Http1::new(wire, connection, desk).serve().await;
                }
                match wire.hand_over()? {
                    Handed::Over(wire) => Box::pin(Http1::new(wire, connection, desk).serve()).await,
                    Handed::Kept(wire) => Box::pin(Http1::new(*wire, connection, desk).serve()).await,
                }
            }
            Ok(Established { protocol: Protocol::Http2, .. }) => {
                // Boxed: nearly all clients speak the other, whose connections should not pay for the size of this.
                let on = (Rc::clone(&self.desk), Rc::clone(&self.turns));
                Box::pin(http2::serve(wire, connection, on, self.phase.clone())).await
            }
            Err(NoSession::Left) => Ok(()),
            Err(NoSession::Plaintext) => {
                let body = "this port speaks HTTPS\n";
                let answer = format!(
                    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                tell(&stream, &answer).await;
                Ok(())
            }
            Err(NoSession::Failed(err)) => Err(err),
        }
    }

    /// Lets responses finish, for as long as draining may take.
    async fn finish(&self) {
        self.desk.draining.set(true);
        self.sweeper.close_idle();
        let finished = timeout(self.desk.handler().config.drain_timeout, async {
            let mut ticks = interval(TICK);
            while self.here.get() > 0 {
                ticks.tick().await;
                self.sweeper.close_idle();
            }
        });
        if finished.await.is_err() {
            tracing::warn!(connections = self.here.get(), "drain timeout is over; responses are cut");
            self.sweeper.close_all();
        }
    }
}

/// A handshake goes on until this is dropped, and has come to that then: unless it is known better, the client has left.
struct UnderWay<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    outcome: Handshake,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.shared.sweeper.end_handshake(self.connection);
        self.shared.metrics.handshake(self.outcome);
    }
}

/// A connection counts until this is dropped.
struct Counted {
    shared: Rc<Shared>,
    seat: Option<Seat>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::AcqRel);
        self.shared.here.set(self.shared.here.get() - 1);
        self.shared.metrics.ended();
        if let Some(seat) = self.seat.take() {
            seat.leave(self.shared.now_millis.get());
        }
    }
}

fn tune(stream: &TcpStream, config: &Config) -> io::Result<()> {
    let tuned = socket2::SockRef::from(stream);
    tuned.set_tcp_nodelay(true)?;
    if config.unsent_max.0 > 0 {
        tuned.set_tcp_notsent_lowat(u32::try_from(config.unsent_max.0).unwrap_or(u32::MAX))?;
    }
    let send_buffer = match config.send_buffer.0 {
        // The round trip of the handshake: who is near needs no megabytes in flight, and the kernel would take them.
        0 if !config.near_rtt.is_zero() && socket::round_trip(stream)? <= config.near_rtt => config.near_send_buffer.0,
        bytes => bytes,
    };
    if send_buffer > 0 {
        tuned.set_send_buffer_size(usize::try_from(send_buffer).unwrap_or(usize::MAX))?;
    }
    // A client whose host has vanished acknowledges nothing: as good as stalled. The kernel, which cannot say why, waits longer
    // than the sweeper, which counts it.
    tuned.set_tcp_user_timeout(Some(config.stall_timeout + USER_TIMEOUT_MARGIN))
}

/// Tells a client that there are too many, and waits a moment for it to read that: closing at once would reset the connection
/// and lose the answer.
async fn refuse(shared: Rc<Shared>, stream: TcpStream, counted: Counted) {
    shared.refusing.set(shared.refusing.get() + 1);
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        shared.desk.handler().config.retry_after.as_secs().max(1)
    );
    tell(&stream, &answer).await;
    shared.refusing.set(shared.refusing.get() - 1);
    drop(counted);
}

/// What is told to who is not taken in.
fn denial(denied: Denied) -> String {
    let (status, text, retry) = match denied.retry_after {
        None => ("403 Forbidden", "your network is not served here\n", String::new()),
        Some(seconds) => (
            "429 Too Many Requests",
            "too many connections or requests from your network, try again later\n",
            format!("Retry-After: {seconds}\r\n"),
        ),
    };
    format!(
        "HTTP/1.1 {status}\r\n{retry}Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    )
}

async fn tell(stream: &TcpStream, answer: &str) {
    let told = async {
        stream.writable().await?;
        stream.try_write(answer.as_bytes())?;
        rustix::net::shutdown(stream, rustix::net::Shutdown::Write)?;
        let mut waste = [0_u8; 1024];
        // What it has already asked is read and dropped, up to what a head may be.
        for _ in 0..16 {
            stream.readable().await?;
            match stream.try_read(&mut waste) {
                Ok(0) => break,
                Err(err) if err.kind() != io::ErrorKind::WouldBlock => return Err(err),
                _ => {}
            }
        }
        io::Result::Ok(())
    };
    if let Ok(Err(err)) = timeout(REFUSAL_PATIENCE, told).await {
        tracing::debug!(error = %err, "a refused client was gone before it was told");
    }
}

/// What a handshake came to.
fn outcome(shaken: &Result<Established, NoSession>, closing: Option<CloseReason>) -> Handshake {
    match shaken {
        Ok(Established { version: Version::Tls12, resumed: false, .. }) => Handshake::Full12,
        Ok(Established { version: Version::Tls12, resumed: true, .. }) => Handshake::Resumed12,
        Ok(Established { version: Version::Tls13, resumed: false, .. }) => Handshake::Full13,
        Ok(Established { version: Version::Tls13, resumed: true, .. }) => Handshake::Resumed13,
        Err(_) if closing.is_some() => Handshake::Cut,
        Err(NoSession::Left) => Handshake::Left,
        Err(NoSession::Plaintext) => Handshake::Plaintext,
        // Who hangs up in the middle is gone rather than wrong.
        Err(NoSession::Failed(err)) if err.kind() == io::ErrorKind::ConnectionReset => Handshake::Left,
        Err(NoSession::Failed(_)) => Handshake::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asset::ByteCount;

    async fn tuned_by(config: &Config) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.expect("accepted");
        tune(&stream, config).expect("tuned");
        drop(client);
        socket2::SockRef::from(&stream).send_buffer_size().expect("known")
    }

    #[tokio::test]
    async fn only_near_clients_have_a_bound_of_their_own_in_flight() {
        // The kernel doubles what it is asked for (socket(7)).
        let near =
            Config { near_rtt: Duration::from_secs(10), near_send_buffer: ByteCount(100_000), ..Config::default() };
        assert_eq!(tuned_by(&near).await, 200_000);
        let distant = Config { near_rtt: Duration::ZERO, ..near.clone() };
        assert_ne!(tuned_by(&distant).await, 200_000, "the kernel decides");
        let bound = Config { send_buffer: ByteCount(50_000), ..near };
        assert_eq!(tuned_by(&bound).await, 100_000, "what is set for all is set for the near too");
    }
}
