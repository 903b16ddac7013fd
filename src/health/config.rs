//! What the operator decides about health and overload.

use std::time::Duration;

use crate::asset::BitRate;

/// When all is well, and when not.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How often everything is measured and judged.
    pub interval: Duration,
    /// How far back "of late" goes.
    pub window: Duration,
    /// Percent of its limit to which a measure has to come back before its reason goes.
    pub calm_percent: u8,
    /// What can leave for viewers; zero: what the interfaces that are up can, added up.
    pub egress_capacity: BitRate,
    /// Percent of a resource (links, the busiest worker's core, the busiest disk, connections) up to which viewers do not suffer.
    pub comfort_percent: u8,
    /// Percent of responses that are errors.
    pub errors_percent: u8,
    /// The 95th percentile of the time to the first byte of what is held.
    pub first_byte_max: Duration,
    /// Average time for a window that is not in memory.
    pub cold_wait_max: Duration,
    /// Time for a probe of a volume.
    pub probe_max: Duration,
    /// Percent of a volume's file system that stays free.
    pub disk_free_percent: u8,
    /// Percent of fetches that fail.
    pub fill_failures_percent: u8,
    /// Percent of `catalog.demand_queue_max` that waits.
    pub fill_queue_percent: u8,
    /// Age of the last word on the manifest.
    pub manifest_age_max: Duration,
    /// Percent of memory that can be had.
    pub memory_free_percent: u8,
    /// Percent of the file descriptors allowed that are open.
    pub descriptors_percent: u8,
    /// Move of the wall clock that is told of.
    pub clock_jump_max: Duration,
    /// How long it is.
    pub clock_jump_memory: Duration,
    /// Time before the end of a certificate from which on it is told of.
    pub certificate_notice: Duration,
    /// Percent of the capacity to the outside.
    pub egress_percent: u8,
    /// Percent of `serve.connections_max`.
    pub connections_percent: u8,
    /// Time that what is ready waits for its turn on a worker.
    pub queue_delay_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            interval: Duration::from_secs(1),
            window: Duration::from_secs(30),
            calm_percent: 80,
            egress_capacity: BitRate(0),
            comfort_percent: 90,
            errors_percent: 5,
            first_byte_max: Duration::from_secs(1),
            cold_wait_max: Duration::from_millis(250),
            probe_max: Duration::from_secs(2),
            disk_free_percent: 1,
            fill_failures_percent: 50,
            fill_queue_percent: 50,
            manifest_age_max: Duration::from_secs(DAY * 3 / 2),
            memory_free_percent: 3,
            descriptors_percent: 95,
            clock_jump_max: Duration::from_secs(2),
            clock_jump_memory: Duration::from_secs(300),
            certificate_notice: Duration::from_secs(7 * DAY),
            egress_percent: 95,
            connections_percent: 90,
            queue_delay_max: Duration::from_millis(10),
        }
    }
}
