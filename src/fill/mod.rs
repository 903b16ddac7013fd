//! See `config.rs`.

mod config;
pub use config::{Config, Freshness, SourceConfig, SourceKind, SourceLocation};
