//! The configuration: from a file to values that are checked once and never again.
//!
//! file -> TOML with places -> `reader` -> `sections` (which key is which field) -> `checks` (what goes together) -> [`Config`]
//!
//! Every fault of a file is found and shown at once, with its line. An unknown key is a fault. Each module owns the meaning and
//! the defaults of its part; `config/appliance.toml` is the reference for people.

mod checks;
mod faults;
mod reader;
mod sections;
mod signing;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use checks::Machine;
pub use faults::ConfigFaults;
use faults::Gathering;
use reader::Reading;
use toml::de::DeTable;

use crate::{admin, catalog, fill, serve, storage, telemetry};

/// Everything an operator decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Viewers.
    pub serve: serve::Config,
    /// Disks.
    pub storage: storage::Config,
    /// What is kept.
    pub catalog: catalog::Config,
    /// Where it comes from.
    pub fill: fill::Config,
    /// Operators.
    pub admin: admin::Config,
    /// Logs.
    pub telemetry: telemetry::Config,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigFaults> {
        let text = std::fs::read_to_string(path).map_err(|err| ConfigFaults::unreadable(path, &err))?;
        Self::parse(&path.display().to_string(), &text, Machine::here())
    }

    /// Reads and checks a text. `name` stands in the faults.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(name: &str, text: &str, machine: Machine) -> Result<Self, ConfigFaults> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut faults = Gathering::new(name, text);
        for err in &errors {
            faults.add(err.span(), err.message(), "");
        }
        if !errors.is_empty() {
            // What stands in a broken file is guesswork; its other faults would be too.
            return Err(faults.finish());
        }
        let reading = Reading::new(faults);
        let mut config = Self::default();
        sections::read(reading.root(table.get_ref()), &mut config);
        checks::check(&mut config, &reading, machine);
        let faults = reading.faults.into_inner();
        if faults.is_empty() { Ok(config) } else { Err(faults.finish()) }
    }
}
