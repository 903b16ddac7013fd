//! The answer of most requests: one part of a fresh, sealed asset that is in memory, found and sent without waiting.
//!
//! target -> recall (what it led to lately), or key -> catalog -> part -> in memory? -> head from text made before, bytes
//!
//! What this path cannot answer with certainty it leaves to the handler, which answers everything; what it answers, it answers as
//! the handler would, byte for byte (a test holds one against the other).

use std::{cell::RefCell, hash::BuildHasher, sync::Arc};

use http::{StatusCode, Version};

use super::{
    body::Chunk,
    connection::Connection,
    handler::Handler,
    http1::head::{Head, Once},
    ranges::{RangeOutcome, RangeSet, one_range},
    request::is_host,
    response::Described,
    signing::{Asking, package::Presented},
};
use crate::{
    asset::{AssetKey, ByteRange, UnixTime},
    catalog::Entry,
};

/// A response that is ready: its head stands in the buffer that was given.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) status: StatusCode,
    /// `None`: no body.
    pub(super) chunk: Option<Chunk>,
}

/// The targets that were asked for lately, and what they led to: saves the key, its hash and the look into the index. One place
/// for each hash, the later target takes it: what is asked for often is there often.
///
/// Holds entries, not their files: what is evicted leaves the disk, and is found to be withdrawn here.
#[derive(Debug)]
pub(super) struct Recall {
    places: RefCell<Box<[Option<Known>]>>,
    /// Seeded by the system, so that nobody can choose targets that share a place.
    hasher: foldhash::fast::RandomState,
}

#[derive(Clone, Debug)]
struct Known {
    target: Box<str>,
    entry: Arc<Entry>,
    /// The fields that stay the same as long as the entry does, as they stand on the wire.
    fields: Arc<[u8]>,
}

impl Recall {
    /// Room for `places_max` targets.
    pub(super) fn new(places_max: usize) -> Self {
        let places = vec![None; places_max].into_boxed_slice();
        Self { places: RefCell::new(places), hasher: foldhash::fast::RandomState::default() }
    }

    fn place(&self, target: &str, places: usize) -> Option<usize> {
        let hash = self.hasher.hash_one(target);
        usize::try_from(hash % u64::try_from(places).ok().filter(|places| *places > 0)?).ok()
    }
}

impl Handler {
    /// Answers `asked`, if that takes nothing but bytes in memory, no more than the connection hands out at once; writes the head to `out`, up to where the
    /// connection adds its own fields. Never waits. Where it gives `None`, `out` is as it was.
    pub(super) fn hit_now(
        &self,
        asked: &Head<'_>,
        connection: &Connection,
        now: UnixTime,
        out: &mut Vec<u8>,
    ) -> Option<Hit> {
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
        if !is_host(host) {
            return None;
        }
        let presented = match &self.gate {
            None => None,
            // A fragment is nobody's business (RFC 9112, 3.2); the handler never sees it.
            Some(_) if asked.target.contains('#') => return None,
            Some(gate) => Some(gate.presented(asked.target).ok()?),
        };
        let wanted = presented.as_ref().map_or(asked.target, |presented| &presented.target);
        let allowed =
            |path: &str| self.is_allowed_now(path, presented.as_ref(), (fields.cookie, host), (connection, now));
        let (target, query) = match wanted.split_once('?') {
            Some((path, query)) if self.config.query_in_key && !query.is_empty() => (path, Some(query)),
            Some((path, _)) => (path, None),
            None => (wanted, None),
        };
        // Where the query is part of the key, it is part of what is recalled. What was presented never is.
        let recalled = if query.is_some() { wanted } else { target };
        let mut places = self.recall.places.borrow_mut();
        let place = self.recall.place(recalled, places.len());
        let known = place.and_then(|place| places[place].as_ref()).filter(|known| *known.target == *recalled);
        // Before it counts as used: who may not have it does not keep it here either.
        let known = known.filter(|known| allowed(known.entry.key().path()));
        let fresh;
        let known = match known.filter(|known| self.catalog.use_if_fresh(&known.entry, now)) {
            Some(known) => known,
            None => {
                fresh = self.find_fresh((target, query), recalled, now, allowed)?;
                match place {
                    Some(place) => places[place].insert(fresh),
                    None => &fresh,
                }
            }
        };
        let entry = &known.entry;
        let length = entry.meta().length;
        let part = match fields.range {
            Once::One(range) if is_get => self.part(range, length)?,
            Once::None | Once::One(_) => None,
            Once::Several => return None,
        };
        let sent = part.or_else(|| ByteRange::new(0, length)).filter(|_| is_get);
        let chunk = match sent {
            None => None,
            Some(sent) if sent.len() <= self.window.min(connection.handout_max()) && entry.is_sealed() => {
                let lease = entry.lease_now()?;
                let bytes = self.residency.resident_now(lease.slice(sent)?)?;
                Some(Chunk { bytes, mapping: Some(lease.into_mapping()) })
            }
            Some(_) => return None,
        };
        let status = self.templates.write_hit(out, &known.fields, entry.age(now), (part, length));
        Some(Hit { status, chunk })
    }

    /// Whether the gate, where there is one, lets this pass without work.
    fn is_allowed_now(
        &self,
        path: &str,
        presented: Option<&Presented<'_>>,
        (cookie, host): (Once<'_>, &[u8]),
        (connection, now): (&Connection, UnixTime),
    ) -> bool {
        let (Some(gate), Some(presented)) = (&self.gate, presented) else { return true };
        let cookies = match cookie {
            Once::None => None,
            Once::One(field) => Some(field),
            Once::Several => return false,
        };
        gate.admits_now(&Asking {
            credential: &presented.credential,
            cookies,
            target: &presented.target,
            path,
            authority: std::str::from_utf8(host).unwrap_or(""),
            secure: connection.secure.get(),
            client: connection.peer.ip(),
            now,
        })
    }

    fn find_fresh(
        &self,
        (path, query): (&str, Option<&str>),
        target: &str,
        now: UnixTime,
        allowed: impl Fn(&str) -> bool,
    ) -> Option<Known> {
        // Targets in the form that nearly all have; others take a parser of URIs.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@?".contains(&byte);
        if !path.starts_with('/') || !target.bytes().all(plain) {
            return None;
        }
        let key = AssetKey::parse(path, query).ok()?;
        if !allowed(key.path()) {
            return None;
        }
        let entry = self.catalog.held(&key).filter(|entry| self.catalog.use_if_fresh(entry, now))?;
        let described = Described { meta: entry.meta(), path: key.path(), age: None };
        let fields = described.fields_text()?.into();
        Some(Known { target: target.into(), entry, fields })
    }

    /// The part that a `Range` asks for; `Some(None)`: all of it. `None`: more than one, or none that is answered.
    fn part(&self, range: &[u8], length: u64) -> Option<Option<ByteRange>> {
        if let Some(part) = one_range(range, length) {
            return Some(Some(part));
        }
        match RangeSet::parse(range, self.config.ranges_max)?.resolve(length) {
            RangeOutcome::Whole => Some(None),
            RangeOutcome::Part(part) => Some(Some(part)),
            RangeOutcome::Parts(_) | RangeOutcome::Unsatisfiable | RangeOutcome::TooMany => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_place_wherever_there_is_one() {
        let recall = Recall::new(3);
        for target in ["/a", "/b", "/c?d=e", ""] {
            assert!(recall.place(target, 3).is_some_and(|place| place < 3));
            assert_eq!(recall.place(target, 3), recall.place(target, 3));
        }
        assert_eq!(recall.place("/a", 0), None, "nothing is recalled, and nothing else changes");
    }
}
