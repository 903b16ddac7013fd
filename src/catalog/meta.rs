//! What is known of one version of an asset besides its bytes.

use std::{
    collections::HashSet,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::asset::{UnixTime, Validators};

/// What stays the same as long as the version does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of the whole.
    pub length: u64,
    /// As the source gave them.
    pub validators: Validators,
    /// `Content-Type` as the source gave it.
    pub content_type: Option<SharedText>,
    /// `Content-Encoding` as the source gave it; the stored bytes are encoded so.
    pub content_encoding: Option<SharedText>,
    /// `Cache-Control` as the source gave it, for the caches behind us.
    pub cache_control: Option<SharedText>,
    /// Whether parts may be fetched one by one: the source serves ranges and gives a strong validator.
    pub ranged: bool,
}

/// A header's value that many assets have in common: held once in the catalog, 8 bytes in each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SharedText(Arc<Box<str>>);

impl<T: Into<Box<str>>> From<T> for SharedText {
    fn from(text: T) -> Self {
        Self(Arc::new(text.into()))
    }
}

impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The texts that the assets of a catalog share. Those that no asset has any more are swept when their number has doubled.
#[derive(Debug, Default)]
pub(super) struct Texts(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    texts: HashSet<SharedText>,
    sweep_at: usize,
}

/// Fewest texts that are swept.
const SWEEP_MIN: usize = 256;

impl Texts {
    /// Has `meta` use the texts of those before it.
    pub(super) fn share(&self, meta: &mut Meta) {
        let mut pool = self.0.lock();
        for text in [&mut meta.content_type, &mut meta.content_encoding, &mut meta.cache_control].into_iter().flatten()
        {
            match pool.texts.get(text) {
                Some(known) => *text = known.clone(),
                None => pool.add(text.clone()),
            }
        }
    }
}

impl Pool {
    fn add(&mut self, text: SharedText) {
        if self.texts.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.texts.retain(|text| Arc::strong_count(&text.0) > 1);
            self.sweep_at = 2 * self.texts.len();
        }
        self.texts.insert(text);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(control: &str) -> Meta {
        Meta {
            length: 1,
            validators: Validators::default(),
            content_type: Some("video/mp4".into()),
            content_encoding: None,
            cache_control: Some(control.into()),
            ranged: true,
        }
    }

    #[test]
    fn assets_share_what_they_have_in_common_and_nothing_is_kept_for_none() {
        let texts = Texts::default();
        let mut held: Vec<_> = ["max-age=1", "max-age=2"].map(meta).into();
        held.iter_mut().for_each(|meta| texts.share(meta));
        let types: Vec<_> = held.iter().filter_map(|meta| meta.content_type.as_deref()).map(str::as_ptr).collect();
        assert_eq!(types[0], types[1]);
        assert_eq!(held[1].cache_control.as_deref(), Some("max-age=2"));
        for age in 0..10 * SWEEP_MIN {
            texts.share(&mut meta(&format!("max-age={age}")));
        }
        assert!(texts.0.lock().texts.len() <= SWEEP_MIN, "{}", texts.0.lock().texts.len());
    }
}
