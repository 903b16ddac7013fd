//! One request and its response, from the first byte of the one to the end of the other: counted and logged when it ends,
//! however it ends.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{
    HeaderMap, HeaderName, Request, StatusCode, Version,
    header::{RANGE, REFERER, USER_AGENT},
};

use super::{
    body::BodyError,
    connection::{Connection, Doing},
};
use crate::telemetry::{
    access_log::{Record, Ring},
    metrics::CacheOutcome,
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
    bytes: u64,
    log: Option<Box<Logged>>,
}

/// What only the access log wants to know.
#[derive(Debug)]
struct Logged {
    ring: Arc<Ring>,
    request_id: u64,
    method: Box<str>,
    target: Box<str>,
    version: Version,
    range: Option<Box<str>>,
    user_agent: Option<Box<str>>,
    referer: Option<Box<str>>,
}

/// In the access log in place of a status, where the client left before the response had one; nginx' word for it.
const CLIENT_LEFT: u16 = 499;
/// Longest target, range, user agent or referer in the log, in bytes.
const LOGGED_MAX: usize = 512;

impl Exchange {
    /// Begins with a request's head.
    pub(super) fn begin<B>(connection: Rc<Connection>, request: &Request<B>, ring: Option<(Arc<Ring>, u64)>) -> Self {
        let log = ring.map(|(ring, request_id)| {
            let headers = request.headers();
            let target = request.uri().path_and_query().map_or("", |target| target.as_str());
            Box::new(Logged {
                ring,
                request_id,
                method: request.method().as_str().into(),
                target: cut(target),
                version: request.version(),
                range: field(headers, &RANGE),
                user_agent: field(headers, &USER_AGENT),
                referer: field(headers, &REFERER),
            })
        });
        connection.begin(Doing::Responding);
        Self {
            connection,
            begun: Instant::now(),
            status: None,
            outcome: CacheOutcome::None,
            first_byte: Duration::ZERO,
            bytes: 0,
            log,
        }
    }

    /// The response's head is made.
    pub(super) fn head(&mut self, status: StatusCode, outcome: CacheOutcome) {
        self.status = Some(status);
        self.outcome = outcome;
        self.first_byte = self.begun.elapsed();
        self.connection.metrics.record_response(status.as_u16(), outcome, self.first_byte);
    }

    /// Bytes of the body are handed out.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// The body breaks off.
    pub(super) fn failed(&mut self, err: &BodyError) {
        tracing::warn!(client = %self.connection.peer, error = %err, "response is cut");
        self.connection.metrics.cut();
    }
}

fn cut(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(LOGGED_MAX)].into()
}

fn field(headers: &HeaderMap, name: &HeaderName) -> Option<Box<str>> {
    headers.get(name).map(|value| cut(&String::from_utf8_lossy(value.as_bytes())))
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.begin(Doing::Idle);
        let status = match self.status {
            Some(status) => status.as_u16(),
            None if std::thread::panicking() => StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            None => {
                self.connection.metrics.abandoned();
                CLIENT_LEFT
            }
        };
        let Some(log) = self.log.take() else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let record = Record {
            unix_millis: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            client: self.connection.peer,
            method: log.method,
            target: log.target,
            protocol: if log.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" },
            status,
            bytes: self.bytes,
            duration_us: micros(self.begun.elapsed()),
            first_byte_us: micros(self.first_byte),
            outcome: self.outcome.label(),
            range: log.range,
            user_agent: log.user_agent,
            referer: log.referer,
            request_id: log.request_id,
        };
        log.ring.push(record);
    }
}
