//! What the operator decides about where missing assets come from.

use std::{path::PathBuf, time::Duration};

use crate::asset::ByteCount;

/// Where missing assets come from, and how patiently.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Sources in the order in which they are asked.
    pub sources: Vec<SourceConfig>,
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
}

/// How near a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Default for Config {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            read_ahead: ByteCount(4 << 20),
            fetch_max: ByteCount(8 << 20),
            whole_asset_max: ByteCount(1 << 30),
            fetches_max: 256,
            attempts_max: 4,
            retry_delay: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(2),
            pass_through_max: 1024,
            freshness: Freshness::default(),
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
        }
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
