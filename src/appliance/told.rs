//! What steering services are told of the appliance, and may ask of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

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

/// Whether the present drain is one that a steering service has asked for: what an operator has ordered, only an operator takes back.
#[derive(Debug, Default)]
pub(super) struct Drained(AtomicBool);

impl Drained {
    /// A service asks for a drain, or for its end.
    fn order(&self, phase: &PhaseCell, drain: bool) {
        if !drain {
            if self.0.swap(false, Ordering::AcqRel) {
                phase.undrain();
            }
        } else if phase.now() == Phase::Serving {
            self.0.store(true, Ordering::Release);
            phase.enter(Phase::Drained);
            tracing::info!(
                "drained, since steering asks for it: viewers are to be sent elsewhere; those that come are served"
            );
        }
    }

    /// An operator has ordered the same, or otherwise.
    pub(super) fn is_the_operators(&self) {
        self.0.store(false, Ordering::Release);
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

    fn drain(&self, drain: bool) {
        self.drained.order(&self.phase, drain);
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

    #[test]
    fn an_operators_drain_is_not_taken_back_by_a_service() {
        let (phase, drained) = (PhaseCell::default(), Drained::default());
        phase.enter(Phase::Serving);
        let drain = |drain| drained.order(&phase, drain);
        drain(true);
        assert_eq!(phase.now(), Phase::Drained);
        drain(false);
        assert_eq!(phase.now(), Phase::Serving);
        drain(true);
        drained.is_the_operators();
        drain(false);
        assert_eq!(phase.now(), Phase::Drained);
    }

    #[test]
    fn a_service_that_goes_on_asking_has_its_drain_whatever_an_operator_took_back() {
        let (phase, drained) = (PhaseCell::default(), Drained::default());
        phase.enter(Phase::Serving);
        drained.order(&phase, true);
        assert_eq!(phase.undrain(), Phase::Serving);
        drained.order(&phase, true);
        assert_eq!(phase.now(), Phase::Drained, "it asks again");
        drained.order(&phase, false);
        assert_eq!(phase.now(), Phase::Serving);
        // One that asked while an operator's drain was in force has its own afterwards.
        phase.enter(Phase::Drained);
        drained.order(&phase, true);
        assert_eq!(phase.undrain(), Phase::Serving);
        drained.order(&phase, true);
        assert_eq!(phase.now(), Phase::Drained);
    }
}
