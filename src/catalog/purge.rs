//! Purge: assets that are to go by order, by path or by prefix.
//!
//! remembered here (what was asked before the order is not admitted after it) -> no question joined, no "no" recalled ->
//! out of the index and out of service -> recorded on every volume, durable -> answered -> files removed
//!
//! Who asks after the answer never gets what was held before it, also after a crash: the record says up to which version of a volume
//! all that match are gone, and the next start keeps to it. A volume that was away learns of it from the others when it comes back.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};

use super::{Catalog, Entry, Leaving, persist::Record};
use crate::{
    asset::{AssetKey, PathPrefix, UnixTime},
    storage::VolumeState,
};

/// Orders that are remembered for what was asked before them; what was asked before even those is asked again.
const RECENT_MAX: usize = 256;

/// What is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The asset of this path, whatever its query; with a query, that one only.
    Path(AssetKey),
    /// Every asset whose path begins so.
    Prefix(PathPrefix),
}

impl Target {
    /// The decoded path, with its query where it has one, or prefix.
    pub fn text(&self) -> &str {
        match self {
            Self::Path(key) => key.as_str(),
            Self::Prefix(prefix) => prefix.as_str(),
        }
    }

    /// Whether all that begins so is meant.
    pub fn is_prefix(&self) -> bool {
        matches!(self, Self::Prefix(_))
    }
}

/// What a purge came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Assets that are not found any more.
    pub assets: u64,
    /// Bytes of them that were reserved.
    pub bytes: u64,
}

/// Why a purge is not known to hold over a restart. For new requests it holds all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PurgeError {
    /// No volume can be written to.
    #[error("no volume is in use that could remember it")]
    NoVolume,
    /// The disks are slow.
    #[error("it was not durable in time")]
    NotDurable,
}

/// When a source was asked, as far as purges are concerned.
#[derive(Clone, Copy, Debug)]
pub struct PurgeMark(u64);

/// One target as the volumes have it on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PurgeRow {
    /// The same on every volume.
    pub(super) id: i64,
    pub(super) path: String,
    pub(super) is_prefix: bool,
    pub(super) ordered: UnixTime,
    /// Versions of the volume up to this one are yet to go; 0: all have gone.
    pub(super) serial: u64,
}

/// Tells whether a path is meant, and up to which version.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    paths: HashMap<Box<str>, u64>,
    prefixes: HashMap<Box<str>, u64>,
    /// Of the prefixes: each is looked up once, however many there are.
    lengths: BTreeSet<usize>,
}

impl Matcher {
    fn of(targets: &[Target]) -> Self {
        let mut matcher = Self::default();
        targets.iter().for_each(|target| matcher.add(target.text(), target.is_prefix(), u64::MAX));
        matcher
    }

    pub(super) fn add(&mut self, text: &str, is_prefix: bool, serial: u64) {
        let known = if is_prefix { &mut self.prefixes } else { &mut self.paths };
        let up_to = known.entry(text.into()).or_default();
        *up_to = serial.max(*up_to);
        if is_prefix {
            self.lengths.insert(text.len());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.prefixes.is_empty()
    }

    /// The last version of this key that is to go; 0: none.
    pub(super) fn up_to(&self, key: &AssetKey) -> u64 {
        let path = key.path();
        let prefixes = self.lengths.range(..=path.len()).filter_map(|length| self.prefixes.get(path.get(..*length)?));
        let with_query = key.query().and_then(|_| self.paths.get(key.as_str()));
        prefixes.chain(self.paths.get(path)).chain(with_query).copied().max().unwrap_or(0)
    }

    fn matches(&self, key: &AssetKey) -> bool {
        self.up_to(key) > 0
    }
}

/// The latest orders.
#[derive(Debug, Default)]
pub(super) struct Purges {
    recent: RwLock<Recent>,
    /// One order at a time.
    ordering: Mutex<()>,
}

#[derive(Debug, Default)]
struct Recent {
    ordered: u64,
    matchers: VecDeque<Arc<Matcher>>,
}

impl Recent {
    /// Whether what was asked at `mark` may be of before an order.
    fn since(&self, mark: PurgeMark, key: &AssetKey) -> bool {
        let count = usize::try_from(self.ordered.saturating_sub(mark.0)).unwrap_or(usize::MAX);
        count > self.matchers.len() || self.matchers.iter().rev().take(count).any(|matcher| matcher.matches(key))
    }
}

impl Purges {
    pub(super) fn mark(&self) -> PurgeMark {
        PurgeMark(self.recent.read().ordered)
    }

    /// Does `insert`, unless the key was purged since `mark`. No order comes in between.
    pub(super) fn unless_purged<T>(&self, mark: PurgeMark, key: &AssetKey, insert: impl FnOnce() -> T) -> Option<T> {
        let recent = self.recent.read();
        if recent.since(mark, key) { None } else { Some(insert()) }
    }

    fn remember(&self, matcher: &Arc<Matcher>) {
        let mut recent = self.recent.write();
        recent.ordered += 1;
        recent.matchers.push_back(Arc::clone(matcher));
        if recent.matchers.len() > RECENT_MAX {
            recent.matchers.pop_front();
        }
    }
}

impl Catalog {
    /// To be taken before a source is asked, for [`Catalog::admit_asked`].
    pub fn purge_mark(&self) -> PurgeMark {
        self.purges.mark()
    }

    /// What a purge would come to. Blocks as long as it takes to look at every asset.
    pub fn would_purge(&self, targets: &[Target]) -> Purged {
        let mut purged = Purged::default();
        for entry in self.meant(&Matcher::of(targets), targets) {
            purged.assets += 1;
            purged.bytes += entry.reserved();
        }
        purged
    }

    /// Whether anything that `targets` mean was made by its source before a time. Blocks as [`Catalog::would_purge`].
    pub fn holds_from_before(&self, targets: &[Target], time: UnixTime) -> bool {
        self.meant(&Matcher::of(targets), targets).iter().any(|entry| entry.lifetime().born < time)
    }

    /// Takes out of service all that `targets` mean: who asks from now on does not find it, who reads it finishes. Returns when that is
    /// durable; the files are removed after it. Blocks.
    ///
    /// # Errors
    /// It holds, but not for sure after a restart.
    pub fn purge(self: &Arc<Self>, targets: &[Target], patience: Duration) -> Result<Purged, PurgeError> {
        let ordering = self.purges.ordering.lock();
        let (begun, matcher) = (Instant::now(), Arc::new(Matcher::of(targets)));
        self.purges.remember(&matcher);
        self.board().let_go(|key| matcher.matches(key));
        self.forget_refusals(targets);
        let mut gone = self.meant(&matcher, targets);
        gone.retain(|entry| self.take_out(entry));
        let bytes = gone.iter().map(|entry| entry.reserved()).sum();
        let purged = Purged { assets: gone.len() as u64, bytes };
        let rows = Arc::new(self.rows(targets));
        self.put_on_record(&rows);
        let durable = self.flush(patience);
        drop(ordering);
        let first = targets.first().map(Target::text).unwrap_or_default();
        tracing::info!(
            targets = targets.len(), first, assets = purged.assets, bytes, durable, took_millis = %begun.elapsed().as_millis(), "purged"
        );
        self.metrics.purges.add(targets.len() as u64);
        self.remove_purged(gone, rows);
        if self.volumes().all(|volume| volume.state() == VolumeState::Failed) {
            return Err(PurgeError::NoVolume);
        }
        if durable { Ok(purged) } else { Err(PurgeError::NotDurable) }
    }

    /// The entries that are meant.
    fn meant(&self, matcher: &Matcher, targets: &[Target]) -> Vec<Arc<Entry>> {
        // Paths are found at once, where none has a query to it.
        let exact: Option<Vec<_>> = targets.iter().map(|target| self.exact(target)).collect();
        let mut meant = match exact {
            Some(keys) => keys.into_iter().filter_map(|key| self.held(key)).collect(),
            None => self.index.all(|entry| matcher.matches(entry.key())),
        };
        meant.extend(self.planned.all(|key| matcher.matches(key)));
        meant
    }

    fn exact<'a>(&self, target: &'a Target) -> Option<&'a AssetKey> {
        match target {
            Target::Path(key) if key.query().is_some() || !self.index.has_queries() => Some(key),
            Target::Path(_) | Target::Prefix(_) => None,
        }
    }

    /// What sources said before is asked anew.
    fn forget_refusals(&self, targets: &[Target]) {
        for target in targets {
            match target {
                // A "no" is remembered by its asset's id, which does not tell the path. To ask again costs little.
                Target::Prefix(_) => return self.negative.forget_all(),
                // Keys with a query are among those that nobody holds.
                Target::Path(key) => self.negative.forget(&key.id()),
            }
        }
        if self.index.has_queries() {
            self.negative.forget_all();
        }
    }

    pub(super) fn rows(&self, targets: &[Target]) -> Vec<PurgeRow> {
        let (random, ordered) = (RandomState::new(), self.clock.unix());
        let row = |(number, target): (usize, &Target)| PurgeRow {
            // Seeded by the system for each order: ids of two orders do not meet.
            id: random.hash_one((number, ordered.0)).cast_signed(),
            path: target.text().to_owned(),
            is_prefix: target.is_prefix(),
            ordered,
            serial: 0,
        };
        targets.iter().enumerate().map(row).collect()
    }

    pub(super) fn put_on_record(&self, rows: &Arc<Vec<PurgeRow>>) {
        for shelf in &self.shelves {
            // What was admitted before the order has a number up to here.
            let serial = shelf.serial.load(std::sync::atomic::Ordering::Acquire);
            if shelf.records.send(Record::Purge { rows: Arc::clone(rows), serial }).is_err() {
                tracing::debug!("purge after the catalog was closed");
            }
        }
    }

    /// Removes files and records, where that blocks nobody; then nothing of the order is left to do.
    fn remove_purged(self: &Arc<Self>, gone: Vec<Arc<Entry>>, rows: Arc<Vec<PurgeRow>>) {
        let catalog = Arc::clone(self);
        let remove = move || {
            for entry in &gone {
                catalog.remove_file(entry, Leaving::Purged);
                catalog.record(entry, Record::Forget { serial: entry.serial() });
            }
            for shelf in &catalog.shelves {
                if shelf.records.send(Record::PurgeDone { rows: Arc::clone(&rows) }).is_err() {
                    tracing::debug!("the next start ends this purge");
                }
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> AssetKey {
        AssetKey::parse(path, None).expect("valid")
    }

    fn prefix(text: &str) -> Target {
        Target::Prefix(PathPrefix::parse(text).expect("valid"))
    }

    #[test]
    fn a_path_is_meant_and_what_begins_with_a_prefix() {
        let matcher = Matcher::of(&[Target::Path(key("/a/b")), prefix("/films/"), prefix("/é")]);
        for (path, meant) in [
            ("/a/b", true),
            ("/a/b/", false),
            ("/a/bc", false),
            ("/films/1", true),
            ("/films", false),
            ("/filmsx", false),
            ("/éa", true),
            ("/ê", false),
        ] {
            assert_eq!(matcher.matches(&key(path)), meant, "{path}");
        }
        let query = AssetKey::parse("/a/b", Some("v=1")).expect("valid");
        assert!(matcher.matches(&query), "whatever its query");
        assert!(Matcher::of(&[prefix("/")]).matches(&key("/x")), "all");
        let exact = Matcher::of(&[Target::Path(query.clone())]);
        assert!(exact.matches(&query) && !exact.matches(&key("/a/b")), "one that names a query means that one");
    }

    #[test]
    fn the_latest_version_that_is_meant_counts() {
        let mut matcher = Matcher::default();
        assert!(matcher.is_empty() && matcher.up_to(&key("/a")) == 0);
        matcher.add("a", true, 5);
        matcher.add("ab", true, 3);
        matcher.add("ab", false, 7);
        matcher.add("ab", false, 6);
        assert_eq!(["a", "ab", "abc", "b"].map(|path| matcher.up_to(&key(path))), [5, 7, 5, 0]);
    }

    #[test]
    fn what_was_asked_before_an_order_is_known_for_ever() {
        let purges = Purges::default();
        let before = purges.mark();
        purges.remember(&Arc::new(Matcher::of(&[Target::Path(key("/a"))])));
        let after = purges.mark();
        assert_eq!(purges.unless_purged(before, &key("/a"), || ()), None);
        assert_eq!(purges.unless_purged(before, &key("/b"), || ()), Some(()));
        assert_eq!(purges.unless_purged(after, &key("/a"), || ()), Some(()));
        for _ in 0..RECENT_MAX {
            purges.remember(&Arc::new(Matcher::of(&[Target::Path(key("/c"))])));
        }
        assert_eq!(purges.unless_purged(before, &key("/b"), || ()), None, "it is not known any more");
        assert_eq!(purges.unless_purged(after, &key("/a"), || ()), Some(()));
    }
}
