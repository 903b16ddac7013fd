//! From a request to a response: what the catalog knows decides, what it lacks is demanded, what comes is sent.

use std::{borrow::Cow, cell::Cell, collections::VecDeque, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{COOKIE, HOST, IF_RANGE},
    uri::Authority,
};
use smallvec::SmallVec;
use tokio::time::timeout;

use super::{
    Clients, Config,
    body::{Body, Piece, Reader},
    conditions::{self, Precondition},
    connection::{Connection, Doing, Permit},
    exchange::{Exchange, Logged, words_of},
    hit::Recall,
    http1::head::{BadHead, Head as Asked, Once},
    manner::Manner,
    overload::{Refused, Shedding},
    ranges::{RangeOutcome, RangeSet},
    request::{self, AssetRequest, Checked, Verb, is_host},
    response::{Described, Extent, Head, Templates, part_heads},
    signing::{Asking, Gate, Grant, package::Credential},
};
use crate::{
    asset::ByteRange,
    catalog::{Asker, Catalog, Discovered, Entry, Lease, Lookup, PassThrough, Refusal, Want},
    storage::Residency,
    sys::Clock,
    telemetry::{
        access_log::{Lines, Words},
        metrics::{CacheOutcome, Denial},
    },
};

/// What a worker's handlers share.
#[derive(Debug)]
pub(super) struct Handler {
    /// Of the terms that it was made by.
    pub(super) number: u64,
    pub(super) config: Arc<Config>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) residency: Arc<Residency>,
    pub(super) templates: Templates,
    pub(super) recall: Recall,
    /// Who is refused for overload.
    pub(super) shedding: Shedding,
    /// Who is served, and how much, where that matters.
    pub(super) clients: Option<Arc<Clients>>,
    /// Where URLs are signed.
    pub(super) gate: Option<Gate>,
    pub(super) clock: Clock,
    pub(super) lines: Option<Arc<Lines>>,
    pub(super) window: u64,
    pub(super) read_ahead: u64,
    /// What this appliance is called among caches.
    pub(super) identity: Arc<str>,
    pub(super) request_ids: Rc<Cell<u64>>,
}

/// How often a request looks again after the version it had found was withdrawn under it.
const LOOKUPS_MAX: usize = 4;

/// Why ranges are answered by 416.
const NO_BYTE: &str = "no byte of the range exists";
const TOO_MANY: &str = "more ranges than this server answers in one request";

/// A response in the making: its head, and what follows it.
struct Answer {
    head: Head,
    outcome: CacheOutcome,
    rest: Rest,
}

enum Rest {
    Nothing,
    Text(&'static str),
    Asset(Reader, VecDeque<Piece>),
    Passing(PassThrough, Option<u64>),
}

/// What a request found.
enum Found {
    Entry(Arc<Entry>, CacheOutcome),
    PassThrough,
}

/// For the test that shows what a panic costs, and in builds for development only: asking for the path that `OCA_PANIC_AT` names panics.
#[cfg(debug_assertions)]
fn panic_if_told(path: &str) {
    static PATH: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    let told = PATH.get_or_init(|| std::env::var_os("OCA_PANIC_AT"));
    assert!(told.as_deref().is_none_or(|told| told != path), "told to panic");
}

/// For tests of overload, and in builds for development only: each request for the path that `OCA_BUSY_AT` names keeps the worker for 10 ms.
#[cfg(debug_assertions)]
fn be_busy_if_told(path: &str) {
    const BUSY: std::time::Duration = std::time::Duration::from_millis(10);
    static PATH: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    let told = PATH.get_or_init(|| std::env::var_os("OCA_BUSY_AT"));
    if told.as_deref().is_some_and(|told| told == path) {
        let begun = std::time::Instant::now();
        while begun.elapsed() < BUSY {
            std::thread::park_timeout(BUSY.saturating_sub(begun.elapsed()));
        }
    }
}

impl Handler {
    /// Answers one request. Never fails: whatever is wrong becomes a response, or a body that breaks off.
    pub(super) async fn handle<B>(
        self: Rc<Self>,
        connection: Rc<Connection>,
        mut request: Request<B>,
        permit: Permit,
    ) -> Response<Body> {
        let log = self.logged(request.version(), || words_of(&request, self.gate.is_some()));
        let mut exchange = Exchange::begin(Rc::clone(&connection), log);
        // From here on nobody sees what the request presented but the gate.
        let presented = self.gate.as_ref().map(|gate| taken_off(gate, &mut request));
        #[cfg(debug_assertions)]
        panic_if_told(request.uri().path());
        let headers = request.headers();
        let mut set_cookie = None;
        let checked = request::check(&request, self.config.query_in_key, self.config.ranges_max);
        let answer = match (checked, permit) {
            // What is no request is told so first: it may have to be the last of its connection.
            (Err(why), _) => text(self.templates.bad_request(why, headers), CacheOutcome::None),
            (Ok(_), Permit::Later(seconds)) => {
                exchange.throttled();
                text(self.templates.throttled(seconds, headers), CacheOutcome::None)
            }
            (Ok(_), Permit::Refused(refused)) => {
                exchange.shed(refused.why);
                text(self.templates.overloaded(refused.retry_after, headers), CacheOutcome::None)
            }
            (Ok(Checked::Asset(asked)), Permit::Granted) => {
                #[cfg(debug_assertions)]
                be_busy_if_told(request.uri().path());
                match self.admit(&asked, presented, &request, &connection) {
                    Ok(grant) => {
                        set_cookie = grant.set_cookie;
                        self.answer(&asked, headers, &connection).await
                    }
                    Err(why) => {
                        let request_id = exchange.denied(why);
                        text(self.templates.denied(why, headers, request_id), CacheOutcome::None)
                    }
                }
            }
            (Ok(Checked::Options { preflight }), Permit::Granted) => Answer {
                head: self.templates.options(preflight, headers),
                outcome: CacheOutcome::None,
                rest: Rest::Nothing,
            },
        };
        if matches!(&answer.rest, Rest::Asset(_, pieces) if pieces.len() > 1) {
            exchange.in_parts();
        }
        exchange.head(answer.head.status, answer.outcome);
        let is_head = request.method() == http::Method::HEAD;
        let body = match answer.rest {
            Rest::Nothing => Body::empty(exchange),
            Rest::Text(_) if is_head => Body::empty(exchange),
            Rest::Text(text) => Body::text(text, exchange),
            Rest::Asset(reader, pieces) => Body::asset(reader, pieces, exchange),
            Rest::Passing(pass, length) => Body::passing(pass.body, length, exchange),
        };
        let mut head = answer.head;
        if let Some(cookie) = set_cookie.filter(|_| head.is_success()) {
            head.give(cookie);
        }
        respond(head, body)
    }

    /// Whether the next request of a connection may go on, by who sends it. To be asked once for each request.
    pub(super) fn permit(&self, connection: &Connection) -> Permit {
        match connection.may_ask() {
            // Last: who asks for too much hears that rather than that there is too much to do.
            Permit::Granted => self.shedding.refuses(connection).map_or(Permit::Granted, Permit::Refused),
            permit => permit,
        }
    }

    /// Refuses a request at once, where that takes no more than its head: writes the response to `out`, up to where the connection adds its
    /// own fields.
    pub(super) fn refuse_now(&self, asked: &Asked<'_>, refused: Refused, out: &mut Vec<u8>) -> bool {
        let fields = &asked.fields;
        let plain = asked.method == "GET" && asked.version == Version::HTTP_11 && !fields.special;
        let Once::One(host) = fields.host else { return false };
        if !plain || !is_host(host) || (fields.origin && self.templates.weighs_origin()) {
            return false;
        }
        self.templates.write_overloaded(out, refused.retry_after);
        true
    }

    /// Whether a request may have what it asks for.
    fn admit<B>(
        &self,
        asked: &AssetRequest,
        presented: Option<Result<Credential<'static>, Denial>>,
        request: &Request<B>,
        connection: &Connection,
    ) -> Result<Grant, Denial> {
        let (Some(gate), Some(presented)) = (&self.gate, presented) else { return Ok(Grant::default()) };
        let (uri, headers) = (request.uri(), request.headers());
        let host = || headers.get(HOST).and_then(|host| host.to_str().ok());
        // HTTP/2 may send each cookie in a field of its own (RFC 9113, 8.2.3).
        let mut fields = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        let cookies = match (fields.next(), fields.next()) {
            (Some(first), Some(second)) => {
                let all: Vec<&[u8]> = [first, second].into_iter().chain(fields).collect();
                Some(Cow::Owned(all.join(&b"; "[..])))
            }
            (first, _) => first.map(Cow::Borrowed),
        };
        gate.admit(&Asking {
            credential: &presented?,
            cookies: cookies.as_deref(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()),
            path: asked.key.path(),
            authority: uri.authority().map(Authority::as_str).or_else(host).unwrap_or(""),
            secure: connection.secure.get(),
            client: connection.peer.ip(),
            now: self.clock.unix(),
        })
    }

    /// Answers what is no request. The connection has to end after it.
    pub(super) fn refuse_head(&self, why: BadHead, mut exchange: Exchange) -> Response<Body> {
        let (head, text) = self.templates.bad_head(why);
        exchange.head(head.status, CacheOutcome::None);
        respond(head, Body::text(text, exchange))
    }

    /// What the access log wants to know of a request, where there is one. Counts the request.
    pub(super) fn logged(&self, version: Version, words: impl FnOnce() -> Words) -> Option<Logged> {
        let request_id = self.request_ids.get();
        self.request_ids.set(request_id.wrapping_add(1));
        let lines = Arc::clone(self.lines.as_ref()?);
        Some(Logged { lines, request_id, version, denied: None, words: words() })
    }

    async fn answer(&self, asked: &AssetRequest, headers: &HeaderMap, connection: &Rc<Connection>) -> Answer {
        let mut outcome = CacheOutcome::Miss;
        let manner = match Manner::of(headers, &self.identity) {
            Ok(manner) => manner,
            Err(why) => return text(self.templates.refused(why, CacheOutcome::None, headers), CacheOutcome::None),
        };
        for _ in 0..LOOKUPS_MAX {
            let found = match self.find(asked, &manner, connection).await {
                Ok(found) => found,
                Err((Refusal::Withdrawn, _)) => continue,
                Err((refusal, outcome)) => return text(self.templates.refused(refusal, outcome, headers), outcome),
            };
            let answered = match found {
                Found::Entry(entry, how) => {
                    outcome = how;
                    self.answer_from(&entry, how, asked, (headers, &manner, connection)).await
                }
                Found::PassThrough => self.pass_through(asked, headers, (&manner, connection)).await,
            };
            match answered {
                Ok(answer) => return answer,
                // Evicted or replaced between the look and the lease: look again.
                Err(Refusal::Withdrawn) => {}
                Err(why @ Refusal::NotHeld) => {
                    return text(self.templates.refused(why, CacheOutcome::None, headers), CacheOutcome::None);
                }
                // Nothing of it can be stored just now; it can be passed on all the same.
                Err(Refusal::NoRoom) => match self.pass_through(asked, headers, (&manner, connection)).await {
                    Ok(answer) => return answer,
                    Err(refusal) => return text(self.templates.refused(refusal, outcome, headers), outcome),
                },
                Err(refusal) => return text(self.templates.refused(refusal, outcome, headers), outcome),
            }
        }
        text(self.templates.refused(Refusal::Busy, outcome, headers), outcome)
    }

    async fn find(
        &self,
        asked: &AssetRequest,
        manner: &Manner,
        connection: &Connection,
    ) -> Result<Found, (Refusal, CacheOutcome)> {
        let asker = manner.asker.clone();
        match self.catalog.lookup(&asked.key) {
            Lookup::Hit(entry) => Ok(Found::Entry(entry, CacheOutcome::Hit)),
            _ if manner.only_held => Err((Refusal::NotHeld, CacheOutcome::None)),
            Lookup::Negative(refusal) => Err((refusal, CacheOutcome::Negative)),
            Lookup::Stale(entry) => {
                let stale_may_do = self.catalog.may_serve_stale(&entry);
                let revalidated = self.wait(connection, self.catalog.revalidate_for(&entry, asker));
                let revalidated = if stale_may_do {
                    // A player does not wait for an origin that hangs when there is something to play.
                    let answer = timeout(self.config.revalidate_timeout, revalidated).await;
                    connection.begin(Doing::Responding);
                    answer.unwrap_or(Err(Refusal::SourceTimedOut))
                } else {
                    revalidated.await
                };
                match revalidated {
                    Ok(now) if Arc::ptr_eq(&now, &entry) => Ok(Found::Entry(now, CacheOutcome::Revalidated)),
                    Ok(now) => Ok(Found::Entry(now, CacheOutcome::Miss)),
                    Err(refusal) if refusal.is_answer() || entry.is_withdrawn() => Err((refusal, CacheOutcome::Miss)),
                    Err(_) if stale_may_do => Ok(Found::Entry(entry, CacheOutcome::Stale)),
                    Err(refusal) => Err((refusal, CacheOutcome::Miss)),
                }
            }
            Lookup::Miss => {
                let discovered = self.catalog.discover_for(&asked.key, asked.want(), asker);
                match self.wait(connection, discovered).await {
                    Ok(Discovered::Entry(entry)) => Ok(Found::Entry(entry, CacheOutcome::Miss)),
                    Ok(Discovered::PassThrough) => Ok(Found::PassThrough),
                    Err(refusal) => Err((refusal, CacheOutcome::Miss)),
                }
            }
        }
    }

    /// Waits for a source, no longer than is allowed. A client that goes away meanwhile is let go.
    async fn wait<T>(
        &self,
        connection: &Connection,
        answer: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        connection.begin(Doing::Waiting);
        let answer = timeout(self.config.miss_timeout, answer).await;
        connection.begin(Doing::Responding);
        answer.unwrap_or(Err(Refusal::SourceTimedOut))
    }

    async fn answer_from(
        &self,
        entry: &Arc<Entry>,
        mut outcome: CacheOutcome,
        asked: &AssetRequest,
        (headers, manner, connection): (&HeaderMap, &Manner, &Rc<Connection>),
    ) -> Result<Answer, Refusal> {
        let meta = entry.meta();
        let age = (outcome != CacheOutcome::Miss).then(|| entry.age(self.clock.unix()));
        let described = Described { meta, path: asked.key.path(), age };
        match conditions::evaluate(headers, &meta.validators) {
            Precondition::Holds => {}
            Precondition::NotModified => {
                return Ok(Answer {
                    head: self.templates.not_modified(outcome, headers, &described),
                    outcome,
                    rest: Rest::Nothing,
                });
            }
            Precondition::Failed => return Ok(text(self.templates.precondition_failed(outcome, headers), outcome)),
        }
        let ranges = asked.ranges.as_ref().filter(|_| conditions::range_counts(headers, &meta.validators));
        let mut parts: SmallVec<[ByteRange; 4]> =
            match ranges.map_or(RangeOutcome::Whole, |set| set.resolve(meta.length)) {
                RangeOutcome::Unsatisfiable => {
                    let made = self.templates.unsatisfiable(outcome, headers, Some(meta.length), NO_BYTE);
                    return Ok(text(made, outcome));
                }
                RangeOutcome::TooMany => {
                    let made = self.templates.unsatisfiable(outcome, headers, Some(meta.length), TOO_MANY);
                    return Ok(text(made, outcome));
                }
                RangeOutcome::Whole => SmallVec::new(),
                RangeOutcome::Part(part) => SmallVec::from_slice(&[part]),
                RangeOutcome::Parts(parts) => parts,
            };
        let whole = parts.is_empty();
        parts.extend(ByteRange::new(0, meta.length).filter(|_| whole));
        if parts.is_empty() || asked.verb != Verb::Get {
            // HEAD, or an asset without a byte.
            let head = self.templates.asset(outcome, headers, &described, &Extent::Whole);
            return Ok(Answer { head, outcome, rest: Rest::Nothing });
        }
        if manner.only_held {
            held_of(entry, &mut parts, whole)?;
        }
        let Some(first) = parts.first().copied() else { return Err(Refusal::NotHeld) };
        if entry.available(first.start()) == 0 {
            self.await_first_byte(entry, first, &manner.asker, connection).await?;
            if outcome == CacheOutcome::Hit {
                outcome = CacheOutcome::Partial;
            }
        }
        let reader = Reader {
            catalog: Arc::clone(&self.catalog),
            lease: self.lease(entry).await?,
            residency: Arc::clone(&self.residency),
            window: self.window,
            handout: self.window.min(connection.handout_max()),
            read_ahead: if manner.only_held { 0 } else { self.read_ahead },
            asker: manner.asker.clone(),
            patience: self.config.miss_timeout,
        };
        let (head, pieces) = match parts.as_slice() {
            [_] if whole => (self.templates.asset(outcome, headers, &described, &Extent::Whole), one(first)),
            [part] => (self.templates.asset(outcome, headers, &described, &Extent::Part(*part)), one(first)),
            parts => self.multipart(outcome, headers, &described, parts),
        };
        Ok(Answer { head, outcome, rest: Rest::Asset(reader, pieces) })
    }

    /// Waits for the first byte of a part before the head is sent, so that a source that fails is a status and not a cut.
    async fn await_first_byte(
        &self,
        entry: &Arc<Entry>,
        part: ByteRange,
        asker: &Asker,
        connection: &Connection,
    ) -> Result<(), Refusal> {
        let end = part.start().saturating_add(self.read_ahead).min(part.end());
        if let Some(ahead) = ByteRange::new(part.start(), end) {
            entry.demand_for(ahead, asker)?;
        }
        self.wait(connection, entry.grown(part.start())).await.map(drop)
    }

    async fn lease(&self, entry: &Arc<Entry>) -> Result<Lease, Refusal> {
        match entry.lease_now() {
            Some(lease) => Ok(lease),
            None => entry.lease().await.map_err(|err| {
                tracing::debug!(asset = %entry.key(), error = %err, "no lease");
                if entry.is_withdrawn() { Refusal::Withdrawn } else { Refusal::Busy }
            }),
        }
    }

    fn multipart(
        &self,
        outcome: CacheOutcome,
        headers: &HeaderMap,
        described: &Described<'_>,
        parts: &[ByteRange],
    ) -> (Head, VecDeque<Piece>) {
        // Bytes that also stand in the asset would end a part early: the boundary has to be one that nobody can foresee.
        let boundary = format!("{:032x}", self.boundary_seed());
        let (heads, end) = part_heads(&described.content_type(), parts, described.meta.length, &boundary);
        let mut pieces = VecDeque::with_capacity(2 * parts.len() + 1);
        for (head, part) in heads.into_iter().zip(parts) {
            pieces.push_back(Piece::Text(Bytes::from(head)));
            pieces.push_back(Piece::Part(*part));
        }
        pieces.push_back(Piece::Text(Bytes::from(end)));
        let body_length = pieces.iter().map(Piece::len).sum();
        let extent = Extent::Parts { boundary: &boundary, body_length };
        (self.templates.asset(outcome, headers, described, &extent), pieces)
    }

    fn boundary_seed(&self) -> u128 {
        use std::hash::{BuildHasher, RandomState};
        // Each state is seeded by the system; two give the 128 bits.
        let random = || u128::from(RandomState::new().hash_one(self.request_ids.get()));
        random() << 64 | random()
    }

    async fn pass_through(
        &self,
        asked: &AssetRequest,
        headers: &HeaderMap,
        (manner, connection): (&Manner, &Connection),
    ) -> Result<Answer, Refusal> {
        // Several ranges, and ranges that count only for a version we cannot know, are answered with the whole.
        let ranges = asked.ranges.as_ref().filter(|_| !headers.contains_key(IF_RANGE));
        let (one_range, too_many) = (ranges.is_some_and(is_one), ranges.is_some_and(RangeSet::is_too_many));
        let whole = Want::Range { start: 0, end: None };
        let want = if one_range || too_many || asked.verb == Verb::Head { asked.want() } else { whole };
        let passed = self.catalog.pass_through_for(&asked.key, want, manner.asker.clone());
        let pass = self.wait(connection, passed).await?;
        let head = &pass.head;
        let described = Described { meta: &head.meta, path: asked.key.path(), age: None };
        match conditions::evaluate(headers, &head.meta.validators) {
            Precondition::Holds => {}
            Precondition::NotModified => {
                let head = self.templates.not_modified(CacheOutcome::Pass, headers, &described);
                return Ok(Answer { head, outcome: CacheOutcome::Pass, rest: Rest::Nothing });
            }
            Precondition::Failed => {
                return Ok(text(self.templates.precondition_failed(CacheOutcome::Pass, headers), CacheOutcome::Pass));
            }
        }
        if head.unsatisfiable || too_many {
            let why = if too_many { TOO_MANY } else { NO_BYTE };
            let made = self.templates.unsatisfiable(CacheOutcome::Pass, headers, head.length, why);
            return Ok(text(made, CacheOutcome::Pass));
        }
        if asked.verb == Verb::Head {
            let made = self.templates.passed(headers, &described, None, head.length);
            return Ok(Answer { head: made, outcome: CacheOutcome::Pass, rest: Rest::Nothing });
        }
        // What the source sends is what the client gets: a part only where the client's own range came back.
        let part = head.part.zip(head.length).filter(|_| one_range);
        if head.part.is_some() && part.is_none() {
            return Err(Refusal::SourceFailed);
        }
        let length = part.map_or(head.length, |(part, _)| Some(part.len()));
        let made = self.templates.passed(headers, &described, part, length);
        Ok(Answer { head: made, outcome: CacheOutcome::Pass, rest: Rest::Passing(pass, length) })
    }
}

/// Takes what a request presents off its target.
fn taken_off<B>(gate: &Gate, request: &mut Request<B>) -> Result<Credential<'static>, Denial> {
    let Some(target) = request.uri().path_and_query().cloned() else { return Ok(Credential::None) };
    let presented = gate.presented(target.as_str())?;
    if let Cow::Owned(rest) = &presented.target {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(rest.parse().map_err(|_| Denial::Malformed)?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Denial::Malformed)?;
    }
    Ok(presented.credential.into_owned())
}

fn respond(head: Head, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// Cuts what is asked for to what is held of it: a part may be shorter than it was asked for (RFC 9110, 15.3.7), the whole may not.
fn held_of(entry: &Entry, parts: &mut SmallVec<[ByteRange; 4]>, whole: bool) -> Result<(), Refusal> {
    let is_held = |part: &ByteRange| entry.available(part.start()) >= part.len();
    if parts.iter().all(is_held) {
        return Ok(());
    }
    let [part] = parts.as_mut_slice() else { return Err(Refusal::NotHeld) };
    let here = entry.available(part.start()).min(part.len());
    *part = ByteRange::new(part.start(), part.start() + here).filter(|_| !whole).ok_or(Refusal::NotHeld)?;
    Ok(())
}

fn is_one(set: &RangeSet) -> bool {
    set.specs().len() == 1
}

fn one(part: ByteRange) -> VecDeque<Piece> {
    VecDeque::from([Piece::Part(part)])
}

fn text((head, text): (Head, &'static str), outcome: CacheOutcome) -> Answer {
    debug_assert_ne!(head.status, StatusCode::NO_CONTENT);
    Answer { head, outcome, rest: Rest::Text(text) }
}
