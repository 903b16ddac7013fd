//! `oca`, an Open Connect appliance: the map of the crate, in the order in which a byte passes through it.
//!
//! ```text
//! origin, tier, peers ──▶ fill ──▶ storage ──▶ catalog ──▶ serve ──▶ players
//!                                     │            ▲
//!                                     └─ residency ┘        admin ──▶ operators
//! ```
//!
//! Imports go down only, never sideways (`tests/architecture.rs`):
//!
//! ```text
//! main > cli > appliance > config > {serve fill admin} > catalog > storage > {net telemetry} > sys > asset
//! ```

pub mod admin;
pub mod appliance;
pub mod asset;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod fill;
pub mod net;
pub mod serve;
pub mod storage;
pub mod sys;
pub mod telemetry;
