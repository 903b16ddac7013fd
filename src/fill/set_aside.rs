//! Leaves a failing source alone for a while (a circuit breaker).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How a source has been doing.
#[derive(Debug)]
pub(super) struct SetAside {
    failures_max: u32,
    rest: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
}

impl SetAside {
    pub(super) fn new(failures_max: u32, rest: Duration) -> Self {
        Self { failures_max, rest, state: Mutex::default() }
    }

    /// Whether it is being left alone. When its rest is over, one failure more sets it aside again.
    pub(super) fn is_set_aside(&self, now: Instant) -> bool {
        self.state.lock().until.is_some_and(|until| now < until)
    }

    /// It gave a usable answer.
    pub(super) fn succeeded(&self) {
        *self.state.lock() = State::default();
    }

    /// It failed; tells whether it is set aside by this.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < self.failures_max {
            return false;
        }
        // Up to a quarter more, so that a fleet does not come back all at once.
        let jitter = self.rest.mul_f64(f64::from(now.elapsed().subsec_nanos() % 251) / 1000.0);
        state.until = Some(now + self.rest + jitter);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_enough_failures_in_a_row_it_rests_and_then_gets_one_chance() {
        let source = SetAside::new(3, Duration::from_secs(10));
        let now = Instant::now();
        assert!(!source.failed(now) && !source.failed(now));
        source.succeeded();
        assert!(!source.failed(now) && !source.failed(now) && source.failed(now));
        assert!(source.is_set_aside(now + Duration::from_secs(9)));
        let rested = now + Duration::from_secs(13);
        assert!(!source.is_set_aside(rested));
        assert!(source.failed(rested), "one failure is enough now");
        assert!(source.is_set_aside(rested));
    }
}
