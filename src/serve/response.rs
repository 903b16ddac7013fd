//! Heads of responses: the only file that knows status codes.

use std::fmt::Write as _;

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, AGE, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING,
        CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, ORIGIN, RETRY_AFTER, SET_COOKIE, VARY,
        WWW_AUTHENTICATE,
    },
};
use smallvec::SmallVec;

use super::{
    Config,
    http1::{head::BadHead, write},
    request::BadRequest,
};
use crate::{
    asset::{ByteRange, EntityTag, UnixTime, media_type_of},
    catalog::{Meta, Refusal},
    telemetry::{
        access_log::hexadecimal,
        metrics::{CacheOutcome, Denial},
    },
};

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// What a player's script may read of a response: the ranges it got, and what the cache says of itself.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Accept-Ranges, Age, Cache-Status, Content-Encoding, Content-Length, Content-Range, Date, ETag, Last-Modified, Retry-After",
);
/// What a player's script may send.
const ALLOWED: HeaderValue = HeaderValue::from_static(
    "Cache-Control, Content-Type, If-Match, If-Modified-Since, If-None-Match, If-Range, If-Unmodified-Since, Pragma, Range",
);
/// Not in the `http` crate: RFC 9211, and the Resource Timing specification.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");

/// The number of a refused request, as it stands in the access log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// RFC 9110, 11.6.1 obliges a 401 to name a scheme; RFC 9246 has none.
const URI_SIGNING: HeaderValue = HeaderValue::from_static("URISigningPackage");
/// For this client alone.
const PRIVATE: HeaderValue = HeaderValue::from_static("private");

/// A head in the making.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

/// Header values that are the same for every response, made once.
#[derive(Debug)]
pub(super) struct Templates {
    statuses: [(CacheOutcome, HeaderValue); 8],
    /// `Cache-Status` of a miss that came to nothing.
    missed: HeaderValue,
    cors: Cors,
    max_age: HeaderValue,
    retry_after: HeaderValue,
    /// The beginning of a hit's head, whole and partial, as it stands on the wire.
    hit_whole: Vec<u8>,
    hit_part: Vec<u8>,
    /// That of a refusal for overload, up to the value of `Retry-After`, for requests whose origin is not weighed.
    overloaded: Vec<u8>,
}

/// What is said with a refusal for overload.
const OVERLOADED: &str = "too many requests just now, try again later or elsewhere";

#[derive(Debug)]
enum Cors {
    Off,
    Any,
    Listed(Vec<HeaderValue>),
}

/// What of an asset is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Extent<'a> {
    Whole,
    Part(ByteRange),
    /// Several, and the length of the body that carries them.
    Parts {
        boundary: &'a str,
        body_length: u64,
    },
}

impl Head {
    /// Whether the client gets what it asked for.
    pub(super) fn is_success(&self) -> bool {
        self.status.is_success() || self.status == StatusCode::NOT_MODIFIED
    }

    /// Gives the client a cookie, and nobody between us and it.
    pub(super) fn give(&mut self, cookie: HeaderValue) {
        self.headers.append(SET_COOKIE, cookie);
        self.headers.append(CACHE_CONTROL, PRIVATE);
    }
}

impl Templates {
    pub(super) fn new(config: &Config) -> Self {
        let name = &config.server_name;
        let value = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("oca"));
        let status = |outcome: CacheOutcome| {
            // RFC 9211, 2: a hit, or why the request went forward; never both.
            let params = match outcome {
                CacheOutcome::Hit => "hit",
                CacheOutcome::Miss => "fwd=uri-miss; stored",
                CacheOutcome::Partial => "fwd=partial; stored",
                CacheOutcome::Stale => "hit; detail=stale-if-error",
                CacheOutcome::Revalidated => "fwd=stale; fwd-status=304",
                CacheOutcome::Pass => "fwd=bypass",
                CacheOutcome::Negative => "hit; detail=negative",
                CacheOutcome::None => "detail=refused",
            };
            (outcome, value(format!("{name}; {params}")))
        };
        let cors = match config.cors.origins.as_slice() {
            [] => Cors::Off,
            origins if origins.iter().any(|origin| origin == "*") => Cors::Any,
            origins => Cors::Listed(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect()),
        };
        let mut made = Self {
            statuses: CacheOutcome::ALL.map(status),
            missed: value(format!("{name}; fwd=uri-miss")),
            cors,
            max_age: HeaderValue::from(config.cors.max_age.as_secs()),
            retry_after: HeaderValue::from(config.retry_after.as_secs().max(1)),
            hit_whole: Vec::new(),
            hit_part: Vec::new(),
            overloaded: Vec::new(),
        };
        let beginning = |status| {
            let mut text = Vec::new();
            write::status_line(&mut text, status);
            write::fields(&mut text, &made.head(status, CacheOutcome::Hit, &HeaderMap::new()).headers);
            text
        };
        (made.hit_whole, made.hit_part) = (beginning(StatusCode::OK), beginning(StatusCode::PARTIAL_CONTENT));
        let (mut head, _) = made.overloaded(0, &HeaderMap::new());
        head.headers.remove(RETRY_AFTER);
        write::status_line(&mut made.overloaded, head.status);
        write::fields(&mut made.overloaded, &head.headers);
        made.overloaded.extend_from_slice(b"Retry-After: ");
        made
    }

    /// Whether what is answered depends on the request's `Origin`.
    pub(super) fn weighs_origin(&self) -> bool {
        matches!(self.cors, Cors::Listed(_))
    }

    /// Writes what [`Templates::asset`] would make of a hit, whole or a part, as HTTP/1.1 text, for a request without `Origin` or
    /// one whose origin is not weighed. `fields`: as [`Described::fields_text`] has them.
    pub(super) fn write_hit(
        &self,
        out: &mut Vec<u8>,
        fields: &[u8],
        age: u64,
        (part, length): (Option<ByteRange>, u64),
    ) -> StatusCode {
        let (status, beginning) = match part {
            Some(_) => (StatusCode::PARTIAL_CONTENT, &self.hit_part),
            None => (StatusCode::OK, &self.hit_whole),
        };
        out.extend_from_slice(beginning);
        out.extend_from_slice(fields);
        out.extend_from_slice(b"Age: ");
        write::number(out, age);
        if let Some(part) = part {
            out.extend_from_slice(b"\r\nContent-Range: bytes ");
            write::number(out, part.start());
            out.push(b'-');
            write::number(out, part.end() - 1);
            out.push(b'/');
            write::number(out, length);
        }
        out.extend_from_slice(b"\r\nContent-Length: ");
        write::number(out, part.map_or(length, ByteRange::len));
        out.extend_from_slice(b"\r\n");
        status
    }

    fn head(&self, status: StatusCode, outcome: CacheOutcome, request: &HeaderMap) -> Head {
        let mut headers = HeaderMap::with_capacity(16);
        if let Some((_, value)) = self.statuses.iter().find(|(known, _)| *known == outcome) {
            headers.insert(CACHE_STATUS, value.clone());
        }
        self.add_cors(&mut headers, request);
        Head { status, headers }
    }

    fn add_cors(&self, headers: &mut HeaderMap, request: &HeaderMap) {
        let allowed = match &self.cors {
            Cors::Off => return,
            Cors::Any => HeaderValue::from_static("*"),
            Cors::Listed(origins) => {
                // The answer differs by origin, also where it is no.
                headers.insert(VARY, HeaderValue::from_static("Origin"));
                match request.get(ORIGIN).filter(|origin| origins.contains(origin)) {
                    Some(origin) => origin.clone(),
                    None => return,
                }
            }
        };
        headers.insert(TIMING_ALLOW_ORIGIN, allowed.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }

    /// 200 or 206 with what describes the asset and the part of it.
    pub(super) fn asset(
        &self,
        outcome: CacheOutcome,
        request: &HeaderMap,
        meta: &Described<'_>,
        extent: &Extent<'_>,
    ) -> Head {
        let status = if *extent == Extent::Whole { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
        let mut head = self.head(status, outcome, request);
        meta.validators(&mut head.headers);
        let headers = &mut head.headers;
        headers.insert(ACCEPT_RANGES, BYTES);
        let content_type = match extent {
            Extent::Parts { boundary, .. } => {
                HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}")).ok()
            }
            _ => Some(meta.content_type()),
        };
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        if let Some(coding) =
            meta.meta.content_encoding.as_deref().and_then(|coding| HeaderValue::from_str(coding).ok())
        {
            headers.insert(CONTENT_ENCODING, coding);
        }
        // What follows differs from request to request.
        meta.age(headers);
        let length = match extent {
            Extent::Whole => meta.meta.length,
            Extent::Part(part) => {
                headers.insert(CONTENT_RANGE, content_range(Some(*part), meta.meta.length));
                part.len()
            }
            Extent::Parts { body_length, .. } => *body_length,
        };
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        head
    }

    /// The head of a response that passes through; `length` of the body where it is known.
    pub(super) fn passed(
        &self,
        request: &HeaderMap,
        meta: &Described<'_>,
        part: Option<(ByteRange, u64)>,
        length: Option<u64>,
    ) -> Head {
        let extent = part.map_or(Extent::Whole, |(part, _)| Extent::Part(part));
        let mut head = self.asset(CacheOutcome::Pass, request, meta, &extent);
        match (part, length) {
            (Some((part, total)), _) => drop(head.headers.insert(CONTENT_RANGE, content_range(Some(part), total))),
            (None, Some(length)) => drop(head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
            // HTTP/1.1 sends chunks; the end of the body is marked, so that a cut shows.
            (None, None) => drop(head.headers.remove(CONTENT_LENGTH)),
        }
        head
    }

    /// 304 (RFC 9110, 15.4.5: with the fields that a 200 would have had for caches).
    pub(super) fn not_modified(&self, outcome: CacheOutcome, request: &HeaderMap, meta: &Described<'_>) -> Head {
        let mut head = self.head(StatusCode::NOT_MODIFIED, outcome, request);
        meta.validators(&mut head.headers);
        meta.age(&mut head.headers);
        head
    }

    /// 412.
    pub(super) fn precondition_failed(&self, outcome: CacheOutcome, request: &HeaderMap) -> (Head, &'static str) {
        self.error(
            StatusCode::PRECONDITION_FAILED,
            "the asset is another version than the request names",
            outcome,
            request,
        )
    }

    /// 416 with the length that there is, where that is known (RFC 9110, 15.5.17).
    pub(super) fn unsatisfiable(
        &self,
        outcome: CacheOutcome,
        request: &HeaderMap,
        length: Option<u64>,
        why: &'static str,
    ) -> (Head, &'static str) {
        let (mut head, text) = self.error(StatusCode::RANGE_NOT_SATISFIABLE, why, outcome, request);
        if let Some(length) = length {
            head.headers.insert(CONTENT_RANGE, content_range(None, length));
        }
        head.headers.insert(ACCEPT_RANGES, BYTES);
        (head, text)
    }

    /// 204 for OPTIONS.
    pub(super) fn options(&self, preflight: bool, request: &HeaderMap) -> Head {
        let mut head = self.head(StatusCode::NO_CONTENT, CacheOutcome::None, request);
        head.headers.remove(CACHE_STATUS);
        head.headers.insert(ALLOW, METHODS);
        if preflight && head.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            head.headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            head.headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED);
            head.headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        head
    }

    /// A refused request.
    pub(super) fn bad_request(&self, why: BadRequest, request: &HeaderMap) -> (Head, &'static str) {
        let (status, text) = match why {
            BadRequest::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and OPTIONS are served here"),
            BadRequest::Framing(text) => (StatusCode::BAD_REQUEST, text),
            BadRequest::Host => (StatusCode::BAD_REQUEST, "the request needs exactly one valid Host field"),
            BadRequest::NoAsset => (StatusCode::NOT_FOUND, "the path names no asset"),
            BadRequest::TooLong => (StatusCode::URI_TOO_LONG, "the path is too long"),
            BadRequest::Path(_) => (StatusCode::BAD_REQUEST, "the path is not a valid asset path"),
        };
        let (mut head, text) = self.error(status, text, CacheOutcome::None, request);
        if matches!(why, BadRequest::Method { .. }) {
            head.headers.insert(ALLOW, METHODS);
        }
        if matches!(why, BadRequest::Method { body: true } | BadRequest::Framing(_)) {
            head.headers.insert(CONNECTION, CLOSE);
        }
        (head, text)
    }

    /// A head that is none; the connection ends.
    pub(super) fn bad_head(&self, why: BadHead) -> (Head, &'static str) {
        let (status, text) = match why {
            BadHead::Malformed => (StatusCode::BAD_REQUEST, "this is no HTTP/1.1 request"),
            BadHead::Version => (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.0 and HTTP/1.1 are spoken here"),
            BadHead::LineTooLong => (StatusCode::URI_TOO_LONG, "the request line is too long"),
            BadHead::TooLong => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the header fields are too long"),
            BadHead::TooManyFields => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "there are too many header fields"),
        };
        let (mut head, text) = self.error(status, text, CacheOutcome::None, &HeaderMap::new());
        head.headers.insert(CONNECTION, CLOSE);
        (head, text)
    }

    /// A request that is not allowed: all that is told is whether another signature could help (RFC 9110, 15.5.2 and 15.5.4), and
    /// the number by which an operator finds the reason.
    pub(super) fn denied(&self, why: Denial, request: &HeaderMap, request_id: Option<u64>) -> (Head, &'static str) {
        let (status, text) = match why {
            Denial::Missing
            | Denial::Malformed
            | Denial::TooLong
            | Denial::Ambiguous
            | Denial::UnknownKey
            | Denial::Algorithm
            | Denial::Signature
            | Denial::Expired
            | Denial::NotYet => (StatusCode::UNAUTHORIZED, "the URL is not signed, or no longer"),
            Denial::Issuer
            | Denial::Audience
            | Denial::Version
            | Denial::Critical
            | Denial::Container
            | Denial::Uri
            | Denial::Client
            | Denial::Nonce
            | Denial::Replayed => (StatusCode::FORBIDDEN, "the URL's signature does not allow this"),
        };
        let (mut head, text) = self.error(status, text, CacheOutcome::None, request);
        if status == StatusCode::UNAUTHORIZED {
            head.headers.insert(WWW_AUTHENTICATE, URI_SIGNING);
        }
        let number = request_id.map(hexadecimal);
        if let Some(number) = number.and_then(|number| HeaderValue::from_bytes(&number).ok()) {
            head.headers.insert(REQUEST_ID, number);
        }
        (head, text)
    }

    /// A request too many of its client (RFC 6585, 4).
    pub(super) fn throttled(&self, seconds: u64, request: &HeaderMap) -> (Head, &'static str) {
        let text = "too many requests from your network, try again later";
        let (mut head, text) = self.error(StatusCode::TOO_MANY_REQUESTS, text, CacheOutcome::None, request);
        head.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        (head, text)
    }

    /// A request too many for the worker; it may be asked again in `seconds`.
    pub(super) fn overloaded(&self, seconds: u64, request: &HeaderMap) -> (Head, &'static str) {
        let (mut head, text) = self.error(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, CacheOutcome::None, request);
        head.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        (head, text)
    }

    /// Writes the head of that, but for what the connection adds.
    pub(super) fn write_overloaded(&self, out: &mut Vec<u8>, seconds: u64) {
        out.extend_from_slice(&self.overloaded);
        write::number(out, seconds);
        out.extend_from_slice(b"\r\n");
    }

    /// Writes the body of that; gives its length.
    pub(super) fn write_overloaded_body(&self, out: &mut Vec<u8>) -> u64 {
        let before = out.len();
        out.extend_from_slice(OVERLOADED.as_bytes());
        out.push(b'\n');
        (out.len() - before) as u64
    }

    /// An asset that is not to be had.
    pub(super) fn refused(&self, why: Refusal, outcome: CacheOutcome, request: &HeaderMap) -> (Head, &'static str) {
        let (status, text) = match why {
            Refusal::NotFound => (StatusCode::NOT_FOUND, "there is no such asset"),
            Refusal::Gone => (StatusCode::GONE, "the asset is gone"),
            Refusal::Forbidden => (StatusCode::FORBIDDEN, "the source does not allow this"),
            Refusal::SourceFailed => (StatusCode::BAD_GATEWAY, "no source could deliver the asset"),
            Refusal::SourceTimedOut => (StatusCode::GATEWAY_TIMEOUT, "no source delivered the asset in time"),
            Refusal::NotHeld => {
                (StatusCode::GATEWAY_TIMEOUT, "it is not held here, and only what is held was asked for")
            }
            Refusal::Loop => (StatusCode::LOOP_DETECTED, "the request goes round in a circle"),
            Refusal::Busy | Refusal::NoRoom | Refusal::Withdrawn | Refusal::Stopping => {
                (StatusCode::SERVICE_UNAVAILABLE, "too busy just now, try again")
            }
        };
        let (mut head, text) = self.error(status, text, outcome, request);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            head.headers.insert(RETRY_AFTER, self.retry_after.clone());
        }
        (head, text)
    }

    fn error(
        &self,
        status: StatusCode,
        text: &'static str,
        outcome: CacheOutcome,
        request: &HeaderMap,
    ) -> (Head, &'static str) {
        let mut head = self.head(status, outcome, request);
        if outcome == CacheOutcome::Miss {
            // Nothing came that could have been stored.
            head.headers.insert(CACHE_STATUS, self.missed.clone());
        }
        head.headers.insert(CONTENT_TYPE, TEXT);
        // Only a source's own word is worth remembering elsewhere, and that for no longer than here.
        head.headers.insert(CACHE_CONTROL, NO_STORE);
        // The text and its line break (see `error_body`).
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len() + 1));
        (head, text)
    }
}

/// What a response says of an asset.
#[derive(Debug)]
pub(super) struct Described<'a> {
    pub(super) meta: &'a Meta,
    pub(super) path: &'a str,
    pub(super) age: Option<u64>,
}

impl Described<'_> {
    /// The entry's own type, or the one its extension says.
    pub(super) fn content_type(&self) -> HeaderValue {
        HeaderValue::from_str(self.content_type_text())
            .unwrap_or_else(|_| HeaderValue::from_static(media_type_of(self.path)))
    }

    fn content_type_text(&self) -> &str {
        let given = self.meta.content_type.as_deref().filter(|given| *given != "application/octet-stream");
        given.unwrap_or_else(|| media_type_of(self.path))
    }

    fn validators(&self, headers: &mut HeaderMap) {
        let validators = &self.meta.validators;
        if let Some(etag) = validators.etag.as_ref().and_then(|tag| HeaderValue::from_str(tag.as_str()).ok()) {
            headers.insert(ETAG, etag);
        }
        if let Some(date) = validators.last_modified {
            headers.extend(http_date(date).map(|value| (LAST_MODIFIED, value)));
        }
        if let Some(control) = self.meta.cache_control.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(CACHE_CONTROL, control);
        }
    }

    fn age(&self, headers: &mut HeaderMap) {
        if let Some(age) = self.age {
            headers.insert(AGE, HeaderValue::from(age));
        }
    }

    /// The fields of [`Templates::asset`] that stay the same for every request, as they stand on the wire; `None` where the asset is
    /// described by something that cannot stand in a field.
    pub(super) fn fields_text(&self) -> Option<Vec<u8>> {
        let meta = self.meta;
        let etag = meta.validators.etag.as_ref().map(EntityTag::as_str);
        let (control, coding) = (meta.cache_control.as_deref(), meta.content_encoding.as_deref());
        let content_type = self.content_type_text();
        let can_stand = |text: &str| text.bytes().all(|byte| byte == b'\t' || (0x20..0x7f).contains(&byte));
        if ![etag, control, coding, Some(content_type)].into_iter().flatten().all(can_stand) {
            return None;
        }
        let mut out = Vec::with_capacity(256);
        let mut field = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                write::field(&mut out, name, value.as_bytes());
            }
        };
        let date = meta.validators.last_modified.map(|date| httpdate::fmt_http_date(date.into()));
        field("ETag", etag);
        field("Last-Modified", date.as_deref());
        field("Cache-Control", control);
        field("Accept-Ranges", Some("bytes"));
        field("Content-Type", Some(content_type));
        field("Content-Encoding", coding);
        Some(out)
    }
}

fn http_date(time: UnixTime) -> Option<HeaderValue> {
    HeaderValue::try_from(httpdate::fmt_http_date(time.into())).ok()
}

fn content_range(part: Option<ByteRange>, length: u64) -> HeaderValue {
    let mut text = String::with_capacity(48);
    // Writing to a string cannot fail.
    let written = match part {
        Some(part) => write!(text, "bytes {part}/{length}"),
        None => write!(text, "bytes */{length}"),
    };
    debug_assert!(written.is_ok());
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("bytes */0"))
}

/// The heads between the parts of a multipart body, one per part, and its end (RFC 9110, 14.6).
pub(super) fn part_heads(
    content_type: &HeaderValue,
    parts: &[ByteRange],
    length: u64,
    boundary: &str,
) -> (SmallVec<[String; 4]>, String) {
    let content_type = content_type.to_str().unwrap_or("application/octet-stream");
    let head = |part: &ByteRange| {
        format!("\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: bytes {part}/{length}\r\n\r\n")
    };
    (parts.iter().map(head).collect(), format!("\r\n--{boundary}--\r\n"))
}
