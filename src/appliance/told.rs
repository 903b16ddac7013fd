//! What steering services are told of the appliance, and may ask of it.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;

use crate::{
    fill::nightly::Nightly,
    health::{Health, Load, Watch},
    steering::{Listener, ManifestProgress, Subject},
    sys::{Phase, PhaseCell},
};

/// The appliance, as steering services see it.
pub(super) struct Told {
    pub(super) phase: PhaseCell,
    pub(super) health: Arc<Watch>,
    pub(super) drained: Arc<Drained>,
    pub(super) nightly: Arc<Nightly>,
}

/// The steering services that the present drain is for; none: it is an operator's, and what an operator has ordered, only an operator
/// takes back.
#[derive(Debug, Default)]
pub(super) struct Drained(Mutex<BTreeSet<String>>);

impl Drained {
    /// These services ask for a drain, and no others.
    fn order(&self, phase: &PhaseCell, services: &BTreeSet<String>) {
        let mut before = self.0.lock();
        if services.is_empty() {
            let theirs = !std::mem::take(&mut *before).is_empty();
            if theirs && phase.now() == Phase::Drained {
                phase.undrain();
                tracing::info!("the drain is taken back: no steering service asks for it any more");
            }
        } else if phase.now() == Phase::Serving {
            before.clone_from(services);
            phase.enter(Phase::Drained);
            let services = Vec::from_iter(services.iter().map(String::as_str)).join(" ");
            tracing::info!(
                %services,
                "drained, since steering asks for it: viewers are to be sent elsewhere; those that come are served"
            );
        } else if !before.is_empty() {
            before.clone_from(services);
        }
    }

    /// An operator has ordered the same, or otherwise.
    pub(super) fn is_the_operators(&self) {
        self.0.lock().clear();
    }

    /// Names of the services that it is for; none: it is an operator's.
    pub(super) fn services(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }
}

impl Subject for Told {
    fn phase(&self) -> Phase {
        self.phase.now()
    }

    fn condition(&self) -> (Health, Load) {
        (self.health.health_now(), self.health.snapshot().load.clone())
    }

    fn manifest(&self) -> Option<ManifestProgress> {
        let far = self.nightly.progress().how_far()?;
        Some(ManifestProgress {
            sequence: far.sequence,
            assets: far.assets.1,
            assets_held: far.assets.0,
            bytes: far.bytes.1,
            bytes_held: far.bytes.0,
        })
    }

    fn drain(&self, services: &BTreeSet<String>) {
        self.drained.order(&self.phase, services);
    }
}

/// The addresses that viewers may connect to.
pub(super) fn listeners(http: &[SocketAddr], https: &[SocketAddr]) -> Vec<Listener> {
    let of = |scheme, addresses: &[SocketAddr]| -> Vec<Listener> {
        addresses.iter().map(|address| Listener { scheme, address: *address }).collect()
    };
    [of("http", http), of("https", https)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(services: &[&str]) -> BTreeSet<String> {
        services.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn an_operators_drain_is_not_taken_back_by_a_service() {
        let (phase, drained) = (PhaseCell::default(), Drained::default());
        phase.enter(Phase::Serving);
        let drain = |services: &[&str]| drained.order(&phase, &these(services));
        drain(&["a"]);
        assert_eq!((phase.now(), drained.services()), (Phase::Drained, vec!["a".into()]));
        drain(&["a", "b"]);
        assert_eq!(drained.services(), ["a", "b"]);
        drain(&["b"]);
        assert_eq!((phase.now(), drained.services()), (Phase::Drained, vec!["b".into()]));
        drain(&[]);
        assert_eq!(phase.now(), Phase::Serving);
        drain(&["a"]);
        drained.is_the_operators();
        drain(&["a", "b"]);
        assert_eq!(drained.services(), [""; 0], "it is the operator's, whoever else wants it");
        drain(&[]);
        assert_eq!(phase.now(), Phase::Drained);
    }

    #[test]
    fn a_service_that_goes_on_asking_has_its_drain_whatever_an_operator_took_back() {
        let (phase, drained) = (PhaseCell::default(), Drained::default());
        phase.enter(Phase::Serving);
        drained.order(&phase, &these(&["a"]));
        assert_eq!(phase.undrain(), Phase::Serving);
        drained.order(&phase, &these(&["a"]));
        assert_eq!(phase.now(), Phase::Drained, "it asks again");
        drained.order(&phase, &these(&[]));
        assert_eq!(phase.now(), Phase::Serving);
        // One that asked while an operator's drain was in force has its own afterwards.
        phase.enter(Phase::Drained);
        drained.order(&phase, &these(&["a"]));
        assert_eq!(phase.undrain(), Phase::Serving);
        drained.order(&phase, &these(&["a"]));
        assert_eq!(phase.now(), Phase::Drained);
    }
}
