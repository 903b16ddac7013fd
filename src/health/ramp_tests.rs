//! What is reported, beside what is known to be so: a box of known capacity is asked for more and more, from nothing to three times what
//! it can, second by second of a clock that is moved by hand. `benches/overload` does the same to the real one.

#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a model, small and positive")]

use std::time::Duration;

use super::{
    Config,
    load::{Connections, Limit, Load},
    meters::Meters,
    window::{Counts, Window},
};
use crate::telemetry::metrics::{CacheOutcome, Metrics, SendPath};

/// What one worker can send.
const CAPACITY: f64 = 8e9;
/// Bytes of a response.
const RESPONSE: u64 = 1 << 20;
/// Connections of a box that sends all that it can.
const CONNECTIONS: f64 = 500.0;

/// A box whose one worker is as busy as what it sends is of what it can; what is too much is refused.
struct Modelled {
    metrics: Metrics,
    meters: Meters,
    window: Window,
    config: Config,
    now: Duration,
    busy: Duration,
    /// Bits and responses a second, and connections.
    truth: (f64, f64, u64),
    /// Of each second, what was sent.
    sent: Vec<f64>,
}

impl Modelled {
    fn new() -> Self {
        Self {
            metrics: Metrics::new(1),
            meters: Meters::default(),
            window: Window::default(),
            config: Config::default(),
            now: Duration::ZERO,
            busy: Duration::ZERO,
            truth: (0.0, 0.0, 0),
            sent: Vec::new(),
        }
    }

    /// A second in which `offered` times the capacity is asked for.
    fn second(&mut self, offered: f64) -> Load {
        let worker = self.metrics.worker(0);
        let used = offered.min(1.0);
        let responses = (CAPACITY * used / 8.0 / RESPONSE as f64).round();
        for _ in 0..responses as u64 {
            worker.record_response(206, CacheOutcome::Hit, Duration::from_micros(80));
            worker.sent(SendPath::Sendfile, RESPONSE);
        }
        self.busy += Duration::from_secs_f64(used);
        worker.set_cpu_time(self.busy);
        let over = (1.0 - 1.0 / offered.max(1.0)) * 1000.0;
        worker.set_pressure(Duration::from_millis(if offered > 1.0 { 20 } else { 1 }), over as u32);
        let open = (CONNECTIONS * used) as u64;
        self.truth = (responses * RESPONSE as f64 * 8.0, responses, open);
        self.sent.push(self.truth.0);
        self.now += Duration::from_secs(1);
        let counts = Counts { totals: self.metrics.totals(), ..Counts::default() };
        self.window.add(self.now, counts, self.config.window);
        if let Some(step) = self.window.last_step() {
            self.meters.measure(&step, &self.metrics.pressures(), (&[], Some(Duration::from_secs(1))));
        }
        self.meters.load(Connections { open, max: 16_384 }, &self.config)
    }

    /// The mean of what was sent, the last second counting most: what an average over 10 s has to say.
    fn of_late(&self) -> f64 {
        let weight = |age: usize| (-(age as f64) / 10.0).exp();
        let (sum, all) = self
            .sent
            .iter()
            .rev()
            .enumerate()
            .fold((0.0, 0.0), |(sum, all), (age, bits)| (sum + bits * weight(age), all + weight(age)));
        sum / all
    }
}

fn is_near(said: f64, so: f64, percent: f64) -> bool {
    (said - so).abs() <= so.abs() * percent / 100.0
}

#[test]
fn from_idle_to_three_times_too_much_what_is_said_is_so() {
    let mut modelled = Modelled::new();
    for _ in 0..30 {
        let load = modelled.second(0.0);
        assert_eq!((load.egress.bits_per_second.short, load.requests.short), (0.0, 0.0));
        assert_eq!(load.headroom.bits_per_second, None, "nothing is known before anything was served");
    }
    for step in 1..=12 {
        let offered = f64::from(step) / 4.0;
        let mut load = Load::default();
        for second in 0..60 {
            load = modelled.second(offered);
            // While it changes, what is said is what was, over the last ten seconds.
            let said = load.egress.bits_per_second.short;
            assert!(is_near(said, modelled.of_late(), 10.0), "{offered} after {second} s: {said}");
        }
        let (bits, requests, open) = modelled.truth;
        assert!(is_near(load.egress.bits_per_second.short, bits, 1.0), "{offered}: {load:?}");
        assert!(is_near(load.requests.short, requests, 1.0), "{offered}: {load:?}");
        assert_eq!(load.connections.open, open);
        assert!(is_near(load.cpu.busiest_worker(), offered.min(1.0), 1.0), "{offered}: {load:?}");
        // What more it can take: up to nine tenths of its core.
        let room = load.headroom.bits_per_second.map(|bits| bits as f64);
        let left = (0.9 * CAPACITY - bits).max(0.0);
        assert_eq!(load.headroom.limited_by, Some(Limit::Cpu));
        assert!(room.is_some_and(|room| (room - left).abs() < 0.02 * CAPACITY), "{offered}: {room:?} of {left}");
        let refused = (1.0 - 1.0 / offered.max(1.0)) * 100.0;
        assert!((load.refused_percent.short - refused).abs() < 1.0, "{offered}: {load:?}");
        assert!(is_near(load.queue_delay_seconds.short, if offered > 1.0 { 0.02 } else { 0.001 }, 10.0), "{load:?}");
    }
}
