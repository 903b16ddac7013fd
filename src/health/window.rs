//! What was counted of late.

use std::{collections::VecDeque, time::Duration};

use crate::telemetry::Totals;

/// What has been counted up to some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) totals: Totals,
    pub(super) cold_waits: u64,
    pub(super) cold_wait_micros: u64,
    pub(super) fetches: u64,
    pub(super) failures: u64,
}

impl Counts {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            totals: self.totals.since(&earlier.totals),
            cold_waits: self.cold_waits.saturating_sub(earlier.cold_waits),
            cold_wait_micros: self.cold_wait_micros.saturating_sub(earlier.cold_wait_micros),
            fetches: self.fetches.saturating_sub(earlier.fetches),
            failures: self.failures.saturating_sub(earlier.failures),
        }
    }
}

/// Looks that are kept at most, the last one apart: closer ones are not needed to know what was counted of late.
const LOOKS_MAX: u32 = 60;

/// The looks of late, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Window {
    kept: VecDeque<(Duration, Counts)>,
    before_last: Option<Counts>,
    last: Option<Counts>,
}

impl Window {
    /// Adds what has been counted up to `now`; looks that are older than `length` are forgotten.
    pub(super) fn add(&mut self, now: Duration, counts: Counts, length: Duration) {
        (self.before_last, self.last) = (self.last, Some(counts));
        let apart = length / LOOKS_MAX;
        if self.kept.back().is_none_or(|(when, _)| now.saturating_sub(*when) >= apart) {
            self.kept.push_back((now, counts));
        }
        while self.kept.front().is_some_and(|(when, _)| now.saturating_sub(*when) > length) {
            self.kept.pop_front();
        }
    }

    /// What was counted between the oldest look of late and the last.
    pub(super) fn of_late(&self) -> Counts {
        match (self.kept.front(), self.last) {
            (Some((_, oldest)), Some(last)) => last.since(oldest),
            _ => Counts::default(),
        }
    }

    /// What was counted between the last two looks.
    pub(super) fn last_step(&self) -> Option<Counts> {
        Some(self.last?.since(&self.before_last?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(window: &mut Window, seconds: u64, fetches: u64) {
        window.add(Duration::from_secs(seconds), Counts { fetches, ..Counts::default() }, Duration::from_secs(30));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = Window::default();
        add(&mut window, 0, 100);
        assert_eq!(window.of_late().fetches, 0, "what was counted before the first look is not of late");
        for second in 1..=100 {
            add(&mut window, second, 100 + second);
        }
        assert_eq!(window.of_late().fetches, 30);
        assert_eq!(window.last_step().map(|counts| counts.fetches), Some(1));
        add(&mut window, 1000, 900);
        assert_eq!(window.of_late().fetches, 0, "after a long sleep there is nothing of late");
    }

    #[test]
    fn however_often_is_looked_memory_is_flat() {
        let mut window = Window::default();
        for at in 0..100_000_u64 {
            window.add(Duration::from_millis(10 * at), Counts::default(), Duration::from_secs(30));
        }
        assert!(window.kept.len() <= 62, "{}", window.kept.len());
    }
}
