//! Fetches missing blocks of an asset that is known, and writes what comes.
//!
//! ask for the run with If-Range -> check the head -> write piece by piece (viewers wake) -> retry the rest where it broke off
//!
//! Retries belong to the fetch, not to viewers: who leaves changes nothing, and nobody's fetch dies with them.

use std::{ops::Range, sync::Arc};

use super::{
    Context,
    attempts::Attempts,
    check::{Reply, is_same_version},
    ranking::Route,
    source::{Answer, Ask, AskRange, SourceBody, SourceFault},
};
use crate::{
    asset::ByteRange,
    catalog::{AssetWriter, Entry, Refusal, WriteError},
};

/// Why a body was not taken to its end.
#[derive(Debug)]
pub(super) enum BrokeOff {
    /// The source's fault; another try may bring the rest.
    Source(SourceFault),
    /// Ours: no other try would help.
    Writing(WriteError),
}

impl From<SourceFault> for BrokeOff {
    fn from(fault: SourceFault) -> Self {
        Self::Source(fault)
    }
}

impl From<WriteError> for BrokeOff {
    fn from(err: WriteError) -> Self {
        Self::Writing(err)
    }
}

/// Blocks that were marked as wanted for a fetch. Whatever ends the fetch - its failure, a panic, the appliance's end - whoever
/// waits for them hears of it.
#[derive(Debug)]
pub(super) struct Claim {
    entry: Arc<Entry>,
    pub(super) runs: Vec<Range<u32>>,
}

impl Claim {
    pub(super) fn new(entry: &Arc<Entry>, runs: Vec<Range<u32>>) -> Self {
        Self { entry: Arc::clone(entry), runs }
    }

    /// They are not to be had.
    pub(super) fn give_up(mut self, why: Refusal) {
        self.runs.drain(..).for_each(|run| self.entry.abandon(run, why));
    }

    /// They are here.
    pub(super) fn done(mut self) {
        self.runs.clear();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.runs.drain(..).for_each(|run| self.entry.abandon(run, Refusal::SourceFailed));
    }
}

impl Context {
    /// Fetches a run of blocks that are marked as wanted; what cannot be had is given up.
    pub(super) async fn fetch_blocks(&self, entry: &Arc<Entry>, blocks: Range<u32>, route: Route<'_>) {
        let claim = Claim::new(entry, vec![blocks.clone()]);
        match self.fetch_claimed(entry, blocks, route).await {
            Ok(()) => claim.done(),
            Err(refusal) => claim.give_up(refusal),
        }
    }

    async fn fetch_claimed(&self, entry: &Arc<Entry>, blocks: Range<u32>, route: Route<'_>) -> Result<(), Refusal> {
        if !entry.meta().ranged {
            return self.fetch_again_whole(entry, blocks, route).await;
        }
        let size = entry.block_size();
        let step = u32::try_from((self.settings().config.fetch_max.0 / size.bytes()).max(1)).unwrap_or(u32::MAX);
        let mut first = blocks.start;
        while first < blocks.end {
            let run = first..blocks.end.min(first.saturating_add(step));
            self.fetch_run(entry, run, route).await?;
            first = first.saturating_add(step);
        }
        Ok(())
    }

    /// Fetches one run by one request, or by as many as it takes.
    async fn fetch_run(&self, entry: &Arc<Entry>, run: Range<u32>, route: Route<'_>) -> Result<(), Refusal> {
        self.fetch_rest(entry, &mut entry.writer(run.start), (run.end, route)).await
    }

    /// Fetches from where `writer` stands to the start of block `end`.
    pub(super) async fn fetch_rest(
        &self,
        entry: &Arc<Entry>,
        writer: &mut AssetWriter,
        (end, route): (u32, Route<'_>),
    ) -> Result<(), Refusal> {
        let end = entry.block_size().start_of(end).min(entry.meta().length);
        let mut attempts = Attempts::new(self, entry.key(), route);
        while let Some(source) = attempts.next().await {
            let Some(rest) = ByteRange::new(writer.position(), end) else { break };
            let range = AskRange::Part { start: rest.start(), end: Some(rest.end()) };
            let ask = Ask { range, if_range: Some(&entry.meta().validators), unless: None };
            let Some((answer, reply)) = attempts.ask(&source, entry.key(), &ask).await else { continue };
            let taken = self.take_part(entry, writer, (answer, reply), rest).await;
            match taken {
                Ok(()) => {
                    Attempts::succeeded(&source);
                    if writer.position() >= end {
                        return Ok(());
                    }
                }
                Err(BrokeOff::Source(SourceFault::Changed)) => {
                    attempts.failed(&source, entry.key(), SourceFault::Changed);
                    return Err(self.changed(entry));
                }
                Err(BrokeOff::Source(fault)) => attempts.failed(&source, entry.key(), fault),
                Err(BrokeOff::Writing(err)) => return Err(self.cannot_write(entry, &err)),
            }
        }
        if writer.position() >= end {
            return Ok(());
        }
        let refusal = attempts.refusal();
        if refusal.is_answer() {
            // Every source has said that there is no such asset any more.
            self.catalog.forget(entry);
        }
        Err(refusal)
    }

    async fn take_part(
        &self,
        entry: &Arc<Entry>,
        writer: &mut AssetWriter,
        (mut answer, reply): (Answer, Reply),
        rest: ByteRange,
    ) -> Result<(), BrokeOff> {
        match reply {
            Reply::Part { part, total } => {
                if !is_same_version(&answer.head, Some(total), entry.meta()) {
                    return Err(SourceFault::Changed.into());
                }
                let wanted = Wanted { skip: 0, count: part.len(), then_ends: true };
                take(&mut answer.body, writer, wanted).await
            }
            // The version is another one, or the source has ceased to serve ranges.
            Reply::Whole(length) => {
                if length.is_none() || !is_same_version(&answer.head, length, entry.meta()) {
                    return Err(SourceFault::Changed.into());
                }
                if rest.end() > self.settings().config.whole_asset_max.0 {
                    return Err(SourceFault::TooLong.into());
                }
                let then_ends = length == Some(rest.end());
                let wanted = Wanted { skip: rest.start(), count: rest.len(), then_ends };
                take(&mut answer.body, writer, wanted).await
            }
            Reply::Unsatisfiable(_) => Err(SourceFault::Changed.into()),
            Reply::NotModified | Reply::Absent(_) => Err(SourceFault::WrongRange.into()),
        }
    }

    /// Fetches an asset whose source does not serve ranges from its beginning, once more: a block of it was lost.
    async fn fetch_again_whole(&self, entry: &Arc<Entry>, blocks: Range<u32>, route: Route<'_>) -> Result<(), Refusal> {
        let _one_at_a_time = self.whole_fetches.lock().await;
        if entry.holds(blocks) {
            return Ok(());
        }
        if !entry.meta().validators.allow_combining() {
            // What is stored and what would come cannot be told apart.
            return Err(self.changed(entry));
        }
        let length = entry.meta().length;
        // The writer begins at the start and leaves out nothing that is missing.
        let claim = Claim::new(entry, entry.claim(0..entry.block_size().count(length)));
        let mut attempts = Attempts::new(self, entry.key(), route);
        while let Some(source) = attempts.next().await {
            let Some((mut answer, reply)) = attempts.ask(&source, entry.key(), &Ask::of(AskRange::Whole)).await else {
                continue;
            };
            let taken = match reply {
                Reply::Whole(total) if total.is_some() && is_same_version(&answer.head, total, entry.meta()) => {
                    let wanted = Wanted { skip: 0, count: length, then_ends: true };
                    take(&mut answer.body, &mut entry.writer(0), wanted).await
                }
                _ => Err(SourceFault::Changed.into()),
            };
            match taken {
                Ok(()) => {
                    Attempts::succeeded(&source);
                    claim.done();
                    return Ok(());
                }
                Err(BrokeOff::Source(SourceFault::Changed)) => return Err(self.changed(entry)),
                Err(BrokeOff::Source(fault)) => attempts.failed(&source, entry.key(), fault),
                Err(BrokeOff::Writing(err)) => return Err(self.cannot_write(entry, &err)),
            }
        }
        Err(attempts.refusal())
    }

    /// The source has another version now: what is stored cannot be completed.
    pub(super) fn changed(&self, entry: &Arc<Entry>) -> Refusal {
        tracing::info!(asset = %entry.key(), "asset changed at its source; the stored version is dropped");
        self.catalog.forget(entry);
        Refusal::Withdrawn
    }

    pub(super) fn cannot_write(&self, entry: &Arc<Entry>, err: &WriteError) -> Refusal {
        match err {
            WriteError::Withdrawn | WriteError::Stopping => {
                tracing::debug!(asset = %entry.key(), error = %err, "fill ends");
            }
            _ => tracing::warn!(asset = %entry.key(), error = %err, "asset cannot be filled"),
        }
        err.refusal()
    }
}

/// What is wanted of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Bytes to pass over.
    pub(super) skip: u64,
    /// Bytes to write after these.
    pub(super) count: u64,
    /// Whether the body has to end there.
    pub(super) then_ends: bool,
}

/// Writes what is wanted of a body, and counts: fewer or more than announced is a fault.
pub(super) async fn take(body: &mut SourceBody, writer: &mut AssetWriter, wanted: Wanted) -> Result<(), BrokeOff> {
    let Wanted { mut skip, mut count, then_ends } = wanted;
    while count > 0 {
        let mut pieces = body.gather().await?;
        if pieces.is_empty() {
            return Err(SourceFault::Short.into());
        }
        let mut long = false;
        for piece in &mut pieces {
            let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            drop(piece.split_to(passed));
            skip -= passed as u64;
            let room = usize::try_from(count).unwrap_or(usize::MAX);
            long |= piece.len() > room;
            piece.truncate(room);
            count -= piece.len() as u64;
        }
        // The last bytes are not believed before the end is seen, where nothing has said where it is.
        if count == 0 && then_ends && (long || (!body.length_is_said && body.next().await?.is_some())) {
            return Err(SourceFault::Long.into());
        }
        pieces.retain(|piece| !piece.is_empty());
        if !pieces.is_empty() {
            writer.write_pieces(pieces).await?;
        }
    }
    Ok(())
}
