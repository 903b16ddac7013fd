//! Listening sockets.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Binds `address` once for each of `count` workers (`SO_REUSEPORT`: the kernel spreads new connections over them). Port 0 is
/// one port for all.
///
/// # Errors
/// As of `bind(2)` and `listen(2)`.
pub fn bind_for_each(address: SocketAddr, count: usize, backlog: u32) -> io::Result<Vec<TcpListener>> {
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
pub fn bind(address: SocketAddr, backlog: u32, shared: bool) -> io::Result<TcpListener> {
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
