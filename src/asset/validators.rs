//! Validators of one version of an asset (RFC 9110, 8.8).

use super::UnixTime;

/// An entity tag with its quotes, `W/` included where weak (RFC 9110, 8.8.3). Invariant: grammatical, at most 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntityTag(Box<str>);

impl EntityTag {
    /// Longest entity tag we keep, in bytes.
    pub const BYTES_MAX: usize = 256;

    /// Parses `"opaque"` or `W/"opaque"`; `None` where the grammar of RFC 9110, 8.8.3 does not allow it, or it is not ASCII.
    pub fn parse(text: &str) -> Option<Self> {
        let opaque = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?.strip_suffix('"')?;
        let allowed = opaque.bytes().all(|b| b == 0x21 || (0x23..=0x7e).contains(&b));
        (allowed && text.len() <= Self::BYTES_MAX).then(|| Self(text.into()))
    }

    /// As it stands in a header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it says nothing about byte-for-byte equality.
    pub fn is_weak(&self) -> bool {
        self.0.starts_with("W/")
    }

    /// Strong comparison (RFC 9110, 8.8.3.2): equal and neither weak.
    pub fn strong_eq(&self, other: &Self) -> bool {
        !self.is_weak() && self == other
    }

    /// Weak comparison (RFC 9110, 8.8.3.2): equal but for `W/`.
    pub fn weak_eq(&self, other: &Self) -> bool {
        self.0.trim_start_matches("W/") == other.0.trim_start_matches("W/")
    }
}

/// What tells one version of an asset from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// The source's entity tag.
    pub etag: Option<EntityTag>,
    /// The source's `Last-Modified`.
    pub last_modified: Option<UnixTime>,
    /// Whether `last_modified` may be used for a strong comparison: the source's `Date` was at least one second later
    /// (RFC 9110, 8.8.2.2).
    pub last_modified_is_strong: bool,
}

impl Validators {
    /// Whether parts fetched at different times may be combined into one asset (RFC 9110, 15.3.7.3: a strong validator is needed).
    pub fn allow_combining(&self) -> bool {
        self.etag.as_ref().is_some_and(|tag| !tag.is_weak())
            || (self.last_modified.is_some() && self.last_modified_is_strong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_grammar_of_rfc_9110_is_an_entity_tag() {
        for good in ["\"\"", "\"a\"", "W/\"a\"", "\"!#~\"", "\"a-b:c,d\""] {
            assert!(EntityTag::parse(good).is_some(), "{good}");
        }
        for bad in ["", "a", "\"", "w/\"a\"", "\"a\"b\"", "\"a b\"", "\"a\r\n\"", "W/", "\"ä\""] {
            assert!(EntityTag::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_weak_tag_never_equals_anything_strongly() {
        let weak = EntityTag::parse("W/\"a\"").expect("grammatical");
        let strong = EntityTag::parse("\"a\"").expect("grammatical");
        assert!(!weak.strong_eq(&weak) && !weak.strong_eq(&strong));
        assert!(weak.weak_eq(&strong) && strong.strong_eq(&strong));
    }
}
