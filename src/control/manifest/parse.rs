//! Reads a manifest, version 1, from a stream. `docs/manifest.md` is the format; what is not in it is refused.

use std::{collections::HashSet, io::Read, sync::Arc, time::Duration};

use url::Url;

use super::{
    Audience, BlockDigests, Builder, Defaults, Details, Head, Manifest, ManifestAsset, Purge, SourceChoice, SourceRef,
    UrlTemplate,
};
use crate::{
    asset::{AssetKey, BlockSize, ByteCount, EntityTag, KEY_BYTES_MAX, Sha256, UnixTime},
    control::{
        config::Limits,
        expand::expand,
        json::{Json, Result},
        refusal::{Reason, Refused},
    },
};

/// The version that is read here.
const VERSION: u64 = 1;
/// Largest number that every JSON library keeps (RFC 8259, 6).
const SEQUENCE_MAX: u64 = (1 << 53) - 1;
/// The year 9999.
const TIME_MAX: u64 = 253_402_300_799;
/// Longest asset: its blocks are counted in 32 bits, whatever the size of a block.
const LENGTH_MAX: u64 = (u32::MAX as u64) << 16;
/// Bytes of a name.
const NAME_MAX: usize = 128;
/// Bytes of a media type.
const CONTENT_TYPE_MAX: usize = 256;
/// Bytes of an address.
const URL_MAX: usize = 2048;
/// Sources of one asset.
const SOURCES_MAX: usize = 16;
/// Names of each kind in an audience.
const AUDIENCE_MAX: usize = 100_000;
/// Longest wait before a source is asked.
const WAIT_MAX: u64 = 7 * 86_400;
/// Media types that are kept once; the further ones cost memory of their own.
const SHARED_MAX: usize = 256;

/// Which sources a manifest may name.
#[derive(Clone, Debug, Default)]
pub struct SourceRules {
    /// Names that are known; `None`: any.
    pub names: Option<Vec<String>>,
    /// Addresses below which templates may point; `None`: any.
    pub below: Option<Vec<Url>>,
}

/// Kinds of sources, which may be named where they are configured or not: a box without peers asks none.
pub const KINDS: [&str; 3] = ["peer", "tier", "origin"];

/// Reads a manifest, compressed or not.
///
/// # Errors
/// The first thing that is wrong with it, and where.
pub fn parse(input: impl Read, limits: &Limits, rules: &SourceRules) -> Result<Manifest> {
    let plain = expand(input, limits).map_err(|err| Refused::new(Reason::Encoding, err.to_string()))?;
    let mut json = Json::new(plain);
    let reader = Reader { limits, rules, shared: HashSet::new(), last_sources: None };
    let manifest = reader.read(&mut json)?;
    json.finish()?;
    Ok(manifest)
}

struct Reader<'l> {
    limits: &'l Limits,
    rules: &'l SourceRules,
    shared: HashSet<Arc<str>>,
    /// Most assets name the same sources as the one before.
    last_sources: Option<Arc<[SourceChoice]>>,
}

const MANIFEST: [&str; 8] = ["version", "sequence", "audience", "not_before", "expires", "defaults", "purge", "assets"];
const ASSET: [&str; 11] = [
    "key",
    "query",
    "length",
    "sha256",
    "blocks",
    "popularity",
    "content_type",
    "etag",
    "last_modified",
    "pin",
    "sources",
];

impl Reader<'_> {
    fn read<R: Read>(mut self, json: &mut Json<R>) -> Result<Manifest> {
        let (mut head, mut assets) = (Head::default(), Builder::default());
        let seen = json.object(&MANIFEST, |json, field| {
            match MANIFEST[field] {
                "version" => {
                    if json.integer(0, u64::MAX)? != VERSION {
                        return Err(json.fault(Reason::Version, format!("this appliance knows version {VERSION}")));
                    }
                }
                "sequence" => head.sequence = json.integer(1, SEQUENCE_MAX)?,
                "audience" => head.audience = audience(json)?,
                "not_before" => head.not_before = UnixTime(json.integer(0, TIME_MAX)?),
                "expires" => head.expires = UnixTime(json.integer(0, TIME_MAX)?),
                "defaults" => head.defaults = self.defaults(json)?,
                "purge" => json.list(self.limits.purges_max, |json, _| {
                    head.purge.push(purge(json)?);
                    Ok(())
                })?,
                _ => json.list(self.limits.assets_max, |json, _| {
                    let asset = self.asset(json)?;
                    assets.add(asset).map_err(|twice| {
                        let what = format!("assets[{}] has the same key", twice.first);
                        json.fault(Reason::DuplicateAsset, what).within("key")
                    })
                })?,
            }
            Ok(())
        })?;
        seen.require(&MANIFEST, &[0, 1, 2, 4, 7])?;
        if head.not_before >= head.expires {
            let what = "it is over before it begins";
            return Err(Refused::new(Reason::Value, what).at(seen.place).within("expires"));
        }
        Ok(assets.finish(head))
    }

    fn asset<R: Read>(&mut self, json: &mut Json<R>) -> Result<ManifestAsset> {
        let (mut path, mut query, mut length) = (String::new(), None, 0);
        let (mut sha256, mut popularity, mut details) = (None, None, Details::default());
        let place = json.place();
        let seen = json.object(&ASSET, |json, field| {
            match ASSET[field] {
                "key" => path = json.text(KEY_BYTES_MAX)?,
                "query" => query = Some(json.text(KEY_BYTES_MAX)?),
                "length" => length = json.integer(1, LENGTH_MAX)?,
                "sha256" => sha256 = Some(digest(json)?),
                "blocks" => details.blocks = Some(self.blocks(json)?),
                "popularity" => {
                    popularity = u32::try_from(json.integer(0, u32::MAX.into())?).ok();
                }
                "content_type" => details.content_type = Some(self.content_type(json)?),
                "etag" => {
                    let tag = EntityTag::parse(&json.text(EntityTag::BYTES_MAX)?);
                    let none = || json.fault(Reason::Value, "an entity tag with its quotes is expected");
                    details.validators.etag = Some(tag.ok_or_else(none)?);
                }
                "last_modified" => details.validators.last_modified = Some(UnixTime(json.integer(0, TIME_MAX)?)),
                "pin" => details.pin = Some(json.boolean()?),
                _ => details.sources = Some(self.sources(json)?),
            }
            Ok(())
        })?;
        seen.require(&ASSET, &[0, 2])?;
        let key = AssetKey::from_record(&path, query.as_deref());
        let key = key.map_err(|err| Refused::new(Reason::Path, err.to_string()).at(place).within("key"))?;
        if let Some(blocks) = &details.blocks {
            let (count, wanted) = (blocks.sha256.len() as u64, length.div_ceil(blocks.size.bytes()));
            if count != wanted {
                let what = format!("{wanted} digests are expected, not {count}");
                return Err(Refused::new(Reason::Value, what).at(place).within("blocks"));
            }
        }
        let details = (details != Details::default()).then(|| Box::new(details));
        Ok(ManifestAsset { key, length: ByteCount(length), sha256, popularity, details })
    }

    fn blocks<R: Read>(&self, json: &mut Json<R>) -> Result<BlockDigests> {
        const FIELDS: [&str; 2] = ["size", "sha256"];
        let (mut size, mut digests) = (BlockSize::DEFAULT, Vec::new());
        let seen = json.object(&FIELDS, |json, field| {
            if field == 0 {
                let known = BlockSize::new(json.integer(0, u64::MAX)?);
                let none = || json.fault(Reason::Value, "a power of two from 65536 to 67108864 is expected");
                size = known.ok_or_else(none)?;
                return Ok(());
            }
            json.list(self.limits.blocks_max, |json, _| {
                digests.push(digest(json)?);
                Ok(())
            })
        })?;
        seen.require(&FIELDS, &[0, 1])?;
        Ok(BlockDigests { size, sha256: digests.into() })
    }

    fn defaults<R: Read>(&mut self, json: &mut Json<R>) -> Result<Defaults> {
        const FIELDS: [&str; 3] = ["content_type", "pin", "sources"];
        let mut defaults = Defaults::default();
        json.object(&FIELDS, |json, field| {
            match FIELDS[field] {
                "content_type" => defaults.content_type = Some(self.content_type(json)?),
                "pin" => defaults.pin = json.boolean()?,
                _ => defaults.sources = self.sources(json)?,
            }
            Ok(())
        })?;
        Ok(defaults)
    }

    fn content_type<R: Read>(&mut self, json: &mut Json<R>) -> Result<Arc<str>> {
        let text = json.text(CONTENT_TYPE_MAX)?;
        // It goes into the head of responses.
        if text.is_empty() || text.bytes().any(|byte| !(0x20..=0x7e).contains(&byte)) {
            return Err(json.fault(Reason::Value, "a media type in printable ASCII is expected"));
        }
        if let Some(known) = self.shared.get(&*text) {
            return Ok(Arc::clone(known));
        }
        let text: Arc<str> = text.into();
        if self.shared.len() < SHARED_MAX {
            self.shared.insert(Arc::clone(&text));
        }
        Ok(text)
    }

    fn sources<R: Read>(&mut self, json: &mut Json<R>) -> Result<Arc<[SourceChoice]>> {
        let mut sources: Vec<SourceChoice> = Vec::new();
        json.list(SOURCES_MAX, |json, _| {
            let choice = self.source(json)?;
            if sources.iter().any(|other| other.source == choice.source) {
                return Err(json.fault(Reason::Source, "it is in the list twice"));
            }
            sources.push(choice);
            Ok(())
        })?;
        sources.sort_by_key(|choice| choice.cost);
        if let Some(last) = self.last_sources.as_ref().filter(|last| ***last == *sources) {
            return Ok(Arc::clone(last));
        }
        let sources: Arc<[SourceChoice]> = sources.into();
        self.last_sources = Some(Arc::clone(&sources));
        Ok(sources)
    }

    fn source<R: Read>(&self, json: &mut Json<R>) -> Result<SourceChoice> {
        const FIELDS: [&str; 4] = ["name", "url", "cost", "wait_s"];
        let (mut source, mut cost, mut wait) = (None, 0, Duration::ZERO);
        let seen = json.object(&FIELDS, |json, field| {
            match FIELDS[field] {
                "name" => source = Some(self.named(json)?),
                "url" => source = Some(self.template(json)?),
                "cost" => cost = u32::try_from(json.integer(0, u32::MAX.into())?).unwrap_or(u32::MAX),
                _ => wait = Duration::from_secs(json.integer(0, WAIT_MAX)?),
            }
            Ok(())
        })?;
        match source {
            Some(source) if seen.has(0) != seen.has(1) => Ok(SourceChoice { source, cost, wait }),
            _ => Err(Refused::new(Reason::Value, "either a name or a url is expected").at(seen.place)),
        }
    }

    fn named<R: Read>(&self, json: &mut Json<R>) -> Result<SourceRef> {
        let name = name(json)?;
        let is_known = |names: &Vec<String>| names.iter().any(|known| *known == *name) || KINDS.contains(&&*name);
        if self.rules.names.as_ref().is_none_or(is_known) {
            return Ok(SourceRef::Name(name));
        }
        Err(json.fault(Reason::Source, format!("no source called '{name}' is configured, and no kind is called so")))
    }

    fn template<R: Read>(&self, json: &mut Json<R>) -> Result<SourceRef> {
        let text = json.text(URL_MAX)?;
        let template = UrlTemplate::parse(&text).map_err(|err| json.fault(Reason::Source, err.to_string()))?;
        let is_allowed = |below: &Vec<Url>| below.iter().any(|base| template.is_below(base));
        if self.rules.below.as_ref().is_none_or(is_allowed) {
            return Ok(SourceRef::Url(template));
        }
        let what = "the address lies neither below that of a source nor below one of control.source_urls";
        Err(json.fault(Reason::Source, what))
    }
}

fn name<R: Read>(json: &mut Json<R>) -> Result<Box<str>> {
    let text = json.text(NAME_MAX)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(json.fault(Reason::Value, "a name is expected"));
    }
    Ok(text.into())
}

fn digest<R: Read>(json: &mut Json<R>) -> Result<Sha256> {
    let text = json.text(64)?;
    Sha256::from_hex(&text).ok_or_else(|| json.fault(Reason::Value, "64 lower-case hexadecimal digits are expected"))
}

fn audience<R: Read>(json: &mut Json<R>) -> Result<Audience> {
    const FIELDS: [&str; 4] = ["all", "appliances", "sites", "groups"];
    let mut audience = Audience::default();
    let seen = json.object(&FIELDS, |json, field| {
        let into = match FIELDS[field] {
            "all" => {
                audience.all = json.boolean()?;
                return Ok(());
            }
            "appliances" => &mut audience.appliances,
            "sites" => &mut audience.sites,
            _ => &mut audience.groups,
        };
        json.list(AUDIENCE_MAX, |json, _| {
            into.push(name(json)?);
            Ok(())
        })
    })?;
    if audience == Audience::default() {
        return Err(Refused::new(Reason::Value, "it is for nobody").at(seen.place));
    }
    Ok(audience)
}

fn purge<R: Read>(json: &mut Json<R>) -> Result<Purge> {
    const FIELDS: [&str; 3] = ["key", "query", "prefix"];
    let (mut texts, place): ([Option<String>; 3], _) = (Default::default(), json.place());
    json.object(&FIELDS, |json, field| {
        texts[field] = Some(json.text(KEY_BYTES_MAX)?);
        Ok(())
    })?;
    let bad = |field, err: crate::asset::KeyError| Refused::new(Reason::Path, err.to_string()).at(place).within(field);
    match texts {
        [Some(key), query, None] => {
            AssetKey::from_record(&key, query.as_deref()).map(Purge::Key).map_err(|err| bad("key", err))
        }
        [None, None, Some(prefix)] => {
            // What begins a key is a key itself, but that it may end anywhere.
            AssetKey::from_record(&format!("{prefix}-"), None).map_err(|err| bad("prefix", err))?;
            if prefix.is_empty() {
                return Err(Refused::new(Reason::Path, "it would purge everything").at(place).within("prefix"));
            }
            Ok(Purge::Prefix(prefix.into()))
        }
        _ => Err(Refused::new(Reason::Value, "either a key or a prefix is expected").at(place)),
    }
}
