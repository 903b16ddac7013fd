//! What the operator decides about reports to steering services.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;

use crate::{asset::ByteCount, net::tls::PairFiles, sys::sandbox::Reach};

/// What is told to steering services, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Who this appliance is; empty: the machine's name.
    pub id: String,
    /// Where it stands, in the operator's words.
    pub site: String,
    /// Where viewers reach it.
    pub urls: Vec<url::Url>,
    /// From one report to the next, at most.
    pub interval: Duration,
    /// Shortest interval that a service may ask for.
    pub interval_min: Duration,
    /// Longest interval that a service may ask for, and longest wait that it may ask for when it is overloaded.
    pub interval_max: Duration,
    /// Part of an interval by which a report may come earlier.
    pub jitter_percent: u8,
    /// Longest time for one report, from the connection to the end of the reply.
    pub timeout: Duration,
    /// Bytes of a reply.
    pub reply_size_max: ByteCount,
    /// Changes of what is held that are kept, to tell services what came and went.
    pub changes_max: usize,
    /// Networks of clients that it serves.
    pub prefixes: Vec<IpNet>,
    /// File with further ones.
    pub prefixes_file: Option<PathBuf>,
    /// Networks at most, those of the file included.
    pub prefixes_max: usize,
    /// Whom to tell.
    pub services: Vec<ServiceConfig>,
}

/// One steering service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    /// Name in logs and metrics.
    pub name: String,
    /// Where reports are sent to.
    pub url: url::Url,
    /// File with the bearer token that proves who we are.
    pub token_file: Option<PathBuf>,
    /// Certificate that proves who we are, and its key.
    pub identity: Option<PairFiles>,
    /// Certificates of the authorities that its own is from; the system's where there is none.
    pub authorities: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: String::new(),
            site: String::new(),
            urls: Vec::new(),
            interval: Duration::from_secs(5),
            interval_min: Duration::from_secs(1),
            interval_max: Duration::from_secs(60),
            jitter_percent: 20,
            timeout: Duration::from_secs(5),
            reply_size_max: ByteCount(64 << 10),
            changes_max: 65_536,
            prefixes: Vec::new(),
            prefixes_file: None,
            prefixes_max: 16_384,
            services: Vec::new(),
        }
    }
}

impl ServiceConfig {
    /// Files that it names.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identity = self.identity.iter().flat_map(|files| [&files.certificate, &files.key]);
        self.token_file.iter().chain(identity).chain(&self.authorities)
    }
}

impl Config {
    /// The files that are used after the start.
    pub fn reach(&self, reach: &mut Reach) {
        let files = self.services.iter().flat_map(ServiceConfig::files).chain(&self.prefixes_file);
        files.for_each(|file| reach.read_file(file));
    }
}
