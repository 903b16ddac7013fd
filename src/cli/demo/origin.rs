//! The demo's origin: the page and the videos, embedded in the binary, on a loopback port of their own.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header},
    response::Response,
};
use rust_embed::{EmbeddedFile, RustEmbed};
use tokio::{net::TcpListener, sync::oneshot};

use crate::asset::media_type_of;

/// The videos. A debug build reads them from the source tree.
#[derive(RustEmbed)]
#[folder = "fixtures/media/"]
struct Media;

/// The page that plays them.
#[derive(RustEmbed)]
#[folder = "src/cli/demo/page/"]
struct Page;

/// A running origin. Dropping it ends it.
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    asked: Arc<Asked>,
    _stop: oneshot::Sender<()>,
}

/// What it was asked for so far.
#[derive(Default)]
struct Asked {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Origin {
    /// Starts it on a free loopback port. Must be called inside a runtime, which it needs to live on.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen for the demo's origin")?;
        let address = listener.local_addr().context("read the address of the demo's origin")?;
        let asked = Arc::new(Asked::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&asked));
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            tokio::select! {
                ended = axum::serve(listener, router) => if let Err(error) = ended {
                    tracing::warn!(%error, "the demo's origin ended");
                },
                _ = stopped => {}
            }
        });
        Ok(Self { address, asked, _stop: stop })
    }

    /// Requests and bytes of bodies so far.
    pub(super) fn asked(&self) -> (u64, u64) {
        (self.asked.requests.load(Ordering::Relaxed), self.asked.bytes.load(Ordering::Relaxed))
    }
}

async fn answer(State(asked): State<Arc<Asked>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    asked.requests.fetch_add(1, Ordering::Relaxed);
    let path = uri.path().trim_start_matches('/');
    let found = if method == Method::GET || method == Method::HEAD {
        Media::get(path).map(|file| (file, "max-age=86400")).or_else(|| Page::get(path).map(|file| (file, "no-cache")))
    } else {
        None
    };
    let Some((file, cache_control)) = found else { return plain(StatusCode::NOT_FOUND, &[], Bytes::new()) };
    let described = describe(path, &file, cache_control, &headers);
    let (start, end) = described.part;
    if method == Method::GET {
        asked.bytes.fetch_add((end - start) as u64, Ordering::Relaxed);
    }
    // For HEAD, hyper keeps the length and leaves the body out.
    plain(described.status, &described.fields, content(file).slice(start..end))
}

struct Described {
    status: StatusCode,
    fields: Vec<(HeaderName, String)>,
    part: (usize, usize),
}

/// What a GET with these fields gets.
fn describe(path: &str, file: &EmbeddedFile, cache_control: &str, headers: &HeaderMap) -> Described {
    let field = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let length = file.data.len();
    let etag = format!("\"{}\"", hex(&file.metadata.sha256_hash()));
    let mut fields = vec![
        (header::CONTENT_TYPE, media_type_of(path).to_owned()),
        (header::CACHE_CONTROL, cache_control.to_owned()),
        (header::ETAG, etag.clone()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if let Some(seconds) = file.metadata.last_modified() {
        let modified = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        fields.push((header::LAST_MODIFIED, httpdate::fmt_http_date(modified)));
    }
    if field(header::IF_NONE_MATCH).is_some_and(|asked| asked == "*" || asked.split(',').any(|one| one.trim() == etag))
    {
        return Described { status: StatusCode::NOT_MODIFIED, fields, part: (0, 0) };
    }
    let range = field(header::RANGE).filter(|_| field(header::IF_RANGE).is_none_or(|asked| asked == etag));
    match range.and_then(|range| parse_range(range, length)) {
        None => Described { status: StatusCode::OK, fields, part: (0, length) },
        Some((start, end)) if start < end => {
            fields.push((header::CONTENT_RANGE, format!("bytes {start}-{}/{length}", end - 1)));
            Described { status: StatusCode::PARTIAL_CONTENT, fields, part: (start, end) }
        }
        Some(_) => {
            fields.push((header::CONTENT_RANGE, format!("bytes */{length}")));
            Described { status: StatusCode::RANGE_NOT_SATISFIABLE, fields, part: (0, 0) }
        }
    }
}

/// One range as `start..end`, empty where it cannot be satisfied; `None` where it is none or several, which this origin
/// answers whole (RFC 9110, 14.2).
fn parse_range(range: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first.is_empty(), last.is_empty()) {
        (false, true) => (first.parse().ok()?, length),
        (true, false) => (length.saturating_sub(last.parse().ok()?), length),
        (false, false) => (first.parse().ok()?, last.parse::<usize>().ok()?.saturating_add(1).min(length)),
        (true, true) => return None,
    };
    Some(if start < length { (start, end) } else { (0, 0) })
}

fn plain(status: StatusCode, fields: &[(HeaderName, String)], body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for (name, value) in fields {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn content(file: EmbeddedFile) -> Bytes {
    match file.data {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => Bytes::from(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_exact() {
        let cases = [
            ("bytes=0-0", Some((0, 1))),
            ("bytes=5-", Some((5, 10))),
            ("bytes=-3", Some((7, 10))),
            ("bytes=-30", Some((0, 10))),
            ("bytes=3-99", Some((3, 10))),
            ("bytes=10-", Some((0, 0))),
            ("bytes=0-1,4-5", None),
            ("bytes=x", None),
            ("bytes=-", None),
        ];
        for (range, expected) in cases {
            assert_eq!(parse_range(range, 10), expected, "{range}");
        }
    }

    #[test]
    fn everything_the_page_plays_is_embedded() {
        for path in ["progressive.mp4", "clip.webm", "captions.vtt", "cmaf/manifest.mpd", "cmaf/master.m3u8"] {
            assert!(Media::get(path).is_some(), "{path}");
        }
        assert!(Page::get("index.html").is_some() && Page::get("watch.js").is_some());
        assert!(Media::get("../README.md").is_none());
    }
}
