//! See `config.rs`.

mod config;
pub use config::{AccessConfig, AccessFormat, Config, LogFormat};
