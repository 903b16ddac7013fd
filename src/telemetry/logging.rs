//! Messages for people and machines, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use super::{Config, LogFormat};

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

/// Shows messages from now on; once a process.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(config: &Config) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|err| LoggingError::Filter(config.filter.clone(), err))?;
    let colours = std::io::stderr().is_terminal();
    let messages = fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => messages.try_init(),
        LogFormat::Json => messages.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LoggingError::Twice)
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
    fn messages_are_shown_once() {
        let quiet = Config { filter: "off".into(), ..Config::default() };
        init(&quiet).expect("the first");
        assert!(matches!(init(&quiet), Err(LoggingError::Twice)));
    }
}
