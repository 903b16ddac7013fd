//! Time, so that tests can hold it still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::asset::UnixTime;

/// Wall-clock and monotonic time; the machine's, or one that a test moves by hand.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System { start: Instant },
    Manual { millis: Arc<AtomicU64>, moved: Arc<Notify> },
}

/// Milliseconds since 1970 by the machine's clock, as exact as the kernel's tick: for what is read once for every response.
pub fn coarse_unix_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    u64::try_from(now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000).unwrap_or(0)
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Kind::System { start: Instant::now() })
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it.
    pub fn manual(start: UnixTime) -> Self {
        Self(Kind::Manual { millis: Arc::new(AtomicU64::new(start.0 * 1000)), moved: Arc::default() })
    }

    /// Wall-clock time in whole seconds.
    pub fn unix(&self) -> UnixTime {
        match &self.0 {
            // As exact as the kernel's tick, which whole seconds do not show, and a third of the cost: it is read for each request.
            Kind::System { .. } => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
                UnixTime(u64::try_from(now.tv_sec).unwrap_or(0))
            }
            Kind::Manual { millis, .. } => UnixTime(millis.load(Ordering::Relaxed) / 1000),
        }
    }

    /// Monotonic time since an arbitrary start.
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Kind::System { start } => start.elapsed(),
            Kind::Manual { millis, .. } => Duration::from_millis(millis.load(Ordering::Relaxed)),
        }
    }

    /// Moves a manual clock forward. The machine's clock does not listen.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual { millis, moved } = &self.0 {
            let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            millis.fetch_add(by, Ordering::Release);
            moved.notify_waiters();
        }
    }

    /// Waits until [`Clock::monotonic`] is at least `at`.
    pub async fn sleep_until(&self, at: Duration) {
        match &self.0 {
            Kind::System { .. } => tokio::time::sleep(at.saturating_sub(self.monotonic())).await,
            Kind::Manual { millis, moved } => loop {
                // Asked for before the look, so that no move in between is missed.
                let moved = moved.notified();
                if Duration::from_millis(millis.load(Ordering::Acquire)) >= at {
                    return;
                }
                moved.await;
            },
        }
    }
}
