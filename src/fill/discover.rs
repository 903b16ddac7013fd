//! Finds out about an unknown asset, and begins to fill it with the part that is wanted.
//!
//! The first request to the source asks for the very blocks that the viewer needs (one byte of a film costs a block), and its
//! head tells the rest: length, version, whether it may be stored. The viewer is answered by then; the body streams on.

use std::{ops::Range, sync::Arc};

use super::{
    Context,
    attempts::Attempts,
    check::Reply,
    fetch::{BrokeOff, Claim, Wanted, take},
    freshness::{Storing, storing},
    ranking::Route,
    source::{Answer, Ask, AskRange, Head, SourceFault},
};
use crate::{
    asset::{AssetKey, BlockSize, ByteRange, media_type_of},
    catalog::{AdmitError, Discovery, Entry, Lifetime, Meta, PurgeMark, Refusal, Want},
};

/// What was found out.
#[derive(Debug)]
pub(super) enum FoundOut {
    /// It is admitted; what the answer carries is still to be written.
    Admitted(Arc<Entry>, Option<Box<Carried>>),
    /// It may not be stored, or there is no place for it.
    PassThrough,
}

/// A body that is still to be written.
#[derive(Debug)]
pub(super) struct Carried {
    answer: Answer,
    source: Arc<super::source::Source>,
    /// The bytes that it carries.
    part: ByteRange,
    /// The blocks claimed for it.
    claim: Claim,
}

/// What a reply to the first question leads to.
enum Step {
    Done(FoundOut),
    /// The same source, asked in another way.
    Again(AskRange),
    Fault(SourceFault),
}

impl Context {
    /// Answers a question of the demand board.
    pub(super) async fn discover(&self, discovery: Discovery) {
        let (key, asker) = (discovery.key().clone(), discovery.asker().clone());
        let route = Route::of(&asker);
        match self.find_out(&key, discovery.want(), route).await {
            Ok(FoundOut::Admitted(entry, carried)) => {
                discovery.admitted(Arc::clone(&entry));
                if let Some(carried) = carried {
                    self.write_carried(&entry, carried, route).await;
                }
            }
            Ok(FoundOut::PassThrough) => discovery.pass_through(),
            Err(refusal) => discovery.refused(refusal),
        }
    }

    /// Asks the sources about an asset until one has told.
    pub(super) async fn find_out(&self, key: &AssetKey, want: Want, route: Route<'_>) -> Result<FoundOut, Refusal> {
        let mut attempts = Attempts::new(self, key, route);
        while let Some(source) = attempts.next().await {
            let mut range = self.first_ask(want);
            // A probe after a range that does not exist, the whole after a part that cannot be combined, and once more for a purge: never
            // more.
            for _ in 0..4 {
                let ask = Ask::of(range);
                let asked = self.catalog.purge_mark();
                let Some((answer, reply)) = attempts.ask(&source, key, &ask).await else { break };
                match self.judge(key, (&source, answer), reply, (range, asked)) {
                    Step::Done(found) => {
                        Attempts::succeeded(&source);
                        return Ok(found);
                    }
                    Step::Again(other) => range = other,
                    Step::Fault(fault) => {
                        attempts.failed(&source, key, fault);
                        break;
                    }
                }
            }
        }
        Err(attempts.refusal())
    }

    /// The blocks that a viewer needs, with bounded read-ahead; or one byte, where it is not known which they are.
    fn first_ask(&self, want: Want) -> AskRange {
        let Want::Range { start, end } = want else { return AskRange::Part { start: 0, end: Some(1) } };
        let size = self.block_size.bytes();
        let first = start / size * size;
        let ahead = start.saturating_add(self.settings().config.read_ahead.0.max(1));
        let last = end.unwrap_or(u64::MAX).min(ahead).max(start.saturating_add(1));
        let last = last.checked_next_multiple_of(size).unwrap_or(u64::MAX);
        AskRange::Part {
            start: first,
            end: Some(last.min(first.saturating_add(self.settings().config.fetch_max.0.max(size)))),
        }
    }

    fn judge(
        &self,
        key: &AssetKey,
        (source, answer): (&Arc<super::source::Source>, Answer),
        reply: Reply,
        (range, asked): (AskRange, PurgeMark),
    ) -> Step {
        let now = self.clock.unix();
        let media_type = answer.head.content_type.as_deref().unwrap_or_else(|| media_type_of(key.path()));
        let Storing::Store(lifetime) =
            storing(&answer.head.caching, media_type, now, &self.settings().config.freshness)
        else {
            return Step::Done(FoundOut::PassThrough);
        };
        let combining = answer.head.validators.allow_combining();
        match reply {
            Reply::Part { part, total } if combining || part.len() == total => {
                self.admit(key, (source, answer), (part, total, combining), (lifetime, range, asked))
            }
            // Parts of a version that cannot be told from the next one do not fit together: the whole, at once.
            Reply::Part { total, .. } if total <= self.settings().config.whole_asset_max.0 => {
                Step::Again(AskRange::Whole)
            }
            Reply::Part { .. } => Step::Done(FoundOut::PassThrough),
            Reply::Whole(Some(0)) => self.admit_empty(key, &answer.head, (lifetime, range, asked)),
            Reply::Whole(Some(length)) if length <= self.settings().config.whole_asset_max.0 => {
                match ByteRange::new(0, length) {
                    Some(whole) => self.admit(key, (source, answer), (whole, length, false), (lifetime, range, asked)),
                    None => Step::Fault(SourceFault::WrongRange),
                }
            }
            Reply::Whole(_) => Step::Done(FoundOut::PassThrough),
            Reply::Unsatisfiable(_) => match range {
                // Perhaps it is empty; the answer to a question for all of it says so, and for how long.
                AskRange::Part { start: 0, .. } | AskRange::Whole | AskRange::Suffix(_) => Step::Again(AskRange::Whole),
                AskRange::Part { .. } => Step::Again(AskRange::Part { start: 0, end: Some(1) }),
            },
            Reply::NotModified | Reply::Absent(_) => Step::Fault(SourceFault::WrongRange),
        }
    }

    /// An empty asset is most often one that is still being written: it is asked for again soon, whatever its type.
    fn admit_empty(
        &self,
        key: &AssetKey,
        head: &Head,
        (lifetime, range, asked): (Lifetime, AskRange, PurgeMark),
    ) -> Step {
        let soon = self.clock.unix().plus(self.settings().config.freshness.default_ttl);
        let lifetime = Lifetime { fresh_until: lifetime.fresh_until.min(soon), ..lifetime };
        match self.catalog.admit_asked(asked, key, meta(head, 0, false), lifetime) {
            Ok(entry) => Step::Done(FoundOut::Admitted(entry, None)),
            Err(AdmitError::Purged) => Step::Again(range),
            Err(_) => Step::Done(FoundOut::PassThrough),
        }
    }

    fn admit(
        &self,
        key: &AssetKey,
        (source, answer): (&Arc<super::source::Source>, Answer),
        (part, total, ranged): (ByteRange, u64, bool),
        (lifetime, range, asked): (Lifetime, AskRange, PurgeMark),
    ) -> Step {
        let entry = match self.catalog.admit_asked(asked, key, meta(&answer.head, total, ranged), lifetime) {
            Ok(entry) => entry,
            // What came was asked for before it was purged.
            Err(AdmitError::Purged) => return Step::Again(range),
            Err(err) => {
                tracing::debug!(asset = %key, reason = %err, "asset is not admitted");
                return Step::Done(FoundOut::PassThrough);
            }
        };
        // Claimed before anybody is told of the entry, so that nobody asks for what is on its way.
        let claimed =
            whole_blocks(entry.block_size(), part, total).map(|blocks| entry.claim(blocks)).unwrap_or_default();
        let carried = (!claimed.is_empty()).then(|| Carried {
            answer,
            source: Arc::clone(source),
            part,
            claim: Claim::new(&entry, claimed),
        });
        Step::Done(FoundOut::Admitted(entry, carried.map(Box::new)))
    }

    /// Writes what the first answer carries; where it breaks off, the rest is fetched as any missing blocks are.
    pub(super) async fn write_carried(&self, entry: &Arc<Entry>, mut carried: Box<Carried>, route: Route<'_>) {
        let (size, part) = (entry.block_size(), carried.part);
        let last = carried.claim.runs.last().map_or(0, |run| run.end);
        let mut writer = entry.writer(size.block_of(part.start()));
        // What comes of a further block, of which the end is missing, is nobody's.
        let end = size.start_of(last).clamp(part.start(), part.end());
        let wanted = Wanted { skip: 0, count: end - part.start(), then_ends: end == part.end() };
        let taken = take(&mut carried.answer.body, &mut writer, wanted).await;
        let filled = match taken {
            Ok(()) => {
                Attempts::succeeded(&carried.source);
                Ok(())
            }
            Err(BrokeOff::Writing(err)) => Err(self.cannot_write(entry, &err)),
            Err(BrokeOff::Source(fault)) => {
                let changed = fault == SourceFault::Changed;
                Attempts::note(&carried.source, entry.key(), &fault);
                // A version without a strong validator comes whole or not at all.
                if changed || !entry.meta().validators.allow_combining() {
                    Err(self.changed(entry))
                } else if entry.meta().ranged {
                    self.fetch_rest(entry, &mut writer, (last, route)).await
                } else {
                    // From the start, and all of it: also of what this answer had not claimed.
                    drop(writer);
                    carried.claim.done();
                    return self.fetch_blocks(entry, 0..size.count(entry.meta().length), route).await;
                }
            }
        };
        // It hands back a block that it leaves unfinished; then the claim can give it up.
        drop(writer);
        match filled {
            Ok(()) => carried.claim.done(),
            Err(refusal) => carried.claim.give_up(refusal),
        }
    }
}

/// The blocks that a part covers from their first byte to their last.
fn whole_blocks(size: BlockSize, part: ByteRange, total: u64) -> Option<Range<u32>> {
    if !part.start().is_multiple_of(size.bytes()) {
        return None;
    }
    let first = size.block_of(part.start());
    let end = if part.end() == total { size.count(total) } else { u32::try_from(part.end() / size.bytes()).ok()? };
    (first < end).then_some(first..end)
}

/// What a head says of the asset.
pub(super) fn meta(head: &Head, length: u64, ranged: bool) -> Meta {
    Meta {
        length,
        validators: head.validators.clone(),
        content_type: head.content_type.as_deref().map(Into::into),
        content_encoding: head.content_encoding.as_deref().map(Into::into),
        cache_control: head.caching.cache_control.as_deref().map(Into::into),
        ranged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_come_whole_are_claimed() {
        let size = BlockSize::DEFAULT;
        let mib = size.bytes();
        let blocks = |start, end, total| whole_blocks(size, ByteRange::new(start, end).expect("range"), total);
        assert_eq!(blocks(0, 1, 10 * mib), None, "a probe carries no block");
        assert_eq!(blocks(0, 1, 1), Some(0..1), "unless that is all");
        assert_eq!(blocks(mib, 3 * mib, 10 * mib), Some(1..3));
        assert_eq!(blocks(mib, 3 * mib + 5, 10 * mib), Some(1..3));
        assert_eq!(blocks(mib, 3 * mib + 5, 3 * mib + 5), Some(1..4));
        assert_eq!(blocks(5, 3 * mib, 10 * mib), None);
    }
}
