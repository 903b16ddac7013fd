//! From what is measured to a state and its reasons. No clock, no file: a table of cases tests it.

use std::time::Duration;

use super::{
    Config,
    inputs::{Certificate, Inputs, Manifest, Memory},
    state::{Code, Health, Reason},
};
use crate::{
    asset::{ByteCount, show_duration},
    sys::Phase,
};

/// Responses, and hits, in the window below which their shares say nothing.
const RESPONSES_MIN: u64 = 20;
/// The same of fetches.
const FETCHES_MIN: u64 = 4;

/// Judges `inputs`. What was said `before` counts: a reason comes when its measure passes its limit, and stays until the measure has
/// come back to `calm_percent` of it, so that one that dwells at its limit does not flap.
pub fn judge(inputs: &Inputs, config: &Config, before: &Health) -> Health {
    let mut judging = Judging { config, before, reasons: Vec::new() };
    judging.phase(inputs);
    judging.overload(inputs);
    judging.machine(inputs);
    judging.volumes(inputs);
    judging.served(inputs);
    judging.fill(inputs);
    judging.certificates(&inputs.certificates, inputs.https_only);
    Health::of(judging.reasons)
}

struct Judging<'a> {
    config: &'a Config,
    before: &'a Health,
    reasons: Vec<Reason>,
}

impl Judging<'_> {
    fn say(&mut self, code: Code, subject: Option<&str>, words: String) {
        let reason = Reason::new(code, words);
        self.reasons.push(Reason { subject: subject.map(Into::into), ..reason });
    }

    /// A measure that should stay below its limit.
    fn most(&mut self, code: Code, subject: Option<&str>, (value, limit): (f64, f64), words: impl FnOnce() -> String) {
        let calm = limit * f64::from(self.config.calm_percent) / 100.0;
        let was = self.before.has(code, subject);
        if value > limit || (was && value > calm) {
            self.say(code, subject, words());
        }
    }

    /// A measure that should stay above its limit.
    fn least(&mut self, code: Code, subject: Option<&str>, (value, limit): (f64, f64), words: impl FnOnce() -> String) {
        let calm = limit * 100.0 / f64::from(self.config.calm_percent.max(1));
        let was = self.before.has(code, subject);
        if value < limit || (was && value < calm) {
            self.say(code, subject, words());
        }
    }

    fn phase(&mut self, inputs: &Inputs) {
        match inputs.phase {
            Phase::Starting => self.say(Code::Starting, None, "the appliance is starting".into()),
            Phase::Serving => {}
            Phase::Drained => {
                let who = match &inputs.drained_by[..] {
                    [] => "an operator wants".into(),
                    [one] => format!("steering service {one} wants"),
                    several => format!("steering services {} want", several.join(", ")),
                };
                let words = format!("the appliance is draining: {who} viewers sent elsewhere");
                self.say(Code::Draining, None, words);
            }
            Phase::Leaving => self.say(Code::Draining, None, "the appliance is draining before it stops".into()),
            Phase::Stopping => self.say(Code::Draining, None, "the appliance is stopping".into()),
        }
    }

    fn overload(&mut self, inputs: &Inputs) {
        let (overload, config) = (&inputs.overload, self.config);
        let refused = overload.refused_percent;
        self.most(Code::Refusing, None, (refused, 1.0), || format!("{refused:.0} % of new requests are refused"));
        let (delay, limit) = (overload.queue_delay, config.queue_delay_max);
        self.most(Code::WorkersBehind, None, (delay.as_secs_f64(), limit.as_secs_f64()), || {
            format!("what is ready waits {} for its turn on a worker, above {}", show(delay), show_duration(limit))
        });
        if let Some(percent) = overload.egress_percent {
            let limit = config.egress_percent;
            self.most(Code::EgressFull, None, (percent, limit.into()), || {
                format!("{percent:.0} % of what can leave does, above {limit} %")
            });
        }
        let (percent, limit) = (overload.connections_percent, config.connections_percent);
        self.most(Code::ConnectionsFull, None, (percent, limit.into()), || {
            format!("{percent:.0} % of the connections allowed are open, above {limit} %")
        });
    }

    fn machine(&mut self, inputs: &Inputs) {
        let config = self.config;
        if let Some(descriptors) = inputs.descriptors {
            let percent = percent_of(descriptors.open, descriptors.max);
            self.most(Code::DescriptorsLow, None, (percent, config.descriptors_percent.into()), || {
                format!("{} of {} file descriptors are open", descriptors.open, descriptors.max)
            });
        }
        if let Some(Memory { available, total }) = inputs.memory {
            let limit = f64::from(config.memory_free_percent);
            self.least(Code::MemoryLow, None, (percent_of(available, total), limit), || {
                format!("{} of {} of memory can be had", mebibytes(available), mebibytes(total))
            });
        }
        let (jump, limit) = (inputs.clock_jump_seconds, config.clock_jump_max.as_secs_f64());
        // The move itself is what is told of: there is nothing to come back.
        if jump.abs() > limit {
            let way = if jump > 0.0 { "forward" } else { "back" };
            self.say(Code::ClockJumped, None, format!("the wall clock was moved {way} by {:.0} s", jump.abs()));
        }
    }

    fn volumes(&mut self, inputs: &Inputs) {
        let config = self.config;
        if inputs.volumes.iter().all(|volume| volume.failure.is_some()) {
            self.say(Code::NoVolume, None, "no volume is in use".into());
        }
        for volume in &inputs.volumes {
            let name = Some(volume.name.as_str());
            if let Some(failure) = &volume.failure {
                self.say(Code::VolumeFailed, name, format!("{} was taken out: {failure}", volume.name));
                continue;
            }
            if let Some(free) = volume.free_percent {
                let limit = config.disk_free_percent;
                self.least(Code::DiskFull, name, (free, limit.into()), || {
                    format!("{free:.1} % of the disk of {} is free, below {limit} %", volume.name)
                });
            }
            if let Some(probe) = volume.probe {
                let limit = config.probe_max;
                self.most(Code::DiskSlow, name, (probe.as_secs_f64(), limit.as_secs_f64()), || {
                    format!("{} takes {} for a probe, above {}", volume.name, show(probe), show_duration(limit))
                });
            }
        }
        if let Some(wait) = inputs.cold_wait {
            let limit = config.cold_wait_max;
            // Of whichever disk: waits are not counted by volume. Not one that a probe tells of.
            let was =
                self.before.reasons.iter().any(|reason| reason.code == Code::DiskSlow && reason.subject.is_none());
            let calm = limit.as_secs_f64() * f64::from(config.calm_percent) / 100.0;
            if wait > limit || (was && wait.as_secs_f64() > calm) {
                let words = format!("what is not in memory takes {}, above {}", show(wait), show_duration(limit));
                self.say(Code::DiskSlow, None, words);
            }
        }
    }

    fn served(&mut self, inputs: &Inputs) {
        let (served, config) = (&inputs.served, self.config);
        if served.responses >= RESPONSES_MIN {
            let percent = percent_of(served.errors, served.responses);
            let limit = config.errors_percent;
            self.most(Code::Errors, None, (percent, limit.into()), || {
                format!("{percent:.0} % of responses are errors or are cut, above {limit} %")
            });
        }
        if let Some(first_byte) = served.first_byte.filter(|_| served.hits >= RESPONSES_MIN) {
            let limit = config.first_byte_max;
            self.most(Code::FirstByteSlow, None, (first_byte.as_secs_f64(), limit.as_secs_f64()), || {
                format!("hits begin after {} (95th percentile), above {}", show(first_byte), show_duration(limit))
            });
        }
    }

    fn fill(&mut self, inputs: &Inputs) {
        let (fill, config) = (&inputs.fill, self.config);
        let down = inputs.sources.iter().filter(|source| source.set_aside);
        for source in down.clone() {
            let words = format!("source {} is set aside for its failures", source.name);
            self.say(Code::SourceDown, Some(&source.name), words);
        }
        if !inputs.sources.is_empty() && down.count() == inputs.sources.len() {
            self.say(Code::NoSource, None, "no source answers; what is held is served as before".into());
        }
        if fill.fetches >= FETCHES_MIN {
            let percent = percent_of(fill.failures, fill.fetches);
            let limit = config.fill_failures_percent;
            self.most(Code::FillFailing, None, (percent, limit.into()), || {
                format!("{percent:.0} % of fetches fail, above {limit} %")
            });
        }
        let queued = percent_of(fill.queued, fill.queued_max);
        self.most(Code::FillBehind, None, (queued, config.fill_queue_percent.into()), || {
            format!("{} of at most {} demands wait for fill", fill.queued, fill.queued_max)
        });
        if let Some(failure) = &inputs.manifest_failure {
            let words = format!("no manifest is received until this is mended and the appliance restarted: {failure}");
            self.say(Code::ManifestsOff, None, words);
        }
        match inputs.manifest {
            Some(Manifest { expires_in: None, .. }) => {
                self.say(Code::ManifestStale, None, "the manifest is past its days".into());
            }
            Some(Manifest { age, has_come: false, .. }) if age > config.manifest_age_max => {
                let (age, limit) = (show(age), show_duration(config.manifest_age_max));
                self.say(Code::ManifestStale, None, format!("no manifest has come in {age}, above {limit}"));
            }
            Some(Manifest { age, .. }) if age > config.manifest_age_max => {
                let (age, limit) = (show(age), show_duration(config.manifest_age_max));
                self.say(
                    Code::ManifestStale,
                    None,
                    format!("the last word on the manifest is {age} old, above {limit}"),
                );
            }
            _ => {}
        }
    }

    fn certificates(&mut self, certificates: &[Certificate], https_only: bool) {
        let expired = certificates.iter().filter(|certificate| certificate.expires_in.is_none()).count();
        if https_only && expired > 0 && expired == certificates.len() {
            self.say(Code::NoCertificate, None, "every certificate is past its days, and there is HTTPS alone".into());
        }
        for certificate in certificates {
            let name = Some(certificate.name.as_str());
            match certificate.expires_in {
                None => {
                    self.say(Code::CertificateExpired, name, format!("{} is past its days", certificate.name));
                }
                Some(left) if left < self.config.certificate_notice => {
                    let words = format!("{} is good for {} more", certificate.name, show(left));
                    self.say(Code::CertificateExpiring, name, words);
                }
                Some(_) => {}
            }
        }
    }
}

fn percent_of(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn mebibytes(bytes: u64) -> ByteCount {
    ByteCount(bytes >> 20 << 20)
}

/// In a unit that people read at a glance.
fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 120.0 => format!("{seconds:.1} s"),
        _ if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests;
