//! `oca check-config`: every fault of a configuration at once.

use std::{
    io::{Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
};

use crate::{asset::ByteCount, config::Config};

/// What `oca check-config` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    file: PathBuf,
}

/// Exit code 0 and a summary, or every fault and exit code 2.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match Config::load(&arguments.file) {
        Ok(config) => {
            let capacity = config.storage.volumes.iter().map(|volume| volume.capacity.0).sum();
            let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
            writeln!(
                stdout(),
                "{}: good. {}, {} of {}, {}",
                arguments.file.display(),
                count(config.serve.http.len() + config.serve.https.len(), "listener"),
                count(config.storage.volumes.len(), "volume"),
                ByteCount(capacity),
                count(config.fill.sources.len(), "source"),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            writeln!(stderr(), "{faults}")?;
            Ok(ExitCode::from(super::FAULTY))
        }
    }
}
