//! How loaded an appliance is, and how much more it can take.

use std::time::Duration;

use serde::Serialize;

/// A measure, averaged over a short and a long time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Averages {
    /// Over about 10 s.
    pub short: f64,
    /// Over about 5 min.
    pub long: f64,
}

/// Averages a measure that comes at uneven times: exponentially weighted, by time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    averages: Averages,
    /// Time that has been averaged over, up to [`LONG`]: what is young is averaged over its age.
    age: Duration,
}

/// Time constant of the short average.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// Time constant of the long average.
pub(super) const LONG: Duration = Duration::from_secs(300);

impl Meter {
    /// The measure was `value` for the last `elapsed`.
    pub fn add(&mut self, value: f64, elapsed: Duration) {
        self.age = (self.age + elapsed).min(LONG);
        let averages = &mut self.averages;
        for (average, over) in [(&mut averages.short, SHORT), (&mut averages.long, LONG)] {
            let weight = elapsed.as_secs_f64() / over.min(self.age).as_secs_f64().max(f64::MIN_POSITIVE);
            *average += (value - *average) * (1.0 - (-weight).exp()).max(if self.age <= elapsed { 1.0 } else { 0.0 });
        }
    }

    /// The averages so far.
    pub fn averages(&self) -> Averages {
        self.averages
    }
}

/// How loaded an appliance is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// What leaves for viewers.
    pub egress: Egress,
    /// Requests answered per second.
    pub requests: Averages,
    /// Viewers' connections.
    pub connections: Connections,
    /// Time computed.
    pub cpu: Cpu,
    /// The disks of the volumes.
    pub disks: Vec<DiskLoad>,
    /// Windows per second that were not in memory.
    pub cold_reads: Averages,
    /// Seconds that what is ready waits for its turn on the worker that is most behind.
    pub queue_delay_seconds: Averages,
    /// Percent of new requests refused, on the worker that refuses most.
    pub refused_percent: Averages,
    /// What more it can take.
    pub headroom: Headroom,
}

/// What leaves for viewers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Egress {
    /// Bits per second handed to the kernel for viewers.
    pub bits_per_second: Averages,
    /// What can leave.
    pub capacity: Option<Capacity>,
    /// Each interface of the machine.
    pub interfaces: Vec<InterfaceLoad>,
}

/// What can leave for viewers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// Bits per second.
    pub bits_per_second: u64,
    /// Who says so.
    pub source: CapacitySource,
}

/// Who says how much can leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacitySource {
    /// `health.egress_capacity`.
    Configured,
    /// The interfaces that are up, added up.
    Interfaces,
}

/// One interface of the machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InterfaceLoad {
    /// Its name.
    pub name: String,
    /// Bits per second sent, by whomever.
    pub bits_per_second: Averages,
    /// Bits per second that it can send, where it says so.
    pub capacity_bits_per_second: Option<u64>,
}

/// Viewers' connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Open.
    pub open: u64,
    /// Allowed.
    pub max: u64,
}

/// Time computed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Cores busy for the process.
    pub cores_busy: Averages,
    /// Part of a core that each worker is busy, 0 to 1.
    pub workers: Vec<Averages>,
}

impl Cpu {
    /// The short average of the busiest worker.
    pub fn busiest_worker(&self) -> f64 {
        self.workers.iter().map(|worker| worker.short).fold(0.0, f64::max)
    }
}

/// The disk of a volume.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskLoad {
    /// The volume's directory.
    pub volume: String,
    /// Part of the time in which the disk had something to do, 0 to 1.
    pub busy: Averages,
    /// Requests in its queue, on average.
    pub queue: Averages,
}

/// What more an appliance can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Headroom {
    /// Bits per second beyond what leaves now, before viewers suffer; `None`: not known yet, as nothing was served so far.
    pub bits_per_second: Option<u64>,
    /// What ends first.
    pub limited_by: Option<Limit>,
}

/// What can end first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The links.
    Egress,
    /// The busiest worker's core.
    Cpu,
    /// The busiest disk.
    Disk,
    /// `serve.connections_max`.
    Connections,
}

/// What a whole unit of each resource carries, in bits per second: learned while it was in use, so that it is known when there is
/// little to judge by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Yields {
    worker: Option<f64>,
    disk: Option<f64>,
    connection: Option<f64>,
}

/// Part of a unit that has to be in use for something to be learned from it.
const LESSON_MIN: f64 = 0.03;
/// Windows from the disk per second from which on it tells something about the disk.
const COLD_MIN: f64 = 1.0;
/// Weight of a lesson that less is yielded than the most that was seen: clients and disks change, in hours.
const LESS: f64 = 0.001;
/// Weight of a lesson.
const LESSON: f64 = 0.1;

impl Yields {
    /// Learns from `load`.
    pub fn learn(&mut self, load: &Load) {
        let bits = load.egress.bits_per_second.short;
        let busiest = load.cpu.busiest_worker();
        learn(&mut self.worker, bits, busiest);
        // A disk is busy with fill and with other programs too, and a connection may be idle: the most that was seen is what they yield.
        if load.cold_reads.short >= COLD_MIN {
            learn_most(&mut self.disk, bits, busiest_disk(load));
        }
        if load.connections.open > 0 {
            learn_most(&mut self.connection, bits, load.connections.open as f64);
        }
    }
}

fn learn(known: &mut Option<f64>, bits: f64, used: f64) {
    if used < LESSON_MIN || bits < 1.0 {
        return;
    }
    let seen = bits / used;
    *known = Some(known.map_or(seen, |known| known + (seen - known) * LESSON));
}

/// As [`learn`], of what is used for other ends too.
fn learn_most(known: &mut Option<f64>, bits: f64, used: f64) {
    if used < LESSON_MIN || bits < 1.0 {
        return;
    }
    let seen = bits / used;
    *known = Some(known.map_or(seen, |known| seen.max(known + (seen - known) * LESS)));
}

fn busiest_disk(load: &Load) -> f64 {
    load.disks.iter().map(|disk| disk.busy.short).fold(0.0, f64::max)
}

/// How many more bits per second `load` leaves room for, where a resource may be used to `comfort_percent`; and which of them ends
/// first. What is used grows as what leaves does: that is taken to be so, and `benches/overload.rs` looks whether it is.
pub fn headroom(load: &Load, yields: &Yields, comfort_percent: u8) -> Headroom {
    let comfort = f64::from(comfort_percent) / 100.0;
    let room = |yields: Option<f64>, most: f64, used: f64| yields.map(|bits| bits * (most * comfort - used).max(0.0));
    let bits = load.egress.bits_per_second.short;
    let links = load.egress.capacity.map(|capacity| (capacity.bits_per_second as f64 * comfort - bits).max(0.0));
    let open = load.connections.open as f64;
    // What a connection carries says nothing of what the box can: a fast client alone would promise a thousand times its rate.
    if links.is_none() && yields.worker.is_none() && yields.disk.is_none() {
        return Headroom::default();
    }
    [
        (Limit::Egress, links),
        (Limit::Cpu, room(yields.worker, 1.0, load.cpu.busiest_worker())),
        (Limit::Disk, room(yields.disk, 1.0, busiest_disk(load))),
        (Limit::Connections, room(yields.connection, load.connections.max as f64, open)),
    ]
    .into_iter()
    .filter_map(|(limit, room)| Some((limit, room?)))
    .min_by(|(_, a), (_, b)| a.total_cmp(b))
    .map_or_else(Headroom::default, |(limit, room)| Headroom {
        bits_per_second: Some(whole(room)),
        limited_by: Some(limit),
    })
}

/// To the next whole one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive, and saturates")]
fn whole(bits: f64) -> u64 {
    bits.max(0.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[(f64, u64)]) -> Averages {
        let mut meter = Meter::default();
        samples.iter().for_each(|(value, millis)| meter.add(*value, Duration::from_millis(*millis)));
        meter.averages()
    }

    #[test]
    fn a_young_average_is_that_of_its_age() {
        assert_eq!(after(&[(7.0, 1000)]), Averages { short: 7.0, long: 7.0 });
        let two = after(&[(0.0, 1000), (8.0, 1000)]);
        assert!((3.0..6.0).contains(&two.long), "{two:?}");
    }

    #[test]
    fn the_short_average_follows_soon_and_the_long_one_late() {
        let mut samples = vec![(0.0, 1000); 600];
        samples.extend([(100.0, 1000); 30]);
        let averages = after(&samples);
        assert!(averages.short > 94.0 && averages.short < 96.0, "{averages:?}");
        assert!(averages.long > 9.0 && averages.long < 10.0, "{averages:?}");
    }

    #[test]
    fn how_often_is_measured_does_not_matter() {
        let (often, seldom) = (after(&[(5.0, 100); 200]), after(&[(5.0, 2000); 10]));
        assert!((often.short - seldom.short).abs() < 1e-9 && (often.long - seldom.long).abs() < 1e-9);
    }

    fn load(bits: f64, busiest: f64) -> Load {
        let same = |value| Averages { short: value, long: value };
        Load {
            egress: Egress { bits_per_second: same(bits), ..Egress::default() },
            cpu: Cpu { cores_busy: same(busiest), workers: vec![same(busiest / 2.0), same(busiest)] },
            connections: Connections { open: 10, max: 1000 },
            ..Load::default()
        }
    }

    fn learned(load: &Load) -> Yields {
        let mut yields = Yields::default();
        yields.learn(load);
        yields
    }

    #[test]
    fn nothing_is_known_before_anything_was_served() {
        assert_eq!(headroom(&load(0.0, 0.0), &Yields::default(), 90), Headroom::default());
    }

    #[test]
    fn the_busiest_worker_limits_all() {
        let load = load(1e9, 0.3);
        // 1 Gb/s takes 0.3 of a core; of 0.9 there are 0.6 left.
        let room = headroom(&load, &learned(&load), 90);
        assert_eq!(room.limited_by, Some(Limit::Cpu));
        assert!(room.bits_per_second.is_some_and(|bits| bits.abs_diff(2_000_000_000) < 10), "{room:?}");
    }

    #[test]
    fn the_tightest_is_named() {
        let mut load = load(1e9, 0.3);
        load.egress.capacity = Some(Capacity { bits_per_second: 2_000_000_000, source: CapacitySource::Configured });
        let yields = learned(&load);
        let room = headroom(&load, &yields, 90);
        assert_eq!((room.limited_by, room.bits_per_second), (Some(Limit::Egress), Some(800_000_000)));
        let busy = Averages { short: 0.8, long: 0.8 };
        load.disks = vec![DiskLoad { volume: "/v".into(), busy, queue: Averages::default() }];
        load.cold_reads = Averages { short: 100.0, long: 100.0 };
        let room = headroom(&load, &learned(&load), 90);
        assert_eq!(
            (room.limited_by, room.bits_per_second.map(|bits| bits / 1_000_000)),
            (Some(Limit::Disk), Some(125))
        );
        load.connections = Connections { open: 899, max: 1000 };
        let room = headroom(&load, &learned(&load), 90);
        assert_eq!(room.limited_by, Some(Limit::Connections));
    }

    #[test]
    fn what_was_learned_is_known_when_all_is_quiet() {
        let yields = learned(&load(1e9, 0.5));
        let room = headroom(&load(0.0, 0.0), &yields, 90);
        assert_eq!((room.limited_by, room.bits_per_second), (Some(Limit::Cpu), Some(1_800_000_000)));
    }

    #[test]
    fn what_others_use_and_what_is_idle_teaches_nothing() {
        let mut seen = load(1e9, 0.3);
        let busy = |short| {
            vec![DiskLoad { volume: "/v".into(), busy: Averages { short, long: short }, queue: Averages::default() }]
        };
        (seen.disks, seen.cold_reads.short) = (busy(0.2), 100.0);
        let mut yields = learned(&seen);
        let before = yields;
        let mut quiet = load(100.0, 0.0);
        // A thousand looks: hardly anything leaves, a fill keeps the disk busy, and connections are idle.
        (quiet.disks, quiet.connections.open) = (busy(0.5), 900);
        for _ in 0..1000 {
            yields.learn(&quiet);
        }
        assert_eq!((yields.disk, yields.worker), (before.disk, before.worker));
        quiet.cold_reads.short = 1.0;
        for _ in 0..100 {
            yields.learn(&quiet);
        }
        let kept = |now: Option<f64>, then: Option<f64>| now.zip(then).is_some_and(|(now, then)| now > 0.9 * then);
        assert!(kept(yields.disk, before.disk), "{yields:?}, before {before:?}");
    }

    #[test]
    fn one_fast_client_promises_nothing() {
        let mut load = load(2e8, 0.01);
        load.connections = Connections { open: 1, max: 1000 };
        assert_eq!(
            headroom(&load, &learned(&load), 90),
            Headroom::default(),
            "neither link nor cores nor disks are known"
        );
    }

    #[test]
    fn there_is_never_less_than_no_room() {
        let load = load(1e9, 1.0);
        assert_eq!(headroom(&load, &learned(&load), 90).bits_per_second, Some(0));
    }
}
