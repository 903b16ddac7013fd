//! The certificates in use, and which of them a client is shown.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::Pair;
use crate::asset::UnixTime;

/// The certificates in use. Replacing one touches no connection that exists.
#[derive(Debug)]
pub struct Certificates(ArcSwap<Vec<Arc<Pair>>>);

impl Certificates {
    /// `pairs`, of which the first is for clients that name no host, or one that no certificate is for.
    pub fn new(pairs: Vec<Pair>) -> Self {
        Self(ArcSwap::from_pointee(pairs.into_iter().map(Arc::new).collect()))
    }

    /// Puts `pair` in the place of the `number`th; whether it differs from what was there.
    pub fn replace(&self, number: usize, pair: Pair) -> bool {
        let present = self.0.load();
        if present.get(number).is_none_or(|present| present.is_same(&pair)) {
            return false;
        }
        let pair = Arc::new(pair);
        self.0.rcu(|present| {
            let mut pairs = Vec::clone(present);
            pairs[number] = Arc::clone(&pair);
            pairs
        });
        true
    }

    /// Puts `pairs` in the place of all.
    pub fn set(&self, pairs: Vec<Pair>) {
        self.0.store(Arc::new(pairs.into_iter().map(Arc::new).collect()));
    }

    /// When each is no longer good, in their order.
    pub fn expiries(&self) -> Vec<UnixTime> {
        self.0.load().iter().map(|pair| pair.expiry()).collect()
    }

    /// The certificate for `name`: one of exactly that name before one with a wildcard before the first; among equals the first
    /// whose key the client can check.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let pairs = self.0.load();
        let name = name.map(str::to_ascii_lowercase);
        let exact = |pair: &Pair| name.as_ref().is_some_and(|name| pair.names.contains(name));
        let wildcard = |pair: &Pair| {
            let domain = name.as_deref().and_then(|name| name.split_once('.')).map(|(_, domain)| domain);
            domain.is_some_and(|domain| pair.names.iter().any(|known| known.strip_prefix("*.") == Some(domain)))
        };
        // A second pair of the first one's names is there for its other kind of key.
        let fallback = |pair: &Pair| {
            pairs.first().is_some_and(|first| std::ptr::eq(&raw const **first, pair) || first.names == pair.names)
        };
        let rules: [&dyn Fn(&Pair) -> bool; 3] = [&exact, &wildcard, &fallback];
        let matching = rules.into_iter().find(|rule| pairs.iter().any(|pair| rule(pair)))?;
        let candidates = || pairs.iter().filter(|pair| matching(pair));
        let usable = |pair: &&Arc<Pair>| pair.certified.key.choose_scheme(schemes).is_some();
        // Where it can check none, the handshake goes on and fails for that reason, which is what the client is told.
        let chosen = candidates().find(usable).or_else(|| candidates().next())?;
        Some(Arc::clone(&chosen.certified))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}
