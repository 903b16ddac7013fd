//! Sources that speak HTTP.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, PRAGMA, RANGE, RETRY_AFTER, TRANSFER_ENCODING, VARY,
    },
};
use url::Url;

use super::{
    Freshness, SourceConfig,
    check::{Reply, check},
    freshness::{Storing, storing},
    ranking::How,
    source::{Ask, AskRange, Caching, ContentRange, Expires, Head, Manner, SourceFault},
};
use crate::{
    asset::{AssetKey, ByteRange, EntityTag, UnixTime, Validators},
    net::{
        bucket::{AddressError, Bucket, BucketError},
        client::{ClientError, ClientLimits},
        download::{Download, DownloadError, Downloader, Pieces},
        redirects::Redirects,
    },
};

/// Longest header value of a source that is kept, in bytes.
const VALUE_MAX: usize = 1024;

/// Not among http's names: RFC 8586.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// A source that speaks HTTP.
#[derive(Debug)]
pub(super) struct Http {
    client: Downloader,
    /// For fills ahead of demand: its connections are driven by their threads, which nobody who waits shall depend on.
    ahead: Downloader,
    place: Place,
    /// Whom redirects to other hosts are followed by, for who waits and for fills ahead of demand, and which.
    away: Option<([Downloader; 2], Redirects)>,
}

/// Where the assets of a source lie.
#[derive(Debug)]
pub(super) enum Place {
    Below(Url),
    Bucket(Bucket),
}

impl Place {
    fn is_secure(&self, config: &SourceConfig) -> bool {
        match self {
            Self::Below(base) => base.scheme() == "https",
            Self::Bucket(_) => config.store.is_secure(),
        }
    }

    /// Whether the operator has named a private address.
    fn is_private(&self, config: &SourceConfig) -> bool {
        match self {
            Self::Below(base) => Redirects::names_private(base),
            Self::Bucket(_) => config.store.endpoint.as_ref().is_some_and(Redirects::names_private),
        }
    }
}

/// Why a source cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Its client cannot.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its bucket cannot.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

impl Http {
    pub(super) fn new(place: Place, config: &SourceConfig) -> Result<Self, HttpError> {
        let limits = ClientLimits {
            connect_timeout: config.connect_timeout,
            idle_max: config.connections_max,
            secure: place.is_secure(config),
        };
        let mut away = None;
        if !config.redirects.hosts.is_empty() {
            let mut redirects = config.redirects.clone();
            // Who names a private address as the source means that network.
            redirects.allow_private |= place.is_private(config);
            // A redirect may lead to https from wherever it comes.
            let limits = ClientLimits { secure: true, ..limits };
            let made = |pieces| Downloader::redirected(limits, config.files.authorities.clone(), pieces, &redirects);
            away = Some(([made(Pieces::Large)?, made(Pieces::Small)?], redirects));
        }
        let made = |pieces| Downloader::new(limits, &config.files, pieces);
        Ok(Self { client: made(Pieces::Large)?, ahead: made(Pieces::Small)?, place, away })
    }

    pub(super) async fn open(
        &self,
        key: &AssetKey,
        ask: &Ask<'_>,
        manner: Manner<'_>,
    ) -> Result<(Head, Download), SourceFault> {
        let address = match &self.place {
            Place::Below(base) => below(manner.below.unwrap_or(base), key),
            Place::Bucket(bucket) => bucket.address(key.path()).await.map_err(|err| match err {
                AddressError::Credentials => SourceFault::Credentials,
                AddressError::Name => SourceFault::Name,
            })?,
        };
        let fields = asking(ask, manner)?;
        let send = async |client: &Downloader, address: &Url| {
            client.get(address.clone(), &fields).await.map_err(|err| {
                tracing::debug!(source = address.host_str(), error = &err as &dyn std::error::Error, "no answer");
                match err {
                    DownloadError::Connect(_) => SourceFault::Connect,
                    DownloadError::Broken(_) => SourceFault::Broken,
                }
            })
        };
        let mut response = send(if manner.ahead { &self.ahead } else { &self.client }, &address).await?;
        if let Some(away) = led_away(&response)
            && let Some((clients, redirects)) = &self.away
        {
            if let Err(why) = redirects.judge(response.url(), &away) {
                // Its path and query may hold what lets others in.
                tracing::warn!(source = address.host_str(), to = away.host_str(), reason = %why, "a redirect is not followed");
                return Err(SourceFault::Redirect);
            }
            // Whom the operator did not name as the source, and who cannot be connected to, is the redirect's fault.
            response = send(&clients[usize::from(manner.ahead)], &away).await.map_err(|fault| match fault {
                SourceFault::Connect => SourceFault::Redirect,
                fault => fault,
            })?;
        }
        let status = response.status().as_u16();
        // Where a redirect has led to nothing, it is the redirect that is wrong: the source did not say that it lacks the asset.
        let is_elsewhere = response.url().path() != address.path() || response.url().origin() != address.origin();
        if matches!(status, 404 | 410) && is_elsewhere {
            return Err(SourceFault::Redirect);
        }
        let mut head = head(status, response.headers());
        // RFC 9112, 6.3: such a body ends when the connection does, for whatever reason.
        head.ends_with_connection = response.version() < Version::HTTP_2
            && head.content_length.is_none()
            && !response.headers().contains_key(TRANSFER_ENCODING);
        Ok((head, response))
    }
}

/// Where a response leads to that is a redirect still, since it leaves its origin.
fn led_away(response: &Download) -> Option<Url> {
    // Within the origin, it was followed as often as is allowed.
    response.leads_to().filter(|away| away.origin() != response.url().origin())
}

/// The fields of a request for what is asked.
fn asking(ask: &Ask<'_>, manner: Manner<'_>) -> Result<HeaderMap, SourceFault> {
    let mut fields = HeaderMap::new();
    let mut say = |name: HeaderName, value: &str| {
        // Names of caches and validators are checked where they come from.
        let value = HeaderValue::from_str(value).map_err(|_| SourceFault::Broken)?;
        fields.insert(name, value);
        Ok(())
    };
    say(CDN_LOOP, &loop_of(manner))?;
    if manner.how == How::IfHeld {
        say(CACHE_CONTROL, "only-if-cached")?;
    }
    match ask.range {
        AskRange::Whole => {}
        AskRange::Part { start, end: Some(end) } => say(RANGE, &format!("bytes={start}-{}", end.saturating_sub(1)))?,
        AskRange::Part { start, end: None } => say(RANGE, &format!("bytes={start}-"))?,
        AskRange::Suffix(count) => say(RANGE, &format!("bytes=-{count}"))?,
    }
    if let Some(value) = ask.if_range.and_then(if_range) {
        say(IF_RANGE, &value)?;
    }
    if let Some(validators) = ask.unless {
        if let Some(tag) = &validators.etag {
            say(IF_NONE_MATCH, tag.as_str())?;
        }
        if let Some(date) = validators.last_modified {
            say(IF_MODIFIED_SINCE, &httpdate::fmt_http_date(date.into()))?;
        }
    }
    Ok(fields)
}

/// The asset's address: below the base, whatever the key looks like. Joining would let a key that looks like an address
/// replace the base.
fn below(base: &Url, key: &AssetKey) -> Url {
    let mut address = base.clone();
    let (path, query) = (key.to_url_path(), key.query());
    let path = path.split('?').next().unwrap_or_default();
    address.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    address.set_query(query.or(base.query()));
    address
}

/// The caches that a request has come through, this one the last (RFC 8586). A peer hears that it is one, so that it asks no
/// further peer to fetch.
fn loop_of(manner: Manner<'_>) -> String {
    let before = manner.through.map_or(String::new(), |through| format!("{through}, "));
    let peer = if manner.how == How::Outside { "" } else { "; peer=1" };
    format!("{before}{}{peer}", manner.me)
}

/// RFC 9110, 13.1.5: only a strong validator.
fn if_range(validators: &Validators) -> Option<String> {
    match &validators.etag {
        Some(tag) if !tag.is_weak() => Some(tag.as_str().into()),
        _ => validators
            .last_modified
            .filter(|_| validators.last_modified_is_strong)
            .map(|date| httpdate::fmt_http_date(date.into())),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|value| !value.is_empty() && value.len() <= VALUE_MAX)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<UnixTime> {
    httpdate::parse_http_date(text(headers, name)?).ok().map(UnixTime::from)
}

fn head(status: u16, headers: &HeaderMap) -> Head {
    let (modified, sent) = (date(headers, &LAST_MODIFIED), date(headers, &DATE));
    // RFC 9110, 6.6.1: a response without a date is as of when it came.
    let as_of = sent.unwrap_or_else(|| SystemTime::now().into());
    let control: Vec<&str> = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()).collect();
    let control = control.join(", ");
    let varies = headers
        .get_all(VARY)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|v| v.trim() == "*"));
    Head {
        status,
        ends_with_connection: false,
        retry_after: text(headers, &RETRY_AFTER).and_then(|value| match value.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => date(headers, &RETRY_AFTER).map(|then| Duration::from_secs(then.since(as_of))),
        }),
        content_length: text(headers, &CONTENT_LENGTH).and_then(|value| value.parse().ok()),
        content_range: text(headers, &CONTENT_RANGE).and_then(parse_content_range),
        validators: Validators {
            etag: text(headers, &ETAG).and_then(EntityTag::parse),
            last_modified: modified,
            last_modified_is_strong: modified.is_some_and(|modified| as_of.since(modified) >= 1),
        },
        content_type: text(headers, &CONTENT_TYPE).map(Into::into),
        content_encoding: text(headers, &CONTENT_ENCODING)
            .filter(|coding| !coding.eq_ignore_ascii_case("identity"))
            .map(Into::into),
        caching: Caching {
            cache_control: (!control.is_empty() && control.len() <= VALUE_MAX).then(|| control.into()),
            expires: match headers.get(EXPIRES) {
                None => Expires::Unsaid,
                Some(_) => date(headers, &EXPIRES).map_or(Expires::Invalid, Expires::At),
            },
            date: sent,
            age_seconds: text(headers, &AGE).and_then(|value| value.parse().ok()).unwrap_or(0),
            pragma_no_cache: text(headers, &PRAGMA)
                .is_some_and(|value| value.to_ascii_lowercase().contains("no-cache")),
            varies_by_all: varies,
        },
    }
}

/// Judges a head that may say anything, as the answer to a question for `asked`: the part that would be taken. For fuzzing, so
/// that it goes through every parser of what sources send.
pub fn judge_untrusted(status: u16, headers: &HeaderMap, asked: std::ops::Range<u64>) -> Option<ByteRange> {
    let head = head(status, headers);
    let ask = Ask::of(AskRange::Part { start: asked.start, end: Some(asked.end) });
    let media_type = head.content_type.as_deref().unwrap_or_default();
    let stored = storing(&head.caching, media_type, UnixTime(1_000_000), &Freshness::default());
    match (stored, check(&head, &ask)) {
        (Storing::Store(_), Ok(Reply::Part { part, .. })) => Some(part),
        _ => None,
    }
}

/// `bytes 0-499/1000`, `bytes 0-499/*`, `bytes */1000`.
fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.split_once(' ')?;
    let (part, total) = rest.trim().split_once('/')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    if part == "*" {
        return Some(ContentRange { part: None, total });
    }
    let (first, last) = part.split_once('-')?;
    let part = ByteRange::new(first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?)?;
    // A part that reaches past the end is no part (RFC 9110, 14.4).
    (total.is_none_or(|total| part.end() <= total)).then_some(ContentRange { part: Some(part), total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leaves_the_base() {
        let base: Url = "http://origin.example/video/".parse().expect("valid");
        let address = |path: &str, query| below(&base, &AssetKey::parse(path, query).expect("valid")).to_string();
        assert_eq!(address("/a/b.mp4", None), "http://origin.example/video/a/b.mp4");
        assert_eq!(address("/http:/other.example/x", None), "http://origin.example/video/http:/other.example/x");
        assert_eq!(address("/a%3Fb%23c d", None), "http://origin.example/video/a%3Fb%23c%20d");
        assert_eq!(address("/a", Some("x=1")), "http://origin.example/video/a?x=1");
    }

    #[test]
    fn a_content_range_is_read_strictly() {
        let part = |start, end, total| Some(ContentRange { part: ByteRange::new(start, end), total });
        assert_eq!(parse_content_range("bytes 0-499/1000"), part(0, 500, Some(1000)));
        assert_eq!(parse_content_range("bytes 0-0/*"), part(0, 1, None));
        assert_eq!(parse_content_range("bytes */1000"), Some(ContentRange { part: None, total: Some(1000) }));
        for bad in [
            "",
            "bytes",
            "bytes 0-499",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "items 0-1/5",
            "bytes a-b/c",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
