//! Leaves a failing source alone for a while (a circuit breaker), and lets one request find out whether it has recovered.
//!
//! closed -- failures in a row, or its own word (Retry-After) --> set aside -- rest over --> one probe -- an answer --> closed
//!                                                                   ^                        `-- a failure --.
//!                                                                   `-----------------------------------------'

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How a source has been doing.
#[derive(Debug)]
pub(super) struct SetAside {
    failures_max: u32,
    rest: Duration,
    rest_max: Duration,
    state: Mutex<State>,
    /// One at a time finds out whether it has recovered.
    probe: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
    /// It has asked for the rest itself.
    by_its_word: bool,
    /// It gave something else than it should have.
    distrusted: bool,
    /// How often it was set aside.
    times: u64,
}

/// Leave to ask a source. Kept until there is an answer or none.
#[derive(Debug)]
pub(super) struct Pass {
    _probe: Option<OwnedSemaphorePermit>,
}

/// How it stands with a source that is the last to ask.
#[derive(Debug)]
pub(super) enum LastResort {
    Ask(Pass),
    /// Somebody else has just found it failing.
    Failing,
    /// It has asked to be left alone.
    Resting,
}

impl SetAside {
    /// Set aside after `failures_max` failures in a row for `rest`, or for as long as the source says and `rest_max` allows.
    pub(super) fn new(failures_max: u32, rest: Duration, rest_max: Duration) -> Self {
        let probe = Arc::new(Semaphore::new(1));
        Self { failures_max, rest, rest_max, state: Mutex::default(), probe }
    }

    /// Leave to ask it, unless it is left alone. When its rest is over, one at a time gets leave until it has answered.
    pub(super) fn admit(&self, now: Instant) -> Option<Pass> {
        match self.state.lock().until {
            None => Some(Pass { _probe: None }),
            Some(until) if now < until => None,
            Some(_) => Arc::clone(&self.probe).try_acquire_owned().ok().map(|permit| Pass { _probe: Some(permit) }),
        }
    }

    /// Whether it is left alone for a while because it cannot answer, or does not want to.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        let state = self.state.lock();
        !state.distrusted && state.until.is_some_and(|until| now < until)
    }

    /// For want of a better one, a source that is set aside may be asked all the same, by one at a time: the others wait for what
    /// comes of it.
    pub(super) async fn last_resort(&self) -> LastResort {
        let before = {
            let state = self.state.lock();
            if state.by_its_word && state.until.is_some_and(|until| Instant::now() < until) {
                return LastResort::Resting;
            }
            state.times
        };
        let Ok(permit) = Arc::clone(&self.probe).acquire_owned().await else { return LastResort::Failing };
        let state = self.state.lock();
        match state.until {
            None => LastResort::Ask(Pass { _probe: None }),
            Some(_) if state.times == before => LastResort::Ask(Pass { _probe: Some(permit) }),
            Some(_) => LastResort::Failing,
        }
    }

    /// It answers again: others may ask it too. One failure more sets it aside again.
    pub(super) fn answered(&self) {
        let mut state = self.state.lock();
        if state.until.take().is_some() {
            (state.failures, state.by_its_word) = (self.failures_max.saturating_sub(1), false);
        }
    }

    /// It gave something else than it should have: it is left alone at once, however well it answers.
    pub(super) fn distrust(&self, now: Instant) {
        let mut state = self.state.lock();
        self.rest(&mut state, now, self.rest);
        state.distrusted = true;
    }

    /// It gave what was wanted.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        *state = State { times: state.times, ..State::default() };
    }

    /// It failed; tells whether it is set aside by this.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < self.failures_max {
            return false;
        }
        self.rest(&mut state, now, self.rest);
        true
    }

    /// It has said for how long it wants to be left alone.
    pub(super) fn asked_for_rest(&self, now: Instant, rest: Duration) {
        let mut state = self.state.lock();
        self.rest(&mut state, now, rest.min(self.rest_max));
        state.by_its_word = true;
    }

    fn rest(&self, state: &mut State, now: Instant, rest: Duration) {
        // Up to a quarter more, so that a fleet does not come back all at once.
        let jitter = rest.mul_f64(f64::from(now.elapsed().subsec_nanos() % 251) / 1000.0);
        state.until = Some(now + rest + jitter);
        state.failures = state.failures.max(self.failures_max);
        (state.by_its_word, state.distrusted) = (false, false);
        state.times += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(10);

    fn fail(source: &SetAside, now: Instant) {
        assert_eq!([0; 3].map(|_| source.failed(now)), [false, false, true]);
    }

    fn source() -> SetAside {
        SetAside::new(3, REST, 6 * REST)
    }

    #[test]
    fn after_enough_failures_in_a_row_it_rests_and_then_gets_one_chance() {
        let (source, now) = (source(), Instant::now());
        assert!(!source.failed(now) && !source.failed(now));
        source.succeeded();
        assert!(!source.failed(now) && !source.failed(now) && source.failed(now));
        assert!(source.admit(now + Duration::from_secs(9)).is_none());
        let rested = now + Duration::from_secs(13);
        let probe = source.admit(rested).expect("one may ask");
        assert!(source.admit(rested).is_none(), "and no more than one");
        assert!(source.failed(rested), "one failure is enough now");
        drop(probe);
        assert!(source.admit(rested).is_none());
    }

    #[test]
    fn a_probe_that_is_answered_opens_it_for_all() {
        let (source, now) = (source(), Instant::now());
        fail(&source, now);
        let rested = now + Duration::from_secs(13);
        let _probe = source.admit(rested).expect("one may ask");
        source.answered();
        assert!(source.admit(rested).is_some() && source.admit(rested).is_some());
        assert!(source.failed(rested), "what it answers has yet to come whole");
    }

    #[test]
    fn its_own_word_is_kept_within_bounds() {
        let (source, now) = (source(), Instant::now());
        source.asked_for_rest(now, 2 * REST);
        assert!(source.admit(now + 2 * REST - Duration::from_millis(1)).is_none() && source.is_resting(now));
        assert!(source.admit(now + 3 * REST).is_some());
        source.asked_for_rest(now, 1000 * REST);
        assert!(source.admit(now + 9 * REST).is_some(), "nobody goes away for a day by saying so");
    }

    #[test]
    fn one_that_is_distrusted_could_answer() {
        let (source, now) = (source(), Instant::now());
        source.distrust(now);
        assert!(source.admit(now).is_none() && !source.is_resting(now), "for want of a better one it is asked");
        assert!(source.failed(now) && source.is_resting(now));
    }

    #[tokio::test]
    async fn the_last_one_to_ask_is_asked_by_one_and_the_others_hear_of_it() {
        let source = source();
        fail(&source, Instant::now());
        let LastResort::Ask(pass) = source.last_resort().await else { panic!("there is no other") };
        let others = futures_util::future::join_all((0..10).map(|_| source.last_resort()));
        let verdict = async {
            tokio::task::yield_now().await;
            source.failed(Instant::now());
            drop(pass);
        };
        let (others, ()) = tokio::join!(others, verdict);
        assert!(others.iter().all(|other| matches!(other, LastResort::Failing)), "{others:?}");
        source.asked_for_rest(Instant::now(), REST);
        assert!(matches!(source.last_resort().await, LastResort::Resting));
    }
}
