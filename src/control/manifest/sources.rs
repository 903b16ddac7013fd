//! Where a manifest wants an asset fetched from.

use std::{fmt, time::Duration};

use url::Url;

use crate::asset::AssetKey;

/// One of the sources that an asset may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceChoice {
    /// Which.
    pub source: SourceRef,
    /// What it costs to ask it; the cheapest is asked first, equal ones in the order of the list.
    pub cost: u32,
    /// How long to wait, from when the asset is wanted, before this source is asked: for cheaper ones to have it.
    pub wait: Duration,
}

/// A source, as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceRef {
    /// By the name of one in the appliance's configuration, or by a kind: `peer`, `tier`, `origin`.
    Name(Box<str>),
    /// By address. Allowed by the appliance's configuration.
    Url(UrlTemplate),
}

/// Addresses of assets: `{path}` stands for an asset's path. Invariant: `http` or `https`, with a host, without user, fragment or query,
/// and `{path}` once, at the end of the path and after a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlTemplate(Url);

/// What is wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write an address such as https://origin.example/video/{{path}}, without user, query or fragment")]
pub struct UrlTemplateError;

impl SourceChoice {
    /// A source by name, at no cost.
    pub fn named(name: impl Into<Box<str>>) -> Self {
        Self { source: SourceRef::Name(name.into()), cost: 0, wait: Duration::ZERO }
    }
}

impl UrlTemplate {
    const PLACE: &str = "{path}";

    /// Reads an address with `{path}` at its end.
    ///
    /// # Errors
    /// It is no such address.
    pub fn parse(text: &str) -> Result<Self, UrlTemplateError> {
        let base = text.strip_suffix(Self::PLACE).ok_or(UrlTemplateError)?;
        let readable = base.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}' | b'\\'));
        let (scheme, rest) = base.split_once("://").ok_or(UrlTemplateError)?;
        let url: Url = base.parse().map_err(|_| UrlTemplateError)?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && !rest.contains('@')
            && url.query().is_none()
            && url.fragment().is_none();
        let (_, path) = rest.split_once('/').ok_or(UrlTemplateError)?;
        // Escaped or not, a segment of dots would leave the folder that it stands in: the address is taken as it is, or not at all.
        let stays = url.path().trim_start_matches('/') == path && !path.to_ascii_lowercase().contains("%2e");
        let known = matches!(scheme, "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
        let is_one = readable && plain && stays && known && base.ends_with('/');
        if is_one { Ok(Self(url)) } else { Err(UrlTemplateError) }
    }

    /// The address of an asset: below this one, whatever the key looks like.
    pub fn url(&self, key: &AssetKey) -> Url {
        let mut address = self.0.clone();
        let whole = key.to_url_path();
        let path = whole.split('?').next().unwrap_or_default();
        address.set_path(&format!("{}{path}", self.0.path()));
        address.set_query(key.query());
        address
    }

    /// The address below which all assets lie, with a trailing slash: that of a source.
    pub fn base(&self) -> &Url {
        &self.0
    }

    /// Whether all its addresses lie below `base`, whose path ends with a slash.
    pub fn is_below(&self, base: &Url) -> bool {
        self.0.origin() == base.origin() && self.0.path().starts_with(base.path())
    }
}

impl fmt::Display for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, Self::PLACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_strictly_and_never_left() {
        for bad in [
            "",
            "{path}",
            "https://a/",
            "https://a{path}",
            "https://a/x{path}",
            "https://a/{path}/x",
            "https://{path}/",
            "https:///{path}",
            "https://u@a/{path}",
            "https://@a/{path}",
            "https://a/?x={path}",
            "https://a/#/{path}",
            "ftp://a/{path}",
            "file:///a/{path}",
            "HTTPS://a/{path}",
            "https://a/b/../{path}",
            "https://a/b/%2e%2E/{path}",
            "https://a/b\\c/{path}",
            "https://a/{x}/{path}",
            "https://a /{path}",
        ] {
            assert_eq!(UrlTemplate::parse(bad), Err(UrlTemplateError), "{bad}");
        }
        let template = UrlTemplate::parse("https://a.example:8443/video/{path}").expect("an address");
        assert_eq!(template.to_string(), "https://a.example:8443/video/{path}");
        let url = |path: &str, query| template.url(&AssetKey::parse(path, query).expect("a key")).to_string();
        assert_eq!(url("/x/y z.mp4", None), "https://a.example:8443/video/x/y%20z.mp4");
        assert_eq!(
            url("/https://b.example/x".replace("//", "/").as_str(), None),
            "https://a.example:8443/video/https:/b.example/x"
        );
        assert_eq!(url("/a%3Fb", Some("c=d")), "https://a.example:8443/video/a%3Fb?c=d");
    }

    #[test]
    fn what_lies_below_an_address_has_its_origin_and_folder() {
        let template = UrlTemplate::parse("https://a.example/video/{path}").expect("an address");
        let below = |base: &str| template.is_below(&base.parse().expect("an address"));
        assert!(below("https://a.example/") && below("https://a.example/video/") && below("https://a.example:443/"));
        assert!(!below("http://a.example/") && !below("https://a.example:444/") && !below("https://a.example/vid/"));
        assert!(!below("https://b.example/") && !below("https://a.example/video/x/"));
    }
}
