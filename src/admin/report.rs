//! `GET /v1/report`: the report that steering services get, for those that poll.

use axum::{
    extract::{RawQuery, State},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};

use super::{Refused, Why, routes::Shared};
use crate::net::gzip;

/// What a poller has and wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportWanted {
    /// Whether everything that is held is to be told.
    pub full: bool,
    /// Boot that the revisions below are of.
    pub boot_id: Option<String>,
    /// Revision of the holdings that it has.
    pub since: Option<u64>,
    /// Revision of the networks of clients that it has.
    pub clients: Option<u64>,
}

impl ReportWanted {
    /// Reads `availability=full`, or `boot_id=ID&since=REVISION&clients=REVISION`.
    ///
    /// # Errors
    /// What is not understood.
    fn parse(query: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let revision = |text: &str| text.parse().map_err(|_| format!("'{pair}': a revision is a number"));
            match pair.split_once('=') {
                Some(("availability", "full")) => wanted.full = true,
                Some(("boot_id", id)) => wanted.boot_id = Some(id.into()),
                Some(("since", text)) => wanted.since = Some(revision(text)?),
                Some(("clients", text)) => wanted.clients = Some(revision(text)?),
                _ => return Err(format!("'{pair}' is none of availability=full, boot_id, since, clients")),
            }
        }
        if wanted.boot_id.is_none() && (wanted.since.is_some() || wanted.clients.is_some()) {
            return Err("revisions are of one boot: say which by boot_id".into());
        }
        Ok(wanted)
    }
}

pub(super) async fn report(State(subject): Shared, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let wanted = match ReportWanted::parse(query.as_deref().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(words) => return Refused::new(Why::Faulty, "malformed", words).into_response(),
    };
    let wants_gzip = gzip::is_accepted(&headers);
    let make = move || {
        let body = subject.report(&wanted);
        (wants_gzip.then(|| gzip::compressed(&body)).flatten(), body)
    };
    let fields = [(CONTENT_TYPE, "application/json"), (VARY, "accept-encoding")];
    match tokio::task::spawn_blocking(make).await {
        Ok((Some(small), _)) => (fields, [(CONTENT_ENCODING, "gzip")], small).into_response(),
        Ok((None, body)) => (fields, body).into_response(),
        Err(err) => {
            tracing::error!(error = %err, "making a report panicked");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_poller_wants_is_read_or_refused() {
        let wanted = |full, boot_id: Option<&str>, since, clients| {
            Ok(ReportWanted { full, boot_id: boot_id.map(Into::into), since, clients })
        };
        assert_eq!(ReportWanted::parse(""), wanted(false, None, None, None));
        assert_eq!(ReportWanted::parse("availability=full"), wanted(true, None, None, None));
        assert_eq!(ReportWanted::parse("boot_id=ab&since=7&clients=1"), wanted(false, Some("ab"), Some(7), Some(1)));
        for bad in ["since=7", "boot_id=ab&since=x", "availability=some", "full", "clients=1"] {
            assert!(ReportWanted::parse(bad).is_err(), "{bad}");
        }
    }
}
