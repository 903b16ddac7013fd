//! Signed targets and tokens: whatever stands there, taking it off leaves nothing of it, a log shows nothing of it, and nothing that
//! nobody signed is verified.
#![cfg_attr(fuzzing, no_main)]

use std::sync::OnceLock;

use oca::serve::signing::{
    Config, Form, KeySet,
    container::{Container, normalized},
    keys::{Algorithm, Keys, generate},
    package::{Credential, Presented, in_cookies, redacted},
    token,
};

/// A key that nobody has: made anew by each run.
fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let mut keys = Keys::default();
        let set = KeySet { path: "/keys.json".into(), form: Form::UriSigning, issuers: Vec::new() };
        let jwks = Algorithm::ALL.map(|algorithm| generate(algorithm.name(), algorithm).expect("random"));
        let text = jwks.map(|jwk| jwk.to_string()).join(",");
        keys.add(&set, &format!("{{\"keys\":[{text}]}}")).expect("good");
        keys
    })
}

fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Key sets come from outside too; what is refused must not show in the reason.
    let set = KeySet { path: "/other.json".into(), form: Form::Hmac, issuers: Vec::new() };
    drop(Keys::default().add(&set, text));
    assert!(token::verify(text, keys(), &Config::default()).is_err(), "nobody signed {text}");
    in_cookies(data, 4).for_each(|token| assert!(!token.contains(';')));
    let logged = redacted(text);
    assert_eq!(redacted(&logged), logged, "once is enough");
    if let Some(container) = Container::parse(text, 16 << 10) {
        container.holds("http://edge.example/films/1.mp4");
    }
    let once = normalized(true, "edge.example", text);
    let again = once.strip_prefix("https://edge.example").expect("it begins so");
    assert_eq!(normalized(true, "edge.example", again), once, "once is enough");
    let Ok(presented) = Presented::of(text, true) else { return };
    if presented.credential == Credential::None {
        assert_eq!(presented.target, text);
    } else {
        let rest = Presented::of(&presented.target, true).expect("nothing is left");
        assert_eq!(rest.credential, Credential::None);
        assert!(presented.target.len() < text.len() && (presented.target.starts_with('/') || !text.starts_with('/')));
    }
    match (&presented.credential, Presented::of(&logged, true).map(|presented| presented.credential)) {
        (Credential::Token(_), Ok(Credential::Token(logged))) => assert_eq!(logged, "-", "{text}"),
        (Credential::Plain(plain), Ok(Credential::Plain(logged))) if plain.signature.len() > 1 => {
            assert_eq!(logged.signature, "-", "{text}");
        }
        _ => {}
    }
}

oca_fuzz::target!(
    target,
    corpus: &[
        "/films/1.mp4?a=b&URISigningPackage=eyJhbGciOiJFUzI1NiIsImtpZCI6IkVTMjU2In0.eyJjZG5pdWMiOiJyZWdleDouKiJ9.AAAA&c=d",
        "/films;URISigningPackage=x.y.z/1.mp4",
        "/films/1.mp4?expires=2000000000&key=k&client=192.0.2.0%2F24&signature=00",
        "eyJhbGciOiJIUzI1NiIsImtpZCI6IkhTMjU2In0.e30.AAAA",
        "regex:[^:]*\\:\\/\\/[^/]*/a(b|c){1,3}.*",
        "hash:sha-256;2tderfWPa86Ku7YnzW51YUp7dGUjBS_3SW3ELx4hmWY",
        "{\"keys\":[{\"kty\":\"oct\",\"alg\":\"HS256\",\"kid\":\"k\",\"k\":\"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE\"}]}",
        "a=b; URISigningPackage=x.y.z; c=d"
    ],
    dictionary: &[
        "URISigningPackage", "URISigningPackage=", "signature=", "expires=", "key=", "client=", "?", "&", ";", "=", "/", ".", "%", "%2e",
        "%41", "regex:", "hash:sha-256;", "(", ")", "{1000}", "*", "eyJhbGciOiJub25lIn0", "\"alg\"", "\"none\"", "\"kty\""
    ]
);
