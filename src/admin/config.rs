//! What the operator decides about the admin listener.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    net::tls::{ClientCertificate, OperatorFiles},
    sys::sandbox::Reach,
};

/// The listener for operators and their monitoring.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address; keep it off the viewers' network.
    pub listen: SocketAddr,
    /// Connections at once; the one that is idle for the longest gives way to a further one.
    pub connections_max: usize,
    /// File with the tokens of operators, one per line.
    pub token_file: Option<PathBuf>,
    /// Names, besides addresses and `localhost`, by which it may be asked where it asks for no credentials.
    pub hosts: Vec<String>,
    /// Whether `/live` and `/ready` are answered without credentials, by a status alone.
    pub probes_open: bool,
    /// How often the files are looked at for changes.
    pub check_interval: Duration,
    /// How far back the plots of the status page go.
    pub history: Duration,
    /// Browsers that may watch the status page at once.
    pub streams_max: usize,
    /// TLS, with or without certificates of clients.
    pub tls: Option<OperatorFiles>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            connections_max: 64,
            token_file: None,
            hosts: Vec::new(),
            probes_open: true,
            check_interval: Duration::from_secs(10),
            history: Duration::from_secs(600),
            streams_max: 8,
            tls: None,
        }
    }
}

impl Config {
    /// The files that are used after the start: tokens and certificates, which are renewed.
    pub fn reach(&self, reach: &mut Reach) {
        let tls = self.tls.iter().flat_map(|files| {
            [Some(&files.pair.certificate), Some(&files.pair.key), files.client_ca.as_ref()].into_iter().flatten()
        });
        self.token_file.iter().chain(tls).for_each(|file| reach.read_file(file));
    }

    /// Whether only this machine can connect.
    pub fn is_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    /// Whether operators have to prove who they are.
    pub fn asks_for_credentials(&self) -> bool {
        self.token_file.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether a handshake ends without a client's certificate: only where something can be had without one.
    pub fn client_certificate(&self) -> ClientCertificate {
        if self.probes_open || self.token_file.is_some() {
            ClientCertificate::Asked
        } else {
            ClientCertificate::Demanded
        }
    }
}
