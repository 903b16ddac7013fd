//! Bodies of responses: windows of mapped assets, made resident one after the other, waiting for what is still being fetched.
//!
//! available? -> resident? -> hand out        (hot: no wait, no lock on a sealed asset)
//!     |             └ cold: read the window, prefetch the next
//!     └ missing: demand, wait until it has grown
//!
//! An error in the middle cuts the connection: a body that ends early never looks whole.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::mpsc, time::timeout};

use super::exchange::Exchange;
use crate::{
    asset::ByteRange,
    catalog::{Asker, Catalog, Entry, Lease, Refusal, Want},
    storage::{Mapping, ReadError, Residency},
};

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The rest is not to be had.
    #[error("the rest of the asset cannot be fetched: {}", .0.label())]
    Refused(Refusal),
    /// The disk could not deliver.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A response's body, and the exchange it ends.
#[derive(Debug)]
pub(super) struct Body {
    kind: Kind,
    exchange: Exchange,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Text(Option<Bytes>),
    Asset(AssetBody),
    Passing(mpsc::Receiver<Result<Bytes, Refusal>>, Option<u64>),
}

/// How an asset is read for one response.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) catalog: Arc<Catalog>,
    pub(super) lease: Lease,
    pub(super) residency: Arc<Residency>,
    /// Bytes made resident at once.
    pub(super) window: u64,
    /// Bytes handed out at once; no more than a window.
    pub(super) handout: u64,
    /// Bytes asked of fill ahead of what is sent; 0: nothing is asked for.
    pub(super) read_ahead: u64,
    /// Whom it is read for.
    pub(super) asker: Asker,
    /// Longest wait for the next byte.
    pub(super) patience: Duration,
}

/// A piece of an asset's body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Between the parts of a multipart body.
    Text(Bytes),
    /// A part of the asset.
    Part(ByteRange),
}

/// What is sent next of a body. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    /// The mapped file that they are a part of: the kernel can send them from there.
    pub(super) mapping: Option<Arc<Mapping>>,
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, mapping: None }
    }
}

/// A window on its way, and the lease that it is of: another one where the asset was evicted and fetched anew in between.
type Waiting = Pin<Box<dyn Future<Output = Result<(Bytes, Lease), BodyError>>>>;

struct AssetBody {
    reader: Reader,
    pieces: VecDeque<Piece>,
    left: u64,
    /// Up to where the present part has been demanded.
    demanded: u64,
    waiting: Option<Waiting>,
}

impl std::fmt::Debug for AssetBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AssetBody").field("left", &self.left).field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl Body {
    pub(super) fn empty(exchange: Exchange) -> Self {
        Self { kind: Kind::Empty, exchange }
    }

    pub(super) fn text(text: &str, exchange: Exchange) -> Self {
        Self { kind: Kind::Text(Some(Bytes::from(format!("{text}\n")))), exchange }
    }

    pub(super) fn asset(reader: Reader, pieces: VecDeque<Piece>, exchange: Exchange) -> Self {
        let left = pieces.iter().map(Piece::len).sum();
        Self { kind: Kind::Asset(AssetBody { reader, pieces, left, demanded: 0, waiting: None }), exchange }
    }

    pub(super) fn passing(
        body: mpsc::Receiver<Result<Bytes, Refusal>>,
        length: Option<u64>,
        exchange: Exchange,
    ) -> Self {
        Self { kind: Kind::Passing(body, length), exchange }
    }
}

impl Piece {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Part(part) => part.len(),
        }
    }
}

impl Body {
    /// What is sent next; `None` after the last.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let next = match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Text(text) => Poll::Ready(text.take().map(|text| Ok(text.into()))),
            Kind::Asset(body) => body.poll_next(cx),
            Kind::Passing(body, left) => {
                poll_passing(body, left, cx).map(|next| next.map(|next| next.map(Chunk::from)))
            }
        };
        self.exchange.set_our_turn(next.is_pending());
        let next = ready!(next);
        match &next {
            Some(Ok(chunk)) => self.exchange.sent(chunk.bytes.len() as u64),
            Some(Err(err)) => self.exchange.failed(err),
            None => {}
        }
        Poll::Ready(next)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = ready!(self.get_mut().poll_chunk(cx));
        Poll::Ready(next.map(|next| next.map(|chunk| Frame::data(chunk.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty | Kind::Text(None) => true,
            Kind::Asset(body) => body.left == 0,
            Kind::Text(Some(_)) | Kind::Passing(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Text(None) => SizeHint::with_exact(0),
            Kind::Text(Some(text)) => SizeHint::with_exact(text.len() as u64),
            Kind::Asset(body) => SizeHint::with_exact(body.left),
            Kind::Passing(_, left) => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

fn poll_passing(
    body: &mut mpsc::Receiver<Result<Bytes, Refusal>>,
    left: &mut Option<u64>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BodyError>>> {
    let next = ready!(body.poll_recv(cx));
    Poll::Ready(match (next, left) {
        (Some(Err(refusal)), _) => Some(Err(BodyError::Refused(refusal))),
        // More than was promised is as wrong as less.
        (Some(Ok(bytes)), Some(left)) if bytes.len() as u64 > *left => {
            Some(Err(BodyError::Refused(Refusal::SourceFailed)))
        }
        (Some(Ok(bytes)), left) => {
            if let Some(left) = left {
                *left -= bytes.len() as u64;
            }
            Some(Ok(bytes))
        }
        (None, Some(left)) if *left > 0 => Some(Err(BodyError::Refused(Refusal::SourceFailed))),
        (None, _) => None,
    })
}

impl AssetBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        if self.waiting.is_none() {
            match self.next_now() {
                Next::End => return Poll::Ready(None),
                Next::Ready(bytes) => return Poll::Ready(Some(Ok(self.advance(bytes)))),
                Next::Failed(err) => return Poll::Ready(Some(Err(err))),
                Next::Wait(waiting) => self.waiting = Some(waiting),
            }
        }
        let Some(waiting) = self.waiting.as_mut() else { return Poll::Ready(None) };
        let outcome = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(Some(outcome.map(|(bytes, lease)| {
            self.reader.lease = lease;
            self.advance(bytes)
        })))
    }

    /// What can be handed out without waiting.
    fn next_now(&mut self) -> Next {
        let part = match self.pieces.front() {
            None => return Next::End,
            Some(Piece::Text(text)) => return Next::Ready(text.clone()),
            Some(Piece::Part(part)) => *part,
        };
        if !self.reader.entry().is_sealed()
            && let Err(refusal) = self.demand_ahead(part)
        {
            if refusal != Refusal::Withdrawn {
                return Next::Failed(BodyError::Refused(refusal));
            }
            return Next::Wait(Box::pin(self.reader.clone().read(part)));
        }
        let reader = &self.reader;
        let here = reader.entry().available(part.start()).min(part.len()).min(reader.handout);
        let slice = ByteRange::new(part.start(), part.start() + here).and_then(|range| reader.lease.slice(range));
        match slice.and_then(|slice| reader.residency.resident_now(slice)) {
            Some(bytes) => Next::Ready(bytes),
            None => Next::Wait(Box::pin(reader.clone().read(part))),
        }
    }

    /// Keeps what is demanded ahead of what is sent: in large strides, so that a source is asked seldom.
    fn demand_ahead(&mut self, part: ByteRange) -> Result<(), Refusal> {
        let (entry, ahead) = (self.reader.entry(), self.reader.read_ahead);
        let start = part.start();
        // Also where it was demanded before: what has failed since is asked for again.
        let missing = entry.available(start) == 0;
        if !missing && self.demanded >= start && (self.demanded - start > ahead / 2 || self.demanded >= part.end()) {
            return Ok(());
        }
        let end = start.saturating_add(ahead).min(part.end());
        if let Some(range) = ByteRange::new(start, end) {
            entry.demand_for(range, &self.reader.asker)?;
            self.demanded = end;
        }
        Ok(())
    }

    /// Takes the first of `bytes` as sent, as many as are handed out at once.
    fn advance(&mut self, mut bytes: Bytes) -> Chunk {
        if matches!(self.pieces.front(), Some(Piece::Part(_))) {
            bytes.truncate(usize::try_from(self.reader.handout).unwrap_or(usize::MAX));
        }
        let sent = bytes.len() as u64;
        self.left -= sent;
        match self.pieces.pop_front() {
            Some(Piece::Part(part)) => {
                if let Some(rest) = ByteRange::new(part.start() + sent, part.end()) {
                    self.pieces.push_front(Piece::Part(rest));
                }
                Chunk { bytes, mapping: Some(Arc::clone(self.reader.lease.mapping())) }
            }
            Some(Piece::Text(_)) | None => bytes.into(),
        }
    }
}

/// How often one window is looked for in another copy of the asset.
const MOVES_MAX: usize = 3;

enum Next {
    End,
    Ready(Bytes),
    Failed(BodyError),
    Wait(Waiting),
}

impl Reader {
    fn entry(&self) -> &Arc<Entry> {
        self.lease.entry()
    }

    /// Waits for the next window of `part`: to be fetched, then to be in memory. Where the asset is evicted, or its disk fails, in
    /// the middle of the response, goes on from another copy of the same version.
    async fn read(mut self, part: ByteRange) -> Result<(Bytes, Lease), BodyError> {
        for _ in 0..MOVES_MAX {
            let failed = match self.read_here(part).await {
                Ok(bytes) => return Ok((bytes, self.lease)),
                Err(err) => err,
            };
            match &failed {
                BodyError::Refused(Refusal::Withdrawn) => {}
                BodyError::Read(err @ ReadError::Io(_)) => self.lease.read_failed(err),
                _ => return Err(failed),
            }
            let want = Want::Range { start: part.start(), end: Some(part.end()) };
            if self.read_ahead == 0 {
                return Err(failed);
            }
            let successor = timeout(self.patience, self.catalog.successor(self.entry(), want)).await;
            let successor = successor.unwrap_or(Err(Refusal::SourceTimedOut)).map_err(BodyError::Refused)?;
            let ahead = ByteRange::new(part.start(), part.start().saturating_add(self.read_ahead).min(part.end()))
                .unwrap_or(part);
            successor.demand(ahead).map_err(BodyError::Refused)?;
            timeout(self.patience, successor.grown(part.start()))
                .await
                .unwrap_or(Err(Refusal::SourceTimedOut))
                .map_err(BodyError::Refused)?;
            self.lease = successor.lease().await?;
        }
        Err(BodyError::Refused(Refusal::Withdrawn))
    }

    async fn read_here(&self, part: ByteRange) -> Result<Bytes, BodyError> {
        if self.entry().available(part.start()) == 0 && self.entry().is_withdrawn() {
            return Err(BodyError::Refused(Refusal::Withdrawn));
        }
        let grown = timeout(self.patience, self.entry().grown(part.start())).await;
        let here = grown.unwrap_or(Err(Refusal::SourceTimedOut)).map_err(BodyError::Refused)?;
        let end = part.start() + here.min(part.len()).min(self.window);
        let slice = ByteRange::new(part.start(), end).and_then(|range| self.lease.slice(range));
        let slice = slice.ok_or(BodyError::Refused(Refusal::Withdrawn))?;
        // Is read while this is sent.
        let next_end = end.saturating_add(self.window).min(part.end()).min(end + self.entry().available(end));
        let next = ByteRange::new(end, next_end).and_then(|range| self.lease.slice(range));
        Ok(self.residency.resident(slice, next).await?)
    }
}
