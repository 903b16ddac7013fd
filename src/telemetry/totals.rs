//! What all workers have counted, added up, for those who compare two looks.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    counters::{FIRST_BYTE_BOUNDS, STATUSES, Shed},
    metrics::{CacheOutcome, Metrics},
};

/// What has been counted up to some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Responses begun.
    pub responses: u64,
    /// Those of them with 500, 502, 503 or 504, and those cut; without what was refused by the rules of overload.
    pub errors: u64,
    /// Requests refused by the rules of overload.
    pub shed: u64,
    /// Responses from what is held.
    pub hits: u64,
    /// Bytes for viewers.
    pub sent_bytes: u64,
    /// Hits by their time to the first byte.
    hits_by_time: [u64; FIRST_BYTE_BOUNDS.len() + 1],
}

/// How a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Time computed so far.
    pub cpu_time: Duration,
    /// How long what is ready waits for its turn.
    pub queue_delay: Duration,
    /// What part of newcomers' requests is refused, of 1000.
    pub shed_permille: u64,
}

impl Metrics {
    /// What all workers have counted so far.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for worker in self.workers() {
            let statuses = worker.statuses.iter().map(super::counters::Cell::value);
            for (at, count) in statuses.enumerate() {
                totals.responses += count;
                let is_error = STATUSES.get(at).is_some_and(|status| matches!(status, 500 | 502 | 503 | 504));
                totals.errors += if is_error { count } else { 0 };
            }
            // Who is refused before a handshake gets no response.
            totals.shed +=
                [Shed::Newcomer, Shed::Viewer].map(|whose| worker.shed[whose as usize].value()).iter().sum::<u64>();
            totals.errors += worker.cuts.value();
            totals.hits += worker.outcomes[CacheOutcome::Hit as usize].value();
            totals.sent_bytes +=
                worker.sendfile_bytes.value() + worker.copied_bytes.value() + worker.encrypted_bytes.value();
            for (sum, cell) in totals.hits_by_time.iter_mut().zip(&worker.first_byte[1]) {
                *sum += cell.value();
            }
        }
        totals.errors = totals.errors.saturating_sub(totals.shed);
        totals
    }

    /// How each worker is.
    pub fn pressures(&self) -> Vec<Pressure> {
        let of = |worker: &super::metrics::WorkerMetrics| Pressure {
            cpu_time: Duration::from_micros(worker.cpu_micros.load(Ordering::Relaxed)),
            queue_delay: Duration::from_micros(worker.queue_delay_micros.load(Ordering::Relaxed)),
            shed_permille: worker.shed_permille.load(Ordering::Relaxed),
        };
        self.workers().iter().map(|worker| of(worker)).collect()
    }
}

impl Totals {
    /// What was counted between `earlier` and this look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut hits_by_time = self.hits_by_time;
        hits_by_time.iter_mut().zip(earlier.hits_by_time).for_each(|(now, then)| *now = now.saturating_sub(then));
        Self {
            responses: self.responses.saturating_sub(earlier.responses),
            errors: self.errors.saturating_sub(earlier.errors),
            shed: self.shed.saturating_sub(earlier.shed),
            hits: self.hits.saturating_sub(earlier.hits),
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            hits_by_time,
        }
    }

    /// The 95th percentile of the time to the first byte of hits, as the bound that it is not above; `None`: there were none.
    pub fn first_byte(&self) -> Option<Duration> {
        let all: u64 = self.hits_by_time.iter().sum();
        let mut left = all - all / 20;
        let at = self.hits_by_time.iter().position(|count| {
            left = left.saturating_sub(*count);
            all > 0 && left == 0
        })?;
        let beyond = FIRST_BYTE_BOUNDS[FIRST_BYTE_BOUNDS.len() - 1] * 2;
        Some(Duration::from_micros(FIRST_BYTE_BOUNDS.get(at).copied().unwrap_or(beyond)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_between_two_looks_is_told() {
        let metrics = Metrics::new(2);
        let record = |worker: usize, status, outcome, millis| {
            metrics.worker(worker).record_response(status, outcome, Duration::from_millis(millis));
        };
        record(0, 200, CacheOutcome::Miss, 20_000);
        let before = metrics.totals();
        for _ in 0..94 {
            record(0, 206, CacheOutcome::Hit, 1);
        }
        for _ in 0..6 {
            record(1, 206, CacheOutcome::Hit, 4000);
        }
        record(1, 502, CacheOutcome::Miss, 20_000);
        record(1, 503, CacheOutcome::None, 0);
        metrics.worker(1).shed(Shed::Newcomer);
        metrics.worker(1).shed(Shed::Handshake);
        metrics.worker(0).cut();
        let between = metrics.totals().since(&before);
        assert_eq!((between.responses, between.hits, between.shed), (102, 100, 1));
        assert_eq!(between.errors, 2, "the refusal by rule is none, the cut is one");
        assert_eq!(between.first_byte(), Some(Duration::from_secs(5)), "what had to be fetched does not count");
        assert_eq!(before.first_byte(), None);
    }
}
