//! From differences of counters to [`Load`].

use std::time::Duration;

use super::{
    Config,
    load::{
        Averages, Capacity, CapacitySource, Connections, Cpu, DiskLoad, Egress, InterfaceLoad, Load, Meter, Yields,
        headroom,
    },
    machine::{self, DiskTime},
    window::Counts,
};
use crate::telemetry::Pressure;

/// Averages of everything that is measured.
#[derive(Debug, Default)]
pub(super) struct Meters {
    egress: Meter,
    requests: Meter,
    cores: Meter,
    cold_reads: Meter,
    queue_delay: Meter,
    refused: Meter,
    cpu_before: Option<Duration>,
    workers: Vec<(Duration, Meter)>,
    interfaces: Vec<Link>,
    links_can: Option<u64>,
    disks: Vec<Spindle>,
    yields: Yields,
}

#[derive(Debug)]
struct Link {
    name: String,
    sent: u64,
    speed: Option<u64>,
    bits: Meter,
}

#[derive(Debug)]
struct Spindle {
    volume: String,
    before: DiskTime,
    busy: Meter,
    queue: Meter,
}

impl Meters {
    /// Adds what was counted in the time `elapsed` since the last look; `None`: there was none. `disks`: volumes and their devices.
    pub(super) fn measure(
        &mut self,
        counted: &Counts,
        workers: &[Pressure],
        (disks, elapsed): (&[(String, u64)], Option<Duration>),
    ) {
        let cpu = machine::cpu_time();
        let cpu_before = self.cpu_before.replace(cpu);
        self.measure_links(elapsed);
        self.measure_disks(disks, elapsed);
        self.workers.resize_with(workers.len(), Default::default);
        let Some(elapsed) = elapsed else { return };
        let per_second = |count: u64| count as f64 / elapsed.as_secs_f64();
        self.egress.add(per_second(counted.totals.sent_bytes) * 8.0, elapsed);
        self.requests.add(per_second(counted.totals.responses), elapsed);
        self.cold_reads.add(per_second(counted.cold_waits), elapsed);
        if let Some(before) = cpu_before {
            self.cores.add(part(cpu.saturating_sub(before), elapsed), elapsed);
        }
        for ((before, meter), worker) in self.workers.iter_mut().zip(workers) {
            let busy = worker.cpu_time.saturating_sub(std::mem::replace(before, worker.cpu_time));
            meter.add(part(busy, elapsed).min(1.0), elapsed);
        }
        let delay = workers.iter().map(|worker| worker.queue_delay).max().unwrap_or_default();
        self.queue_delay.add(delay.as_secs_f64(), elapsed);
        let refused = workers.iter().map(|worker| worker.shed_permille).max().unwrap_or(0);
        self.refused.add(refused as f64 / 10.0, elapsed);
    }

    fn measure_links(&mut self, elapsed: Option<Duration>) {
        let seen = machine::interfaces();
        self.links_can = machine::capacity(&seen);
        self.interfaces.retain(|known| seen.iter().any(|one| one.name == known.name));
        for one in seen {
            match self.interfaces.iter_mut().find(|known| known.name == one.name) {
                Some(known) => {
                    let sent = one.sent_bytes.saturating_sub(std::mem::replace(&mut known.sent, one.sent_bytes));
                    known.speed = one.speed;
                    if let Some(elapsed) = elapsed {
                        known.bits.add(sent as f64 * 8.0 / elapsed.as_secs_f64(), elapsed);
                    }
                }
                None => self.interfaces.push(Link {
                    name: one.name,
                    sent: one.sent_bytes,
                    speed: one.speed,
                    bits: Meter::default(),
                }),
            }
        }
    }

    fn measure_disks(&mut self, disks: &[(String, u64)], elapsed: Option<Duration>) {
        self.disks.retain(|known| disks.iter().any(|(volume, _)| *volume == known.volume));
        for (volume, device) in disks {
            let Some(now) = machine::disk(*device) else { continue };
            match self.disks.iter_mut().find(|known| known.volume == *volume) {
                Some(known) => {
                    let before = std::mem::replace(&mut known.before, now);
                    if let Some(elapsed) = elapsed {
                        known.busy.add(part(now.busy.saturating_sub(before.busy), elapsed).min(1.0), elapsed);
                        known.queue.add(part(now.queued.saturating_sub(before.queued), elapsed), elapsed);
                    }
                }
                None => self.disks.push(Spindle {
                    volume: volume.clone(),
                    before: now,
                    busy: Meter::default(),
                    queue: Meter::default(),
                }),
            }
        }
    }

    /// How loaded it is.
    pub(super) fn load(&mut self, connections: Connections, config: &Config) -> Load {
        let configured = Some(config.egress_capacity.0).filter(|bits| *bits > 0);
        let says = |bits_per_second, source| Capacity { bits_per_second, source };
        let capacity = configured
            .map(|bits| says(bits, CapacitySource::Configured))
            .or_else(|| self.links_can.map(|bits| says(bits, CapacitySource::Interfaces)));
        let interfaces = self.interfaces.iter().map(|link| InterfaceLoad {
            name: link.name.clone(),
            bits_per_second: link.bits.averages(),
            capacity_bits_per_second: link.speed,
        });
        let disks = self.disks.iter().map(|disk| DiskLoad {
            volume: disk.volume.clone(),
            busy: disk.busy.averages(),
            queue: disk.queue.averages(),
        });
        let workers: Vec<Averages> = self.workers.iter().map(|(_, meter)| meter.averages()).collect();
        let mut load = Load {
            egress: Egress { bits_per_second: self.egress.averages(), capacity, interfaces: interfaces.collect() },
            requests: self.requests.averages(),
            connections,
            cpu: Cpu { cores_busy: self.cores.averages(), workers },
            disks: disks.collect(),
            cold_reads: self.cold_reads.averages(),
            queue_delay_seconds: self.queue_delay.averages(),
            refused_percent: self.refused.averages(),
            ..Load::default()
        };
        self.yields.learn(&load);
        load.headroom = headroom(&load, &self.yields, config.comfort_percent);
        load
    }
}

fn part(of: Duration, whole: Duration) -> f64 {
    of.as_secs_f64() / whole.as_secs_f64()
}
