//! The answer of most requests: one part of a fresh, sealed asset that is in memory, found and sent without waiting.
//!
//! What this path cannot answer with certainty it leaves to the handler, which answers everything; what it answers, it answers as
//! the handler would, byte for byte (a test holds one against the other).

use bytes::Bytes;
use http::{StatusCode, Version};

use super::{
    body::Chunk,
    handler::Handler,
    http1::head::{Head, Once},
    ranges::{RangeOutcome, RangeSet},
    request::is_host,
    response::Described,
};
use crate::asset::{AssetKey, ByteRange};

/// A response that is ready: its head stands in the buffer that was given.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) status: StatusCode,
    /// `None`: no body.
    pub(super) chunk: Option<Chunk>,
}

impl Handler {
    /// Answers `asked`, if that takes nothing but at most `most` bytes in memory; writes the head to `out`, up to where the connection adds its
    /// own fields. Never waits. Where it gives `None`, `out` is as it was.
    pub(super) fn hit_now(&self, asked: &Head<'_>, most: u64, out: &mut Vec<u8>) -> Option<Hit> {
        let fields = &asked.fields;
        let is_get = asked.method == "GET";
        if !(is_get || asked.method == "HEAD")
            || asked.version != Version::HTTP_11
            || fields.special
            || (fields.origin && self.templates.weighs_origin())
        {
            return None;
        }
        let Once::One(host) = fields.host else { return None };
        let range = match fields.range {
            Once::One(range) if is_get => Some(RangeSet::parse(range, self.config.ranges_max)?),
            Once::None | Once::One(_) => None,
            Once::Several => return None,
        };
        let key = key_of(asked.target, self.config.query_in_key).filter(|_| is_host(host))?;
        let entry = self.catalog.lookup_fresh(&key)?;
        let meta = entry.meta();
        let part = match range.map_or(RangeOutcome::Whole, |range| range.resolve(meta.length)) {
            RangeOutcome::Whole => None,
            RangeOutcome::Part(part) => Some(part),
            RangeOutcome::Parts(_) | RangeOutcome::Unsatisfiable => return None,
        };
        let sent = part.or_else(|| ByteRange::new(0, meta.length)).filter(|_| is_get);
        let chunk = match sent {
            None => None,
            Some(sent) if sent.len() <= self.window.min(most) && entry.is_sealed() => {
                let lease = entry.lease_now()?;
                let bytes: Bytes = self.residency.resident_now(lease.slice(sent)?)?;
                Some(Chunk { bytes, mapping: Some(lease.into_mapping()) })
            }
            Some(_) => return None,
        };
        let described = Described { meta, path: key.path(), age: Some(entry.age(self.clock.unix())) };
        let status = self.templates.write_hit(out, &described, part)?;
        Some(Hit { status, chunk })
    }
}

/// The key of a target in the form that nearly all have; `None` where it takes a parser of URIs.
fn key_of(target: &str, query_in_key: bool) -> Option<AssetKey> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@?".contains(&byte);
    if !target.starts_with('/') || !target.bytes().all(plain) {
        return None;
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    AssetKey::parse(path, query.filter(|query| query_in_key && !query.is_empty())).ok()
}
