//! Keeps what comes from one source below a rate.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::asset::BitRate;

/// How far ahead of the rate one may be: a piece of a body comes at once or not at all.
const AHEAD: Duration = Duration::from_millis(100);

/// A rate, shared by all who read from a source.
#[derive(Debug)]
pub(super) struct Pace {
    rate: BitRate,
    /// When what has come so far would have come at the rate.
    paid_until: Mutex<Instant>,
}

impl Pace {
    /// `BitRate(0)`: as fast as it comes.
    pub(super) fn new(rate: BitRate) -> Self {
        Self { rate, paid_until: Mutex::new(Instant::now()) }
    }

    /// Bytes have come: waits until the next may.
    pub(super) async fn took(&self, bytes: usize) {
        if self.rate.0 == 0 || bytes == 0 {
            return;
        }
        let time = Duration::from_secs_f64(bytes as f64 * 8.0 / self.rate.0 as f64);
        let until = {
            let (mut paid, now) = (self.paid_until.lock(), Instant::now());
            // What was not used is lost, but for a moment's worth.
            *paid = (*paid).max(now.checked_sub(AHEAD).unwrap_or(now)) + time;
            *paid
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_readers_together_keep_to_the_rate() {
        let pace = Pace::new(BitRate(8_000_000));
        let begun = Instant::now();
        let reader = || async {
            for _ in 0..4 {
                pace.took(50_000).await;
            }
        };
        tokio::join!(reader(), reader());
        assert!(begun.elapsed() >= Duration::from_millis(300), "400 kB at 1 MB/s: {:?}", begun.elapsed());
        let unbound = Pace::new(BitRate(0));
        tokio::time::timeout(Duration::from_secs(60), unbound.took(1 << 40)).await.expect("it is not held back");
    }
}
