//! Listening sockets.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::socket;

/// Listeners that the service manager holds open, so that they outlive this process: who connects while it restarts waits in their queue.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Those of this process; the first caller has them.
    ///
    /// # Errors
    /// What was left to this process is no listening TCP socket.
    pub fn of_this_process() -> io::Result<Self> {
        let sockets = socket::inherited()?.into_iter().map(Socket::from);
        let listener = |socket: Socket| {
            let address = socket.local_addr()?.as_socket();
            let stream = socket.r#type()? == Type::STREAM && socket.is_listener()?;
            let address = address.filter(|_| stream).ok_or_else(|| {
                let words = "one of the sockets that it has left (oca.socket) is no listening TCP socket";
                io::Error::new(io::ErrorKind::InvalidInput, words)
            })?;
            socket.set_nonblocking(true)?;
            Ok((address, socket.into()))
        };
        sockets.map(listener).collect::<io::Result<_>>().map(Self)
    }

    /// Those on `address`.
    fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        self.0.extract_if(.., |(bound, _)| *bound == address).map(|(_, listener)| listener).collect()
    }

    /// Whether all are on addresses that the configuration names: else there is a mistake in the socket unit or in the configuration. Before
    /// anything is bound, which may fail for what is held open here.
    ///
    /// # Errors
    /// One is not.
    pub fn check(&self, named: &[SocketAddr]) -> io::Result<()> {
        let Some((address, _)) = self.0.iter().find(|(address, _)| !named.contains(address)) else { return Ok(()) };
        let words = format!(
            "{address}: it does (oca.socket), and neither serve.http nor serve.https nor admin.listen names it"
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, words))
    }
}

/// The listeners of `address` for each of `count` workers: those that are inherited, or else some that are bound.
///
/// Several of one address are shared out; where there are fewer than workers, workers accept from the same one, each when it has time.
///
/// # Errors
/// As of `bind(2)`, `listen(2)` and `dup(2)`.
pub fn for_each(
    address: SocketAddr,
    count: usize,
    backlog: u32,
    inherited: &mut Inherited,
) -> io::Result<Vec<Vec<TcpListener>>> {
    let count = count.max(1);
    let held = inherited.take(address);
    if held.is_empty() {
        return Ok(bind_for_each(address, count, backlog)?.into_iter().map(|listener| vec![listener]).collect());
    }
    let mut shares: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
    for at in 0..held.len().max(count) {
        shares[at % count].push(held[at % held.len()].try_clone()?);
    }
    Ok(shares)
}

/// The listener of `address`: the one that is inherited, or else one that is bound.
///
/// # Errors
/// As of `bind(2)` and `listen(2)`.
pub fn only(address: SocketAddr, backlog: u32, inherited: &mut Inherited) -> io::Result<TcpListener> {
    inherited.take(address).pop().map_or_else(|| bind(address, backlog, false), Ok)
}

/// Binds `address` once for each of `count` workers (`SO_REUSEPORT`: the kernel spreads new connections over them). Port 0 is
/// one port for all.
fn bind_for_each(address: SocketAddr, count: usize, backlog: u32) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(count);
    let mut bound = address;
    // Sharing is for workers, not for a second appliance that takes half of the viewers unseen: somebody else's listener is
    // found by asking once for the address alone.
    drop(open(address, false)?);
    for _ in 0..count.max(1) {
        let listener = bind(bound, backlog, true)?;
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Binds `address`; with `shared`, others of this process may too.
///
/// # Errors
/// As of `bind(2)` and `listen(2)`.
fn bind(address: SocketAddr, backlog: u32, shared: bool) -> io::Result<TcpListener> {
    let socket = open(address, shared)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // One address is one address: `[::]` does not take IPv4 away from a listener of its own.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_listeners_are_shared_out_and_none_is_left() {
        let addresses: Vec<SocketAddr> = (0..2)
            .map(|_| TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a free port"))
            .collect();
        for (sockets, workers, shares) in
            [(1, 3, vec![1, 1, 1]), (3, 3, vec![1, 1, 1]), (3, 2, vec![2, 1]), (2, 3, vec![1, 1, 1])]
        {
            let held = bind_for_each(addresses[0], sockets, 16).expect("bound");
            let mut inherited = Inherited(held.into_iter().map(|one| (addresses[0], one)).collect());
            let shared = for_each(addresses[0], workers, 16, &mut inherited).expect("shared");
            assert_eq!(shared.iter().map(Vec::len).collect::<Vec<_>>(), shares, "{sockets} for {workers}");
            assert!(shared.iter().flatten().all(|one| one.local_addr().expect("bound") == addresses[0]));
            assert!(inherited.0.is_empty());
        }
        let held = bind(addresses[0], 16, false).expect("bound");
        let mut inherited = Inherited(vec![(addresses[0], held)]);
        assert_eq!(only(addresses[1], 16, &mut inherited).expect("bound").local_addr().expect("bound"), addresses[1]);
        assert!(inherited.check(&addresses).is_ok());
        let said = inherited.check(&addresses[1..]).expect_err("nobody wants it").to_string();
        assert!(said.contains(&addresses[0].to_string()), "{said}");
    }

    #[test]
    fn workers_share_one_port() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = bind_for_each(address, 3, 16).expect("bound");
        let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().expect("bound").port()).collect();
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    }

    #[test]
    fn a_second_appliance_does_not_share_the_port() {
        let first = bind_for_each(SocketAddr::from(([127, 0, 0, 1], 0)), 2, 16).expect("bound");
        let taken = first[0].local_addr().expect("bound");
        assert_eq!(bind_for_each(taken, 2, 16).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_port_that_others_have_is_refused() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 16, false).expect("bound");
        let taken = first.local_addr().expect("bound");
        assert_eq!(bind_for_each(taken, 1, 16).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
    }
}
