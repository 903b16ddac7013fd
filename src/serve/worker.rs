//! One worker: a thread with its own runtime, its own listeners and its own connections. Nothing on it blocks.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::LocalOptions,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Config, KernelTls, Scheme,
    connection::{Connection, Doing},
    handler::Handler,
    http1::{Desk, Http1},
    http2,
    secure::{Handed, NoSession, Secure},
    sweeper::{Deadlines, Sweeper},
    wire::Plain,
};
use crate::{
    net::tls::{Established, Protocol, Server, Session, Version},
    storage::lost_pages,
    sys::{Phase, phase::draining, socket},
    telemetry::metrics::{CloseReason, Handshake, WorkerMetrics},
};

/// How often deadlines are looked at.
const SWEEP: Duration = Duration::from_millis(1000);
/// How often the worker's idea of time moves on.
const TICK: Duration = Duration::from_millis(100);
/// How much longer the kernel waits for a client that acknowledges nothing than the sweeper does.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(5);
/// Rest after the system has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refused clients that are told so at the same time, per worker; further ones are just closed.
const REFUSALS_MAX: usize = 64;
/// Longest wait for a refused client to read why.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// What a worker needs.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) config: Arc<Config>,
    pub(super) listeners: Vec<(StdListener, Scheme)>,
    pub(super) handler: Handler,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// Connections of all workers.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) connections_max: usize,
    pub(super) phase: watch::Receiver<Phase>,
    /// TLS, where viewers are served by it.
    pub(super) tls: Option<Arc<Server>>,
    /// Handshakes of this worker under way.
    pub(super) handshakes_max: usize,
}

/// What the tasks of a worker share.
struct Shared {
    config: Arc<Config>,
    handler: Rc<Handler>,
    metrics: Arc<WorkerMetrics>,
    sweeper: Sweeper,
    desk: Rc<Desk>,
    now_millis: Rc<Cell<u64>>,
    here: Cell<usize>,
    refusing: Cell<usize>,
    open: Arc<AtomicUsize>,
    connections_max: usize,
    phase: watch::Receiver<Phase>,
    tls: Option<Arc<Server>>,
    handshakes_max: usize,
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
        let shared = Rc::new(Shared {
            config: self.config,
            handler: Rc::new(self.handler),
            metrics: self.metrics,
            sweeper: Sweeper::default(),
            desk: Rc::default(),
            now_millis: Rc::new(Cell::new(1)),
            here: Cell::new(0),
            refusing: Cell::new(0),
            open: self.open,
            connections_max: self.connections_max,
            phase: self.phase,
            tls: self.tls,
            handshakes_max: self.handshakes_max,
        });
        let keeper = tokio::task::spawn_local(keep_time(Rc::clone(&shared)));
        let mut accepting = Vec::new();
        for (listener, scheme) in self.listeners {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            accepting.push(tokio::task::spawn_local(accept(Rc::clone(&shared), listener, scheme)));
        }
        let mut phase = shared.phase.clone();
        draining(&mut phase).await;
        for task in accepting {
            task.abort();
        }
        shared.finish().await;
        keeper.abort();
        Ok(())
    }
}

/// Moves the worker's coarse clock, and looks at deadlines.
async fn keep_time(shared: Rc<Shared>) {
    let begun = Instant::now();
    let deadlines = Deadlines::new(&shared.config);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut swept = 0;
    loop {
        ticks.tick().await;
        let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        shared.now_millis.set(now);
        if u128::from(now - swept) >= SWEEP.as_millis() {
            swept = now;
            shared.sweeper.sweep(&deadlines);
            let waits = socket::disk_waits_of_this_thread();
            shared.metrics.set_disk_waits(waits.major_faults, waits.blocks_read);
        }
    }
}

async fn accept(shared: Rc<Shared>, listener: TcpListener, scheme: Scheme) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => shared.take(stream, peer, scheme),
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
        let open = self.open.fetch_add(1, Ordering::AcqRel);
        let counted = Counted { shared: Rc::clone(self) };
        self.here.set(self.here.get() + 1);
        if open >= self.connections_max {
            self.metrics.refused();
            // A client of HTTPS could be told only after a handshake, which is what there is no room for.
            if self.refusing.get() < REFUSALS_MAX && scheme == Scheme::Http {
                tokio::task::spawn_local(refuse(Rc::clone(self), stream, counted));
            }
            return;
        }
        self.metrics.accepted();
        if let Err(err) = tune(&stream, &self.config) {
            tracing::debug!(error = %err, "connection cannot be tuned");
        }
        let connection = Connection::new(peer, Arc::clone(&self.metrics), Rc::clone(&self.now_millis));
        let stream = Rc::new(stream);
        self.sweeper.add(&stream, &connection);
        let shared = Rc::clone(self);
        // Two kinds of tasks: a plain connection does not pay for the size of the other's.
        match scheme {
            Scheme::Http => self.spawn(counted, peer, async move { shared.serve_plain(stream, connection).await }),
            Scheme::Https => self.spawn(counted, peer, async move { shared.serve_secure(stream, connection).await }),
        }
    }

    fn spawn(
        self: &Rc<Self>,
        counted: Counted,
        client: SocketAddr,
        serving: impl Future<Output = io::Result<()>> + 'static,
    ) {
        let metrics = Arc::clone(&self.metrics);
        tokio::task::spawn_local(async move {
            match AssertUnwindSafe(serving).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => {
                    // Clients that hang up, and those that write no HTTP, are everyday; the error says which.
                    tracing::debug!(%client, error = %err, "connection ended");
                    metrics.connection_error();
                }
                Err(_) => {
                    metrics.panicked();
                    tracing::error!(%client, "a request panicked; its connection is closed");
                }
            }
            drop(counted);
        });
    }

    async fn serve_plain(self: Rc<Self>, stream: Rc<TcpStream>, connection: Rc<Connection>) -> io::Result<()> {
        let wire = Plain::new(stream, Rc::clone(&connection));
        Http1::new(wire, connection, Rc::clone(&self.handler), Rc::clone(&self.desk)).serve().await
    }

    async fn serve_secure(self: Rc<Self>, stream: Rc<TcpStream>, connection: Rc<Connection>) -> io::Result<()> {
        let Some(server) = self.tls.as_ref() else { return Err(io::ErrorKind::Unsupported.into()) };
        connection.set_handout_max(self.config.tls.write_buffer.0);
        connection.secure.set(true);
        connection.begin(Doing::Handshake);
        self.sweeper.begin_handshake(&stream, &connection, self.handshakes_max);
        let session = Session::new(Arc::clone(server));
        let mut wire = Secure::new(Rc::clone(&stream), Rc::clone(&connection), session, &self.config);
        let shaken = wire.handshake().await;
        self.sweeper.end_handshake(&connection);
        self.metrics.handshake(outcome(&shaken, connection.closing.get()));
        match shaken {
            Ok(Established { protocol: Protocol::Http1, .. }) => {
                let (handler, desk) = (Rc::clone(&self.handler), Rc::clone(&self.desk));
                if self.config.tls.kernel == KernelTls::Off {
                    return Http1::new(wire, connection, handler, desk).serve().await;
                }
                match wire.hand_over()? {
                    Handed::Over(wire) => Box::pin(Http1::new(wire, connection, handler, desk).serve()).await,
                    Handed::Kept(wire) => Box::pin(Http1::new(*wire, connection, handler, desk).serve()).await,
                }
            }
            Ok(Established { protocol: Protocol::Http2, .. }) => {
                // Boxed: nearly all clients speak the other, whose connections should not pay for the size of this.
                Box::pin(http2::serve(wire, connection, Rc::clone(&self.handler), self.phase.clone())).await
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
        let finished = timeout(self.config.drain_timeout, async {
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

/// A connection counts until this is dropped.
struct Counted {
    shared: Rc<Shared>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::AcqRel);
        self.shared.here.set(self.shared.here.get() - 1);
        self.shared.metrics.ended();
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
        shared.config.retry_after.as_secs().max(1)
    );
    tell(&stream, &answer).await;
    shared.refusing.set(shared.refusing.get() - 1);
    drop(counted);
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
