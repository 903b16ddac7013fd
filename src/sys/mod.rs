//! The machine below: time, phases of a life, cores and who gives way on them, what the kernel knows of a socket and of a disk, files that change, the ring to the kernel, and
//! what this process may still do.

pub mod affinity;
pub mod clock;
pub mod descriptors;
pub mod disk_queue;
pub mod kernel_tls;
pub mod phase;
pub mod priority;
mod regular;
pub mod sandbox;
pub mod socket;
pub mod stamp;
pub mod uring;

pub use clock::Clock;
pub use phase::{Phase, PhaseCell};
pub use regular::open_regular;
pub use stamp::{Stamp, Watch, stamp};
