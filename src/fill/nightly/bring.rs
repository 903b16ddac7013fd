//! Brings in one asset of the manifest: from what is here of it to the last byte, compared.
//!
//! what is here (compared again) -> missing blocks, in order, from the nearest source -> digests as they come -> published
//!
//! What turns out wrong is dropped, and whoever gave it is asked no more for this asset and left alone for a while.

use std::{sync::Arc, time::Instant};

use super::{
    super::{
        attempts::{Ahead, Attempts},
        check::{Reply, is_same_version},
        discover::meta,
        fetch::Claim,
        freshness::{Storing, storing},
        ranking::Route,
        source::{Answer, Ask, AskRange, Source, SourceFault},
    },
    Nightly,
    digests::{Following, Wrong, digest_of},
};
use crate::{
    asset::{ByteRange, media_type_of},
    catalog::{Asker, AssetWriter, Entry, InWork, Lifetime, PlannedAsset, PurgeMark, Refusal, WriteError},
    control::manifest::{Manifest, ManifestAsset},
    sys::priority,
};

/// Bytes that a digest is computed of at once: some 10 us, then whoever waits for the core may have it.
const STEP_BYTES: usize = 32 << 10;

/// How it ended with an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is held, whole and as the manifest says.
    Held,
    /// The window has closed; what is here stays.
    Paused,
    /// Others are to have it first.
    Waiting,
    /// Whoever has it wants to be asked later.
    Later,
    /// It is not to be had now.
    Failed(&'static str),
}

/// Why bytes do not come any more.
enum Stop {
    Paused,
    /// A source has given something else than the manifest says.
    Wrong,
    Source(SourceFault),
    Writing(WriteError),
}

impl From<SourceFault> for Stop {
    fn from(fault: SourceFault) -> Self {
        Self::Source(fault)
    }
}

/// Who may be asked for an asset now, and by whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    pub(super) may_ask: Ahead,
    /// The other boxes of the site take it from this one.
    pub(super) fetches_for_site: bool,
}

/// One asset being brought in.
pub(super) struct Bringing<'n> {
    night: &'n Nightly,
    manifest: &'n Manifest,
    asset: &'n ManifestAsset,
    who: Who,
    /// Who has given bytes of the version that is in work.
    givers: Vec<Arc<Source>>,
    /// Somebody else has written a block: what came by is not what lies on the disk.
    is_mixed: bool,
    /// Who has given wrong ones, and is not asked again.
    suspects: Vec<Arc<Source>>,
}

impl<'n> Bringing<'n> {
    pub(super) fn new(night: &'n Nightly, manifest: &'n Manifest, asset: &'n ManifestAsset, who: Who) -> Self {
        Self { night, manifest, asset, who, givers: Vec::new(), is_mixed: false, suspects: Vec::new() }
    }

    /// To the end, or as far as it goes now.
    pub(super) async fn run(mut self) -> Ended {
        loop {
            match self.attempt().await {
                Ok(()) => return Ended::Held,
                Err(Ended::Failed("wrong_digest")) if !self.givers.is_empty() => {
                    // Once more, from others: each time there is one source less.
                    let now = Instant::now();
                    for giver in std::mem::take(&mut self.givers) {
                        tracing::warn!(asset = %self.asset.key, source = %giver.config.name, "source gives another asset than the manifest lists, and is left alone for a while");
                        giver.metrics.error("wrong_digest");
                        giver.set_aside.distrust(now);
                        giver.metrics.set_aside.set(1);
                        self.suspects.push(giver);
                    }
                }
                Err(ended) => return ended,
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), Ended> {
        let catalog = &self.night.context.catalog;
        let held = catalog.held_or_withheld(&self.asset.key).filter(|held| held.meta().length == self.asset.length.0);
        let wanted = digest_of(self.asset);
        let work = match held {
            Some(entry) if wanted.is_some() && catalog.whole_digest(&entry) == wanted => return Ok(()),
            Some(entry) => self.blocking(move |catalog| catalog.resume_planned(&entry)).await?,
            None => self.begin().await?,
        };
        let entry = work.entry();
        match self.complete(entry).await {
            Ok(()) => {}
            Err(Ended::Failed("wrong_digest")) => {
                let entry = Arc::clone(entry);
                self.night.context.blocking(move |catalog| catalog.discard(&entry)).await;
                self.night.progress.discarded();
                return Err(Ended::Failed("wrong_digest"));
            }
            Err(ended) => return Err(ended),
        }
        if let Some(digest) = wanted {
            let entry = Arc::clone(entry);
            self.night.context.blocking(move |catalog| catalog.publish(&entry, digest)).await;
        }
        if entry.is_withdrawn() {
            return Err(Ended::Failed("withdrawn"));
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::catalog::Catalog) -> Result<T, crate::catalog::AdmitError> + Send + 'static,
    ) -> Result<T, Ended> {
        use crate::catalog::AdmitError;
        match self.night.context.blocking(work).await {
            Some(Ok(done)) => Ok(done),
            Some(Err(AdmitError::NoRoom)) => Err(Ended::Failed("no_room")),
            Some(Err(AdmitError::TooLarge)) => Err(Ended::Failed("too_large")),
            Some(Err(AdmitError::Purged)) => Err(Ended::Failed("withdrawn")),
            Some(Err(AdmitError::NoVolume | AdmitError::Withheld)) => Err(Ended::Failed("no_volume")),
            None => Err(Ended::Paused),
        }
    }

    fn attempts(&self) -> Attempts {
        let context = &self.night.context;
        let settings = context.settings();
        let hints = settings.hints(self.manifest, self.asset).map(|hints| match self.who.fetches_for_site {
            true => hints.for_who_fetches(settings.sources.iter().map(|source| &source.config)),
            false => hints,
        });
        // Without a word of the manifest the configuration decides.
        let route = Route { asker: &Asker::Viewer, hints: hints.as_ref() };
        Attempts::by(context, &settings, &self.asset.key, route)
            .ahead(self.who.may_ask, |source| !self.suspects.iter().any(|suspect| Arc::ptr_eq(suspect, source)))
    }

    /// Finds a source that has it, and takes it in.
    async fn begin(&mut self) -> Result<InWork, Ended> {
        let (key, length) = (&self.asset.key, self.asset.length.0);
        let mut attempts = self.attempts();
        while let Some(source) = attempts.next().await {
            // One byte tells what it is; the blocks are asked for by their own requests, each of which may end at another source.
            let range = if length == 0 { AskRange::Whole } else { AskRange::Part { start: 0, end: Some(1) } };
            let asked = self.night.context.catalog.purge_mark();
            let Some((answer, reply)) = attempts.ask(&source, key, &Ask::of(range)).await else { continue };
            match self.judge(&answer, reply, asked) {
                Ok(planned) => {
                    Attempts::succeeded(&source);
                    let key = key.clone();
                    return self.blocking(move |catalog| catalog.admit_planned(&key, planned)).await;
                }
                Err(fault) => attempts.failed(&source, key, fault),
            }
        }
        Err(self.not_to_be_had(&attempts))
    }

    fn not_to_be_had(&self, attempts: &Attempts) -> Ended {
        match () {
            () if self.who.may_ask.site_only || attempts.holds_back() => Ended::Waiting,
            () if attempts.is_asked_to_wait() => Ended::Later,
            () => Ended::Failed(attempts.refusal().label()),
        }
    }

    fn judge(&self, answer: &Answer, reply: Reply, asked: PurgeMark) -> Result<PlannedAsset, SourceFault> {
        let length = self.asset.length.0;
        let total = match reply {
            Reply::Part { total, .. } => total,
            Reply::Whole(Some(total)) if total <= self.night.context.settings().config.whole_asset_max.0 => total,
            Reply::Whole(_) => return Err(SourceFault::TooLong),
            _ => return Err(SourceFault::WrongRange),
        };
        let listed = self.asset.validators().and_then(|validators| validators.etag.as_ref());
        let is_listed = match (listed, &answer.head.validators.etag) {
            (Some(listed), Some(shown)) => listed.weak_eq(shown),
            _ => true,
        };
        if total != length || !is_listed {
            return Err(SourceFault::NotListed);
        }
        let mut meta = meta(&answer.head, length, answer.head.validators.allow_combining());
        if let Some(content_type) = self.manifest.content_type(self.asset) {
            meta.content_type = Some(content_type.into());
        }
        let now = self.night.context.clock.unix();
        let lifetime = if digest_of(self.asset).is_some() {
            // What has a digest cannot change.
            Lifetime::immutable(now)
        } else {
            let media_type = meta.content_type.as_deref().unwrap_or_else(|| media_type_of(self.asset.key.path()));
            match storing(&answer.head.caching, media_type, now, &self.night.context.settings().config.freshness) {
                Storing::Store(lifetime) => lifetime,
                Storing::PassThrough => return Err(SourceFault::NotListed),
            }
        };
        Ok(PlannedAsset { meta, lifetime, asked })
    }

    /// Fetches what is missing, and compares.
    async fn complete(&mut self, entry: &Arc<Entry>) -> Result<(), Ended> {
        let mut following = Following::new(self.asset);
        let (size, length) = (entry.block_size(), self.asset.length.0);
        let step =
            u32::try_from((self.night.context.settings().config.fetch_max.0 / size.bytes()).max(1)).unwrap_or(u32::MAX);
        let mut block = 0;
        while block < size.count(length) {
            if entry.has_block(block).await.map_err(refused)? {
                block += 1;
                continue;
            }
            if !self.night.gate.is_open() {
                return Err(Ended::Paused);
            }
            self.catch_up(entry, &mut following, size.start_of(block)).await?;
            let run = entry.claim_run(block, step);
            if run.is_empty() {
                continue;
            }
            let claim = Claim::new(entry, vec![run.clone()]);
            let fetched = self.fetch_run(entry, run, &mut following).await;
            match fetched {
                Ok(()) => claim.done(),
                Err(ended) => {
                    claim.give_up(Refusal::SourceFailed);
                    return Err(ended);
                }
            }
        }
        if std::mem::take(&mut self.is_mixed) {
            following = Following::new(self.asset);
        }
        self.catch_up(entry, &mut following, length).await?;
        if entry.is_withdrawn() {
            return Err(Ended::Failed("withdrawn"));
        }
        following.end().map_err(|_| Ended::Failed("wrong_digest"))
    }

    async fn catch_up(&self, entry: &Arc<Entry>, following: &mut Following<'_>, end: u64) -> Result<(), Ended> {
        match following.catch_up(entry, end).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Wrong(_))) => Err(Ended::Failed("wrong_digest")),
            Err(_) => Err(Ended::Failed("disk")),
        }
    }

    async fn fetch_run(
        &mut self,
        entry: &Arc<Entry>,
        run: std::ops::Range<u32>,
        following: &mut Following<'_>,
    ) -> Result<(), Ended> {
        let end = entry.block_size().start_of(run.end).min(self.asset.length.0);
        let mut writer = entry.writer(run.start);
        let mut attempts = self.attempts();
        while let Some(source) = attempts.next().await {
            let Some(rest) = ByteRange::new(writer.position(), end) else { break };
            let range = AskRange::Part { start: rest.start(), end: Some(rest.end()) };
            let ask = Ask { range, if_range: Some(&entry.meta().validators), unless: None };
            let Some((answer, reply)) = attempts.ask(&source, entry.key(), &ask).await else { continue };
            let taken = self.take(&source, (answer, reply), &mut writer, (rest, following)).await;
            self.is_mixed |= writer.has_passed_over();
            match taken {
                Ok(()) => {
                    Attempts::succeeded(&source);
                    if writer.position() >= end {
                        return Ok(());
                    }
                }
                Err(Stop::Paused) => return Err(Ended::Paused),
                Err(Stop::Wrong) => {
                    attempts.failed(&source, entry.key(), SourceFault::NotListed);
                    return Err(Ended::Failed("wrong_digest"));
                }
                Err(Stop::Source(fault)) => attempts.failed(&source, entry.key(), fault),
                Err(Stop::Writing(err)) => {
                    return Err(refused(self.night.context.cannot_write(entry, &err)));
                }
            }
        }
        if writer.position() >= end { Ok(()) } else { Err(self.not_to_be_had(&attempts)) }
    }

    async fn take(
        &mut self,
        source: &Arc<Source>,
        (mut answer, reply): (Answer, Reply),
        writer: &mut AssetWriter,
        (rest, following): (ByteRange, &mut Following<'_>),
    ) -> Result<(), Stop> {
        let length = self.asset.length.0;
        let (mut skip, mut count, then_ends, total) = match reply {
            Reply::Part { part, total } => (0, part.len(), true, Some(total)),
            Reply::Whole(total) => (rest.start(), rest.len(), total == Some(rest.end()), total),
            _ => return Err(SourceFault::WrongRange.into()),
        };
        // Bytes that have a digest may come from sources that show different validators, or none.
        let has_digest = digest_of(self.asset).is_some();
        let entry_meta = self.night.context.catalog.held_or_withheld(&self.asset.key);
        let same = entry_meta.is_some_and(|entry| is_same_version(&answer.head, total, entry.meta()));
        if total != Some(length) || (!has_digest && !same) {
            return Err(SourceFault::Changed.into());
        }
        if !self.givers.iter().any(|giver| Arc::ptr_eq(giver, source)) {
            self.givers.push(Arc::clone(source));
        }
        let size = self.night.context.block_size;
        while count > 0 {
            let Some(mut piece) = answer.body.next().await? else { return Err(SourceFault::Short.into()) };
            let came = piece.len() as u64;
            drop(piece.split_to(usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len())));
            skip -= came - piece.len() as u64;
            let room = usize::try_from(count).unwrap_or(usize::MAX);
            let long = piece.len() > room;
            piece.truncate(room);
            count -= piece.len() as u64;
            if count == 0 && then_ends && (long || (!answer.body.length_is_said && answer.body.next().await?.is_some()))
            {
                return Err(SourceFault::Long.into());
            }
            let before = writer.position();
            while !piece.is_empty() {
                let step = piece.split_to(STEP_BYTES.min(piece.len()));
                following.next(&step).map_err(|_| Stop::Wrong)?;
                priority::let_others_go_first();
                writer.write(step).await.map_err(Stop::Writing)?;
                priority::let_others_go_first();
            }
            self.night.progress.came(source.config.kind, came);
            self.night.pace.took(came).await;
            let passed_border = before / size.bytes() != writer.position() / size.bytes();
            if count > 0 && passed_border && !self.night.gate.is_open() {
                return Err(Stop::Paused);
            }
        }
        Ok(())
    }
}

fn refused(why: Refusal) -> Ended {
    match why {
        Refusal::Stopping => Ended::Paused,
        other => Ended::Failed(other.label()),
    }
}
