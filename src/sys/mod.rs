//! The machine below: time, phases of a life, cores, what the kernel knows of a socket, and the ring to the kernel.

pub mod affinity;
pub mod clock;
pub mod kernel_tls;
pub mod phase;
pub mod socket;
pub mod uring;

pub use clock::Clock;
pub use phase::{Phase, PhaseCell};
