//! Tokens as issuers, and those who are none, write them; and the gate that they come to.

use std::{net::IpAddr, sync::Arc};

use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::{
    keys::tests::{RFC, keys, set},
    token::{Verified, verify},
    *,
};
use crate::{
    asset::{ByteCount, UnixTime},
    serve,
    telemetry::metrics::Denial,
};

const KID: &str = "P5UpOv0eMq1wcxLf7WxIg09JdSYGYFDOWkldueaImf0";
const SEALING_KID: &str = "f-WbjxBC3dPuI3d24kP2hfvos7Qz688UTi6aB0hN998";
/// RFC 9246, A.1.
const BAR: &str = "hash:sha-256;2tderfWPa86Ku7YnzW51YUp7dGUjBS_3SW3ELx4hmWY";
const BAR_URI: &str = "http://cdni.example/foo/bar";
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

fn rfc() -> Keys {
    let mut keys = Keys::default();
    keys.add(&set(Form::UriSigning), RFC).expect("good");
    keys
}

fn config() -> Config {
    Config { default: Policy::Required, audience: vec!["dCDN LLC".into()], nonces_max: 8, ..Config::default() }
}

fn members(value: Value) -> Map<String, Value> {
    let Value::Object(members) = value else { panic!("an object") };
    members
}

fn token(claims: Value) -> String {
    token::sign(rfc().key(KID, Form::UriSigning).expect("there"), &members(claims)).expect("signed")
}

/// As `token`, with header and claims as they are given.
fn raw(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", base64url::encode(header), base64url::encode(claims));
    let keys = rfc();
    let signature = keys.key(KID, Form::UriSigning).and_then(|key| key.sign(message.as_bytes())).expect("signed");
    format!("{message}.{}", base64url::encode(signature))
}

fn check(token: &str) -> Result<Verified, Denial> {
    verify(token, &rfc(), &config())
}

fn denied(claims: Value) -> Denial {
    check(&token(claims.clone())).expect_err(&format!("{claims} is refused"))
}

fn allows(verified: &Verified, now: u64, uri: &str, client: &str) -> Result<(), Denial> {
    verified.allows(UnixTime(now), 0.0, uri, client.parse().expect("an address"))
}

#[test]
fn the_simple_example_of_the_rfc() {
    // RFC 9246, A.1: its claims and its key.
    let verified =
        check(&token(json!({ "exp": 1646867369_u64, "iss": "uCDN Inc", "cdniuc": BAR }))).expect("it is good");
    assert_eq!(allows(&verified, 1646867368, BAR_URI, "192.0.2.7"), Ok(()));
    assert_eq!(allows(&verified, 1646867369, BAR_URI, "192.0.2.7"), Err(Denial::Expired));
    assert_eq!(allows(&verified, 0, "http://cdni.example/foo/baz", "192.0.2.7"), Err(Denial::Uri));
    assert_eq!(allows(&verified, 1646867368, BAR_URI, "192.0.2.7"), Ok(()), "another URI between changes nothing");
}

#[test]
fn the_complex_example_of_the_rfc() {
    // RFC 9246, A.2.
    let keys = rfc();
    let sealing = keys.key(SEALING_KID, Form::UriSigning).expect("there");
    let claims = json!({
        "aud": "dCDN LLC", "sub": "UserToken", "cdniip": token::seal(sealing, "[2001:db8::1/32]"), "cdniv": 1,
        "exp": 1474243500, "iat": 1474243200, "iss": "uCDN Inc", "jti": "5DAafLhZAfhsbe", "nbf": 1474243200,
        "cdniuc": "regex:http://cdni\\.example/foo/bar/[0-9]{3}\\.png",
    });
    let verified = check(&token(claims)).expect("it is good");
    let uri = "http://cdni.example/foo/bar/123.png";
    for (now, uri, client, expected) in [
        (1474243200, uri, "2001:db8:ffff::2", Ok(())),
        (1474243199, uri, "2001:db8::2", Err(Denial::NotYet)),
        (1474243500, uri, "2001:db8::2", Err(Denial::Expired)),
        (1474243200, uri, "2001:db9::2", Err(Denial::Client)),
        (1474243200, uri, "192.0.2.7", Err(Denial::Client)),
        (1474243200, "https://cdni.example/foo/bar/123.png", "2001:db8::2", Err(Denial::Uri)),
        (1474243200, "http://cdni.example.org/foo/bar/123.png", "2001:db8::2", Err(Denial::Uri)),
    ] {
        assert_eq!(allows(&verified, now, uri, client), expected, "{now} {uri} {client}");
    }
    assert_eq!(verified.nonce.as_deref(), Some("uCDN Inc\n5DAafLhZAfhsbe"));
}

#[test]
fn a_token_that_is_none_is_refused() {
    let good = token(json!({ "cdniuc": BAR }));
    assert!(check(&good).is_ok());
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    for (text, why) in [
        (String::new(), Denial::Malformed),
        ("a.b".into(), Denial::Malformed),
        ("..".into(), Denial::Malformed),
        (format!("{good}."), Denial::Malformed),
        (format!("{good}="), Denial::Malformed),
        (format!("{good}%3D"), Denial::Malformed),
        (good.replacen('e', "%65", 1), Denial::Malformed),
        (format!("{message}."), Denial::Signature),
        (format!("{message}.{}", base64url::encode([0; 64])), Denial::Signature),
        (format!("{message}.{}", &signature[..80]), Denial::Signature),
        ("x".repeat(2048), Denial::Malformed),
        ("x".repeat(2049), Denial::TooLong),
        (format!("{good}.{}", "x".repeat(4096)), Denial::TooLong),
        (raw("[]", "{}"), Denial::Malformed),
        (raw("{}", "{}"), Denial::UnknownKey),
        (raw(r#"{"alg":"ES256","kid":5}"#, "{}"), Denial::UnknownKey),
        (raw(r#"{"alg":"ES256","kid":"other"}"#, "{}"), Denial::UnknownKey),
        (raw(&format!(r#"{{"alg":"ES256","kid":"{KID}"}}"#), "[]"), Denial::Malformed),
        (raw(&format!(r#"{{"alg":"ES256","kid":"{KID}"}}"#), "{}"), Denial::Container),
        (raw(&format!(r#"{{"alg":"ES256","kid":"{KID}","crit":["x"],"x":1}}"#), "{}"), Denial::Critical),
    ] {
        assert_eq!(check(&text).err(), Some(why), "{text}");
    }
    // Every single bit of what is signed, and of the signature.
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        assert!(check(std::str::from_utf8(&bytes).expect("ASCII")).is_err(), "byte {at}");
    }
}

#[test]
fn the_key_says_the_algorithm_and_not_the_token() {
    let claims = format!(r#"{{"cdniuc":"{BAR}"}}"#);
    for algorithm in ["none", "None", "HS256", "ES384", "EdDSA", "es256", ""] {
        let header = format!(r#"{{"alg":"{algorithm}","kid":"{KID}"}}"#);
        assert_eq!(check(&raw(&header, &claims)).err(), Some(Denial::Algorithm), "{algorithm}");
        let unsigned = format!("{}.{}.", base64url::encode(&header), base64url::encode(&claims));
        assert_eq!(check(&unsigned).err(), Some(Denial::Algorithm), "{algorithm}");
    }
    // The classic: the public key, which everybody has, taken for a shared secret.
    let public: Value = serde_json::from_str(RFC).expect("JSON");
    let point = ["x", "y"].map(|name| base64url::decode(public["keys"][0][name].as_str().expect("text")).expect("it"));
    let forger = json!({ "kty": "oct", "alg": "HS256", "kid": KID, "k": base64url::encode(point.concat()) });
    let forger = keys(&[forger], Form::UriSigning);
    let forged = token::sign(forger.only().expect("one"), &members(json!({ "cdniuc": BAR }))).expect("signed");
    assert_eq!(check(&forged).err(), Some(Denial::Algorithm));
    // A key that opens what is encrypted signs nothing; nor does one of the other form.
    let sealing = format!(r#"{{"alg":"A128GCM","kid":"{SEALING_KID}"}}"#);
    assert_eq!(check(&raw(&sealing, &claims)).err(), Some(Denial::Algorithm));
    let hmac = keys(&[keys::generate("k", keys::Algorithm::Hs256).expect("random")], Form::Hmac);
    let token = token::sign(hmac.only().expect("one"), &members(json!({ "cdniuc": BAR }))).expect("signed");
    assert_eq!(verify(&token, &hmac, &config()).err(), Some(Denial::UnknownKey));
}

#[test]
fn each_algorithm_verifies_its_own_and_no_other() {
    let jwks = keys::Algorithm::ALL.map(|algorithm| keys::generate(algorithm.name(), algorithm).expect("random"));
    let all = keys(&jwks, Form::UriSigning);
    for algorithm in keys::Algorithm::ALL {
        let key = all.key(algorithm.name(), Form::UriSigning).expect("there");
        let good = token::sign(key, &members(json!({ "cdniuc": BAR }))).expect("signed");
        assert!(verify(&good, &all, &config()).is_ok());
        let (message, _) = good.rsplit_once('.').expect("three parts");
        for other in keys::Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            let other = all.key(other.name(), Form::UriSigning).expect("there");
            let signature = base64url::encode(other.sign(message.as_bytes()).expect("signed"));
            assert_eq!(verify(&format!("{message}.{signature}"), &all, &config()).err(), Some(Denial::Signature));
        }
    }
}

#[test]
fn what_claims_may_not_be() {
    for (claims, why) in [
        (json!({}), Denial::Container),
        (json!({ "cdniuc": 5 }), Denial::Malformed),
        (json!({ "cdniuc": "glob:*" }), Denial::Container),
        (json!({ "cdniuc": "regex:(a{1000}){1000}" }), Denial::Container),
        (json!({ "cdniuc": BAR, "cdniv": 2 }), Denial::Version),
        (json!({ "cdniuc": BAR, "cdniv": 0 }), Denial::Version),
        (json!({ "cdniuc": BAR, "cdniv": "1" }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "cdnicrit": "x", "x": 1 }), Denial::Critical),
        (json!({ "cdniuc": BAR, "cdnicrit": "exp", "exp": 1 }), Denial::Critical),
        (json!({ "cdniuc": BAR, "cdnicrit": "" }), Denial::Critical),
        (json!({ "cdniuc": BAR, "iss": "somebody" }), Denial::Issuer),
        (json!({ "cdniuc": BAR, "iss": 5 }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "aud": "somebody" }), Denial::Audience),
        (json!({ "cdniuc": BAR, "aud": [] }), Denial::Audience),
        (json!({ "cdniuc": BAR, "aud": 5 }), Denial::Audience),
        (json!({ "cdniuc": BAR, "exp": "5" }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "exp": -1 }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "nbf": null }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "iat": "now" }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "cdniip": "192.0.2.7" }), Denial::Client),
        (json!({ "cdniuc": BAR, "cdniip": "a.b.c.d.e" }), Denial::Client),
        (json!({ "cdniuc": BAR, "jti": "x" }), Denial::Nonce),
        (json!({ "cdniuc": BAR, "cdnistt": 1 }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "cdnistt": 1, "cdniets": 0 }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "cdnistt": 3, "cdniets": 5 }), Denial::Malformed),
        (json!({ "cdniuc": BAR, "cdnistt": 1, "cdniets": 5, "cdnistd": -1 }), Denial::Malformed),
    ] {
        assert_eq!(denied(claims.clone()), why, "{claims}");
    }
    for claims in [
        json!({ "cdniuc": BAR, "cdniv": 1, "iss": "uCDN Inc", "aud": ["other", "dCDN LLC"], "x": {"unknown": []} }),
        json!({ "cdniuc": BAR, "cdnistt": 0 }),
        json!({ "cdniuc": BAR, "cdnistt": 2, "cdniets": 5 }),
    ] {
        assert!(check(&token(claims.clone())).is_ok(), "{claims}");
    }
    let no_nonces = Config { nonces_max: 0, ..config() };
    let nonce = token(json!({ "cdniuc": BAR, "jti": "x", "exp": 5 }));
    assert!(check(&nonce).is_ok());
    assert_eq!(verify(&nonce, &rfc(), &no_nonces).err(), Some(Denial::Nonce));
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let header = format!(r#"{{"alg":"ES256","kid":"{KID}"}}"#);
    let twice = format!(r#"{{"exp":5,"cdniuc":"{BAR}","exp":9999999999}}"#);
    assert_eq!(check(&raw(&header, &twice)).err(), Some(Denial::Malformed));
    let header = format!(r#"{{"alg":"none","kid":"{KID}","alg":"ES256"}}"#);
    assert_eq!(check(&raw(&header, &format!(r#"{{"cdniuc":"{BAR}"}}"#))).err(), Some(Denial::Malformed));
    let deep = format!(r#"{{"x":{}1{}}}"#, "[".repeat(400), "]".repeat(400));
    assert_eq!(check(&raw(&format!(r#"{{"alg":"ES256","kid":"{KID}"}}"#), &deep)).err(), Some(Denial::Malformed));
}

#[test]
fn time_has_edges_and_leeway_moves_them() {
    let verified = check(&token(json!({ "cdniuc": BAR, "nbf": 100, "exp": 200.5 }))).expect("it is good");
    for (now, leeway, expected) in [
        (99, 0.0, Err(Denial::NotYet)),
        (100, 0.0, Ok(())),
        (200, 0.0, Ok(())),
        (201, 0.0, Err(Denial::Expired)),
        (97, 3.0, Ok(())),
        (96, 3.0, Err(Denial::NotYet)),
        (203, 3.0, Ok(())),
        (204, 3.0, Err(Denial::Expired)),
    ] {
        assert_eq!(verified.allows(UnixTime(now), leeway, BAR_URI, HERE), expected, "{now} {leeway}");
    }
    let ever = check(&token(json!({ "cdniuc": BAR }))).expect("it is good");
    assert_eq!(allows(&ever, u64::MAX, BAR_URI, "192.0.2.7"), Ok(()));
}

/// A gate with the RFC's keys and one of the plain form.
struct Scene {
    gate: Gate,
    signing: Arc<Signing>,
    metrics: Arc<Metrics>,
}

impl Scene {
    fn new(config: Config) -> Self {
        let mut keys = rfc();
        let secret = keys::generate("plain", keys::Algorithm::Hs256).expect("random");
        keys.add(&set(Form::Hmac), &json!({ "keys": [secret] }).to_string()).expect("good");
        let metrics = Arc::new(Metrics::new(1));
        let key_sets = vec![set(Form::UriSigning), set(Form::Hmac)];
        let config = serve::Config { signing: Config { key_sets, ..config }, ..serve::Config::default() };
        let signing = Arc::new(Signing::with(&config, keys, Vec::new(), &metrics));
        Self { gate: Gate::new(&signing, &metrics.worker(0)), signing, metrics }
    }

    fn ask(&self, target: &str, cookies: Option<&str>, now: u64) -> Result<Option<HeaderValue>, Denial> {
        let presented = self.gate.presented(target)?;
        let path =
            presented.target.split('?').next().and_then(|path| path.strip_prefix('/')).expect("a path").to_owned();
        let asking = Asking {
            credential: &presented.credential,
            cookies: cookies.map(str::as_bytes),
            target: &presented.target,
            path: &path,
            authority: "cdni.example",
            secure: false,
            client: HERE,
            now: UnixTime(now),
        };
        let at_once = self.gate.admits_now(&asking);
        let admitted = self.gate.admit(&asking);
        assert!(!at_once || admitted.as_ref().is_ok_and(|grant| grant.set_cookie.is_none()), "{target}");
        admitted.map(|grant| grant.set_cookie)
    }

    fn verifications(&self) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("oca_signing_verifications_total "));
        line.and_then(|count| count.parse().ok()).expect("a count")
    }
}

fn with(token: &str) -> String {
    format!("/foo/bar?URISigningPackage={token}")
}

#[test]
fn a_token_is_verified_once_and_compared_every_time() {
    let scene = Scene::new(config());
    let good = with(&token(json!({ "cdniuc": BAR, "exp": 100 })));
    assert_eq!(scene.ask(&good, None, 50), Ok(None));
    assert_eq!(scene.ask(&good, None, 99), Ok(None));
    assert_eq!(scene.ask(&good.replace("/foo/bar", "/foo/baz"), None, 99), Err(Denial::Uri));
    assert_eq!(scene.ask(&good, None, 100), Err(Denial::Expired));
    assert_eq!(scene.verifications(), 1);
    assert_eq!(scene.ask("/foo/bar", None, 50), Err(Denial::Missing));
    assert_eq!(scene.ask(&with("x"), None, 50), Err(Denial::Malformed));
    assert_eq!(scene.ask(&with("x"), None, 50), Err(Denial::Malformed), "what is no good is not remembered as good");
    // Keys that are taken away take what they verified with them.
    scene.signing.keys.store(Arc::new(Generation { keys: Keys::default(), number: 1 }));
    assert_eq!(scene.ask(&good, None, 50), Err(Denial::UnknownKey));
}

#[test]
fn without_room_to_remember_every_token_is_verified_anew() {
    let scene = Scene::new(Config { verified_max: 0, ..config() });
    let good = with(&token(json!({ "cdniuc": BAR })));
    for count in 1..=3 {
        assert_eq!(scene.ask(&good, None, 50), Ok(None));
        assert_eq!(scene.verifications(), count);
    }
}

#[test]
fn rules_decide_what_is_asked_for() {
    let rule = |prefix: &str, policy| Rule { prefix: prefix.into(), policy };
    let rules = vec![rule("/free/", Policy::Off), rule("/maybe/", Policy::Optional)];
    let scene = Scene::new(Config { rules, ..config() });
    for (target, expected) in [
        ("/free/a", Ok(None)),
        ("/free/a?URISigningPackage=nonsense", Ok(None)),
        ("/maybe/a", Ok(None)),
        ("/maybe/a?URISigningPackage=nonsense", Err(Denial::Malformed)),
        ("/maybe/a?signature=00", Err(Denial::Malformed)),
        ("/else/a", Err(Denial::Missing)),
        ("/free", Err(Denial::Missing)),
    ] {
        assert_eq!(scene.ask(target, None, 5), expected, "{target}");
    }
    assert_eq!(scene.ask("/maybe/a", Some("URISigningPackage=of-another-folder"), 5), Ok(None));
    assert_eq!(scene.ask("/else/a", Some("URISigningPackage=of-another-folder"), 5), Err(Denial::Malformed));
}

#[test]
fn the_plain_form_comes_through_the_same_gate() {
    let scene = Scene::new(config());
    let keys = scene.signing.keys.load();
    let key = keys.keys.key("plain", Form::Hmac).expect("there");
    let query = plain::sign(key, "/foo/bar", UnixTime(100), None).expect("signed");
    assert_eq!(scene.ask(&format!("/foo/bar?{query}"), None, 99), Ok(None));
    assert_eq!(scene.ask(&format!("/foo/bar?session=5&{query}"), None, 99), Ok(None), "that is no part of the asset");
    assert_eq!(scene.ask(&format!("/foo/bar?{query}"), None, 100), Err(Denial::Expired));
    assert_eq!(scene.ask(&format!("/foo/baz?{query}"), None, 99), Err(Denial::Signature));
    let both = format!("{}&{query}", with(&token(json!({ "cdniuc": BAR }))));
    assert_eq!(scene.ask(&both, None, 99), Err(Denial::Ambiguous));
}

#[test]
fn a_nonce_is_good_once() {
    let scene = Scene::new(config());
    let once = with(&token(json!({ "cdniuc": "regex:.*", "exp": 100, "jti": "n" })));
    assert_eq!(scene.ask(&once, None, 50), Ok(None));
    assert_eq!(scene.ask(&once, None, 50), Err(Denial::Replayed));
    assert_eq!(
        scene.ask(&once.replace("/foo/bar", "/foo/baz"), None, 50),
        Ok(None),
        "for each asset (RFC 9246, 2.1.7)"
    );
}

/// The token, path and lifetime of a cookie.
fn cookie(value: &HeaderValue) -> (String, String) {
    let text = value.to_str().expect("text");
    let (token, rest) = text.split_once("; ").expect("attributes");
    (token.into(), rest.into())
}

#[test]
fn a_token_is_renewed_by_cookie_as_the_rfc_says() {
    let scene = Scene::new(Config { renewal_key: KID.into(), issuer: "uCDN Inc".into(), ..config() });
    // RFC 9246, A.3, with an issuer and a depth.
    let first = token(json!({
        "cdniets": 30, "cdnistt": 1, "cdnistd": 1, "exp": 100, "iat": 3, "iss": "uCDN Inc",
        "cdniuc": "regex:http://cdni\\.example/foo/bar(/[0-9]{3}\\.ts)?",
    }));
    let set = scene.ask(&with(&first), None, 90).expect("good").expect("a cookie");
    let (pair, attributes) = cookie(&set);
    assert_eq!(attributes, "Path=/foo; Max-Age=30; HttpOnly");
    let claims = base64url::decode(pair.split('.').nth(1).expect("claims")).expect("base64url");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!((&claims["exp"], &claims["iat"], &claims["cdniets"]), (&json!(120), &json!(90), &json!(30)));

    // The cookie alone is enough; it is not renewed before half of its time is over, and not after all of it is.
    let next = "/foo/bar/001.ts";
    assert_eq!(scene.ask(next, Some(&pair), 91), Ok(None));
    assert_eq!(scene.ask(next, Some(&pair), 104), Ok(None));
    let (second, _) = cookie(&scene.ask(next, Some(&pair), 105).expect("good").expect("a cookie"));
    assert_ne!(second, pair);
    assert_eq!(scene.ask(next, Some(&pair), 120), Err(Denial::Expired));
    assert!(scene.ask(next, Some(&format!("{pair}; {second}")), 121).is_ok(), "one of several is enough");
    assert!(scene.ask(next, Some(&second), 134).is_ok());
    assert_eq!(scene.ask("/foo/other", Some(&second), 110), Err(Denial::Uri));
    // By the old URI, with what was given since.
    assert!(scene.ask(&with(&first), Some(&second), 110).is_ok());
    assert_eq!(scene.ask(&with(&first), Some(&pair), 130), Err(Denial::Expired));
}

#[test]
fn what_is_not_to_be_renewed_is_not() {
    let renewing = || Config { renewal_key: KID.into(), ..config() };
    let claims = |more: Value| {
        let mut claims = members(json!({ "cdniuc": BAR, "cdniets": 30, "exp": 100 }));
        claims.extend(members(more));
        with(&token(Value::Object(claims)))
    };
    let scene = Scene::new(renewing());
    assert_eq!(scene.ask(&claims(json!({})), None, 50), Ok(None));
    assert_eq!(scene.ask(&claims(json!({ "cdnistt": 0 })), None, 50), Ok(None));
    assert_eq!(scene.ask(&claims(json!({ "cdnistt": 2 })), None, 50), Ok(None), "that takes a redirection");
    assert_eq!(
        scene.ask(&claims(json!({ "cdnistt": 1, "cdnistd": 3 })), None, 50),
        Ok(None),
        "the path is not as deep"
    );
    assert!(scene.ask(&claims(json!({ "cdnistt": 1, "cdnistd": 2 })), None, 50).expect("good").is_some());
    assert!(scene.ask(&claims(json!({ "cdnistt": 1, "nbf": 60, "jti": "x" })), None, 50).is_err());
    let without = Scene::new(config());
    assert_eq!(without.ask(&claims(json!({ "cdnistt": 1 })), None, 50), Ok(None));
}

#[test]
fn changed_keys_are_taken_over_and_bad_ones_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    std::fs::write(&path, RFC).expect("written");
    let metrics = Arc::new(Metrics::new(1));
    let key_sets = vec![KeySet { path: path.clone(), ..set(Form::UriSigning) }];
    let signing = Config { key_sets, ..config() };
    let config = serve::Config { signing, ..serve::Config::default() };
    let signing = Signing::start(&config, &metrics).expect("good").expect("it is on");
    let kids = || signing.keys.load().keys.len();
    assert_eq!(kids(), 2);

    std::fs::write(&path, "{\"keys\": [").expect("written");
    signing.look();
    assert_eq!((kids(), metrics.keys_refused.value()), (2, 0), "not before it has settled");
    signing.look();
    signing.look();
    assert_eq!((kids(), metrics.keys_refused.value()), (2, 1), "said once");

    let one = keys::generate("new", keys::Algorithm::EdDsa).expect("random");
    std::fs::write(&path, json!({ "keys": [one] }).to_string()).expect("written");
    signing.reload();
    assert_eq!((kids(), metrics.keys_reloaded.value()), (1, 1));
    assert!(signing.keys.load().keys.key(KID, Form::UriSigning).is_none());

    let renewing = Config { renewal_key: "nobody".into(), ..config.signing };
    assert!(matches!(load(&renewing), Err(SigningError::RenewalKey(kid)) if kid == "nobody"));
    let off = serve::Config::default();
    assert!(Signing::start(&off, &metrics).expect("good").is_none());
    assert_eq!(off.signing.token_size_max, ByteCount(2048));
}
