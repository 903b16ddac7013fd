//! Sends reports to one service for as long as the appliance lives.
//!
//! wait (interval less jitter; at once when the phase changes) -> make a report -> exchange -> what the reply asks for
//!
//! An attempt that fails is followed by the next at the same pace, which a service that is down does not feel, and one that comes
//! back finds as much asked of it as on any other day: each box is at another place of the interval. It decides itself whom it
//! asks for everything that is held.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    Config, Known, Reporter, ServiceConfig, ServiceError, Written,
    reply::Reply,
    service::{Outcome, Service},
};
use crate::{sys::Phase, telemetry::metrics::SteeringMetrics};

/// What is remembered of a service.
struct Session {
    reporter: Arc<Reporter>,
    config: ServiceConfig,
    service: Arc<Service>,
    known: Known,
    interval: Duration,
    /// `steering.interval`, as it was when the interval was set.
    configured: Duration,
    metrics: Arc<SteeringMetrics>,
    /// What went wrong last, so that it is said once.
    trouble: Trouble,
    told: Told,
}

/// A service that is reported to.
#[derive(Debug)]
struct Running {
    config: ServiceConfig,
    task: JoinHandle<()>,
    trouble: Trouble,
    told: Told,
}

/// The phase that a service was told of last, where it has ever been told anything.
type Told = Arc<Mutex<Option<Phase>>>;

/// The services that are reported to, each by a task of its own.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    running: Vec<Running>,
    /// Who waits for the next report looks at the configuration again.
    changed: Arc<Notify>,
    /// A service was told something.
    pub(super) spoken: Arc<Notify>,
}

/// What went wrong last, where nothing has gone well since.
type Trouble = Arc<Mutex<Option<String>>>;

/// Services whose files have been read, to be reported to by `config`.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    services: Vec<(ServiceConfig, Arc<Service>)>,
}

/// Reads the files of every service that `config` names. Blocks.
///
/// # Errors
/// A file is not there or no good.
pub fn prepare(config: &Config) -> Result<Prepared, ServiceError> {
    let made = |one: &ServiceConfig| Ok((one.clone(), Arc::new(Service::new(one, config.timeout)?)));
    let services = config.services.iter().map(made).collect::<Result<_, _>>()?;
    Ok(Prepared { config: config.clone(), services })
}

/// Reports to these services from now on, and to no others, on the present runtime. Who is reported to in the same way as before is so
/// without a break.
pub fn start(reporter: &Arc<Reporter>, Prepared { config, services }: Prepared, phase: &watch::Receiver<Phase>) {
    let mut sessions = reporter.sessions.lock();
    let interval = config.interval;
    // Before anybody is dropped: what who is not named here asks for counts no longer.
    reporter.config.store(Arc::new(config));
    let gone = sessions.running.extract_if(.., |running| services.iter().all(|(one, _)| *one != running.config));
    for gone in gone {
        gone.task.abort();
        // It cannot take back what it has asked for.
        reporter.order(&gone.config.name, false);
    }
    for (one, service) in services {
        if sessions.running.iter().any(|running| running.config == one) {
            continue;
        }
        let session = Session {
            reporter: Arc::clone(reporter),
            config: one.clone(),
            service,
            known: Known::default(),
            interval,
            configured: interval,
            metrics: reporter.metrics.steering(&one.name),
            trouble: Trouble::default(),
            told: Told::default(),
        };
        let (trouble, told) = (Arc::clone(&session.trouble), Arc::clone(&session.told));
        let news = (Arc::clone(&sessions.changed), Arc::clone(&sessions.spoken));
        let task = tokio::spawn(session.run(phase.clone(), news));
        sessions.running.push(Running { config: one, task, trouble, told });
    }
    sessions.changed.notify_waiters();
}

impl Sessions {
    /// How it stands with each service, as JSON.
    pub(super) fn status(&self, reporter: &Reporter) -> Value {
        let now = reporter.clock.unix();
        let one = |Running { config, trouble, .. }: &Running| {
            let metrics = reporter.metrics.steering(&config.name);
            let delivered = Some(metrics.delivered_unix.value()).filter(|at| *at > 0);
            json!({
                "name": config.name,
                "url": config.url.as_str(),
                "delivered_seconds_ago": delivered.map(|at| now.0.saturating_sub(at)),
                "reports": metrics.reports().collect::<BTreeMap<_, _>>(),
                "trouble": *trouble.lock(),
            })
        };
        self.running.iter().map(one).collect()
    }

    /// Whether every service that takes reports has been told of `phase`.
    pub(super) fn have_told(&self, phase: Phase) -> bool {
        self.running
            .iter()
            .all(|running| running.trouble.lock().is_some() || running.told.lock().is_none_or(|told| told >= phase))
    }
}

impl Session {
    async fn run(mut self, mut phase: watch::Receiver<Phase>, (changed, spoken): (Arc<Notify>, Arc<Notify>)) {
        let clock = self.reporter.clock.clone();
        // Boxes that lost power together do not come back together.
        let mut due = clock.monotonic() + spread(&self.reporter.config.load(), self.interval);
        let (mut last, mut is_known) = (Duration::ZERO, false);
        loop {
            let mut changed = std::pin::pin!(changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(sooner) = self.go_by_another_interval() {
                due = due.min(clock.monotonic() + sooner);
            }
            tokio::select! {
                () = clock.sleep_until(due) => {}
                () = changed => continue,
                changed = phase.changed() => match changed {
                    // A drain is told before viewers find out; one that comes and goes, no sooner than reports may come. An end has
                    // no later moment.
                    Ok(()) if is_known => {
                        let earliest = last + least(&self.reporter.config.load(), self.interval);
                        if *phase.borrow_and_update() < Phase::Leaving && clock.monotonic() < earliest {
                            due = due.min(earliest);
                            continue;
                        }
                    }
                    // Who has not heard of us yet does not hear sooner because we begin to serve.
                    Ok(()) => continue,
                    // Nobody can change the phase any more: the appliance is gone.
                    Err(_) => return,
                },
            }
            last = clock.monotonic();
            let tells_of = *phase.borrow_and_update();
            let (wait, outcome) = self.report().await;
            *self.told.lock() = Some(tells_of);
            spoken.notify_waiters();
            (due, is_known) = (clock.monotonic() + wait, true);
            // Whoever sees it counted knows that the next one is due by the clock as it is now.
            if let Some(outcome) = outcome {
                self.metrics.report(outcome);
            }
        }
    }

    /// Takes up an interval that is configured anew, in place of what the service asked for; gives the wait for the next report.
    fn go_by_another_interval(&mut self) -> Option<Duration> {
        let config = self.reporter.config.load();
        let before = std::mem::replace(&mut self.configured, config.interval);
        let now = if before == config.interval { self.interval } else { config.interval };
        // What the service has asked for stays within the bounds that hold now.
        let now = now.min(config.interval_max.max(config.interval)).max(config.interval_min.min(config.interval));
        (std::mem::replace(&mut self.interval, now) != now || before != config.interval).then(|| paced(&config, now))
    }

    /// One report; gives the wait until the next, and what became of it.
    async fn report(&mut self) -> (Duration, Option<&'static str>) {
        let (reporter, known) = (Arc::clone(&self.reporter), self.known);
        let (config, service) = (self.config.clone(), Arc::clone(&self.service));
        let made = tokio::task::spawn_blocking(move || {
            let fresh = service
                .is_outdated(&config)
                .then(|| Service::new(&config, reporter.config.load().timeout))
                .transpose()
                .map(|fresh| fresh.map(Arc::new));
            let Written { body, is_full, revision } = reporter.write(known);
            ((service.body(body), is_full, revision), fresh)
        });
        let Ok(((body, is_full, revision), fresh)) = made.await else {
            tracing::error!(service = %self.config.name, "making a report panicked");
            return (self.interval, None);
        };
        match fresh {
            Ok(Some(fresh)) => self.service = fresh,
            Ok(None) => {}
            Err(err) => {
                self.in_trouble(format!("the files have changed and are no good, the last ones are used: {err}"));
            }
        }
        let bytes = body.bytes.len() as u64;
        let outcome = self.service.exchange(&self.config.url, &self.reporter.config.load_full(), body).await;
        tracing::debug!(service = %self.config.name, bytes, revision, is_full, outcome = outcome.label(), "reported");
        if matches!(outcome, Outcome::Delivered(_)) {
            self.metrics.bytes.add(bytes);
            self.metrics.full.add(u64::from(is_full));
            self.metrics.delivered_unix.set(self.reporter.clock.unix().0);
        }
        let label = outcome.label();
        (self.heed(outcome, is_full), Some(label))
    }

    /// Does what the outcome of a report, that told of everything or not, asks for; gives the wait until the next.
    fn heed(&mut self, outcome: Outcome, was_full: bool) -> Duration {
        let config = &self.reporter.config.load_full();
        let pace = |interval| paced(config, interval);
        match outcome {
            Outcome::Delivered(Reply { availability, clients, wants_full, interval, drain }) => {
                if self.trouble.lock().take().is_some() {
                    tracing::info!(service = %self.config.name, "steering takes reports again");
                }
                self.known = Known { availability, clients, wants_full };
                self.interval = interval.unwrap_or(self.interval);
                if let Some(drain) = drain {
                    self.reporter.order(&self.config.name, drain);
                }
                // What is asked for comes soon, though not from every box at the same time. Who has just been told everything and asks for it again
                // would do so for ever.
                if wants_full && !was_full {
                    spread(config, self.interval).max(least(config, self.interval))
                } else {
                    pace(self.interval)
                }
            }
            Outcome::Refused(status, after) => {
                let wait = after.map(|after| after.clamp(self.interval, config.interval_max.max(self.interval)));
                // Who asks for a while of rest gets it, and not from all boxes to the same second.
                let wait = wait.map_or_else(|| pace(self.interval), |wait| wait + spread(config, self.interval));
                self.in_trouble(format!("it answers with status {status}"));
                wait
            }
            Outcome::Failed(why) | Outcome::Garbage(why) => {
                let wait = pace(self.interval);
                self.in_trouble(why);
                wait
            }
        }
    }

    fn in_trouble(&mut self, why: String) {
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() != Some(&why) {
            tracing::warn!(service = %self.config.name, url = %self.config.url, error = %why, "steering does not take reports");
            *trouble = Some(why);
        }
    }
}

/// An interval less up to its jitter.
pub(super) fn paced(config: &Config, interval: Duration) -> Duration {
    interval.saturating_sub(spread(config, interval))
}

/// Least time from one report to the next, whatever is asked for.
fn least(config: &Config, interval: Duration) -> Duration {
    config.interval_min.min(interval)
}

/// A part of the jitter of an interval.
pub(super) fn spread(config: &Config, interval: Duration) -> Duration {
    // 53 bits are what a float holds.
    let part = (random() >> 11) as f64 / (1_u64 << 53) as f64;
    interval.mul_f64(part * f64::from(config.jitter_percent.min(100)) / 100.0)
}

/// Good enough to keep boxes apart: the standard library's hasher has another secret each time.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
