//! Takes a sample of the appliance each second, for the plots of the status page.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    admin::{History, SAMPLED_EVERY, Sample},
    catalog::Catalog,
    health::Watch,
    sys::Clock,
    telemetry::{Totals, metrics::Metrics},
};

/// What is sampled.
pub(super) struct Sampled {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Watch>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) clock: Clock,
    pub(super) history: Arc<History>,
}

impl Sampled {
    /// For as long as the runtime lives.
    pub(super) async fn run(self) {
        let mut ticks = interval(SAMPLED_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks.tick().await;
        let (mut before, mut filled, mut at) = (self.metrics.totals(), self.filled(), Instant::now());
        loop {
            ticks.tick().await;
            let (now, filled_now, at_now) = (self.metrics.totals(), self.filled(), Instant::now());
            let seconds = at_now.duration_since(at).as_secs_f64().max(0.001);
            self.history.add(self.sample(&now.since(&before), filled_now.saturating_sub(filled), seconds));
            (before, filled, at) = (now, filled_now, at_now);
        }
    }

    /// Bytes that have come from sources.
    fn filled(&self) -> u64 {
        self.health.limits().sources.iter().map(|name| self.metrics.source(name).bytes.value()).sum()
    }

    fn sample(&self, counted: &Totals, filled: u64, seconds: f64) -> Sample {
        let load = &self.health.snapshot().load;
        let busy = |root: &str| {
            let disk = load.disks.iter().find(|disk| disk.volume == root)?;
            Some(disk.busy.short * 100.0)
        };
        let disks = self.catalog.volumes().map(|volume| busy(&volume.root().display().to_string()));
        let hits = counted.hits as f64 * 100.0;
        Sample {
            time_unix: self.clock.unix().0,
            egress: counted.sent_bytes as f64 * 8.0 / seconds,
            requests: counted.responses as f64 / seconds,
            hit_percent: (counted.responses > 0).then(|| (hits / counted.responses as f64).min(100.0)),
            first_byte: counted.first_byte().map(|time| time.as_secs_f64() * 1000.0),
            fill: filled as f64 * 8.0 / seconds,
            disks: disks.collect(),
        }
    }
}
