//! Every way to be let in, and to be kept out, by the fields of a request alone.

use super::*;
use crate::net::tls::{OperatorFiles, PairFiles};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn a_token_may_be_a_browsers_password() {
    let of = |value: &str| token_of(value.as_bytes()).map(|token| String::from_utf8(token.into_owned()).expect("text"));
    assert_eq!(of("Bearer  abc "), Some("abc".into()));
    assert_eq!(of("bAsIc b3BlcmF0b3I6YTpi"), Some("a:b".into()), "of operator:a:b");
    assert_eq!(of("Basic OmFi"), Some("ab".into()), "without a user");
    for wrong in ["", "Bearer", "abc", "Basic !", "Basic YWI=", "Digest abc"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}

fn config(token: bool, certificates: bool) -> Config {
    let pair = PairFiles { certificate: "/a.pem".into(), key: "/a.key".into() };
    Config {
        token_file: token.then(|| "/token".into()),
        tls: certificates.then(|| OperatorFiles { pair, client_ca: Some("/ca.pem".into()) }),
        hosts: vec!["edge7.example".into()],
        ..Config::default()
    }
}

/// What is decided of `METHOD path`, with these fields.
fn decide(config: &Config, certificate: bool, line: &str, fields: &[(&str, &str)]) -> Result<Caller, Refusal> {
    let (method, target) = line.split_once(' ').expect("a method and a target");
    let mut request = http::Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a request");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    std::fs::write(&path, TOKEN).expect("written");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
    let tokens = config.token_file.is_some().then(|| Tokens::load(&path).expect("a token"));
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificate: certificate.then(|| "CN=ada".into()) };
    let asked = Asked::of(request.method(), request.uri(), request.version(), request.headers());
    judge(config, tokens.as_ref(), &peer, &asked)
}

const LOCAL: (&str, &str) = ("Host", "127.0.0.1:9090");

#[test]
fn on_loopback_everybody_is_an_operator() {
    let config = config(false, false);
    for host in
        ["127.0.0.1:9090", "127.0.0.1", "[::1]:9090", "localhost", "LOCALHOST:9090", "10.1.2.3", "Edge7.example:1"]
    {
        for line in ["GET /status", "POST /drain", "DELETE /assets", "GET /live"] {
            let decided = decide(&config, false, line, &[("Host", host)]);
            assert_eq!(decided, Ok(Caller::Operator(KnownBy::Loopback)), "{line} at {host}");
        }
    }
}

#[test]
fn a_name_that_somebody_else_may_own_is_refused() {
    let config = config(false, false);
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "127.0.0.1@evil.example",
        "",
        "a b",
        "edge7.example.",
        "[::1",
    ] {
        for line in ["GET /status", "GET /metrics", "POST /drain"] {
            assert_eq!(decide(&config, false, line, &[("Host", host)]), Err(Refusal::Host), "{line} at {host}");
        }
        assert_eq!(decide(&config, false, "GET /live", &[("Host", host)]), Ok(Caller::Probe), "a probe at {host}");
    }
    assert_eq!(decide(&config, false, "GET /status", &[]), Err(Refusal::Host), "HTTP/1.1 names a host");
    let twice = [LOCAL, ("Host", "evil.example")];
    assert_eq!(decide(&config, false, "GET /status", &twice), Err(Refusal::Host));
    let absolute = decide(&config, false, "GET http://evil.example/status", &[LOCAL]);
    assert_eq!(absolute, Err(Refusal::Host), "what stands in the request line counts (RFC 9112, 3.2.2)");
    assert!(decide(&Config { probes_open: false, ..config }, false, "GET /live", &[("Host", "evil.example")]).is_err());
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let site = |value| ("Sec-Fetch-Site", value);
    let origin = |value| ("Origin", value);
    for (token, certificate) in [(false, false), (true, true)] {
        let config = config(token, certificate);
        for (fields, expected) in [
            (vec![], true),
            (vec![site("same-origin")], true),
            (vec![site("none")], true),
            (vec![origin("http://127.0.0.1:9090"), site("same-origin")], true),
            (vec![origin("http://127.0.0.1:9090")], true),
            (vec![site("cross-site")], false),
            (vec![site("same-site")], false),
            (vec![site("anything")], false),
            (vec![origin("http://evil.example")], false),
            (vec![origin("http://127.0.0.1:9091")], false),
            (vec![origin("http://127.0.0.1")], false),
            (vec![origin("null")], false),
            (vec![origin("")], false),
            (vec![origin("http://evil.example"), site("same-origin")], false),
            (vec![origin("http://127.0.0.1:9090"), site("cross-site")], false),
        ] {
            let fields: Vec<_> = fields.into_iter().chain([LOCAL]).collect();
            for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
                let decided = decide(&config, certificate, &format!("{method} /drain"), &fields);
                let expected = if expected { decided.is_ok() } else { decided == Err(Refusal::CrossSite) };
                assert!(expected, "{method} {fields:?}: {decided:?}");
            }
            assert!(decide(&config, certificate, "GET /status", &fields).is_ok(), "reading changes nothing");
        }
    }
}

#[test]
fn where_a_token_is_due_nothing_else_is_good() {
    let config = config(true, false);
    let bearer = format!("Bearer {TOKEN}");
    for line in ["GET /status", "POST /drain", "GET /", "GET /nothing"] {
        let decided = |fields: &[(&str, &str)]| decide(&config, false, line, fields);
        assert_eq!(decided(&[LOCAL]), Err(Refusal::NoCredential), "{line}");
        assert_eq!(
            decided(&[("Authorization", &bearer)]),
            Ok(Caller::Operator(KnownBy::Token)),
            "whatever host: {line}"
        );
        assert!(decided(&[LOCAL, ("Authorization", &format!("bEARER  {TOKEN} "))]).is_ok());
        for wrong in [
            "Bearer",
            "Bearer ",
            TOKEN,
            &format!("Basic {TOKEN}"),
            &format!("Bearer {TOKEN}0"),
            &format!("Bearer {}", &TOKEN[1..]),
            &format!("Bearer {}", TOKEN.to_uppercase()),
            &format!("Bearer {TOKEN}, Bearer {TOKEN}"),
        ] {
            assert_eq!(decided(&[LOCAL, ("Authorization", wrong)]), Err(Refusal::WrongCredential), "{wrong:?}");
        }
        let twice = [("Authorization", bearer.as_str()), ("Authorization", bearer.as_str())];
        assert_eq!(decided(&twice), Err(Refusal::WrongCredential));
    }
    let in_query = decide(&config, false, &format!("GET /status?access_token={TOKEN}"), &[LOCAL]);
    assert_eq!(in_query, Err(Refusal::NoCredential), "what stands in a URL ends in logs");
}

#[test]
fn probes_see_the_two_pages_that_are_theirs() {
    let config = config(true, true);
    for (line, expected) in [
        ("GET /live", true),
        ("HEAD /ready", true),
        ("GET /ready?verbose", true),
        ("POST /live", false),
        ("GET /live/", false),
        ("GET //live", false),
        ("GET /Live", false),
        ("GET /%6cive", false),
        ("GET /live/../status", false),
        ("GET /metrics", false),
    ] {
        let decided = decide(&config, false, line, &[LOCAL]);
        assert_eq!(decided, if expected { Ok(Caller::Probe) } else { Err(Refusal::NoCredential) }, "{line}");
    }
    let closed = Config { probes_open: false, ..config };
    assert_eq!(decide(&closed, false, "GET /live", &[LOCAL]), Err(Refusal::NoCredential));
}

#[test]
fn a_certificate_is_as_good_as_a_token_and_a_wrong_token_is_wrong_with_it() {
    let config = config(true, true);
    let known = Ok(Caller::Operator(KnownBy::Certificate("CN=ada".into())));
    assert_eq!(decide(&config, true, "POST /drain", &[LOCAL]), known);
    let wrong = [LOCAL, ("Authorization", "Bearer nonsense")];
    assert_eq!(decide(&config, true, "POST /drain", &wrong), Err(Refusal::WrongCredential));
}
