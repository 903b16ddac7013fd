//! `oca`, an Open Connect appliance: the map of the crate, in the order in which a byte passes through it.
//!
//! ```text
//! origin, tier, peers ──▶ fill ──▶ storage ──▶ catalog ──▶ serve ──▶ players
//!                                     │            ▲
//! control plane ──▶ control ─┘        └─ residency ┘  health ──▶ admin ──▶ operators
//!                                                        └────▶ steering ──▶ steering services
//! ```
//!
//! Imports go down only, never sideways (`tests/architecture.rs`):
//!
//! ```text
//! main > cli > appliance > config > {serve fill steering admin} > {health control} > catalog > storage > {net telemetry} > sys > asset
//! ```

pub mod admin;
pub mod appliance;
pub mod asset;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod control;
pub mod fill;
pub mod health;
pub mod net;
pub mod serve;
pub mod steering;
pub mod storage;
pub mod sys;
pub mod telemetry;
