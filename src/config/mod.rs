//! The configuration: from a file to values that are checked once and never again.
//!
//! file -> TOML with places -> `reader` -> `sections` (which key is which field) -> `checks` (what goes together) -> [`Config`]
//!
//! Every fault of a file is found and shown at once, with its line. An unknown key is a fault. Each module owns the meaning and
//! the defaults of its part; `config/appliance.toml` is the reference for people.

mod checks;
mod effects;
mod faults;
mod manifests;
mod nightly;
mod operators;
mod reader;
mod sections;
mod signing;
mod steering;
#[cfg(test)]
mod tests;
mod viewers;

use std::path::Path;

pub use checks::Machine;
pub use effects::{Changes, Settings};
pub use faults::ConfigFaults;
use faults::Gathering;
use reader::Reading;
use toml::de::DeTable;

use crate::{
    admin, catalog,
    control::{self, manifest::SourceRules},
    fill, health, serve, storage,
    sys::sandbox::{self, Reach},
    telemetry,
};

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
    /// What the control plane may tell.
    pub control: control::Config,
    /// Whom we report to.
    pub steering: crate::steering::Config,
    /// Operators.
    pub admin: admin::Config,
    /// When all is well, and when not.
    pub health: health::Config,
    /// Logs.
    pub telemetry: telemetry::Config,
    /// This process.
    pub process: sandbox::Config,
    /// What this machine has too little of, what gave way for that, and what to do about it.
    pub shortages: Vec<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigFaults> {
        Self::load_on(path, Machine::here())
    }

    /// As [`Config::load`], with what each key came to: to be compared with the file as it is later.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load_with_settings(path: &Path) -> Result<(Self, Settings), ConfigFaults> {
        let text = std::fs::read_to_string(path).map_err(|err| ConfigFaults::unreadable(path, &err))?;
        Self::parse_with_settings(&path.display().to_string(), &text, Machine::here())
    }

    /// As [`Config::load`], checked against `machine`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load_on(path: &Path, machine: Machine) -> Result<Self, ConfigFaults> {
        let text = std::fs::read_to_string(path).map_err(|err| ConfigFaults::unreadable(path, &err))?;
        Self::parse(&path.display().to_string(), &text, machine)
    }

    /// Reads and checks a text. `name` stands in the faults.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(name: &str, text: &str, machine: Machine) -> Result<Self, ConfigFaults> {
        Self::parse_with_settings(name, text, machine).map(|(config, _)| config)
    }

    fn parse_with_settings(name: &str, text: &str, machine: Machine) -> Result<(Self, Settings), ConfigFaults> {
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
        let settings = Settings::new(reading.values());
        let faults = reading.faults.into_inner();
        if faults.is_empty() { Ok((config, settings)) } else { Err(faults.finish()) }
    }

    /// Where a manifest may have assets fetched from: from the sources, by name or below their addresses, and below `control.source_urls`.
    pub fn source_rules(&self) -> SourceRules {
        let bases = self.fill.sources.iter().chain(&self.fill.by_manifest).filter_map(fill::SourceConfig::base);
        SourceRules {
            names: Some(self.fill.sources.iter().map(|source| source.name.clone()).collect()),
            below: Some(bases.cloned().collect()),
        }
    }

    /// The files that are used after the start. Folders of volumes are made where they are missing.
    pub fn reach(&self) -> Reach {
        let mut reach = Reach::default();
        self.serve.reach(&mut reach);
        self.storage.reach(&mut reach);
        self.fill.reach(&mut reach);
        self.control.reach(&mut reach);
        self.steering.reach(&mut reach);
        self.admin.reach(&mut reach);
        self.telemetry.reach(&mut reach);
        reach
    }
}
