//! Keeps what comes in below a rate that changes while it does, and the rate below what viewers leave over.

use std::time::Duration;

use parking_lot::Mutex;

use crate::{asset::BitRate, sys::Clock};

/// A rate that all planned fetches share.
#[derive(Debug)]
pub(super) struct Pace {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: BitRate,
    /// Bytes that may come before anybody waits; negative: owed.
    credit: f64,
    at: Duration,
}

/// What may come at once, in seconds' worth of the rate.
const BURST_SECONDS: f64 = 0.1;
/// Longest wait between two looks: the rate may change, and a clock may be moved by hand.
const LOOK: Duration = Duration::from_millis(20);

impl Pace {
    /// Nothing comes before a rate is set.
    pub(super) fn new(clock: Clock) -> Self {
        let at = clock.monotonic();
        Self { clock, state: Mutex::new(State { rate: BitRate(0), credit: 0.0, at }) }
    }

    /// Changes the rate, for those who wait too. Zero: nothing comes.
    pub(super) fn set(&self, rate: BitRate) {
        let mut state = self.state.lock();
        state.accrue(self.clock.monotonic());
        state.rate = rate;
    }

    /// The rate now.
    pub(super) fn rate(&self) -> BitRate {
        self.state.lock().rate
    }

    /// `bytes` have come: waits until the next may.
    pub(super) async fn took(&self, bytes: u64) {
        self.state.lock().credit -= bytes as f64;
        while let Some(wait) = self.owed() {
            tokio::time::sleep(wait.min(LOOK)).await;
        }
    }

    fn owed(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        state.accrue(self.clock.monotonic());
        if state.credit >= 0.0 {
            return None;
        }
        let rate = state.rate.bytes_per_second() as f64;
        Some(if rate == 0.0 { LOOK } else { Duration::from_secs_f64((-state.credit / rate).clamp(0.001, 1.0)) })
    }
}

impl State {
    fn accrue(&mut self, now: Duration) {
        let rate = self.rate.bytes_per_second() as f64;
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.credit = (self.credit + passed * rate).min(rate * BURST_SECONDS);
    }
}

/// What viewers have taken so far, as counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes sent to them.
    pub sent_bytes: u64,
    /// Times that one waited for cold bytes.
    pub cold_waits: u64,
    /// How long they waited, in microseconds.
    pub cold_wait_micros: u64,
    /// The box has more to do than it can: nothing is filled.
    pub overloaded: bool,
}

/// Finds the rate that leaves viewers what they need. Pure.
#[derive(Debug)]
pub(super) struct Yielding {
    link: BitRate,
    cold_wait_max: Duration,
    before: Option<(Duration, Load)>,
    /// Share of the allowed rate: halved as long as viewers wait for the disk, won back step by step.
    share: f64,
}

/// Below this share nothing is fetched at all.
const SHARE_MIN: f64 = 1.0 / 64.0;
/// What is won back each second without a complaint.
const SHARE_STEP: f64 = 1.0 / 16.0;

impl Yielding {
    pub(super) fn new(link: BitRate, cold_wait_max: Duration) -> Self {
        Self { link, cold_wait_max, before: None, share: 1.0 }
    }

    /// Goes by another link and another patience with the disk.
    pub(super) fn go_by(&mut self, link: BitRate, cold_wait_max: Duration) {
        (self.link, self.cold_wait_max) = (link, cold_wait_max);
    }

    /// The rate from `now` on, of the `allowed` one. Called about once a second.
    pub(super) fn next(&mut self, now: Duration, load: Load, allowed: BitRate) -> BitRate {
        let Some((then, before)) = self.before.replace((now, load)) else { return allowed };
        let seconds = now.saturating_sub(then).as_secs_f64();
        if load.overloaded {
            self.share = SHARE_MIN;
            return BitRate(0);
        }
        if seconds <= 0.0 {
            return scaled(allowed, self.share);
        }
        let waits = load.cold_waits.saturating_sub(before.cold_waits);
        let micros = load.cold_wait_micros.saturating_sub(before.cold_wait_micros);
        let average = Duration::from_micros(micros.checked_div(waits).unwrap_or(0));
        self.share = if average > self.cold_wait_max {
            (self.share / 2.0).max(SHARE_MIN / 2.0)
        } else {
            (self.share.max(SHARE_MIN) + SHARE_STEP * seconds.min(1.0)).min(1.0)
        };
        let rate = if self.share < SHARE_MIN { BitRate(0) } else { scaled(allowed, self.share) };
        if self.link.0 == 0 {
            return rate;
        }
        let sent = load.sent_bytes.saturating_sub(before.sent_bytes) as f64 * 8.0 / seconds;
        scaled(self.link, 1.0 - (sent / self.link.0 as f64).min(1.0)).min(rate)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a rate, never negative")]
fn scaled(rate: BitRate, share: f64) -> BitRate {
    BitRate((rate.0 as f64 * share) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asset::UnixTime;

    const SECOND: Duration = Duration::from_secs(1);
    const GBIT: BitRate = BitRate(1_000_000_000);

    #[tokio::test]
    async fn what_comes_keeps_to_the_rate_of_the_clock_and_to_a_new_one_at_once() {
        let clock = Clock::manual(UnixTime(1_000_000));
        let pace = std::sync::Arc::new(Pace::new(clock.clone()));
        let took = |bytes| {
            let pace = std::sync::Arc::clone(&pace);
            tokio::spawn(async move { pace.took(bytes).await })
        };
        pace.set(BitRate(8_000_000));
        let second = took(1_000_000);
        tokio::time::sleep(LOOK * 3).await;
        assert!(!second.is_finished(), "a second's worth, and no time has passed");
        clock.advance(Duration::from_millis(999));
        tokio::time::sleep(LOOK * 3).await;
        assert!(!second.is_finished());
        clock.advance(Duration::from_millis(2));
        second.await.expect("its time is over");
        pace.set(BitRate(8));
        let ages = took(1_000_000_000);
        tokio::time::sleep(LOOK * 2).await;
        assert!(!ages.is_finished());
        pace.set(BitRate(8_000_000_000_000));
        clock.advance(SECOND);
        ages.await.expect("by the new rate");
    }

    #[test]
    fn what_viewers_take_of_the_link_is_theirs() {
        let mut yielding = Yielding::new(BitRate(10 * GBIT.0), SECOND);
        let sent = |bytes| Load { sent_bytes: bytes, ..Load::default() };
        assert_eq!(yielding.next(SECOND, sent(0), GBIT), GBIT);
        assert_eq!(yielding.next(SECOND * 2, sent(125_000_000), GBIT), GBIT, "9 Gb/s are left");
        let left = yielding.next(SECOND * 3, sent(125_000_000 + 1_187_500_000), GBIT).0;
        assert!((499_000_000..501_000_000).contains(&left), "half of a gigabit is left: {left}");
        assert_eq!(yielding.next(SECOND * 4, sent(125_000_000 + 1_187_500_000 + 2_000_000_000), GBIT), BitRate(0));
    }

    #[test]
    fn when_viewers_wait_for_the_disk_it_slows_down_to_nothing_and_comes_back_step_by_step() {
        let mut yielding = Yielding::new(BitRate(0), Duration::from_millis(50));
        let mut load = Load::default();
        let mut rates = Vec::new();
        for second in 1..=10_u32 {
            (load.cold_waits, load.cold_wait_micros) = (load.cold_waits + 10, load.cold_wait_micros + 800_000);
            rates.push(yielding.next(SECOND * second, load, GBIT).0);
        }
        assert_eq!(rates[..4], [GBIT.0, GBIT.0 / 2, GBIT.0 / 4, GBIT.0 / 8]);
        assert_eq!(rates[9], 0);
        let back: Vec<_> = (11..40_u32).map(|second| yielding.next(SECOND * second, load, GBIT).0).collect();
        assert!(back.is_sorted() && back[0] > 0 && back[0] < GBIT.0 / 8 && back.last() == Some(&GBIT.0), "{back:?}");
    }

    #[test]
    fn an_overloaded_box_fills_nothing() {
        let mut yielding = Yielding::new(BitRate(0), SECOND);
        assert_eq!(yielding.next(SECOND, Load::default(), GBIT), GBIT);
        assert_eq!(yielding.next(SECOND * 2, Load { overloaded: true, ..Load::default() }, GBIT), BitRate(0));
        assert!(yielding.next(SECOND * 3, Load::default(), GBIT).0 < GBIT.0 / 8);
    }
}
