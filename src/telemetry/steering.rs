//! What is counted of reports to one steering service.

use super::counters::Counter;

/// The counters of one steering service.
#[derive(Debug, Default)]
pub struct SteeringMetrics {
    /// See `oca_steering_report_bytes_total`.
    pub bytes: Counter,
    /// See `oca_steering_full_summaries_total`.
    pub full: Counter,
    /// See `oca_steering_delivered_seconds`.
    pub delivered_unix: Counter,
    outcomes: [Counter; OUTCOMES.len()],
}

/// What can become of a report.
const OUTCOMES: [&str; 4] = ["delivered", "refused", "failed", "garbage"];

impl SteeringMetrics {
    /// One report, by what became of it.
    pub fn report(&self, outcome: &str) {
        let at = OUTCOMES.iter().position(|known| *known == outcome);
        debug_assert!(at.is_some(), "{outcome} is no outcome");
        if let Some(at) = at {
            self.outcomes[at].inc();
        }
    }

    /// Reports by what became of them.
    pub fn reports(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(self.outcomes.iter().map(Counter::value))
    }
}
