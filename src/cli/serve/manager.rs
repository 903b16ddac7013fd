//! What the service manager is told (`sd_notify(3)`), and the watchdog that it keeps on us.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Fed in each part of the time that the service manager waits: one that comes late does not end the process.
const PARTS: u32 = 4;

/// It serves.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// It reads its files anew; [`ready`] ends that.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]),
        Err(err) => tracing::debug!(error = %err, "the service manager was not told of a reload"),
    }
}

/// It stops, having said so to others first where there is time.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        tracing::debug!(error = %err, "the service manager was not told");
    }
}

/// Feeds the service manager's watchdog as long as every pulse moves.
pub(super) struct Watchdog {
    pulses: Vec<Arc<AtomicU64>>,
    last: Vec<u64>,
    looks: Option<Interval>,
}

impl Watchdog {
    pub(super) fn new(pulses: Vec<Arc<AtomicU64>>) -> Self {
        Self::every(sd_notify::watchdog_enabled(), pulses)
    }

    fn every(patience: Option<Duration>, pulses: Vec<Arc<AtomicU64>>) -> Self {
        let looks = patience.filter(|patience| !patience.is_zero()).map(|patience| {
            let mut looks = interval(patience / PARTS);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            looks
        });
        let last = vec![u64::MAX; pulses.len()];
        Self { pulses, last, looks }
    }

    /// Looks, and feeds, for ever; never where no watchdog is kept.
    pub(super) async fn keep(&mut self) {
        loop {
            match &mut self.looks {
                Some(looks) => looks.tick().await,
                None => std::future::pending().await,
            };
            if self.all_turn() {
                tell(&[NotifyState::Watchdog]);
            } else {
                tracing::error!("a worker or the runtime stands still; the watchdog is not fed");
            }
        }
    }

    /// Feeds for ever, whatever moves: what is stopping stands still one by one, and has a deadline of its own.
    pub(super) async fn keep_quiet(&mut self) {
        loop {
            match &mut self.looks {
                Some(looks) => looks.tick().await,
                None => std::future::pending().await,
            };
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// Whether every pulse has moved since the last look.
    fn all_turn(&mut self) -> bool {
        let now: Vec<u64> = self.pulses.iter().map(|pulse| pulse.load(Ordering::Relaxed)).collect();
        let turn = now.iter().zip(&self.last).all(|(now, last)| now != last);
        self.last = now;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_stands_still_is_enough_to_starve_the_watchdog() {
        let pulses: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
        let mut watchdog = Watchdog::every(None, pulses.clone());
        assert!(watchdog.all_turn(), "the first look has nothing to compare with");
        assert!(!watchdog.all_turn());
        for stuck in 0..3 {
            pulses.iter().for_each(|pulse| {
                pulse.fetch_add(1, Ordering::Relaxed);
            });
            assert!(watchdog.all_turn());
            let others = pulses.iter().enumerate().filter(|(number, _)| *number != stuck);
            others.for_each(|(_, pulse)| {
                pulse.fetch_add(1, Ordering::Relaxed);
            });
            assert!(!watchdog.all_turn(), "{stuck} stands still");
        }
    }
}
