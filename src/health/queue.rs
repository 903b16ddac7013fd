//! How long what is ready waits for its turn on a worker.

use std::time::Duration;

/// Time over which waits are averaged: a burst is none, a queue that stands is.
const AVERAGED: Duration = Duration::from_millis(250);
/// Wait from which on it is worth to look closely.
const FELT: Duration = Duration::from_millis(3);

/// The average wait of late, by a probe that waits like everything else.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueDelay(Duration);

impl QueueDelay {
    /// The probe waited `late`; the last was `elapsed` before.
    pub fn add(&mut self, late: Duration, elapsed: Duration) {
        let weight = 1.0 - (-elapsed.as_secs_f64() / AVERAGED.as_secs_f64()).exp();
        self.0 = self.0.mul_f64(1.0 - weight) + late.mul_f64(weight);
    }

    /// The average.
    pub fn average(self) -> Duration {
        self.0
    }

    /// Whether it is worth to look closely.
    pub fn is_felt(self) -> bool {
        self.0 > FELT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_burst_is_no_queue() {
        let mut delay = QueueDelay::default();
        delay.add(MS(100), MS(100));
        assert!(delay.average() < MS(40) && delay.is_felt(), "{delay:?}");
        for _ in 0..100 {
            delay.add(MS(0), MS(10));
        }
        assert!(delay.average() < MS(1) && !delay.is_felt(), "{delay:?}");
    }

    #[test]
    fn what_stands_is_seen_in_half_a_second() {
        let mut delay = QueueDelay::default();
        for _ in 0..10 {
            delay.add(MS(50), MS(50));
        }
        assert!(delay.average() > MS(40) && delay.average() <= MS(50), "{delay:?}");
    }
}
