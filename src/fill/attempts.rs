//! Which source is asked next, how often, and after what rest.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::{
    Config,
    check::{Reply, check},
    source::{Answer, Ask, Source, SourceFault},
};
use crate::{asset::AssetKey, catalog::Refusal};

/// The tries of one fetch: nearest source first, the next one after a failure, with a rest whenever all have been asked.
#[derive(Debug)]
pub(super) struct Attempts {
    candidates: Vec<Arc<Source>>,
    next: usize,
    left: u32,
    rests: ExponentialBackoff,
    answers: Vec<Refusal>,
    last_fault: Option<SourceFault>,
}

impl Attempts {
    pub(super) fn new(sources: &[Arc<Source>], config: &Config) -> Self {
        let now = Instant::now();
        let mut candidates: Vec<_> =
            sources.iter().filter(|source| !source.set_aside.is_set_aside(now)).map(Arc::clone).collect();
        let mut left = config.attempts_max.max(1);
        if candidates.is_empty() {
            // Nothing better to do than to ask one that was failing; once.
            candidates.extend(sources.first().map(Arc::clone));
            left = 1;
        }
        let rests = ExponentialBuilder::default()
            .with_min_delay(config.retry_delay)
            .with_max_delay(config.retry_delay_max)
            .with_max_times(usize::try_from(config.attempts_max).unwrap_or(usize::MAX))
            .with_jitter()
            .build();
        Self { candidates, next: 0, left, rests, answers: Vec::new(), last_fault: None }
    }

    /// The next source to ask, after a rest where that is due; `None` when there is no point any more.
    pub(super) async fn next(&mut self) -> Option<Arc<Source>> {
        if self.left == 0 || self.candidates.is_empty() {
            return None;
        }
        if self.next >= self.candidates.len() {
            self.next = 0;
            tokio::time::sleep(self.rests.next().unwrap_or(Duration::ZERO)).await;
        }
        self.left -= 1;
        let source = Arc::clone(self.candidates.get(self.next)?);
        self.next += 1;
        Some(source)
    }

    /// Asks `source` and judges the head.
    pub(super) async fn ask(&mut self, source: &Arc<Source>, key: &AssetKey, ask: &Ask<'_>) -> Option<(Answer, Reply)> {
        let opened = source.open(key, ask).await;
        match opened.and_then(|answer| check(&answer.head, ask).map(|reply| (answer, reply))) {
            Ok((_, Reply::Absent(refusal))) => {
                source.set_aside.succeeded();
                source.metrics.set_aside.set(0);
                self.answers.push(refusal);
                // What a source does not have it will not have at the next try.
                self.candidates.retain(|other| !Arc::ptr_eq(other, source));
                self.next = self.next.saturating_sub(1);
                None
            }
            Ok(answered) => Some(answered),
            Err(fault) => {
                self.failed(source, key, fault);
                None
            }
        }
    }

    /// The source failed: counted, and perhaps set aside.
    pub(super) fn failed(&mut self, source: &Source, key: &AssetKey, fault: SourceFault) {
        tracing::debug!(source = %source.config.name, asset = %key, %fault, "fetch failed");
        source.metrics.error(fault.label());
        if fault.is_ill() && source.set_aside.failed(Instant::now()) {
            source.metrics.set_aside.set(1);
            tracing::warn!(source = %source.config.name, %fault, "source is set aside for a while");
        }
        self.last_fault = Some(fault);
    }

    /// The source delivered.
    pub(super) fn succeeded(source: &Source) {
        source.set_aside.succeeded();
        source.metrics.set_aside.set(0);
    }

    /// What to say when nothing came of it.
    pub(super) fn refusal(&self) -> Refusal {
        match (&self.last_fault, self.answers.as_slice()) {
            (Some(fault), _) if fault.is_timeout() => Refusal::SourceTimedOut,
            (Some(_), _) => Refusal::SourceFailed,
            // Somebody who forbids has it.
            (None, answers) if answers.contains(&Refusal::Forbidden) => Refusal::Forbidden,
            (None, [first, ..]) => *first,
            (None, []) => Refusal::SourceFailed,
        }
    }
}
