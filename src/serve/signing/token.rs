//! Tokens of RFC 9246: JSON Web Tokens in compact form (RFC 7515, 7519).
//!
//! text -> three parts -> header (its kid names the key) -> signature -> claims -> what they allow
//!
//! Nothing of a token is believed, and no expression compiled, before its signature is verified.

use std::{cell::RefCell, fmt, net::IpAddr};

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{
    Config, Form, base64url,
    container::Container,
    keys::{Key, Keys},
};
use crate::{asset::UnixTime, telemetry::metrics::Denial};

/// A token that is genuine, and what it allows.
#[derive(Debug)]
pub struct Verified {
    expiry: Option<f64>,
    not_before: Option<f64>,
    uris: Container,
    clients: Option<IpNet>,
    /// `jti`, with the issuer whose it is.
    pub(super) nonce: Option<Box<str>>,
    pub(super) renewal: Option<Renewal>,
    /// The URI that it was last found to be for.
    last: RefCell<String>,
}

/// How a token is renewed (RFC 9246, 3).
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) seconds: u64,
    pub(super) depth: usize,
    claims: Map<String, Value>,
}

/// Transports of `cdnistt` (RFC 9246, 6.5): none, by cookie, by query string with a redirection.
const TRANSPORTS: [u64; 3] = [0, 1, 2];
const BY_COOKIE: u64 = 1;

/// An object whose names are all different: with two of a name, one reader takes the first and another the last.
struct Unambiguous(Map<String, Value>);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Unambiguous;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unambiguous, A::Error> {
                let mut map = Map::new();
                while let Some((name, value)) = members.next_entry::<String, Value>()? {
                    if map.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a name stands twice"));
                    }
                }
                Ok(Unambiguous(map))
            }
        }
        from.deserialize_map(Members)
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    let Unambiguous(map) = serde_json::from_slice(&base64url::decode(part)?).ok()?;
    Some(map)
}

/// Verifies a token's signature and everything in it that does not depend on the request.
///
/// # Errors
/// Why it is worth nothing.
pub fn verify(token: &str, keys: &Keys, config: &Config) -> Result<Verified, Denial> {
    if token.len() as u64 > config.token_size_max.0 {
        return Err(Denial::TooLong);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Denial::Malformed);
    };
    let message = &token[..header.len() + 1 + claims.len()];
    let header = object(header).ok_or(Denial::Malformed)?;
    let signature = base64url::decode(signature).ok_or(Denial::Malformed)?;
    let kid = header.get("kid").and_then(Value::as_str).ok_or(Denial::UnknownKey)?;
    let key = keys.key(kid, Form::UriSigning).ok_or(Denial::UnknownKey)?;
    let algorithm = key.algorithm().ok_or(Denial::Algorithm)?;
    if header.get("alg").and_then(Value::as_str) != Some(algorithm.name()) {
        return Err(Denial::Algorithm);
    }
    // RFC 7515, 4.1.11: extensions that have to be understood; none is.
    if header.contains_key("crit") {
        return Err(Denial::Critical);
    }
    if !key.verify(message.as_bytes(), &signature) {
        return Err(Denial::Signature);
    }
    read_claims(object(claims).ok_or(Denial::Malformed)?, key, keys, config)
}

/// A claim of a kind; `None` where it is not there.
fn claim<'c, T>(
    claims: &'c Map<String, Value>,
    name: &str,
    read: impl FnOnce(&'c Value) -> Option<T>,
) -> Result<Option<T>, Denial> {
    claims.get(name).map(|value| read(value).ok_or(Denial::Malformed)).transpose()
}

fn seconds(value: &Value) -> Option<f64> {
    value.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
}

fn read_claims(claims: Map<String, Value>, key: &Key, keys: &Keys, config: &Config) -> Result<Verified, Denial> {
    if claim(&claims, "cdniv", Value::as_u64)?.is_some_and(|version| version != 1) {
        return Err(Denial::Version);
    }
    // RFC 9246, 2.1.9: extensions that have to be understood; none is.
    if claims.contains_key("cdnicrit") {
        return Err(Denial::Critical);
    }
    let issuer = claim(&claims, "iss", Value::as_str)?;
    if issuer.is_some_and(|issuer| !key.issuers.iter().any(|known| known == issuer)) {
        return Err(Denial::Issuer);
    }
    if let Some(audience) = claims.get("aud") {
        let named = match audience {
            Value::Array(names) => names.as_slice(),
            one => std::slice::from_ref(one),
        };
        let is_us = |name: &Value| name.as_str().is_some_and(|name| config.audience.iter().any(|known| known == name));
        if !named.iter().any(is_us) {
            return Err(Denial::Audience);
        }
    }
    let (expiry, not_before) = (claim(&claims, "exp", seconds)?, claim(&claims, "nbf", seconds)?);
    claim(&claims, "iat", seconds)?;
    let regex_size_max = usize::try_from(config.regex_size_max.0).unwrap_or(usize::MAX);
    let uris = claim(&claims, "cdniuc", Value::as_str)?.ok_or(Denial::Container)?;
    let uris = Container::parse(uris, regex_size_max).ok_or(Denial::Container)?;
    let clients = claim(&claims, "cdniip", Value::as_str)?;
    let clients = clients.map(|sealed| opened(sealed, keys).ok_or(Denial::Client)).transpose()?;
    let nonce = claim(&claims, "jti", Value::as_str)?;
    let nonce = nonce.map(|nonce| format!("{}\n{nonce}", issuer.unwrap_or(&key.kid)).into());
    if nonce.is_some() && (config.nonces_max == 0 || expiry.is_none()) {
        // RFC 9246, 2.1.7: who cannot tell whether it was used before has to refuse. One that never expires could never be forgotten.
        return Err(Denial::Nonce);
    }
    let lifetime = claim(&claims, "cdniets", Value::as_u64)?;
    let transport = claim(&claims, "cdnistt", Value::as_u64)?.unwrap_or(0);
    let depth = claim(&claims, "cdnistd", Value::as_u64)?.unwrap_or(0);
    let depth = usize::try_from(depth).map_err(|_| Denial::Malformed)?;
    if !TRANSPORTS.contains(&transport) || (transport != 0 && lifetime.is_none_or(|seconds| seconds == 0)) {
        return Err(Denial::Malformed);
    }
    let renewal = lifetime.filter(|_| transport == BY_COOKIE && !config.renewal_key.is_empty());
    let renewal = renewal.map(|seconds| Renewal { seconds, depth, claims });
    Ok(Verified { expiry, not_before, uris, clients, nonce, renewal, last: RefCell::default() })
}

/// The addresses in a `cdniip`, which is encrypted (JWE, RFC 7516) with a key that both sides have (`dir`).
fn opened(sealed: &str, keys: &Keys) -> Option<IpNet> {
    let mut parts = sealed.split('.');
    let (protected, "", iv, text, tag, None) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    let header = object(protected)?;
    let (key, name) = keys.key(header.get("kid")?.as_str()?, Form::UriSigning)?.opens()?;
    if header.get("alg")? != "dir"
        || header.get("enc")? != name
        || ["crit", "zip"].iter().any(|one| header.contains_key(*one))
    {
        return None;
    }
    let nonce = Nonce::try_assume_unique_for_key(&base64url::decode(iv)?).ok()?;
    let tag = base64url::decode(tag).filter(|tag| tag.len() == 16)?;
    let mut text = base64url::decode(text)?;
    text.extend(tag);
    let plain = key.open_in_place(nonce, Aad::from(protected.as_bytes()), &mut text).ok()?;
    addresses(std::str::from_utf8(plain).ok()?)
}

/// A `cdniip` for clients; `None` where the key is none that encrypts.
pub fn seal(key: &Key, clients: &str) -> Option<String> {
    let (cipher, name) = key.opens()?;
    let protected = base64url::encode(serde_json::json!({ "alg": "dir", "enc": name, "kid": key.kid }).to_string());
    let mut iv = [0_u8; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut iv).ok()?;
    let mut text = clients.as_bytes().to_vec();
    let nonce = Nonce::assume_unique_for_key(iv);
    let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(protected.as_bytes()), &mut text).ok()?;
    let [iv, text, tag] = [&iv[..], &text, tag.as_ref()].map(base64url::encode);
    Some(format!("{protected}..{iv}.{text}.{tag}"))
}

/// Addresses: one, or a prefix; in brackets, as the RFC's examples have them for IPv6, or without.
pub fn addresses(text: &str) -> Option<IpNet> {
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}

impl Verified {
    /// Whether it allows this: at this time, for this URI, for this client.
    pub(super) fn allows(&self, now: UnixTime, leeway: f64, uri: &str, client: IpAddr) -> Result<(), Denial> {
        let now = now.0 as f64;
        if self.expiry.is_some_and(|expiry| expiry + leeway <= now) {
            return Err(Denial::Expired);
        }
        if self.not_before.is_some_and(|begin| begin > now + leeway) {
            return Err(Denial::NotYet);
        }
        if self.clients.is_some_and(|clients| !clients.contains(&client.to_canonical())) {
            return Err(Denial::Client);
        }
        let mut last = self.last.borrow_mut();
        if *last != uri {
            if !self.uris.holds(uri) {
                return Err(Denial::Uri);
            }
            // A player asks for parts of the same again and again.
            uri.clone_into(&mut last);
        }
        Ok(())
    }

    /// When it expires, for the store of nonces.
    pub(super) fn expiry(&self) -> Option<UnixTime> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and saturates")]
        self.expiry.map(|expiry| UnixTime(expiry.ceil() as u64))
    }

    /// Whether it is time to renew it: less than half of its life is left.
    pub(super) fn is_aging(&self, now: UnixTime) -> bool {
        let half = self.renewal.as_ref().map_or(0.0, |renewal| renewal.seconds as f64 / 2.0);
        self.expiry.is_none_or(|expiry| expiry - now.0 as f64 <= half)
    }
}

impl Renewal {
    /// The next token: the same claims, with another expiry (RFC 9246, 2.1.12).
    pub(super) fn next(&self, now: UnixTime, key: &Key, issuer: &str) -> Option<String> {
        let mut claims = self.claims.clone();
        claims.insert("exp".into(), now.0.checked_add(self.seconds)?.into());
        if claims.contains_key("iat") {
            claims.insert("iat".into(), now.0.into());
        }
        if claims.contains_key("iss") {
            // RFC 9246, 2.1.1: it has to name who signs.
            claims.insert("iss".into(), issuer.into());
        }
        sign(key, &claims)
    }
}

/// A token of these claims; `None` where the key cannot sign.
pub fn sign(key: &Key, claims: &Map<String, Value>) -> Option<String> {
    let header = serde_json::json!({ "alg": key.algorithm()?.name(), "kid": key.kid });
    let claims = serde_json::to_string(claims).ok()?;
    let message = format!("{}.{}", base64url::encode(header.to_string()), base64url::encode(claims));
    let signature = key.sign(message.as_bytes())?;
    Some(format!("{message}.{}", base64url::encode(signature)))
}
