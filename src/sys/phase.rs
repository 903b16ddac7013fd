//! The phases of an appliance's life, and how everyone hears of a change.

use std::sync::Arc;

use tokio::sync::watch;

/// What the appliance is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening volumes; nothing is served yet.
    Starting,
    /// Serving.
    Serving,
    /// Finishing what is begun, taking nothing new.
    Draining,
}

impl Phase {
    /// Label in metrics, logs and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// The present phase, shared. Phases go forward only.
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

    /// Enters a phase and tells everyone.
    pub fn enter(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// A watch on the phase.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// Resolves when draining begins.
pub async fn draining(watch: &mut watch::Receiver<Phase>) {
    // An error means that nobody can change the phase any more: the appliance is going down.
    drop(watch.wait_for(|phase| *phase == Phase::Draining).await);
}
