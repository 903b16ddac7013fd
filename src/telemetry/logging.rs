//! Messages for people and machines, on standard error.

use std::{io::IsTerminal as _, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use super::{Config, LogFormat};

/// These warn of every client that does something wrong, so that a scanner or a flood would fill the log: shown where the filter names them.
const OF_CLIENTS: &str = "rustls=error,h2=error";

/// Why messages cannot be shown as configured.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("log.filter '{0}' is no filter: {1}")]
    Filter(String, tracing_subscriber::filter::ParseError),
    /// Messages go somewhere already.
    #[error("messages are already being shown")]
    Twice,
}

/// Checks a filter as `tracing-subscriber` writes them.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|err| err.to_string())
}

/// As the operator has it; who names what is kept quiet otherwise gets it.
fn filter(wanted: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let wanted = EnvFilter::try_new(wanted)?.to_string();
    EnvFilter::try_new(format!("{OF_CLIENTS},{wanted}"))
}

/// What is shown, to be changed while messages are.
static SHOWN: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Shows messages from now on; once a process.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(config: &Config) -> Result<(), LoggingError> {
    let filter = filter(&config.filter).map_err(|err| LoggingError::Filter(config.filter.clone(), err))?;
    let (filter, handle) = reload::Layer::new(filter);
    let colours = std::io::stderr().is_terminal();
    let messages = fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let shown = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Text => shown.with(messages).try_init(),
        LogFormat::Json => shown.with(messages.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| LoggingError::Twice)?;
    // Only the first gets here.
    SHOWN.get_or_init(|| handle);
    Ok(())
}

/// Shows other messages from now on, where messages are shown by [`init`].
///
/// # Errors
/// It is no filter; nothing has changed.
pub fn show(wanted: &str) -> Result<(), LoggingError> {
    let filter = filter(wanted).map_err(|err| LoggingError::Filter(wanted.into(), err))?;
    if let Some(shown) = SHOWN.get()
        && let Err(err) = shown.reload(filter)
    {
        tracing::error!(error = %err, "other messages cannot be shown");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_before_it_is_used() {
        for filter in ["info", "warn,oca::fill=debug", "oca[span{field=1}]=trace", ""] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for filter in ["oca=loud", "oca::fill=debug=info", "oca[span"] {
            assert!(check_filter(filter).is_err(), "{filter}");
            let config = Config { filter: filter.into(), ..Config::default() };
            let said = init(&config).expect_err("no filter").to_string();
            assert!(said.contains("log.filter") && said.contains(filter), "{said}");
        }
    }

    #[test]
    fn libraries_do_not_tell_of_every_client_unless_they_are_asked() {
        for (wanted, expected) in [
            ("info", ["rustls=error", "h2=error", "info"]),
            ("debug,h2=trace", ["rustls=error", "h2=trace", "debug"]),
            ("rustls=warn,warn", ["rustls=warn", "h2=error", "warn"]),
        ] {
            let filter = filter(wanted).expect("a filter").to_string();
            let parts: Vec<&str> = filter.split(',').collect();
            assert!(parts.len() == 3 && expected.iter().all(|part| parts.contains(part)), "{wanted}: {filter}");
        }
    }

    #[test]
    fn messages_are_shown_once() {
        let quiet = Config { filter: "off".into(), ..Config::default() };
        init(&quiet).expect("the first");
        assert!(matches!(init(&quiet), Err(LoggingError::Twice)));
    }
}
