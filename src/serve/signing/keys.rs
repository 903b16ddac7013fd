//! The keys of those who sign: JWK Sets (RFC 7517) from files, each key with the one algorithm it is for.
//!
//! A token names its key, and the key names the algorithm. What a token says of its algorithm decides nothing; it only has to agree.

use std::{
    collections::HashMap,
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey},
    encoding::{AsBigEndian, EcPrivateKeyBin},
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        ParsedPublicKey,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Form, KeySet, base64url};

/// Bytes of a key set.
const FILE_MAX: u64 = 1 << 20;
/// Keys of a key set.
const KEYS_MAX: usize = 1024;
/// Bytes of a shared secret (RFC 7518, 3.2: no fewer than of the digest).
const SECRET_MIN: usize = 32;

/// Why a key set is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file is not there, or not for us.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no JWK Set.
    #[error("{} is no JWK Set: {why}", path.display())]
    Set {
        /// The file.
        path: PathBuf,
        /// What is wrong; never what a key is.
        why: String,
    },
    /// One of its keys is no good.
    #[error("{}: key {key}: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Its `kid`, or its number.
        key: String,
        /// What is wrong; never what the key is.
        why: &'static str,
    },
}

impl KeysError {
    /// The file that is no good.
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. } | Self::Set { path, .. } | Self::Key { path, .. } => path,
        }
    }
}

/// An algorithm that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
    /// HMAC with SHA-256.
    Hs256,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::Es256, Self::EdDsa, Self::Hs256];

    /// Its name in `alg` (RFC 7518, 3.1; RFC 8037, 3.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
        }
    }
}

/// A key.
pub struct Key {
    /// Its name.
    pub kid: Box<str>,
    /// What it signs.
    pub form: Form,
    /// Issuers that it may sign for.
    pub issuers: Arc<[String]>,
    material: Material,
}

enum Material {
    Es256(Box<ParsedPublicKey>, Option<EcdsaKeyPair>),
    EdDsa(Box<ParsedPublicKey>, Option<Ed25519KeyPair>),
    Hs256(Box<hmac::Key>),
    /// Opens what is encrypted (`cdniip`), with the name of its algorithm.
    Opens(Box<LessSafeKey>, &'static str),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("form", &self.form).finish_non_exhaustive()
    }
}

/// All keys there are, by name.
#[derive(Debug, Default)]
pub struct Keys(HashMap<Box<str>, Key>);

/// A key as it stands in a file (RFC 7517, 4; RFC 7518, 6; RFC 8037, 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<String>,
    k: Option<String>,
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

impl Keys {
    /// Reads key sets. Blocks.
    ///
    /// # Errors
    /// The first that is no good. Keys of kinds that are not known here are passed over (RFC 7517, 5), wrong ones are not.
    pub fn load(sets: &[KeySet]) -> Result<Self, KeysError> {
        let mut keys = Self::default();
        for set in sets {
            let mut text = String::new();
            let read = fs::File::open(&set.path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
            read.map_err(|source| KeysError::Read { path: set.path.clone(), source })?;
            keys.add(set, &text)?;
        }
        Ok(keys)
    }

    /// Adds the keys of a file's text.
    ///
    /// # Errors
    /// See [`Keys::load`].
    pub fn add(&mut self, set: &KeySet, text: &str) -> Result<(), KeysError> {
        let no_set = |why: String| KeysError::Set { path: set.path.clone(), why };
        if text.len() as u64 > FILE_MAX {
            return Err(no_set(format!("it is longer than {FILE_MAX} bytes")));
        }
        // What serde says of a text may quote it, and the text is secret: the place alone is told.
        let place = |err: &serde_json::Error| format!("line {}, column {}", err.line(), err.column());
        let found: JwkSet = serde_json::from_str(text)
            .map_err(|err| no_set(format!("{{\"keys\": [..]}} is expected, which it is not at {}", place(&err))))?;
        if found.keys.len() > KEYS_MAX {
            return Err(no_set(format!("it has more than {KEYS_MAX} keys")));
        }
        let (issuers, before): (Arc<[String]>, usize) = (set.issuers.clone().into(), self.0.len());
        for (number, jwk) in found.keys.into_iter().enumerate() {
            let name =
                jwk.get("kid").and_then(Value::as_str).map_or(format!("number {number}"), |kid| format!("'{kid}'"));
            let bad = |why| KeysError::Key { path: set.path.clone(), key: name.clone(), why };
            let jwk: Jwk = serde_json::from_value(jwk).map_err(|_| bad("it is no JSON Web Key"))?;
            let Some(material) = material(&jwk, set.form).map_err(bad)? else { continue };
            let kid: Box<str> = jwk.kid.filter(|kid| !kid.is_empty()).ok_or_else(|| bad("it has no kid"))?.into();
            let key = Key { kid: kid.clone(), form: set.form, issuers: Arc::clone(&issuers), material };
            if self.0.insert(kid, key).is_some() {
                return Err(bad("another key has the same kid"));
            }
        }
        if self.0.len() == before {
            return Err(no_set("it has no key that is of use here".into()));
        }
        Ok(())
    }

    /// The key of a name and form.
    pub fn key(&self, kid: &str, form: Form) -> Option<&Key> {
        self.0.get(kid).filter(|key| key.form == form)
    }

    /// The only key that signs, where there is but one.
    pub fn only(&self) -> Option<&Key> {
        let mut signing = self.0.values().filter(|key| key.algorithm().is_some());
        signing.next().filter(|_| signing.next().is_none())
    }

    /// Keys in all.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `None`: of a kind that is not known here.
fn material(jwk: &Jwk, form: Form) -> Result<Option<Material>, &'static str> {
    let bytes = |field: &Option<String>, why| field.as_deref().and_then(base64url::decode).ok_or(why);
    let fixed = |field, why| -> Result<[u8; 32], _> { bytes(field, why)?.try_into().map_err(|_| why) };
    let is_for = |alg: Option<&str>, only| alg.is_none_or(|alg| alg == only);
    if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") && jwk.kty != "oct" {
        return Ok(None);
    }
    match (jwk.kty.as_str(), jwk.crv.as_deref(), jwk.alg.as_deref()) {
        ("EC", Some("P-256"), alg) if is_for(alg, "ES256") && form == Form::UriSigning => {
            let (x, y) = (fixed(&jwk.x, "its x is not 32 bytes")?, fixed(&jwk.y, "its y is not 32 bytes")?);
            let point = [&[4], &x[..], &y].concat();
            let public =
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).map_err(|_| "x and y are no point of P-256")?;
            let pair = match &jwk.d {
                None => None,
                Some(_) => {
                    let d = fixed(&jwk.d, "its d is not 32 bytes")?;
                    let pair =
                        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &d, &point);
                    Some(pair.map_err(|_| "its d does not belong to x and y")?)
                }
            };
            Ok(Some(Material::Es256(Box::new(public), pair)))
        }
        ("OKP", Some("Ed25519"), alg)
            if (is_for(alg, "EdDSA") || alg == Some("Ed25519")) && form == Form::UriSigning =>
        {
            let x = fixed(&jwk.x, "its x is not 32 bytes")?;
            let public = ParsedPublicKey::new(&ED25519, x).map_err(|_| "its x is no key of Ed25519")?;
            let pair = match &jwk.d {
                None => None,
                Some(_) => {
                    let d = fixed(&jwk.d, "its d is not 32 bytes")?;
                    Some(Ed25519KeyPair::from_seed_and_public_key(&d, &x).map_err(|_| "its d does not belong to x")?)
                }
            };
            Ok(Some(Material::EdDsa(Box::new(public), pair)))
        }
        ("oct", _, Some("HS256")) => {
            let secret = bytes(&jwk.k, "its k is no base64url")?;
            if secret.len() < SECRET_MIN {
                return Err("its secret is shorter than 32 bytes (RFC 7518, 3.2)");
            }
            Ok(Some(Material::Hs256(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)))))
        }
        ("oct", _, Some(alg @ ("A128GCM" | "A256GCM"))) if form == Form::UriSigning => {
            let secret = bytes(&jwk.k, "its k is no base64url")?;
            let (cipher, name) = if alg == "A128GCM" { (&AES_128_GCM, "A128GCM") } else { (&AES_256_GCM, "A256GCM") };
            let key = UnboundKey::new(cipher, &secret).map_err(|_| "its k has not the length that its alg needs")?;
            Ok(Some(Material::Opens(Box::new(LessSafeKey::new(key)), name)))
        }
        ("oct", _, None) => Err("a shared secret has to say its alg: HS256, A128GCM or A256GCM"),
        ("EC", Some("P-256"), Some(_)) | ("OKP", Some("Ed25519"), Some(_)) if form == Form::UriSigning => {
            Err("its alg is not the one of its curve")
        }
        _ => Ok(None),
    }
}

impl Key {
    /// What it signs with; `None`: it opens what is encrypted.
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self.material {
            Material::Es256(..) => Some(Algorithm::Es256),
            Material::EdDsa(..) => Some(Algorithm::EdDsa),
            Material::Hs256(_) => Some(Algorithm::Hs256),
            Material::Opens(..) => None,
        }
    }

    /// Whether a signature is this key's. Secrets are compared in constant time.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Es256(public, _) | Material::EdDsa(public, _) => public.verify_sig(message, signature).is_ok(),
            Material::Hs256(secret) => hmac::verify(secret, message, signature).is_ok(),
            Material::Opens(..) => false,
        }
    }

    /// Signs; `None` where only the public half is there.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match &self.material {
            Material::Es256(_, pair) => {
                Some(pair.as_ref()?.sign(&SystemRandom::new(), message).ok()?.as_ref().to_vec())
            }
            Material::EdDsa(_, pair) => Some(pair.as_ref()?.sign(message).as_ref().to_vec()),
            Material::Hs256(secret) => Some(hmac::sign(secret, message).as_ref().to_vec()),
            Material::Opens(..) => None,
        }
    }

    /// Whether it can sign.
    pub fn signs(&self) -> bool {
        matches!(self.material, Material::Es256(_, Some(_)) | Material::EdDsa(_, Some(_)) | Material::Hs256(_))
    }

    /// The key that opens what is encrypted, and the name of its algorithm.
    pub(super) fn opens(&self) -> Option<(&LessSafeKey, &'static str)> {
        match &self.material {
            Material::Opens(key, name) => Some((key, name)),
            _ => None,
        }
    }
}

/// A new key as a JWK, with its secret half; `None` where the system has no randomness.
pub fn generate(kid: &str, algorithm: Algorithm) -> Option<Value> {
    let mut jwk = match algorithm {
        Algorithm::Es256 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
            let point = pair.public_key().as_ref();
            let d: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().ok()?;
            let (x, y) = (base64url::encode(&point[1..33]), base64url::encode(&point[33..]));
            json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "d": base64url::encode(d.as_ref()) })
        }
        Algorithm::EdDsa => {
            let pair = Ed25519KeyPair::generate().ok()?;
            let seed = pair.seed().ok()?.as_be_bytes().ok()?;
            let x = base64url::encode(pair.public_key());
            json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "d": base64url::encode(seed.as_ref()) })
        }
        Algorithm::Hs256 => {
            let mut secret = [0_u8; SECRET_MIN];
            aws_lc_rs::rand::fill(&mut secret).ok()?;
            json!({ "kty": "oct", "k": base64url::encode(secret) })
        }
    };
    jwk["kid"] = kid.into();
    jwk["alg"] = algorithm.name().into();
    jwk["use"] = "sig".into();
    Some(jwk)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// RFC 9246, A: the key that signs, and the one that encrypts; and two of ours.
    pub(in crate::serve::signing) const RFC: &str = r#"{"keys":[
        {"kty":"EC","kid":"P5UpOv0eMq1wcxLf7WxIg09JdSYGYFDOWkldueaImf0","use":"sig","crv":"P-256",
         "x":"be807S4O7dzB6I4hTiCUvmxCI6FuxWba1xYBlLSSsZ8","y":"rOGC4vI69g-WF9AGEVI37sNNwbjIzBxSjLvIL7f3RBA",
         "d":"yaowezrCLTU6yIwUL5RQw67cHgvZeMTLVZXjUGb1A1M"},
        {"kty":"oct","kid":"f-WbjxBC3dPuI3d24kP2hfvos7Qz688UTi6aB0hN998","use":"enc","alg":"A128GCM","k":"4uFxxV7fhNmrtiah2d1fFg"}]}"#;

    pub(in crate::serve::signing) fn set(form: Form) -> KeySet {
        KeySet { path: "/keys.json".into(), form, issuers: vec!["uCDN Inc".into()] }
    }

    pub(in crate::serve::signing) fn keys(jwks: &[Value], form: Form) -> Keys {
        let mut keys = Keys::default();
        keys.add(&set(form), &json!({ "keys": jwks }).to_string()).expect("good");
        keys
    }

    fn refused(text: &str) -> String {
        Keys::default().add(&set(Form::UriSigning), text).expect_err("no good").to_string()
    }

    #[test]
    fn a_signature_that_others_made_is_verified() {
        // By the authors of RFC 9246, with the key of its appendix, for an early draft.
        let token = "eyJhbGciOiJFUzI1NiIsImtpZCI6IlA1VXBPdjBlTXExd2N4TGY3V3hJZzA5SmRTWUdZRkRPV2tsZHVlYUltZjAifQ.eyJzdWIiOiJ1cmk6aHR0cDovL2NkbmkuZXhhbXBsZS9mb28vYmFyL2JheiJ9.LTizGd7zCb17Qp_80ClGApLCieRIq3dCjcRckNfLqiJ4BTGSfVXoDtm0Z6L5Jx4EmwM1w-WkznNajUy11iMAcA";
        let mut rfc = Keys::default();
        rfc.add(&set(Form::UriSigning), RFC).expect("good");
        let key = rfc.key("P5UpOv0eMq1wcxLf7WxIg09JdSYGYFDOWkldueaImf0", Form::UriSigning).expect("there");
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        let signature = base64url::decode(signature).expect("base64url");
        assert!(key.verify(message.as_bytes(), &signature));
        assert!(!key.verify(&message.as_bytes()[1..], &signature));
        assert!(!key.verify(message.as_bytes(), &[0; 64]), "CVE-2022-21449");
        // RFC 8037, A: Ed25519.
        let jwk = json!({"kty":"OKP","crv":"Ed25519","kid":"ed","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        let keys = keys(&[jwk], Form::UriSigning);
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        let key = keys.only().expect("one");
        assert!(key.verify(message, &base64url::decode(signature).expect("base64url")));
        assert_eq!(key.sign(message).map(base64url::encode).as_deref(), Some(signature));
    }

    #[test]
    fn a_new_key_signs_and_its_public_half_verifies() {
        for algorithm in Algorithm::ALL {
            let mut jwk = generate("k", algorithm).expect("random");
            let both = keys(std::slice::from_ref(&jwk), Form::UriSigning);
            let key = both.only().expect("one");
            assert!(key.signs() && key.algorithm() == Some(algorithm));
            let signature = key.sign(b"message").expect("signed");
            assert!(key.verify(b"message", &signature) && !key.verify(b"messagf", &signature));
            assert!(!format!("{key:?}").contains(jwk["d"].as_str().or(jwk["k"].as_str()).expect("a secret")));
            if algorithm != Algorithm::Hs256 {
                jwk.as_object_mut().expect("an object").remove("d");
                let public = keys(&[jwk], Form::UriSigning);
                let public = public.only().expect("one");
                assert!(public.verify(b"message", &signature) && !public.signs() && public.sign(b"x").is_none());
            }
        }
    }

    #[test]
    fn a_bad_set_is_refused_with_its_reason_and_without_its_secrets() {
        let key = |rest: &str| format!(r#"{{"keys":[{{"kid":"k",{rest}}}]}}"#);
        let short = base64url::encode([7; 31]);
        for (text, expected) in [
            ("".into(), "is no JWK Set"),
            ("{}".into(), "is no JWK Set"),
            (r#"{"keys":[]}"#.into(), "no key that is of use here"),
            (r#"{"keys":["hunter2"]}"#.into(), "key number 0: it is no JSON Web Key"),
            (key(r#""kty":"RSA""#), "no key that is of use here"),
            (key(r#""kty":"oct","k":"AAAA""#), "has to say its alg"),
            (key(&format!(r#""kty":"oct","alg":"HS256","k":"{short}""#)), "shorter than 32 bytes"),
            (key(r#""kty":"oct","alg":"HS256","k":"===""#), "no base64url"),
            (key(r#""kty":"oct","alg":"A256GCM","k":"4uFxxV7fhNmrtiah2d1fFg""#), "has not the length"),
            (key(r#""kty":"EC","crv":"P-256","x":"AA","y":"AA""#), "x is not 32 bytes"),
            (RFC.replace("be807", "ce807"), "no point of P-256"),
            (RFC.replace("yaowe", "zaowe"), "does not belong"),
            (RFC.replace(r#""crv""#, r#""alg":"HS256","crv""#), "not the one of its curve"),
            (
                RFC.replace(
                    "f-WbjxBC3dPuI3d24kP2hfvos7Qz688UTi6aB0hN998",
                    "P5UpOv0eMq1wcxLf7WxIg09JdSYGYFDOWkldueaImf0",
                ),
                "the same kid",
            ),
            (RFC.replace(r#""kid""#, r#""name""#), "it has no kid"),
        ] {
            let shown = refused(&text);
            assert!(shown.contains(expected) && shown.contains("/keys.json"), "{text}: {shown}");
            assert!(!shown.contains("hunter2") && !shown.contains(&short) && !shown.contains("yaowe"), "{shown}");
        }
    }
}
