//! What health and fill look at to judge the appliance.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::told::Drained;
use crate::{
    asset::UnixTime,
    catalog::Catalog,
    config::Config,
    control::{Control, Standing},
    fill::nightly::{Load, LoadMeter},
    health::{self, State, Watch},
    storage::Residency,
    sys::{Clock, PhaseCell},
    telemetry::metrics::Metrics,
};

/// What health is judged by.
pub(super) fn watched(
    config: &Config,
    (phase, clock): (&PhaseCell, &Clock),
    (catalog, residency, metrics): (&Arc<Catalog>, &Arc<Residency>, &Arc<Metrics>),
    control: &Arc<Control>,
    drained: &Arc<Drained>,
) -> health::Watched {
    let drained = Arc::clone(drained);
    let (control, now) = (Arc::clone(control), clock.clone());
    let volumes = config.storage.volumes.iter().map(|volume| volume.path.clone());
    health::Watched {
        phase: phase.clone(),
        drained_by: Box::new(move || drained.services()),
        catalog: Arc::clone(catalog),
        residency: Arc::clone(residency),
        metrics: Arc::clone(metrics),
        clock: clock.clone(),
        manifest: Box::new(move || {
            let standing = control.standing();
            (manifest(&standing, now.unix()), standing.failure)
        }),
        demand_queue_max: config.catalog.demand_queue_max as u64,
        volumes: volumes.collect(),
        https_only: config.serve.http.is_empty(),
    }
}

/// What health is judged against.
pub(super) fn limits(config: &Config) -> health::Limits {
    health::Limits {
        config: config.health.clone(),
        connections_max: config.serve.connections_max as u64,
        sources: config.fill.sources.iter().map(|source| source.name.clone()).collect(),
    }
}

/// How old the last word on the manifest in force is, and how long that is good.
fn manifest(standing: &Standing, now: UnixTime) -> Option<health::Manifest> {
    let since = |seconds| Duration::from_secs(seconds);
    let Some(accepted) = standing.age_seconds.map(since) else {
        // None has ever come: only that there should be one by now is to be told.
        let age = since(standing.waited_seconds);
        let expires_in = Some(Duration::MAX);
        return standing.is_stale.then_some(health::Manifest { has_come: false, age, expires_in });
    };
    // A publication that says that nothing has changed is word of it too, for a while: whoever hands out the old one for ever says so as well.
    let heard = standing.last_contact.filter(|_| !standing.is_stale).map(|contact| since(now.since(contact)));
    let expires_in = standing.expires.filter(|_| !standing.has_expired).map(|expires| since(expires.since(now)));
    let age = heard.map_or(accepted, |heard| accepted.min(heard));
    Some(health::Manifest { has_come: true, age, expires_in })
}

/// Tells fill what viewers have taken so far.
pub(super) fn load_meter(
    metrics: &Arc<Metrics>,
    residency: &Arc<Residency>,
    watch: &Arc<OnceLock<Arc<Watch>>>,
) -> LoadMeter {
    let (metrics, residency, watch) = (Arc::clone(metrics), Arc::clone(residency), Arc::clone(watch));
    Arc::new(move || {
        let (cold_waits, cold_wait_micros) = residency.cold_waits();
        let told = watch.get().is_some_and(|watch| watch.snapshot().health.state == State::Overloaded);
        // Workers know before health has looked.
        let overloaded = told || metrics.pressures().iter().any(|worker| worker.shed_permille > 0);
        Load { sent_bytes: metrics.sent_bytes(), cold_waits, cold_wait_micros, overloaded }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000_000);

    #[test]
    fn an_old_manifest_that_is_handed_out_again_and_again_grows_old_all_the_same() {
        let standing = Standing {
            is_expected: true,
            age_seconds: Some(50_000),
            waited_seconds: 50_000,
            expires: Some(UnixTime(1_500_000)),
            last_contact: Some(UnixTime(999_990)),
            ..Standing::default()
        };
        let told = |standing: &Standing| manifest(standing, NOW).map(|told| (told.age.as_secs(), told.expires_in));
        let left = Some(Duration::from_secs(500_000));
        assert_eq!(told(&standing), Some((10, left)));
        assert_eq!(told(&Standing { is_stale: true, ..standing.clone() }), Some((50_000, left)));
        assert_eq!(told(&Standing { last_contact: None, ..standing.clone() }), Some((50_000, left)));
        assert_eq!(told(&Standing { has_expired: true, ..standing }), Some((10, None)));
    }

    #[test]
    fn that_none_has_ever_come_is_told_once_one_should_have() {
        let standing = Standing { is_expected: true, waited_seconds: 200_000, ..Standing::default() };
        assert_eq!(manifest(&standing, NOW), None);
        let age = Duration::from_secs(200_000);
        let told = manifest(&Standing { is_stale: true, ..standing }, NOW);
        assert_eq!(told, Some(health::Manifest { has_come: false, age, expires_in: Some(Duration::MAX) }));
    }
}
