//! What the operator decides about the admin listener.

use std::net::SocketAddr;

/// The listener for operators and their monitoring.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address; keep it off the viewers' network.
    pub listen: SocketAddr,
    /// Requests served at once; further ones wait in the listener's backlog.
    pub connections_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), connections_max: 64 }
    }
}
