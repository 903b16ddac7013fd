//! The keys of control planes: Ed25519, from JWK Sets (RFC 7517, RFC 8037) as `oca keys` writes them.

use std::{collections::BTreeMap, fmt, fs, io::Read as _, path::Path, sync::Arc};

use aws_lc_rs::{
    digest,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use serde_json::Value;

use super::{
    base64url,
    refusal::{Reason, Refused},
    signatures::Signatures,
};
use crate::asset::Sha256;

/// Bytes of a key set.
const FILE_MAX: u64 = 1 << 20;
/// Keys of a key set.
const KEYS_MAX: usize = 64;

/// Why keys are no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(String);

impl KeysError {
    pub(super) fn too_few(count: usize, threshold: usize) -> Self {
        Self(format!("{threshold} keys have to sign (control.threshold), and only {count} are trusted"))
    }
}

/// Whose signatures count, and how many it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedKeys {
    keys: BTreeMap<Box<str>, [u8; 32]>,
    revoked: Arc<[String]>,
    threshold: usize,
}

/// A key that signs.
pub struct SigningKey {
    /// Its name.
    pub kid: Box<str>,
    pair: Ed25519KeyPair,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// What a key signs of a manifest: its digest as published, compressed or not, so that nothing is expanded or parsed, or even kept in
/// memory as a whole, before it is known whose it is.
fn message(digest: &Sha256) -> String {
    format!("oca-manifest-v1\n{digest}\n")
}

impl TrustedKeys {
    /// Keys of which `threshold` have to sign.
    pub fn new(threshold: usize, revoked: &[String]) -> Self {
        Self { keys: BTreeMap::new(), revoked: revoked.into(), threshold: threshold.max(1) }
    }

    /// Adds the keys of a JWK Set in a file. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or one of its keys is no good.
    pub fn add_file(&mut self, path: &Path) -> Result<(), KeysError> {
        let named = |why: String| KeysError(format!("{}: {why}", path.display()));
        for (kid, public, _) in keys_of(path).map_err(named)? {
            self.add(kid, public).map_err(|err| named(err.0))?;
        }
        Ok(())
    }

    /// Adds a key by its public half in base64url: `x` of a JSON Web Key.
    ///
    /// # Errors
    /// It is no key, or there already.
    pub fn add_inline(&mut self, kid: &str, x: &str) -> Result<(), KeysError> {
        let public = base64url::decode(x).and_then(|bytes| bytes.try_into().ok());
        let public = public.ok_or_else(|| KeysError(format!("key '{kid}': its x is not 32 bytes in base64url")))?;
        self.add(kid.into(), public)
    }

    fn add(&mut self, kid: Box<str>, public: [u8; 32]) -> Result<(), KeysError> {
        // Each key counts once: under two names it would count twice.
        if let Some((other, _)) = self.keys.iter().find(|(name, known)| **name == kid || **known == public) {
            let what = if *other == kid { "another key has the same kid" } else { "it is the same key as another" };
            return Err(KeysError(format!("key '{kid}': {what}")));
        }
        self.keys.insert(kid, public);
        Ok(())
    }

    /// Keys that count.
    pub fn count(&self) -> usize {
        self.keys.keys().filter(|kid| !self.is_revoked(kid)).count()
    }

    /// Keys that have to sign.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Whether a key of this name is trusted.
    pub fn counts(&self, kid: &str) -> bool {
        self.keys.contains_key(kid) && !self.is_revoked(kid)
    }

    fn is_revoked(&self, kid: &str) -> bool {
        self.revoked.iter().any(|revoked| *revoked == *kid)
    }

    /// Tells which trusted keys signed a manifest of this digest. Signatures of keys that are not known here count for nothing, so that a
    /// manifest can be signed with tomorrow's key too.
    ///
    /// # Errors
    /// Too few did, or one that is trusted did not sign this.
    pub fn verify(&self, digest: &Sha256, signatures: &Signatures) -> Result<Vec<Box<str>>, Refused> {
        let (mut good, mut unknown, mut revoked) = (Vec::new(), None, None);
        let message = message(digest);
        for (kid, signature) in signatures.iter() {
            if self.is_revoked(kid) {
                revoked = Some(kid);
                continue;
            }
            let Some(public) = self.keys.get(kid) else {
                unknown = Some(kid);
                continue;
            };
            if UnparsedPublicKey::new(&ED25519, public).verify(message.as_bytes(), signature).is_err() {
                let what = format!("the signature of key '{kid}' does not belong to this manifest");
                return Err(Refused::new(Reason::Tampered, what));
            }
            good.push(kid.into());
        }
        if good.len() >= self.threshold {
            return Ok(good);
        }
        let (count, threshold) = (good.len(), self.threshold);
        Err(match (revoked, unknown) {
            (Some(kid), _) => Refused::new(Reason::RevokedKey, format!("key '{kid}' was revoked")),
            (None, Some(kid)) => Refused::new(Reason::UnknownKey, format!("key '{kid}' is not trusted here")),
            (None, None) => {
                Refused::new(Reason::Unsigned, format!("{count} of {threshold} signatures that it takes are there"))
            }
        })
    }
}

impl SigningKey {
    /// Reads the key that signs from a JWK Set. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or has none or more than one key with a secret half.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        let named = |why: String| KeysError(format!("{}: {why}", path.display()));
        let mut secret = keys_of(path).map_err(named)?.into_iter().filter_map(|(kid, _, pair)| Some((kid, pair?)));
        match (secret.next(), secret.next()) {
            (Some((kid, pair)), None) => Ok(Self { kid, pair }),
            (None, _) => Err(named("it has no key that signs: make one by `oca keys new --algorithm EdDSA`".into())),
            (Some(_), Some(_)) => Err(named("it has more than one key that signs".into())),
        }
    }

    /// Signs a manifest of this digest.
    pub fn sign(&self, digest: &Sha256) -> Vec<u8> {
        self.pair.sign(message(digest).as_bytes()).as_ref().to_vec()
    }

    /// A set of keys that trusts this one alone.
    pub fn trusted(&self) -> TrustedKeys {
        let mut keys = TrustedKeys::new(1, &[]);
        if let Ok(public) = self.pair.public_key().as_ref().try_into() {
            keys.keys.insert(self.kid.clone(), public);
        }
        keys
    }
}

type Key = (Box<str>, [u8; 32], Option<Ed25519KeyPair>);

/// The Ed25519 keys of a JWK Set. What it says of a key is never told: it may be secret.
fn keys_of(path: &Path) -> Result<Vec<Key>, String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
    read.map_err(|err| err.to_string())?;
    let set: Value = serde_json::from_str(&text).map_err(|err| format!("it is no JSON at line {}", err.line()))?;
    let jwks = set["keys"].as_array().ok_or("it is no JWK Set: {\"keys\": [..]} is expected")?;
    if text.len() as u64 > FILE_MAX || jwks.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys or {FILE_MAX} bytes"));
    }
    let mut keys = Vec::new();
    for (number, jwk) in jwks.iter().enumerate() {
        let kid = jwk["kid"].as_str().filter(|kid| !kid.is_empty()).ok_or(format!("key {number} has no kid"))?;
        if (jwk["kty"].as_str(), jwk["crv"].as_str()) != (Some("OKP"), Some("Ed25519")) {
            return Err(format!("key '{kid}' is not for Ed25519 (kty OKP, crv Ed25519)"));
        }
        let bytes = |name: &str| -> Option<[u8; 32]> { base64url::decode(jwk[name].as_str()?)?.try_into().ok() };
        let public = bytes("x").ok_or(format!("key '{kid}': its x is not 32 bytes in base64url"))?;
        let pair = match jwk.get("d") {
            None => None,
            Some(_) => {
                let pair = bytes("d").and_then(|d| Ed25519KeyPair::from_seed_and_public_key(&d, &public).ok());
                Some(pair.ok_or(format!("key '{kid}': its d does not belong to x"))?)
            }
        };
        keys.push((kid.into(), public, pair));
    }
    if keys.is_empty() { Err("it has no keys".into()) } else { Ok(keys) }
}

/// SHA-256 of what comes piece by piece.
pub struct Hasher(digest::Context);

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Sha256 {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        Sha256::new(bytes)
    }
}
