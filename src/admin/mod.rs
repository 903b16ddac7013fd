//! See `config.rs`.

mod config;
pub use config::Config;
