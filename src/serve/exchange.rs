//! One request and its response, from the first byte of the one to the end of the other: counted and logged when it ends,
//! however it ends.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderName, HeaderValue, Request, StatusCode, Version,
    header::{RANGE, REFERER, USER_AGENT},
};

use super::{
    body::BodyError,
    connection::Connection,
    http1::head::{Head, Once},
    signing::package::redacted,
};
use crate::{
    sys::clock::coarse_unix_millis,
    telemetry::{
        access_log::{Lines, Record, Words},
        metrics::{CacheOutcome, ClientDenial, Denial, Shed},
    },
};

/// An exchange under way. Dropped with the response's body, it counts and logs.
#[derive(Debug)]
pub(super) struct Exchange {
    connection: Rc<Connection>,
    begun: Instant,
    /// Of the response, once its head is made.
    status: Option<StatusCode>,
    outcome: CacheOutcome,
    first_byte: Duration,
    /// How long all of it took, where that is known before the end.
    took: Option<Duration>,
    bytes: u64,
    /// Whether the client waits for us, rather than we for it.
    our_turn: bool,
    /// Whether it pays as a hit, besides what its bytes do.
    pays: bool,
    log: Option<Logged>,
}

/// What only the access log wants to know.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) lines: Arc<Lines>,
    pub(super) request_id: u64,
    pub(super) version: Version,
    /// Why it was refused.
    pub(super) denied: Option<&'static str>,
    pub(super) words: Words,
}

/// In the access log in place of a status, where the client left before the response had one; nginx' word for it.
const CLIENT_LEFT: u16 = 499;
impl Exchange {
    /// Begins with a request's head.
    pub(super) fn begin(connection: Rc<Connection>, log: Option<Logged>) -> Self {
        Self::begin_at(Instant::now(), connection, log)
    }

    /// As `begin`, for a request that came in at `begun`.
    pub(super) fn begin_at(begun: Instant, connection: Rc<Connection>, log: Option<Logged>) -> Self {
        connection.begin_exchange();
        // It was ready before that, and waited for its turn.
        let begun = begun.checked_sub(connection.late()).unwrap_or(begun);
        Self {
            connection,
            begun,
            status: None,
            outcome: CacheOutcome::None,
            first_byte: Duration::ZERO,
            took: None,
            bytes: 0,
            our_turn: true,
            pays: true,
            log,
        }
    }

    /// It is answered by several parts, each of which may be a byte and cost as much as a response: they pay by their bytes alone.
    pub(super) fn in_parts(&mut self) {
        self.pays = false;
    }

    /// The response's head is made.
    pub(super) fn head(&mut self, status: StatusCode, outcome: CacheOutcome) {
        self.set_our_turn(false);
        self.status = Some(status);
        self.outcome = outcome;
        self.first_byte = self.begun.elapsed();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            self.connection.got_what_it_asked();
        }
        // What there is not pays for nothing.
        self.pays &= outcome == CacheOutcome::Hit && !status.is_client_error();
        // Where streams have windows, nor does one that is asked for and never taken.
        if self.pays && (!self.connection.is_multiplexed() || status == StatusCode::NOT_MODIFIED) {
            self.connection.pay_hit(1);
        }
        self.connection.metrics.record_response(status.as_u16(), outcome, self.first_byte);
    }

    /// The request is refused; its number, by which the reason is found in the log, where there is one.
    pub(super) fn denied(&mut self, why: Denial) -> Option<u64> {
        self.connection.metrics.denied(why);
        let log = self.log.as_mut()?;
        log.denied = Some(why.label());
        Some(log.request_id)
    }

    /// The request is refused for what its client has asked for before.
    pub(super) fn throttled(&mut self) {
        let why = ClientDenial::Requests;
        self.connection.metrics.client_denied(why);
        if let Some(log) = &mut self.log {
            log.denied = Some(why.label());
        }
    }

    /// The request is refused, since there is more to do than the worker can.
    pub(super) fn shed(&mut self, whose: Shed) {
        self.connection.metrics.shed(whose);
        if let Some(log) = &mut self.log {
            log.denied = Some("overload");
        }
    }

    /// As `head`, of a response that has been handed on at the same time, and with `gone` to its end: one look at the clock for all, the end of the turn too.
    pub(super) fn head_sent(&mut self, status: StatusCode, outcome: CacheOutcome, gone: bool) {
        self.head(status, outcome);
        let now = self.begun + self.first_byte;
        if gone {
            self.connection.look_last(now);
            self.took = Some(self.first_byte);
        } else {
            self.connection.look(now);
        }
    }

    /// Whether the client waits for us, rather than we for it.
    pub(super) fn set_our_turn(&mut self, ours: bool) {
        if self.our_turn != ours {
            self.our_turn = ours;
            self.connection.turn(ours);
        }
    }

    /// Bytes of the body are handed out.
    pub(super) fn sent(&mut self, bytes: u64) {
        if self.bytes == 0 && self.pays {
            self.connection.owe_hit();
        }
        self.bytes += bytes;
    }

    /// The body breaks off.
    pub(super) fn failed(&mut self, err: &BodyError) {
        tracing::warn!(client = %self.connection.peer, error = %err, "response is cut");
        self.connection.metrics.cut();
    }
}

/// What the log wants to know of a request.
///
/// `signed`: whether targets may carry what lets others in, which is left out.
pub(super) fn words_of<B>(request: &Request<B>, signed: bool) -> Words {
    let field = |name: &HeaderName| request.headers().get(name).map(HeaderValue::as_bytes);
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    words(signed, (request.method().as_str(), target), [field(&RANGE), field(&USER_AGENT), field(&REFERER)])
}

/// As [`words_of`], of a head that is not taken apart further.
pub(super) fn words_of_head(head: &Head<'_>, signed: bool) -> Words {
    let fields = &head.fields;
    let range = if let Once::One(range) = fields.range { Some(range) } else { None };
    words(signed, (head.method, head.target), [range, fields.user_agent, fields.referer])
}

fn words(signed: bool, (method, target): (&str, &str), fields: [Option<&[u8]>; 3]) -> Words {
    if !signed {
        return Words::new((method, target), fields);
    }
    let [range, agent, referer] = fields;
    let referer = referer.map(String::from_utf8_lossy);
    let referer = referer.as_ref().map(|referer| redacted(referer));
    Words::new((method, &redacted(target)), [range, agent, referer.as_ref().map(|referer| referer.as_bytes())])
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.set_our_turn(false);
        self.connection.end_exchange();
        let status = match self.status {
            Some(status) => status.as_u16(),
            None if std::thread::panicking() => StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            None => {
                self.connection.metrics.abandoned();
                CLIENT_LEFT
            }
        };
        let Some(log) = self.log.take() else { return };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let record = Record {
            unix_millis: coarse_unix_millis(),
            client: self.connection.peer,
            words: log.words,
            protocol: match log.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            status,
            bytes: self.bytes,
            duration_us: micros(self.took.unwrap_or_else(|| self.begun.elapsed())),
            first_byte_us: micros(self.first_byte),
            outcome: self.outcome.label(),
            denied: log.denied,
            request_id: log.request_id,
        };
        log.lines.push(&record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    /// Whether a response pays as a hit: a connection that has cost all of its credit is one that is served again.
    fn pays(status: StatusCode, outcome: CacheOutcome, in_parts: bool) -> bool {
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let connection = Connection::new((peer, 1, None), None, Metrics::new(1).worker(0), Rc::default());
        connection.add_sent(1 << 20);
        connection.account.take(0, 500_000, 20_000);
        connection.account.take(0, 500_001, 20_000);
        assert!(!connection.account.is_served());
        let mut exchange = Exchange::begin(Rc::clone(&connection), None);
        if in_parts {
            exchange.in_parts();
        }
        exchange.head(status, outcome);
        drop(exchange);
        connection.account.take(0, 0, 20_000);
        connection.account.is_served()
    }

    #[test]
    fn hits_pay_and_what_there_is_not_or_comes_in_parts_does_not() {
        assert!(pays(StatusCode::OK, CacheOutcome::Hit, false));
        assert!(pays(StatusCode::PARTIAL_CONTENT, CacheOutcome::Hit, false));
        assert!(pays(StatusCode::NOT_MODIFIED, CacheOutcome::Hit, false));
        assert!(!pays(StatusCode::PARTIAL_CONTENT, CacheOutcome::Hit, true));
        assert!(!pays(StatusCode::RANGE_NOT_SATISFIABLE, CacheOutcome::Hit, false));
        assert!(!pays(StatusCode::OK, CacheOutcome::Miss, false));
    }
}
