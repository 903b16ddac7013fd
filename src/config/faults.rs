//! What is wrong with a configuration, each fault where it stands.

use std::{fmt, ops::Range, path::Path, sync::Arc};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceSpan};

/// Everything that is wrong with a configuration file.
#[derive(Debug)]
pub struct ConfigFaults(Vec<Fault>);

/// One thing that is wrong.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
struct Fault {
    message: String,
    #[help]
    help: Option<String>,
    #[source_code]
    source_code: NamedSource<Arc<String>>,
    #[label]
    span: Option<SourceSpan>,
}

/// Gathers faults while a file is read.
#[derive(Debug)]
pub(super) struct Gathering {
    name: String,
    text: Arc<String>,
    faults: Vec<Fault>,
}

impl Gathering {
    pub(super) fn new(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: Arc::new(text.into()), faults: Vec::new() }
    }

    /// Notes a fault. Without a place, it is one of the file as a whole.
    pub(super) fn add(&mut self, span: Option<Range<usize>>, message: impl Into<String>, help: impl Into<String>) {
        let help = help.into();
        let source_code = NamedSource::new(&self.name, Arc::clone(&self.text));
        let mut message = message.into();
        if span.is_none() {
            message = format!("{}: {message}", self.name);
        }
        let help = (!help.is_empty()).then_some(help);
        self.faults.push(Fault { message, help, source_code, span: span.map(Into::into) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// The faults in the order of the file.
    pub(super) fn finish(mut self) -> ConfigFaults {
        self.faults.sort_by_key(|fault| fault.span.map_or(usize::MAX, |span| span.offset()));
        ConfigFaults(self.faults)
    }
}

impl ConfigFaults {
    /// A file that cannot be read at all.
    pub(super) fn unreadable(path: &Path, err: &std::io::Error) -> Self {
        let mut gathering = Gathering::new(&path.display().to_string(), "");
        gathering.add(None, format!("cannot be read: {err}"), "name a file that exists and that this user may read");
        gathering.finish()
    }

    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(120);
        for fault in &self.0 {
            let mut text = String::new();
            handler.render_report(&mut text, fault)?;
            writeln!(f, "{}\n", text.trim_end())?;
        }
        let count = self.0.len();
        write!(f, "{count} fault{} in the configuration", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for ConfigFaults {}
