//! The way to one steering service: its connection, who we are to it, and one exchange.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use reqwest::{
    Client, Response,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};

use super::{Config, ServiceConfig, prefixes::Stamp, reply::Reply};
use crate::{
    net::{
        client::{Credentials, reporting_client},
        gzip,
    },
    sys::open_regular,
};

/// Bytes of a token, certificate or key.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Why a service cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A file cannot be read.
    #[error("read {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate, its key or the authorities are none.
    #[error("use the certificates for {url}: {source}")]
    Certificates {
        /// Which service.
        url: url::Url,
        /// Why.
        source: reqwest::Error,
    },
    /// The token cannot stand in a header.
    #[error("{path} holds no token: it is one line of visible ASCII", path = path.display())]
    Token {
        /// Which file.
        path: PathBuf,
    },
}

/// What became of a report.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was taken.
    Delivered(Reply),
    /// The service did not want it; perhaps not before a while.
    Refused(u16, Option<Duration>),
    /// There was no answer.
    Failed(String),
    /// The answer made no sense.
    Garbage(String),
}

impl Outcome {
    /// Label of the metric that counts it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Delivered(_) => "delivered",
            Self::Refused(..) => "refused",
            Self::Failed(_) => "failed",
            Self::Garbage(_) => "garbage",
        }
    }
}

/// A client of one service, made from files as they were.
#[derive(Debug)]
pub(super) struct Service {
    client: Client,
    authorization: Option<HeaderValue>,
    stamps: Vec<Option<Stamp>>,
    /// Whether it said with its last answer that it reads gzip.
    reads_gzip: AtomicBool,
}

/// A report as it is sent.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    is_compressed: bool,
}

/// Whether the files that are named for a service are there and good. Blocks.
///
/// # Errors
/// What is wrong with them.
pub fn check(config: &ServiceConfig) -> Result<(), ServiceError> {
    Service::new(config, Duration::from_secs(1)).map(drop)
}

impl Service {
    /// Reads the files. Blocks.
    pub(super) fn new(config: &ServiceConfig, timeout: Duration) -> Result<Self, ServiceError> {
        // Before they are read: a change in between is seen the next time.
        let stamps = stamps(config);
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let identity = match &config.identity {
            Some(files) => Some([read(&files.certificate)?, b"\n".to_vec(), read(&files.key)?].concat()),
            None => None,
        };
        let credentials = Credentials {
            identity: identity.as_deref(),
            authorities: optional(&config.authorities)?.as_deref().map(<[u8]>::to_vec),
            secure: config.url.scheme() == "https",
        };
        let client = reporting_client(timeout, &credentials)
            .map_err(|source| ServiceError::Certificates { url: config.url.clone(), source })?;
        let authorization = match &config.token_file {
            Some(path) => Some(bearer(&read(path)?).ok_or_else(|| ServiceError::Token { path: path.clone() })?),
            None => None,
        };
        Ok(Self { client, authorization, stamps, reads_gzip: AtomicBool::new(false) })
    }

    /// Whether a file is another one than the one that was read. Blocks.
    pub(super) fn is_outdated(&self, config: &ServiceConfig) -> bool {
        self.stamps != stamps(config)
    }

    /// As the service wants it. Blocks where that is compressed.
    pub(super) fn body(&self, report: Vec<u8>) -> Body {
        let small = self.reads_gzip.load(Ordering::Relaxed).then(|| gzip::compressed(&report)).flatten();
        Body { is_compressed: small.is_some(), bytes: small.unwrap_or(report) }
    }

    /// Sends a report and reads the reply.
    pub(super) async fn exchange(&self, url: &url::Url, config: &Config, body: Body) -> Outcome {
        let mut request = self.client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body.bytes);
        if body.is_compressed {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        match tokio::time::timeout(config.timeout, self.answer(request, config)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed(format!("no answer within {:?}", config.timeout)),
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder, config: &Config) -> Outcome {
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(err) => return Outcome::Failed(chain(&err)),
        };
        let status = response.status();
        // Who refuses one may have changed its mind.
        self.reads_gzip.store(status.is_success() && gzip::is_accepted(response.headers()), Ordering::Relaxed);
        if !status.is_success() {
            return Outcome::Refused(status.as_u16(), retry_after(&response));
        }
        let (max, mut body) = (usize::try_from(config.reply_size_max.0).unwrap_or(usize::MAX), Vec::new());
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > max => {
                    return Outcome::Garbage(format!("the reply is longer than {}", config.reply_size_max));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(err) => return Outcome::Failed(chain(&err)),
            }
        }
        Reply::read(&body, config).map_or_else(Outcome::Garbage, Outcome::Delivered)
    }
}

/// In seconds; a date is not asked of anybody. More than a number can hold is as long as may be (RFC 9110, 10.2.3 sets no bound).
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// What an error says, and what it comes from: reqwest's own words are only the first of these.
fn chain(err: &reqwest::Error) -> String {
    let first: &dyn std::error::Error = err;
    let all = std::iter::successors(Some(first), |err| err.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let token = token.trim_ascii();
    let visible = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok().filter(|_| visible)?;
    value.set_sensitive(true);
    Some(value)
}

fn read(path: &Path) -> Result<Vec<u8>, ServiceError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let result = open_regular(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    result.map(|_| bytes).map_err(|source| ServiceError::File { path: path.into(), source })
}

fn stamps(config: &ServiceConfig) -> Vec<Option<Stamp>> {
    config.files().map(|path| Stamp::of(path)).collect()
}
