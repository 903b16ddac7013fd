//! The last minutes, a sample a second, for the plots of the status page: bounded, so that the page shows the past at once.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// From one sample to the next.
pub const SAMPLED_EVERY: Duration = Duration::from_secs(1);

/// One second, as it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When it ended, in seconds since 1970.
    pub time_unix: u64,
    /// Bits per second for viewers.
    pub egress: f64,
    /// Requests answered per second.
    pub requests: f64,
    /// Percent of responses that came from what is held; `None`: there was none.
    pub hit_percent: Option<f64>,
    /// Milliseconds to the first byte of what is held, the 95th percentile; `None`: there was none.
    pub first_byte: Option<f64>,
    /// Bits per second from sources.
    pub fill: f64,
    /// Percent of the time in which the disk of each volume was busy, in the order of the volumes; `None`: not known.
    pub disks: Vec<Option<f64>>,
}

impl Sample {
    /// As the page takes it: numbers in the order of the fields, with no more places than a plot shows.
    pub(super) fn to_json(&self) -> Value {
        let short = |value: f64| (value * 100.0).round() / 100.0;
        json!([
            self.time_unix,
            self.egress.round(),
            short(self.requests),
            self.hit_percent.map(short),
            self.first_byte.map(short),
            self.fill.round(),
            self.disks.iter().map(|busy| busy.map(short)).collect::<Vec<_>>(),
        ])
    }
}

/// The samples of the last minutes.
#[derive(Debug)]
pub struct History {
    kept: Mutex<VecDeque<Arc<Sample>>>,
    kept_max: usize,
    last: watch::Sender<Arc<Sample>>,
}

impl History {
    /// Keeps samples for `length`: about 150 bytes each.
    pub fn new(length: Duration) -> Self {
        let kept_max = usize::try_from(length.as_secs() / SAMPLED_EVERY.as_secs()).unwrap_or(usize::MAX).max(2);
        Self { kept: Mutex::default(), kept_max, last: watch::Sender::new(Arc::default()) }
    }

    /// Adds one; the oldest goes where there is no room.
    pub fn add(&self, sample: Sample) {
        let sample = Arc::new(sample);
        let mut kept = self.kept.lock();
        if kept.len() >= self.kept_max {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&sample));
        drop(kept);
        self.last.send_replace(sample);
    }

    /// The last one; all zero before there is one.
    pub fn last(&self) -> Arc<Sample> {
        Arc::clone(&self.last.borrow())
    }

    /// How many are kept at most.
    pub(super) fn kept_max(&self) -> usize {
        self.kept_max
    }

    /// Those that are kept, the oldest first, and what comes next.
    pub(super) fn follow(&self) -> (Vec<Arc<Sample>>, watch::Receiver<Arc<Sample>>) {
        let kept = self.kept.lock();
        // Under the lock: none is told twice, none is left out.
        (kept.iter().cloned().collect(), self.last.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_samples_are_kept_and_no_more() {
        let history = History::new(Duration::from_secs(3));
        assert_eq!(*history.last(), Sample::default());
        for time_unix in 1..=10 {
            history.add(Sample { time_unix, ..Sample::default() });
        }
        let (kept, mut next) = history.follow();
        assert_eq!(kept.iter().map(|sample| sample.time_unix).collect::<Vec<_>>(), [8, 9, 10]);
        assert!(!next.has_changed().expect("it is there"), "10 is told already");
        history.add(Sample { time_unix: 11, ..Sample::default() });
        assert_eq!(next.borrow_and_update().time_unix, 11);
    }

    #[test]
    fn a_sample_is_short() {
        let sample = Sample {
            time_unix: 7,
            egress: 1234.567,
            requests: 0.126,
            hit_percent: Some(99.999),
            first_byte: None,
            fill: 0.0,
            disks: vec![Some(1.0 / 3.0), None],
        };
        assert_eq!(sample.to_json().to_string(), "[7,1235.0,0.13,100.0,null,0.0,[0.33,null]]");
    }
}
