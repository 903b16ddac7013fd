//! One worker's answer to "may this request have that asset?".

use std::{cell::RefCell, hash::BuildHasher, net::IpAddr, rc::Rc, sync::Arc};

use arc_swap::Guard;
use http::HeaderValue;

use super::{
    Generation, Policy, Signing,
    container::normalized,
    package::{ATTRIBUTE, Credential, Presented, in_cookies},
    token::{self, Verified},
};
use crate::{
    asset::UnixTime,
    telemetry::metrics::{Denial, WorkerMetrics},
};

/// Cookies with a token that are tried: a browser sends one for each path that it knows one for.
const COOKIES_MAX: usize = 4;

/// The gate of one worker.
#[derive(Debug)]
pub(in crate::serve) struct Gate {
    signing: Arc<Signing>,
    /// One place for each hash, the later token takes it.
    known: RefCell<Box<[Option<Rc<Known>>]>>,
    /// Seeded by the system, so that nobody can choose tokens that share a place.
    hasher: foldhash::fast::RandomState,
    metrics: Arc<WorkerMetrics>,
}

#[derive(Debug)]
struct Known {
    token: Box<str>,
    generation: u64,
    verified: Verified,
}

/// Who asks, and for what.
#[derive(Clone, Copy, Debug)]
pub(in crate::serve) struct Asking<'r> {
    pub(in crate::serve) credential: &'r Credential<'r>,
    /// The `Cookie` field.
    pub(in crate::serve) cookies: Option<&'r [u8]>,
    /// Path and query as they stand on the wire, without the credential.
    pub(in crate::serve) target: &'r str,
    /// The asset's path: decoded, without its leading slash.
    pub(in crate::serve) path: &'r str,
    pub(in crate::serve) authority: &'r str,
    /// Whether it came by TLS.
    pub(in crate::serve) secure: bool,
    pub(in crate::serve) client: IpAddr,
    pub(in crate::serve) now: UnixTime,
}

/// A request that may go on.
#[derive(Debug, Default)]
pub(in crate::serve) struct Grant {
    /// A renewed token for the client.
    pub(in crate::serve) set_cookie: Option<HeaderValue>,
}

/// How far a request has come.
enum Weighed {
    /// Nothing more is to be done.
    Free,
    /// A token allows it.
    By(Rc<Known>, Carrier),
    /// Its token would have to be verified.
    Unverified,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Uri,
    Cookie,
}

/// What may be done to find out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// Only what is known.
    Recall,
    /// Signatures.
    Verify,
}

impl Gate {
    pub(in crate::serve) fn new(signing: &Arc<Signing>, metrics: &Arc<WorkerMetrics>) -> Self {
        let places = vec![None; signing.config.verified_max].into_boxed_slice();
        Self {
            signing: Arc::clone(signing),
            known: RefCell::new(places),
            hasher: foldhash::fast::RandomState::default(),
            metrics: Arc::clone(metrics),
        }
    }

    /// Takes what a target presents off it.
    ///
    /// # Errors
    /// It presents more than one thing.
    pub(in crate::serve) fn presented<'t>(&self, target: &'t str) -> Result<Presented<'t>, Denial> {
        Presented::of(target, self.signing.config.key_sets.iter().any(|set| set.form == super::Form::Hmac))
    }

    /// Whether a request may go on, as far as that is known and nothing is to be noted or renewed for it.
    pub(in crate::serve) fn admits_now(&self, asking: &Asking<'_>) -> bool {
        match self.weigh(asking, Effort::Recall) {
            Ok(Weighed::Free) => true,
            Ok(Weighed::By(known, carrier)) => {
                known.verified.nonce.is_none() && !is_to_be_renewed(&known.verified, carrier, asking.now)
            }
            Ok(Weighed::Unverified) | Err(_) => false,
        }
    }

    /// Whether a request may go on, and what its client is to be given.
    ///
    /// # Errors
    /// Why not.
    pub(in crate::serve) fn admit(&self, asking: &Asking<'_>) -> Result<Grant, Denial> {
        let Weighed::By(known, carrier) = self.weigh(asking, Effort::Verify)? else { return Ok(Grant::default()) };
        let verified = &known.verified;
        if let (Some(nonce), Some(expiry)) = (&verified.nonce, verified.expiry()) {
            let last = UnixTime(expiry.0.saturating_add(self.signing.config.leeway.as_secs()));
            self.signing.nonces.spend(nonce, asking.path, last, asking.now)?;
        }
        let renewed = is_to_be_renewed(verified, carrier, asking.now);
        Ok(Grant { set_cookie: renewed.then(|| self.renewed(verified, asking)).flatten() })
    }

    fn weigh(&self, asking: &Asking<'_>, effort: Effort) -> Result<Weighed, Denial> {
        let policy = self.signing.config.policy(asking.path);
        if policy == Policy::Off {
            return Ok(Weighed::Free);
        }
        let keys = self.signing.keys.load();
        match asking.credential {
            Credential::Token(token) => match self.by_token(token, asking, &keys, effort) {
                // A player asks again by the URI it was given; what it was given since is in its cookies.
                Err(Denial::Expired) => match self.by_cookies(asking, &keys, effort) {
                    Some(Ok(weighed)) => Ok(weighed),
                    Some(Err(_)) | None => Err(Denial::Expired),
                },
                Ok(None) => Ok(Weighed::Unverified),
                Ok(Some(known)) => Ok(Weighed::By(known, Carrier::Uri)),
                Err(why) => Err(why),
            },
            Credential::Plain(plain) => {
                let path = asking.target.split('?').next().unwrap_or(asking.target);
                let signed = if self.signing.query_in_key { asking.target } else { path };
                let leeway = self.signing.config.leeway.as_secs();
                plain.allows(&keys.keys, signed, (asking.now, leeway), asking.client).map(|()| Weighed::Free)
            }
            Credential::None => match (self.by_cookies(asking, &keys, effort), policy) {
                (Some(Ok(weighed)), _) => Ok(weighed),
                // A cookie is sent with all that its path covers, also where nothing is asked for.
                (_, Policy::Optional) => Ok(Weighed::Free),
                (Some(Err(why)), _) => Err(why),
                (None, _) => Err(Denial::Missing),
            },
        }
    }

    /// The first token of the cookies that allows it, or why the last one does not.
    fn by_cookies(&self, asking: &Asking<'_>, keys: &Generation, effort: Effort) -> Option<Result<Weighed, Denial>> {
        let mut last = None;
        for token in in_cookies(asking.cookies?, COOKIES_MAX) {
            match self.by_token(token, asking, keys, effort) {
                Ok(Some(known)) => return Some(Ok(Weighed::By(known, Carrier::Cookie))),
                Ok(None) => return Some(Ok(Weighed::Unverified)),
                Err(why) => last = Some(Err(why)),
            }
        }
        last
    }

    /// `None`: it would have to be verified.
    fn by_token(
        &self,
        token: &str,
        asking: &Asking<'_>,
        keys: &Generation,
        effort: Effort,
    ) -> Result<Option<Rc<Known>>, Denial> {
        let config = &self.signing.config;
        if token.len() as u64 > config.token_size_max.0 {
            return Err(Denial::TooLong);
        }
        let mut places = self.known.borrow_mut();
        let count = u64::try_from(places.len()).unwrap_or(u64::MAX).max(1);
        let place = usize::try_from(self.hasher.hash_one(token) % count).unwrap_or(0);
        let found = places.get(place).and_then(Option::as_ref);
        let known = match found.filter(|known| *known.token == *token && known.generation == keys.number) {
            Some(known) => Rc::clone(known),
            None if effort == Effort::Recall => return Ok(None),
            None => {
                self.metrics.verification();
                let verified = token::verify(token, &keys.keys, config)?;
                let known = Rc::new(Known { token: token.into(), generation: keys.number, verified });
                if let Some(place) = places.get_mut(place) {
                    *place = Some(Rc::clone(&known));
                }
                known
            }
        };
        drop(places);
        let uri = normalized(asking.secure, asking.authority, asking.target);
        known.verified.allows(asking.now, config.leeway.as_secs_f64(), &uri, asking.client)?;
        Ok(Some(known))
    }

    /// The next token, as a cookie (RFC 9246, 3.3).
    fn renewed(&self, verified: &Verified, asking: &Asking<'_>) -> Option<HeaderValue> {
        let renewal = verified.renewal.as_ref()?;
        let path = asking.target.split('?').next()?.strip_prefix('/')?;
        let mut segments = path.split('/');
        let covered: Vec<&str> = segments.by_ref().take(renewal.depth).collect();
        // RFC 9246, 2.1.14: nothing is generated for a path that is not as deep. A semicolon would end the attribute.
        if covered.len() < renewal.depth || covered.iter().any(|segment| segment.contains(';')) {
            return None;
        }
        let config = &self.signing.config;
        let keys: Guard<Arc<Generation>> = self.signing.keys.load();
        let key = keys.keys.key(&config.renewal_key, super::Form::UriSigning)?;
        let token = renewal.next(asking.now, key, &config.issuer)?;
        let (path, seconds) = (covered.join("/"), renewal.seconds);
        // Players on pages of other sites send it only if told to, and over TLS.
        let cross_site = if asking.secure { "; Secure; SameSite=None" } else { "" };
        HeaderValue::try_from(format!("{ATTRIBUTE}={token}; Path=/{path}; Max-Age={seconds}; HttpOnly{cross_site}"))
            .ok()
    }
}

/// A client that has no cookie yet gets one; one that has gets the next in the second half of its life.
fn is_to_be_renewed(verified: &Verified, carrier: Carrier, now: UnixTime) -> bool {
    verified.renewal.is_some() && (carrier == Carrier::Uri || verified.is_aging(now))
}
