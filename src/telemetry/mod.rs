//! What is seen of the appliance: counters, the access log, messages.
//!
//! counters (written by everyone, without a lock) -> metrics (read at scrape) ; access_log: lines of each worker -> writer thread
//!
//! Nothing here can slow a worker: counters are cells of its own, a log line that finds its ring full is dropped and counted.

pub mod access_log;
mod config;
mod counters;
pub mod logging;
mod manifests;
pub mod metrics;
mod sent_away;
mod steering;
mod table;
#[cfg(test)]
mod tests;
mod totals;

pub use config::{AccessConfig, AccessFormat, Config, LogFormat};
pub use totals::{Pressure, Totals};
