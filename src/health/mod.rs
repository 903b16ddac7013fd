//! How the appliance is, and how much more it can take: one answer for `/ready`, `/status`, metrics, logs and the steering service.
//!
//! what is measured -> [`Inputs`] -> [`judge`] (what was said before counts: hysteresis) -> [`Health`]: a state, and why
//!                  -> [`Load`] -> [`headroom`]: what more viewers may be sent, and what ends first
//!
//! Never serves, never writes: what an answer leads to is decided where it is read.

mod config;
mod inputs;
mod judge;
mod load;
mod machine;
mod meters;
mod queue;
#[cfg(test)]
mod ramp_tests;
mod skew;
mod state;
mod watch;
mod window;

pub use config::Config;
pub use inputs::{Certificate, Descriptors, Fill, Inputs, Manifest, Memory, Overload, Served, Source, Volume};
pub use judge::judge;
pub use load::{
    Averages, Capacity, CapacitySource, Connections, Cpu, DiskLoad, Egress, Headroom, InterfaceLoad, Limit, Load,
    Meter, Yields, headroom,
};
pub use queue::QueueDelay;
pub use state::{Code, Health, Reason, State};
pub use watch::{Limits, Snapshot, Watch, Watched};
