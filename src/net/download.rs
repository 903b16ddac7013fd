//! The HTTP client that sources are asked with.
//!
//! address, fields -> a connection of the pool, or a new one (name -> address -> TLS, with ALPN) -> head
//!     -> redirects, as far as they may be followed -> body, piece by piece
//!
//! Who fetches ahead of demand takes small pieces: a kernel without preemption hands over all of what a read has room for before it lets go of a core that
//! viewers wait for, and such a fill reads as fast as it may (`benches/fill_beside_hot.rs`). For whom a viewer waits takes what has come: what is written at once lies
//! in larger folios of the page cache, which are sent for less.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, USER_AGENT},
};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use percent_encoding::percent_decode_str;
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;
use url::Url;

#[cfg(test)]
mod tests;

use super::{
    client::{ClientError, ClientFiles, ClientLimits, REDIRECTS_MAX},
    redirects::Redirects,
};

/// Bytes of a small piece, at most: some 10 us of copying. Frames of HTTP/2 and records of TLS are shorter by themselves.
pub const SMALL_PIECE_MAX: usize = 64 << 10;

/// How much is read from a connection of HTTP/1.1 at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// [`SMALL_PIECE_MAX`] at most.
    Small,
    /// What has come; a few hundred KiB at most.
    Large,
}

impl Pieces {
    /// Room that hyper makes for a read, and longest head, in bytes. What it has allocated may be twice that, and it reads as much.
    fn read_bytes(self) -> usize {
        match self {
            Self::Small => SMALL_PIECE_MAX / 2,
            Self::Large => 256 << 10,
        }
    }
}

/// Longest time that a connection is kept without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may be silent before its other end is asked whether it is there, the time between two such probes, and how many go unheard
/// (tcp(7), `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`).
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;

/// How long what was sent may go unheard before the connection has failed (tcp(7), `TCP_USER_TIMEOUT`).
const UNHEARD_MAX: Duration = Duration::from_secs(30);

/// How often a request is asked again that the server says it has not begun with.
const REFUSED_MAX: usize = 2;

/// A client that asks for bytes as they are (no content coding), takes no proxy from the environment, and follows redirects as far as [`Follow`] goes.
#[derive(Clone, Debug)]
pub struct Downloader {
    client: Client<Timely, Empty<Bytes>>,
    /// Sent with every request.
    fields: HeaderMap,
    follow: Follow,
}

/// Which redirects are followed.
#[derive(Clone, Debug)]
enum Follow {
    /// Those within the origin that was asked: leaving it would let a redirect name any host.
    WithinOrigin,
    /// Those that lead to where others may, from one that has.
    Outward(Redirects),
}

/// An answer whose head is here.
#[derive(Debug)]
pub struct Download {
    /// Where it comes from, after redirects.
    url: Url,
    response: Response<Incoming>,
}

/// Why nothing came, or no more.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No connection in time, or none that TLS accepts.
    #[error("no connection")]
    Connect(#[source] Box<dyn Error + Send + Sync>),
    /// The connection broke, or what came by it is not HTTP.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl Downloader {
    /// Makes a client for a source, who is shown the certificate and the fields of `files`.
    ///
    /// # Errors
    /// The system's trusted certificates, or a file, cannot be read. Blocks while files are.
    pub fn new(limits: ClientLimits, files: &ClientFiles, pieces: Pieces) -> Result<Self, ClientError> {
        let names = Names { outward: None };
        let made = Self::made(limits, files, pieces, (names, Follow::WithinOrigin))?;
        Ok(Self { fields: fields(files.headers()?), ..made })
    }

    /// Makes a client for where redirects lead. Who is asked there is another than whom the operator's files speak of: it is shown no certificate and
    /// none of their fields. It connects to no address that `redirects` rules out, also where a name resolves to one.
    ///
    /// # Errors
    /// As of [`Downloader::new`].
    pub fn redirected(
        limits: ClientLimits,
        authorities: Option<PathBuf>,
        pieces: Pieces,
        redirects: &Redirects,
    ) -> Result<Self, ClientError> {
        let files = ClientFiles { authorities, ..ClientFiles::default() };
        let names = Names { outward: Some(redirects.clone()) };
        Self::made(limits, &files, pieces, (names, Follow::Outward(redirects.clone())))
    }

    fn made(
        limits: ClientLimits,
        files: &ClientFiles,
        pieces: Pieces,
        (names, follow): (Names, Follow),
    ) -> Result<Self, ClientError> {
        let mut tcp = HttpConnector::new_with_resolver(names);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // So that one of several addresses that is dead leaves time for the others.
        tcp.set_connect_timeout(Some(limits.connect_timeout));
        // What is dropped on the way, as by a firewall that has forgotten it, is found out.
        tcp.set_keepalive(Some(PROBE_INTERVAL));
        tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
        tcp.set_keepalive_retries(Some(PROBES));
        tcp.set_tcp_user_timeout(Some(UNHEARD_MAX));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(files.outward(limits.secure)?)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(limits.idle_max)
            .http1_max_buf_size(pieces.read_bytes())
            .build(Timely { connector, longest: limits.connect_timeout });
        Ok(Self { client, fields: fields(HeaderMap::new()), follow })
    }

    /// Asks for what lies at `url`, with `fields`, and waits for the head of the answer: that of the last redirect if it is not followed.
    ///
    /// # Errors
    /// No connection; or it broke, or is not HTTP.
    pub async fn get(&self, url: Url, fields: &HeaderMap) -> Result<Download, DownloadError> {
        let mut url = url;
        let mut fields = fields.clone();
        if let Some(authorization) = take_user(&mut url) {
            fields.insert(AUTHORIZATION, authorization);
        }
        for name in self.fields.keys() {
            // The request's own go first.
            if !fields.contains_key(name) {
                for value in self.fields.get_all(name) {
                    fields.append(name.clone(), value.clone());
                }
            }
        }
        let mut followed = 0;
        loop {
            let uri: Uri = url.as_str().parse().map_err(|err| DownloadError::Broken(Box::new(err)))?;
            let response = self.ask(&uri, &fields).await?;
            match further(&url, &response) {
                Some(to) if followed < self.follow.most() && self.follow.permits(&url, &to) => url = to,
                _ => return Ok(Download { url, response }),
            }
            followed += 1;
        }
    }
}

impl Downloader {
    async fn ask(&self, uri: &Uri, fields: &HeaderMap) -> Result<Response<Incoming>, DownloadError> {
        let mut refused = 0;
        loop {
            let request = Request::get(uri.clone()).body(Empty::new());
            let mut request = request.map_err(|err| DownloadError::Broken(err.into()))?;
            request.headers_mut().clone_from(fields);
            match self.client.request(request).await {
                Ok(response) => return Ok(response),
                Err(err) if refused < REFUSED_MAX && was_not_begun(&err) => refused += 1,
                Err(err) if err.is_connect() => return Err(DownloadError::Connect(err.into())),
                Err(err) => return Err(DownloadError::Broken(err.into())),
            }
        }
    }
}

/// Whether a server of HTTP/2 has said that it has done nothing for a request, as when it closes a connection after so many (RFC 9113, 8.7).
fn was_not_begun(err: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(err);
    while let Some(err) = cause {
        if let Some(err) = err.downcast_ref::<h2::Error>() {
            let is_closing = err.is_go_away() && err.reason() == Some(h2::Reason::NO_ERROR);
            let is_refused = err.is_reset() && err.reason() == Some(h2::Reason::REFUSED_STREAM);
            return err.is_remote() && (is_closing || is_refused);
        }
        cause = err.source();
    }
    false
}

impl Follow {
    fn most(&self) -> usize {
        match self {
            Self::WithinOrigin => REDIRECTS_MAX,
            // The one that has led here counts.
            Self::Outward(_) => REDIRECTS_MAX - 1,
        }
    }

    fn permits(&self, from: &Url, to: &Url) -> bool {
        match self {
            // `blob:` has the origin of what it is of.
            Self::WithinOrigin => from.origin() == to.origin() && from.scheme() == to.scheme(),
            Self::Outward(redirects) => redirects.judge(from, to).is_ok(),
        }
    }
}

/// What is sent with every request, beside `own`.
fn fields(mut own: HeaderMap) -> HeaderMap {
    let values = [
        (ACCEPT, HeaderValue::from_static("*/*")),
        (USER_AGENT, HeaderValue::from_static(concat!("oca/", env!("CARGO_PKG_VERSION")))),
    ];
    for (name, value) in values {
        own.entry(name).or_insert(value);
    }
    own.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    own
}

/// Takes the user and the password out of an address, as the field that says them (RFC 7617).
fn take_user(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    let both = [decoded(url.username()), vec![b':'], decoded(url.password().unwrap_or_default())].concat();
    // An address that has a user has a host, so that it may be without.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(both))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Where a response leads to that is a redirect (RFC 9110, 15.4).
fn further(from: &Url, response: &Response<Incoming>) -> Option<Url> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    // Not all servers write addresses in ASCII.
    let mut to = from.join(std::str::from_utf8(location.as_bytes()).ok()?).ok()?;
    // Too long, for one.
    to.as_str().parse::<Uri>().ok()?;
    // A source does not say who we are.
    drop(take_user(&mut to));
    Some(to)
}

impl Download {
    /// Where it comes from.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Its fields.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.response.version()
    }

    /// Where it leads to, if it is a redirect that was not followed.
    pub fn leads_to(&self) -> Option<Url> {
        further(&self.url, &self.response)
    }

    /// The next bytes of its body; `None` at the end. Loses nothing when it is given up.
    ///
    /// # Errors
    /// The connection broke, or ended before the body did.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, DownloadError> {
        loop {
            let Some(frame) = self.response.body_mut().frame().await else { return Ok(None) };
            let frame = frame.map_err(|err| DownloadError::Broken(err.into()))?;
            // Trailers are of no use.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

/// Connects, with TLS if need be, or has not in time.
#[derive(Clone, Debug)]
struct Timely {
    connector: HttpsConnector<HttpConnector<Names>>,
    longest: Duration,
}

type Connected = Result<MaybeHttpsStream<TokioIo<TcpStream>>, Box<dyn Error + Send + Sync>>;

impl Service<Uri> for Timely {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Connected> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, longest) = (self.connector.call(uri), self.longest);
        Box::pin(async move { timeout(longest, connecting).await? })
    }
}

/// Resolves names; for redirects, it leaves out what lies within: a connection is made to the addresses that were looked at, and to no others.
#[derive(Clone, Debug)]
struct Names {
    outward: Option<Redirects>,
}

impl Names {
    async fn resolve(self, name: Name) -> io::Result<vec::IntoIter<SocketAddr>> {
        let mut found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        if let Some(redirects) = &self.outward {
            found.retain(|address| redirects.admits(address.ip()));
            if found.is_empty() {
                tracing::warn!(host = name.as_str(), "a redirect's host has only addresses of private networks");
                return Err(io::ErrorKind::PermissionDenied.into());
            }
        }
        Ok(found.into_iter())
    }
}

impl Service<Name> for Names {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}
