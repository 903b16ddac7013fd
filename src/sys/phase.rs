//! The phases of an appliance's life, and how everyone hears of a change.

use std::sync::Arc;

use tokio::sync::watch;

/// What the appliance is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Opening volumes; nothing is served yet.
    Starting,
    /// Serving.
    Serving,
    /// Serving, but an operator wants viewers to be sent elsewhere.
    Drained,
    /// Serving still, so that viewers can be sent elsewhere before it stops.
    Leaving,
    /// Finishing what is begun, taking nothing new.
    Stopping,
}

impl Phase {
    /// Label in metrics, logs and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Drained | Self::Leaving => "draining",
            Self::Stopping => "stopping",
        }
    }

    /// Whether viewers should be sent elsewhere, whatever is still served.
    pub fn is_draining(self) -> bool {
        self >= Self::Drained
    }
}

/// The present phase, shared. Phases go forward only, but for an operator who takes a drain back.
#[derive(Clone, Debug)]
pub struct PhaseCell(Arc<watch::Sender<Phase>>);

impl Default for PhaseCell {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Starting)))
    }
}

impl PhaseCell {
    /// The present phase.
    pub fn now(&self) -> Phase {
        *self.0.borrow()
    }

    /// Enters a later phase and tells everyone. Gives the one that it is in then.
    pub fn enter(&self, phase: Phase) -> Phase {
        self.0.send_if_modified(|now| {
            let later = *now < phase;
            *now = phase.max(*now);
            later
        });
        self.now()
    }

    /// Takes a drain back. Gives the phase that it is in then: one that is about to stop stops.
    pub fn undrain(&self) -> Phase {
        self.0.send_if_modified(|now| {
            let drained = *now == Phase::Drained;
            if drained {
                *now = Phase::Serving;
            }
            drained
        });
        self.now()
    }

    /// A watch on the phase.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// Resolves when nothing new is taken any more.
pub async fn stopping(watch: &mut watch::Receiver<Phase>) {
    // An error means that nobody can change the phase any more: the appliance is going down.
    drop(watch.wait_for(|phase| *phase == Phase::Stopping).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drain_is_taken_back() {
        let cell = PhaseCell::default();
        assert_eq!(cell.undrain(), Phase::Starting);
        assert_eq!(cell.enter(Phase::Serving), Phase::Serving);
        assert_eq!(cell.enter(Phase::Drained), Phase::Drained);
        assert_eq!(cell.enter(Phase::Serving), Phase::Drained, "not by the way");
        assert_eq!(cell.undrain(), Phase::Serving);
        assert_eq!(cell.enter(Phase::Leaving), Phase::Leaving);
        assert_eq!(cell.enter(Phase::Drained), Phase::Leaving);
        assert_eq!(cell.undrain(), Phase::Leaving);
        assert_eq!(cell.enter(Phase::Stopping), Phase::Stopping);
        assert_eq!(cell.enter(Phase::Leaving), Phase::Stopping);
    }

    #[test]
    fn who_drains_is_seen_to() {
        use Phase::{Drained, Leaving, Serving, Starting, Stopping};
        assert_eq!(
            [Starting, Serving, Drained, Leaving, Stopping].map(Phase::is_draining),
            [false, false, true, true, true]
        );
    }
}
