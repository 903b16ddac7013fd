//! What the control plane tells this appliance: the signed manifest of what it is to hold.
//!
//! pull or push -> state (on disk) -> trust: keys, signatures -> expand -> json -> manifest::parse -> judge -> in_force
//!                                                                                             `-> kept until its time comes
//!
//! A manifest that is refused changes nothing; the last good one stays in force. Never asks a source for an asset, never talks to a
//! viewer, and nothing that is held is served less for want of a control plane.

mod base64url;
mod config;
mod expand;
mod in_force;
mod json;
mod judge;
mod keys;
pub mod manifest;
mod pointer;
pub mod pull;
mod reception;
mod refusal;
mod signatures;
mod state;
#[cfg(test)]
mod state_tests;
mod status;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod time_tests;
mod trust;

pub use config::{Config, Limits};
pub use in_force::{Accepted, InForce};
pub use judge::{Highest, Identity, judge};
pub use keys::{Hasher, KeysError, SigningKey, TrustedKeys};
pub use pointer::Pointer;
pub use pull::Publication;
pub use reception::{Control, Receipt, Standing, StartError, digest_of};
pub use refusal::{Place, Reason, Refused};
pub use signatures::{SIGNATURES_SIZE_MAX, Signatures};
pub use state::{Arrived, Incoming, Waiting};
pub use status::status;
