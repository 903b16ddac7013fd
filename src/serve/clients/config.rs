//! What the operator decides about who is served, and how much one client may take.

use std::{path::PathBuf, time::Duration};

use super::Network;

/// Who is served, and how much one client may take. A client is everybody behind one prefix of addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Networks that are served; empty, with no `allow_file`: all.
    pub allow: Vec<Network>,
    /// File with further such networks, one per line.
    pub allow_file: Option<PathBuf>,
    /// How often that file is looked at for changes.
    pub check_interval: Duration,
    /// Connections of one client, over all workers; 0: as many as it likes.
    pub connections_max: u32,
    /// Requests of one client per second, on average, over all workers; a connection counts as one. 0: as many as it likes.
    pub request_rate: u32,
    /// Requests that a client may be ahead of that average.
    pub request_burst: u32,
    /// Bits of an IPv4 address that tell clients apart.
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 address that tell clients apart.
    pub ipv6_prefix: u8,
    /// Clients that are remembered at once, over all workers.
    pub table_max: usize,
    /// Networks whose clients may take what they like.
    pub unlimited: Vec<Network>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            allow_file: None,
            check_interval: Duration::from_secs(10),
            connections_max: 0,
            request_rate: 0,
            request_burst: 1000,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            table_max: 65_536,
            unlimited: Vec::new(),
        }
    }
}

impl Config {
    /// Whether it matters at all who connects.
    pub(super) fn is_on(&self) -> bool {
        // Those without limits are exempt from the worker's own rules for crowds, too.
        self.names_networks() || self.limits() || !self.unlimited.is_empty()
    }

    /// Whether only some networks are served.
    pub(super) fn names_networks(&self) -> bool {
        !self.allow.is_empty() || self.allow_file.is_some()
    }

    /// Whether a client may take only so much.
    pub(super) fn limits(&self) -> bool {
        self.connections_max > 0 || self.request_rate > 0
    }
}
