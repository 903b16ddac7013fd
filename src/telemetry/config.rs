//! What the operator decides about logs.

use std::path::PathBuf;

use crate::sys::sandbox::Reach;

/// Logs and the access log.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which messages are shown, as `tracing-subscriber` filters have it: `info`, `oca::fill=debug,warn`.
    pub filter: String,
    /// How messages are written to standard error.
    pub format: LogFormat,
    /// One line per response.
    pub access: AccessConfig,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The access log.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessConfig {
    /// The file; `None` turns the access log off.
    pub path: Option<PathBuf>,
    /// How lines are written.
    pub format: AccessFormat,
    /// Lines that may wait for the writer, per worker; further ones are dropped and counted.
    pub queue_max: usize,
}

/// How lines of the access log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// One JSON object a line.
    Json,
    /// NCSA combined log format.
    Combined,
}

impl Config {
    /// The files that are used after the start: the access log, which is opened anew when it was rotated.
    pub fn reach(&self, reach: &mut Reach) {
        if let Some(path) = &self.access.path {
            reach.write_file(path);
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            format: LogFormat::Text,
            access: AccessConfig { path: None, format: AccessFormat::Json, queue_max: 8192 },
        }
    }
}
