//! What is known of one version of an asset besides its bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::asset::{UnixTime, Validators};

/// What stays the same as long as the version does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of the whole.
    pub length: u64,
    /// As the source gave them.
    pub validators: Validators,
    /// `Content-Type` as the source gave it.
    pub content_type: Option<Box<str>>,
    /// `Content-Encoding` as the source gave it; the stored bytes are encoded so.
    pub content_encoding: Option<Box<str>>,
    /// `Cache-Control` as the source gave it, for the caches behind us.
    pub cache_control: Option<Box<str>>,
    /// Whether parts may be fetched one by one: the source serves ranges and gives a strong validator.
    pub ranged: bool,
}

/// Until when a stored version is good (RFC 9111, 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// When its age was zero: response time less corrected initial age (RFC 9111, 4.2.3).
    pub born: UnixTime,
    /// Fresh before this time. `u64::MAX` for what never changes.
    pub fresh_until: UnixTime,
    /// May be served stale before this time when no source answers; not after `fresh_until` where the source forbids it.
    pub stale_until: UnixTime,
}

impl Lifetime {
    /// Never becomes stale.
    pub fn immutable(born: UnixTime) -> Self {
        Self { born, fresh_until: UnixTime(u64::MAX), stale_until: UnixTime(u64::MAX) }
    }
}

/// A lifetime that revalidation can prolong while viewers read it. The three times are read one by one: a reader in the
/// middle of a change sees an age or a freshness of a moment ago, which was right then.
#[derive(Debug)]
pub(super) struct LifetimeCell {
    born: AtomicU64,
    fresh_until: AtomicU64,
    stale_until: AtomicU64,
}

impl LifetimeCell {
    pub(super) fn new(lifetime: Lifetime) -> Self {
        Self {
            born: AtomicU64::new(lifetime.born.0),
            fresh_until: AtomicU64::new(lifetime.fresh_until.0),
            stale_until: AtomicU64::new(lifetime.stale_until.0),
        }
    }

    pub(super) fn load(&self) -> Lifetime {
        Lifetime {
            born: UnixTime(self.born.load(Ordering::Relaxed)),
            fresh_until: UnixTime(self.fresh_until.load(Ordering::Relaxed)),
            stale_until: UnixTime(self.stale_until.load(Ordering::Relaxed)),
        }
    }

    pub(super) fn store(&self, lifetime: Lifetime) {
        self.born.store(lifetime.born.0, Ordering::Relaxed);
        self.stale_until.store(lifetime.stale_until.0, Ordering::Relaxed);
        self.fresh_until.store(lifetime.fresh_until.0, Ordering::Relaxed);
    }
}
