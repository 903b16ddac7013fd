//! A manifest, version 1: the ranked list of the assets that an appliance is to hold. `docs/manifest.md` is its format.
//!
//! Values of these types are checked; what is made of them never looks again.

mod index;
mod list;
mod parse;
mod purges;
mod sources;

use std::sync::Arc;

use index::Index;
pub use list::AssetList;
pub use parse::{KINDS, SourceRules, parse};
use purges::Purges;
pub use sources::{SourceChoice, SourceRef, UrlTemplate, UrlTemplateError};

use crate::asset::{AssetKey, BlockSize, ByteCount, Sha256, UnixTime, Validators};

/// What an appliance is to hold, and from where.
#[derive(Debug)]
pub struct Manifest {
    /// What it says before its list.
    pub head: Head,
    assets: AssetList,
    index: Index,
    purges: Purges,
}

/// What a manifest says beside the list of its assets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Whom it is for.
    pub audience: Audience,
    /// Its place in the line of manifests; never goes back.
    pub sequence: u64,
    /// From when on it may be in force.
    pub not_before: UnixTime,
    /// Until when it may be acted on.
    pub expires: UnixTime,
    /// What holds for assets that do not say otherwise.
    pub defaults: Defaults,
    /// What is to be dropped.
    pub purge: Vec<Purge>,
}

/// A list of assets being put together. For the parser and for tests.
#[derive(Debug, Default)]
pub struct Builder {
    assets: AssetList,
    index: Index,
}

/// Whom a manifest is for: every appliance, or those that one of the lists names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// Every appliance.
    pub all: bool,
    /// Names of appliances.
    pub appliances: Vec<Box<str>>,
    /// Names of sites.
    pub sites: Vec<Box<str>>,
    /// Names of groups.
    pub groups: Vec<Box<str>>,
}

/// What holds for assets that do not say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Media type.
    pub content_type: Option<Arc<str>>,
    /// Whether assets are pinned.
    pub pin: bool,
    /// Where to fetch from; empty: from the appliance's own sources, in their own order.
    pub sources: Arc<[SourceChoice]>,
}

/// An asset that is to be held. Its place in the list is its rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestAsset {
    /// What it is called.
    pub key: AssetKey,
    /// Its length.
    pub length: ByteCount,
    /// SHA-256 of the whole.
    pub sha256: Option<Sha256>,
    /// How much it is expected to be watched, in whatever unit the control plane counts; larger is more.
    pub popularity: Option<u32>,
    /// What few assets say.
    pub details: Option<Box<Details>>,
}

/// What an asset may say beyond its length and digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Digests of its blocks.
    pub blocks: Option<BlockDigests>,
    /// Media type, in place of the default.
    pub content_type: Option<Arc<str>>,
    /// Validators that its source is to show.
    pub validators: Validators,
    /// Whether it is pinned, in place of the default.
    pub pin: Option<bool>,
    /// Where to fetch it from, in place of the default.
    pub sources: Option<Arc<[SourceChoice]>>,
}

/// SHA-256 of each block of an asset. Invariant: as many as the asset has blocks of this size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDigests {
    /// Size of the blocks that were digested; not necessarily that of the appliance's volumes.
    pub size: BlockSize,
    /// One for each block, the last of which may be short.
    pub sha256: Box<[Sha256]>,
}

/// What is to be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// One asset; without a query, whatever its query.
    Key(AssetKey),
    /// Every asset whose decoded path begins so. Not empty.
    Prefix(Box<str>),
}

/// An asset is in the list twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twice {
    /// Rank of the first.
    pub first: usize,
}

impl Manifest {
    /// The assets, the most wanted first.
    pub fn assets(&self) -> &AssetList {
        &self.assets
    }

    /// An asset with its rank, which counts from 0.
    pub fn find(&self, key: &AssetKey) -> Option<(usize, &ManifestAsset)> {
        let rank = self.index.find(key, &self.assets)?;
        Some((rank, &self.assets[rank]))
    }

    /// Bytes of all assets; saturates.
    pub fn bytes(&self) -> ByteCount {
        ByteCount(self.assets.iter().fold(0, |sum, asset| sum.saturating_add(asset.length.0)))
    }

    /// The media type of an asset, where the manifest says one.
    pub fn content_type<'m>(&'m self, asset: &'m ManifestAsset) -> Option<&'m str> {
        let own = asset.details.as_deref().and_then(|details| details.content_type.as_deref());
        own.or(self.head.defaults.content_type.as_deref())
    }

    /// Whether an asset is pinned: not evicted while the manifest is in force.
    pub fn is_pinned(&self, asset: &ManifestAsset) -> bool {
        asset.details.as_deref().and_then(|details| details.pin).unwrap_or(self.head.defaults.pin)
    }

    /// Where to fetch an asset from, cheapest first; empty: from the appliance's own sources, in their own order.
    pub fn sources<'m>(&'m self, asset: &'m ManifestAsset) -> &'m [SourceChoice] {
        let own = asset.details.as_deref().and_then(|details| details.sources.as_deref());
        own.unwrap_or(&self.head.defaults.sources)
    }

    /// Whether it is too late to act on it. It stays in force, so that what is held stays; nothing more is fetched for it.
    pub fn has_expired(&self, now: UnixTime) -> bool {
        now >= self.head.expires
    }

    /// Whether `purge` names an asset.
    pub fn purges(&self, key: &AssetKey) -> bool {
        self.purges.name(key, &self.head.purge)
    }
}

impl Builder {
    /// Adds an asset below all others.
    ///
    /// # Errors
    /// It is there already.
    pub fn add(&mut self, asset: ManifestAsset) -> Result<(), Twice> {
        self.assets.push(asset);
        self.index.add(&self.assets).map_err(|first| {
            self.assets.pop();
            Twice { first }
        })
    }

    /// Assets so far.
    pub fn len(&self) -> usize {
        self.assets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.assets.is_empty()
    }

    /// The manifest of a head and these assets.
    pub fn finish(mut self, head: Head) -> Manifest {
        self.assets.shrink_to_fit();
        let purges = Purges::of(&head.purge);
        Manifest { head, assets: self.assets, index: self.index, purges }
    }
}

impl ManifestAsset {
    /// An asset that says no more.
    pub fn new(key: AssetKey, length: ByteCount) -> Self {
        Self { key, length, sha256: None, popularity: None, details: None }
    }

    /// The digests of its blocks, where the manifest gives them.
    pub fn blocks(&self) -> Option<&BlockDigests> {
        self.details.as_deref()?.blocks.as_ref()
    }

    /// The validators that its source is to show, where the manifest gives any.
    pub fn validators(&self) -> Option<&Validators> {
        let validators = &self.details.as_deref()?.validators;
        (*validators != Validators::default()).then_some(validators)
    }
}

impl Audience {
    /// Whether an appliance of this name, site and groups is meant.
    pub fn names(&self, appliance: &str, site: &str, groups: &[String]) -> bool {
        let has = |list: &[Box<str>], name: &str| !name.is_empty() && list.iter().any(|listed| **listed == *name);
        self.all
            || has(&self.appliances, appliance)
            || has(&self.sites, site)
            || groups.iter().any(|group| has(&self.groups, group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset(path: &str) -> ManifestAsset {
        ManifestAsset::new(AssetKey::parse(path, None).expect("a key"), ByteCount(1))
    }

    #[test]
    fn an_asset_is_found_by_its_key_with_its_rank() {
        let mut builder = Builder::default();
        for number in 0..5000 {
            builder.add(asset(&format!("/{number}"))).expect("no other has this key");
        }
        assert_eq!(builder.add(asset("/%34999")), Err(Twice { first: 4999 }), "4 is %34");
        assert_eq!(builder.len(), 5000);
        let manifest = builder.finish(Head::default());
        for number in 0..5000 {
            let key = asset(&format!("/{number}")).key;
            assert_eq!(manifest.find(&key).map(|(rank, found)| (rank, &found.key)), Some((number, &key)));
        }
        assert!(manifest.find(&asset("/5000").key).is_none());
        assert_eq!(manifest.bytes(), ByteCount(5000));
    }

    #[test]
    fn what_an_asset_does_not_say_the_defaults_say() {
        let origin: Arc<[SourceChoice]> = [SourceChoice::named("origin")].into();
        let defaults = Defaults { content_type: Some("video/mp4".into()), pin: true, sources: Arc::clone(&origin) };
        let mut builder = Builder::default();
        let own = Details {
            content_type: Some("a/b".into()),
            pin: Some(false),
            sources: Some([].into()),
            ..Details::default()
        };
        builder.add(asset("/plain")).expect("one");
        builder.add(ManifestAsset { details: Some(Box::new(own)), ..asset("/own") }).expect("another");
        let manifest = builder.finish(Head { defaults, ..Head::default() });
        let (plain, own) = (&manifest.assets()[0], &manifest.assets()[1]);
        assert_eq!((manifest.content_type(plain), manifest.content_type(own)), (Some("video/mp4"), Some("a/b")));
        assert_eq!((manifest.is_pinned(plain), manifest.is_pinned(own)), (true, false));
        assert_eq!((manifest.sources(plain), manifest.sources(own)), (&*origin, &[][..]));
    }

    #[test]
    fn an_audience_names_by_appliance_site_or_group() {
        let groups = ["europe".to_owned()];
        let audience = |appliance: &str, site: &str, group: &str| {
            let list = |name: &str| vec![name.into()];
            Audience { all: false, appliances: list(appliance), sites: list(site), groups: list(group) }
        };
        assert!(audience("a", "x", "x").names("a", "s", &groups));
        assert!(audience("x", "s", "x").names("a", "s", &groups));
        assert!(audience("x", "x", "europe").names("a", "s", &groups));
        assert!(!audience("s", "a", "a").names("a", "s", &groups), "each list names its own kind");
        assert!(!audience("", "", "").names("", "", &[String::new()]), "who has no name is not named");
        assert!(Audience { all: true, ..Audience::default() }.names("", "", &[]));
    }
}
