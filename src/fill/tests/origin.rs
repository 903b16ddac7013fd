//! An origin over bare sockets, so that it can say what no HTTP library would.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use url::Url;

/// What is published: bytes that differ with every seed.
#[derive(Clone, Debug)]
pub(super) struct Film {
    pub(super) seed: u64,
    pub(super) length: u64,
    pub(super) etag: Option<&'static str>,
    pub(super) modified: Option<&'static str>,
    pub(super) cache_control: Option<&'static str>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    /// Start and end (exclusive).
    pub(super) range: Option<(u64, Option<u64>)>,
    pub(super) suffix: Option<u64>,
    /// Names in lower case.
    pub(super) fields: Vec<(String, String)>,
}

/// Bytes to send, and what to do then.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Next,
    Close,
    Reset,
    Stall,
}

type Script = dyn Fn(usize, &Request) -> Reply + Send + Sync;

/// An origin; it ends when it is dropped.
pub(super) struct Origin {
    url: Url,
    requests: Arc<Mutex<Vec<Request>>>,
    _serving: JoinSet<()>,
}

impl Film {
    pub(super) fn new(seed: u64, length: u64) -> Self {
        const TAGS: [&str; 5] = ["\"0\"", "\"1\"", "\"2\"", "\"3\"", "\"4\""];
        let etag = usize::try_from(seed).ok().and_then(|seed| TAGS.get(seed)).copied();
        Self { seed, length, etag, modified: None, cache_control: None }
    }

    pub(super) fn part(&self, start: u64, end: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(end.min(self.length).saturating_sub(start)).expect("small")];
        let mut stream = blake3::Hasher::new().update(&self.seed.to_le_bytes()).finalize_xof();
        stream.set_position(start);
        stream.fill(&mut bytes);
        bytes
    }
}

impl Request {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn parse(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let path = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a request line").to_owned();
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut request = Self { path, range: None, suffix: None, fields };
        if let Some((first, last)) =
            request.field("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
        {
            let last = last.parse::<u64>().ok();
            match first.parse() {
                Ok(first) => request.range = Some((first, last.map(|last| last + 1))),
                Err(_) => request.suffix = last,
            }
        }
        request
    }
}

impl Reply {
    pub(super) fn new(head: &str, body: &[u8]) -> Self {
        Self { bytes: [head.as_bytes(), body].concat(), then: Then::Next }
    }

    pub(super) fn status(status: u16) -> Self {
        Self::new(&format!("HTTP/1.1 {status} So\r\ncontent-length: 2\r\n\r\n"), b"so")
    }

    fn split(&self) -> (String, &[u8]) {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        (String::from_utf8(self.bytes[..end].to_vec()).expect("ASCII"), &self.bytes[end..])
    }

    /// Ends after so many bytes of the body.
    pub(super) fn cut(self, body_bytes: usize, then: Then) -> Self {
        let (head, body) = self.split();
        Self { then, ..Self::new(&head, &body[..body_bytes.min(body.len())]) }
    }

    /// Sets a field; removes it where `value` is empty.
    pub(super) fn field(self, name: &str, value: &str) -> Self {
        let (head, body) = self.split();
        let kept =
            head.trim_end().split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with(&format!("{name}:")));
        let mut head: String = kept.flat_map(|line| [line, "\r\n"]).collect();
        if !value.is_empty() {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        Self { then: self.then, ..Self::new(&format!("{head}\r\n"), body) }
    }

    /// In chunks and without a length, with so many bytes too much.
    pub(super) fn chunked(self, surplus: usize) -> Self {
        let (_, body) = self.split();
        let body = [body, &vec![0; surplus]].concat();
        let mut chunks = Vec::new();
        for chunk in body.chunks(20_000) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        let (head, _) = self.field("content-length", "").field("transfer-encoding", "chunked").split_owned();
        Self::new(&head, &chunks)
    }

    fn split_owned(self) -> (String, Vec<u8>) {
        let (head, body) = self.split();
        (head, body.to_vec())
    }
}

/// What a good origin answers.
pub(super) fn right(film: &Film, request: &Request) -> Reply {
    let mut fields = String::from("accept-ranges: bytes\r\n");
    let named = [("etag", film.etag), ("last-modified", film.modified), ("cache-control", film.cache_control)];
    for (name, value) in named.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        fields.push_str(&format!("{name}: {value}\r\n"));
    }
    if film.etag.is_some() && request.field("if-none-match") == film.etag {
        return Reply::new(&format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n"), &[]);
    }
    let is_other = request.field("if-range").is_some_and(|tag| Some(tag) != film.etag && Some(tag) != film.modified);
    let length = film.length;
    let part = match (request.range, request.suffix) {
        _ if is_other => None,
        (Some((start, end)), _) => Some((start, end.unwrap_or(length).min(length))),
        (None, Some(count)) => Some((length.saturating_sub(count), length)),
        (None, None) => None,
    };
    let (status, (start, end)) = match part {
        None => ("200 OK", (0, length)),
        Some((start, end)) if start < end => {
            fields.push_str(&format!("content-range: bytes {start}-{}/{length}\r\n", end - 1));
            ("206 Partial Content", (start, end))
        }
        Some(_) => {
            fields.push_str(&format!("content-range: bytes */{length}\r\n"));
            ("416 Range Not Satisfiable", (0, 0))
        }
    };
    let head = format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n", end - start);
    Reply::new(&head, &film.part(start, end))
}

impl Origin {
    /// Answers each request, numbered from zero, as `script` says.
    pub(super) async fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (script, requests): (Arc<Script>, _) = (Arc::new(script), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&requests);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&script), Arc::clone(&seen)));
            }
        });
        let url = format!("http://{address}/sub/").parse().expect("a URL");
        Self { url, requests, _serving: serving }
    }

    pub(super) fn url(&self) -> Url {
        self.url.clone()
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    pub(super) fn ranges(&self) -> Vec<Option<(u64, Option<u64>)>> {
        self.requests.lock().iter().map(|request| request.range).collect()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, seen: Arc<Mutex<Vec<Request>>>) {
    let mut ahead = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut ahead).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head: Vec<u8> = ahead.drain(..end).collect();
        let request = Request::parse(std::str::from_utf8(&head).expect("ASCII"));
        let reply = {
            let mut seen = seen.lock();
            seen.push(request.clone());
            script(seen.len() - 1, &request)
        };
        // The peer may have left.
        if stream.write_all(&reply.bytes).await.is_err() {
            return;
        }
        match reply.then {
            Then::Next => {}
            Then::Close => return,
            Then::Reset => {
                stream.set_zero_linger().expect("a socket");
                return;
            }
            Then::Stall => std::future::pending().await,
        }
    }
}
