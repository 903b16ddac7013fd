//! See `config.rs`.

mod config;
pub mod metrics;
pub use config::{AccessConfig, AccessFormat, Config, LogFormat};
