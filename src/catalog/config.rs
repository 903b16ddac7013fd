//! What the operator decides about what is kept.

use std::time::Duration;

/// What is admitted, kept and evicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Percent of a volume's capacity at which eviction begins.
    pub watermark_high_percent: u8,
    /// Percent of a volume's capacity at which eviction ends.
    pub watermark_low_percent: u8,
    /// Which missing assets are taken in.
    pub admission: Admission,
    /// Most assets held, over all volumes; about 512 bytes of memory each.
    pub assets_max: usize,
    /// Touches that may wait for the recency list; further ones are dropped, since a lost touch only makes LRU less exact.
    pub touch_queue_max: usize,
    /// Demands that may wait for fill; further misses are refused with 503.
    pub demand_queue_max: usize,
    /// Assets whose absence or failure is remembered.
    pub negative_max: usize,
    /// How long a source's 404 or 410 is remembered.
    pub negative_ttl: Duration,
    /// How long a failing source's answer (5xx, timeout) is remembered.
    pub failure_ttl: Duration,
}

/// Which missing assets are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Every asset that may be stored.
    Always,
    /// An asset asked for a second time; the first request passes through.
    SecondRequest,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            watermark_high_percent: 95,
            watermark_low_percent: 90,
            admission: Admission::Always,
            assets_max: 4_000_000,
            touch_queue_max: 65_536,
            demand_queue_max: 16_384,
            negative_max: 65_536,
            negative_ttl: Duration::from_secs(10),
            failure_ttl: Duration::from_secs(1),
        }
    }
}
