//! The machine below: time, phases of a life, cores, the ring to the kernel.

pub mod clock;
pub mod uring;

pub use clock::Clock;
