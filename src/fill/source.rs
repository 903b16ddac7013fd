//! A place to fetch from, and the one form in which every kind of it answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use url::Url;

use super::{
    SourceConfig, SourceLocation,
    directory::{Directory, DirectoryBody},
    http::{Http, HttpError, Place},
    pace::Pace,
    ranking::How,
    set_aside::SetAside,
};
use crate::{
    asset::{AssetKey, ByteRange, UnixTime, Validators},
    net::{bucket::Bucket, download::Download},
    telemetry::metrics::SourceMetrics,
};

/// Which bytes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskRange {
    /// All.
    Whole,
    /// From `start` to `end` (exclusive), or to wherever the asset ends.
    Part { start: u64, end: Option<u64> },
    /// The last so many.
    Suffix(u64),
}

/// What is asked of a source.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub(super) range: AskRange,
    /// The part is wanted only of this version; of another, the whole.
    pub(super) if_range: Option<&'a Validators>,
    /// Nothing is wanted if this version is still good.
    pub(super) unless: Option<&'a Validators>,
}

impl Ask<'_> {
    pub(super) fn of(range: AskRange) -> Self {
        Self { range, if_range: None, unless: None }
    }
}

/// How a source is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner<'a> {
    pub(super) how: How,
    /// Longest wait for the head of its answer.
    pub(super) escalate_after: Duration,
    /// The folder there, in place of the source's own.
    pub(super) below: Option<&'a Url>,
    /// For a fill ahead of demand: on connections of its own, whose threads may give way to all others.
    pub(super) ahead: bool,
    /// What this box is called among caches.
    pub(super) me: &'a str,
    /// The caches that the request has come through so far.
    pub(super) through: Option<&'a str>,
}

/// Head of an answer. Nothing in it has been judged yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Of the body.
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<ContentRange>,
    pub(super) validators: Validators,
    pub(super) content_type: Option<Box<str>>,
    pub(super) content_encoding: Option<Box<str>>,
    pub(super) caching: Caching,
    /// When it may be asked again (RFC 9110, 10.2.3).
    pub(super) retry_after: Option<Duration>,
    /// Nothing but the end of the connection ends the body: whole and cut look the same.
    pub(super) ends_with_connection: bool,
}

/// `Content-Range` (RFC 9110, 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The part that follows; `None` for `*`.
    pub(super) part: Option<ByteRange>,
    /// Length of the whole; `None` for `*`.
    pub(super) total: Option<u64>,
}

/// What a response says of being cached (RFC 9111, 5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Caching {
    /// All `Cache-Control` fields, joined.
    pub(super) cache_control: Option<Box<str>>,
    pub(super) expires: Expires,
    pub(super) date: Option<UnixTime>,
    pub(super) age_seconds: u64,
    pub(super) pragma_no_cache: bool,
    pub(super) varies_by_all: bool,
}

/// `Expires` (RFC 9111, 5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Expires {
    #[default]
    Unsaid,
    At(UnixTime),
    /// Not a date ("0"): in the past.
    Invalid,
}

/// Why a source gave nothing of use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SourceFault {
    #[error("no connection")]
    Connect,
    #[error("too many requests to it are under way")]
    Busy,
    #[error("no answer in time")]
    Timeout,
    #[error("no answer before the next source is to be asked")]
    Slow,
    #[error("it has asked to be left alone")]
    Resting,
    #[error("status {0}, and to be asked again in {1:?}")]
    Later(u16, Duration),
    #[error("it does not hold this")]
    NotHeld,
    #[error("the body stalled")]
    Stalled,
    #[error("the connection broke")]
    Broken,
    #[error("the body ended early")]
    Short,
    #[error("the body was longer than announced")]
    Long,
    #[error("status {0}")]
    Status(u16),
    #[error("a redirect that leaves the source")]
    Redirect,
    #[error("a body whose end cannot be told from a cut")]
    Endless,
    #[error("not the range that was asked for")]
    WrongRange,
    #[error("the asset changed")]
    Changed,
    #[error("too long for a source that does not serve ranges")]
    TooLong,
    #[error("not the asset that the manifest lists")]
    NotListed,
    #[error("the file cannot be read")]
    File,
    #[error("there are no credentials to ask it with")]
    Credentials,
    #[error("nothing can have that name there")]
    Name,
}

impl SourceFault {
    /// Label in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Slow => "slow",
            Self::Resting => "resting",
            Self::NotHeld => "not_held",
            Self::Stalled => "stalled",
            Self::Broken => "broken",
            Self::Short => "short",
            Self::Long => "long",
            Self::Status(_) | Self::Later(..) => "status",
            Self::Redirect => "redirect",
            Self::Endless => "endless",
            Self::WrongRange => "wrong_range",
            Self::Changed => "changed",
            Self::TooLong => "too_long",
            Self::NotListed => "not_listed",
            Self::File => "file",
            Self::Credentials => "credentials",
            Self::Name => "name",
        }
    }

    /// Whether it speaks against the source's health: a change does not, nor does a queue of ours.
    pub(super) fn is_ill(&self) -> bool {
        match self {
            Self::Connect
            | Self::Timeout
            | Self::Stalled
            | Self::Broken
            | Self::Short
            | Self::File
            | Self::Credentials => true,
            Self::Status(status) => *status >= 500 || *status == 429,
            // What is wrong with one asset says nothing of the others: a client that asks for it shall not take the source away.
            _ => false,
        }
    }

    /// Whether a viewer should hear of time and not of failure.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout | Self::Slow | Self::Stalled)
    }
}

/// A place to fetch from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) config: SourceConfig,
    kind: Kind,
    slots: Arc<Semaphore>,
    pub(super) set_aside: SetAside,
    pace: Arc<Pace>,
    pub(super) metrics: Arc<SourceMetrics>,
}

#[derive(Debug)]
enum Kind {
    Http(Box<Http>),
    Directory(Directory),
}

/// An answer: its head, and the body to be read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: SourceBody,
}

/// A body on its way in.
#[derive(Debug)]
pub(super) struct SourceBody {
    kind: BodyKind,
    stall_timeout: Duration,
    pace: Arc<Pace>,
    metrics: Arc<SourceMetrics>,
    /// The head says how long it is: then HTTP itself sees to it that it is no longer.
    pub(super) length_is_said: bool,
    /// The request counts as one of the source's for as long as its body is read.
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum BodyKind {
    Http(Box<Download>),
    Directory(DirectoryBody),
}

/// Bytes gathered into one write at most.
const GATHER_BYTES: usize = 256 << 10;

impl Source {
    pub(super) fn new(config: SourceConfig, metrics: Arc<SourceMetrics>) -> Result<Self, HttpError> {
        let kind = match &config.location {
            SourceLocation::Http(url) => Kind::Http(Box::new(Http::new(Place::Below(url.clone()), &config)?)),
            SourceLocation::Bucket { bucket, prefix } => {
                let bucket = Bucket::new(bucket, prefix, &config.store)?;
                Kind::Http(Box::new(Http::new(Place::Bucket(bucket), &config)?))
            }
            SourceLocation::Directory(root) => Kind::Directory(Directory::new(root.clone())),
        };
        let slots = Arc::new(Semaphore::new(config.connections_max.max(1)));
        let set_aside = SetAside::new(config.failures_max, config.retry_after, config.set_aside_max);
        let pace = Arc::new(Pace::new(config.rate_max));
        Ok(Self { config, kind, slots, set_aside, pace, metrics })
    }

    /// Asks, and waits for the head of the answer.
    pub(super) async fn open(&self, key: &AssetKey, ask: &Ask<'_>, manner: Manner<'_>) -> Result<Answer, SourceFault> {
        let begun = Instant::now();
        let limit = self.config.connect_timeout + self.config.response_timeout;
        let (limit, late) = if manner.escalate_after < limit {
            (manner.escalate_after, SourceFault::Slow)
        } else {
            (limit, SourceFault::Timeout)
        };
        let slot = timeout(limit, Arc::clone(&self.slots).acquire_owned()).await;
        let slot = slot.map_err(|_| SourceFault::Busy)?.map_err(|_| SourceFault::Busy)?;
        self.metrics.fetches.inc();
        let opened = timeout(limit, async {
            match &self.kind {
                Kind::Http(http) => {
                    http.open(key, ask, manner).await.map(|(head, response)| (head, BodyKind::Http(Box::new(response))))
                }
                Kind::Directory(directory) => {
                    directory.open(key, ask).await.map(|(head, body)| (head, BodyKind::Directory(body)))
                }
            }
        });
        let (head, kind) = opened.await.unwrap_or(Err(late))?;
        tracing::debug!(source = %self.config.name, asset = %key, status = head.status, elapsed_us = begun.elapsed().as_micros(), "source answered");
        // RFC 9111, 5.2.1.7: this is how a cache says that it does not hold it.
        if head.status == 504 && manner.how == How::IfHeld {
            return Err(SourceFault::NotHeld);
        }
        let body = SourceBody {
            kind,
            stall_timeout: self.config.stall_timeout,
            pace: Arc::clone(&self.pace),
            metrics: Arc::clone(&self.metrics),
            length_is_said: head.content_length.is_some(),
            _slot: slot,
        };
        Ok(Answer { head, body })
    }
}

impl SourceBody {
    /// The next bytes as they come; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceFault> {
        let next = async {
            match &mut self.kind {
                BodyKind::Http(response) => response.chunk().await.map_err(|_| SourceFault::Broken),
                BodyKind::Directory(body) => body.next().await,
            }
        };
        let next = timeout(self.stall_timeout, next).await.unwrap_or(Err(SourceFault::Stalled))?;
        let count = next.as_ref().map_or(0, Bytes::len);
        self.metrics.bytes.add(count as u64);
        self.pace.took(count).await;
        Ok(next)
    }

    /// The next bytes, and what has come with them; empty at the end. Waits for the first only, so that nothing that is here is
    /// held back from a viewer.
    pub(super) async fn gather(&mut self) -> Result<Vec<Bytes>, SourceFault> {
        use futures_util::FutureExt;
        let Some(first) = self.next().await? else { return Ok(Vec::new()) };
        // Paid for by `next`.
        let alone = first.len();
        let mut gathered = alone;
        let mut pieces = vec![first];
        while gathered < GATHER_BYTES {
            // A chunk that is not here yet stays with the response: asking for it can be given up.
            let BodyKind::Http(response) = &mut self.kind else { break };
            match response.chunk().now_or_never() {
                Some(Ok(Some(bytes))) => {
                    self.metrics.bytes.add(bytes.len() as u64);
                    gathered += bytes.len();
                    pieces.push(bytes);
                }
                // The end, or an error, is found again by the next call.
                Some(Ok(None)) | None => break,
                Some(Err(_)) => return if pieces.is_empty() { Err(SourceFault::Broken) } else { Ok(pieces) },
            }
        }
        self.pace.took(gathered - alone).await;
        Ok(pieces)
    }
}
