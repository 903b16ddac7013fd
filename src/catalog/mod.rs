//! See `config.rs`.

mod config;
pub use config::{Admission, Config};
