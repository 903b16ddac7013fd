//! What the operator decides about where missing assets come from.

use std::{path::PathBuf, time::Duration};

use crate::{
    asset::{BitRate, ByteCount},
    net::{bucket::StoreConfig, client::ClientFiles, redirects::Redirects},
    sys::sandbox::Reach,
};

/// Where missing assets come from, and how patiently.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Sources in the order in which they are asked.
    pub sources: Vec<SourceConfig>,
    /// Those that are asked for nothing but what the addresses of a manifest lead to: `control.source_urls`.
    pub by_manifest: Vec<SourceConfig>,
    /// Bytes fetched beyond what a viewer has asked for so far.
    pub read_ahead: ByteCount,
    /// Bytes fetched by one request to a source.
    pub fetch_max: ByteCount,
    /// Longest asset fetched whole because its source does not serve ranges or gives no strong validator.
    pub whole_asset_max: ByteCount,
    /// Fetches at once, over all sources.
    pub fetches_max: usize,
    /// Tries for one fetch, over all sources, the first included.
    pub attempts_max: u32,
    /// Wait before the second try; doubles each time, with jitter.
    pub retry_delay: Duration,
    /// Longest wait between two tries.
    pub retry_delay_max: Duration,
    /// Responses passed through without being stored, at once.
    pub pass_through_max: usize,
    /// How long what is stored stays fresh.
    pub freshness: Freshness,
    /// What is filled ahead of demand.
    pub nightly: super::nightly::Config,
    /// The boxes that this one shares a site with.
    pub site: SiteConfig,
}

/// The boxes of a site. They are the sources of kind peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteConfig {
    /// What this box is called by its peers: the name that they give it as a source. Empty: it fetches for nobody, and nobody for it.
    pub name: String,
    /// Peers that one fetch asks at most.
    pub peers_asked_max: usize,
}

/// One place to fetch from.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// Name in logs and metrics.
    pub name: String,
    /// How near it stands.
    pub kind: SourceKind,
    /// Where it is.
    pub location: SourceLocation,
    /// Requests to it at once.
    pub connections_max: usize,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the head of a response.
    pub response_timeout: Duration,
    /// Longest silence within a response's body.
    pub stall_timeout: Duration,
    /// Failures in a row after which it is set aside.
    pub failures_max: u32,
    /// How long it is set aside.
    pub retry_after: Duration,
    /// Longest time that it is set aside at its own word (`Retry-After`).
    pub set_aside_max: Duration,
    /// The cheapest is asked first.
    pub cost: u32,
    /// Longest wait for its answer before the next source is asked.
    pub escalate_after: Duration,
    /// Bytes that come from it at most; 0: as fast as they come.
    pub rate_max: BitRate,
    /// Who we are to it, and whom we trust.
    pub files: ClientFiles,
    /// Where its redirects may lead.
    pub redirects: Redirects,
    /// Of a bucket: the store that it lies in.
    pub store: StoreConfig,
    /// It is asked only for what an address of a manifest leads to.
    pub by_manifest: bool,
}

/// How near a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// Another appliance at the same site.
    Peer,
    /// A larger cache further up.
    Tier,
    /// Where the assets are published.
    Origin,
}

/// Where a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceLocation {
    /// `http://` or `https://`, with a trailing slash.
    Http(url::Url),
    /// `file://`: a local directory.
    Directory(PathBuf),
    /// `s3://`: a bucket, and the beginning of the names in it that are assets.
    Bucket {
        /// Its name.
        bucket: String,
        /// What stands before each asset's path; without slashes at its ends.
        prefix: String,
    },
}

/// How long what is stored stays fresh (RFC 9111, 4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Freshness {
    /// Media types that never change under one name and need no revalidation. `segments` stands for video and audio.
    pub immutable: Vec<String>,
    /// Lifetime of an asset whose source says nothing and which is not immutable.
    pub default_ttl: Duration,
    /// Longest lifetime, whatever the source says.
    pub ttl_max: Duration,
    /// How long a stale asset is served while no source answers (RFC 5861, `stale-if-error`), unless its source forbids.
    pub stale_if_error: Duration,
}

impl Config {
    /// The files that are used after the start: those of sources that are local directories, and the log of fills.
    pub fn reach(&self, reach: &mut Reach) {
        for source in &self.sources {
            match &source.location {
                SourceLocation::Directory(folder) => reach.read_below(folder),
                SourceLocation::Http(_) | SourceLocation::Bucket { .. } => {}
            }
            source.files.iter().chain(&source.store.credentials).for_each(|file| reach.read_file(file));
        }
        if let Some(log) = &self.nightly.log {
            reach.write_file(log);
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            by_manifest: Vec::new(),
            read_ahead: ByteCount(4 << 20),
            fetch_max: ByteCount(8 << 20),
            whole_asset_max: ByteCount(1 << 30),
            fetches_max: 256,
            attempts_max: 4,
            retry_delay: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(2),
            pass_through_max: 1024,
            freshness: Freshness::default(),
            nightly: super::nightly::Config::default(),
            site: SiteConfig::default(),
        }
    }
}

impl SourceConfig {
    /// A source with default limits.
    pub fn new(name: impl Into<String>, kind: SourceKind, location: SourceLocation) -> Self {
        Self {
            name: name.into(),
            kind,
            location,
            connections_max: 64,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            failures_max: 5,
            retry_after: Duration::from_secs(10),
            set_aside_max: Duration::from_secs(600),
            cost: kind.cost(),
            escalate_after: Duration::from_secs(15),
            rate_max: BitRate(0),
            files: ClientFiles::default(),
            redirects: Redirects::default(),
            store: StoreConfig::default(),
            by_manifest: false,
        }
    }

    /// What lies below an address, for manifests that name it: with the default limits, and known to nobody there.
    pub fn by_manifest(url: &url::Url) -> Self {
        let place = SourceLocation::Http(url.clone());
        Self { by_manifest: true, ..Self::new(url.as_str(), SourceKind::Origin, place) }
    }

    /// The address below which an address of a manifest may lie, where this is a source that has one. What peers are asked for goes by
    /// their names.
    pub fn base(&self) -> Option<&url::Url> {
        match &self.location {
            SourceLocation::Http(url) if self.kind != SourceKind::Peer => Some(url),
            _ => None,
        }
    }
}

impl SourceKind {
    /// What one costs unless somebody says otherwise.
    pub fn cost(self) -> u32 {
        match self {
            Self::Peer => 10,
            Self::Tier => 100,
            Self::Origin => 1000,
        }
    }

    /// Its name in the configuration and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Tier => "tier",
            Self::Origin => "origin",
        }
    }
}

impl Default for SiteConfig {
    fn default() -> Self {
        Self { name: String::new(), peers_asked_max: 8 }
    }
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            immutable: vec!["segments".into()],
            default_ttl: Duration::from_secs(60),
            ttl_max: Duration::from_secs(30 * 86_400),
            stale_if_error: Duration::from_secs(7 * 86_400),
        }
    }
}
