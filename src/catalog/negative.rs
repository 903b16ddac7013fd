//! Remembers briefly what sources do not have, so that a storm of requests for nothing stays here; and, where admission asks
//! for a second request, which assets were asked for once.

use lru::LruCache;
use parking_lot::Mutex;
use std::{num::NonZeroUsize, time::Duration};

use super::{Config, Refusal};
use crate::{asset::AssetId, sys::Clock};

/// Answers that say "no", each for a while; the oldest go first.
#[derive(Debug)]
pub(super) struct Negative {
    answers: Mutex<LruCache<AssetId, (Refusal, Duration)>>,
    seen_once: Mutex<LruCache<AssetId, ()>>,
    /// For how long an answer, and a failure, is remembered.
    ttls: Mutex<(Duration, Duration)>,
    clock: Clock,
}

impl Negative {
    pub(super) fn new(config: &Config, clock: Clock) -> Self {
        let max = NonZeroUsize::new(config.negative_max).unwrap_or(NonZeroUsize::MIN);
        Self {
            answers: Mutex::new(LruCache::new(max)),
            seen_once: Mutex::new(LruCache::new(max)),
            ttls: Mutex::new((config.negative_ttl, config.failure_ttl)),
            clock,
        }
    }

    /// How long answers are remembered from now on.
    pub(super) fn set_ttls(&self, config: &Config) {
        *self.ttls.lock() = (config.negative_ttl, config.failure_ttl);
    }

    /// The answer that is remembered for this asset.
    pub(super) fn recall(&self, id: &AssetId) -> Option<Refusal> {
        let mut answers = self.answers.lock();
        let (refusal, until) = *answers.get(id)?;
        if self.clock.monotonic() < until {
            return Some(refusal);
        }
        answers.pop(id);
        None
    }

    /// Remembers an answer; refusals that say nothing of the asset are not kept.
    pub(super) fn remember(&self, id: AssetId, refusal: Refusal) {
        let (answer_ttl, failure_ttl) = *self.ttls.lock();
        let ttl = match refusal {
            _ if refusal.is_answer() => answer_ttl,
            _ if refusal.is_source_fault() => failure_ttl,
            _ => return,
        };
        self.answers.lock().put(id, (refusal, self.clock.monotonic() + ttl));
    }

    /// Forgets the answer for an asset that exists after all.
    pub(super) fn forget(&self, id: &AssetId) {
        self.answers.lock().pop(id);
    }

    /// Forgets every answer.
    pub(super) fn forget_all(&self) {
        self.answers.lock().clear();
    }

    /// Whether the asset was asked for before; it is from now on.
    pub(super) fn seen_before(&self, id: AssetId) -> bool {
        self.seen_once.lock().put(id, ()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use crate::asset::UnixTime;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_no_is_remembered_for_its_time_and_no_longer() {
        let clock = Clock::manual(UnixTime(1_000));
        let negative = Negative::new(&Config::default(), clock.clone());
        let id = AssetId::from_bytes([1; 32]);
        assert_eq!(negative.recall(&id), None);
        negative.remember(id, Refusal::NotFound);
        clock.advance(Duration::from_millis(9_999));
        assert_eq!(negative.recall(&id), Some(Refusal::NotFound));
        clock.advance(Duration::from_millis(1));
        assert_eq!(negative.recall(&id), None);
        negative.remember(id, Refusal::Busy);
        assert_eq!(negative.recall(&id), None, "being busy says nothing of the asset");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let config = Config { negative_max: 2, ..Config::default() };
        let negative = Negative::new(&config, Clock::manual(UnixTime(0)));
        let ids = [1, 2, 3].map(|n| AssetId::from_bytes([n; 32]));
        ids.iter().for_each(|id| negative.remember(*id, Refusal::NotFound));
        assert_eq!(ids.map(|id| negative.recall(&id).is_some()), [false, true, true]);
    }
}
