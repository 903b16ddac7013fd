//! What a steering service answers to a report.

use std::time::Duration;

use serde::Deserialize;

use super::{Config, VERSION};

/// A reply that was understood. Whatever is left out changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    /// Revision of the holdings that the service has.
    pub(super) availability: Option<u64>,
    /// Revision of the networks of clients that it has.
    pub(super) clients: Option<u64>,
    /// Whether it wants to be told everything that is held.
    pub(super) wants_full: bool,
    /// From one report to the next.
    pub(super) interval: Option<Duration>,
    /// Whether viewers should be sent elsewhere.
    pub(super) drain: Option<bool>,
}

#[derive(Deserialize)]
struct Raw {
    version: u32,
    acknowledged: Option<Acknowledged>,
    full: Option<bool>,
    interval_ms: Option<u64>,
    drain: Option<bool>,
}

#[derive(Default, Deserialize)]
struct Acknowledged {
    availability: Option<u64>,
    clients: Option<u64>,
}

impl Reply {
    /// Reads a body; one without a byte says nothing.
    ///
    /// # Errors
    /// In words, where it is no reply.
    pub(super) fn read(body: &[u8], config: &Config) -> Result<Self, String> {
        if body.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|err| format!("the reply cannot be read: {err}"))?;
        if raw.version != VERSION {
            return Err(format!("the reply is of version {}, not {VERSION}", raw.version));
        }
        let acknowledged = raw.acknowledged.unwrap_or_default();
        let within = |asked| Duration::from_millis(asked).clamp(config.interval_min, config.interval_max);
        Ok(Self {
            availability: acknowledged.availability,
            clients: acknowledged.clients,
            wants_full: raw.full.unwrap_or(false),
            interval: raw.interval_ms.map(within),
            drain: raw.drain,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_changes_nothing_and_what_is_said_stays_within_bounds() {
        let read = |text: &str| Reply::read(text.as_bytes(), &Config::default());
        assert_eq!(read(""), Ok(Reply::default()));
        assert_eq!(read("{\"version\": 1, \"of_later_times\": []}"), Ok(Reply::default()));
        let all = "{\"version\":1,\"acknowledged\":{\"availability\":7,\"clients\":2},\"full\":true,\"interval_ms\":2000,\"drain\":false}";
        let expected = Reply {
            availability: Some(7),
            clients: Some(2),
            wants_full: true,
            interval: Some(Duration::from_secs(2)),
            drain: Some(false),
        };
        assert_eq!(read(all), Ok(expected));
        for (asked, within) in [(0, 1), (u64::MAX, 60)] {
            let reply = read(&format!("{{\"version\":1,\"interval_ms\":{asked}}}")).expect("a reply");
            assert_eq!(reply.interval, Some(Duration::from_secs(within)));
        }
        for bad in
            ["{}", "[]", "no", "{\"version\":2}", "{\"version\":1,\"full\":3}", "{\"version\":1,\"interval_ms\":-1}"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
