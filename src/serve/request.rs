//! A request that has been checked: everything behind this file works on values that cannot be wrong.
//!
//! The protocol has parsed the head. What is refused here are shapes that are legal for a parser and wrong for a cache: bodies on GET,
//! transfer codings, missing or doubled `Host`, paths that name no asset.

use http::{
    HeaderMap, Method, Request, Version,
    header::{ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, HOST, RANGE, TRANSFER_ENCODING},
};

use super::ranges::{RangeSet, RangeSpec};
use crate::{
    asset::{AssetKey, KeyError},
    catalog::Want,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// The asset, or parts of it.
    Get,
    /// Only the head.
    Head,
}

/// A checked request for an asset.
#[derive(Debug)]
pub(super) struct AssetRequest {
    pub(super) verb: Verb,
    pub(super) key: AssetKey,
    /// Only of a GET (RFC 9110, 14.2).
    pub(super) ranges: Option<RangeSet>,
}

/// What a request is.
#[derive(Debug)]
pub(super) enum Checked {
    /// For an asset.
    Asset(AssetRequest),
    /// `OPTIONS`; a preflight if it says so.
    Options { preflight: bool },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// 405; and the connection ends where a body follows, which is not read.
    Method { body: bool },
    /// 400, and the connection ends: what follows on it cannot be trusted.
    Framing(&'static str),
    /// 400.
    Host,
    /// 404: nothing is named.
    NoAsset,
    /// 414.
    TooLong,
    /// 400.
    Path(KeyError),
}

/// Checks a request's head.
pub(super) fn check<B>(request: &Request<B>, query_in_key: bool, ranges_max: usize) -> Result<Checked, BadRequest> {
    let headers = request.headers();
    let framed = check_framing(headers);
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Err(BadRequest::Method { body: framed.is_err() });
    }
    framed?;
    check_host(request)?;
    let verb = match *request.method() {
        Method::OPTIONS => {
            return Ok(Checked::Options { preflight: headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) });
        }
        Method::HEAD => Verb::Head,
        _ => Verb::Get,
    };
    let query = request.uri().query().filter(|query| query_in_key && !query.is_empty());
    let key = AssetKey::parse(request.uri().path(), query).map_err(|err| match err {
        KeyError::Empty => BadRequest::NoAsset,
        KeyError::TooLong => BadRequest::TooLong,
        other => BadRequest::Path(other),
    })?;
    let ranges = (verb == Verb::Get).then(|| ranges_of(headers, ranges_max)).flatten();
    Ok(Checked::Asset(AssetRequest { verb, key, ranges }))
}

/// A GET for video has no body. One that announces a body is either confused or wants two servers to disagree on where the
/// next request begins (RFC 9112, 11.2).
fn check_framing(headers: &HeaderMap) -> Result<(), BadRequest> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(BadRequest::Framing("requests with a transfer coding are not accepted"));
    }
    let empty = |value: &http::HeaderValue| value.as_bytes().iter().all(|digit| *digit == b'0') && !value.is_empty();
    if headers.get_all(CONTENT_LENGTH).iter().any(|value| !empty(value)) {
        return Err(BadRequest::Framing("requests with a body are not accepted"));
    }
    Ok(())
}

/// RFC 9112, 3.2: exactly one `Host` in HTTP/1.1.
fn check_host<B>(request: &Request<B>) -> Result<(), BadRequest> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (None, None) if request.version() < Version::HTTP_11 || request.uri().authority().is_some() => Ok(()),
        _ => Err(BadRequest::Host),
    }
}

/// Characters that a host and port can have (RFC 3986, 3.2.2); an empty one is allowed by RFC 9110, 7.2.
pub(super) fn is_host(host: &[u8]) -> bool {
    host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(b))
}

/// The ranges, if exactly one `Range` field says any.
fn ranges_of(headers: &HeaderMap, ranges_max: usize) -> Option<RangeSet> {
    let mut fields = headers.get_all(RANGE).iter();
    let (field, None) = (fields.next()?, fields.next()) else { return None };
    RangeSet::parse(field.as_bytes(), ranges_max)
}

impl AssetRequest {
    /// The part to begin with, of an asset whose length is not known yet.
    pub(super) fn want(&self) -> Want {
        if self.verb == Verb::Head {
            return Want::Metadata;
        }
        match self.ranges.as_ref().map(RangeSet::specs) {
            None => Want::Range { start: 0, end: None },
            Some([RangeSpec::From { first, last }, ..]) => {
                Want::Range { start: *first, end: last.map(|last| last.saturating_add(1)) }
            }
            Some([RangeSpec::Suffix(count), ..]) => Want::Suffix(*count),
            Some([]) => Want::Metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Checked, BadRequest> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(()).expect("valid"), false, 8)
    }

    const HOST_OK: (&str, &str) = ("host", "edge.example:8080");

    #[test]
    fn a_body_is_refused_whatever_announces_it() {
        for fields in [
            &[HOST_OK, ("transfer-encoding", "chunked")][..],
            &[HOST_OK, ("transfer-encoding", "identity")],
            &[HOST_OK, ("content-length", "5")],
            &[HOST_OK, ("content-length", "0"), ("content-length", "5")],
        ] {
            assert!(matches!(checked("GET", "/a", fields), Err(BadRequest::Framing(_))), "{fields:?}");
        }
        assert!(checked("GET", "/a", &[HOST_OK, ("content-length", "0")]).is_ok());
    }

    #[test]
    fn exactly_one_host() {
        assert_eq!(checked("GET", "/a", &[]).err(), Some(BadRequest::Host));
        assert_eq!(checked("GET", "/a", &[HOST_OK, HOST_OK]).err(), Some(BadRequest::Host));
        assert_eq!(checked("GET", "/a", &[("host", "a b")]).err(), Some(BadRequest::Host));
        assert!(checked("GET", "http://edge.example/a", &[]).is_ok());
        assert!(checked("GET", "/a", &[("host", "[::1]:80")]).is_ok());
    }

    #[test]
    fn what_is_wanted_first_follows_the_range() {
        let want = |method, range: &str| match checked(method, "/a?x=1", &[HOST_OK, ("range", range)]) {
            Ok(Checked::Asset(request)) => request.want(),
            other => panic!("{other:?}"),
        };
        assert_eq!(want("GET", "bytes=5-9"), Want::Range { start: 5, end: Some(10) });
        assert_eq!(want("GET", "bytes=-7"), Want::Suffix(7));
        assert_eq!(want("GET", "nonsense"), Want::Range { start: 0, end: None });
        assert_eq!(want("HEAD", "bytes=5-9"), Want::Metadata);
    }

    #[test]
    fn only_three_methods() {
        for method in ["POST", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "BREW"] {
            let refused = |body| Some(BadRequest::Method { body });
            assert_eq!(checked(method, "/a", &[HOST_OK]).err(), refused(false), "{method}");
            assert_eq!(checked(method, "/a", &[HOST_OK, ("content-length", "5")]).err(), refused(true), "{method}");
        }
        assert!(matches!(checked("OPTIONS", "/a", &[HOST_OK]), Ok(Checked::Options { preflight: false })));
    }
}
