//! Which source is asked next, how often, and after what rest.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use url::Url;

use super::{
    Context, Settings, SourceKind,
    check::{Reply, check},
    ranking::{Boxes, How, Route, order},
    set_aside::{LastResort, Pass},
    source::{Answer, Ask, Manner, Source, SourceFault},
};
use crate::{asset::AssetKey, catalog::Refusal};

/// The tries of one fetch: cheapest source first, the next one after a failure, with a rest whenever all have been asked.
#[derive(Debug)]
pub(super) struct Attempts {
    turns: Vec<Turn>,
    next: usize,
    /// Sources that were asked since the last rest.
    asked: usize,
    /// How many may still be asked for more than what they hold.
    left: u32,
    rests: ExponentialBackoff,
    answers: Vec<Refusal>,
    last_fault: Option<SourceFault>,
    /// As `last_fault`, of peers: it counts only where nobody outside of the site has said anything.
    peer_fault: Option<SourceFault>,
    /// Who has failed since the last one was asked.
    failed: Option<Arc<Source>>,
    /// Whose turn it is.
    now: Option<(Turn, Pass)>,
    /// For a fill ahead of demand.
    ahead: bool,
    me: Arc<str>,
    through: Option<Box<str>>,
    /// Some of those that the manifest lists are not to be asked yet.
    holds_back: bool,
}

/// One source of the order.
#[derive(Clone, Debug)]
struct Turn {
    source: Arc<Source>,
    below: Option<Url>,
    how: How,
    escalate_after: Duration,
    wait: Duration,
}

/// How long an asset has been wanted, and who may be asked for it by now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Nobody outside of the site.
    pub(super) site_only: bool,
    /// For so long others have been waited for.
    pub(super) waited: Duration,
}

impl Attempts {
    /// Those for `key`, in the order that costs, peers and `route` give.
    pub(super) fn new(context: &Context, key: &AssetKey, route: Route<'_>) -> Self {
        Self::by(context, &context.settings(), key, route)
    }

    /// As [`Self::new`], by settings that hints of `route` are of: their numbers name other sources in others.
    pub(super) fn by(context: &Context, settings: &Settings, key: &AssetKey, route: Route<'_>) -> Self {
        let config = &settings.config;
        let boxes = Boxes { me: &config.site.name, asked_max: config.site.peers_asked_max };
        let sources: Vec<_> = settings.sources.iter().map(|source| &source.config).collect();
        // Who waits is not kept waiting: of a manifest's words, a viewer is given the addresses and their order.
        let told = if route.hints.is_none() { context.told_of(settings, key) } else { None };
        let (hints, only) = (route.hints.or(told.as_ref()), route.hints.is_some());
        let turns = order(&key.id(), boxes, &sources, (route.asker, hints, only)).into_iter().map(|turn| Turn {
            source: Arc::clone(&settings.sources[turn.source]),
            below: turn.below,
            how: turn.how,
            escalate_after: turn.escalate_after,
            wait: turn.wait,
        });
        let rests = ExponentialBuilder::default()
            .with_min_delay(config.retry_delay)
            .with_max_delay(config.retry_delay_max)
            .with_max_times(usize::try_from(config.attempts_max).unwrap_or(usize::MAX))
            .with_jitter()
            .build();
        Self {
            turns: turns.collect(),
            next: 0,
            asked: 0,
            left: config.attempts_max.max(1),
            rests,
            answers: Vec::new(),
            last_fault: None,
            peer_fault: None,
            failed: None,
            now: None,
            ahead: false,
            me: Arc::clone(&context.identity),
            through: route.asker.through().map(Into::into),
            holds_back: false,
        }
    }

    /// Asks nobody in the site, where there is anybody outside: for what a peer would not keep either.
    pub(super) fn outside(mut self) -> Self {
        if self.turns.iter().any(|turn| turn.how == How::Outside) {
            self.turns.retain(|turn| turn.how == How::Outside);
        }
        self
    }

    /// For a fill ahead of demand: peers give what they hold and fetch nothing. Only those whose time has come, and that are `allowed`.
    pub(super) fn ahead(mut self, now: Ahead, allowed: impl Fn(&Arc<Source>) -> bool) -> Self {
        let mut holds_back = false;
        self.ahead = true;
        self.turns.retain_mut(|turn| {
            if turn.how == How::Fetch {
                turn.how = How::IfHeld;
            }
            if !allowed(&turn.source) {
                return false;
            }
            let has_come = turn.wait <= now.waited && (turn.how == How::IfHeld || !now.site_only);
            holds_back |= !has_come;
            has_come
        });
        self.holds_back = holds_back;
        self
    }

    /// Whether others may be asked later.
    pub(super) fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// The next source to ask, after a rest where that is due; `None` when there is no point any more.
    pub(super) async fn next(&mut self) -> Option<Arc<Source>> {
        self.now = None;
        loop {
            if self.left == 0 || self.turns.is_empty() {
                return None;
            }
            if self.next >= self.turns.len() {
                if self.asked == 0 {
                    return self.last_resort().await;
                }
                (self.next, self.asked) = (0, 0);
                tokio::time::sleep(self.rests.next()?).await;
            }
            let turn = self.turns[self.next].clone();
            self.next += 1;
            let Some(pass) = turn.source.set_aside.admit(Instant::now()) else {
                if turn.how == How::Fetch {
                    turn.source.metrics.stood_in.inc();
                }
                continue;
            };
            self.asked += 1;
            if let Some(failed) = self.failed.take().filter(|failed| !Arc::ptr_eq(failed, &turn.source)) {
                failed.metrics.escalations.inc();
            }
            if turn.how != How::IfHeld {
                self.left -= 1;
            }
            let source = Arc::clone(&turn.source);
            self.now = Some((turn, pass));
            return Some(source);
        }
    }

    /// Every source is set aside: there is nothing better to do than to ask one of them all the same; once.
    async fn last_resort(&mut self) -> Option<Arc<Source>> {
        self.left = 0;
        if self.last_fault.is_some() || self.peer_fault.is_some() {
            return None;
        }
        let outside = self.turns.iter().find(|turn| turn.how == How::Outside).or(self.turns.first())?.clone();
        match outside.source.set_aside.last_resort().await {
            LastResort::Ask(pass) => {
                let source = Arc::clone(&outside.source);
                self.now = Some((outside, pass));
                Some(source)
            }
            LastResort::Failing => None,
            LastResort::Resting => {
                self.answers.clear();
                self.last_fault = Some(SourceFault::Resting);
                None
            }
        }
    }

    /// Asks `source` and judges the head.
    pub(super) async fn ask(&mut self, source: &Arc<Source>, key: &AssetKey, ask: &Ask<'_>) -> Option<(Answer, Reply)> {
        let turn = self.now.as_ref().map(|(turn, _)| turn);
        let (how, escalate_after) = turn.map_or((How::Outside, Duration::MAX), |turn| (turn.how, turn.escalate_after));
        let below = turn.and_then(|turn| turn.below.as_ref());
        let manner =
            Manner { how, escalate_after, below, ahead: self.ahead, me: &self.me, through: self.through.as_deref() };
        let opened = source.open(key, ask, manner).await;
        match opened.and_then(|answer| check(&answer.head, ask).map(|reply| (answer, reply))) {
            Ok((_, Reply::Absent(refusal))) => {
                self.answers.push(refusal);
                self.has_none(source);
                None
            }
            Err(SourceFault::NotHeld) => {
                source.metrics.not_held.inc();
                self.has_none(source);
                None
            }
            Ok(answered) => {
                source.set_aside.answered();
                Some(answered)
            }
            Err(fault) => {
                self.failed(source, key, fault);
                None
            }
        }
    }

    /// What a source does not have it will not have at the next try.
    fn has_none(&mut self, source: &Arc<Source>) {
        Self::succeeded(source);
        let below = self.now.as_ref().and_then(|(turn, _)| turn.below.clone());
        if let Some(at) = self.turns.iter().position(|turn| Arc::ptr_eq(&turn.source, source) && turn.below == below) {
            self.turns.remove(at);
            self.next = self.next.saturating_sub(usize::from(at < self.next));
        }
        self.now = None;
    }

    /// The source failed: counted, and perhaps set aside.
    pub(super) fn failed(&mut self, source: &Arc<Source>, key: &AssetKey, fault: SourceFault) {
        Self::note(source, key, &fault);
        self.failed = Some(Arc::clone(source));
        match source.config.kind {
            SourceKind::Peer => self.peer_fault = Some(fault),
            SourceKind::Tier | SourceKind::Origin => self.last_fault = Some(fault),
        }
    }

    /// As `failed`, outside of a series of tries.
    pub(super) fn note(source: &Source, key: &AssetKey, fault: &SourceFault) {
        tracing::debug!(source = %source.config.name, asset = %key, %fault, "fetch failed");
        source.metrics.error(fault.label());
        let set_aside = match fault {
            SourceFault::Later(_, rest) => {
                source.set_aside.asked_for_rest(Instant::now(), *rest);
                true
            }
            // What a peer says of sources behind it says nothing of the peer.
            SourceFault::Status(502 | 504 | 508) if source.config.kind == SourceKind::Peer => false,
            fault => fault.is_ill() && source.set_aside.failed(Instant::now()),
        };
        if set_aside {
            // Told once, and not again for each request that has found it down since.
            if source.metrics.set_aside.value() == 0 {
                tracing::warn!(source = %source.config.name, %fault, "source is set aside for a while");
            }
            source.metrics.set_aside.set(1);
        }
    }

    /// The source delivered.
    pub(super) fn succeeded(source: &Source) {
        source.set_aside.succeeded();
        if source.metrics.set_aside.value() == 1 {
            tracing::info!(source = %source.config.name, "source delivers again");
        }
        source.metrics.set_aside.set(0);
    }

    /// Whether somebody outside of the site has said that it wants to be left alone for a while.
    pub(super) fn is_asked_to_wait(&self) -> bool {
        matches!(self.last_fault, Some(SourceFault::Resting | SourceFault::Later(..)))
    }

    /// What to say when nothing came of it.
    pub(super) fn refusal(&self) -> Refusal {
        let fault = self.last_fault.as_ref().or(self.peer_fault.as_ref().filter(|_| self.answers.is_empty()));
        match (fault, self.answers.as_slice()) {
            (Some(SourceFault::Resting | SourceFault::Later(..)), _) => Refusal::Busy,
            (Some(fault), _) if fault.is_timeout() => Refusal::SourceTimedOut,
            (Some(_), _) => Refusal::SourceFailed,
            // Somebody who forbids has it.
            (None, answers) if answers.contains(&Refusal::Forbidden) => Refusal::Forbidden,
            (None, [first, ..]) => *first,
            (None, []) => Refusal::SourceFailed,
        }
    }
}
