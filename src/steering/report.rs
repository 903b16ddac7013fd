//! The report, as it is sent: docs/report.md is its page, docs/report.schema.json its schema.

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::availability::Summary;
use crate::health::{Health, Load};

/// Of reports and replies. Members may be added without another; whoever reads passes over those it does not know.
pub const VERSION: u32 = 1;

/// A report.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) version: u32,
    pub(super) appliance: Identity<'a>,
    /// Grows with each report of this boot, to whomever.
    pub(super) sequence: u64,
    /// Seconds since 1970.
    pub(super) time_unix: u64,
    pub(super) phase: &'static str,
    pub(super) health: Health,
    pub(super) load: Load,
    pub(super) listeners: &'a [Listener],
    pub(super) urls: Texts<'a, url::Url>,
    pub(super) clients: Clients<'a>,
    pub(super) manifest: Option<ManifestProgress>,
    pub(super) availability: Availability,
}

/// Who reports.
#[derive(Debug, Serialize)]
pub(super) struct Identity<'a> {
    pub(super) id: &'a str,
    pub(super) site: &'a str,
    /// Another one after each start: revisions and sequence begin anew.
    pub(super) boot_id: &'a str,
    pub(super) software: &'static str,
}

/// An address that viewers may connect to.
#[derive(Clone, Debug, Serialize)]
pub struct Listener {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Address and port, as bound.
    pub address: std::net::SocketAddr,
}

/// How far tonight's fill is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ManifestProgress {
    /// Of the manifest in force.
    pub sequence: u64,
    /// Assets that it names, as far as there is room for them.
    pub assets: u64,
    /// Those of them that are held.
    pub assets_held: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Those of them that are held.
    pub bytes_held: u64,
}

/// Networks of clients.
#[derive(Debug, Serialize)]
pub(super) struct Clients<'a> {
    pub(super) revision: u64,
    /// Left out for a service that has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prefixes: Option<Texts<'a, IpNet>>,
}

/// What is held.
#[derive(Debug, Serialize)]
pub(super) struct Availability {
    pub(super) revision: u64,
    /// Assets with every block.
    pub(super) held: usize,
    pub(super) fingerprint_bits: u32,
    /// Everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) full: Option<Summary>,
    /// What has changed since a revision that the reader has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<Changes>,
}

/// What came and went.
#[derive(Debug, Serialize)]
pub(super) struct Changes {
    pub(super) since: u64,
    pub(super) added: Summary,
    pub(super) removed: Summary,
}

/// A list of what is written as text.
#[derive(Debug)]
pub(super) struct Texts<'a, T>(pub(super) &'a [T]);

impl<T: std::fmt::Display> Serialize for Texts<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}
