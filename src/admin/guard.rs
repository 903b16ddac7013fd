//! Who may ask the admin listener for what: one layer over all routes, present and future.
//!
//! connection (address, certificate) + request (token, host, origin) -> [`judge`] -> [`Caller`], or a [`Refusal`]
//!
//! - Where credentials are configured, everything takes one: a good token, or a certificate of the authorities. `/live` and `/ready`
//!   are answered without one, by a status alone, unless `admin.probes_open` is off.
//! - Where none are, which only loopback may, everybody on this machine is an operator; but not the web pages that a browser on it
//!   shows. A request has to name an address, `localhost` or one of `admin.hosts` as its host, so that no page can have its own name
//!   lead here (DNS rebinding).
//! - What changes something (any method but GET and HEAD) is refused to pages of other sites in any case: a browser adds client
//!   certificates by itself. Each that is let through stands in the log.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
        header::{AUTHORIZATION, CONNECTION, HOST, ORIGIN, WWW_AUTHENTICATE},
        uri::Authority,
    },
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;

use super::{
    Config,
    command::error,
    tokens::{Tokens, TokensError},
};
use crate::{
    net::tls::{Operators, PairError},
    sys::{Clock, Stamp, Watch, stamp},
    telemetry::metrics::{AdminDenial, Metrics},
};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What probes may have without credentials.
const PROBES: [&str; 2] = ["/live", "/ready"];

/// Why operators cannot be told from others.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The tokens are no good.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The certificate, its key or the clients' authorities are no good.
    #[error(transparent)]
    Tls(#[from] PairError),
}

/// Who has connected.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The name in the certificate by which it has proved who it is.
    pub(super) certificate: Option<Arc<str>>,
}

/// Who asks: for routes that answer some more than others (as an extension of the request).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// An operator, and how that is known.
    Operator(KnownBy),
    /// Somebody unknown, who may see whether the appliance lives and is ready, and nothing more.
    Probe,
}

/// How an operator is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// By being on this machine.
    Loopback,
    /// By a token.
    Token,
    /// By the certificate with this name.
    Certificate(Arc<str>),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It needs a credential, and has none.
    NoCredential,
    /// Its credential is wrong.
    WrongCredential,
    /// It names a host that this listener does not go by.
    Host,
    /// A page of another site has made a browser send it.
    CrossSite,
}

/// What the files say, replaced while in use.
#[derive(Debug)]
pub struct Guard {
    config: ArcSwap<Config>,
    tokens: ArcSwapOption<Tokens>,
    tls: ArcSwapOption<Operators>,
    files: Mutex<Watch>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Second in which a wrong credential was last told to the log.
    told: AtomicU64,
}

impl Guard {
    /// Reads the files that `config` names. Blocks.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn start(config: &Config, metrics: &Arc<Metrics>, clock: &Clock) -> Result<Arc<Self>, GuardError> {
        // Stamped before they are read: what changes in between is found to have changed.
        let files = Mutex::new(Watch::new(stamps(config)));
        let (tokens, tls) = load(config, clock)?;
        warn_of_plain_tokens(config);
        let guard = Self {
            config: ArcSwap::from_pointee(config.clone()),
            tokens: ArcSwapOption::from_pointee(tokens),
            tls: ArcSwapOption::from_pointee(tls),
            files,
            metrics: Arc::clone(metrics),
            clock: clock.clone(),
            told: AtomicU64::new(0),
        };
        guard.tell_expiry();
        Ok(Arc::new(guard))
    }

    /// Takes over what has changed and then stayed as it was for one look. Blocks.
    pub fn look(&self) {
        let mut files = self.files.lock();
        let config = self.config.load();
        if files.is_due(stamps(&config)) {
            self.load(&config);
        }
    }

    /// Takes over what is there. Blocks.
    pub fn reload(&self) {
        let mut files = self.files.lock();
        let config = self.config.load();
        *files = Watch::new(stamps(&config));
        self.load(&config);
    }

    /// How it is configured.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Reads the files of another configuration, to be taken over as a whole. Blocks.
    ///
    /// # Errors
    /// See [`GuardError`]; nothing has changed.
    pub fn prepare(&self, config: &Config) -> Result<Prepared, GuardError> {
        let stamps = stamps(config);
        let (tokens, tls) = load(config, &self.clock)?;
        Ok(Prepared { config: config.clone(), stamps, tokens, tls })
    }

    /// Goes by another configuration from the next request on; of TLS, from the next connection on.
    pub fn take_over(&self, Prepared { config, stamps, tokens, tls }: Prepared) {
        let mut files = self.files.lock();
        warn_of_plain_tokens(&config);
        if let Some(old) = &self.config.load().tls
            && config.tls.as_ref().is_none_or(|new| new.pair.certificate != old.pair.certificate)
        {
            self.metrics.forget_certificate(&old.pair.certificate.display().to_string());
        }
        *files = Watch::new(stamps);
        // Tokens before the demand for them, and after its end: in between somebody is refused rather than let in.
        if tokens.is_some() {
            self.tokens.store(tokens.map(Arc::new));
            self.config.store(Arc::new(config));
        } else {
            self.config.store(Arc::new(config));
            self.tokens.store(None);
        }
        self.tls.store(tls.map(Arc::new));
        self.tell_expiry();
    }

    /// All files or none.
    fn load(&self, config: &Config) {
        if !config.asks_for_credentials() && config.tls.is_none() {
            return;
        }
        match load(config, &self.clock) {
            Ok((tokens, tls)) => {
                tracing::info!("the admin listener's tokens and certificates were read anew");
                self.tokens.store(tokens.map(Arc::new));
                self.tls.store(tls.map(Arc::new));
                self.metrics.admin_files_reloaded.inc();
                self.tell_expiry();
            }
            Err(err) => {
                tracing::error!(error = %err, "the admin listener's changed files are refused; what is in use stays");
                self.metrics.admin_files_refused.inc();
            }
        }
    }

    fn tell_expiry(&self) {
        if let (Some(files), Some(tls)) = (&self.config.load().tls, &*self.tls.load()) {
            self.metrics.certificate(&files.pair.certificate.display().to_string()).expiry.set(tls.expiry().0);
        }
    }

    /// TLS, where operators are served by it.
    pub(super) fn tls(&self) -> Option<Arc<Operators>> {
        self.tls.load_full()
    }

    /// A handshake came to nothing.
    pub(super) fn handshake_failed(&self) {
        self.metrics.admin_denied(AdminDenial::Handshake);
    }

    fn admit(&self, peer: &Peer, request: &Request) -> Result<Caller, Refusal> {
        let tokens = self.tokens.load();
        let asked = Asked::of(request.method(), request.uri(), request.version(), request.headers());
        judge(&self.config.load(), tokens.as_deref(), peer, &asked)
    }

    /// Answers who is not let in.
    fn refuse(&self, why: Refusal, peer: &Peer, request: &Request) -> Response {
        let (status, reason, words) = match why {
            Refusal::NoCredential => {
                (StatusCode::UNAUTHORIZED, AdminDenial::Missing, "a token or a certificate is needed here")
            }
            Refusal::WrongCredential => (StatusCode::UNAUTHORIZED, AdminDenial::Wrong, "this token is not known here"),
            Refusal::Host => {
                let words = "ask by address or as localhost, or name this host in admin.hosts";
                (StatusCode::MISDIRECTED_REQUEST, AdminDenial::Host, words)
            }
            Refusal::CrossSite => {
                (StatusCode::FORBIDDEN, AdminDenial::CrossSite, "pages of other sites change nothing here")
            }
        };
        self.metrics.admin_denied(reason);
        let (client, method, path) = (peer.address, request.method(), request.uri().path());
        // Once a second at most: who guesses tokens does not fill the disk.
        let now = self.clock.unix().0;
        if why != Refusal::NoCredential && self.told.swap(now, Ordering::Relaxed) != now {
            tracing::warn!(%client, %method, ?path, reason = reason.label(), "a request to the admin listener is refused");
        } else {
            tracing::debug!(%client, %method, ?path, reason = reason.label(), "a request to the admin listener is refused");
        }
        let mut response = error(status, reason.label(), words);
        // Who is unknown does not keep a place.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = match why {
                Refusal::WrongCredential => "Bearer realm=\"oca\", error=\"invalid_token\"",
                _ => "Bearer realm=\"oca\"",
            };
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            if super::page::is_wanted(request.headers()) {
                // Has a browser ask for it.
                let challenge =
                    HeaderValue::from_static("Basic realm=\"oca: a token as the password\", charset=\"UTF-8\"");
                response.headers_mut().append(WWW_AUTHENTICATE, challenge);
            }
        }
        response
    }
}

/// Another configuration, with what its files say.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    stamps: Vec<Stamp>,
    tokens: Option<Tokens>,
    tls: Option<Operators>,
}

fn warn_of_plain_tokens(config: &Config) {
    if config.token_file.is_some() && config.tls.is_none() && !config.is_loopback() {
        tracing::warn!(
            "operators' tokens cross the network unencrypted; give admin.listen a certificate ([admin.tls])"
        );
    }
}

type Loaded = (Option<Tokens>, Option<Operators>);

/// Reads what a configuration names. Blocks.
///
/// # Errors
/// The first thing that is wrong.
fn load(config: &Config, clock: &Clock) -> Result<Loaded, GuardError> {
    let tokens = config.token_file.as_deref().map(Tokens::load).transpose()?;
    let demand = config.client_certificate();
    let tls = config.tls.as_ref().map(|files| Operators::load(files, demand, clock.unix())).transpose()?;
    Ok((tokens, tls))
}

fn stamps(config: &Config) -> Vec<Stamp> {
    let tls = config.tls.iter().flat_map(|files| {
        [Some(&files.pair.certificate), Some(&files.pair.key), files.client_ca.as_ref()].into_iter().flatten()
    });
    config.token_file.iter().chain(tls).map(|path| stamp(path)).collect()
}

/// The layer itself.
pub(super) async fn layer(
    State((guard, peer)): State<(Arc<Guard>, Peer)>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match guard.admit(&peer, &request) {
        Ok(caller) => caller,
        Err(why) => return guard.refuse(why, &peer, &request),
    };
    if is_safe(request.method()) {
        request.extensions_mut().insert(caller);
        return next.run(request).await;
    }
    // Before it is carried out: it may be even where its sender does not wait for the answer.
    let (method, path) = (request.method(), request.uri().path());
    tracing::info!(client = %peer.address, by = ?caller, %method, ?path, "an operator's order");
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Whether a method changes nothing (RFC 9110, 9.2.1), of those that are spoken here.
fn is_safe(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// What of a request decides.
#[derive(Debug)]
struct Asked<'r> {
    is_safe: bool,
    is_probe: bool,
    host: Named<'r>,
    /// `Some(None)`: there is one, and it is none.
    token: Option<Option<Cow<'r, [u8]>>>,
    origin: Option<&'r [u8]>,
    site: Option<&'r [u8]>,
}

/// What host a request names.
#[derive(Debug, PartialEq)]
enum Named<'r> {
    /// HTTP/1.0 need not; browsers always do.
    None,
    Host(&'r [u8]),
    /// None where one is due, or several.
    Unclear,
}

impl<'r> Asked<'r> {
    fn of(method: &Method, uri: &'r Uri, version: Version, headers: &'r HeaderMap) -> Self {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (uri.authority(), hosts.next(), hosts.next()) {
            (_, Some(_), Some(_)) => Named::Unclear,
            (Some(authority), ..) => Named::Host(authority.as_str().as_bytes()),
            (None, Some(host), None) => Named::Host(host.as_bytes()),
            (None, None, _) if version == Version::HTTP_10 => Named::None,
            (None, None, _) => Named::Unclear,
        };
        let mut credentials = headers.get_all(AUTHORIZATION).iter();
        let token = match (credentials.next(), credentials.next()) {
            (None, _) => None,
            (Some(_), Some(_)) => Some(None),
            (Some(one), None) => Some(token_of(one.as_bytes())),
        };
        Self {
            is_safe: is_safe(method),
            is_probe: is_safe(method) && PROBES.contains(&uri.path()),
            host,
            token,
            // The last one is as good as the first: a browser sends one.
            origin: headers.get(ORIGIN).map(HeaderValue::as_bytes),
            site: headers.get(FETCH_SITE).map(HeaderValue::as_bytes),
        }
    }

    /// Whether a page of another site may have made a browser send it. Browsers say so in both fields; who sends neither is none.
    fn is_cross_site(&self) -> bool {
        if self.site.is_some_and(|site| site != b"same-origin" && site != b"none") {
            return true;
        }
        let Some(origin) = self.origin else { return false };
        let authority = origin.splitn(2, |byte| *byte == b':').nth(1).and_then(|rest| rest.strip_prefix(b"//"));
        !matches!((authority, &self.host), (Some(of), Named::Host(host)) if of.eq_ignore_ascii_case(host))
    }
}

/// Of RFC 6750 (2.1); or of RFC 7617 (2), the password, whoever the user is: a browser that is asked for a token knows no other way to
/// send one.
fn token_of(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Cow::Borrowed(rest));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut decoded = STANDARD.decode(rest).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(Cow::Owned(decoded.split_off(colon + 1)))
}

/// Decides. `tokens` are there where a token is a credential.
fn judge(config: &Config, tokens: Option<&Tokens>, peer: &Peer, asked: &Asked<'_>) -> Result<Caller, Refusal> {
    let wrong = match (&asked.token, tokens) {
        (Some(token), Some(tokens)) => !token.as_ref().is_some_and(|token| tokens.knows(token)),
        _ => false,
    };
    let known = match (&peer.certificate, &asked.token, tokens) {
        // A wrong token is an error even for who has a certificate.
        _ if wrong => None,
        (Some(name), ..) => Some(KnownBy::Certificate(Arc::clone(name))),
        (None, Some(_), Some(_)) => Some(KnownBy::Token),
        _ if config.asks_for_credentials() => None,
        _ if may_be_asked_as(config, &asked.host) => Some(KnownBy::Loopback),
        _ => None,
    };
    let Some(known) = known else {
        return match () {
            () if asked.is_probe && config.probes_open => Ok(Caller::Probe),
            () if wrong => Err(Refusal::WrongCredential),
            () if config.asks_for_credentials() => Err(Refusal::NoCredential),
            () => Err(Refusal::Host),
        };
    };
    if !asked.is_safe && asked.is_cross_site() {
        return Err(Refusal::CrossSite);
    }
    Ok(Caller::Operator(known))
}

/// Whether a host is one that no foreign page can have: an address, `localhost`, or what the operator has named.
fn may_be_asked_as(config: &Config, named: &Named<'_>) -> bool {
    let host = match named {
        Named::None => return true,
        Named::Unclear => return false,
        Named::Host(host) => host,
    };
    let Ok(authority) = Authority::try_from(*host) else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || config.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
